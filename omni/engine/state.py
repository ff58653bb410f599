"""Tokens and the state computed from them, as a value that can be copied, cut and kept.

Used by :mod:`omni.engine.sequence` (live sequences) and by snapshots. Knows which pages and
checkpoints belong to which tokens; slots, priorities and sampling are not its business.

The last known token is left uncomputed until another follows or its logits are wanted: logits come
out of the very step that computes a token, so a sequence that has been listening needs no token
twice when it begins to answer. A drained sequence has ``num_computed == num_known - 1``, and
whatever cuts a state leaves it as if it had been drained there: going back and on is then, bit by
bit, never having gone further.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from omni.engine.shares import Account
from omni.engine.state_cache import Checkpoint, StateCache, prefix_digest
from omni.errors import CapacityError, InputError
from omni.types import EMBEDDING_ID, EmbeddingSpan

MAX_CHECKPOINTS = 4
"""Checkpoints of a sequence's history; past it they are thinned, the sparser the longer ago."""

MAX_ANSWER_CHECKPOINTS = 16
"""Checkpoints of the answer under way, any token of which may turn out to be the last one heard."""


@dataclass(frozen=True, slots=True)
class PlacedSpan:
    """Embeddings at ``start`` in a sequence.

    ``positions`` [T] or [3, T] int64 are absolute; tokens after the span, up to the next one, have
    position index + ``shift``. ``source`` is the span that was given; None if a part of it is left.
    """

    start: int
    embeddings: torch.Tensor  # [T, D]
    positions: torch.Tensor
    shift: int
    source: EmbeddingSpan | None

    @property
    def end(self) -> int:
        return self.start + len(self.embeddings)


