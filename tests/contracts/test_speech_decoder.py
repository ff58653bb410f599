"""Every speech decoder behind the one contract; kokoro's run is slow and needs its weights."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from omni.config import Config, home
from omni.errors import InputError, ModelError
from omni.speech.contract import SpeechChunk, SpeechDecoder, SpeechStream
from omni.speech.registry import open_decoder
from omni.types import OUTPUT_RATE_HZ, Mark

TEXT = "The train leaves at 7:45, so please be there early. It takes 90 minutes."


@pytest.fixture(
    scope="module",
    params=["hibari", pytest.param("kokoro-82m", marks=[pytest.mark.slow, pytest.mark.weights])],
)
def decoder(request: pytest.FixtureRequest) -> SpeechDecoder:
    name: str = request.param
    try:
        return open_decoder(name, home(Config()))
    except ModelError as error:
        if name == "hibari":
            raise
        pytest.skip(f"{error}")


def start(decoder: SpeechDecoder, speed: float = 1.0) -> SpeechStream:
    return decoder.open(voice=decoder.voices[0], speed=speed)


def speak(stream: SpeechStream, *texts: str) -> list[SpeechChunk]:
    def chunks() -> Iterator[SpeechChunk]:
        for text in texts:
            yield from stream.push(text)
        yield from stream.flush()

    return list(chunks())


def pcm_of(chunks: list[SpeechChunk]) -> bytes:
    return b"".join(chunk.pcm for chunk in chunks)


def marks_of(chunks: list[SpeechChunk]) -> list[Mark]:
    return [mark for chunk in chunks for mark in chunk.marks]


def check_marks(chunks: list[SpeechChunk], text: str) -> None:
    """The contract's promises about marks."""
    position, last = 0, Mark(0, 0)
    for chunk in chunks:
        end = position + len(chunk.pcm) // 2
        for mark in chunk.marks:
            assert position <= mark.sample <= end
            assert mark.sample >= last.sample
            assert mark.num_chars > last.num_chars
            last = mark
        position = end
    assert last.num_chars == len(text)


def test_speech_is_audible_pcm_at_the_output_rate(decoder: SpeechDecoder) -> None:
    assert decoder.sample_rate_hz == OUTPUT_RATE_HZ
    chunks = speak(start(decoder), TEXT)
    samples = np.frombuffer(pcm_of(chunks), "<i2")
    assert 4.0 < len(samples) / OUTPUT_RATE_HZ < 8.0
    assert 3000 < np.abs(samples).max() < 32767
    check_marks(chunks, TEXT)


def test_marks_stand_at_word_ends(decoder: SpeechDecoder) -> None:
    marks = marks_of(speak(start(decoder), TEXT))
    words = {len(TEXT[:end]) for end, c in enumerate(TEXT + " ") if c == " "}
    assert {mark.num_chars for mark in marks} <= words
    assert len(marks) >= 0.8 * len(words)


def test_any_chunking_gives_the_same_speech(decoder: SpeechDecoder) -> None:
    whole = speak(start(decoder), TEXT)
    letters = speak(start(decoder), *TEXT)
    words = speak(start(decoder), *TEXT.replace(" ", "\0 ").split("\0"))
    assert pcm_of(whole) == pcm_of(letters) == pcm_of(words)
    assert marks_of(whole) == marks_of(letters) == marks_of(words)


def test_the_first_clause_is_spoken_before_the_text_ends(decoder: SpeechDecoder) -> None:
    stream = start(decoder)
    assert not list(stream.push("The train leaves"))
    assert not stream.ready(" at 7:45")
    assert stream.ready(" at 7:45, so")
    assert pcm_of(list(stream.push(" at 7:45, so")))


def test_ready_says_what_push_will_do(decoder: SpeechDecoder) -> None:
    stream = start(decoder)
    for letter in TEXT:
        promised = stream.ready(letter)
        assert promised == stream.ready(letter), "asking changes nothing"
        assert bool(pcm_of(list(stream.push(letter)))) == promised


