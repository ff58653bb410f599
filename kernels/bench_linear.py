"""The linear's part of ``bench.py``: every form of weights and torch's fp32, taking turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from bench_clock import Clock, Reader, quantile
from omni_kernels.linear import Bits, PackedWeight, linear, pack, pack_quantized
from omni_kernels.linear.layout import split
from torch.nn import functional

SHAPES = {
    "qwen qkv/out": (896, 896),
    "qwen gate_up": (9728, 896),
    "qwen down": (896, 4864),
    "qwen head": (151936, 896),
    "qwen3.5 gate_up": (7168, 1024),
    "whisper attention": (512, 512),
    "whisper fc1": (2048, 512),
    "whisper fc2": (512, 2048),
}
"""Name -> (outputs, inputs)."""
ROWS = (1, 8, 64, 256)
HEAD_ROWS = (1, 8)  # logits are wanted for a row or few, never for a whole prompt
FORMS: tuple[tuple[Bits, bool], ...] = ((8, False), (5, False), (4, False), (5, True), (4, True))
"""Bits, with offsets or without."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearRow:
    """One line of the result."""

    kernel: str
    shape: str
    bits: int
    offsets: bool
    us_p50: float
    us_p95: float
    gb_per_s: float
    share_of_read: float
    times_8_bits: float
    times_torch_fp32: float


def bench_linear(clock: Clock, reader: Reader, cold_bytes: int, only: str) -> list[LinearRow]:
    """Measure every shape whose name contains ``only``."""
    rows = []
    for name, (n, k) in SHAPES.items():
        if only not in name:
            continue
        weight = torch.randn(n, k) * 0.05
        weights = [weight.clone() for _ in range(2 + cold_bytes // weight.nbytes)]
        packed = [cold_copies(pack_form(weight, *form), cold_bytes) for form in FORMS]
        for m in HEAD_ROWS if n > 100_000 else ROWS:
            x = torch.randn(m, k)
            reads, *ours, torches = clock.race(
                reader,
                *(in_turn(linear, x, copies) for copies in packed),
                in_turn(functional.linear, x, weights),
            )
            for (bits, offsets), copies, times in zip(FORMS, packed, ours, strict=True):
                nbytes = copies[0].nbytes + 4 * m * (n + k)
                row = LinearRow(
                    kernel="linear",
                    shape=f"{name} {k}->{n} M={m}",
                    bits=bits,
                    offsets=offsets,
                    us_p50=round(statistics.median(times) * 1e6, 1),
                    us_p95=round(quantile(times, 0.95) * 1e6, 1),
                    gb_per_s=round(nbytes / statistics.median(times) / 1e9, 1),
                    share_of_read=round(nbytes / reader.memory.nbytes * faster(times, reads), 3),
                    times_8_bits=round(faster(times, ours[0]), 2),
                    times_torch_fp32=round(faster(times, torches), 2),
                )
                rows.append(row)
                form = f"{bits} bits{'+' if offsets else ''}"
                print(
                    f"linear     {row.shape:34} {form:7} {row.us_p50:10.1f} us  "
                    f"p95 {row.us_p95:10.1f}  {row.gb_per_s:6.1f} GB/s  "
                    f"{row.share_of_read:6.1%} of read  {row.times_8_bits:5.2f}x 8 bits  "
                    f"{row.times_torch_fp32:6.2f}x torch fp32",
                    flush=True,
                )
    return rows


def faster(own: list[float], other: list[float]) -> float:
    """Return the median over the rounds of how many times the other's time ours goes into."""
    return statistics.median(theirs / mine for mine, theirs in zip(own, other, strict=True))


def pack_form(weight: torch.Tensor, bits: Bits, offsets: bool) -> PackedWeight:
    """Return ``weight`` [N, K] rounded to ``bits``; the offsets are those that change nothing."""
    packed = pack(weight, bits)
    if not offsets:
        return packed
    q, scales = split(packed)
    zero = 1 << (bits - 1)
    return pack_quantized(q + zero, scales, bits, offsets=-zero * scales)


def cold_copies(weight: PackedWeight, cold_bytes: int) -> list[PackedWeight]:
    """Return copies of ``weight`` that together do not fit in a cache."""
    return [
        PackedWeight(
            weight.data.clone(), weight.scales.clone(), weight.out_features, weight.in_features
        )
        for _ in range(2 + cold_bytes // weight.nbytes)
    ]


def in_turn(
    function: Callable[..., torch.Tensor], x: torch.Tensor, weights: list[Any]
) -> Callable[[int], torch.Tensor]:
    """Return a call of ``function(x, weight)`` that takes the weights in turn."""
    return lambda i: function(x, weights[i % len(weights)])
