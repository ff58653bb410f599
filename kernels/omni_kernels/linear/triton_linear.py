# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""The quantised linear on a card: 8- or 4-bit weights, exact activations, neighbours fused.

Called by the backbone where there is a card. Before the product comes an RMS norm (its scale is one
factor per row, so it is applied after the sum and ``x`` is read once) or the gated activation of a
feed-forward layer; after it a residual or a bias. Products of codes are exact; scales apply per
group of 32. Up to MAX_VECTOR_ROWS rows are read-bound dot products, more rows matrix products.

Letters: M rows, K inputs, N outputs, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import triton
import triton.language as tl

from omni_kernels.linear.triton_layout import CardWeight
from omni_kernels.triton_core import Argument, Launch, Precision, dot_precision, f32, put, silu

MAX_VECTOR_ROWS = 4
"""Rows up to which each row reads the weights for itself; all but the first find them in cache."""

Prologue = Literal["none", "norm", "gate"]

__all__ = ["linear"]


@triton.jit
def prepared(x, norm, at, K: tl.constexpr, PROLOGUE: tl.constexpr, inside):
    """Inputs at ``at`` of the row ``x``, and what their squares add to the row's mean square."""
    value = f32(x + at, inside)
    square = value * value
    if PROLOGUE == "norm":
        value *= f32(norm + at, inside)
    elif PROLOGUE == "gate":
        value = silu(value) * f32(x + K + at, inside)
    return value, square


@triton.jit
def vector_kernel(
    x,
    x_stride,
    norm,
    eps,
    codes,
    scales,
    addend,
    addend_stride,
    out,
    N,
    K: tl.constexpr,
    BITS: tl.constexpr,
    BN: tl.constexpr,
    BG: tl.constexpr,
    PROLOGUE: tl.constexpr,
    HAS_ADDEND: tl.constexpr,
):
    """One row times BN outputs; groups lie side by side in the registers."""
    G: tl.constexpr = K // 32
    WIDTH: tl.constexpr = 4 * BITS  # bytes of a group
    m = tl.program_id(1)
    x += m.to(tl.int64) * x_stride
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    row = tl.minimum(n, N - 1).to(tl.int64)
    byte = tl.arange(0, WIDTH)
    acc = tl.zeros([BN, BG], tl.float32)
    squares = tl.zeros([BG], tl.float32)
    for start in range(0, G, BG):
        group = start + tl.arange(0, BG)
        inside = (group < G)[:, None]
        code_at = row[:, None, None] * (G * WIDTH) + (group[:, None] * WIDTH + byte[None, :])[None]
        packed = tl.load(codes + code_at, mask=inside[None], other=0)  # [BN, BG, WIDTH]
        at = group[:, None] * 32 + byte[None, :]
        value, square = prepared(x, norm, at, K, PROLOGUE, inside)  # [BG, WIDTH]
        squares += tl.sum(square, axis=1)
        if BITS == 8:
            dots = tl.sum(packed.to(tl.float32) * value[None], axis=2)  # [BN, BG]
        else:
            high, square = prepared(x, norm, at + 16, K, PROLOGUE, inside)
            squares += tl.sum(square, axis=1)
            low_code = (packed & 15).to(tl.float32) - 8.0
            high_code = (packed >> 4).to(tl.float32) - 8.0
            dots = tl.sum(low_code * value[None] + high_code * high[None], axis=2)
        scale = f32(scales + row[:, None] * G + group[None, :], (group < G)[None, :])
        acc += dots * scale
    result = tl.sum(acc, axis=1)
    if PROLOGUE == "norm":
        result *= tl.rsqrt(tl.sum(squares, axis=0) / K + eps)
    if HAS_ADDEND:
        result += f32(addend + m.to(tl.int64) * addend_stride + n, n < N)
    put(out + m.to(tl.int64) * N + n, result, mask=n < N)


