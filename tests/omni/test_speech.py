"""Voices, loading, stretching and pauses of the speech room; decoders are in tests/contracts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import butter, resample_poly, sosfiltfilt

from omni.config import Config, home
from omni.errors import ConfigError, InputError, ModelError
from omni.speech.clauses import ClausePolicy
from omni.speech.hibari import HibariDecoder
from omni.speech.onnx import open_session
from omni.speech.phonemes import ASSETS, Phonemizer
from omni.speech.registry import DECODERS, open_decoder
from omni.speech.stream import ClauseStream, audible
from omni.speech.stretch import stretch
from omni.speech.voices import HOSTED_VOICES, resolve_voice
from omni.types import OUTPUT_RATE_HZ


@pytest.fixture(scope="module")
def hibari() -> HibariDecoder:
    return HibariDecoder.load(Path())


class Tone:
    """Acoustics without a model: 100 ms per phoneme, silent for pads and spaces."""

    def __init__(self) -> None:
        self.num_calls = 0

    def speak(
        self, phonemes: str, *, speed: float, seed: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        self.num_calls += 1
        size = OUTPUT_RATE_HZ // 10
        loud = [0.0, *(0.0 if c in " .,!?" else 0.5 for c in phonemes), 0.0]
        ends = np.arange(1, len(loud) + 1, dtype=np.int64) * size
        return np.repeat(np.asarray(loud, np.float32), size), ends


class KokoroLike:
    sample_rate_hz = OUTPUT_RATE_HZ
    voices = ("af_heart", "af_alloy", "am_echo", "bf_emma")

    def open(self, *, voice: str, speed: float = 1.0) -> ClauseStream:
        return ClauseStream(Tone(), Phonemizer(), ClausePolicy(), speed)


def test_hosted_voices_mean_the_default(hibari: HibariDecoder) -> None:
    for name in HOSTED_VOICES:
        assert resolve_voice(name, hibari) == "heart"


def test_a_voice_of_that_very_name_wins() -> None:
    names = {"alloy": "af_alloy", "echo": "am_echo", "heart": "af_heart", "bf_emma": "bf_emma"}
    for name, voice in names.items():
        assert resolve_voice(name, KokoroLike()) == voice
    assert resolve_voice("cedar", KokoroLike()) == "af_heart"


def test_an_unknown_voice_is_refused_with_what_exists(hibari: HibariDecoder) -> None:
    with pytest.raises(InputError, match=r"'siren'.*heart.*alloy"):
        resolve_voice("siren", hibari)


def test_an_unknown_decoder_is_refused_with_what_exists(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'espeak'.*hibari, kokoro-82m"):
        open_decoder("espeak", tmp_path)


def test_every_registered_decoder_exists() -> None:
    import importlib

    for target in DECODERS.values():
        module, _, name = target.partition(":")
        assert callable(getattr(importlib.import_module(module), name).load)


def test_missing_weights_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"omni fetch kokoro-82m"):
        open_decoder("kokoro-82m", tmp_path)


def test_a_corrupt_model_file_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelError, match="not the expected speech model"):
        open_session(tmp_path / "model.onnx", "/CumSum_output_0", num_threads=1)
    with pytest.raises(ModelError, match="cannot read"):
        open_session(tmp_path / "absent.onnx", "/CumSum_output_0", num_threads=1)


def test_another_export_of_the_model_is_refused() -> None:
    with pytest.raises(ModelError, match="not the expected speech model"):
        open_session(ASSETS / "hibari.onnx", "/no_such_tensor", num_threads=1)


def test_a_truncated_voice_file_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "kokoro-82m"
    (folder / "voices").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"")
    (folder / "voices" / "af_heart.bin").write_bytes(bytes(100))
    with pytest.raises(ModelError, match="100 bytes, expected 522240"):
        open_decoder("kokoro-82m", tmp_path)


def test_durations_end_where_the_samples_end(hibari: HibariDecoder) -> None:
    samples, ends = hibari.speak("həlˈO ðˈɛɹ.", speed=1.0, seed=0)
    assert len(ends) == len("həlˈO ðˈɛɹ.") + 2
    assert ends[-1] == len(samples)
    assert (np.diff(ends) > 0).all()


def test_equal_seeds_give_equal_samples(hibari: HibariDecoder) -> None:
    first, _ = hibari.speak("həlˈO", speed=1.0, seed=3)
    again, _ = hibari.speak("həlˈO", speed=1.0, seed=3)
    other, _ = hibari.speak("həlˈO", speed=1.0, seed=4)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("pace", [0.5, 0.8, 1.25, 1.5, 2.0])
def test_stretching_changes_the_duration_and_not_the_pitch(pace: float) -> None:
    time = np.arange(OUTPUT_RATE_HZ * 2) / OUTPUT_RATE_HZ
    tone = (0.5 * np.sin(2 * np.pi * 200 * time)).astype(np.float32)
    out = stretch(tone, pace)
    assert len(out) / len(tone) == pytest.approx(1 / pace, rel=0.03)
    spectrum = np.abs(np.fft.rfft(out[2400:-2400] * np.hanning(len(out) - 4800)))
    peak_hz = np.argmax(spectrum) * OUTPUT_RATE_HZ / (len(out) - 4800)
    assert peak_hz == pytest.approx(200, abs=2)
    assert np.abs(out[2400:-2400]).max() == pytest.approx(0.5, rel=0.1)


def test_a_pace_of_one_changes_nothing() -> None:
    samples = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    assert stretch(samples, 1.0) is samples


def test_silence_is_trimmed_but_soft_edges_are_kept() -> None:
    samples = np.zeros(OUTPUT_RATE_HZ, np.float32)
    samples[10_000:12_000] = 0.1
    first, last = audible(samples)
    assert 9_500 <= first <= 9_800
    assert 12_500 <= last <= 13_200
    assert audible(np.zeros(100, np.float32)) == (0, 100)


def gaps_ms(text: str) -> list[float]:
    """Lengths of the silences over 20 ms inside the speech for ``text``."""
    stream = ClauseStream(Tone(), Phonemizer(), ClausePolicy(), 1.0)
    pcm = b"".join(chunk.pcm for chunk in [*stream.push(text), *stream.flush()])
    loud = np.flatnonzero(np.frombuffer(pcm, "<i2"))
    steps = np.diff(loud)
    return [float(step) * 1000 / OUTPUT_RATE_HZ for step in steps if step > OUTPUT_RATE_HZ // 50]


def test_pauses_follow_the_punctuation() -> None:
    (sentence,) = gaps_ms("Hello. Goodbye.")
    (paragraph,) = gaps_ms("Hello.\n\nGoodbye.")
    assert 200 < sentence < 400 < paragraph < 600


def test_a_foreign_answer_is_announced_once() -> None:
    stream = ClauseStream(Tone(), Phonemizer(), ClausePolicy(), 1.0)
    first = list(stream.push("你好，世界。"))
    assert any(chunk.pcm for chunk in first)
    assert not stream.ready("再见。")
    assert not any(chunk.pcm for chunk in stream.push("再见。很好。"))
    assert stream.ready("Well then. So")
    rest = list(stream.flush())
    assert rest[-1].marks[-1].num_chars == len("你好，世界。再见。很好。")


def test_only_the_clauses_that_are_taken_are_synthesised() -> None:
    tone = Tone()
    stream = ClauseStream(tone, Phonemizer(), ClausePolicy(), 1.0)
    speech = stream.push("One thing. " * 50)
    assert tone.num_calls == 0
    next(speech)
    assert tone.num_calls == 1


def test_five_thousand_characters_without_punctuation_are_covered() -> None:
    text = ("lorem ipsum dolor sit amet " * 190).rstrip()
    assert len(text) > 5000
    stream = ClauseStream(Tone(), Phonemizer(), ClausePolicy(), 1.0)
    chunks = [*stream.push(text), *stream.flush()]
    marks = [mark for chunk in chunks for mark in chunk.marks]
    assert [mark.num_chars for mark in marks] == [
        end for end in range(1, len(text) + 1) if text[end : end + 1] in (" ", "")
    ]
    rest = sum(len(chunk.pcm) for chunk in chunks) // 2 - marks[-1].sample
    assert 0 <= rest < 0.15 * OUTPUT_RATE_HZ


def test_marks_stand_where_the_sound_of_a_word_ends(hibari: HibariDecoder) -> None:
    """Measured on words that hiss before a vowel: median distance of hiss end and mark."""
    text = "this over us across a bus inside a house of ice above a price along our voice "
    text += "as a mouse in a race is"
    stream = ClauseStream(hibari, Phonemizer(), ClausePolicy(first_max_words=50), 1.0)
    chunks = [*stream.push(text), *stream.flush()]
    pcm = np.frombuffer(b"".join(chunk.pcm for chunk in chunks), "<i2").astype(np.float32)
    hiss = sosfiltfilt(butter(4, 4000, "high", fs=OUTPUT_RATE_HZ, output="sos"), pcm)
    block = OUTPUT_RATE_HZ // 400  # 2.5 ms
    level = np.sqrt((hiss[: len(hiss) // block * block].reshape(-1, block) ** 2).mean(axis=1))
    errors_ms = []
    for mark in (mark for chunk in chunks for mark in chunk.marks):
        if not text[: mark.num_chars].endswith(("s", "ce")):
            continue
        near = mark.sample // block
        peak = max(0, near - 60) + int(np.argmax(level[max(0, near - 60) : near + 20]))
        quiet = np.flatnonzero(level[peak:] < 0.35 * level[peak])
        errors_ms.append((mark.sample / block - (peak + quiet[0])) * 2.5)
    assert len(errors_ms) >= 8
    assert np.median(np.abs(errors_ms)) <= 30, errors_ms


SPOKEN = [
    "The capital of Australia is Canberra, and it lies between Sydney and Melbourne.",
    "Sure! To boil an egg, bring the water to a boil and lower the egg in gently.",
    "I would recommend **starting** with a `short walk` every day, because small habits stay.",
    "You can reset your password by opening the settings page and choosing the security tab.",
    "Unfortunately I do not know the answer, but I can help you look for it.",
]


def words(text: str) -> str:
    return " ".join("".join(c.lower() if c.isalpha() else " " for c in text).split())


@pytest.mark.weights
@pytest.mark.parametrize("speed", [1.0, 1.5])
def test_speech_is_recognised_as_what_was_written(hibari: HibariDecoder, speed: float) -> None:
    """At most 4% of the words come back wrong from a recogniser that knows only the sound."""
    jiwer = pytest.importorskip("jiwer")
    whisper = pytest.importorskip("faster_whisper")
    folder = home(Config()) / "models" / "whisper-base"
    if not (folder / "model.bin").is_file():
        pytest.skip(f"whisper-base is not in the store ({folder})")
    model = whisper.WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=2)
    stream = hibari.open(voice="heart", speed=speed)
    chunks = [*stream.push(" ".join(SPOKEN)), *stream.flush()]
    samples = np.frombuffer(b"".join(chunk.pcm for chunk in chunks), "<i2")
    assert len(samples) < 29 * OUTPUT_RATE_HZ, "one window of the recogniser"
    heard_16k = resample_poly(samples.astype(np.float32) / 32768, 2, 3).astype(np.float32)
    segments, _ = model.transcribe(
        np.pad(heard_16k, (3200, 8000)), language="en", beam_size=1, temperature=0.0
    )
    heard = words(" ".join(segment.text for segment in segments))
    said = words(" ".join(SPOKEN))
    assert jiwer.wer(said, heard) <= 0.04, heard
