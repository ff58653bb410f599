"""The quantised weight as cards read it: 8 or 4 bits in groups of 32, row by row. No Triton here.

Same numbers as ``layout.py`` (GGUF's Q8_0 and Q4_0 transfer exactly), another order: cards read
whole rows, CPUs 16 outputs side by side. Letters: N outputs, K inputs.

8 bits: ``codes`` int8 [N, K]. 4 bits: ``codes`` uint8 [N, K / 2]; byte i of a group of 16 bytes
holds input i in its low and input 16 + i in its high half, each + 8 (the order of Q4_0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from omni_kernels.linear.layout import GROUP, PackedWeight, split

HALF = GROUP // 2
ZERO4 = 8
"""What a stored half byte exceeds its weight by."""


@dataclass(frozen=True, slots=True, eq=False)
class CardWeight:
    """A quantised weight [out_features, in_features] for a card; see the module for the layout.

    Raises:
        ValueError: the tensors have another shape or type or are not contiguous.
    """

    codes: torch.Tensor
    scales: torch.Tensor  # fp16 [N, K / 32]
    bits: Literal[4, 8]

    def __post_init__(self) -> None:
        n, groups = self.scales.shape
        width = groups * (GROUP if self.bits == 8 else HALF)
        dtype = torch.int8 if self.bits == 8 else torch.uint8
        if self.codes.shape != (n, width) or self.codes.dtype != dtype:
            raise ValueError(
                f"codes: expected {dtype} [{n}, {width}], "
                f"got {self.codes.dtype} {list(self.codes.shape)}"
            )
        if self.scales.dtype != torch.float16:
            raise ValueError(f"scales: expected float16, got {self.scales.dtype}")
        if not self.codes.is_contiguous() or not self.scales.is_contiguous():
            raise ValueError("codes and scales must be contiguous")

    @property
    def out_features(self) -> int:
        """N."""
        return self.scales.shape[0]

    @property
    def in_features(self) -> int:
        """K."""
        return self.scales.shape[1] * GROUP


def from_packed(packed: PackedWeight) -> CardWeight:
    """Reorder a CPU weight: the same integers and scales; 5 bits take the room of 8.

    Raises:
        ValueError: its inputs are no multiple of 32.
    """
    if packed.in_features % GROUP:
        raise ValueError(f"{packed.in_features} inputs are no multiple of {GROUP}")
    codes, scales = split(packed)
    if packed.bits == 4:
        return pack4(codes, scales)
    return CardWeight(codes.contiguous(), scales.contiguous(), 8)


def pack4(q: torch.Tensor, scales: torch.Tensor) -> CardWeight:
    """Pack quantised weights: ``q`` int8 [N, K] in -8 .. 7, ``scales`` [N, K / 32].

    Raises:
        ValueError: a value does not fit into 4 bits, or the shapes do not fit.
    """
    if q.dim() != 2 or q.shape[1] % GROUP or q.dtype != torch.int8:
        raise ValueError(f"expected int8 [N, multiple of {GROUP}], got {q.dtype} {list(q.shape)}")
    if q.numel() and not -ZERO4 <= int(q.min()) <= int(q.max()) < ZERO4:
        raise ValueError(f"weights from {int(q.min())} to {int(q.max())} do not fit into 4 bits")
    stored = (q.to(torch.int16) + ZERO4).to(torch.uint8).view(len(q), -1, 2, HALF)
    codes = stored[:, :, 0] | (stored[:, :, 1] << 4)
    return CardWeight(codes.flatten(1).contiguous(), scales.half().contiguous(), 4)


def dequantize(weight: CardWeight) -> torch.Tensor:
    """Return the weight that ``weight`` stands for, float32 [N, K]."""
    n, groups = weight.scales.shape
    if weight.bits == 8:
        q = weight.codes.float().view(n, groups, GROUP)
    else:
        codes = weight.codes.view(n, groups, HALF)
        q = torch.cat([codes & 15, codes >> 4], dim=2).float() - ZERO4
    return (q * weight.scales.float().unsqueeze(2)).view(n, groups * GROUP)