@triton.jit
def matrix_kernel(
    x,
    x_stride,
    norm,
    eps,
    codes,
    scales,
    addend,
    addend_stride,
    out,
    M,
    N,
    K: tl.constexpr,
    BITS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PROLOGUE: tl.constexpr,
    HAS_ADDEND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """BM rows times BN outputs, one group of 32 inputs at a time."""
    G: tl.constexpr = K // 32
    WIDTH: tl.constexpr = 4 * BITS
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    row = tl.minimum(n, N - 1).to(tl.int64)
    byte = tl.arange(0, WIDTH)
    inside = (m < M)[:, None]
    x_rows = m.to(tl.int64)[:, None] * x_stride
    exact = x.dtype.element_ty  # 8-bit integers are exact in every type of activations
    acc = tl.zeros([BM, BN], tl.float32)
    squares = tl.zeros([BM], tl.float32)
    for group in range(G):
        packed = tl.load(codes + row[None, :] * (G * WIDTH) + group * WIDTH + byte[:, None])
        at = group * 32 + byte[None, :]
        value, square = prepared(x + x_rows, norm, at, K, PROLOGUE, inside)  # [BM, WIDTH]
        squares += tl.sum(square, axis=1)
        if BITS == 8:
            dots = tl.dot(value.to(exact), packed.to(exact), input_precision=PRECISION)
        else:
            high, square = prepared(x + x_rows, norm, at + 16, K, PROLOGUE, inside)
            squares += tl.sum(square, axis=1)
            low_code = ((packed & 15).to(tl.float32) - 8.0).to(exact)
            high_code = ((packed >> 4).to(tl.float32) - 8.0).to(exact)
            dots = tl.dot(value.to(exact), low_code, input_precision=PRECISION)
            dots = tl.dot(high.to(exact), high_code, dots, input_precision=PRECISION)
        acc += dots * f32(scales + row * G + group)[None, :]
    if PROLOGUE == "norm":
        acc *= tl.rsqrt(squares / K + eps)[:, None]
    mask = inside & (n < N)[None, :]
    if HAS_ADDEND:
        acc += f32(addend + m.to(tl.int64)[:, None] * addend_stride + n[None, :], mask)
    put(out + m.to(tl.int64)[:, None] * N + n[None, :], acc, mask=mask)


def linear(
    x: torch.Tensor,
    weight: CardWeight,
    *,
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
    is_gated: bool = False,
    addend: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute f(``x``) @ weight^T + ``addend``.

    Args:
        x: fp32, fp16 or bf16 [M, K] (gated: [M, 2 K], gate first), rows dense.
        weight: on the device of ``x``.
        norm: fp32 [K]: f is ``x`` / sqrt(mean(x^2) + eps) * norm; None: no norm.
        eps: added to the mean square.
        is_gated: f is silu(first half) * second half. Not with a norm.
        addend: a residual [M, N] or a bias [N], any of the float types; None: nothing is added.

    Returns:
        [M, N] in the type of ``x``.

    Raises:
        ValueError: a shape or layout does not fit.
    """
    width = weight.in_features * (2 if is_gated else 1)
    if x.dim() != 2 or x.shape[1] != width or x.stride(1) != 1:
        raise ValueError(f"x: expected dense rows of {width}, got {list(x.shape)}")
    if norm is not None and (is_gated or norm.shape != (weight.in_features,)):
        raise ValueError(f"norm: expected [{weight.in_features}] and no gate")
    if addend is not None and (
        addend.shape not in ((len(x), weight.out_features), (weight.out_features,))
        or addend.stride(-1) != 1
    ):
        raise ValueError(
            f"addend: expected [{len(x)}, {weight.out_features}] or [{weight.out_features}], "
            f"got {list(addend.shape)}"
        )
    out: torch.Tensor = _card_linear(x, weight.codes, weight.scales, norm, eps, is_gated, addend)
    return out


@dataclass(frozen=True, slots=True)
class Sizes:
    """Outputs, groups (vector) or rows (matrix) of one program, warps and stages of loads."""

    outputs: int
    depth: int
    num_warps: int
    num_stages: int


def sizes_of(rows: int, n: int, k: int) -> Sizes:
    """Choose the sizes: enough programs to fill a card before enough work for each."""
    if rows <= MAX_VECTOR_ROWS:
        groups = min(32, 1 << (k // 32 - 1).bit_length())
        return Sizes(4 if n <= 16384 else 8, groups, 4, 1)
    if rows <= 16:
        return Sizes(16 if n <= 8192 else 32, 16, 2, 4)
    return Sizes(64, 32 if rows <= 32 else 64, 8, 3)


def plan(
    x: torch.Tensor,
    weight: CardWeight,
    norm: torch.Tensor | None,
    eps: float,
    is_gated: bool,
    addend: torch.Tensor | None,
    out: torch.Tensor,
    precision: Precision,
) -> Launch:
    """Plan the launch of :func:`linear` into ``out``."""
    rows, n, k = len(x), weight.out_features, weight.in_features
    sizes = sizes_of(rows, n, k)
    prologue: Prologue = "norm" if norm is not None else "gate" if is_gated else "none"
    arguments: dict[str, Argument] = {
        "x": x,
        "x_stride": x.stride(0),
        "norm": weight.scales if norm is None else norm,
        "eps": eps,
        "codes": weight.codes,
        "scales": weight.scales,
        "addend": x if addend is None else addend,
        "addend_stride": addend.stride(0) if addend is not None and addend.dim() == 2 else 0,
        "out": out,
        "N": n,
        "K": k,
        "BITS": weight.bits,
        "BN": sizes.outputs,
        "PROLOGUE": prologue,
        "HAS_ADDEND": addend is not None,
    }
    programs = triton.cdiv(n, sizes.outputs)
    if rows <= MAX_VECTOR_ROWS:
        arguments |= {"BG": sizes.depth}
        grid, kernel = (programs, rows), vector_kernel
    else:
        arguments |= {"M": rows, "BM": sizes.depth, "PRECISION": precision}
        grid, kernel = (programs, triton.cdiv(rows, sizes.depth)), matrix_kernel
    return Launch(kernel, grid, arguments, sizes.num_warps, sizes.num_stages)


@torch.library.custom_op("omni::card_linear", mutates_args=())
def _card_linear(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    norm: torch.Tensor | None,
    eps: float,
    is_gated: bool,
    addend: torch.Tensor | None,
) -> torch.Tensor:
    weight = CardWeight(codes, scales, 8 if codes.dtype == torch.int8 else 4)
    out = x.new_empty(len(x), weight.out_features)
    plan(x, weight, norm, eps, is_gated, addend, out, dot_precision()).run()
    return out


@_card_linear.register_fake
def _(x: torch.Tensor, codes: torch.Tensor, *_: object) -> torch.Tensor:
    return x.new_empty(x.shape[0], codes.shape[0])
