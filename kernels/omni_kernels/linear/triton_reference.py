"""The truth about the card's linear with its prologue and epilogue, in plain torch (no Triton)."""

from __future__ import annotations

import torch
from torch.nn import functional

from omni_kernels.linear.triton_layout import CardWeight, dequantize


def linear(
    x: torch.Tensor,
    weight: CardWeight,
    *,
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
    is_gated: bool = False,
    addend: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute f(``x``) @ weight^T + ``addend`` in the type of ``x``.

    f is the RMS norm with factor ``norm``, or silu(first half) * second half where ``is_gated``, or
    nothing. ``x`` is [M, K], or [M, 2 K] where gated; ``addend`` [M, N] or [N].
    """
    if norm is not None:
        x = functional.rms_norm(x, x.shape[1:], norm.to(x.dtype), eps)
    if is_gated:
        gate, up = x.chunk(2, dim=1)
        x = functional.silu(gate) * up
    out = x @ dequantize(weight).to(x.dtype).T
    return out if addend is None else out + addend
