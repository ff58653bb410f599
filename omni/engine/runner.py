"""Turns the chunks of a step into one :class:`~omni.models.batch.Batch` and runs the backbone.

Called by :mod:`omni.engine.engine`; knows nothing of sampling or policy. Sequences are laid end to
end; token ids, positions and logits rows become one tensor each. On a card, decoding steps are
graphs (:mod:`omni.engine.decoding`).
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch

from omni.engine.decoding import DecodingSteps
from omni.engine.scheduler import Chunk
from omni.engine.sequence import Sequence
from omni.engine.state import State
from omni.engine.state_cache import StateCache
from omni.models.batch import Backbone, Batch, GraphedBackbone

WARM_TOKENS = (1, 8, 24, 64)
"""Numbers of rows for which the card's matrices and attention have programs of their own."""


class Runner:
    """Runs ``backbone`` on the state in ``cache``, in the caller's thread."""

    def __init__(self, backbone: Backbone, cache: StateCache) -> None:
        self._backbone = backbone
        self._cache = cache
        self._device = backbone.state_spec.device
        self._decoding: DecodingSteps | None = None
        if isinstance(backbone, GraphedBackbone) and backbone.capture is not None:
            self._decoding = DecodingSteps(backbone, cache.view, backbone.capture)

    def run(self, chunks: Seq[Chunk]) -> torch.Tensor:
        """Compute ``chunks`` into the state; their sequences only make room in their journals.

        Returns logits [R, vocab_size] fp32, one row for each sampled chunk in order.
        """
        batch = self._batch(chunks)
        with torch.inference_mode():
            if self._decoding is not None and self._decoding.take(batch):
                return self._decoding.run(batch)
            return self._backbone.forward(batch.to(self._device), self._cache.view)

    def warm_up(self, max_sequences: int, max_tokens: int) -> None:
        """Compile what a card's steps of up to so many sequences and tokens run.

        The null page and slot 0 take what it computes: no sequence notices.
        """
        if not self._backbone.state_spec.on_card:
            return
        if self._decoding is not None:
            self._decoding.warm_up(max_sequences)
        for size in WARM_TOKENS:
            if size <= max_tokens:
                batch = Batch(
                    token_ids=torch.zeros(size, dtype=torch.int64),
                    positions=torch.arange(size),
                    cu_seqlens=(0, size),
                    num_computed=(0,),
                    page_table=((0,) * -(-size // self._cache.page_tokens),),
                    slots=(0,),
                    logits_rows=torch.tensor([size - 1]),
                    journal_starts=(-1,) if self._cache.is_recurrent else None,
                )
                with torch.inference_mode():
                    self._backbone.forward(batch.to(self._device), self._cache.view)

    def _batch(self, chunks: Seq[Chunk]) -> Batch:
        token_ids: list[int] = []
        cu_seqlens = [0]
        num_computed = []
        journal_starts = []
        page_table = []
        logits_rows = []
        page_tokens = self._cache.page_tokens
        has_spans = False
        for chunk in chunks:
            state = chunk.sequence.state
            start = state.num_computed
            end = start + chunk.num_tokens
            token_ids += state.token_ids[start:end]
            cu_seqlens.append(len(token_ids))
            num_computed.append(start)
            journal_starts.append(chunk.sequence.journal_row(self._cache, chunk.num_tokens))
            page_table.append(state.pages[: -(-end // page_tokens)])
            has_spans = has_spans or bool(state.spans)
            if chunk.is_sampled:
                logits_rows.append(len(token_ids) - 1)
        return Batch(
            token_ids=torch.tensor(token_ids, dtype=torch.int64),
            positions=_span_positions(chunks) if has_spans else _text_positions(chunks),
            cu_seqlens=tuple(cu_seqlens),
            num_computed=tuple(num_computed),
            page_table=tuple(page_table),
            slots=tuple(chunk.sequence.slot for chunk in chunks),
            logits_rows=torch.tensor(logits_rows, dtype=torch.int64),
            embeddings=_embeddings(chunks) if has_spans else None,
            journal_starts=tuple(journal_starts) if self._cache.is_recurrent else None,
        )


def _range(chunk: Chunk) -> tuple[Sequence, int, int]:
    start = chunk.sequence.state.num_computed
    return chunk.sequence, start, start + chunk.num_tokens


def _text_positions(chunks: Seq[Chunk]) -> torch.Tensor:
    positions: list[int] = []
    for chunk in chunks:
        _, start, end = _range(chunk)
        positions.extend(range(start, end))
    return torch.tensor(positions, dtype=torch.int64)


def _span_positions(chunks: Seq[Chunk]) -> torch.Tensor:
    """Positions [N], or [3, N] when a span of the step's sequences has three axes."""
    parts = []
    for chunk in chunks:
        sequence, start, end = _range(chunk)
        parts.append(positions_of(sequence.state, start, end))
    if all(part.dim() == 1 for part in parts):
        return torch.cat(parts)
    return torch.cat([part.expand(3, -1) for part in parts], dim=1)


def positions_of(state: State, start: int, end: int) -> torch.Tensor:
    """Rotary positions [end - start] or [3, end - start] int64 of the tokens ``start``..``end``."""
    indices = torch.arange(start, end)
    num_axes = 3 if any(span.positions.dim() == 2 for span in state.spans) else 1
    positions = indices.expand(num_axes, -1).clone()
    for span in state.spans:
        positions[:, indices >= span.end] = indices[indices >= span.end] + span.shift
        low, high = max(start, span.start), min(end, span.end)
        if low < high:
            part = span.positions[..., low - span.start : high - span.start]
            positions[:, low - start : high - start] = part
    return positions if num_axes == 3 else positions[0]


def _embeddings(chunks: Seq[Chunk]) -> torch.Tensor | None:
    parts = []
    for chunk in chunks:
        sequence, start, end = _range(chunk)
        for span in sequence.state.spans:
            low, high = max(start, span.start), min(end, span.end)
            if low < high:
                parts.append(span.embeddings[low - span.start : high - span.start])
    return torch.cat(parts) if parts else None
