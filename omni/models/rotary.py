"""Rotary angles of a step's tokens, for every layer at once.

Called by :mod:`omni.models.backbone`. One axis or three (time, height, width); all of a head or its
first part; integer or floating positions. Letters: N tokens of the step, R rotated width of a head.
"""

from __future__ import annotations

import torch

_FIRST_POSITIONS = 4096
"""Positions tabulated from the start; a context may be 262,144 long and a session rarely is."""


class Rotary:
    """Cosines and sines by position (RoFormer, 3.2.2; Qwen2-VL, 2.1 for three axes).

    ``sections`` are the pairs that turn by time, height and width; they follow each other, or with
    ``interleaved`` alternate: T H W T H W ... until H and W are used up, then T (Qwen3-VL).
    Integer positions are looked up in a table that grows by doubling, so that a position has the
    same angles, bit by bit, whatever stands beside it.

    Raises:
        ValueError: sections that are not R/2 pairs in all.
    """

    def __init__(
        self,
        *,
        dim: int,
        theta: float,
        sections: tuple[int, int, int] | None = None,
        interleaved: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
        self._inverse = (1.0 / (theta**exponents)).to(device)  # [R/2]
        self._pairs = torch.arange(dim // 2, device=device)
        self._axes: torch.Tensor | None = None
        if sections is not None:
            if sum(sections) != dim // 2:
                raise ValueError(f"rotary sections {sections} are not {dim // 2} pairs in all")
            self._axes = torch.tensor(_axes(sections, interleaved=interleaved), device=device)
        self._cosine, self._sine = self._of(torch.arange(_FIRST_POSITIONS, device=device))

    def __call__(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines fp32 [N, R/2] of ``positions`` [N] or [3, N], int64 or floating.

        Raises:
            ValueError: three axes, but no sections that say which pair turns by which.
        """
        if positions.dim() == 1:
            if positions.is_floating_point():
                return self._of(positions)
            self._tabulate(positions)
            return self._cosine[positions], self._sine[positions]
        if self._axes is None:
            raise ValueError("positions have three axes, this model's have one")
        rows = positions[self._axes].T.contiguous()  # [N, R/2]
        if positions.is_floating_point():
            angles = rows.to(torch.float32) * self._inverse
            return angles.cos(), angles.sin()
        self._tabulate(positions)
        return self._cosine[rows, self._pairs], self._sine[rows, self._pairs]

    def _of(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = positions.to(torch.float32)[:, None] * self._inverse
        return angles.cos(), angles.sin()

    def _tabulate(self, positions: torch.Tensor) -> None:
        while len(positions) and len(self._cosine) <= int(positions.max()):
            size = len(self._cosine)
            cosine, sine = self._of(torch.arange(size, 2 * size, device=positions.device))
            self._cosine = torch.cat([self._cosine, cosine])
            self._sine = torch.cat([self._sine, sine])


def _axes(sections: tuple[int, int, int], *, interleaved: bool) -> list[int]:
    """The axis by which each pair turns."""
    if not interleaved:
        return [axis for axis, count in enumerate(sections) for _ in range(count)]
    axes = [0] * sum(sections)
    for axis in (1, 2):
        for pair in range(axis, 3 * sections[axis], 3):
            axes[pair] = axis
    return axes
