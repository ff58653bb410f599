"""One recogniser pass over a turn: a pure function from what was heard to what it says.

A :class:`PassJob` is cut loose from the turn's state on the engine thread, run on the parts thread
(it touches nothing else), and its :class:`PassResult` is applied on the engine thread. All times
are samples or ms since the start of the turn.

The stable-prefix policy: a word is *stable* once two passes in a row agree on it and on everything
before it, and another word has been heard after it (the last word of a pass may still grow).
Words agree when their letters and digits do; the later pass, which heard more, decides on commas
and capitals. Stable words are never taken back by a partial pass; a reading that disagrees with
them is repeated with them as its forced beginning. Only the final pass, which reads freely, may
revise them.

The window: past :data:`MAX_WINDOW_S` the audio up to a word boundary is *archived* with its words.
Behind a cut the next stable words are forced, so a cut never doubles or swallows a word.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from omni_encoders.features import SAMPLE_RATE_HZ
from omni_encoders.recogniser import HeardWindow, Transcript, Word
from omni_encoders.vad import FRAME_SAMPLES

MAX_WINDOW_S = 25.0
MIN_KEPT_S = 5.0  # audio that stays behind a cut: context for what comes
MIN_DROPPED_S = 8.0  # a cut must be worth it: two cuts are at least this far apart
_ANCHOR_WORDS = 4  # stable words forced behind a cut
# openai/whisper's rule for "this was no speech": unlikely to be speech and unsure of the text.
_NO_SPEECH_PROBABILITY = 0.6
_NO_SPEECH_LOGPROB = -1.0
_CUT_SLACK_FRAMES = 3  # word times are good to about 100 ms: look for the quiet frame around
_DISTANCE_COST = 0.02  # per frame away from the boundary: of two quiet frames the nearer
_LATE_CUT_BONUS = 0.3  # a cut at the window's end may be this much louder than one at its start
_SAMPLES_PER_MS = SAMPLE_RATE_HZ // 1000


class WindowReader(Protocol):
    """What a pass needs of :class:`omni_encoders.recogniser.Recogniser`."""

    @property
    def num_threads(self) -> int: ...

    def hear(self, audio: NDArray[np.float32], should_stop: Callable[[], bool]) -> HeardWindow: ...

    def read(
        self,
        window: HeardWindow,
        *,
        draft: Sequence[int],
        prefix: Sequence[int],
        should_stop: Callable[[], bool],
        language: str | None,
        careful: bool,
    ) -> Transcript: ...


@dataclass(frozen=True, slots=True)
class Reading:
    """What the passes have made of a turn so far; a value, replaced as a whole.

    ``archived`` words lie before ``origin_samples``, where the window begins; ``stable`` words and
    the ``tail`` behind them lie in the window. ``revision`` is the last pass's free reading of the
    window where it disagrees with ``stable``; None where it agrees. ``is_settled``: a final pass
    over the same audio would read the same.
    """

    origin_samples: int = 0
    archived: tuple[Word, ...] = ()
    stable: tuple[Word, ...] = ()
    tail: tuple[Word, ...] = ()
    revision: tuple[Word, ...] | None = None
    was_cut: bool = False
    language: str = "en"
    is_settled: bool = True


@dataclass(frozen=True, slots=True)
class PassResult:
    """What a pass found; ``cpu_s`` bounds its CPU time from above."""

    reading: Reading
    final: bool
    end_samples: int
    cpu_s: float


@dataclass(frozen=True, slots=True)
class PassJob:
    """A pass that is ready to run: ``audio`` [n] is the turn from the reading's origin on.

    ``probabilities`` [frames] are the voice activity of that audio, 32 ms each.
    """

    recogniser: WindowReader
    audio: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    reading: Reading
    final: bool
    end_samples: int
    language: str | None = None

    def run(self, should_stop: Callable[[], bool]) -> PassResult:
        """Recognise; safe on any thread, one job of a recogniser at a time.

        Raises:
            CancelledError: ``should_stop()`` became true; the turn is as if never asked.
        """
        started = time.thread_time()
        reading, audio, probabilities = self.reading, self.audio, self.probabilities
        longest = int(MAX_WINDOW_S * SAMPLE_RATE_HZ)
        while len(audio):
            cut = None
            if len(audio) > longest:
                cut = _cut_between(reading.stable, reading, probabilities, len(audio))
                if cut is None:  # nothing stable to cut at: read what fits, and cut there
                    head = audio[:longest]
                    reading = self._read(head, reading, should_stop)
                    words = (*reading.stable, *reading.tail)
                    cut = _cut_between(words, reading, probabilities, len(head))
                    cut = cut or _cut_anywhere(words, reading, probabilities, len(head))
            if cut is None:
                reading = self._read(audio, reading, should_stop)
                break
            reading = _archive(reading, cut)
            audio = audio[cut.samples :]
            probabilities = probabilities[cut.samples // FRAME_SAMPLES :]
        spent = (time.thread_time() - started) * self.recogniser.num_threads
        return PassResult(reading, self.final, self.end_samples, spent)

    def _read(
        self, audio: NDArray[np.float32], before: Reading, should_stop: Callable[[], bool]
    ) -> Reading:
        """One window: read freely, find what is stable, read the tail behind it."""
        window = self.recogniser.hear(audio, should_stop)
        anchor = before.stable[:_ANCHOR_WORDS] if before.was_cut else ()

        def read(prefix: Sequence[Word], draft: Sequence[Word]) -> Transcript:
            return self.recogniser.read(
                window,
                prefix=_tokens(prefix),
                draft=_tokens(draft),
                should_stop=should_stop,
                language=self.language,
                careful=self.final,
            )

        seen = (*before.stable, *before.tail)
        transcript = read(anchor, before.revision or seen)
        words = _placed(transcript, before.origin_samples)
        stable, num_stable = before.stable, len(before.stable)
        after = replace(
            before,
            language=transcript.language,
            revision=None,
            is_settled=transcript.is_settled,
        )
        if _num_agreed(words, stable) < num_stable:
            after = replace(after, revision=words)
            if self.final:
                return after
            words = _placed(read(stable, seen), before.origin_samples)
        if not self.final:  # a final pass reports and commits nothing: the user may go on
            num_agreed = min(_num_agreed(words, seen), len(words) - 1)
            stable = (*stable, *words[num_stable:num_agreed])
        return replace(after, stable=stable, tail=words[len(stable) :])


def _placed(transcript: Transcript, origin_samples: int) -> tuple[Word, ...]:
    """Words of ``transcript`` in turn time; none if it does not look like speech."""
    unlikely = transcript.no_speech_probability > _NO_SPEECH_PROBABILITY
    if unlikely and transcript.average_logprob < _NO_SPEECH_LOGPROB:
        return ()
    shift = origin_samples // _SAMPLES_PER_MS
    return tuple(
        replace(word, start_ms=word.start_ms + shift, end_ms=word.end_ms + shift)
        for word in transcript.words
    )


def _num_agreed(words: Sequence[Word], previous: Sequence[Word]) -> int:
    agreed = 0
    for word, other in zip(words, previous, strict=False):
        if word.text != other.text and _letters(word.text) != _letters(other.text):
            break
        agreed += 1
    return agreed


def _tokens(words: Sequence[Word]) -> list[int]:
    return [token for word in words for token in word.tokens]


def _letters(text: str) -> str:
    return "".join(char for char in text.casefold() if char.isalnum())


@dataclass(frozen=True, slots=True)
class _Cut:
    """Drop the window's first ``samples`` (a multiple of a frame) and first ``num_words``."""

    samples: int
    num_words: int


