"""Conversations with a running server, measured on the recording: ``omni bench conversation``.

Latency is the time from the end of the user's speech to the start of the assistant's, both found by
voice activity on the two tracks of the recording. The naive pipeline (:mod:`.naive`) answers the
same questions in the same run, each right after Omni did.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from math import gcd
from typing import TYPE_CHECKING, Any

import numpy as np
from omni_encoders.vad import VoiceActivity
from omni_streaming.client import Client
from scipy.signal import resample_poly

from omni.benchmarks import material
from omni.benchmarks.interruptions import WORDS
from omni.benchmarks.naive import NaivePipeline, NaiveTurn
from omni.benchmarks.questions import QUESTIONS, Question
from omni.benchmarks.timeline import Run, speech_runs
from omni.types import INPUT_RATE_HZ, OUTPUT_RATE_HZ

if TYPE_CHECKING:
    from numpy.typing import NDArray

SETTINGS: dict[str, Any] = {
    "audio": {
        "input": {
            "turn_detection": {"type": "semantic_vad", "eagerness": "auto"},
            "transcription": {"model": "default"},
        }
    }
}
"""The same for every scenario."""

NOISE_DB = 20.0
ECHO_DB = -20.0
ECHO_PIECE_S = 0.06  # shorter than the echo's delay: what is heard has been played
SYNTHESISERS: tuple[material.Synthesiser, ...] = ("hibari", "flite")
Log = Callable[[str], None]


@dataclass(slots=True, kw_only=True)
class Turn:
    """One spoken question and what came of it; times in seconds on the recording."""

    question: str
    heard: str = ""
    answer: str = ""
    is_right: bool = False
    latency_s: float | None = None
    turn_end_s: float | None = None  # speech_stopped, after the end of speech
    first_text_s: float | None = None
    first_audio_s: float | None = None
    naive: dict[str, Any] = field(default_factory=dict)


def percentile(values: Sequence[float], share: float) -> float:
    return float(np.percentile(values, 100 * share)) if len(values) else float("nan")


def to_pcm(audio: NDArray[np.float32]) -> NDArray[np.int16]:
    return (np.clip(audio, -1, 1) * 32767).astype(np.int16)


def to_float(pcm: NDArray[np.int16]) -> NDArray[np.float32]:
    audio: NDArray[np.float32] = pcm.astype(np.float32) / np.float32(32768)
    return audio


def level_by(audio: NDArray[np.float32], gain_db: float) -> NDArray[np.float32]:
    louder: NDArray[np.float32] = audio * np.float32(10 ** (gain_db / 20))
    return louder


def clip_of(number: int, question: Question) -> NDArray[np.float32]:
    """The question spoken: synthesisers alternate, every fourth one in noise at 20 dB."""
    rng = np.random.default_rng(number)
    audio = material.speak(question.text, SYNTHESISERS[number % 2])
    audio = np.concatenate([material.silence(0.1), audio, material.silence(0.1)])
    return material.with_noise(audio, NOISE_DB, rng) if number % 4 >= 2 else audio


async def open_client(url: str) -> Client:
    client = Client(url)
    await client.__aenter__()
    await client.update(**SETTINGS)
    client.start_microphone()
    return client


async def ask(client: Client, clip: NDArray[np.float32]) -> tuple[Turn, float]:
    """Say ``clip`` and hear the answer to its end; returns the turn and when the clip began."""
    seen = len(client.events)
    begins_s = client.say(to_pcm(clip))
    await client.said()
    answer = await client.answer(after=seen, timeout_s=60)
    await client.heard()
    await asyncio.sleep(0.3)
    turn = Turn(question="", answer=answer.text)
    turn.first_text_s, turn.first_audio_s = answer.first_text_s, answer.first_audio_s
    for at_s, event in client.events[seen:]:
        if event["type"] == "input_audio_buffer.speech_stopped" and turn.turn_end_s is None:
            turn.turn_end_s = at_s
    return turn, begins_s


def latency(client: Client, vad: VoiceActivity, from_s: float, turn: Turn) -> None:
    """Fill in the times of the turn that began at ``from_s``, from the recording."""
    tracks = [to_float(track) for track in client.recording.tracks()]
    start = round(max(0.0, from_s - 0.2) * OUTPUT_RATE_HZ)
    runs = [
        [Run(r.start_s + start / OUTPUT_RATE_HZ, r.end_s + start / OUTPUT_RATE_HZ) for r in found]
        for found in (speech_runs(track[start:], vad) for track in tracks)
    ]
    if not runs[0] or not runs[1]:
        return
    end_s = runs[0][-1].end_s
    turn.latency_s = runs[1][0].start_s - end_s
    for name in ("turn_end_s", "first_text_s", "first_audio_s"):
        if (value := getattr(turn, name)) is not None:
            setattr(turn, name, value - end_s)


async def questions(url: str, count: int, naive: NaivePipeline | None, log: Log) -> dict[str, Any]:
    """``count`` spoken questions one after the other, each in a session of its own."""
    vad = VoiceActivity()
    turns: list[Turn] = []
    div = gcd(INPUT_RATE_HZ, OUTPUT_RATE_HZ)
    for number, question in enumerate(QUESTIONS[:count]):
        clip = clip_of(number, question)
        client = await open_client(url)
        try:
            turn, begins_s = await ask(client, clip)
            await asyncio.sleep(0.2)
            latency(client, vad, begins_s, turn)
            turn.heard = next(iter(client.transcripts.values()), "")
        finally:
            await client.__aexit__(None, None, None)
        turn.question = question.text
        turn.is_right = question.is_answered_by(turn.answer)
        if naive is not None:
            audio = resample_poly(clip, INPUT_RATE_HZ // div, OUTPUT_RATE_HZ // div)
            padded = np.concatenate([audio, np.zeros(INPUT_RATE_HZ // 2)]).astype(np.float32)
            result: NaiveTurn = await asyncio.to_thread(naive.turn, padded)
            turn.naive = {
                **asdict(result),
                "latency_s": result.latency_s,
                "is_right": question.is_answered_by(result.answer),
            }
        turns.append(turn)
        log(
            f"  {'right' if turn.is_right else 'WRONG'} {_ms(turn.latency_s)}"
            + (f" (naive {_ms(turn.naive['latency_s'])})" if turn.naive else "")
            + f"  heard {turn.heard!r}  said {turn.answer!r}"
        )
    return _summary(turns)


def _ms(value: float | None) -> str:
    return "no answer" if value is None else f"{value * 1000:.0f} ms"


def _summary(turns: list[Turn]) -> dict[str, Any]:
    latencies = [t.latency_s for t in turns if t.latency_s is not None]
    naive = [t.naive["latency_s"] for t in turns if t.naive]
    summary: dict[str, Any] = {
        "count": len(turns),
        "right": sum(t.is_right for t in turns),
        "unanswered": sum(t.latency_s is None for t in turns),
        "p50_s": percentile(latencies, 0.5),
        "p95_s": percentile(latencies, 0.95),
        "parts_p50_s": {
            name: percentile([v for t in turns if (v := getattr(t, name)) is not None], 0.5)
            for name in ("turn_end_s", "first_text_s", "first_audio_s")
        },
        "turns": [asdict(t) for t in turns],
    }
    if naive:
        summary["naive"] = {
            "right": sum(t.naive["is_right"] for t in turns),
            "p50_s": percentile(naive, 0.5),
            "p95_s": percentile(naive, 0.95),
            "parts_p50_s": {
                name: percentile([t.naive[name] for t in turns], 0.5)
                for name in ("recognise_s", "answer_s", "speak_s")
            },
            "ratio_p50": percentile(naive, 0.5) / percentile(latencies, 0.5),
        }
    return summary


async def crowd(url: str, num_clients: int, rounds: int, log: Log) -> dict[str, Any]:
    """``num_clients`` conversations at once, each asking ``rounds`` questions."""
    vad = VoiceActivity()

    asked = {
        (who, number): QUESTIONS[(who * rounds + number) % len(QUESTIONS)]
        for who in range(num_clients)
        for number in range(rounds)
    }
    # Made now: synthesising while the clients run would stall every microphone.
    clips = {key: clip_of(2 * key[1] + key[0] % 2, question) for key, question in asked.items()}

    async def one(who: int) -> list[Turn]:
        turns: list[Turn] = []
        client = await open_client(url)
        try:
            await asyncio.sleep(0.7 * who)
            for number in range(rounds):
                question = asked[who, number]
                turn, begins_s = await ask(client, clips[who, number])
                latency(client, vad, begins_s, turn)
                turn.question, turn.is_right = (
                    question.text,
                    question.is_answered_by(turn.answer),
                )
                turns.append(turn)
        finally:
            await client.__aexit__(None, None, None)
        return turns

    results = await asyncio.gather(*(one(who) for who in range(num_clients)))
    summary = _summary([turn for turns in results for turn in turns])
    log(f"  p50 {_ms(summary['p50_s'])}, p95 {_ms(summary['p95_s'])}")
    return {**summary, "clients": num_clients}


async def pauses(url: str, count: int, log: Log) -> dict[str, Any]:
    """Questions with a pause inside: was answer audio sent before the speaker had ended?"""
    cut_off: list[bool] = []
    details = []
    for number in range(count):
        question = QUESTIONS[number % len(QUESTIONS)]
        pause_s = 0.3 + 0.7 * number / max(count - 1, 1)
        num_words = max(2, round(0.55 * len(question.text.split())))
        clip = material.with_pause(question.text, SYNTHESISERS[number % 2], pause_s, num_words)
        client = await open_client(url)
        try:
            begins_s = client.say(to_pcm(clip))
            ends_s = begins_s + len(clip) / OUTPUT_RATE_HZ
            await client.said()
            await client.answer(timeout_s=60)
            early = [
                at_s
                for at_s, event in client.events
                if event["type"] == "response.output_audio.delta" and at_s < ends_s
            ]
        finally:
            await client.__aexit__(None, None, None)
        cut_off.append(bool(early))
        words = " ".join(question.text.split()[:num_words])
        details.append({"before_pause": words, "pause_s": pause_s, "cut_off": bool(early)})
        if early:
            log(f"  cut off after {words!r} in a pause of {pause_s:.2f} s")
    log(f"  {sum(cut_off)} of {count} cut off")
    return {"count": count, "cut_off": sum(cut_off), "clips": details}


async def barge_in(url: str, count: int, log: Log) -> dict[str, Any]:
    """Interruptions: how soon the client is told, and that nothing of the response follows."""
    delays, details, late_deltas, cancelled = [], [], 0, 0
    for number in range(count):
        text = WORDS[7 * number % len(WORDS)]
        clip = material.speak(text, SYNTHESISERS[number % 2])  # now: later the client would stall
        client = await open_client(url)
        try:
            await client.update(instructions="Answer at length, in at least eight sentences.")
            await client.write("Tell me a long story about the sea.")
            await client.until("response.output_audio.delta")
            await asyncio.sleep(1.5)
            seen = len(client.events)
            begins_s = client.say(to_pcm(clip))
            await client.said()
            await client.until("input_audio_buffer.speech_started", after=seen)
            started_s = next(
                at_s
                for at_s, event in client.events[seen:]
                if event["type"] == "input_audio_buffer.speech_started"
            )
            done = await client.until("response.done", after=seen)
            response = done["response"]
            cancelled += (response.get("status_details") or {}).get("reason") == "turn_detected"
            await asyncio.sleep(1.0)
            types = [event for _, event in client.events[seen:]]
            after = types[types.index(done) + 1 :]
            late_deltas += sum(
                event["type"].endswith(".delta") and event.get("response_id") == response["id"]
                for event in after
            )
        finally:
            await client.__aexit__(None, None, None)
        delays.append(started_s - begins_s)
        details.append({"words": text, "delay_s": delays[-1]})
    result: dict[str, Any] = {
        "count": count,
        "cancelled_turn_detected": cancelled,
        "speech_started_p50_s": percentile(delays, 0.5),
        "speech_started_p95_s": percentile(delays, 0.95),
        "late_deltas": late_deltas,
        "clips": details,
    }
    log(
        f"  speech_started p50 {_ms(result['speech_started_p50_s'])}, "
        f"p95 {_ms(result['speech_started_p95_s'])}; {cancelled} of {count} cancelled; "
        f"{late_deltas} late deltas"
    )
    return result


async def bystanders(url: str, count: int, log: Log) -> dict[str, Any]:
    """Coughs, 'mm-hm' and the assistant's own echo at -20 dB: which of them interrupt it?

    The echo is what the client plays, from its first word on, 60 to 150 ms late.
    """
    results: dict[str, Any] = {}
    rng = np.random.default_rng(1)
    for kind in ("cough", "mm-hm", "echo"):
        interrupted = 0
        for number in range(count):
            if kind == "cough":
                clip = material.cough(rng)
            elif kind == "mm-hm":
                clip = material.mm_hm(7 * number % material.NUM_HUMS)
            client = await open_client(url)
            client.cuts_answers = False
            try:
                await client.update(instructions="Answer at length, in at least eight sentences.")
                await client.write("Tell me a long story about the sea.")
                await client.until("response.output_audio.delta")
                seen = len(client.events)
                if kind == "echo":
                    await echo(client, rng.uniform(0.06, 0.15), 5.0)
                else:
                    await asyncio.sleep(1.5)
                    client.say(to_pcm(clip))
                    await client.said()
                await asyncio.sleep(0.6)
                interrupted += any(
                    event["type"] == "input_audio_buffer.speech_started"
                    for _, event in client.events[seen:]
                )
            finally:
                await client.__aexit__(None, None, None)
        results[kind] = {"count": count, "interrupted": interrupted}
        log(f"  {kind}: {interrupted} of {count} interrupted")
    return results


async def echo(client: Client, delay_s: float, seconds: float) -> None:
    """Let the microphone hear, at ECHO_DB, what the client has been playing since it began."""
    ends_s = client.recording.user_s + seconds
    while (now_s := client.recording.user_s) < ends_s:
        first, last = (round((s - delay_s) * OUTPUT_RATE_HZ) for s in (now_s, now_s + ECHO_PIECE_S))
        piece = to_float(client.recording.tracks()[1][max(first, 0) : last])
        client.say(to_pcm(level_by(piece, ECHO_DB)))
        await client.said()
