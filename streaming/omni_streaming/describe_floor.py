"""Who has the floor: what is being said, whether the user talks, and how much we have talked.

Called by :mod:`omni_streaming.describe`. It sees to it that there are never two utterances at once,
that nobody is talked over, and that most of the time is left to the ears. Milliseconds on the
describer's own clock.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from omni_streaming.describe_settings import (
    AFTER_SPEECH_MS,
    AFTER_USER_MS,
    ANSWER_WAIT_MS,
    SHARE,
    SLOWEST_MS_PER_WORD,
    STALE_MS,
    WINDOW_MS,
    Kind,
    Speech,
)

MIN_TIMED_WORDS = 4
"""Shorter utterances say little about the pace: they are mostly pauses."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """What we asked to be said."""

    kind: Kind
    num_words: int
    asked_ms: int


class Floor:
    """The floor of one session."""

    def __init__(self) -> None:
        self.current: Speech | None = None
        """What is being said."""
        self.pending: Utterance | None = None
        """What we asked for and has not begun."""
        self.is_user_speaking = False
        self.last_kind: Speech | None = None
        """What was said last, or is being said."""
        self._own: Utterance | None = None  # what is being said, when we asked for it
        self._begun_ms = 0
        self._quiet_until_ms = self._answer_until_ms = 0
        self._spoken: deque[tuple[int, int]] = deque()  # (begun, ended) of what counts
        self._ms_per_word = float(SLOWEST_MS_PER_WORD)

    # --- What happens ----------------------------------------------------------------------------

    def user_speaks(self, is_speaking: bool, now_ms: int) -> None:
        """The user begins or stops; until it is known to whom they spoke we keep quiet."""
        if self.is_user_speaking and not is_speaking:
            self._quiet_until_ms = max(self._quiet_until_ms, now_ms + AFTER_USER_MS)
        self.is_user_speaking = is_speaking

    def wait_for_answer(self, now_ms: int) -> None:
        """The user asked the assistant something."""
        self._quiet_until_ms = self._answer_until_ms = now_ms + ANSWER_WAIT_MS

    def keep_quiet(self, until_ms: int) -> None:
        self._quiet_until_ms = until_ms

    def ask(self, kind: Kind, num_words: int, now_ms: int) -> None:
        """We asked for an utterance; whatever was being said is over."""
        self._end(now_ms)
        self.pending = Utterance(kind, num_words, now_ms)

    def began(self, kind: Speech, now_ms: int) -> bool:
        """Something begins to be heard; whether it is what we asked for."""
        self._end(now_ms)
        self.current = self.last_kind = kind
        self._begun_ms = now_ms
        if kind == "assistant":
            self._quiet_until_ms = self._answer_until_ms = now_ms  # the answer that was waited for
        if self.pending is not None and self.pending.kind == kind:
            self._own, self.pending = self.pending, None
        return self._own is not None

    def ended(self, now_ms: int) -> bool:
        """Silence; whether something of ours was said to its end (or what we know of it)."""
        was_ours = self._own is not None
        self._end(now_ms)
        return was_ours

    def lost(self, now_ms: int) -> bool:
        """Whether what we asked for never began, in which case it is forgotten."""
        if self.pending is None or now_ms - self.pending.asked_ms <= STALE_MS:
            return False
        self.pending = None
        return True

    def withdraw(self) -> None:
        """What we asked for is not wanted any more."""
        self.pending = None

    def _end(self, now_ms: int) -> None:
        if self.current is None:
            return
        own, self._own = self._own, None
        if own is not None and own.kind in ("change", "framing"):
            self._spoken.append((self._begun_ms, now_ms))
            if own.num_words >= MIN_TIMED_WORDS:
                pace = (now_ms - self._begun_ms) / own.num_words
                self._ms_per_word = max(0.5 * (self._ms_per_word + pace), SLOWEST_MS_PER_WORD, pace)
        if self.current == "assistant" or own is not None:
            self._quiet_until_ms = max(self._quiet_until_ms, now_ms + AFTER_SPEECH_MS)
        self.current = None

    # --- What may be said ------------------------------------------------------------------------

    @property
    def is_silent(self) -> bool:
        """Nothing is being said or about to be."""
        return self.current is None and self.pending is None

    @property
    def is_warning(self) -> bool:
        """A warning is being said or about to be."""
        return self.current == "hazard" or (
            self.pending is not None and self.pending.kind == "hazard"
        )

    @property
    def is_answer(self) -> bool:
        """An answer of ours is being said or about to be."""
        return self.current == "answer" or (
            self.pending is not None and self.pending.kind == "answer"
        )

    def is_assistants(self, now_ms: int) -> bool:
        """The assistant's model answers, or is about to."""
        return self.current == "assistant" or now_ms < self._answer_until_ms

    def may_describe(self, now_ms: int) -> bool:
        """Whether unasked words are welcome now, however many."""
        return self.is_silent and not self.is_user_speaking and now_ms >= self._quiet_until_ms

    def words_left(self, now_ms: int) -> int:
        """Words that keep our share of every window within its limit."""
        while self._spoken and self._spoken[0][1] <= now_ms - WINDOW_MS:
            self._spoken.popleft()
        start = now_ms - WINDOW_MS
        used_ms = sum(end - max(begun, start) for begun, end in self._spoken)
        return max(int((SHARE * WINDOW_MS - used_ms) / self._ms_per_word), 0)
