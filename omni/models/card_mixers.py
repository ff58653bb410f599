"""The two mixers on a card, and what all layers of one of its steps share.

Called by :mod:`omni.models.card`. Everything a launch needs is a tensor on the card, so that a step
can be a part of a CUDA graph; only bounds are numbers. Letters: N tokens of the step, B sequences,
D hidden width, H query heads, Hkv key/value heads, K head width, R rotated width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from omni_kernels.attention.triton_paged import PagedRows, num_counters, paged_attention
from omni_kernels.attention.triton_rotate import norm_rotate_store
from omni_kernels.gated_delta import triton_ops
from omni_kernels.gated_delta.triton_state import DeltaRows, DeltaState, DeltaWeights

from omni.models.batch import Batch, StateView
from omni.models.card_layers import CardLinear, CardNorm


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """Heads of a stack's attention layers and of its recurrent ones (0: there are none)."""

    query: int
    key: int
    delta_key: int

    def counters(self, num_sequences: int, device: torch.device) -> torch.Tensor:
        """Zeros for the programs of one step to count themselves; each launch leaves them zero."""
        of_attention = num_counters(num_sequences, self.query, self.key)
        size = max(of_attention, num_sequences * self.delta_key)
        return torch.zeros(size, dtype=torch.int32, device=device)


@dataclass(frozen=True, slots=True, kw_only=True)
class CardStep:
    """What all layers of one step share, on the card."""

    cosine: torch.Tensor  # [N, R / 2] fp32
    sine: torch.Tensor  # [N, R / 2] fp32
    places: torch.Tensor  # [N] int64, page id * page_tokens + offset of each new token
    paged: PagedRows
    delta: DeltaRows

    @staticmethod
    def of_batch(
        batch: Batch,
        page_tokens: int,
        angles: tuple[torch.Tensor, torch.Tensor],
        heads: Heads,
    ) -> CardStep:
        """The step of ``batch``, whose tensors are on the card."""
        device, size = batch.token_ids.device, batch.num_sequences
        lengths = [b - a for a, b in zip(batch.cu_seqlens, batch.cu_seqlens[1:], strict=False)]
        starts = batch.journal_starts
        rows = [batch.num_computed, batch.slots, starts or (-1,) * size, batch.cu_seqlens]
        numbers = [number for row in rows for number in row]
        moved = torch.tensor(numbers, dtype=torch.int32).to(device)  # one transfer
        num_computed, slots, journal_starts = moved[: 3 * size].view(3, size)
        cu_seqlens = moved[3 * size :]
        counters = heads.counters(size, device)
        return CardStep(
            cosine=angles[0],
            sine=angles[1],
            places=torch.tensor(batch.places(page_tokens), dtype=torch.int64).to(device),
            paged=PagedRows(
                cu_seqlens=cu_seqlens,
                num_computed=num_computed,
                page_table=batch.padded_pages().to(device),
                counters=counters,
                max_new_tokens=max(lengths),
                max_tokens=max(map(sum, zip(batch.num_computed, lengths, strict=True))),
            ),
            delta=DeltaRows(
                slots=slots,
                cu_seqlens=cu_seqlens,
                counters=counters,
                journal_starts=None if starts is None else journal_starts,
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CardAttention:
    """Grouped-query attention, ``row`` its row of the pages: two launches and two matrices.

    The matrix makes queries | keys | values, and behind them the output's gate if there is one.
    """

    norm: CardNorm
    qkv: CardLinear
    out: CardLinear
    num_heads: int
    num_kv_heads: int
    head_dim: int
    row: int
    head_norms: tuple[torch.Tensor, torch.Tensor] | None  # fp32 [K] of queries and keys
    has_gate: bool

    def __call__(self, x: torch.Tensor, step: CardStep, state: StateView) -> torch.Tensor:
        """``x`` [N, D] -> ``x`` + attention(norm(``x``)); writes keys and values of the tokens."""
        pages = state.kv[self.row]  # [2, P, page_tokens, Hkv, K]
        heads = self.qkv(x, norm=self.norm).view(len(x), -1, self.head_dim)
        values = self.num_heads + self.num_kv_heads
        gates = values + self.num_kv_heads
        query = norm_rotate_store(
            heads[:, : self.num_heads],
            heads[:, self.num_heads : values],
            heads[:, values:gates],
            pages,
            self.head_norms,
            self.norm.eps,
            step.cosine,
            step.sine,
            step.places,
        )  # [N, H, K]
        gate = heads[:, gates:] if self.has_gate else None
        mixed = paged_attention(query, pages, step.paged, gate=gate).flatten(1)
        return self.out(mixed, residual=x)


@dataclass(frozen=True, slots=True, kw_only=True)
class CardDelta:
    """Gated DeltaNet, ``row`` its row of the slots: one launch and two matrices.

    Any number of tokens goes one by one through the state, to the bits of decoding.
    """

    norm: CardNorm
    project: CardLinear
    out: CardLinear
    weights: DeltaWeights
    row: int

    def __call__(self, x: torch.Tensor, step: CardStep, state: StateView) -> torch.Tensor:
        """``x`` [N, D] -> ``x`` + delta(norm(``x``)); advances slots and fills journals."""
        assert state.recurrent is not None, "a recurrent layer needs slots"
        assert state.conv is not None, "a Gated DeltaNet layer needs windows"
        own = DeltaState(
            recurrent=state.recurrent[:, self.row],
            conv=state.conv[:, self.row],
            journal=None if state.journal is None else state.journal[:, self.row],
        )
        run = triton_ops.decode if step.paged.max_new_tokens == 1 else triton_ops.prefill
        mixed = run(self.project(x, norm=self.norm), self.weights, own, step.delta)  # [N, HV V]
        return self.out(mixed, residual=x)
