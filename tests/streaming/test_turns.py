"""When turns start, pause and end, and which sounds interrupt the assistant."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from omni_encoders.vad import VoiceActivity
from omni_streaming.audio import Resampler, float_to_pcm16
from omni_streaming.interruption import VOICED, analyse
from omni_streaming.playback import Playback
from omni_streaming.settings import Detection
from omni_streaming.turns import FRAME_MS, FRAME_SAMPLES, Signal, TurnDetector

from omni.config import TurnConfig

Samples = NDArray[np.float32]
SERVER = Detection(
    kind="server_vad",
    threshold=0.5,
    prefix_padding_ms=300,
    silence_duration_ms=400,
    longest_wait_ms=4000,
    idle_timeout_ms=None,
    create_response=True,
    interrupt_response=True,
)
SEMANTIC = Detection(
    kind="semantic_vad",
    threshold=0.5,
    prefix_padding_ms=300,
    silence_duration_ms=400,
    longest_wait_ms=4000,
    idle_timeout_ms=None,
    create_response=True,
    interrupt_response=True,
)
QUIET = np.zeros(FRAME_SAMPLES, np.float32)


def signals(
    probabilities: list[float], detection: Detection = SERVER, **config: Any
) -> list[tuple[int, Signal]]:
    """(ms at the end of the frame, signal) for frames with these speech probabilities."""
    detector = TurnDetector(detection, TurnConfig(**config))
    found = []
    for index, probability in enumerate(probabilities):
        signal = detector.push(QUIET, probability)
        if signal is not None:
            found.append(((index + 1) * FRAME_MS, signal))
    return found


def frames(ms: int, probability: float) -> list[float]:
    return [probability] * (ms // FRAME_MS)


def test_a_turn_starts_pauses_and_stops() -> None:
    assert signals(frames(320, 0.01) + frames(640, 0.9) + frames(640, 0.01)) == [
        (320 + 96, Signal.STARTED),
        (960 + 64, Signal.PAUSED),
        (960 + 416, Signal.STOPPED),
    ]


def test_a_blip_is_no_turn() -> None:
    assert signals(frames(96, 0.0) + frames(64, 0.9) + frames(640, 0.0)) == []


def test_the_onset_may_have_a_gap() -> None:
    assert signals([0.9, 0.9, 0.2, 0.9])[0] == (4 * FRAME_MS, Signal.STARTED)


def test_going_on_after_a_pause_resumes_the_turn() -> None:
    found = signals(frames(320, 0.9) + frames(256, 0.0) + frames(320, 0.9) + frames(640, 0.0))
    assert [s for _, s in found] == [
        Signal.STARTED,
        Signal.PAUSED,
        Signal.RESUMED,
        Signal.PAUSED,
        Signal.STOPPED,
    ]


def test_one_loud_frame_in_a_pause_is_a_click() -> None:
    found = signals(frames(320, 0.9) + frames(256, 0.0) + [0.9] + frames(320, 0.0))
    assert found[1:] == [(320 + 64, Signal.PAUSED), (320 + 416, Signal.STOPPED)]


def test_a_probability_between_the_thresholds_neither_ends_nor_begins_speech() -> None:
    assert signals(frames(3200, 0.4)) == []
    assert [s for _, s in signals(frames(320, 0.9) + frames(3200, 0.4))] == [Signal.STARTED]


@given(
    speech=st.lists(st.floats(0, 1), max_size=200),
    kind=st.sampled_from([SERVER, SEMANTIC]),
    scores=st.lists(st.floats(0, 1), max_size=5),
)
@settings(deadline=None)
def test_signals_alternate_whatever_is_heard(
    speech: list[float], kind: Detection, scores: list[float]
) -> None:
    detector = TurnDetector(kind, TurnConfig())
    state = "idle"
    for probability in speech:
        signal = detector.push(QUIET, probability)
        if signal is Signal.PAUSED and scores:
            assert state == "speaking"
            state = "paused"
            signal = detector.score(scores.pop())
        match signal:
            case Signal.STARTED:
                assert state == "idle"
                state = "speaking"
            case Signal.PAUSED:
                assert state == "speaking"
                state = "paused"
            case Signal.RESUMED:
                assert state == "paused"
                state = "speaking"
            case Signal.STOPPED:
                assert state == "paused"
                state = "idle"
        assert detector.is_speaking == (state != "idle")
        assert detector.is_paused == (state == "paused")


@given(low=st.floats(0, 1), high=st.floats(0, 1))
def test_the_more_finished_a_turn_sounds_the_shorter_the_wait(low: float, high: float) -> None:
    waits = []
    for score in sorted((low, high)):
        detector = TurnDetector(SEMANTIC, TurnConfig())
        assert detector.wait_ms == 4000
        detector.score(score)
        waits.append(detector.wait_ms)
    assert 200 <= waits[1] <= waits[0] <= 4000


# --- Sounds --------------------------------------------------------------------------------------


def harmonics(ms: int, hz: float, tilt: float, level_db: float = -20.0) -> Samples:
    """A voiced sound: harmonics of ``hz`` that fall by ``tilt`` (1: as 1/n)."""
    at = np.arange(16 * ms) / 16_000
    count = int(7000 / hz)
    wave = np.sum([np.sin(2 * np.pi * hz * k * at) / k**tilt for k in range(1, count)], axis=0)
    return level(wave, level_db)


def noise(ms: int, level_db: float, seed: int = 0) -> Samples:
    return level(np.random.default_rng(seed).standard_normal(16 * ms), level_db)


def level(wave: NDArray[np.float64], level_db: float) -> Samples:
    rms = np.sqrt(np.mean(np.square(wave)))
    scaled: Samples = (wave * (10 ** (level_db / 20) / rms)).astype(np.float32)
    return scaled


def test_features_tell_a_hum_a_vowel_a_sibilant_and_noise_apart() -> None:
    hum = analyse(harmonics(32, 130, 3.0))
    vowel = analyse(harmonics(32, 130, 1.0))
    hiss = analyse(np.diff(noise(33, -20, 1)[: FRAME_SAMPLES + 2], 2).astype(np.float32))
    burst = analyse(noise(32, -20))
    assert hum.openness_db < -20 < vowel.openness_db
    assert hiss.hiss_db > 12 > vowel.hiss_db
    assert min(hum.periodicity, vowel.periodicity) > 0.9
    assert max(burst.periodicity, hiss.periodicity) < VOICED
    assert abs(vowel.level_db + 20) < 1


def test_silence_has_no_features() -> None:
    sound = analyse(QUIET)
    assert not sound.is_voiced
    assert not sound.bands_db.any()
    assert sound.level_db == -100


# --- Interruptions, with the real voice detector -------------------------------------------------

VAD = VoiceActivity()


class Listener:
    """Hears 16 kHz audio while the assistant's voice plays from time 0 on."""

    def __init__(self, assistant: Samples | None) -> None:
        self._playback = Playback(0)
        if assistant is not None:
            up = Resampler(16_000, 24_000)
            self._playback.play(float_to_pcm16(np.concatenate([up.push(assistant), up.flush()])))
        self._detector = TurnDetector(SERVER, TurnConfig())
        self._vad = VAD.open()

    def started_ms(self, audio: Samples) -> list[int]:
        """When turns start in ``audio``."""
        found = []
        for index in range(len(audio) // FRAME_SAMPLES):
            frame = audio[index * FRAME_SAMPLES : (index + 1) * FRAME_SAMPLES]
            at_ms = (index + 1) * FRAME_MS
            self._playback.advance(at_ms)
            signal = self._detector.push(
                frame,
                VAD.probability(frame, self._vad),
                is_assistant_heard=self._playback.is_audible,
                echo_source_db=self._playback.echo_source_db,
            )
            if signal is Signal.STARTED:
                found.append(at_ms)
        return found


def scene(sound: Samples, at_ms: int = 1500, total_ms: int = 4000) -> Samples:
    """``sound`` in a quiet room."""
    audio = noise(total_ms, -65)
    audio[16 * at_ms : 16 * at_ms + len(sound)] += sound[: len(audio) - 16 * at_ms]
    return audio


@pytest.fixture(scope="module")
def say(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Text -> espeak-ng's voice at -20 dB, 16 kHz, without the silence around it."""
    if shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng is not installed")
    folder: Path = tmp_path_factory.mktemp("espeak")

    def synthesise(text: str, voice: str = "en-us") -> Samples:
        path = folder / "speech.wav"
        subprocess.run(["espeak-ng", "-v", voice, "-s", "160", "-w", path, text], check=True)
        wave, rate_hz = soundfile.read(path, dtype="float32")
        resampler = Resampler(rate_hz, 16_000)
        wave = np.concatenate([resampler.push(wave), resampler.flush()])
        loud = np.flatnonzero(np.abs(wave) > 0.03 * np.abs(wave).max())
        return level(wave[loud[0] : loud[-1]].astype(np.float64), -20)

    return synthesise


@pytest.fixture(scope="module")
def assistant(say: Any) -> Samples:
    voice: Samples = say(
        "The capital of Australia is Canberra. It is a planned city between Sydney and Melbourne, "
        "and it has been the seat of government since nineteen twenty seven.",
        "en-gb",
    )
    return voice


@pytest.mark.parametrize("voice", ["en-us", "en-gb+m3", "en-us+f3"])
@pytest.mark.parametrize(
    "text", ["No wait, stop that please.", "Hold on a second.", "What about tomorrow?"]
)
def test_words_interrupt_within_300_ms(say: Any, assistant: Samples, text: str, voice: str) -> None:
    onset_ms = 1500
    for level_db in (-20.0, -30.0):
        speech = level(say(text, voice).astype(np.float64), level_db)
        started = Listener(assistant).started_ms(scene(speech, onset_ms))
        assert started, f"{text!r} at {level_db} dB did not interrupt"
        assert onset_ms < started[0] <= onset_ms + 300


def test_a_voice_interrupts_through_the_echo(say: Any, assistant: Samples) -> None:
    audio = scene(level(say("Hold on a second.").astype(np.float64), -24))
    delay = 16 * 150
    audio[delay:] += 0.1 * assistant[: len(audio) - delay]
    started = Listener(assistant).started_ms(audio)
    assert len(started) == 1
    assert 1500 < started[0] <= 1900


@pytest.mark.parametrize("delay_ms", [20, 150, 400])
def test_the_assistants_echo_does_not_interrupt_it(assistant: Samples, delay_ms: int) -> None:
    audio = noise(8000, -65)
    delay = 16 * delay_ms
    echo = 0.1 * assistant[: len(audio) - delay]  # -20 dB
    audio[delay : delay + len(echo)] += echo
    assert Listener(assistant).started_ms(audio) == []
    # The same sound is a voice to the detector when nothing plays.
    assert Listener(None).started_ms(audio)


def test_agreeing_hums_do_not_interrupt(say: Any, assistant: Samples) -> None:
    hums = [
        say(phonemes, voice)
        for phonemes in ("[[m'mh'mm]]", "[[m'm:]]")
        for voice in ("en-us", "en-gb", "en-gb+m3", "en-us+f3", "en-us+m1")
    ]
    assert sum(bool(Listener(assistant).started_ms(scene(hum))) for hum in hums) <= 1


@pytest.mark.parametrize("seed", range(12))
def test_coughs_do_not_interrupt(assistant: Samples, seed: int) -> None:
    random = np.random.default_rng(seed)
    length = int(random.integers(120, 450)) * 16
    decay = np.exp(-np.arange(length) / (length / random.uniform(2, 4)))
    burst = np.convolve(random.standard_normal(length), np.hanning(5), "same") * decay
    pair = [*level(burst, random.uniform(-26, -14)), *np.zeros(1600), *level(burst, -20)]
    assert Listener(assistant).started_ms(scene(np.array(pair, np.float32))) == []


def test_a_quiet_voice_interrupts_when_no_echo_was_ever_heard(say: Any, assistant: Samples) -> None:
    voice = level(say("Hold on a second.").astype(np.float64), -42)
    assert Listener(assistant).started_ms(scene(voice, 1500)) != []


def test_hums_and_short_words_start_a_turn_when_the_assistant_is_silent(say: Any) -> None:
    assert Listener(None).started_ms(scene(say("[[m'mh'mm]]")))
    started = Listener(None).started_ms(scene(say("Yes.")))
    assert started
    assert started[0] <= 1500 + 200
