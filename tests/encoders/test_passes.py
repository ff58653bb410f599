"""The stable-prefix policy and the moving window, over a recogniser that reads from a script."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from audio_samples import RATE_HZ, Audio
from omni_encoders.audio import HearingState, Pass, StreamingRecogniser
from omni_encoders.passes import MAX_WINDOW_S
from omni_encoders.recogniser import Transcript, Word
from omni_encoders.vad import FRAME_SAMPLES, VadState

from omni.errors import CancelledError

FRAME_MS = 32
WORD_MS = 400


class LoudnessVoice:
    """Voice activity that is simply loudness: what is spoken is decided by the test."""

    def open(self) -> VadState:
        return VadState()

    def probability(self, frame: Audio, state: VadState) -> float:
        return float(np.abs(frame).max())


@dataclass
class ScriptedRecogniser:
    """Reads the next scripted line, one word per 400 ms, behind the forced prefix.

    Without lines it counts: word i of the turn is said at i * 400 ms (see ``speak_seconds``).
    """

    lines: list[str]
    num_threads: int = 1
    durations_s: list[float] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    careful: list[bool] = field(default_factory=list)
    is_sure: bool = True
    vocabulary: list[str] = field(default_factory=list)
    line: str = ""

    def hear(self, audio: Audio, should_stop: Callable[[], bool]) -> int:
        self.durations_s.append(len(audio) / RATE_HZ)
        if should_stop():
            raise CancelledError("stopped")
        self.line = self.lines.pop(0) if self.lines else counted(audio)
        return len(audio)

    def read(
        self,
        window: int,
        *,
        draft: Sequence[int],
        prefix: Sequence[int],
        should_stop: Callable[[], bool],
        language: str | None,
        careful: bool,
    ) -> Transcript:
        self.careful.append(careful)
        forced = [self.vocabulary[token] for token in prefix]
        self.prefixes.append("".join(forced))
        texts = [" " + word for word in self.line.split()]
        if forced and forced[-1] in texts:  # a decoder goes on from where its prefix ends
            texts = [*forced, *texts[texts.index(forced[-1]) + 1 :]]
        else:
            texts[: len(forced)] = forced
        words = tuple(
            Word(text, i * WORD_MS, (i + 1) * WORD_MS, 0.9, (self._token(text),))
            for i, text in enumerate(texts)
        )
        return Transcript(
            tokens=(),
            text="".join(texts).strip(),
            words=words,
            language="en",
            no_speech_probability=0.0,
            average_logprob=-0.1,
            is_repetitive=False,
            num_forward_passes=1,
            is_settled=careful or self.is_sure,
        )

    def _token(self, text: str) -> int:
        self.vocabulary.append(text)
        return len(self.vocabulary) - 1


def counted(audio: Audio) -> str:
    """The words w0, w1, ... of which ``audio`` holds at least half."""
    first_s, last_s = ((float(level) - 0.5) * 100 for level in (audio[0], audio[-1]))
    first, last = round(first_s * 1000 / WORD_MS), round(last_s * 1000 / WORD_MS)
    return numbered(first, last - 1)


def numbered(first: int, last: int) -> str:
    return " ".join(f"w{i}" for i in range(first, last + 1))


def speak_seconds(stream: StreamingRecogniser, state: HearingState, seconds: float) -> None:
    """Speech whose level tells its time, for a recogniser that counts."""
    start, n = state.num_samples, int(seconds * RATE_HZ)
    times_s = np.arange(start, start + n) / RATE_HZ
    stream.feed(state, np.asarray(0.5 + times_s / 100, dtype=np.float32))


def open_stream(*lines: str) -> tuple[StreamingRecogniser, HearingState, ScriptedRecogniser]:
    recogniser = ScriptedRecogniser(list(lines))
    stream = StreamingRecogniser(recogniser, LoudnessVoice())
    return stream, stream.open(start_ms=5000), recogniser


def speak(stream: StreamingRecogniser, state: HearingState, seconds: float) -> None:
    stream.feed(state, np.full(int(seconds * RATE_HZ), 0.9, dtype=np.float32))


def pause(stream: StreamingRecogniser, state: HearingState, seconds: float) -> None:
    stream.feed(state, np.zeros(int(seconds * RATE_HZ), dtype=np.float32))


def next_pass(stream: StreamingRecogniser, state: HearingState, *, final: bool = False) -> Pass:
    speak(stream, state, 0.6)
    return stream.run_pass(state, final=final)


def stable(heard: Pass) -> str:
    return "".join(span.text for span in heard.new_spans)


def test_words_become_stable_when_two_passes_agree_but_never_the_last_one() -> None:
    stream, state, _ = open_stream("what is", "what is the", "what is the capital off")
    first, second, third = (next_pass(stream, state) for _ in range(3))
    assert (stable(first), first.tail and first.tail.text) == ("", "what is")
    assert (stable(second), second.tail and second.tail.text) == ("what is", " the")
    assert (stable(third), third.tail and third.tail.text) == (" the", " capital off")
    assert third.text == "what is the capital off"


def test_the_later_pass_decides_on_commas_and_capitals() -> None:
    stream, state, _ = open_stream("yes.", "Yes, please", "Yes, please. and")
    texts = [stable(next_pass(stream, state)) for _ in range(3)]
    assert texts == ["", "Yes,", " please."]


def test_stable_words_are_forced_on_a_pass_that_disagrees() -> None:
    stream, state, recogniser = open_stream(
        "I scream for", "I scream for more", "ice cream is very", "ice cream is very nice"
    )
    given = "".join(stable(next_pass(stream, state)) for _ in range(2))
    assert given == "I scream for"
    third = next_pass(stream, state)
    assert recogniser.prefixes[-1] == " I scream for"
    assert stable(third) == ""
    assert third.text == "I scream for very"
    assert not third.revised
    fourth = next_pass(stream, state)
    assert fourth.text == "I scream for very nice"
    assert stable(fourth) == " very"


def test_the_final_pass_may_revise_stable_words() -> None:
    stream, state, recogniser = open_stream(
        "I scream for", "I scream for more", "ice cream for all of us"
    )
    next_pass(stream, state)
    next_pass(stream, state)
    final = next_pass(stream, state, final=True)
    assert recogniser.prefixes[-1] == ""
    assert final.revised
    assert final.text == stable(final) == "ice cream for all of us"
    assert final.tail is None


def test_the_final_pass_gives_the_rest_when_nothing_is_revised() -> None:
    stream, state, _ = open_stream("turn on", "turn on the", "Turn on the light.")
    next_pass(stream, state)
    next_pass(stream, state)
    final = next_pass(stream, state, final=True)
    assert not final.revised
    assert stable(final) == " the light."
    assert final.text == "turn on the light."


def test_a_final_pass_commits_nothing_if_the_user_goes_on() -> None:
    stream, state, _ = open_stream(
        "set a timer", "set a timer", "set a timer.", "set a timer for ten", "set a timer for ten m"
    )
    next_pass(stream, state)
    before = stable(next_pass(stream, state))
    assert before == "set a"
    assert stable(next_pass(stream, state, final=True)) == " timer."
    after = next_pass(stream, state)
    assert stable(after) == " timer"
    assert before + stable(after) + stable(next_pass(stream, state)) == "set a timer for ten"


def test_a_final_pass_without_new_speech_costs_nothing() -> None:
    stream, state, recogniser = open_stream("good morning")
    speak(stream, state, 1.0)
    pause(stream, state, 0.2)
    partial = stream.run_pass(state, final=False)
    pause(stream, state, 3.0)
    final = stream.run_pass(state, final=True)
    assert final.text == partial.text == "good morning"
    assert stable(final) == "good morning"
    assert len(recogniser.durations_s) == 1


def test_an_unsure_partial_pass_is_repeated_with_care_at_the_end() -> None:
    stream, state, recogniser = open_stream("callous knowledge", "tallest mountain")
    recogniser.is_sure = False
    speak(stream, state, 1.0)
    pause(stream, state, 0.2)
    assert stream.run_pass(state, final=False).text == "callous knowledge"
    assert stream.run_pass(state, final=True).text == "tallest mountain"
    assert stream.run_pass(state, final=True).text == "tallest mountain"
    assert recogniser.careful == [False, True]


def test_a_pass_that_ended_within_a_word_is_repeated_at_the_end() -> None:
    stream, state, recogniser = open_stream("good morn", "good morning")
    speak(stream, state, 1.0)
    stream.run_pass(state, final=False)
    pause(stream, state, 0.5)
    assert stream.run_pass(state, final=True).text == "good morning"
    assert len(recogniser.durations_s) == 2


def test_silence_around_the_speech_is_not_recognised() -> None:
    stream, state, recogniser = open_stream("hello there")
    pause(stream, state, 4.0)
    speak(stream, state, 1.0)
    pause(stream, state, 5.0)
    heard = stream.run_pass(state, final=True)
    assert recogniser.durations_s == [pytest.approx(0.5 + 1.0 + 0.4, abs=0.1)]
    (span,) = heard.new_spans
    assert span.start_ms == pytest.approx(5000 + 3500, abs=2 * FRAME_MS)


def test_audio_without_voice_is_never_recognised() -> None:
    stream, state, recogniser = open_stream()
    pause(stream, state, 3.0)
    speak(stream, state, 0.03)  # a click
    pause(stream, state, 1.0)
    assert not stream.should_pass(state)
    heard = stream.run_pass(state, final=True)
    assert heard.text == ""
    assert heard.new_spans == ()
    assert recogniser.durations_s == []


def test_a_pass_is_due_after_half_a_second_of_new_speech() -> None:
    stream, state, _ = open_stream("well", "well I")
    speak(stream, state, 0.4)
    assert not stream.should_pass(state)
    speak(stream, state, 0.2)
    assert stream.should_pass(state)
    job = stream.prepare(state, final=False)
    speak(stream, state, 2.0)
    assert not stream.should_pass(state)  # one at a time
    stream.apply(state, job.run(lambda: False))
    assert stream.should_pass(state)
    stream.run_pass(state, final=False)
    pause(stream, state, 5.0)
    assert not stream.should_pass(state)


def test_a_cancelled_pass_leaves_the_turn_as_it_was() -> None:
    stream, state, _ = open_stream("one", "one two three")
    next_pass(stream, state)
    before = state.reading
    speak(stream, state, 0.6)
    job = stream.prepare(state, final=False)
    with pytest.raises(CancelledError):
        job.run(lambda: True)
    stream.abandon(state)
    assert state.reading is before
    assert stream.run_pass(state, final=True).text == "one two three"


def test_a_job_hears_only_what_was_fed_before_it() -> None:
    stream, state, recogniser = open_stream("one")
    speak(stream, state, 1.0)
    job = stream.prepare(state, final=False)
    audio = job.audio.copy()
    for _ in range(20):
        speak(stream, state, 1.0)
    np.testing.assert_array_equal(job.audio, audio)
    job.run(lambda: False)
    assert recogniser.durations_s == [pytest.approx(1.0, abs=0.05)]


def test_past_the_longest_window_stable_audio_is_dropped_without_losing_a_word() -> None:
    stream, state, recogniser = open_stream()
    given = ""
    for _ in range(60):
        speak_seconds(stream, state, 0.8)
        if stream.should_pass(state):
            heard = stream.run_pass(state, final=False)
            given += stable(heard)
            assert heard.tail is not None
            assert heard.text == given + heard.tail.text
            assert heard.tail.end_ms == pytest.approx(5000 + state.num_samples / 16, abs=500)
    final = stream.run_pass(state, final=True)
    assert final.text == numbered(0, 48_000 // WORD_MS - 1)
    assert not final.revised
    assert max(recogniser.durations_s) <= MAX_WINDOW_S
    assert state.reading.origin_samples > 20 * RATE_HZ
    assert state.num_samples - state.audio_start < MAX_WINDOW_S * RATE_HZ
    assert len(recogniser.prefixes[-1].split()) == 4  # stable words anchor what follows a cut


def test_a_cut_within_a_word_neither_doubles_nor_swallows_it() -> None:
    stream, state, recogniser = open_stream()
    for _ in range(31):
        speak_seconds(stream, state, 0.8)
        stream.run_pass(state, final=False)
    speak_seconds(stream, state, 0.8)
    job = stream.prepare(state, final=False)
    first_kept: list[str] = []

    def stutter(audio: Audio, should_stop: Callable[[], bool]) -> int:
        """Hears the last word before the cut once more."""
        window = ScriptedRecogniser.hear(recogniser, audio, should_stop)
        first_kept.append(recogniser.line.split()[0])
        recogniser.line = f"w{int(first_kept[0][1:]) - 1} {recogniser.line}"
        return window

    recogniser.hear = stutter  # type: ignore[method-assign]
    heard = stream.apply(state, job.run(lambda: False))
    assert int(first_kept[0][1:]) > 20
    assert heard.text == numbered(0, 63)


def test_long_audio_heard_in_one_go_is_read_window_by_window() -> None:
    stream, state, recogniser = open_stream()
    speak_seconds(stream, state, 48.0)
    heard = stream.run_pass(state, final=True)
    assert heard.text == numbered(0, 48_000 // WORD_MS - 1)
    assert max(recogniser.durations_s) <= MAX_WINDOW_S
    assert len(recogniser.durations_s) == 3
    again = stream.run_pass(state, final=True)
    assert again.text == heard.text
    assert len(recogniser.durations_s) == 3


def test_frames_are_judged_once_whatever_the_chunks() -> None:
    audio = np.linspace(0, 0.9, 40 * FRAME_SAMPLES + 77, dtype=np.float32)
    results = []
    for size in (1, 160, 4801, len(audio)):
        stream, state, _ = open_stream()
        for start in range(0, len(audio), size):
            stream.feed(state, audio[start : start + size])
        kept = state.audio[: state.num_samples]
        results.append((state.probabilities, state.last_voiced_samples, kept.tolist()))
    assert all(result == results[0] for result in results)
    assert len(results[0][0]) == 40
