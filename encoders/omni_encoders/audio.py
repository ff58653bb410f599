"""Streaming hearing: audio of a turn goes in, stable text comes out while the user speaks.

The caller owns the threads. On the engine thread: ``feed``, ``should_pass``, ``prepare`` and
``apply`` of :class:`StreamingRecogniser`, all cheap. On the parts thread: ``job.run(should_stop)``.
One job of a turn is out at a time; one that was cancelled is ``abandon``-ed and never applied::

    hearing.feed(state, samples)
    if hearing.should_pass(state):
        job = hearing.prepare(state, final=False)
        result = job.run(should_stop)              # parts thread
        heard = hearing.apply(state, result)

What is stable, and how the window moves, is told in :mod:`omni_encoders.passes`.
Audio without voice activity is never recognised: Whisper invents words for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from omni.types import TextSpan
from omni_encoders.features import SAMPLE_RATE_HZ
from omni_encoders.passes import PassJob, PassResult, Reading, WindowReader
from omni_encoders.recogniser import MIN_WINDOW_S, Word
from omni_encoders.vad import FRAME_SAMPLES, VadState, VoiceActivity

PASS_EVERY_MS = 500  # new speech between two partial passes
VOICED_PROBABILITY = 0.3  # below the turn detector's: rather hear too much than lose a word
MIN_VOICED_FRAMES = 3  # 96 ms: less is a click
LEAD_MS = 500  # audio kept before the first voiced frame
TRAIL_MS = 400  # audio kept behind the last voiced frame
SETTLED_MS = 100  # a pass that heard this much behind the last voiced frame has heard it all
_SAMPLES_PER_MS = SAMPLE_RATE_HZ // 1000
_SHORTEST_WINDOW_SAMPLES = int(MIN_WINDOW_S * SAMPLE_RATE_HZ)


@dataclass(slots=True)
class HearingState:
    """One turn's audio, voice activity and text. Owned by the engine thread.

    ``audio`` [capacity] holds the turn from ``audio_start`` on, ``num_samples`` have been fed in
    all; ``probabilities`` [frames] cover the whole turn, 32 ms each.
    """

    start_ms: int
    vad: VadState
    audio: NDArray[np.float32] = field(
        default_factory=lambda: np.empty(4 * SAMPLE_RATE_HZ, dtype=np.float32)
    )
    audio_start: int = 0
    num_samples: int = 0
    probabilities: list[float] = field(default_factory=list)
    num_voiced_frames: int = 0
    first_voiced_samples: int = 0
    last_voiced_samples: int = 0  # end of the last voiced frame
    reading: Reading = field(default_factory=Reading)
    num_emitted_words: int = 0
    passed_samples: int = 0  # where the last applied pass's audio ended
    has_pass_running: bool = False
    num_passes: int = 0
    cpu_s: float = 0.0

    @property
    def has_speech(self) -> bool:
        return self.num_voiced_frames >= MIN_VOICED_FRAMES

    @property
    def cpu_s_per_audio_s(self) -> float:
        """CPU time of all passes, bounded from above, per second of audio fed."""
        return self.cpu_s * SAMPLE_RATE_HZ / max(1, self.num_samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What a pass changed.

    Attributes:
        new_spans: newly stable text, or, when ``revised``, all of the turn's text anew.
        tail: text that may still change; None in a final pass.
        text: the transcript of the turn so far, tail included.
        revised: a final pass disagrees with spans that were given out as stable.
        language: code of the language that was heard.
        cpu_s: CPU time of this pass, bounded from above.
    """

    new_spans: tuple[TextSpan, ...]
    tail: TextSpan | None
    text: str
    revised: bool
    final: bool
    language: str
    cpu_s: float


