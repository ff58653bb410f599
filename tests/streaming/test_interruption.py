"""Words interrupt the assistant soon; hums, coughs and its echo do not.

Real sounds go through the client's chunks, the resampler, voice activity and the turn detector;
phrases, noise and places in the frame are not those that the gate was fitted on.
"""

from __future__ import annotations

import shutil
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from omni_encoders.vad import VoiceActivity
from omni_streaming.interruption import (
    ECHO_LEARN_FRAMES,
    ECHO_WAIT_FRAMES,
    InterruptionGate,
    analyse,
    features,
)

from omni.benchmarks import interruptions, material
from omni.types import INPUT_RATE_HZ

SEED = 77
UNSEEN_PHRASES = (
    "Listen, that was not my question.",
    "All right, got it.",
    "Tell me about Norway instead.",
    "Is it far from here?",
    "Pardon?",
    "Good, and what then?",
)

needs_synthesisers = pytest.mark.skipif(
    not (shutil.which("flite") and shutil.which("espeak-ng")),
    reason="needs the Debian packages flite and espeak-ng",
)


@cache
def vad() -> VoiceActivity:
    return VoiceActivity()


def interrupted_ms(
    kind: str, clip: NDArray[np.float32], rng: np.random.Generator, answer: int = 0
) -> float | None:
    sound = interruptions.placed(kind, "", "", clip, rng, variant=answer)
    return interruptions.interruption_ms(interruptions.hear(sound, vad()))


@needs_synthesisers
def test_unseen_words_of_every_synthesiser_interrupt_soon() -> None:
    rng = np.random.default_rng(SEED)
    delays = []
    synthesisers: tuple[material.Synthesiser, ...] = ("hibari", "flite", "espeak")
    for number, text in enumerate(UNSEEN_PHRASES):
        for name in synthesisers:
            clip = material.speak(text, name, variant=number)
            kind = ("word", "word, noise", "word, over echo")[number % 3]
            delays.append(interrupted_ms(kind, clip, rng, answer=number))
    assert None not in delays
    times = [delay for delay in delays if delay is not None]
    assert min(times) > 0
    assert np.percentile(times, 50) < 200
    assert np.percentile(times, 90) < 300


@needs_synthesisers
def test_hums_with_closed_lips_do_not_interrupt() -> None:
    rng = np.random.default_rng(SEED)
    hums = [material.mm_hm(variant) for variant in range(material.NUM_HUMS)]
    results = [interrupted_ms("hum", hum, rng) for hum in hums]
    assert sum(result is not None for result in results) <= len(hums) // 10


def test_coughs_do_not_interrupt() -> None:
    rng = np.random.default_rng(SEED)
    coughs = [material.cough(rng) for _ in range(30)]
    results = [interrupted_ms("cough", cough, rng) for cough in coughs]
    assert sum(result is not None for result in results) <= 3


def test_the_assistants_own_echo_does_not_interrupt() -> None:
    rng = np.random.default_rng(SEED)
    results = [
        interrupted_ms("echo", material.silence(3.0), rng, answer=number) for number in range(6)
    ]
    assert results == [None] * 6


def test_the_detector_hears_the_same_words_when_nobody_is_answering_over_them() -> None:
    """The material would interrupt by its level: it is the gate that keeps echo out."""
    rng = np.random.default_rng(SEED)
    sound = interruptions.placed("echo", "", "", material.silence(3.0), rng)
    case = interruptions.hear(sound, vad())
    silent = np.full_like(case.source_db, -100.0)
    unguarded = interruptions.Case(
        "", "", "", case.frames, case.probabilities, case.arrivals_ms, silent
    )
    assert interruptions.interruption_ms(unguarded) is not None


def tone(hz: float, amplitude: float, num: int = 512) -> NDArray[np.float32]:
    at = np.arange(num) / INPUT_RATE_HZ
    return (amplitude * np.sin(2 * np.pi * hz * at)).astype(np.float32)


def test_a_quiet_voice_passes_once_no_echo_was_measured() -> None:
    gate, quiet = InterruptionGate(), tone(200, 0.01)
    assert not gate.push(quiet, True, -20.0), "23 dB below the loudspeaker may be its echo"
    gate.forget_onset()
    for _ in range(ECHO_WAIT_FRAMES + ECHO_LEARN_FRAMES + 1):
        gate.push(np.zeros(512, np.float32), False, -20.0)
    assert gate.push(quiet, True, -20.0), "there is no echo: headphones"


def test_an_echo_that_comes_late_is_still_kept_out() -> None:
    gate, echo = InterruptionGate(), tone(200, 0.014)
    for _ in range(ECHO_WAIT_FRAMES):
        gate.push(np.zeros(512, np.float32), False, -20.0)
    assert not any(gate.push(echo, True, -20.0) for _ in range(100))


def test_measures_need_two_voiced_frames() -> None:
    noise = np.random.default_rng(SEED).standard_normal(512).astype(np.float32) * 0.1
    hiss, voice = analyse(noise), analyse(tone(200, 0.1))
    assert not hiss.is_voiced
    assert voice.is_voiced
    assert features([hiss] * 8 + [voice], voice.level_db) is None
    assert features([hiss, voice, voice], voice.level_db) is not None


def test_a_steady_tone_neither_moves_nor_opens() -> None:
    steady = analyse(tone(200, 0.1))
    measures = features([steady] * 6, steady.level_db)
    assert measures is not None
    openness_db, _, movement_db, hiss_db, num_voiced = measures
    assert openness_db < -25
    assert movement_db < 1e-6
    assert hiss_db == 0
    assert num_voiced == 6