def test_chunks_are_short_and_the_first_is_shorter(decoder: SpeechDecoder) -> None:
    lengths = [len(chunk.pcm) / 2 / OUTPUT_RATE_HZ for chunk in speak(start(decoder), TEXT)]
    assert lengths[0] <= 0.15
    assert max(lengths) <= 0.4


def test_speech_begins_without_a_long_silence(decoder: SpeechDecoder) -> None:
    samples = np.frombuffer(pcm_of(speak(start(decoder), TEXT)), "<i2").astype(np.float32)
    loud = np.flatnonzero(np.abs(samples) > 0.02 * 32768)
    assert loud[0] / OUTPUT_RATE_HZ < 0.1
    assert (len(samples) - loud[-1]) / OUTPUT_RATE_HZ < 0.3


def test_a_dropped_iterator_stops_and_the_next_one_continues(decoder: SpeechDecoder) -> None:
    whole = speak(start(decoder), TEXT)
    stream = start(decoder)
    first = next(stream.push(TEXT))
    assert [first, *stream.flush()] == whole


def test_a_long_text_without_punctuation_starts_at_once(decoder: SpeechDecoder) -> None:
    stream = start(decoder)
    first = next(stream.push("lorem ipsum dolor sit amet " * 190))
    assert 0 < len(first.pcm) <= OUTPUT_RATE_HZ // 2
    assert stream.ready(""), "the rest is still to be said"


@pytest.mark.parametrize("text", ["", " ", "\n\n", "😀", "...", "!?", "***", "\x00\x07\x1b"])
def test_text_without_words_is_silent_but_covered(decoder: SpeechDecoder, text: str) -> None:
    stream = start(decoder)
    assert not stream.ready(text)
    chunks = speak(stream, text)
    assert pcm_of(chunks) == b""
    if text:
        check_marks(chunks, text)


@pytest.mark.parametrize(
    "text",
    [
        "Hello \x00\x1b[31mworld\x7f, this is\x08 fine.",
        "Die Straße nach Köln, naïve café. Ça va? El niño.",
        "The word is こんにちは, or привет, or 你好。再见！",
        "Wait 😀 what? Yes 👩‍👩‍👧 family. ",
        "a" * 900,
    ],
)
def test_odd_text_is_spoken_and_covered(decoder: SpeechDecoder, text: str) -> None:
    chunks = speak(start(decoder), text)
    assert len(pcm_of(chunks)) > OUTPUT_RATE_HZ // 2
    check_marks(chunks, text)


def test_speed_scales_the_duration(decoder: SpeechDecoder) -> None:
    text = "This sentence is spoken at three different speeds."
    slow, normal, fast = (
        len(pcm_of(speak(start(decoder, speed), text))) for speed in (0.5, 1.0, 1.5)
    )
    assert 1.6 < slow / normal < 2.4
    assert 0.55 < fast / normal < 0.8


@pytest.mark.parametrize("speed", [0.0, 0.2, 2.6, float("nan"), float("inf")])
def test_a_speed_out_of_range_is_refused(decoder: SpeechDecoder, speed: float) -> None:
    with pytest.raises(InputError, match="speed"):
        decoder.open(voice=decoder.voices[0], speed=speed)


def test_an_unknown_voice_is_refused_with_the_list(decoder: SpeechDecoder) -> None:
    with pytest.raises(InputError, match=decoder.voices[0]):
        decoder.open(voice="nobody", speed=1.0)


def test_streams_of_one_decoder_do_not_touch_each_other(decoder: SpeechDecoder) -> None:
    alone = speak(start(decoder), TEXT)
    a, b = start(decoder), start(decoder, 1.5)
    mixed: list[SpeechChunk] = []
    for letter in TEXT:
        mixed += a.push(letter)
        list(b.push(letter.upper()))
    assert pcm_of([*mixed, *a.flush()]) == pcm_of(alone)
