"""A live sequence: its state, its slot, and what it is being computed for.

Used by the engine, its scheduler and its runner. With recurrent layers the slot has a journal of
what the tokens since the newest checkpoint put into the state: going back to any of them is that
checkpoint and a replay, to the same bits. Before it, the sequence goes back to an older checkpoint
and the tokens since then are computed again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from omni.engine.sampler import SamplingParams
from omni.engine.state import State
from omni.engine.state_cache import StateCache


class Priority(IntEnum):
    """Whose gap is closed first; each class has an earlier deadline than the next."""

    SPEAKING = 0
    RESPONDING = 1
    LISTENING = 2
    SPECULATING = 3
    BACKGROUND = 4


@dataclass(slots=True)
class Generation:
    """Sampling that is going on, or, with ``measured_ids``, one look at the next token's odds."""

    params: SamplingParams
    num_sampled: int = 0
    measured_ids: NDArray[np.int64] | None = None


@dataclass(slots=True, kw_only=True)
class Sequence:
    """One live sequence of the engine."""

    seq_id: int
    priority: Priority
    slot: int
    state: State
    generation: Generation | None = None
    is_held: bool = False
    journal_start: int = 0  # token of the journal's first row: where the newest checkpoint is
    answer_start: int | None = None  # where the last generation began
    mark: int = 0  # a chunk ends here, and the recurrent state is kept
    waiting_since: int = 0  # step in which it was last caught up
    num_processed: int = 0
    num_cached: int = 0
    num_generated: int = 0

    @property
    def num_pending(self) -> int:
        """Tokens to compute now: the last one only when its logits are wanted; none on hold."""
        state = self.state
        if self.is_held:
            return 0
        if self.generation:
            return len(state.token_ids) - state.num_computed
        return max(0, len(state.token_ids) - 1 - state.num_computed)

    @property
    def num_to_mark(self) -> int | None:
        """Tokens until the mark; None once it is behind."""
        left = self.mark - self.state.num_computed
        return left if left > 0 else None

    def truncate(self, cache: StateCache, num_tokens: int) -> None:
        """Forget tokens after ``num_tokens``.

        Raises:
            CapacityError: a shared page must be copied and none is left; nothing was changed.
        """
        self._go_back(cache, num_tokens, min(self.state.num_computed, max(0, num_tokens - 1)))

    def rewind(self, cache: StateCache, num_computed: int) -> None:
        """Have tokens from ``num_computed``, or from a point before it, computed again."""
        self._go_back(cache, self.state.num_known, num_computed)

    def _go_back(self, cache: StateCache, num_tokens: int, num_computed: int) -> None:
        stays = num_computed == self.state.num_computed
        point = num_computed
        if not stays:
            point = self.state.resume_point(num_computed, cache, self.journal_start)
        self.state.cut(cache, num_tokens, point)
        if not stays:
            self.load(cache)

    def checkpoint(self, cache: StateCache) -> None:
        """Keep the recurrent state as of now, and begin the journal anew."""
        state = self.state
        if cache.is_recurrent and state.num_computed > self.journal_start:
            checkpoint = cache.checkpoint(self.slot, state.num_computed)
            state.add_checkpoint(checkpoint, self.answer_start)
            self.journal_start = state.num_computed

    def journal_row(self, cache: StateCache, num_tokens: int) -> int:
        """Row of the journal for the next of ``num_tokens`` tokens to compute, making room.

        -1 where they are more than it holds: then :meth:`advance` keeps the state behind them.
        """
        if num_tokens > cache.journal_tokens:
            return -1
        if self.state.num_computed - self.journal_start + num_tokens > cache.journal_tokens:
            self.checkpoint(cache)
        return self.state.num_computed - self.journal_start

    def advance(self, cache: StateCache, num_tokens: int) -> None:
        """Account for ``num_tokens`` more computed tokens."""
        self.state.num_computed += num_tokens
        self.num_processed += num_tokens
        if num_tokens > cache.journal_tokens or self.state.num_computed == self.mark:
            self.checkpoint(cache)

    def offer_prefix(self, cache: StateCache) -> None:
        """Let sequences that begin alike share what was computed."""
        state = self.state
        state.register_prefix(cache)
        is_named = len(state.digests) * cache.page_tokens == state.num_computed
        if cache.is_recurrent and is_named and state.num_computed == self.mark:
            cache.keep_prefix(state.digests[-1], state.checkpoints[-1])

    def load(self, cache: StateCache) -> None:
        """Bring the slot to ``num_computed``: the checkpoint before it, and a replay."""
        if not cache.is_recurrent:
            return
        checkpoints, num_computed = self.state.checkpoints, self.state.num_computed
        kept = checkpoints[-1].num_tokens if checkpoints else 0
        cache.load(self.slot, checkpoints[-1] if checkpoints else None)
        if kept != num_computed:
            assert kept == self.journal_start, "a slot is loaded where nothing is kept"
            cache.replay(self.slot, slice(0, num_computed - kept))
        self.journal_start = kept

    def branch(self, cache: StateCache, child: Sequence) -> None:
        """Bring the slot of ``child``, whose state is a copy of this one's, to where it is."""
        if not cache.is_recurrent:
            return
        child.journal_start = self.journal_start
        num_rows = child.state.num_computed - self.journal_start
        if child.state.num_computed == self.state.num_computed:
            cache.copy_slot(self.slot, child.slot, num_rows)
            return
        cache.copy_journal(self.slot, child.slot, max(0, num_rows))
        child.load(cache)
