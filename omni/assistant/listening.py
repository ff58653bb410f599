"""One user turn: audio in, stable words out while the user speaks, the final text at the end.

Used by :mod:`omni.assistant.assistant` on the engine thread. Passes of the recogniser and scores of
the end-of-turn detector run as parts; their results are applied here. Knows nothing of the engine.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from omni_encoders.audio import HearingState, StreamingRecogniser
from omni_encoders.end_of_turn import EndOfTurn
from omni_encoders.passes import PassResult

from omni.assistant.priorities import PartPriority
from omni.errors import CancelledError
from omni.parts import Parts, Ticket
from omni.types import INPUT_RATE_HZ, AudioPart, Output, TranscriptDelta, TurnScore

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

SCORE_WINDOW_SAMPLES = 8 * INPUT_RATE_HZ
"""What smart-turn hears: the last 8 s (EndOfTurn pads what is shorter)."""

MAX_BACKLOG = 1
"""Partial passes are skipped while more parts than this are waiting: under load the final pass
does all the work, which is slower for one turn and right for everybody."""


WORDS_WEIGHT, SOUND_WEIGHT = 1.6, 0.25
NEUTRAL_COMPLETENESS = 0.05
"""End of turn by words and by sound, added as log-odds. Of 20 questions cut after every word the
0.5B backbone gave the end of the sentence a chance of at most 0.02 (0.09 and 0.48 once each), and
of at least 0.11 after the last word; smart-turn says 'finished' of 64% of clips cut at 55% of
their length (AUC 0.83), so it weighs little."""

WHOLE_QUESTION = 0.15
"""In place of the backbone's view, of words that are a whole question about a picture: little more
than the least that it gives after the last word, since "Is there a car" may go on "on the left"."""

FLOOR_OF_FINISHED_SOUND, FLOOR = 0.42, 0.25
"""However unfinished the words look (they may be misheard, and "Tell me a story" might go on
"about"), the score stays above this: semantic_vad then waits 1.2 s of its 4 s where the voice
sounds finished, longer than most pauses inside a sentence, and 2.3 s where it does not."""


def turn_score(acoustic: float | None, completeness: float | None) -> float:
    """Probability that a turn is finished, from its sound and from its words (None: not known)."""
    if completeness is None:
        return 0.5 if acoustic is None else acoustic
    odds = WORDS_WEIGHT * math.log(max(completeness, 1e-4) / NEUTRAL_COMPLETENESS)
    floor = FLOOR
    if acoustic is not None:
        clipped = min(max(acoustic, 0.02), 0.98)
        odds += SOUND_WEIGHT * math.log(clipped / (1 - clipped))
        floor = FLOOR_OF_FINISHED_SOUND if acoustic >= 0.5 else FLOOR
    return max(floor, 1 / (1 + math.exp(-odds)))


@dataclass(frozen=True, slots=True)
class Hearing:
    """The embedded default's ears."""

    recogniser: StreamingRecogniser
    end_of_turn: EndOfTurn


def sentence_case(text: str) -> str:
    """``text`` with a capital first letter: Whisper sometimes begins in lower case, and a small
    backbone answers what looks like a sentence better."""
    return text[:1].upper() + text[1:]


