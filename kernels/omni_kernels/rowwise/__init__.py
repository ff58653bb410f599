"""Operations on each row by itself: norms, the gated activation, rotary positions.

One call each instead of three to eight small torch operations, whose overhead shows at 20 ms per
token. Called by the backbone and the recogniser. fp32; a row never depends on its neighbours.
"""

from __future__ import annotations

import ctypes

import torch

from omni_kernels import library
from omni_kernels.rowwise import reference
from omni_kernels.tensors import require

BRIEF = 32 * 1024
"""Elements below which a call takes less time than giving up the interpreter lock might."""

__all__ = ["layer_norm", "rms_norm", "rotate_and_store", "sigmoid_mul", "silu_mul"]


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute ``x`` / sqrt(mean(x^2) + eps) * ``weight`` for each row.

    Args:
        x: fp32 [M, K], contiguous.
        weight: fp32 [K].
        eps: added to the mean square.
        out: fp32 [M, K], overwritten, may be ``x``; None: a new tensor.

    Raises:
        ValueError: a shape, type or layout is not as above.
    """
    rows, columns = x.shape
    require("x", x, (rows, columns))
    require("weight", weight, (columns,))
    out = _output(out, rows, columns)
    kernels = _kernels(out.numel())
    if kernels is None:
        return out.copy_(reference.rms_norm(x, weight, eps))
    kernels.omni_rms_norm(x.data_ptr(), weight.data_ptr(), rows, columns, eps, out.data_ptr())
    return out


def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float = 1e-5,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute (``x`` - mean) / sqrt(variance + eps) * ``weight`` + ``bias`` for each row.

    Args:
        x: fp32 [M, K], contiguous.
        weight: fp32 [K].
        bias: fp32 [K].
        eps: added to the variance.
        out: fp32 [M, K], overwritten, may be ``x``; None: a new tensor.

    Raises:
        ValueError: a shape, type or layout is not as above.
    """
    rows, columns = x.shape
    require("x", x, (rows, columns))
    require("weight", weight, (columns,))
    require("bias", bias, (columns,))
    out = _output(out, rows, columns)
    kernels = _kernels(out.numel())
    if kernels is None:
        return out.copy_(reference.layer_norm(x, weight, bias, eps))
    kernels.omni_layer_norm(
        x.data_ptr(), weight.data_ptr(), bias.data_ptr(), rows, columns, eps, out.data_ptr()
    )
    return out


