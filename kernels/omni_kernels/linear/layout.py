"""The packed weight of the quantised linear: its layout, packing and unpacking.

Weights are whole numbers of 8, 5 or 4 bits in groups of 32 along the inputs with one fp16 scale per
output and group: the grids of GGUF's Q8_0, Q5_0 and Q4_0, which transfer exactly. Those of 5 and 4
bits may have an fp16 offset per output and group as well: the grids of Q5_1, Q4_1, Q5_K and Q4_K.

Letters: N outputs, K inputs, P = ceil(N / 16) panels, G = ceil(K / 32) groups, b bits.

``data`` uint8 [P, G, 64 b] holds ``u = q + 2 ** (b - 1)``, or ``u = q`` if there are offsets, as
many lines of 64 bytes per group as there are bits. With 8 bits, line s holds, for each of the
panel's 16 outputs, the 4 inputs 4s .. 4s + 3 of the group::

    data[p, g, s * 64 + n * 4 + j] = u[16 p + n, 32 g + 4 s + j]                   s in 0 .. 7

With 4 and 5 bits the lower four bits of lines s and s + 4 share one line, the fifth bits of all
eight lines another, so that a mask and a shift bring any of the eight lines to bytes::

    data[p, g, s * 64 + n * 4 + j] = u[.., 4 s + j] % 16 | (u[.., 4 s + 16 + j] % 16) << 4
    data[p, g, 256 + n * 4 + j]    = sum over s in 0 .. 7 of (u[.., 4 s + j] >> 4) << s

``scales`` float16 [P, G, 16]: ``scales[p, g, n]`` belongs to output 16 p + n. With offsets it is
[P, G, 2, 16], a group's 16 scales before its 16 offsets, and a weight is q * scale + offset.

Padding outputs have scale 0, padding inputs have q = 0. The layout is the same on every instruction
set, so a packed file is portable; both arrays may be memory-mapped (64-byte alignment is fastest,
none is needed).

Why u and not q: the AVX-512 and AVX2 multiplies take one unsigned operand. Its surplus is
2 ** (b - 1) times the sum of the group's activations, known when those are quantised, so it costs
no weight traffic.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from omni_kernels.tensors import require

GROUP = 32
"""Inputs that share one scale."""
PANEL = 16
"""Outputs interleaved in one 64-byte line."""
STEP = 4
"""Inputs of one output in one line with a weight in each byte."""
STEPS = GROUP // STEP
"""Lines of a group with a weight in each byte."""
LINE = PANEL * STEP
"""Bytes of a line."""
Bits = Literal[4, 5, 8]
"""Of one weight."""
BITS: tuple[Bits, ...] = (4, 5, 8)


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeight:
    """A weight [out_features, in_features] of 4, 5 or 8 bits; see the module for the layout.

    Its ``bits`` follow from the shape of ``data``, whether it ``has_offsets`` from ``scales``'.

    Raises:
        ValueError: the tensors have another shape, type, device or are not contiguous.
    """

    data: torch.Tensor
    scales: torch.Tensor
    out_features: int
    in_features: int
    bits: Bits = field(init=False)
    has_offsets: bool = field(init=False)
    data_pointer: int = field(init=False, repr=False)
    scales_pointer: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        width = self.data.shape[-1] if self.data.dim() else 0
        bits: Bits = next((each for each in BITS if width == each * LINE), 8)
        has_offsets = bits < 8 and self.scales.dim() == 4
        data, scales = packed_shapes(self.out_features, self.in_features, bits, has_offsets)
        require("packed data", self.data, data, torch.uint8)
        require("packed scales", self.scales, scales, torch.float16)
        object.__setattr__(self, "bits", bits)
        object.__setattr__(self, "has_offsets", has_offsets)
        # Read once: a data_ptr() call per use would show at a hundred linears per token.
        object.__setattr__(self, "data_pointer", self.data.data_ptr())
        object.__setattr__(self, "scales_pointer", self.scales.data_ptr())

    @property
    def nbytes(self) -> int:
        """Bytes of memory traffic of one pass over the weight."""
        return self.data.nbytes + self.scales.nbytes


def packed_shapes(
    out_features: int, in_features: int, bits: Bits = 8, has_offsets: bool = False
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of ``data`` and ``scales`` for a weight [out_features, in_features]."""
    panels, groups = -(-out_features // PANEL), -(-in_features // GROUP)
    each = (2, PANEL) if has_offsets else (PANEL,)
    return (panels, groups, bits * LINE), (panels, groups, *each)


def pack(weight: torch.Tensor, bits: Bits = 8) -> PackedWeight:
    """Quantise ``weight`` [N, K] (float) symmetrically to ``bits`` in groups of 32.

    The scale is max|w| / (2 ** (bits - 1) - 1) rounded *up* to fp16, so no weight is clipped.

    Raises:
        ValueError: not a matrix, or a value is not finite or beyond fp16 x the largest code;
            ``bits`` is none of 4, 5 and 8.
    """
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(f"expected a float matrix [N, K], got {weight.dtype} {list(weight.shape)}")
    most = _limit(bits) - 1
    n, k = weight.shape
    groups = -(-k // GROUP)
    padded = torch.nn.functional.pad(weight.float(), (0, groups * GROUP - k))
    grouped = padded.view(n, groups, GROUP)
    exact = grouped.abs().amax(dim=2) / float(most)  # [N, G]
    scales = exact.half()
    below = scales.float() < exact
    scales[below] = torch.nextafter(scales[below], torch.tensor(torch.inf, dtype=torch.float16))
    if not bool(scales.isfinite().all()):
        raise ValueError(f"the weight has values that are not finite or beyond {65504 * most:.1e}")
    divisor = torch.where(scales == 0, 1.0, scales.float())
    q = (grouped / divisor.unsqueeze(2)).round().to(torch.int8).view(n, groups * GROUP)
    return _interleave(q, [scales], k, bits)


def pack_quantized(
    q: torch.Tensor,
    scales: torch.Tensor,
    bits: Bits = 8,
    *,
    offsets: torch.Tensor | None = None,
) -> PackedWeight:
    """Pack weights that are already quantised: ``q`` int8 [N, K], ``scales`` float [N, K / 32].

    Scales are stored as fp16: exact for GGUF's Q8_0, Q5_0 and Q4_0, rounded otherwise.

    Args:
        q: -2 ** (bits - 1) .. 2 ** (bits - 1) - 1; with offsets 0 .. 2 ** bits - 1.
        scales: of each output and group.
        bits: 4, 5 or 8; 4 or 5 with offsets.
        offsets: float [N, K / 32], stored as fp16: a weight is q * scale + offset.

    Raises:
        ValueError: shapes or types do not fit, K is no multiple of 32, a scale or an offset
            overflows fp16, or ``q`` or ``bits`` is none of the above.
    """
    if q.dim() != 2 or q.dtype != torch.int8 or q.shape[1] % GROUP:
        raise ValueError(f"expected int8 [N, multiple of 32], got {q.dtype} {list(q.shape)}")
    if tuple(scales.shape) != (q.shape[0], q.shape[1] // GROUP) or not scales.is_floating_point():
        raise ValueError(
            f"expected float scales [{q.shape[0]}, {q.shape[1] // GROUP}], "
            f"got {scales.dtype} {list(scales.shape)}"
        )
    numbers = [scales.half()]
    low, end = -_limit(bits), _limit(bits)
    if offsets is not None:
        if bits == 8 or offsets.shape != scales.shape or not offsets.is_floating_point():
            raise ValueError(
                f"expected float offsets {list(scales.shape)} of 4 or 5 bits, "
                f"got {offsets.dtype} {list(offsets.shape)} of {bits}"
            )
        numbers.append(offsets.half())
        low, end = 0, 1 << bits
    if bits < 8 and q.numel() and not (low <= int(q.min()) and int(q.max()) < end):
        raise ValueError(
            f"weights of {bits} bits lie in {low} .. {end - 1}, "
            f"got {int(q.min())} .. {int(q.max())}"
        )
    if not all(bool(each.isfinite().all()) for each in numbers):
        raise ValueError("a scale or an offset is not finite in fp16")
    return _interleave(q, numbers, q.shape[1], bits)


def unpack(packed: PackedWeight) -> torch.Tensor:
    """Return the weight that ``packed`` stands for, float32 [N, K]."""
    q, scales, offsets = parts(packed)
    weight = q.float().view(*scales.shape, GROUP) * scales.float().unsqueeze(2)
    if offsets is not None:
        weight += offsets.float().unsqueeze(2)
    return weight.view(q.shape)[:, : packed.in_features].contiguous()


def split(packed: PackedWeight) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``q`` int8 [N, G * 32] and ``scales`` float16 [N, G] in plain order.

    Raises:
        ValueError: the weight has offsets.
    """
    q, scales, offsets = parts(packed)
    if offsets is not None:
        raise ValueError("the weight has offsets, expected scales alone")
    return q, scales


def parts(packed: PackedWeight) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return ``q`` int8 [N, G * 32], ``scales`` and ``offsets`` float16 [N, G] in plain order."""
    panels, groups, _ = packed.data.shape
    lines = packed.data.view(panels, groups, packed.bits, PANEL, STEP)
    if packed.bits < 8:
        nibbles = lines[:, :, : STEPS // 2]
        lower = torch.cat([nibbles & 15, nibbles >> 4], dim=2)  # [P, G, 8, 16, 4]
        if packed.bits == 5:
            fifth = lines[:, :, STEPS // 2 :] >> _shifts() & 1
            lower |= fifth << 4
        lines = lower
    plain = lines.permute(0, 3, 1, 2, 4).reshape(panels * PANEL, groups * GROUP)
    zero = 0 if packed.has_offsets else _limit(packed.bits)
    q = (plain.to(torch.int16) - zero).to(torch.int8)
    numbers = packed.scales.view(panels, groups, -1, PANEL).permute(2, 0, 3, 1)
    numbers = numbers.reshape(-1, panels * PANEL, groups)[:, : packed.out_features]
    return q[: packed.out_features], numbers[0], numbers[1] if packed.has_offsets else None


def _interleave(
    q: torch.Tensor, numbers: list[torch.Tensor], in_features: int, bits: Bits
) -> PackedWeight:
    """Lay out ``q`` int8 [N, G * 32] and the scales, and perhaps offsets, float16 [N, G]."""
    n, k = q.shape
    panels, groups = -(-n // PANEL), k // GROUP
    rows = panels * PANEL - n
    zero = 0 if len(numbers) == 2 else _limit(bits)
    stored = torch.nn.functional.pad((q.to(torch.int16) + zero).to(torch.uint8), (0, 0, 0, rows))
    stored[n:] = zero
    lines = stored.view(panels, PANEL, groups, STEPS, STEP).permute(0, 2, 3, 1, 4)
    if bits < 8:
        lower = lines & 15
        halves = [lower[:, :, : STEPS // 2] | lower[:, :, STEPS // 2 :] << 4]
        if bits == 5:  # at most one of each bit: the sum is below 256
            fifth = (lines >> 4) << _shifts()
            halves.append(fifth.sum(dim=2, keepdim=True, dtype=torch.uint8))
        lines = torch.cat(halves, dim=2)
    data = lines.reshape(panels, groups, bits * LINE)
    padded = torch.nn.functional.pad(torch.stack(numbers), (0, 0, 0, rows))
    laid = padded.view(-1, panels, PANEL, groups).permute(1, 3, 0, 2)  # [P, G, 1 or 2, 16]
    if len(numbers) == 1:
        laid = laid[:, :, 0]
    return PackedWeight(data.contiguous(), laid.contiguous(), n, in_features)


def _limit(bits: int) -> int:
    """The stored zero of weights of ``bits``: they lie in -limit .. limit - 1."""
    if bits not in BITS:
        raise ValueError(f"weights have 4, 5 or 8 bits, got {bits}")
    return 1 << (bits - 1)


def _shifts() -> torch.Tensor:
    """Where in its byte each line's fifth bit lies, uint8 [8, 1, 1]."""
    return torch.arange(STEPS, dtype=torch.uint8).view(STEPS, 1, 1)
