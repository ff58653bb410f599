"""The packed weight of the quantised linear: its layout, packing and unpacking.

Weights are int8 in groups of 32 along the inputs with one fp16 scale per output and group, the
grid of GGUF's Q8_0 (Q4_0 and Q5_0 are subsets of it), so those files transfer exactly.

Letters: N outputs, K inputs, P = ceil(N / 16) panels, G = ceil(K / 32) groups.

``data`` uint8 [P, G, 512]: the 512 bytes are 8 lines of 64 bytes; line s holds, for each of the
panel's 16 outputs, the 4 inputs 4s .. 4s + 3 of the group::

    data[p, g, s * 64 + n * 4 + j] = 128 + q[16 p + n, 32 g + 4 s + j]

``scales`` float16 [P, G, 16]: ``scales[p, g, n]`` belongs to output 16 p + n. Padding outputs have
scale 0, padding inputs have q = 0. The layout is the same on every instruction set, so a packed
file is portable; both arrays may be memory-mapped (64-byte alignment is fastest, none is needed).

Why +128: the AVX-512 and AVX2 multiplies take one unsigned operand. Its surplus is 128 times the
sum of the group's activations, known when those are quantised, so it costs no weight traffic.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from omni_kernels.tensors import require

GROUP = 32
"""Inputs that share one scale."""
PANEL = 16
"""Outputs interleaved in one 64-byte line."""
STEP = 4
"""Inputs of one output in one line."""
ZERO = 128
"""What a stored byte exceeds its weight by."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeight:
    """An 8-bit weight [out_features, in_features]; see the module for the layout.

    Raises:
        ValueError: the tensors have another shape, type, device or are not contiguous.
    """

    data: torch.Tensor
    scales: torch.Tensor
    out_features: int
    in_features: int
    data_pointer: int = field(init=False, repr=False)
    scales_pointer: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        data, scales = packed_shapes(self.out_features, self.in_features)
        require("packed data", self.data, data, torch.uint8)
        require("packed scales", self.scales, scales, torch.float16)
        # Read once: a data_ptr() call per use would show at a hundred linears per token.
        object.__setattr__(self, "data_pointer", self.data.data_ptr())
        object.__setattr__(self, "scales_pointer", self.scales.data_ptr())

    @property
    def nbytes(self) -> int:
        """Bytes of memory traffic of one pass over the weight."""
        return self.data.nbytes + self.scales.nbytes


def packed_shapes(out_features: int, in_features: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of ``data`` and ``scales`` for a weight [out_features, in_features]."""
    panels, groups = -(-out_features // PANEL), -(-in_features // GROUP)
    return (panels, groups, GROUP * PANEL), (panels, groups, PANEL)


def pack(weight: torch.Tensor) -> PackedWeight:
    """Quantise ``weight`` [N, K] (float) symmetrically to int8 in groups of 32.

    The scale is max|w| / 127 rounded *up* to fp16, so no weight is clipped.

    Raises:
        ValueError: not a matrix, or a value is not finite or beyond fp16 x 127.
    """
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(f"expected a float matrix [N, K], got {weight.dtype} {list(weight.shape)}")
    n, k = weight.shape
    groups = -(-k // GROUP)
    padded = torch.nn.functional.pad(weight.float(), (0, groups * GROUP - k))
    grouped = padded.view(n, groups, GROUP)
    exact = grouped.abs().amax(dim=2) / 127.0  # [N, G]
    scales = exact.half()
    below = scales.float() < exact
    scales[below] = torch.nextafter(scales[below], torch.tensor(torch.inf, dtype=torch.float16))
    if not bool(scales.isfinite().all()):
        raise ValueError("the weight has values that are not finite or beyond 8.3e6")
    divisor = torch.where(scales == 0, 1.0, scales.float())
    q = (grouped / divisor.unsqueeze(2)).round().to(torch.int8).view(n, groups * GROUP)
    return _interleave(q, scales, k)


def pack_quantized(q: torch.Tensor, scales: torch.Tensor) -> PackedWeight:
    """Pack weights that are already quantised: ``q`` int8 [N, K], ``scales`` float [N, K / 32].

    Scales are stored as fp16: exact for GGUF's formats, rounded otherwise.

    Raises:
        ValueError: shapes or types do not fit, K is no multiple of 32, a scale overflows fp16.
    """
    if q.dim() != 2 or q.dtype != torch.int8 or q.shape[1] % GROUP:
        raise ValueError(f"expected int8 [N, multiple of 32], got {q.dtype} {list(q.shape)}")
    if tuple(scales.shape) != (q.shape[0], q.shape[1] // GROUP) or not scales.is_floating_point():
        raise ValueError(
            f"expected float scales [{q.shape[0]}, {q.shape[1] // GROUP}], "
            f"got {scales.dtype} {list(scales.shape)}"
        )
    half = scales.half()
    if not bool(half.isfinite().all()):
        raise ValueError("a scale is not finite in fp16")
    return _interleave(q, half, q.shape[1])


def unpack(packed: PackedWeight) -> torch.Tensor:
    """Return the weight that ``packed`` stands for, float32 [N, K]."""
    q, scales = split(packed)
    weight = q.float().view(*scales.shape, GROUP) * scales.float().unsqueeze(2)
    return weight.view(q.shape)[:, : packed.in_features].contiguous()


def split(packed: PackedWeight) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``q`` int8 [N, G * 32] and ``scales`` float16 [N, G] in plain order."""
    panels, groups, _ = packed.data.shape
    lines = packed.data.view(panels, groups, GROUP // STEP, PANEL, STEP)
    plain = lines.permute(0, 3, 1, 2, 4).reshape(panels * PANEL, groups * GROUP)
    q = (plain.to(torch.int16) - ZERO).to(torch.int8)
    scales = packed.scales.permute(0, 2, 1).reshape(panels * PANEL, groups)
    return q[: packed.out_features], scales[: packed.out_features]


def _interleave(q: torch.Tensor, scales: torch.Tensor, in_features: int) -> PackedWeight:
    """Lay out ``q`` int8 [N, G * 32] and ``scales`` float16 [N, G]."""
    n, k = q.shape
    panels, groups = -(-n // PANEL), k // GROUP
    rows = panels * PANEL - n
    stored = torch.nn.functional.pad((q.to(torch.int16) + ZERO).to(torch.uint8), (0, 0, 0, rows))
    stored[n:] = ZERO
    data = (
        stored.view(panels, PANEL, groups, GROUP // STEP, STEP)
        .permute(0, 2, 3, 1, 4)
        .reshape(panels, groups, GROUP * PANEL)
    )
    padded = torch.nn.functional.pad(scales, (0, 0, 0, rows))
    laid = padded.view(panels, PANEL, groups).permute(0, 2, 1)
    return PackedWeight(data.contiguous(), laid.contiguous(), n, in_features)
