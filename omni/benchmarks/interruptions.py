"""Sounds made while the assistant speaks, against the product's own detector, in audio time.

    python -m omni.benchmarks.interruptions            # what interrupts, and how soon
    python -m omni.benchmarks.interruptions --fit      # the weights of the gate, cross-validated

Words, hums, coughs and echoes go the way of a client's audio (20 ms chunks, resampler, frames,
voice activity, turn detector) without a server: the figures are the same on every run and machine.
"""

from __future__ import annotations

import argparse
import json
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from omni_encoders.vad import VoiceActivity
from omni_streaming.audio import Decoder, float_to_pcm16
from omni_streaming.interruption import (
    MIN_FRAMES,
    NUM_FEATURES,
    THRESHOLD,
    InterruptionGate,
    features,
)
from omni_streaming.playback import Playback
from omni_streaming.settings import Detection
from omni_streaming.turns import FRAME_SAMPLES, Signal, TurnDetector
from scipy.signal import fftconvolve, resample_poly

from omni.benchmarks import material
from omni.config import TurnConfig
from omni.types import OUTPUT_RATE_HZ

CHUNK_MS = 20
LEAD_S = 1.5
"""The assistant has been speaking for this long when the sound begins."""
TAIL_S = 0.4
ECHO_DB = -20.0
QUIET_DB = -10.0
FIT_MS = 350.0
"""Words have to be told by then."""
FIT_SEEDS, REPORT_SEEDS = (0, 1), (2, 3)
RIDGE = 1e-3
DETECTION = Detection(
    kind="semantic_vad",
    threshold=0.5,
    prefix_padding_ms=300,
    silence_duration_ms=400,
    longest_wait_ms=4000,
    idle_timeout_ms=None,
    create_response=True,
    interrupt_response=True,
)
"""The server's default."""
HUMAN_SPEECH = Path("/usr/share/pocketsphinx/test/data")
"""Of the Debian package pocketsphinx-testdata: read and spontaneous speech, 16 kHz."""

ANSWER = (
    "The sea covers most of the world. Long ago, a young sailor named Thomas left his village to "
    "see what lay beyond the horizon, and nobody expected him to come back. "
    "He sailed for months through storms and calm, and learned the names of the stars."
)
WORDS = (
    "No.",
    "No, that is wrong.",
    "Wait, stop.",
    "What is the capital of Italy?",
    "Hey, listen to me.",
    "Okay, thank you.",
    "Stop it, please.",
    "Hold on a second.",
    "Actually, I meant Rome.",
    "Sorry, one question.",
    "Excuse me.",
    "Can you repeat that?",
    "Yes, but why?",
    "Why is that?",
    "How many are there?",
    "But what about Spain?",
    "Never mind.",
    "Thanks, that is enough.",
    "Please be quiet.",
    "Let me ask something.",
    "I have a question.",
    "Who said that?",
    "When was it?",
    "Turn it off.",
    "Enough of that.",
    "One moment.",
    "Oh, wait a second.",
    "My name is Anna.",
    "Maybe tomorrow.",
    "More about the ship.",
    "Nothing else.",
    "Understood.",
    "You can stop now.",
    "Go on to the end.",
    "Do you know his age?",
    "Alright, next topic.",
    "Really? I doubt it.",
    "Where did he live?",
)


@dataclass(frozen=True, slots=True)
class Sound:
    """One sound before the microphone while the assistant speaks."""

    kind: str
    voice: str
    label: str
    user: NDArray[np.float32]  # [n] at 24 kHz, since the assistant began to speak
    onset_s: float
    answer: int  # which one the assistant gives


@dataclass(frozen=True, slots=True)
class Case:
    """A sound as the detector gets it; times from its acoustic onset."""

    kind: str
    voice: str
    label: str
    frames: NDArray[np.float32]  # [F, 512]
    probabilities: NDArray[np.float32]  # [F]
    arrivals_ms: NDArray[np.float64]  # [F] when the frame is whole at the server
    source_db: NDArray[np.float64]  # [F] the loudest level whose echo it could hold


