"""The truth about the Gated DeltaNet layer, in plain torch, one token after the other.

Source: Yang, Kautz, Hatamizadeh, "Gated Delta Networks" (2024), as in transformers ``qwen3_5``.
Each token runs the same operations on the same shapes, so here too any cut into chunks gives the
same bits. Works in the type of its inputs; letters as in ``op.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch.nn import functional

from omni_kernels.gated_delta.op import GatedDelta

NORM_EPS = 1e-6
"""Added to the squared length of queries and keys."""


def gated_delta_net(
    x: torch.Tensor,
    op: GatedDelta,
    recurrent: torch.Tensor,
    conv: torch.Tensor,
    slots: Sequence[int],
    cu_seqlens: Sequence[int],
    journal: torch.Tensor | None = None,
    journal_starts: Sequence[int] | None = None,
) -> torch.Tensor:
    """Run N tokens [N, C + 2 HV + HV V]; arguments as in the package's function."""
    out = x.new_empty(len(x), op.output_width)
    for b, (first, last) in enumerate(pairwise(cu_seqlens)):
        state, window = recurrent[slots[b]], conv[slots[b]]
        for n in range(first, last):
            row = x[n]
            o = advance(op, row[: op.journal_width], state, window)
            out[n] = gated_norm(op, o, row[op.journal_width :])
        if journal is not None and journal_starts is not None and journal_starts[b] >= 0:
            start = journal_starts[b]
            journal[slots[b], start : start + last - first] = x[first:last, : op.journal_width]
    return out


def replay(op: GatedDelta, rows: torch.Tensor, recurrent: torch.Tensor, conv: torch.Tensor) -> None:
    """Advance one slot's ``recurrent`` [HV, V, K] and ``conv`` [W - 1, C] by rows [T, C + 2 HV]."""
    for row in rows:
        advance(op, row, recurrent, conv)


def advance(
    op: GatedDelta, row: torch.Tensor, recurrent: torch.Tensor, conv: torch.Tensor
) -> torch.Tensor:
    """Take one token qkv | b | a [C + 2 HV] into the state and return what its query reads [HV, V].

    S <- e^g S; d = beta (v - S k); S <- S + d k^T; o = S q.
    """
    heads, value_heads = op.num_key_heads, op.num_value_heads
    qkv, b, a = torch.split(row, [op.channels, value_heads, value_heads])
    window = torch.cat([conv, qkv.unsqueeze(0)])  # [W, C]
    mixed = functional.silu((window * op.taps.to(row.dtype)).sum(dim=0))
    conv.copy_(window[1:])
    width = heads * op.key_dim
    q, k, v = torch.split(mixed, [width, width, value_heads * op.value_dim])
    group = value_heads // heads
    q = unit(q.view(heads, op.key_dim)).repeat_interleave(group, dim=0) * op.key_dim**-0.5
    k = unit(k.view(heads, op.key_dim)).repeat_interleave(group, dim=0)  # [HV, K]
    v = v.view(value_heads, op.value_dim)
    beta, g = gates(op, b, a)

    recurrent.mul_(g.exp()[:, None, None])
    delta = beta[:, None] * (v - (recurrent * k[:, None]).sum(dim=2))  # [HV, V]
    recurrent.add_(delta[:, :, None] * k[:, None])
    read: torch.Tensor = (recurrent * q[:, None]).sum(dim=2)
    return read


def gates(op: GatedDelta, b: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return beta = sigmoid(b) and g = -exp(a_log) softplus(a + dt_bias) <= 0, both [HV]."""
    # log(e^x + e^0) by the larger exponent: no overflow and no threshold.
    excess = a + op.dt_bias.to(a.dtype)
    softplus = torch.logaddexp(excess, torch.zeros_like(excess))
    return torch.sigmoid(b), -op.a_log.to(a.dtype).exp() * softplus


def unit(x: torch.Tensor) -> torch.Tensor:
    """``x`` [H, K] / sqrt(|x|^2 + 1e-6) for each head."""
    return x * torch.rsqrt(x.square().sum(dim=1, keepdim=True) + NORM_EPS)


def gated_norm(op: GatedDelta, o: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """``o`` [HV, V] / sqrt(mean(o^2) + eps) * norm * silu(z [HV V]) -> [HV V]."""
    scale = torch.rsqrt(o.square().mean(dim=1, keepdim=True) + op.eps)
    return (o * scale * op.norm.to(o.dtype)).flatten() * functional.silu(z)