def _cut_between(
    words: Sequence[Word], reading: Reading, probabilities: NDArray[np.float32], num_samples: int
) -> _Cut | None:
    """The best cut between two of ``words``: little voice activity around it, and late.

    A late cut leaves a short window, which makes the passes behind it cheap.
    """
    earliest = int(MIN_DROPPED_S * SAMPLE_RATE_HZ)
    latest = num_samples - int(MIN_KEPT_S * SAMPLE_RATE_HZ)
    best, best_cost = None, np.inf
    for i, (left, right) in enumerate(itertools.pairwise(words)):
        middle = (left.end_ms + right.start_ms) // 2 * _SAMPLES_PER_MS - reading.origin_samples
        if not earliest <= middle <= latest:
            continue
        frame = middle // FRAME_SAMPLES
        frames = np.arange(frame - _CUT_SLACK_FRAMES, frame + _CUT_SLACK_FRAMES + 1)
        activity = probabilities[frames.clip(0, len(probabilities) - 1)]
        cost = float(activity.mean()) - _LATE_CUT_BONUS * middle / num_samples
        if cost < best_cost:
            nearby = activity + _DISTANCE_COST * np.abs(frames - frame)
            best = _Cut(int(frames[nearby.argmin()]) * FRAME_SAMPLES, i + 1)
            best_cost = cost
    return best


def _cut_anywhere(
    words: Sequence[Word], reading: Reading, probabilities: NDArray[np.float32], num_samples: int
) -> _Cut:
    """The quietest moment, whatever the words: for a window that gives no word boundary."""
    earliest = int(MIN_DROPPED_S * SAMPLE_RATE_HZ) // FRAME_SAMPLES
    latest = (num_samples - int(MIN_KEPT_S * SAMPLE_RATE_HZ)) // FRAME_SAMPLES
    quiet = probabilities[earliest:latest]
    samples = (earliest + int(quiet.argmin()) if len(quiet) else latest) * FRAME_SAMPLES
    at_ms = (reading.origin_samples + samples) // _SAMPLES_PER_MS
    return _Cut(samples, sum(1 for word in words if _middle_ms(word) < at_ms))


def _archive(reading: Reading, cut: _Cut) -> Reading:
    """Move the window's origin to the cut; the words before it will not be read again."""
    words = (*reading.stable, *reading.tail)
    dropped = words[: cut.num_words]
    num_stable = max(0, len(reading.stable) - cut.num_words)
    kept = words[cut.num_words :]
    return replace(
        reading,
        origin_samples=reading.origin_samples + cut.samples,
        archived=(*reading.archived, *dropped),
        stable=kept[:num_stable],
        tail=kept[num_stable:],
        revision=None,
        was_cut=True,
    )


def _middle_ms(word: Word) -> int:
    return (word.start_ms + word.end_ms) // 2
