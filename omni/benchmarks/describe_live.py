"""Live description by a running server, in real time over a WebSocket: latencies.

A client as the page in a browser is one: JPEGs at :data:`~.describe_material.FPS` a second, a
microphone, playback that ends when the server says so. Times are the client's.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from omni_streaming.client import Client, Event

from omni.assistant.watching import Watcher
from omni.benchmarks import describe_material as material
from omni.benchmarks import material as speech
from omni.benchmarks.conversation import (
    open_client,
    percentile,
    questions,
    to_pcm,
)
from omni.benchmarks.describe import EARLY_MS, is_towards
from omni.types import OUTPUT_RATE_HZ

SETTLED_S = 13.0
"""After this long the notice and the first overview are over."""
STORY_LEAD_S = 5.0
STORY = "Tell me a long story about the sea."
AT_LENGTH = "Answer at length, in at least eight sentences."

QUESTIONS = (
    ("What is in front of me?", "chelsea", ("cat",)),
    ("What animal is this?", "chelsea", ("cat",)),
    ("What do you see?", "street 500", ("person", "people", "car")),
    ("Are there any cars?", "street 0", ("yes", "car")),
    ("Is it an animal or a car?", "chelsea", ("animal", "cat")),
    ("What is there?", "street 650", ("person", "people", "car")),
)
"""Spoken question, picture, and words one of which is in a right answer."""

Log = Callable[[str], None]


@dataclass(slots=True)
class Heard:
    """One response; times on the client's time line."""

    kind: str  # of description; "assistant" for ordinary answers
    text: str
    created_s: float
    heard_s: float | None


class Camera:
    """Shows frames to the server, one every 1 / FPS seconds; the last one stays."""

    def __init__(self, client: Client, frames: Sequence[bytes]) -> None:
        self._client, self._frames = client, frames
        self.sent_s: list[float] = []
        self._task = asyncio.create_task(self._run())

    async def until(self, number: int) -> None:
        """Wait until frame ``number`` has been sent."""
        while len(self.sent_s) <= number:
            if self._task.done():
                await self._task
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        begin_s = self._client.now_s
        number = 0
        while True:
            if (wait_s := begin_s + number / material.FPS - self._client.now_s) > 0:
                await asyncio.sleep(wait_s)
            data = self._frames[min(number, len(self._frames) - 1)]
            image = base64.b64encode(data).decode()
            self.sent_s.append(self._client.now_s)
            taken_ms = 1000 * self.sent_s[-1]
            await self._client.send("omni.frame.append", image=image, taken_ms=taken_ms)
            number += 1


@contextlib.asynccontextmanager
async def describing(url: str, frames: Sequence[bytes]) -> AsyncIterator[tuple[Client, Camera]]:
    """A session in describe mode that is shown ``frames``."""
    client = await open_client(url)

    def stop(event: Event) -> None:
        if event["type"] == "omni.output_audio.stop":
            client.recording.cut(client.now_s)

    client.on_event = stop
    camera: Camera | None = None
    try:
        await client.update(omni={"describe": {}}, instructions=AT_LENGTH)
        camera = Camera(client, frames)
        yield client, camera
    finally:
        if camera is not None:
            await camera.close()
        await client.__aexit__(None, None, None)


def heard(client: Client, after_s: float) -> list[Heard]:
    """Responses created after a time."""
    found: list[Heard] = []
    for at_s, event in client.events:
        if event["type"] != "response.created" or at_s < after_s:
            continue
        metadata = event["response"].get("metadata") or {}
        kind = (
            metadata.get("omni_kind", "assistant") if "omni_frame_ms" in metadata else "assistant"
        )
        answer = client.answers[event["response"]["id"]]
        found.append(Heard(kind, answer.text.strip(), at_s, answer.heard_s))
    return found


async def first(
    client: Client, after_s: float, kinds: Iterable[str], timeout_s: float
) -> Heard | None:
    """The first response of these kinds after a time that is heard; None: none came in time."""
    wanted = set(kinds)
    give_up_s = client.now_s + timeout_s
    while client.now_s < give_up_s:
        for one in heard(client, after_s):
            if one.kind in wanted and one.heard_s is not None:
                return one
        await asyncio.sleep(0.02)
    return None


