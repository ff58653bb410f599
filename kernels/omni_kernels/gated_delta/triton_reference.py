"""The truth about the short convolution by itself, in plain torch (no Triton here)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch.nn import functional


def short_conv(
    x: torch.Tensor,
    taps: torch.Tensor,
    conv: torch.Tensor,
    slots: list[int],
    cu_seqlens: list[int],
) -> torch.Tensor:
    """Convolve rows ``x`` [N, C] of each sequence after its window and apply SiLU -> [N, C].

    ``taps`` [W, C]; ``conv`` [slots, W - 1, C] is advanced in place.
    """
    out = torch.empty_like(x)
    width = len(taps)
    for slot, (first, last) in zip(slots, pairwise(cu_seqlens), strict=True):
        padded = torch.cat([conv[slot], x[first:last]])  # [W - 1 + T, C]
        shifted = [padded[j : j + last - first] * taps[j] for j in range(width)]
        out[first:last] = functional.silu(torch.stack(shifted).sum(dim=0))
        conv[slot] = padded[len(padded) - width + 1 :]
    return out
