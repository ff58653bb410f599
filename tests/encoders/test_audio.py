"""Streaming on the real weights."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from audio_samples import RATE_HZ, Audio, Say, noise, silence
from omni_encoders.audio import HearingState, Pass, StreamingRecogniser
from omni_encoders.recogniser import Recogniser

pytestmark = pytest.mark.weights

SENTENCE = "The children played in the garden until it was dark."
CHUNK = 1600


def letters(text: str) -> list[str]:
    return re.sub(r"[^a-z0-9 ]", "", text.lower()).split()


def stream_through(
    hearing: StreamingRecogniser, audio: Audio, chunk: int = CHUNK
) -> tuple[HearingState, list[Pass]]:
    state = hearing.open()
    passes = []
    for start in range(0, len(audio), chunk):
        hearing.feed(state, audio[start : start + chunk])
        if hearing.should_pass(state):
            passes.append(hearing.run_pass(state, final=False))
    passes.append(hearing.run_pass(state, final=True))
    return state, passes


def test_the_stream_ends_with_what_one_pass_hears(
    hearing: StreamingRecogniser, recogniser: Recogniser, say: Say
) -> None:
    audio = say(SENTENCE)
    _, passes = stream_through(hearing, audio)
    assert letters(passes[-1].text) == letters(recogniser.transcribe(audio).text)
    assert letters(passes[-1].text) == letters(SENTENCE)
    assert passes[-1].final


def test_stable_text_only_grows_and_most_of_it_comes_before_the_end(
    hearing: StreamingRecogniser, say: Say
) -> None:
    _, passes = stream_through(hearing, say(SENTENCE))
    given = ""
    for heard in passes[:-1]:
        given += "".join(span.text for span in heard.new_spans)
        assert heard.text == (given + (heard.tail.text if heard.tail else "")).strip()
        assert all(span.final for span in heard.new_spans)
    assert len(letters(given)) >= len(letters(SENTENCE)) // 2
    assert passes[-1].revised or passes[-1].text.startswith(given)


def test_spans_follow_each_other_in_time(hearing: StreamingRecogniser, say: Say) -> None:
    _, passes = stream_through(hearing, say(SENTENCE))
    spans = [span for heard in passes for span in heard.new_spans]
    for before, after in itertools.pairwise(spans):
        assert before.start_ms <= before.end_ms <= after.start_ms + 300
    assert spans[-1].end_ms <= len(say(SENTENCE)) * 1000 / RATE_HZ + 20


@pytest.mark.parametrize("audio", [silence(4), noise(4, 0.05)], ids=["silence", "noise"])
def test_non_speech_yields_no_words(hearing: StreamingRecogniser, audio: Audio) -> None:
    state, passes = stream_through(hearing, audio)
    assert [heard.text for heard in passes] == [""]
    assert state.num_passes == 1
    assert state.cpu_s < 0.05


def test_cost_per_second_of_audio_is_accounted(hearing: StreamingRecogniser, say: Say) -> None:
    state, passes = stream_through(hearing, say(SENTENCE))
    assert state.cpu_s == pytest.approx(sum(heard.cpu_s for heard in passes))
    assert 0 < state.cpu_s_per_audio_s < 10


@pytest.mark.slow
@pytest.mark.slow
def test_a_long_turn_neither_loses_nor_doubles_words(
    hearing: StreamingRecogniser, say: Say
) -> None:
    sentences = (
        SENTENCE,
        "Could you tell me when the next train to London leaves?",
        "She bought seven apples, two lemons and a loaf of bread.",
        "My brother works in a small museum near the river.",
    )
    order = [0, 1, 2, 3, 1, 3, 0, 2, 3, 2, 1, 0, 2, 0, 3, 1]
    audio = np.concatenate([part for i in order for part in (say(sentences[i]), silence(0.2))])
    assert len(audio) > 50 * RATE_HZ
    state, passes = stream_through(hearing, audio)
    text = passes[-1].text.lower().replace("7", "seven").replace("2", "two")
    assert letters(text) == letters(" ".join(sentences[i] for i in order))
    assert max(len(heard.text) for heard in passes) == len(passes[-1].text)
    assert len(state.audio) < 60 * RATE_HZ