class Turn:
    """One turn of one session, from its first :class:`omni.types.Feed`."""

    def __init__(
        self,
        session_id: str,
        turn_id: str,
        hearing: Hearing,
        parts: Parts,
        *,
        emit: Callable[[Output], None],
        on_words: Callable[[], None],
        on_urgent: Callable[[], None],
        on_final: Callable[[Turn], None],
    ) -> None:
        self.session_id = session_id
        self.turn_id = turn_id
        self.stable_text = ""
        self.final_text = ""
        self.language = "en"
        self.is_final = False
        self.is_ended = False
        self._is_suspended = False
        self._hearing = hearing
        self._parts = parts
        self._emit = emit
        self._on_words = on_words
        self._on_urgent = on_urgent
        self._on_final = on_final
        self._state: HearingState = hearing.recogniser.open()
        self._recent: list[NDArray[np.float32]] = []
        self._num_samples = 0
        self._final_at_samples = -1
        self._pass: Ticket | None = None
        self._pass_is_final = False
        self._score: Ticket | None = None
        self._acoustic: float | None = None
        self._completeness: float | None = None

    @property
    def duration_ms(self) -> int:
        return self._num_samples * 1000 // INPUT_RATE_HZ

    def part(self) -> AudioPart:
        return AudioPart(self.turn_id)

    def feed(self, samples: NDArray[np.float32]) -> None:
        """Take the next samples [n] of the turn; may start a partial pass."""
        self._hearing.recogniser.feed(self._state, samples)
        self._recent.append(samples)
        self._num_samples += len(samples)
        while sum(map(len, self._recent[1:])) >= SCORE_WINDOW_SAMPLES:
            self._recent.pop(0)
        is_free = self._pass is None and self._parts.num_waiting <= MAX_BACKLOG
        if is_free and not self._is_suspended and self._hearing.recogniser.should_pass(self._state):
            self._start_pass(final=False)

    def score(self) -> None:
        """Ask the end-of-turn detector about the turn as it stands; a newer question replaces
        an older one."""
        if self._score is not None:
            self._score.cancel()
        self._acoustic = self._completeness = None
        audio = np.concatenate(self._recent)[-SCORE_WINDOW_SAMPLES:]
        at_ms = self.duration_ms

        def done(result: float | BaseException) -> None:
            self._score = None
            if isinstance(result, BaseException):
                if not isinstance(result, CancelledError):
                    logger.error("end-of-turn score failed: %s", result)
                return
            self._acoustic = result
            self._emit_score(at_ms)

        self._score = self._parts.submit(
            PartPriority.TURN_SCORE, lambda _: self._hearing.end_of_turn.score(audio), done
        )

    def complete(self, probability: float) -> None:
        """The backbone's view: ``probability`` that a sentence ends after the words so far."""
        self._completeness = probability
        self._emit_score(self.duration_ms)

    def _emit_score(self, at_ms: int) -> None:
        score = turn_score(self._acoustic, self._completeness)
        self._emit(TurnScore(self.session_id, self.turn_id, score, at_ms))

    def hear_to_the_end(self) -> None:
        """Run a final pass over the audio so far; ``on_final`` is called with its text."""
        if self.is_final and self._final_at_samples == self._num_samples:
            self._on_final(self)
            return
        if self._pass is not None:
            if self._pass_is_final and self._final_at_samples == self._num_samples:
                return
            self._pass.cancel()
            self._hearing.recogniser.abandon(self._state)
        self.is_final = False
        self._is_suspended = True
        self._on_urgent()
        self._start_pass(final=True)

    def give_way(self) -> None:
        """Somebody waits for a final pass: a partial one of this turn can be had later."""
        if self._pass is not None and not self._pass_is_final:
            self._pass.cancel()
            self._pass = None
            self._hearing.recogniser.abandon(self._state)

    def resume(self) -> None:
        """The user went on after all: partial passes make sense again."""
        self._is_suspended = False

    def finish(self) -> None:
        """Nothing more will be fed: find the final text."""
        self.is_ended = True
        self.hear_to_the_end()

    def drop(self) -> None:
        """Forget the turn; results under way are ignored."""
        for ticket in (self._pass, self._score):
            if ticket is not None:
                ticket.cancel()
        self._pass = self._score = None

    def _start_pass(self, *, final: bool) -> None:
        job = self._hearing.recogniser.prepare(self._state, final=final)
        self._pass_is_final = final
        if final:
            self._final_at_samples = self._num_samples
        ticket: Ticket

        def done(result: PassResult | BaseException) -> None:
            if self._pass is not ticket:  # replaced or dropped
                return
            self._pass = None
            if isinstance(result, BaseException):
                self._hearing.recogniser.abandon(self._state)
                if isinstance(result, CancelledError):
                    return
                logger.error("recogniser pass failed: %s", result)
                if final:
                    self._settle("")
                return
            self._apply(result, final=final)

        priority = PartPriority.FINAL_PASS if final else PartPriority.PARTIAL_PASS
        ticket = self._parts.submit(priority, job.run, done)
        self._pass = ticket

    def _apply(self, result: PassResult, *, final: bool) -> None:
        heard = self._hearing.recogniser.apply(self._state, result)
        self.language = heard.language
        if final:
            self._settle(heard.text)
            return
        for span in heard.new_spans:
            text = span.text if self.stable_text else sentence_case(span.text)
            self.stable_text += text
            self._emit(TranscriptDelta(self.session_id, self.turn_id, text))
        if heard.new_spans:
            self._on_words()

    def _settle(self, text: str) -> None:
        self.final_text = sentence_case(text.strip())
        self.is_final = True
        self._on_final(self)
