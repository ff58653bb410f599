"""Grouped-query attention over paged keys and values, with rotary positions.

The pages belong to the engine; this mixer writes the step's keys and values into them first and
then reads every sequence's pages. Letters: N tokens of the step, D hidden width, H query heads,
Hkv key/value heads, K head width, R rotated width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from omni_kernels.attention import Places, paged_attention
from omni_kernels.rowwise import rotate_and_store, sigmoid_mul

from omni.models.batch import Batch, StateView
from omni.models.layers import Linear


@dataclass(frozen=True, slots=True)
class Step:
    """What all layers of one step share, computed once."""

    batch: Batch
    cosine: torch.Tensor  # [N, R / 2] fp32
    sine: torch.Tensor  # [N, R / 2] fp32
    tokens: torch.Tensor  # [N] int64, page id * page_tokens + offset of each new token
    places: Places  # the same for all tokens, as the attention reads them

    @staticmethod
    def of(batch: Batch, state: StateView, cosine: torch.Tensor, sine: torch.Tensor) -> Step:
        """``cosine`` and ``sine`` [N, R / 2] are those of the batch's positions."""
        return Step(
            batch=batch,
            cosine=cosine,
            sine=sine,
            tokens=torch.tensor(batch.places(state.page_tokens), dtype=torch.int64),
            places=Places.of(
                batch.cu_seqlens,
                batch.num_computed,
                batch.page_table,
                rows=len(batch.token_ids),
                num_pages=state.kv.shape[2],
                page_tokens=state.page_tokens,
            ),
        )


class Attention:
    """Query, key and value in one matrix; ``row`` is this layer's row of the pages.

    ``norms`` [K] are the factors of the query's and key's norm per head, ``eps`` its epsilon. With
    ``has_gate`` the matrix has H heads more, whose sigmoid multiplies the output.
    """

    def __init__(
        self,
        *,
        qkv: Linear,
        out: Linear,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        row: int,
        norms: tuple[torch.Tensor, torch.Tensor] | None = None,
        eps: float = 1e-6,
        has_gate: bool = False,
    ) -> None:
        self._qkv = qkv
        self._out = out
        self._width = num_heads * head_dim
        self._num_all_heads = num_heads + 2 * num_kv_heads
        self._head_dim = head_dim
        self._row = row
        self._norms = norms
        self._eps = eps
        self._has_gate = has_gate

    def __call__(self, x: torch.Tensor, step: Step, state: StateView) -> torch.Tensor:
        """``x`` [N, D] (normed) -> [N, D]; writes keys and values of the N tokens."""
        pages = state.kv[self._row]  # [2, P, page_tokens, Hkv, K]
        projected = self._qkv(x)
        gate = None
        if self._has_gate:
            projected, gate = projected[:, : -self._width], projected[:, -self._width :]
        qkv = projected.view(-1, self._num_all_heads, self._head_dim)  # [N, H + 2 Hkv, K]
        query = rotate_and_store(
            qkv, pages, step.cosine, step.sine, step.tokens, norms=self._norms, eps=self._eps
        )  # [N, H, K]
        batch = step.batch
        mixed = paged_attention(
            query,
            pages,
            batch.cu_seqlens,
            batch.num_computed,
            batch.page_table,
            places=step.places,
        ).view(-1, self._width)
        return self._out(mixed if gate is None else sigmoid_mul(mixed, gate))
