"""A live sequence: its state, its slot, and what it is being computed for.

Used by the engine, its scheduler and its runner.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from omni.engine.sampler import SamplingParams
from omni.engine.state import State
from omni.engine.state_cache import StateCache

CHECKPOINT_TOKENS = 128
"""Recurrent state is kept at least every so many tokens: what a truncation may have to replay."""


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

    def truncate(self, cache: StateCache, num_tokens: int) -> None:
        """Forget tokens after ``num_tokens``; with recurrent layers, go back to a checkpoint.

        Raises:
            CapacityError: a shared page must be copied and none is left; nothing was changed.
        """
        self._go_back(cache, num_tokens, min(self.state.num_computed, max(0, num_tokens - 1)))

    def rewind(self, cache: StateCache, num_computed: int) -> None:
        """Have tokens from ``num_computed``, or a checkpoint before, computed again."""
        self._go_back(cache, self.state.num_known, num_computed)

    def _go_back(self, cache: StateCache, num_tokens: int, num_computed: int) -> None:
        stays = num_computed == self.state.num_computed
        point = num_computed if stays else self.state.resume_point(num_computed, cache)
        self.state.cut(cache, num_tokens, point)
        if not stays:
            self.load(cache)

    def reload(self, cache: StateCache) -> None:
        """Go back to the last checkpoint because the slot was left half-written."""
        point = self.state.resume_point(self.state.num_computed, cache)
        self.state.cut(cache, self.state.num_known, point)
        self.load(cache)

    def checkpoint(self, cache: StateCache) -> None:
        """Keep the recurrent state as of now, unless it is kept already."""
        state = self.state
        kept = state.checkpoints[-1].num_tokens if state.checkpoints else 0
        if cache.is_recurrent and state.num_computed > kept:
            state.add_checkpoint(cache.checkpoint(self.slot, state.num_computed))

    def advance(self, cache: StateCache, num_tokens: int) -> None:
        """Account for ``num_tokens`` more computed tokens."""
        state = self.state
        state.num_computed += num_tokens
        self.num_processed += num_tokens
        if cache.is_recurrent:
            kept = state.checkpoints[-1].num_tokens if state.checkpoints else 0
            if state.num_computed - kept >= CHECKPOINT_TOKENS:
                self.checkpoint(cache)

    def load(self, cache: StateCache) -> None:
        """Bring the slot to ``num_computed``, where a checkpoint (at 0: nothing) is kept."""
        if cache.is_recurrent:
            checkpoints = self.state.checkpoints
            kept = checkpoints[-1].num_tokens if checkpoints else 0
            assert kept == self.state.num_computed, "a slot is loaded where nothing is kept"
            cache.load(self.slot, checkpoints[-1] if checkpoints else None)
