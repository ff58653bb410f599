"""What one engine step hands to a backbone: flattened tokens and views of the state.

The engine builds these, the backbone reads them; nothing else travels between the two, so a
backbone holds no hidden state and a step can be replayed. Shapes: N tokens of all sequences of the
step laid end to end, B sequences, P pages, S slots, L layers of a kind, Hkv key/value heads, D head
width, page_tokens tokens per page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from omni_kernels.triton_graph import Capture, DecodeInputs

HOST = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSpec:
    """What a backbone keeps per sequence; the engine allocates it. Written once, by the family.

    ``mixers`` names each layer's kind in order. A full-attention layer owns row ``i`` of the pages,
    i counting full-attention layers only; a recurrent layer likewise owns row ``i`` of the slots.
    """

    mixers: tuple[Literal["attention", "recurrent"], ...]
    num_kv_heads: int
    head_dim: int
    kv_dtype: torch.dtype = torch.float32
    recurrent_shape: tuple[int, ...] = ()  # per slot and recurrent layer, fp32: [HV, V, K]
    conv_shape: tuple[int, ...] = ()  # per slot and recurrent layer, fp32: [width - 1, channels]
    journal_width: int = 0  # per token and recurrent layer, fp32; 0: tokens cannot be replayed
    device: torch.device = HOST  # where the state lives and batches go
    on_card: bool = False  # a card's kernels copy it (in their interpreter: on CPU tensors)

    @property
    def num_attention(self) -> int:
        return sum(mixer == "attention" for mixer in self.mixers)

    @property
    def num_recurrent(self) -> int:
        return sum(mixer == "recurrent" for mixer in self.mixers)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateView:
    """The engine's state tensors, updated in place by the backbone.

    ``kv`` [L, 2, P, page_tokens, Hkv, D]: keys (0) and values (1), rotary already applied to keys.
    ``recurrent`` [S, L, *recurrent_shape] fp32 and ``conv`` [S, L, *conv_shape] fp32, slot-major so
    that a checkpoint is one copy; None when the backbone has no recurrent layer. ``journal``
    [S, L, capacity, journal_width] fp32 holds what recent tokens put into the recurrent state, for
    :meth:`Backbone.replay`; None where nobody rolls back. Page 0 and slot 0 are never given to a
    sequence (null).
    """

    kv: torch.Tensor
    recurrent: torch.Tensor | None = None
    conv: torch.Tensor | None = None
    journal: torch.Tensor | None = None

    @property
    def page_tokens(self) -> int:
        return self.kv.shape[3]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One step's work.

    Row n belongs to sequence b where ``cu_seqlens[b] <= n < cu_seqlens[b + 1]``
    and is token number ``num_computed[b] + n - cu_seqlens[b]`` of it.
    """

    token_ids: torch.Tensor  # [N] int64; -1 where an embedding takes the token's place
    positions: torch.Tensor  # [N], or [3, N] for multimodal rotary; int64 or floating
    cu_seqlens: tuple[int, ...]  # B + 1 offsets into N
    num_computed: tuple[int, ...]  # [B] tokens of each sequence already in the state
    page_table: tuple[Sequence[int], ...]  # [B] page ids covering num_computed + new tokens
    slots: tuple[int, ...]  # [B] recurrent slot of each sequence (0 where there is none)
    logits_rows: torch.Tensor  # [R] int64 rows of N whose logits are wanted
    embeddings: torch.Tensor | None = None  # [E, hidden], in the order of the -1 tokens
    journal_starts: tuple[int, ...] | None = None  # [B] journal row of each first token; -1: none

    @property
    def num_sequences(self) -> int:
        return len(self.cu_seqlens) - 1

    def places(self, page_tokens: int) -> list[int]:
        """Where each of the N tokens lies in the pages: page id * page_tokens + offset."""
        places: list[int] = []
        for b, pages in enumerate(self.page_table):
            begin = self.num_computed[b]
            end = begin + self.cu_seqlens[b + 1] - self.cu_seqlens[b]
            places += [
                pages[at // page_tokens] * page_tokens + at % page_tokens
                for at in range(begin, end)
            ]
        return places

    def padded_pages(self) -> torch.Tensor:
        """The page table as int32 [B, most pages], behind each row's own pages the null page."""
        width = max(map(len, self.page_table))
        rows = [[*pages, *[0] * (width - len(pages))] for pages in self.page_table]
        return torch.tensor(rows, dtype=torch.int32)

    def to(self, device: torch.device) -> Batch:
        """The same with its tensors on ``device``."""
        return replace(
            self,
            token_ids=self.token_ids.to(device),
            positions=self.positions.to(device),
            logits_rows=self.logits_rows.to(device),
            embeddings=None if self.embeddings is None else self.embeddings.to(device),
        )


class Backbone(Protocol):
    """A decoder stack as the engine sees it."""

    vocab_size: int
    max_positions: int
    state_spec: StateSpec

    def forward(self, batch: Batch, state: StateView) -> torch.Tensor:
        """Compute ``batch``, writing its keys, values and recurrent state into ``state``.

        Returns logits [R, vocab_size] fp32 of ``batch.logits_rows``.
        """
        ...

    def replay(self, state: StateView, slot: int, rows: slice) -> None:
        """Advance the recurrent state of ``slot`` by ``rows`` (start and stop) of its journal.

        In every recurrent layer, to the same bits as having computed those tokens; the state must
        be that from before the first row. Keys, values and the journal stay as they are.

        Raises:
            ValueError: there is no journal, or it has no such rows.
        """
        ...


@runtime_checkable
class GraphedBackbone(Backbone, Protocol):
    """A backbone on a card, whose decoding steps can be captured and replayed as graphs."""

    capture: Capture | None
    """How a step becomes a graph; None: this one's cannot."""

    def decode(self, inputs: DecodeInputs, state: StateView) -> torch.Tensor:
        """Compute one token of each of B sequences without synchronising.

        Returns logits [B, vocab_size] fp32; rows of nobody (slot 0, place -1) mean nothing.
        """
        ...