def _jpegs(pixels: material.Pixels, seconds: float) -> list[bytes]:
    return [material.jpeg(one.pixels) for one in material.still(pixels, seconds)]


# --- Warnings while the assistant talks ----------------------------------------------------------


async def warnings(url: str, watcher: Watcher, count: int, log: Log) -> dict[str, Any]:
    """Approaches while a story is told: from the first dangerous picture to the first sound."""
    crowd = material.people(watcher, 160)
    found: list[dict[str, Any]] = []
    for approach in material.approaches(count):
        frames = [material.jpeg(p.pixels) for p in material.approach_clip(approach, crowd)]
        danger = round(approach.danger_ms * material.FPS / 1000)
        async with describing(url, frames) as (client, camera):
            await camera.until(max(danger - round(STORY_LEAD_S * material.FPS), 1))
            await client.write(STORY)
            await camera.until(danger)
            danger_s = camera.sent_s[danger]
            was_talking = client.recording.play_end_s > danger_s
            one: Heard | None = None
            after_s, give_up_s = danger_s - EARLY_MS / 1000, danger_s + 8.0
            while one is None and client.now_s < give_up_s:
                one = await first(client, after_s, ["hazard"], 0.5)
                if one is not None and one.text and not is_towards(one.text, approach.x):
                    after_s, one = one.created_s + 0.001, None
            await asyncio.sleep(0.5)
        delay_s = one.heard_s - danger_s if one is not None and one.heard_s is not None else None
        found.append({**asdict(approach), "delay_s": delay_s, "was_talking": was_talking})
        shown = "NOT WARNED" if delay_s is None else f"{delay_s:+.2f} s"
        log(f"  {approach.speed_m_s} m/s: {shown}{'' if was_talking else ' (it was silent)'}")
    delays = [f["delay_s"] for f in found if f["delay_s"] is not None]
    return {
        "count": count,
        "warned": len(delays),
        "talking": sum(f["was_talking"] for f in found),
        "p50_s": percentile(delays, 0.5),
        "p95_s": percentile(delays, 0.95),
        "clips": found,
    }


# --- Changes -------------------------------------------------------------------------------------


async def changes(url: str, count: int, log: Log) -> dict[str, Any]:
    """Another scene from one frame to the next: until the first sound about it."""
    pictures = material.scenes()
    found: list[dict[str, Any]] = []
    for before, after in material.CHANGES[:count]:
        frames = _jpegs(pictures[before], SETTLED_S)
        switch = len(frames)
        frames += _jpegs(pictures[after], 8.0)
        async with describing(url, frames) as (client, camera):
            await camera.until(switch)
            switch_s = camera.sent_s[switch]
            one = await first(client, switch_s, ["change", "hazard"], 10.0)
            await asyncio.sleep(1.0)
            text = heard(client, one.created_s)[0].text if one is not None else ""
        delay_s = one.heard_s - switch_s if one is not None and one.heard_s is not None else None
        found.append({"before": before, "after": after, "delay_s": delay_s, "text": text})
        shown = "NOTHING SAID" if delay_s is None else f"{delay_s:.2f} s  {text!r}"
        log(f"  {before} -> {after}: {shown}")
    delays = [f["delay_s"] for f in found if f["delay_s"] is not None]
    return {
        "count": len(found),
        "told": len(delays),
        "p50_s": percentile(delays, 0.5),
        "p95_s": percentile(delays, 0.95),
        "clips": found,
    }


# --- Questions and text --------------------------------------------------------------------------


async def _asked(client: Client, text: str, number: int) -> tuple[float, float]:
    """Ask in silence; returns when the question began and ended (the clip has no silent ends)."""
    clip = await asyncio.to_thread(speech.speak, text, ("hibari", "flite")[number % 2])
    await client.heard()
    begins_s = client.say(to_pcm(clip))
    await client.said()
    return begins_s, begins_s + len(clip) / OUTPUT_RATE_HZ