@dataclass(slots=True, kw_only=True)
class State:
    """Tokens and the state computed from them: a value, but for the pages it holds.

    ``account`` is charged with ``pages``.
    ``pages`` cover every known token of a live sequence, and from ``num_computed`` on are its own.
    ``digests`` name the first pages: full, computed and free of embeddings.
    """

    account: Account
    token_ids: list[int] = field(default_factory=list)
    num_computed: int = 0
    pages: array[int] = field(default_factory=lambda: array("q"))  # as the kernels take them
    digests: list[bytes] = field(default_factory=list)
    spans: list[PlacedSpan] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)

    @property
    def num_known(self) -> int:
        return len(self.token_ids)

    @property
    def next_position(self) -> int:
        """Rotary position of the token after the last."""
        return self.num_known + (self.spans[-1].shift if self.spans else 0)

    @property
    def length(self) -> int:
        """What counts against the context limit: tokens, or positions if they are ahead."""
        return max(self.num_known, self.next_position)

    def add_span(self, span: EmbeddingSpan) -> None:
        """Append ``span``; its positions continue from the sequence's.

        Raises:
            InputError: shapes that do not match.
        """
        shape, axes = tuple(span.embeddings.shape), tuple(span.positions.shape)
        if len(shape) != 2 or not shape[0] or axes not in ((shape[0],), (3, shape[0])):
            raise InputError(
                f"a span has embeddings {shape} and positions {axes}, expected [T, D] with T >= 1 "
                "and [T] or [3, T]"
            )
        positions = span.positions.to(torch.int64) + self.next_position
        self._place(span.embeddings, positions, span)

    def _place(
        self, embeddings: torch.Tensor, positions: torch.Tensor, source: EmbeddingSpan | None
    ) -> None:
        start, end = self.num_known, self.num_known + len(embeddings)
        # As in multimodal rotary: text goes on after the largest position of any axis.
        shift = int(positions.max()) + 1 - end
        self.spans.append(PlacedSpan(start, embeddings, positions, shift, source))
        self.token_ids.extend([EMBEDDING_ID] * len(embeddings))

    def resume_point(
        self, num_computed: int, cache: StateCache, journal_start: int | None = None
    ) -> int:
        """The last point up to ``num_computed`` whose state can be had without computing.

        Keys and values are kept for every token, recurrent state at checkpoints and, by replay,
        from ``journal_start`` on.
        """
        if not cache.is_recurrent:
            return min(num_computed, self.num_computed)
        if journal_start is not None and num_computed >= journal_start:
            return num_computed
        return max(
            (c.num_tokens for c in self.checkpoints if c.num_tokens <= num_computed), default=0
        )

    def copy(
        self,
        cache: StateCache,
        num_tokens: int | None = None,
        *,
        reserve: bool = True,
        freeing: Sequence[int] = (),
        journal_start: int | None = None,
    ) -> State:
        """A state of its own with the first ``num_tokens`` (None: all) tokens.

        Full computed pages are shared, the last partial one is copied, and with ``reserve`` pages
        for the tokens not yet computed are held too. ``freeing`` is released in the same breath.
        ``journal_start``: tokens from there on can be replayed into the copy.

        Raises:
            CapacityError: too few pages; nothing was changed.
        """
        if num_tokens is None or num_tokens == self.num_known:
            num_tokens, point = self.num_known, self.num_computed
        else:
            point = min(self.num_computed, max(0, num_tokens - 1))
        point = self.resume_point(point, cache, journal_start)
        copy = State(
            account=self.account,
            token_ids=self.token_ids.copy(),
            pages=self.pages[: -(-point // cache.page_tokens)],
            digests=self.digests.copy(),
            spans=self.spans.copy(),
            checkpoints=self.checkpoints.copy(),
        )
        copy._cut(num_tokens, point, cache.page_tokens)
        cache.share(copy.pages, copy.account)
        try:
            num_covered = num_tokens if reserve else point
            cache.fit(copy.pages, point, num_covered, copy.account, freeing)
        except CapacityError:
            cache.release(copy.pages, copy.account)
            raise
        return copy

    def cut(self, cache: StateCache, num_tokens: int, num_computed: int) -> None:
        """Forget tokens after ``num_tokens`` and what was computed after ``num_computed``.

        Raises:
            CapacityError: a shared page must be copied and none is left; nothing was changed.
        """
        cache.fit(self.pages, num_computed, num_tokens, self.account)
        self._cut(num_tokens, num_computed, cache.page_tokens)

    def _cut(self, num_tokens: int, num_computed: int, page_tokens: int) -> None:
        while self.spans and self.spans[-1].end > num_tokens:
            span = self.spans.pop()
            if span.start < num_tokens:
                num_kept = num_tokens - span.start
                del self.token_ids[span.start :]
                self._place(span.embeddings[:num_kept], span.positions[..., :num_kept], None)
        del self.token_ids[num_tokens:]
        self.num_computed = num_computed
        del self.digests[num_computed // page_tokens :]
        while self.checkpoints and self.checkpoints[-1].num_tokens > num_computed:
            self.checkpoints.pop()

    def adopt_prefix(self, cache: StateCache) -> None:
        """Hold pages that other sequences computed for the beginning of these tokens.

        Only while nothing is held; the last token is left to compute. With recurrent layers the
        prefix ends where a checkpoint is kept, which becomes the state's first.
        """
        assert not self.pages, "a prefix is adopted before any page is held"
        end, checkpoint = cache.page_tokens, None
        while end < self.num_known and self._is_text(end):
            parent = self.digests[-1] if self.digests else b""
            digest = prefix_digest(parent, self.token_ids[end - cache.page_tokens : end])
            page = cache.find(digest, self.account)
            if page is None:
                break
            self.digests.append(digest)
            self.pages.append(page)
            checkpoint = cache.find_prefix(digest) or checkpoint
            end += cache.page_tokens
        if cache.is_recurrent:
            self._adopt(checkpoint, cache)
        else:
            self.num_computed = len(self.pages) * cache.page_tokens

    def _adopt(self, checkpoint: Checkpoint | None, cache: StateCache) -> None:
        self.num_computed = checkpoint.num_tokens if checkpoint else 0
        num_pages = self.num_computed // cache.page_tokens
        cache.release(self.pages[num_pages:], self.account)
        del self.pages[num_pages:], self.digests[num_pages:]
        if checkpoint:
            self.checkpoints.append(checkpoint)

    def register_prefix(self, cache: StateCache) -> None:
        """Offer newly completed pages to sequences that begin alike."""
        end = (len(self.digests) + 1) * cache.page_tokens
        while end <= self.num_computed and self._is_text(end):
            parent = self.digests[-1] if self.digests else b""
            digest = prefix_digest(parent, self.token_ids[end - cache.page_tokens : end])
            cache.register(self.pages[len(self.digests)], digest)
            self.digests.append(digest)
            end += cache.page_tokens

    def _is_text(self, end: int) -> bool:
        return not self.spans or end <= self.spans[0].start

    def add_checkpoint(self, checkpoint: Checkpoint, answer_start: int | None = None) -> None:
        """Keep the newest checkpoint, thinning older ones.

        :data:`MAX_CHECKPOINTS` stay, and of an answer that began at ``answer_start``
        :data:`MAX_ANSWER_CHECKPOINTS`, the last one before it included.
        """
        kept = [*self.checkpoints, checkpoint]
        if answer_start is None:
            self.checkpoints = _thinned(kept, MAX_CHECKPOINTS)
            return
        num_before = sum(c.num_tokens <= answer_start for c in kept)
        at = max(0, num_before - 1)
        history, answer = kept[:at], kept[at:]
        self.checkpoints = _thinned(history, MAX_CHECKPOINTS)
        self.checkpoints += _thinned(answer, MAX_ANSWER_CHECKPOINTS)


def _thinned(checkpoints: list[Checkpoint], limit: int) -> list[Checkpoint]:
    """At most ``limit`` of them, the newest always.

    The one dropped leaves the smallest gap relative to its age, so that distances grow
    geometrically and a recent truncation computes little again.
    """
    kept = checkpoints.copy()
    while len(kept) > limit:
        newest = kept[-1].num_tokens
        starts = [0, *(c.num_tokens for c in kept)]
        gaps = [(starts[i + 2] - starts[i]) / (newest - starts[i]) for i in range(len(kept) - 1)]
        del kept[gaps.index(min(gaps))]
    return kept