class StreamingRecogniser:
    """Streaming recognition over one shared recogniser and voice-activity network."""

    def __init__(
        self,
        recogniser: WindowReader,
        voice: VoiceActivity,
        *,
        pass_every_ms: int = PASS_EVERY_MS,
        language: str | None = None,
    ) -> None:
        """``language`` None: English unless another is clearly heard."""
        self._recogniser = recogniser
        self._voice = voice
        self._pass_every_samples = pass_every_ms * _SAMPLES_PER_MS
        self._language = language

    def open(self, start_ms: int = 0) -> HearingState:
        """State of a new turn whose audio begins at ``start_ms`` on the session's clock."""
        return HearingState(start_ms=start_ms, vad=self._voice.open())

    def feed(self, state: HearingState, samples: NDArray[np.float32]) -> None:
        """Append ``samples`` [n], 16 kHz, of any length; about 1% of their duration on one core."""
        used = state.num_samples - state.audio_start
        needed = used + len(samples)
        if needed > len(state.audio):
            grown = np.empty(max(needed, 2 * len(state.audio)), dtype=np.float32)
            grown[:used] = state.audio[:used]
            state.audio = grown
        state.audio[used:needed] = samples
        state.num_samples += len(samples)
        frame_start = len(state.probabilities) * FRAME_SAMPLES
        while frame_start + FRAME_SAMPLES <= state.num_samples:
            at = frame_start - state.audio_start
            frame = state.audio[at : at + FRAME_SAMPLES]
            probability = self._voice.probability(frame, state.vad)
            state.probabilities.append(probability)
            if probability >= VOICED_PROBABILITY:
                if state.num_voiced_frames == 0:
                    state.first_voiced_samples = frame_start
                state.num_voiced_frames += 1
                state.last_voiced_samples = frame_start + FRAME_SAMPLES
            frame_start += FRAME_SAMPLES

    def should_pass(self, state: HearingState) -> bool:
        """Whether a partial pass is due: enough new speech, and no pass is running.

        The caller may skip it under load; the next one then hears more.
        """
        if state.has_pass_running or not state.has_speech:
            return False
        heard_until = max(state.passed_samples, state.first_voiced_samples)
        window = state.num_samples - state.reading.origin_samples
        stretch = max(1.0, window / _SHORTEST_WINDOW_SAMPLES)  # a longer window costs more a pass
        return state.last_voiced_samples - heard_until >= self._pass_every_samples * stretch

    def prepare(self, state: HearingState, *, final: bool) -> PassJob:
        """A job over the audio so far, cut loose from ``state`` (a copy of at most the window).

        A final job whose audio was all heard by the last pass, surely, has nothing left to run.
        """
        reading = state.reading
        origin = reading.origin_samples
        if not (
            reading.stable or reading.tail or reading.was_cut
        ):  # nothing read yet: drop the silence
            lead = (state.first_voiced_samples - LEAD_MS * _SAMPLES_PER_MS) // FRAME_SAMPLES
            origin = max(origin, lead * FRAME_SAMPLES, state.audio_start)
            reading = Reading(origin_samples=origin)
        end = min(state.num_samples, state.last_voiced_samples + TRAIL_MS * _SAMPLES_PER_MS)
        has_heard_all = state.passed_samples >= min(
            state.num_samples, state.last_voiced_samples + SETTLED_MS * _SAMPLES_PER_MS
        )
        if not state.has_speech or (final and has_heard_all and reading.is_settled):
            end = origin
        at = origin - state.audio_start
        audio = state.audio[at : max(at, end - state.audio_start)].copy()
        state.has_pass_running = True
        return PassJob(
            recogniser=self._recogniser,
            audio=audio,
            probabilities=np.array(state.probabilities[origin // FRAME_SAMPLES :], np.float32),
            reading=reading,
            final=final,
            end_samples=max(end, state.passed_samples),
            language=self._language,
        )

    def abandon(self, state: HearingState) -> None:
        """The prepared job was cancelled or dropped: another may be prepared."""
        state.has_pass_running = False

    def apply(self, state: HearingState, result: PassResult) -> Pass:
        """Take over what a job found; must be the job that was prepared last.

        A final pass reports and commits nothing: if the user goes on, partial passes continue from
        the words that were stable before it.
        """
        reading = result.reading
        state.has_pass_running = False
        state.num_passes += 1
        state.cpu_s += result.cpu_s
        state.passed_samples = result.end_samples
        state.reading = reading
        self._forget_audio(state)
        given = (*reading.archived, *reading.stable)
        whole = (*given, *reading.tail)
        num_emitted = state.num_emitted_words
        revised, tail = False, None
        if not result.final:
            state.num_emitted_words = len(given)
            new = given[num_emitted:]
            tail = self._span(state, reading.tail, final=False, is_first=not given)
        elif reading.revision is not None:
            whole = (*reading.archived, *reading.revision)
            new, revised = whole, True
        else:
            new = whole[num_emitted:]
        span = self._span(state, new, final=True, is_first=revised or num_emitted == 0)
        return Pass(
            new_spans=(span,) if span else (),
            tail=tail,
            text="".join(word.text for word in whole).strip(),
            revised=revised,
            final=result.final,
            language=reading.language,
            cpu_s=result.cpu_s,
        )

    def run_pass(
        self, state: HearingState, *, final: bool, should_stop: Callable[[], bool] = lambda: False
    ) -> Pass:
        """Prepare, run and apply on the calling thread: for tools and tests."""
        return self.apply(state, self.prepare(state, final=final).run(should_stop))

    def _forget_audio(self, state: HearingState) -> None:
        """Drop audio before the window."""
        num_dropped = state.reading.origin_samples - state.audio_start
        if num_dropped > 0:
            kept = state.num_samples - state.reading.origin_samples
            state.audio[:kept] = state.audio[num_dropped : num_dropped + kept].copy()
            state.audio_start = state.reading.origin_samples

    def _span(
        self, state: HearingState, words: Sequence[Word], *, final: bool, is_first: bool
    ) -> TextSpan | None:
        """One span of ``words``; the first span of a turn has no leading space."""
        text = "".join(word.text for word in words)
        text = text.lstrip() if is_first else text
        if not text:
            return None
        return TextSpan(
            text=text,
            start_ms=state.start_ms + words[0].start_ms,
            end_ms=state.start_ms + words[-1].end_ms,
            final=final,
            confidence=sum(word.confidence for word in words) / len(words),
        )