async def asking(url: str, count: int, log: Log) -> dict[str, Any]:
    """Spoken questions about the picture: from their end to the first sound."""
    pictures = material.scenes()
    found: list[dict[str, Any]] = []
    for number, (question, name, words) in enumerate(QUESTIONS[:count]):
        async with describing(url, _jpegs(pictures[name], 4.0)) as (client, camera):
            await camera.until(round(SETTLED_S * material.FPS))
            begins_s, ends_s = await _asked(client, question, number)
            one = await first(client, begins_s, ["assistant", "answer"], 15.0)
            await asyncio.sleep(2.0)
            text = next((h.text for h in heard(client, begins_s) if h.text), "")
        is_right = any(word in text.lower() for word in words)
        delay_s = one.heard_s - ends_s if one is not None and one.heard_s is not None else None
        found.append(
            {"question": question, "picture": name, "delay_s": delay_s, "said": text}
            | {"is_right": is_right}
        )
        shown = "no answer" if delay_s is None else f"{delay_s:.2f} s"
        log(f"  {question!r} of {name}: {shown}, {'right' if is_right else 'WRONG'}: {text!r}")
    delays = [f["delay_s"] for f in found if f["delay_s"] is not None]
    return {
        "count": len(found),
        "answered": len(delays),
        "right": sum(f["is_right"] for f in found),
        "p50_s": percentile(delays, 0.5),
        "p95_s": percentile(delays, 0.95),
        "turns": found,
    }


async def reading(url: str, count: int, log: Log) -> dict[str, Any]:
    """ "Read it" before a sign: the first sound of any kind, and of the text."""
    found: list[dict[str, Any]] = []
    for lines in material.SIGNS[:count]:
        frames = _jpegs(material.sign(lines), 4.0)
        async with describing(url, frames) as (client, camera):
            await camera.until(round(SETTLED_S * material.FPS))
            begins_s, end_s = await _asked(client, "Read it to me.", 0)
            any_one = await first(client, begins_s, ["answer", "text", "framing"], 15.0)
            one = await first(client, begins_s, ["text"], 15.0)
            await asyncio.sleep(1.5)
            text = next((h.text for h in heard(client, begins_s) if h.kind == "text"), "")
        wanted = " ".join(lines).lower().split()
        num_right = sum(word in text.lower() for word in wanted)
        sound_s, text_s = (
            h.heard_s - end_s if h is not None and h.heard_s is not None else None
            for h in (any_one, one)
        )
        found.append(
            {"lines": lines, "said": text, "words": len(wanted), "right_words": num_right}
            | {"first_sound_s": sound_s, "text_s": text_s}
        )
        shown = "not read" if text_s is None else f"{text_s:.2f} s"
        log(f"  {' / '.join(lines)}: {shown}, {num_right} of {len(wanted)} words: {text!r}")
    times = {
        key: [f[key] for f in found if f[key] is not None] for key in ("first_sound_s", "text_s")
    }
    return {
        "count": len(found),
        "read": len(times["text_s"]),
        "words": sum(f["words"] for f in found),
        "right_words": sum(f["right_words"] for f in found),
        "first_sound_p95_s": percentile(times["first_sound_s"], 0.95),
        "text_p50_s": percentile(times["text_s"], 0.5),
        "text_p95_s": percentile(times["text_s"], 0.95),
        "signs": found,
    }


# --- Looks beside a conversation -----------------------------------------------------------------


async def looks(url: str, count: int, log: Log) -> dict[str, Any]:
    """Looks a second of eyes of their own on one core, while the server answers questions."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "omni.benchmarks.describe_looks",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        await process.stdout.readline()  # ready
        process.stdin.write(b"alone\n")
        alone = json.loads(await process.stdout.readline())
        process.stdin.write(b"beside\n")
        answers = await questions(url, count, None, log)
        process.stdin.write(b"end\n")
        beside = json.loads(await process.stdout.readline())
    finally:
        process.stdin.close()
        await process.wait()
    log(f"  {beside['fps']:.1f} looks a second, alone {alone['fps']:.1f}")
    return {
        "fps": beside["fps"],
        "alone_fps": alone["fps"],
        "answer_p50_s": answers["p50_s"],
    }