@cache
def answer(variant: int) -> NDArray[np.float32]:
    """What the assistant is saying: the default voice, as loud as it comes."""
    sentences = ANSWER.split(". ")
    order = sentences[variant % 3 :] + sentences[: variant % 3]
    loud = material.speak(". ".join(order), "hibari")
    return material.level(loud, 10 ** (-26 / 20))


def echo(variant: int, num: int, delay_ms: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """[num] samples of the answer at ECHO_DB, ``delay_ms`` late; every second one from a room."""
    played = answer(variant)
    if variant % 2:
        at = np.arange(round(0.12 * OUTPUT_RATE_HZ))
        room = rng.standard_normal(len(at)) * np.exp(-at / (0.03 * OUTPUT_RATE_HZ))
        room[0] += 4.0
        played = fftconvolve(played, room / np.sqrt((room**2).sum()))
    late = np.concatenate([np.zeros(delay_ms * OUTPUT_RATE_HZ // 1000), played, np.zeros(num)])
    quiet: NDArray[np.float32] = (late[:num] * 10 ** (ECHO_DB / 20)).astype(np.float32)
    return quiet


def sounds(seed: int = 0) -> Iterator[Sound]:
    """All material. Other seeds draw other coughs, noise, delays and places in the frame."""
    rng = np.random.default_rng(seed)
    synthesisers: tuple[tuple[material.Synthesiser, int], ...] = (
        *(("hibari", v) for v in range(3)),
        *(("flite", v) for v in range(3)),
        *(("espeak", v) for v in range(4)),
    )
    for number, text in enumerate(WORDS):
        for turn in range(3):  # every word by three of the ten voices
            name, variant = synthesisers[(number * 3 + turn) % len(synthesisers)]
            clip = material.speak(text, name, variant=variant)
            voice = f"{name} {variant}"
            yield placed("word", voice, text, clip, rng)
            condition = ("noise", "quiet", "over echo")[(number + turn) % 3]
            if condition == "quiet":
                clip = clip * np.float32(10 ** (QUIET_DB / 20))
            yield placed(f"word, {condition}", voice, text, clip, rng, variant=number)
    for voice, label, clip in human_speech():
        yield placed("word, human", voice, label, clip, rng)
    for variant in range(material.NUM_HUMS):
        clip = material.mm_hm(variant)
        voice = _hum_voice(variant)
        yield placed("hum", voice, str(variant), clip, rng)
        clip = material.at_rate(clip, rng.uniform(0.85, 1.15))
        yield placed("hum, noise", voice, str(variant), clip, rng)
    for number in range(48):
        yield placed("cough", f"cough {number % 4}", str(number), material.cough(rng), rng)
    for number in range(24):
        yield placed("echo", "echo", str(number), material.silence(4.0), rng, variant=number)


def _hum_voice(variant: int) -> str:
    if variant < 20:
        return f"hum {variant % 5}"
    return f"flite {(variant - 20) % 3}" if variant < 26 else f"espeak {(variant - 26) % 4}"


def placed(
    kind: str,
    voice: str,
    label: str,
    clip: NDArray[np.float32],
    rng: np.random.Generator,
    *,
    variant: int = 0,
) -> Sound:
    """``clip`` with its lead and tail and what its kind adds to it."""
    onset_s = 0.0 if kind == "echo" else LEAD_S + float(rng.uniform(0, 0.1))  # of any phase
    user = np.concatenate([material.silence(onset_s), clip, material.silence(TAIL_S)])
    if "noise" in kind:
        user = material.with_noise(user, 20.0, rng)
    if "echo" in kind:
        user = user + echo(variant, len(user), int(rng.integers(60, 150)), rng)
    return Sound(kind, voice, label, user, onset_s, variant)


def human_speech() -> Iterator[tuple[str, str, NDArray[np.float32]]]:
    """(speaker, place, clip) of speech after at least 0.15 s of silence, at speech level."""
    speakers = {"cards": "*.wav", "librivox": "*.wav", ".": "*.raw"}
    for folder, pattern in speakers.items():
        for path in sorted((HUMAN_SPEECH / folder).glob(pattern)):
            if path.suffix == ".wav":
                with wave.open(str(path)) as file:
                    pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2")
            else:
                pcm = np.frombuffer(path.read_bytes(), "<i2")
            audio = resample_poly(pcm / 32768.0, 3, 2).astype(np.float32)
            yield from (
                (folder.replace(".", path.stem), f"{path.stem} {at / OUTPUT_RATE_HZ:.1f}", clip)
                for at, clip in _onsets(audio)
            )


def _onsets(audio: NDArray[np.float32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    step = OUTPUT_RATE_HZ // 200
    levels = np.abs(audio[: len(audio) // step * step]).reshape(-1, step).max(1)
    loud = levels > max(0.03 * np.quantile(levels, 0.99), 3 * np.quantile(levels, 0.1))
    for at in np.flatnonzero(loud):
        before, after = loud[max(0, at - 30) : at], loud[at : at + 80]
        if len(before) == 30 and not before.any() and after[:60].mean() > 0.5:
            clip = audio[at * step : at * step + round(1.2 * OUTPUT_RATE_HZ)]
            yield int(at) * step, material.level(clip, material.SPEECH_RMS)


def hear(sound: Sound, vad: VoiceActivity) -> Case:
    """Send ``sound`` as a client would, while an answer is being played."""
    decoder, playback, state = Decoder("audio/pcm"), Playback(0.0), vad.open()
    playback.play(float_to_pcm16(answer(sound.answer)))
    chunk = CHUNK_MS * OUTPUT_RATE_HZ // 1000
    rest = np.zeros(0, np.float32)
    frames, probabilities, arrivals, sources = [], [], [], []
    for index in range(len(sound.user) // chunk):
        now_ms = (index + 1) * CHUNK_MS
        playback.advance(now_ms)
        piece = sound.user[index * chunk : (index + 1) * chunk]
        rest = np.concatenate([rest, decoder.push(float_to_pcm16(piece))])
        while len(rest) >= FRAME_SAMPLES:
            frame, rest = rest[:FRAME_SAMPLES], rest[FRAME_SAMPLES:]
            frames.append(frame)
            probabilities.append(vad.probability(frame, state))
            arrivals.append(now_ms - 1000 * sound.onset_s)
            sources.append(playback.echo_source_db)
    return Case(
        sound.kind,
        sound.voice,
        sound.label,
        np.array(frames),
        np.array(probabilities, np.float32),
        np.array(arrivals),
        np.array(sources),
    )


def interruption_ms(case: Case) -> float | None:
    """When the product's detector starts a turn, from the acoustic onset; None: it does not."""
    detector = TurnDetector(DETECTION, TurnConfig())
    for frame, probability, at_ms, source_db in zip(
        case.frames, case.probabilities, case.arrivals_ms, case.source_db, strict=True
    ):
        signal = detector.push(
            frame, float(probability), is_assistant_heard=True, echo_source_db=float(source_db)
        )
        if signal is Signal.STARTED:
            return float(at_ms)
    return None


# --- Fitting -------------------------------------------------------------------------------------


def evidence(case: Case) -> NDArray[np.float64]:
    """[N, 2 + 5]: for every frame that could interrupt, when (ms), frames so far, the measures."""
    gate = InterruptionGate()
    rows = []
    for frame, probability, at_ms, source_db in zip(
        case.frames, case.probabilities, case.arrivals_ms, case.source_db, strict=True
    ):
        onset = gate.push(frame, bool(probability >= DETECTION.threshold), float(source_db))
        measures = features(onset, gate.loudest_db) if onset else None
        if measures is not None and len(onset) >= MIN_FRAMES:
            rows.append([at_ms, len(onset), *measures])
    return np.array(rows).reshape(-1, 2 + NUM_FEATURES)


def fit(rows: Sequence[NDArray[np.float64]], are_words: Sequence[bool]) -> NDArray[np.float64]:
    """[5 + 1] weights and bias: ridge logistic regression, words and others of equal weight.

    Every sound counts as one, its frames share its weight; those of a word after FIT_MS come too
    late to be of use.
    """
    parts = [
        r[(r[:, 0] < FIT_MS) | (not is_word), 2:]
        for r, is_word in zip(rows, are_words, strict=True)
    ]
    x = np.concatenate(parts)
    sizes = [len(part) for part in parts]
    y = np.repeat(np.array(are_words, np.float64), sizes)
    weight = np.repeat([1 / max(size, 1) for size in sizes], sizes)
    for label in (0.0, 1.0):
        weight[y == label] /= weight[y == label].sum()
    mean, scale = x.mean(axis=0), x.std(axis=0)
    z = np.column_stack([(x - mean) / scale, np.ones(len(x))])
    beta = np.zeros(z.shape[1])
    ridge = np.diag([RIDGE] * NUM_FEATURES + [0.0])
    for _ in range(50):  # Newton's method
        p = 1 / (1 + np.exp(-z @ beta))
        gradient = z.T @ (weight * (p - y)) + ridge @ beta
        hessian = (z * (weight * p * (1 - p))[:, None]).T @ z + ridge
        beta -= np.linalg.solve(hessian, gradient)
    weights = beta[:-1] / scale
    return np.append(weights, beta[-1] - weights @ mean)


def decide(rows: NDArray[np.float64], weights: NDArray[np.float64]) -> float | None:
    """When the gate would interrupt with these weights."""
    sure = rows[rows[:, 2:] @ weights[:-1] + weights[-1] >= THRESHOLD, 0]
    return float(sure[0]) if len(sure) else None


def cross_validated(cases: Sequence[Case]) -> list[float | None]:
    """When each case would interrupt, by a gate fitted on the other voices only."""
    rows = [evidence(case) for case in cases]
    are_words = [case.kind.startswith("word") for case in cases]
    results: list[float | None] = [None] * len(cases)
    for voice in sorted({case.voice for case in cases}):
        others = [i for i, case in enumerate(cases) if case.voice != voice and case.kind != "echo"]
        weights = fit([rows[i] for i in others], [are_words[i] for i in others])
        for i, case in enumerate(cases):
            if case.voice == voice:
                results[i] = decide(rows[i], weights)
    return results


# --- Printing ------------------------------------------------------------------------------------


def table(cases: Sequence[Case], results: Sequence[float | None]) -> dict[str, dict[str, float]]:
    """Print and return by kind: count, how many interrupted, and when (ms of audio)."""
    by_kind: dict[str, list[float | None]] = {}
    for case, result in zip(cases, results, strict=True):
        by_kind.setdefault(case.kind, []).append(result)
        by_kind.setdefault("all words" if case.kind.startswith("word") else "", []).append(result)
    by_kind.pop("", None)
    summary: dict[str, dict[str, float]] = {}
    print(f"{'kind':18} {'count':>5} {'interrupted':>11} {'p50 ms':>7} {'p95 ms':>7}")
    for kind, values in by_kind.items():
        times = [value for value in values if value is not None]
        p50, p95 = np.percentile(times, [50, 95]) if times else (np.nan, np.nan)
        print(f"{kind:18} {len(values):5} {len(times):11} {p50:7.0f} {p95:7.0f}")
        summary[kind] = {"count": len(values), "interrupted": len(times)}
        if times:
            summary[kind] |= {"p50_ms": round(float(p50)), "p95_ms": round(float(p95))}
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description="What interrupts the assistant, in audio time.")
    parser.add_argument("--fit", action="store_true", help="fit the gate's weights")
    args = parser.parse_args()
    vad = VoiceActivity()
    seeds = FIT_SEEDS if args.fit else REPORT_SEEDS
    cases = [hear(sound, vad) for seed in seeds for sound in sounds(seed)]
    if not args.fit:
        print(json.dumps(table(cases, [interruption_ms(case) for case in cases])))
        return
    print("Each voice judged by a gate fitted on the other voices:")
    summary = table(cases, cross_validated(cases))
    trained = [case for case in cases if case.kind != "echo"]
    weights = fit([evidence(c) for c in trained], [c.kind.startswith("word") for c in trained])
    print(f"WEIGHTS = {tuple(weights[:-1].round(3).tolist())}")
    print(f"BIAS = {weights[-1]:.2f}")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
