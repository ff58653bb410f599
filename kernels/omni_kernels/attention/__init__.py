"""Causal attention over paged keys and values, ragged over sequences, with grouped heads.

Called by the backbone's full-attention layers. A row's result is bit-identical alone, among other
sequences, in any cut of a prompt into chunks, and for any number of threads.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from omni_kernels import library
from omni_kernels.attention import reference
from omni_kernels.tensors import require

__all__ = ["Places", "paged_attention"]


@dataclass(frozen=True, slots=True)
class Places:
    """Where the tokens of a step lie, checked and in the kernel's form: once for all layers."""

    rows: int
    num_pages: int
    page_tokens: int
    cu_seqlens: array[int]
    num_computed: array[int]
    pages: array[int]  # ids of all sequences, end to end
    offsets: array[int]  # B + 1 offsets into pages

    @staticmethod
    def of(
        cu_seqlens: Sequence[int],
        num_computed: Sequence[int],
        page_table: Sequence[Sequence[int]],
        *,
        rows: int,
        num_pages: int,
        page_tokens: int,
    ) -> Places:
        """Take what :func:`paged_attention` takes for q [rows, ..] and kv [2, num_pages,
        page_tokens, ..].

        Raises:
            ValueError: an offset does not fit, or a page is missing or out of range.
        """
        pages, offsets = _flatten(
            rows, cu_seqlens, num_computed, page_table, num_pages, page_tokens
        )
        starts, computed = array("q", cu_seqlens), array("q", num_computed)
        return Places(rows, num_pages, page_tokens, starts, computed, pages, offsets)


def paged_attention(
    q: torch.Tensor,
    kv: torch.Tensor,
    cu_seqlens: Sequence[int],
    num_computed: Sequence[int],
    page_table: Sequence[Sequence[int]],
    *,
    scale: float | None = None,
    out: torch.Tensor | None = None,
    places: Places | None = None,
) -> torch.Tensor:
    """Attend causally: row n of sequence b, its token ``num_computed[b] + n - cu_seqlens[b]``,
    sees that token and all before it.

    Args:
        q: fp32 [N, Hq, D], each row dense, rows possibly apart (a view of qkv); query head h reads
            key head h // (Hq / Hkv).
        kv: fp32 [2, P, T, Hkv, D], contiguous (one layer of ``StateView.kv``), with the keys and
            values of the new tokens already written.
        cu_seqlens: B + 1 offsets into N, from 0 to N.
        num_computed: [B] tokens of each sequence before this step.
        page_table: [B] page ids; token t is in page ``t // T`` of the list at ``t % T``.
        scale: factor of the scores; None: D ** -0.5.
        out: fp32 [N, Hq, D], contiguous, overwritten; None: a new tensor.
        places: the three before in the kernel's form, for callers with many layers; None: made
            here.

    Returns:
        ``out``.

    Raises:
        ValueError: a shape, type or offset does not fit, or a page is missing or out of range.
    """
    rows, heads, dim = q.shape
    _, num_pages, page_tokens, kv_heads, _ = kv.shape
    if q.dtype != torch.float32 or q.stride()[1:] != (dim, 1) or not q.is_cpu:
        raise ValueError(f"q: expected float32 in CPU memory with dense rows, got {q.dtype}")
    require("kv", kv, (2, num_pages, page_tokens, kv_heads, dim))
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads are no multiple of {kv_heads} key heads")
    if places is None:
        places = Places.of(
            cu_seqlens,
            num_computed,
            page_table,
            rows=rows,
            num_pages=num_pages,
            page_tokens=page_tokens,
        )
    elif (places.rows, places.num_pages, places.page_tokens) != (rows, num_pages, page_tokens):
        raise ValueError(
            f"places are of {places.rows} rows and {places.num_pages} pages of "
            f"{places.page_tokens} tokens, not of {rows} and {num_pages} of {page_tokens}"
        )
    if out is None:
        out = torch.empty(rows, heads, dim)
    else:
        require("out", out, (rows, heads, dim))
    factor = dim**-0.5 if scale is None else scale
    kernels = library.cpu()
    if kernels is not None:
        keys = kv.data_ptr()
        status: int = kernels.omni_paged_attention(
            q.data_ptr(),
            q.stride(0),
            keys,
            keys + kv.stride(0) * kv.element_size(),
            out.data_ptr(),
            places.cu_seqlens.buffer_info()[0],
            places.num_computed.buffer_info()[0],
            places.pages.buffer_info()[0],
            places.offsets.buffer_info()[0],
            len(places.num_computed),
            page_tokens,
            heads,
            kv_heads,
            dim,
            factor,
        )
        if status == 0:
            return out
    # No library, or a head width that is no multiple of 4.
    return out.copy_(reference.paged_attention(q, kv, cu_seqlens, num_computed, page_table, factor))


def _flatten(
    rows: int,
    cu_seqlens: Sequence[int],
    num_computed: Sequence[int],
    page_table: Sequence[Sequence[int]],
    num_pages: int,
    page_tokens: int,
) -> tuple[array[int], array[int]]:
    """Return the page ids end to end and where each sequence's begin.

    Checked here because a wrong page would read another session's memory, or nobody's.
    """
    sequences = len(num_computed)
    if len(cu_seqlens) != sequences + 1 or len(page_table) != sequences:
        raise ValueError(
            f"{sequences} sequences, but {len(cu_seqlens)} offsets and {len(page_table)} page lists"
        )
    if cu_seqlens[0] != 0 or cu_seqlens[-1] != rows:
        raise ValueError(f"cu_seqlens must run from 0 to {rows}, got {tuple(cu_seqlens)}")
    pages, offsets = array("q"), array("q", [0])
    for b, ids in enumerate(page_table):
        length = cu_seqlens[b + 1] - cu_seqlens[b]
        if length < 0 or num_computed[b] < 0:
            raise ValueError(f"sequence {b}: {length} new and {num_computed[b]} computed tokens")
        total = num_computed[b] + length
        if len(ids) * page_tokens < total:
            raise ValueError(f"sequence {b}: {len(ids)} pages cannot hold {total} tokens")
        pages.extend(ids)
        offsets.append(len(pages))
    if len(pages):
        all_ids = np.frombuffer(pages, np.int64)
        low, high = int(all_ids.min()), int(all_ids.max())
        if not 0 <= low <= high < num_pages:
            raise ValueError(f"page ids run from {low} to {high}; there are {num_pages}")
    return pages, offsets