def silu_mul(gate_up: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Compute silu(gate) * up for each row of ``gate_up`` fp32 [M, 2I], gate first.

    Args:
        gate_up: fp32 [M, 2I], contiguous.
        out: fp32 [M, I], overwritten, must not overlap ``gate_up``; None: a new tensor.

    Raises:
        ValueError: a shape, type or layout is not as above.
    """
    rows, double = gate_up.shape
    if double % 2:
        raise ValueError(f"gate_up: expected an even number of columns, got {double}")
    require("gate_up", gate_up, (rows, double))
    out = _output(out, rows, double // 2)
    kernels = _kernels(out.numel())
    if kernels is None:
        return out.copy_(reference.silu_mul(gate_up))
    kernels.omni_silu_mul(gate_up.data_ptr(), rows, double // 2, out.data_ptr())
    return out


def sigmoid_mul(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """Multiply ``x`` by sigmoid(``gate``) in place.

    Args:
        x: fp32 [M, K], contiguous. Mutated.
        gate: fp32 [M, K], each row dense, rows possibly apart.

    Returns:
        ``x``.

    Raises:
        ValueError: a shape, type or layout is not as above.
    """
    rows, columns = x.shape
    require("x", x, (rows, columns))
    _require_rows("gate", gate, (rows, columns))
    kernels = _kernels(x.numel())
    if kernels is None:
        return x.copy_(reference.sigmoid_mul(x, gate))
    kernels.omni_sigmoid_mul(x.data_ptr(), gate.data_ptr(), rows, columns, gate.stride(0))
    return x


def rotate_and_store(
    qkv: torch.Tensor,
    kv: torch.Tensor,
    cosine: torch.Tensor,
    sine: torch.Tensor,
    slots: torch.Tensor,
    *,
    norms: tuple[torch.Tensor, torch.Tensor] | None = None,
    eps: float = 1e-6,
) -> torch.Tensor:
    """Rotate queries and keys of ``qkv`` in place and write keys and values to their pages.

    Pairs are (i, i + R/2) (NeoX pairing); R may be less than D: the rest is not rotated.

    Args:
        qkv: fp32 [N, Hq + 2 Hkv, D], each row dense, rows possibly apart (a view of a wider
            projection): queries, keys, values of each token. Mutated.
        kv: fp32 [2, P, T, Hkv, D], contiguous (one layer of ``StateView.kv``). Mutated.
        cosine: fp32 [N, R/2] of each token's angles, R <= D.
        sine: fp32 [N, R/2].
        slots: int64 [N], page id * T + offset of each token.
        norms: factors fp32 [D] of the RMS norm of each query and key head before the rotation;
            None: no norm.
        eps: added to the mean square of that norm.

    Returns:
        The rotated queries [N, Hq, D], a view of ``qkv`` that ``paged_attention`` takes as it is.

    Raises:
        ValueError: a shape, type or layout is not as above, or a slot is out of range.
    """
    rows, all_heads, dim = qkv.shape
    _, pages, page_tokens, kv_heads, _ = kv.shape
    heads, half = all_heads - 2 * kv_heads, cosine.shape[-1]
    if heads < 1 or 2 * half > dim:
        raise ValueError(
            f"qkv {list(qkv.shape)} does not fit {kv_heads} key heads with {half} angles"
        )
    _require_rows("qkv", qkv, (rows, all_heads, dim))
    require("kv", kv, (2, pages, page_tokens, kv_heads, dim))
    require("cosine", cosine, (rows, half))
    require("sine", sine, (rows, half))
    require("slots", slots, (rows,), torch.int64)
    if norms is not None:
        for norm in norms:
            require("norm", norm, (dim,))
    query = qkv[:, :heads]
    kernels = _kernels(qkv.numel())
    if kernels is not None:
        keys = kv.data_ptr()
        status: int = kernels.omni_norm_rotate_and_store(
            qkv.data_ptr(),
            rows,
            qkv.stride(0),
            heads,
            kv_heads,
            dim,
            half,
            None if norms is None else norms[0].data_ptr(),
            None if norms is None else norms[1].data_ptr(),
            eps,
            cosine.data_ptr(),
            sine.data_ptr(),
            slots.data_ptr(),
            pages * page_tokens,
            keys,
            keys + kv.stride(0) * kv.element_size(),
        )
        if status != 0:
            raise ValueError(f"a slot is not in 0 .. {pages * page_tokens - 1}")
        return query
    if rows and not 0 <= slots.min().item() <= slots.max().item() < pages * page_tokens:
        raise ValueError(f"a slot is not in 0 .. {pages * page_tokens - 1}")
    turned = qkv[:, : heads + kv_heads]
    if norms is not None:
        for part, norm in (
            (qkv[:, :heads], norms[0]),
            (qkv[:, heads : heads + kv_heads], norms[1]),
        ):
            normed = reference.rms_norm(part.reshape(-1, dim), norm, eps)
            part.copy_(normed.view(part.shape))
    turned.copy_(reference.rotate(turned, cosine, sine))
    tokens = kv.view(2, pages * page_tokens, kv_heads, dim)
    tokens[0, slots] = qkv[:, heads : heads + kv_heads]
    tokens[1, slots] = qkv[:, heads + kv_heads :]
    return query


def _kernels(elements: int) -> ctypes.CDLL | None:
    return library.brief() if elements < BRIEF else library.cpu()


def _require_rows(name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a tensor whose rows are not dense; the rows themselves may lie apart."""
    if tensor.shape == shape and shape[0]:
        require(f"{name}[0]", tensor[0], shape[1:])
    else:
        require(name, tensor, shape)


def _output(out: torch.Tensor | None, rows: int, columns: int) -> torch.Tensor:
    if out is None:
        return torch.empty(rows, columns)
    require("out", out, (rows, columns))
    return out
