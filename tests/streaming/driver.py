"""Drives a Session and a ScriptedAssistant on a virtual clock; every event meets the oracles."""

from __future__ import annotations

import base64
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omni_streaming.session import Session

from omni.config import Config
from omni.scripted import Answer, Script, ScriptedAssistant
from omni.types import Command, Edit, Output, Respond
from tests.streaming.oracles import Oracles

RATE_HZ = 24_000
CHUNK_MS = 20

README = (Path(__file__).parents[2] / "streaming" / "README.md").read_text(encoding="utf-8")
_TABLE = README.split("### Server events")[1].split("### Session fields")[0]
SERVER_EVENTS = set(
    re.findall(
        r"`((?:session|input_audio_buffer|conversation|response|omni)\.[a-z_.]+|error)`", _TABLE
    )
)
"""Server events that the README lists."""


LONG = Answer(text="one two three four five six seven eight nine ten")

SPOKEN = [
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    "response.output_audio_transcript.delta",
    "response.output_audio.delta",
]
DONE = [
    "response.output_audio.done",
    "response.output_audio_transcript.done",
    "response.content_part.done",
    "conversation.item.done",
    "response.output_item.done",
    "response.done",
]
ITEM = ["conversation.item.added", "conversation.item.done"]
TURN_END = ["input_audio_buffer.speech_stopped", "input_audio_buffer.committed", *ITEM]


def tone(ms: int, amplitude: float = 0.3, hz: float = 300.0) -> bytes:
    """PCM16 24 kHz with a few harmonics: 'speech' for the driver's voice detector."""
    at = np.arange(RATE_HZ * ms // 1000) / RATE_HZ
    wave = sum(np.sin(2 * np.pi * hz * k * at) / k for k in (1, 2, 3, 5, 8))
    return np.asarray(wave * amplitude / 2 * 32767).astype("<i2").tobytes()


def words(ms: int) -> bytes:
    """Sound whose spectrum moves as words' does: what may interrupt the assistant."""
    vowels = [tone(96, hz=140.0), tone(96, hz=700.0)] * (ms // 192 + 1)
    return b"".join(vowels)[: RATE_HZ * ms // 1000 * 2]


def silence(ms: int) -> bytes:
    return bytes(RATE_HZ * ms // 1000 * 2)


class Driver:
    """One session with its assistant; audio is sent in real time on the virtual clock."""

    def __init__(
        self, script: Script | None = None, config: Config | None = None, **session: Any
    ) -> None:
        self._counter = itertools.count()
        self.oracles = Oracles()
        self.now_ms = 1_000_000
        self.assistant = ScriptedAssistant(script=script)
        self.events: list[dict[str, Any]] = []
        self.commands: list[Command] = []
        arguments: dict[str, Any] = {
            "session_id": "sess_1",
            "config": config or Config(),
            "model": "scripted",
            "voices": ScriptedAssistant.voices,
            "new_id": self.new_id,
            "now_ms": self.now_ms,
            "expires_at_s": 1_800_000_000,
        }
        self.session = Session(**(arguments | session))
        self.pump()

    def new_id(self, prefix: str) -> str:
        return f"{prefix}_{next(self._counter)}"

    def pump(self) -> None:
        """Pass on commands and events."""
        for command in self.session.commands():
            self.commands.append(command)
            self.assistant.submit(command)
        for event in self.session.events_to_send():
            assert event["type"] in SERVER_EVENTS, "streaming/README.md does not list it"
            self.oracles.check(json.loads(json.dumps(event)))
            self.events.append(event)

    def send(self, type_: str, **fields: Any) -> list[dict[str, Any]]:
        """Send one client event; returns the events it caused at once."""
        return self.send_raw(json.dumps({"type": type_, **fields}))

    def send_raw(self, message: str | bytes) -> list[dict[str, Any]]:
        first = len(self.events)
        self.session.receive(message, self.now_ms)
        self.score()
        self.pump()
        return self.events[first:]

    def score(self) -> None:
        frames = self.session.frames_to_score()
        self.session.score_frames([self.probability(f) for f in frames], self.now_ms)

    @staticmethod
    def probability(frame: NDArray[np.float32]) -> float:
        return 0.95 if np.sqrt(np.mean(np.square(frame))) > 0.01 else 0.02

    def audio(self, pcm: bytes, *, steps: int = 0) -> list[dict[str, Any]]:
        """Send audio in real time, letting the assistant step ``steps`` times per 20 ms."""
        first = len(self.events)
        size = RATE_HZ * CHUNK_MS // 1000 * 2
        for at in range(0, len(pcm), size):
            self.now_ms += CHUNK_MS
            self.send(
                "input_audio_buffer.append", audio=base64.b64encode(pcm[at : at + size]).decode()
            )
            self.step(steps)
            self.session.tick(self.now_ms)
            self.pump()
        return self.events[first:]

    def step(self, count: int = 1) -> list[dict[str, Any]]:
        """Let the assistant take ``count`` steps."""
        first = len(self.events)
        for _ in range(count):
            self.handle(*self.assistant.step())
        return self.events[first:]

    def handle(self, *outputs: Output) -> None:
        for output in outputs:
            self.session.handle(output, self.now_ms)
        self.pump()

    def finish(self) -> list[dict[str, Any]]:
        """Step until the assistant has nothing left to do."""
        first = len(self.events)
        while self.assistant.has_work():
            self.step()
        return self.events[first:]

    def wait(self, ms: int, tick_ms: int = 40) -> list[dict[str, Any]]:
        """Let time pass without audio."""
        first = len(self.events)
        end_ms = self.now_ms + ms
        while self.now_ms < end_ms:
            self.now_ms = min(self.now_ms + tick_ms, end_ms)
            self.session.tick(self.now_ms)
            self.pump()
        return self.events[first:]

    def say(self, text: str) -> None:
        """A user's text item."""
        self.send(
            "conversation.item.create",
            item={
                "type": "message",
                "role": "user",
                "content": [{"type": "input_text", "text": text}],
            },
        )

    def commands_of(self, *kinds: type) -> list[Any]:
        return [c for c in self.commands if isinstance(c, kinds)]


def types(events: list[dict[str, Any]]) -> list[str]:
    """Event types, with runs of the same type as one."""
    return [kind for kind, _ in itertools.groupby(e["type"] for e in events)]


def of_type(events: list[dict[str, Any]], type_: str) -> list[dict[str, Any]]:
    return [e for e in events if e["type"] == type_]


def speak(driver: Driver, ms: int = 900, silence_ms: int = 700, steps: int = 1) -> None:
    driver.audio(tone(ms) + silence(silence_ms), steps=steps)


def messages(command: Edit | Respond) -> list[tuple[str, str]]:
    """(role, text or kind) of each message of a context."""
    context = command.conversation
    assert context is not None
    return [
        (m.role, " ".join(getattr(p, "text", type(p).__name__) for p in m.parts))
        for m in context.messages
    ]


def set_detection(driver: Driver, **detection: object) -> None:
    change = {"type": "realtime", "audio": {"input": {"turn_detection": detection or None}}}
    events = driver.send("session.update", session=change)
    assert types(events) == ["session.updated"]
