"""Grouped-query attention over paged keys and values, with rotary positions.

The pages belong to the engine; this mixer writes the step's keys and values into them first and
then reads every sequence's pages. Letters: N tokens of the step, D hidden width, H query heads,
Hkv key/value heads, K head width, T tokens of one sequence with its state.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from omni.models.batch import Batch, StateView
from omni.models.layers import Linear


@dataclass(frozen=True, slots=True)
class Step:
    """What all layers of one step share, computed once."""

    batch: Batch
    cos: torch.Tensor  # [N, 1, K / 2]
    sin: torch.Tensor  # [N, 1, K / 2]
    write_rows: torch.Tensor  # [N] int64 rows of the flattened pages that the new tokens take
    read_rows: tuple[torch.Tensor, ...]  # per sequence [T] int64 rows of the flattened pages
    masks: tuple[torch.Tensor | None, ...]  # per sequence [new, T] bool, None for one new token

    @staticmethod
    def of(batch: Batch, state: StateView, cos: torch.Tensor, sin: torch.Tensor) -> Step:
        page_tokens = state.page_tokens
        read_rows, write_rows, masks = [], [], []
        for b in range(batch.num_sequences):
            computed = batch.num_computed[b]
            new = batch.cu_seqlens[b + 1] - batch.cu_seqlens[b]
            total = computed + new
            pages = torch.tensor(batch.page_table[b], dtype=torch.int64)
            offsets = torch.arange(page_tokens)
            rows = (pages[:, None] * page_tokens + offsets).view(-1)[:total]
            read_rows.append(rows)
            write_rows.append(rows[computed:])
            known = torch.arange(total) <= torch.arange(computed, total)[:, None]
            masks.append(known if new > 1 else None)
        positions = batch.positions
        return Step(
            batch=batch,
            cos=cos[positions].unsqueeze(1),
            sin=sin[positions].unsqueeze(1),
            write_rows=torch.cat(write_rows),
            read_rows=tuple(read_rows),
            masks=tuple(masks),
        )


class Attention:
    """Query, key and value in one matrix; ``row`` is this layer's row of the pages."""

    def __init__(
        self,
        *,
        qkv: Linear,
        out: Linear,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        row: int,
    ) -> None:
        self._qkv = qkv
        self._out = out
        self._num_heads = num_heads
        self._num_kv_heads = num_kv_heads
        self._head_dim = head_dim
        self._row = row

    def __call__(self, x: torch.Tensor, step: Step, state: StateView) -> torch.Tensor:
        """``x`` [N, D] (normed) -> [N, D]; writes keys and values of the N tokens."""
        heads, kv_heads, width = self._num_heads, self._num_kv_heads, self._head_dim
        qkv = self._qkv(x).view(len(x), heads + 2 * kv_heads, width)
        rotate(qkv[:, : heads + kv_heads], step.cos, step.sin)
        query = qkv[:, :heads]
        key, value = qkv[:, heads : heads + kv_heads], qkv[:, heads + kv_heads :]
        pages = state.kv[self._row].view(2, -1, kv_heads, width)  # [2, P * page_tokens, Hkv, K]
        pages[0].index_copy_(0, step.write_rows, key.to(pages.dtype))
        pages[1].index_copy_(0, step.write_rows, value.to(pages.dtype))
        mixed = torch.empty(len(x), heads * width)
        starts = step.batch.cu_seqlens
        for b, rows in enumerate(step.read_rows):
            past = pages[:, rows].to(x.dtype).transpose(1, 2)  # [2, Hkv, T, K]
            answer = functional.scaled_dot_product_attention(
                query[starts[b] : starts[b + 1]].transpose(0, 1)[None],
                past[None, 0],
                past[None, 1],
                attn_mask=step.masks[b],
                enable_gqa=True,
            )  # [1, H, new, K]
            mixed[starts[b] : starts[b + 1]] = answer[0].transpose(0, 1).reshape(-1, heads * width)
        return self._out(mixed)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Turn each pair (i, i + K/2) of ``x`` [N, heads, K] by its angle, in place (NeoX pairing)."""
    first, second = x.chunk(2, dim=-1)
    turned = first * cos - second * sin
    second.copy_(second * cos + first * sin)
    first.copy_(turned)
