"""The truth about paged attention, in plain torch.

Letters: N rows of all sequences end to end, B sequences, P pages, T tokens per page, Hq query
heads, Hkv key/value heads, D head width, C tokens of one sequence (computed and new).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch


def paged_attention(
    q: torch.Tensor,
    kv: torch.Tensor,
    cu_seqlens: Sequence[int],
    num_computed: Sequence[int],
    page_table: Sequence[Sequence[int]],
    scale: float,
) -> torch.Tensor:
    """Attend causally: row n of sequence b, its token ``num_computed[b] + n - cu_seqlens[b]``,
    sees that token and all before it.

    Args:
        q: [N, Hq, D]; query head h reads key head h // (Hq / Hkv).
        kv: [2, P, T, Hkv, D]; keys and values of the new tokens are already written.
        cu_seqlens: B + 1 offsets into N.
        num_computed: [B] tokens of each sequence before this step.
        page_table: [B] page ids; token t is in page ``t // T`` of the list at ``t % T``.
        scale: factor of the scores.

    Returns:
        [N, Hq, D].
    """
    out = torch.empty_like(q)
    page_tokens = kv.shape[2]
    group = q.shape[1] // kv.shape[3]
    for b, (first, last) in enumerate(pairwise(cu_seqlens)):
        total = num_computed[b] + last - first
        pages = torch.tensor(page_table[b][: -(-total // page_tokens)], dtype=torch.long)
        keys, values = kv[:, pages].flatten(1, 2)[:, :total].unbind()  # [C, Hkv, D]
        keys = keys.repeat_interleave(group, dim=1)  # [C, Hq, D]
        values = values.repeat_interleave(group, dim=1)
        scores = torch.einsum("nhd,chd->hnc", q[first:last], keys) * scale
        position = torch.arange(num_computed[b], total).unsqueeze(1)  # [rows, 1]
        scores = scores.masked_fill(torch.arange(total) > position, -torch.inf)
        out[first:last] = torch.einsum("hnc,chd->nhd", scores.softmax(dim=-1), values)
    return out
