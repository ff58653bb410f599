# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""The short causal convolution of Gated DeltaNet by itself, ragged, on a card.

The first of the launches of a long prefill, where it also brings queries and keys to unit length;
decoding and short prefills have it inside their one.
The program of a sequence's first block of tokens is the only one that reads the window, so it is
also the one that replaces it. Letters as in ``op.py``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from omni_kernels.gated_delta.triton_state import DeltaRows
from omni_kernels.triton_core import Launch, f32, put, silu

BLOCK_TOKENS = 32
BLOCK_CHANNELS = 128

__all__ = ["short_conv"]


@triton.jit
def conv_kernel(
    rows,
    row_stride,
    taps,
    conv,
    conv_slot_stride,
    slots,
    cu_seqlens,
    out,
    C: tl.constexpr,
    BT: tl.constexpr,
    BC: tl.constexpr,
    UNIT_HEADS: tl.constexpr,
):
    b = tl.program_id(2)
    slot = tl.load(slots + b).to(tl.int64)
    first = tl.load(cu_seqlens + b)
    num_tokens = tl.load(cu_seqlens + b + 1) - first
    start = tl.program_id(0) * BT
    if start >= num_tokens:
        return
    rows += first.to(tl.int64) * row_stride
    out += first.to(tl.int64) * C
    conv += slot * conv_slot_stride
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    in_c = channel < C
    token = start + tl.arange(0, BT)
    is_held = slot > 0
    inside = (token < num_tokens)[:, None] & in_c[None, :]

    acc = tl.zeros([BT, BC], tl.float32)
    for tap in tl.static_range(4):
        source = token - 3 + tap  # below 0: a row of the window, the newest is row 2
        in_rows = inside & (source >= 0)[:, None]
        in_window = inside & (source < 0)[:, None] & is_held
        row_at = source.to(tl.int64)[:, None] * row_stride + channel[None, :]
        x = f32(rows + row_at, in_rows)
        x += f32(conv + (source + 3)[:, None] * C + channel[None, :], in_window)
        acc += x * f32(taps + tap * C + channel, in_c)[None, :]
    acc = silu(acc)
    if UNIT_HEADS > 0:  # BC is a head's width: first the queries' heads, then as many of the keys
        if tl.program_id(1) < 2 * UNIT_HEADS:
            acc *= tl.rsqrt(tl.sum(acc * acc, axis=1) + 1e-6)[:, None]
        if tl.program_id(1) < UNIT_HEADS:
            acc *= BC**-0.5
    put(out + token.to(tl.int64)[:, None] * C + channel[None, :], acc, mask=inside)

    if (start == 0) & is_held:
        n = num_tokens
        row = rows + n.to(tl.int64) * row_stride + channel
        newest = f32(row - row_stride, in_c)
        middle = tl.where(
            n >= 2,
            f32(row - 2 * row_stride, in_c & (n >= 2)),
            f32(conv + (n + 1) * C + channel, in_c & (n < 2)),
        )
        oldest = tl.where(
            n >= 3,
            f32(row - 3 * row_stride, in_c & (n >= 3)),
            f32(conv + n * C + channel, in_c & (n < 3)),
        )
        tl.debug_barrier()  # every thread has read the window
        put(conv + channel, oldest, mask=in_c)
        put(conv + C + channel, middle, mask=in_c)
        put(conv + 2 * C + channel, newest, mask=in_c)


def short_conv(
    x: torch.Tensor,
    taps: torch.Tensor,
    conv: torch.Tensor,
    rows: DeltaRows,
    *,
    max_new_tokens: int,
) -> torch.Tensor:
    """Convolve each sequence's rows with their window before them and apply SiLU.

    Args:
        x: fp32, fp16 or bf16 [N, at least C], rows dense, qkv first.
        taps: fp32 [W, C], the newest token's tap last; W = 4.
        conv: [slots, W - 1, C] raw qkv of the last tokens, oldest first. Advanced in place.
        rows: whose the rows are.
        max_new_tokens: of any sequence.

    Returns:
        fp32 [N, C].

    Raises:
        ValueError: a shape does not fit.
    """
    taps_shape, channels = (4, conv.shape[2]), conv.shape[2]
    if taps.shape != taps_shape or conv.shape[1] != 3 or not conv[0].is_contiguous():
        raise ValueError(f"taps {list(taps.shape)} and conv {list(conv.shape)} do not fit")
    if x.dim() != 2 or x.shape[1] < channels or x.stride(1) != 1:
        raise ValueError(f"x: expected dense rows of at least {channels}, got {list(x.shape)}")
    out: torch.Tensor = _short_conv(x, taps, conv, rows.slots, rows.cu_seqlens, max_new_tokens)
    return out


def plan(
    x: torch.Tensor,
    taps: torch.Tensor,
    conv: torch.Tensor,
    slots: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_new_tokens: int,
    out: torch.Tensor,
    *,
    unit_heads: int = 0,
    width: int = BLOCK_CHANNELS,
) -> Launch:
    """Plan the launch of :func:`short_conv` into ``out`` fp32 [N, C].

    With ``unit_heads`` H, of ``width`` channels each: the first H heads come out with length
    width ** -0.5, the next H with length 1, as the delta rule takes queries and keys.
    """
    channels = conv.shape[2]
    return Launch(
        conv_kernel,
        (
            triton.cdiv(max_new_tokens, BLOCK_TOKENS),
            triton.cdiv(channels, width),
            len(slots),
        ),
        {
            "rows": x,
            "row_stride": x.stride(0),
            "taps": taps,
            "conv": conv,
            "conv_slot_stride": conv.stride(0),
            "slots": slots,
            "cu_seqlens": cu_seqlens,
            "out": out,
            "C": channels,
            "BT": BLOCK_TOKENS,
            "BC": width,
            "UNIT_HEADS": unit_heads,
        },
        num_warps=4,
        contract=False,
    )


@torch.library.custom_op("omni::short_conv", mutates_args=("conv",))
def _short_conv(
    x: torch.Tensor,
    taps: torch.Tensor,
    conv: torch.Tensor,
    slots: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_new_tokens: int,
) -> torch.Tensor:
    out = x.new_empty(len(x), conv.shape[2], dtype=torch.float32)
    plan(x, taps, conv, slots, cu_seqlens, max_new_tokens, out).run()
    return out


@_short_conv.register_fake
def _(x: torch.Tensor, taps: torch.Tensor, *_: object) -> torch.Tensor:
    return x.new_empty(x.shape[0], taps.shape[1], dtype=torch.float32)
