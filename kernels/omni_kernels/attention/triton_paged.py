# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Causal attention over paged keys and values on a card, with grouped heads and an output gate.

Called by the backbone's full-attention layers where there is a card. One launch, whatever mix of
sequences: the context of one with up to CUT_TOKENS new tokens (decoding, words while the user is
talking) is cut into segments of keys at fixed places, which run side by side and are merged in
ascending order by the last to finish; longer prompts fill the card by their tiles of queries. So
where a context is cut never depends on the neighbours, and with the same tile neither does a bit.

Letters: N rows, B sequences, P pages, T tokens per page, Hq query heads, Hkv key heads, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from omni_kernels.triton_core import Launch, Precision, dot_precision, f32, is_last, put, sigmoid

CUT_TOKENS = 128
"""New tokens of a sequence up to which its context is cut into segments."""
LOG2_E = 1.4426950408889634

__all__ = ["PagedRows", "paged_attention"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedRows:
    """Whose the rows of a batch are and where their keys lie; B sequences, all int32.

    The bounds are the host's: they shape the launch and may be larger than what the batch holds
    (a captured graph), never smaller.
    """

    cu_seqlens: torch.Tensor  # [B + 1] offsets into N
    num_computed: torch.Tensor  # [B] tokens before this step
    page_table: torch.Tensor  # [B, pages]; token t is in page [b, t // T] at t % T
    counters: torch.Tensor  # [>= num_counters()], zero before and after each launch
    max_new_tokens: int  # of any sequence
    max_tokens: int  # computed and new, of any sequence


@triton.jit
def attend(
    q, row_position, first, last, keys, values, pages, page_stride, token_stride, scale,
    T: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend the rows of one tile to keys ``first``..``last``; return maximum, sum and values.

    The maximum is of the scores in bits (log2), -inf where a row sees none of the keys.
    """
    in_d = tl.arange(0, D)
    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, D], tl.float32)
    for start in range(first, last, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        exists = key < last
        page = tl.load(pages + key // T, mask=exists, other=0).to(tl.int64)
        at = (page * page_stride + (key % T) * token_stride)[:, None] + in_d[None, :]
        k = tl.load(keys + at, mask=exists[:, None], other=0.0)  # [BLOCK_N, D]
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        scores = tl.where(key[None, :] <= row_position[:, None], scores, -float("inf"))
        v = tl.load(values + at, mask=exists[:, None], other=0.0)
        higher = tl.maximum(top, tl.max(scores, axis=1))
        finite = tl.where(higher == -float("inf"), 0.0, higher)  # no inf - inf
        shrink = tl.exp2(top - finite)
        p = tl.exp2(scores - finite[:, None])
        total = total * shrink + tl.sum(p, axis=1)
        acc = acc * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
        top = higher
    return top, total, acc


@triton.jit
def attention_kernel(
    q,
    q_row_stride,
    q_head_stride,
    gate,
    gate_row_stride,
    gate_head_stride,
    keys,
    values,
    page_stride,
    token_stride,
    page_table,
    page_table_stride,
    cu_seqlens,
    num_computed,
    counters,
    parts,
    part_sums,
    out,
    scale,
    num_segments,
    cut_tiles,
    GROUP: tl.constexpr,
    T: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SEGMENT: tl.constexpr,
    CUT: tl.constexpr,
    HAS_GATE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    TOKENS: tl.constexpr = BLOCK_M // GROUP
    b = tl.program_id(2)
    kv_head = tl.program_id(1)
    num_kv_heads = tl.num_programs(1)
    first_row = tl.load(cu_seqlens + b)
    num_new = tl.load(cu_seqlens + b + 1) - first_row
    computed = tl.load(num_computed + b)
    is_cut = num_new <= CUT
    tile = tl.program_id(0) // num_segments if is_cut else tl.program_id(0)
    segment = tl.program_id(0) % num_segments if is_cut else 0
    first = segment * SEGMENT
    last = computed + tl.minimum((tile + 1) * TOKENS, num_new)
    if (tile * TOKENS >= num_new) | (first >= last):
        return
    own_last = tl.minimum(first + SEGMENT, last) if is_cut else last

    index = tl.arange(0, BLOCK_M)  # token of the tile, then query head of this key head
    token = tile * TOKENS + index // GROUP
    head = kv_head * GROUP + index % GROUP
    exists = (index < TOKENS * GROUP) & (token < num_new)
    row = (first_row + token).to(tl.int64)
    in_d = tl.arange(0, D)
    q_at = (row * q_row_stride + head * q_head_stride)[:, None] + in_d[None, :]
    q_tile = tl.load(q + q_at, mask=exists[:, None], other=0.0).to(keys.dtype.element_ty)
    shift = kv_head * D
    top, total, acc = attend(
        q_tile, computed + token, first, own_last, keys + shift, values + shift,
        page_table + b * page_table_stride, page_stride, token_stride, scale,
        T, D, BLOCK_M, BLOCK_N, PRECISION,
    )  # fmt: skip

    is_closing = True
    if is_cut & (last > SEGMENT):
        # Rows [b, kv head, tile, segment, BLOCK_M] of parts; maximum and sum side by side.
        own_tile = (b * num_kv_heads + kv_head) * cut_tiles + tile
        group = own_tile.to(tl.int64) * num_segments
        at = (group + segment) * BLOCK_M + index
        tl.store(parts + at[:, None] * D + in_d[None, :], acc, mask=exists[:, None])
        tl.store(part_sums + at * 2, top, mask=exists)
        tl.store(part_sums + at * 2 + 1, total, mask=exists)
        segments = tl.cdiv(last, SEGMENT)
        is_closing = is_last(counters + own_tile, segments)
        if is_closing:
            top = tl.full([BLOCK_M], -float("inf"), tl.float32)
            total = tl.zeros([BLOCK_M], tl.float32)
            acc = tl.zeros([BLOCK_M, D], tl.float32)
            for other in tl.range(0, segments, loop_unroll_factor=2):
                at = (group + other) * BLOCK_M + index
                its_top = tl.load(
                    part_sums + at * 2, mask=exists, other=-float("inf"), cache_modifier=".cg"
                )
                its_total = tl.load(
                    part_sums + at * 2 + 1, mask=exists, other=0.0, cache_modifier=".cg"
                )
                part = tl.load(
                    parts + at[:, None] * D + in_d[None, :],
                    mask=exists[:, None],
                    other=0.0,
                    cache_modifier=".cg",
                )
                higher = tl.maximum(top, its_top)
                finite = tl.where(higher == -float("inf"), 0.0, higher)
                keep, add = tl.exp2(top - finite), tl.exp2(its_top - finite)
                total = total * keep + its_total * add
                acc = acc * keep[:, None] + part * add[:, None]
                top = higher
    if is_closing:
        result = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        if HAS_GATE:
            gate_at = (row * gate_row_stride + head * gate_head_stride)[:, None] + in_d[None, :]
            result *= sigmoid(f32(gate + gate_at, exists[:, None]))
        out_at = (row * (num_kv_heads * GROUP) + head)[:, None] * D + in_d[None, :]
        put(out + out_at, result, mask=exists[:, None])


def paged_attention(
    q: torch.Tensor,
    kv: torch.Tensor,
    rows: PagedRows,
    *,
    gate: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Attend causally: row n of sequence b sees its token ``num_computed[b] + n - cu_seqlens[b]``
    and all before it.

    Args:
        q: fp32, fp16 or bf16 [N, Hq, D], the last dimension dense; query head h reads key head
            h // (Hq / Hkv). D is a power of 2 from 16.
        kv: [2, P, T, Hkv, D], contiguous, keys and values of the new tokens already written.
        rows: whose the rows are; its counters end as they began.
        gate: [N, Hq, D] as ``q``: the result is multiplied by its sigmoid; None: it is not.
        scale: factor of the scores; None: D ** -0.5.

    Returns:
        [N, Hq, D] in the type of ``q``. Nothing synchronises; pages are not checked.

    Raises:
        ValueError: a shape or layout does not fit.
    """
    _, heads, dim = q.shape
    kv_heads = kv.shape[3]
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads are no multiple of {kv_heads} key heads")
    if kv.shape[4] != dim or dim < 16 or dim & (dim - 1) or not kv.is_contiguous():
        raise ValueError(f"kv: expected [2, P, T, Hkv, {dim}], a power of 2, got {list(kv.shape)}")
    if q.stride(2) != 1 or (gate is not None and (gate.shape != q.shape or gate.stride(2) != 1)):
        raise ValueError("q and gate: expected [N, Hq, D] with a dense last dimension")
    needed = num_counters(len(rows.num_computed), heads, kv_heads)
    if rows.counters.numel() < needed:
        raise ValueError(f"{rows.counters.numel()} counters are too few, expected {needed}")
    out: torch.Tensor = _paged_attention(
        q,
        gate,
        kv,
        rows.cu_seqlens,
        rows.num_computed,
        rows.page_table,
        rows.counters,
        rows.max_new_tokens,
        rows.max_tokens,
        dim**-0.5 if scale is None else scale,
    )
    return out


@dataclass(frozen=True, slots=True)
class Tile:
    """Sizes of one program: rows of queries, keys at a time, warps, stages of loads."""

    rows: int
    keys: int
    segment: int  # keys that one program of a cut context reads
    num_warps: int
    num_stages: int


def tile_of(dim: int, group: int, max_new_tokens: int) -> Tile:
    """Choose the tile: one for decoding, one for prefill."""
    keys = 32 if dim > 128 else 64
    small = max(16, 1 << (group - 1).bit_length())
    if max_new_tokens * group <= small:
        return Tile(small, keys, 256, 4, 2)
    return Tile(max(64, small), keys, 1024, 8, 2)


def num_counters(sequences: int, heads: int, kv_heads: int) -> int:
    """Counters that any batch of ``sequences`` needs."""
    group = heads // kv_heads
    return sequences * kv_heads * -(-CUT_TOKENS // (max(64, group) // group))


def plan(
    q: torch.Tensor,
    gate: torch.Tensor | None,
    kv: torch.Tensor,
    rows: PagedRows,
    scale: float,
    out: torch.Tensor,
    precision: Precision,
) -> Launch:
    """Plan the launch of :func:`paged_attention` into ``out``."""
    _, heads, dim = q.shape
    page_tokens, kv_heads = kv.shape[2], kv.shape[3]
    sequences, group = len(rows.num_computed), heads // kv_heads
    tile = tile_of(dim, group, rows.max_new_tokens)
    num_segments = triton.cdiv(rows.max_tokens, tile.segment)
    num_tiles = triton.cdiv(rows.max_new_tokens, tile.rows // group)
    cut_tiles = min(num_tiles, triton.cdiv(CUT_TOKENS, tile.rows // group))
    parts = sequences * kv_heads * cut_tiles * num_segments * tile.rows
    keys, values = kv.unbind()
    return Launch(
        attention_kernel,
        (max(num_segments * cut_tiles, num_tiles), kv_heads, sequences),
        {
            "q": q,
            "q_row_stride": q.stride(0),
            "q_head_stride": q.stride(1),
            "gate": q if gate is None else gate,
            "gate_row_stride": 0 if gate is None else gate.stride(0),
            "gate_head_stride": 0 if gate is None else gate.stride(1),
            "keys": keys,
            "values": values,
            "page_stride": keys.stride(0),
            "token_stride": keys.stride(1),
            "page_table": rows.page_table,
            "page_table_stride": rows.page_table.stride(0),
            "cu_seqlens": rows.cu_seqlens,
            "num_computed": rows.num_computed,
            "counters": rows.counters,
            "parts": out.new_empty(parts, dim, dtype=torch.float32),
            "part_sums": out.new_empty(parts, 2, dtype=torch.float32),
            "out": out,
            "scale": scale * LOG2_E,
            "num_segments": num_segments,
            "cut_tiles": cut_tiles,
            "GROUP": group,
            "T": page_tokens,
            "D": dim,
            "BLOCK_M": tile.rows,
            "BLOCK_N": tile.keys,
            "SEGMENT": tile.segment,
            "CUT": CUT_TOKENS,
            "HAS_GATE": gate is not None,
            "PRECISION": precision,
        },
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


@torch.library.custom_op("omni::paged_attention", mutates_args=("counters",))
def _paged_attention(
    q: torch.Tensor,
    gate: torch.Tensor | None,
    kv: torch.Tensor,
    cu_seqlens: torch.Tensor,
    num_computed: torch.Tensor,
    page_table: torch.Tensor,
    counters: torch.Tensor,
    max_new_tokens: int,
    max_tokens: int,
    scale: float,
) -> torch.Tensor:
    rows = PagedRows(
        cu_seqlens=cu_seqlens,
        num_computed=num_computed,
        page_table=page_table,
        counters=counters,
        max_new_tokens=max_new_tokens,
        max_tokens=max_tokens,
    )
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    plan(q, gate, kv, rows, scale, out, dot_precision()).run()
    return out


@_paged_attention.register_fake
def _(q: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)
