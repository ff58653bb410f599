"""The engine: one loop that closes the gap between known and computed tokens of every sequence.

Called by :mod:`omni.assistant` from one thread; knows tokens, embeddings and state, nothing of
text, audio, sessions or clocks. There is no prefill phase and no decode phase: callers make tokens
known (:meth:`Engine.extend`, sampling), each :meth:`Engine.step` computes some of them.

What holds after every public call, and is checked by :meth:`Engine.check_integrity`:

- a call that raises has changed nothing (``sync`` excepted, see there);
- pages for all known tokens are held, so only a sampled token can find the pages used up: its
  sequence finishes with ``"capacity"``, keeps its state, and no other sequence notices;
- the last known token is left uncomputed until another follows or its logits are wanted, so that
  an idle sequence has ``num_computed == num_known - 1``;
- tokens given out by :meth:`Engine.step` are the tokens of the sequence, except a stop token,
  which is given out and not appended.

Nothing is ever preempted or swapped out: at the limits new work is refused with a reason, and only
pages that no sequence holds are evicted (see :mod:`omni.engine.state_cache`).
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import torch
from numpy.typing import NDArray

from omni.config import EngineConfig
from omni.engine import integrity
from omni.engine.outputs import EngineStats, FinishReason, SequenceUsage, TokenOutput
from omni.engine.prompt import Prompt, as_prompt
from omni.engine.runner import Runner
from omni.engine.sampler import SamplingParams
from omni.engine.sampling import take_logits
from omni.engine.scheduler import Chunk, schedule
from omni.engine.sequence import Generation, Priority, Sequence
from omni.engine.shares import Shares
from omni.engine.snapshot import Snapshot
from omni.engine.state import State
from omni.engine.state_cache import StateCache
from omni.errors import CapacityError, ContextLengthError, InputError
from omni.models.batch import Backbone
from omni.types import EmbeddingSpan

__all__ = [
    "Engine",
    "EngineStats",
    "FinishReason",
    "Priority",
    "Prompt",
    "SamplingParams",
    "SequenceUsage",
    "Snapshot",
    "TokenOutput",
]


class Engine:
    """Several sequences on one backbone. Not thread-safe: one thread owns it.

    Pages and sequences are divided between up to ``max_owners`` owners of sequences (see
    :mod:`omni.engine.shares`). Prefixes are shared between sequences unless ``share_prefixes`` is
    False; with recurrent layers, those that :meth:`keep` was asked for.
    """

    def __init__(
        self,
        backbone: Backbone,
        config: EngineConfig,
        *,
        max_owners: int = 1,
        share_prefixes: bool = True,
    ) -> None:
        self._config = config
        self._max_tokens = min(config.max_context_tokens, backbone.max_positions)
        self._shares = Shares(
            max_owners=max_owners,
            num_pages=config.num_pages,
            max_sequences=config.max_sequences,
            context_pages=-(-self._max_tokens // config.page_tokens),
        )
        self._cache = StateCache(
            backbone.state_spec,
            num_pages=config.num_pages,
            page_tokens=config.page_tokens,
            num_slots=config.max_sequences,
            journal_tokens=config.journal_tokens,
            replay=backbone.replay,
        )
        self._shares_prefixes = share_prefixes
        self._vocab_size = backbone.vocab_size
        self._runner = Runner(backbone, self._cache)
        self._sequences: dict[int, Sequence] = {}
        self._snapshots: set[Snapshot] = set()
        self._ended: list[TokenOutput] = []  # ends that came between two steps
        self._next_id = 1
        self._num_steps = 0
        self._num_tokens = 0
        self._num_tokens_cached = 0
        self._num_tokens_sampled = 0
        self._last_step_tokens = 0

    def warm_up(self) -> None:
        """Compile what a card runs before anybody waits for it; on a CPU there is nothing to do."""
        self._runner.warm_up(self._config.max_sequences, self._config.step_tokens)

    # --- The loop ----------------------------------------------------------------------------

    def has_work(self) -> bool:
        """Whether a step would compute or report anything."""
        return bool(self._ended) or any(s.num_pending for s in self._sequences.values())

    def step(self) -> list[TokenOutput]:
        """Spend one budget of tokens; return what was sampled and what ended since the last step.

        An exception of the backbone passes through; the step then counts as not taken.
        """
        outputs, self._ended = self._ended, []
        chunks = schedule(self._sequences.values(), self._config.step_tokens)
        if chunks:
            logits = self._run(chunks, outputs)
            self._advance(chunks)
            sampled = [chunk.sequence for chunk in chunks if chunk.is_sampled]
            taken = take_logits(sampled, logits, self._cache, self._max_tokens)
            self._num_tokens_sampled += sum(t.is_kept for t in taken)
            outputs += taken
        return outputs

    def _run(self, chunks: list[Chunk], outputs: list[TokenOutput]) -> torch.Tensor:
        try:
            return self._runner.run(chunks)
        except BaseException:
            self._ended = outputs
            if self._cache.is_recurrent:  # keys and values past num_computed do not count anyway
                for chunk in chunks:
                    chunk.sequence.load(self._cache)
            raise

    def _advance(self, chunks: list[Chunk]) -> None:
        self._num_steps += 1
        self._last_step_tokens = sum(chunk.num_tokens for chunk in chunks)
        self._num_tokens += self._last_step_tokens
        for chunk in chunks:
            chunk.sequence.advance(self._cache, chunk.num_tokens)
            if not chunk.sequence.num_pending:
                chunk.sequence.waiting_since = self._num_steps
            if self._shares_prefixes:
                chunk.sequence.offer_prefix(self._cache)

    # --- Sequences ---------------------------------------------------------------------------

    def add(self, token_ids: Seq[int] = (), *, priority: Priority, owner: str = "") -> int:
        """Begin a sequence of ``owner`` and return its id; ids are never reused.

        Raises:
            CapacityError: no sequence, page or context is left; the message names the limit.
        """
        sequence = self._new_sequence(priority, State(account=self._shares.open(owner)))
        sequence.load(self._cache)
        try:
            self.extend(sequence.seq_id, token_ids)
        except BaseException:
            self.free(sequence.seq_id)
            raise
        return sequence.seq_id

    def extend(self, seq_id: int, tokens: Seq[int] | EmbeddingSpan | Prompt) -> None:
        """Make more tokens known. A sequence that generates goes on after them.

        Raises:
            CapacityError: too few pages.
            ContextLengthError: the context would be longer than the limit.
            InputError: no such sequence, an id outside the vocabulary, or a span whose shapes do
                not match.
        """
        sequence = self._get(seq_id)
        state = sequence.state
        num_known, num_spans = state.num_known, len(state.spans)
        pieces = tokens.pieces() if isinstance(tokens, Prompt) else (tokens,)
        try:
            for piece in pieces:
                self._append(state, piece)
            self._check_room(state, 0)
            if self._shares_prefixes and not state.pages:
                state.adopt_prefix(self._cache)
                sequence.load(self._cache)
            self._cache.fit(state.pages, state.num_computed, state.num_known, state.account)
        except (CapacityError, InputError):
            del state.token_ids[num_known:], state.spans[num_spans:]
            if not num_known:
                self._cache.release(state.pages, state.account)
                sequence.state = State(account=state.account)
                sequence.load(self._cache)
            raise
        if not num_known:
            sequence.num_cached += state.num_computed
            self._num_tokens_cached += state.num_computed

    def fork(self, seq_id: int, *, priority: Priority, num_tokens: int | None = None) -> int:
        """Begin a sequence with the first ``num_tokens`` (None: all) tokens of another.

        Computed pages are shared, the last partial one is copied; the parent is not changed; the
        child has the same owner and does not generate.

        Raises:
            CapacityError: no sequence or page is left.
            InputError: no such sequence, or it has fewer tokens.
        """
        parent = self._get(seq_id)
        self._check_length(parent.state, num_tokens)
        child = self._new_sequence(priority, State(account=parent.state.account))
        try:
            child.state = parent.state.copy(
                self._cache, num_tokens, journal_start=parent.journal_start
            )
        except CapacityError:
            self.free(child.seq_id)
            raise
        parent.branch(self._cache, child)
        child.num_cached = child.state.num_computed
        return child.seq_id

    def free(self, seq_id: int) -> None:
        """Forget a sequence; nothing is reported about it any more."""
        sequence = self._get(seq_id)
        account = sequence.state.account
        self._cache.release(sequence.state.pages, account)
        self._cache.release_slot(sequence.slot)
        account.num_sequences -= 1
        self._shares.settle(account)
        self._ended = [output for output in self._ended if output.seq_id != seq_id]
        del self._sequences[seq_id]

    def set_priority(self, seq_id: int, priority: Priority) -> None:
        self._get(seq_id).priority = priority

    def hold(self, seq_id: int, is_held: bool) -> None:
        """Leave a sequence out of every step, or let it go on where it was."""
        self._get(seq_id).is_held = is_held

    # --- Generating --------------------------------------------------------------------------

    def measure(self, seq_id: int, token_ids: NDArray[np.int64]) -> None:
        """Find the probability that the sequence goes on with one of ``token_ids`` [n].

        Nothing is sampled; a step reports ``"measured"``. Raises as :meth:`generate`.
        """
        self.generate(seq_id, SamplingParams())
        generation = self._get(seq_id).generation
        assert generation is not None
        generation.measured_ids = token_ids

    def generate(self, seq_id: int, params: SamplingParams) -> None:
        """Sample once every known token is computed, then on until an end.

        Raises:
            CapacityError: the last token's page cannot be had.
            ContextLengthError: the context is full.
            InputError: no such sequence, no token to start from, or it generates already.
        """
        sequence = self._get(seq_id)
        state = sequence.state
        if not state.num_known:
            raise InputError(f"sequence {seq_id} has no token to generate from; extend it first")
        if sequence.generation:
            raise InputError(f"sequence {seq_id} generates already; cancel it first")
        self._check_room(state, 1)
        if state.num_computed == state.num_known:  # as after a stop token: logits are not kept
            sequence.rewind(self._cache, state.num_known - 1)
        sequence.generation = Generation(params)
        sequence.answer_start = state.num_known

    def cancel(self, seq_id: int) -> None:
        """Stop generating at once; the tokens given out stay. The next step reports the end.

        A sequence that does not generate is left alone: it may have ended by itself.
        """
        sequence = self._get(seq_id)
        if sequence.generation:
            sequence.generation = None
            self._ended.append(TokenOutput(seq_id, None, "cancelled"))

    # --- State as a value --------------------------------------------------------------------

    def truncate(self, seq_id: int, num_tokens: int) -> None:
        """Forget all tokens after the first ``num_tokens``; cancels a generation.

        With recurrent layers the state goes back by its journal; before that, to the nearest
        checkpoint, and the tokens since then are computed again by the next steps.

        Raises:
            CapacityError: a page shared with another sequence must be copied and none is left.
            InputError: no such sequence, or it has fewer tokens.
        """
        sequence = self._get(seq_id)
        self._check_length(sequence.state, num_tokens)
        if num_tokens < sequence.state.num_known:
            sequence.truncate(self._cache, num_tokens)
        self.cancel(seq_id)

    def common_prefix(self, seq_id: int, tokens: Seq[int] | Prompt) -> int:
        """Number of leading tokens that the sequence has in common with ``tokens``.

        An embedding equals no token, and a span only itself.
        """
        state, prompt = self._get(seq_id).state, as_prompt(tokens)
        known, wanted = state.token_ids, prompt.token_ids
        limit = min(len(known), len(wanted))
        if known[:limit] != wanted[:limit]:
            limit = next(i for i in range(limit) if known[i] != wanted[i])
        wanted_spans = prompt.placed()
        for placed in state.spans:
            if placed.start >= limit:
                break
            start, span = next(wanted_spans)  # there is one: the ids agree
            if start != placed.start or span is not placed.source or placed.end > limit:
                return placed.start
        return limit

    def sync(self, seq_id: int, tokens: Seq[int] | Prompt) -> int:
        """Make ``tokens`` the tokens of the sequence, keeping the longest common prefix.

        Cancels a generation. Returns the number of tokens kept.

        Raises:
            CapacityError, InputError: as :meth:`extend`; what was common is then all that is left.
        """
        prompt = as_prompt(tokens)
        num_kept = self.common_prefix(seq_id, prompt)
        self.truncate(seq_id, num_kept)
        if num_kept < len(prompt):
            self.extend(seq_id, prompt.rest(num_kept))
        return num_kept

    def snapshot(self, seq_id: int) -> Snapshot:
        """Keep the sequence as it is now, its generation excepted; :meth:`release` it when done.

        Raises:
            CapacityError: no page is left for a copy of the last, partial one.
        """
        sequence = self._get(seq_id)
        sequence.checkpoint(self._cache)
        snapshot = Snapshot(sequence.state.copy(self._cache, reserve=False))
        self._snapshots.add(snapshot)
        sequence.state.account.num_snapshots += 1
        return snapshot

    def restore(self, seq_id: int, snapshot: Snapshot) -> None:
        """Put a sequence (any of its owner's) back to ``snapshot``, bit by bit; it stays valid.

        Cancels a generation.

        Raises:
            CapacityError: too few pages for what the snapshot has and the sequence has not.
            InputError: no such sequence, or the snapshot was released or is another owner's.
        """
        sequence = self._get(seq_id)
        if snapshot.state.account is not sequence.state.account:
            raise InputError(f"sequence {seq_id} and this snapshot have different owners")
        sequence.state = snapshot.state.copy(self._cache, freeing=sequence.state.pages)
        sequence.load(self._cache)
        self.cancel(seq_id)

    def release(self, snapshot: Snapshot) -> None:
        """Give up what a snapshot holds."""
        account = snapshot.state.account
        self._cache.release(snapshot.state.pages, account)
        account.num_snapshots -= 1
        self._shares.settle(account)
        self._snapshots.discard(snapshot)
        snapshot.forget()

    def keep(self, seq_id: int, num_tokens: int) -> None:
        """Keep the recurrent state after ``num_tokens`` tokens, rounded down to whole pages.

        For sequences that will begin alike. Without recurrent layers every page serves already.
        """
        if self._cache.is_recurrent:
            page_tokens = self._cache.page_tokens
            self._get(seq_id).mark = num_tokens // page_tokens * page_tokens

    # --- Looking -----------------------------------------------------------------------------

    def tokens(self, seq_id: int) -> list[int]:
        """Known tokens, -1 for embeddings (a copy)."""
        return self._get(seq_id).state.token_ids.copy()

    def num_tokens(self, seq_id: int) -> int:
        return self._get(seq_id).state.num_known

    def num_computed(self, seq_id: int) -> int:
        return self._get(seq_id).state.num_computed

    def is_idle(self, seq_id: int) -> bool:
        """Whether steps have nothing to do for it: not generating, all but the last computed."""
        return self._get(seq_id).num_pending == 0

    def usage(self, seq_id: int) -> SequenceUsage:
        sequence = self._get(seq_id)
        return SequenceUsage(
            num_processed=sequence.num_processed,
            num_cached=sequence.num_cached,
            num_generated=sequence.num_generated,
        )

    def stats(self) -> EngineStats:
        return EngineStats(
            num_sequences=len(self._sequences),
            max_sequences=self._config.max_sequences,
            num_held=sum(sequence.is_held for sequence in self._sequences.values()),
            num_snapshots=len(self._snapshots),
            num_pages=self._cache.num_pages,
            num_pages_free=self._cache.num_available,
            num_pages_cached=self._cache.num_cached,
            num_steps=self._num_steps,
            num_tokens=self._num_tokens,
            num_tokens_cached=self._num_tokens_cached,
            num_tokens_sampled=self._num_tokens_sampled,
            last_step_tokens=self._last_step_tokens,
        )

    def check_integrity(self) -> None:
        """Check every account of pages, slots and tokens.

        Raises:
            AssertionError: naming the first leak or broken invariant.
        """
        snapshots = [snapshot.state for snapshot in self._snapshots]
        integrity.check(self._cache, self._shares, self._sequences, snapshots)

    # --- Inside ------------------------------------------------------------------------------

    def _get(self, seq_id: int) -> Sequence:
        try:
            return self._sequences[seq_id]
        except KeyError:
            raise InputError(f"there is no sequence {seq_id}; freed, or never added") from None

    def _new_sequence(self, priority: Priority, state: State) -> Sequence:
        account, limit = state.account, self._config.max_sequences
        try:
            if len(self._sequences) >= limit:
                raise CapacityError(
                    f"all {limit} sequences are in use (engine.max_sequences); end one or raise it"
                )
            self._shares.check_sequences(account)
        except CapacityError:
            self._shares.settle(account)
            raise
        account.num_sequences += 1
        seq_id, self._next_id = self._next_id, self._next_id + 1
        sequence = Sequence(
            seq_id=seq_id,
            priority=priority,
            slot=self._cache.take_slot(),
            state=state,
            waiting_since=self._num_steps,
        )
        self._sequences[seq_id] = sequence
        return sequence

    def _append(self, state: State, tokens: Seq[int] | EmbeddingSpan) -> None:
        if isinstance(tokens, EmbeddingSpan):
            state.add_span(tokens)
        elif len(tokens):
            if min(tokens) < 0 or max(tokens) >= self._vocab_size:
                raise InputError(
                    f"token ids are {min(tokens)} to {max(tokens)}, expected 0 to "
                    f"{self._vocab_size - 1}"
                )
            state.token_ids.extend(tokens)

    def _check_length(self, state: State, num_tokens: int | None) -> None:
        if num_tokens is not None and not 0 <= num_tokens <= state.num_known:
            raise InputError(f"num_tokens is {num_tokens}, expected 0 to {state.num_known}")

    def _check_room(self, state: State, num_new: int) -> None:
        if (num_tokens := state.length + num_new) > self._max_tokens:
            raise ContextLengthError(
                f"{num_tokens} tokens are needed and the context holds {self._max_tokens} "
                "(engine.max_context_tokens, and the model's own limit); shorten instructions, "
                "tools or items"
            )
