"""Events that wait to be written to one client: bounded in bytes, in order, in frames clients take.

Used by :mod:`omni_streaming.connection`; does no I/O. Control events are never dropped: when the
queue is over its bound the connection pauses generation, and ends if the client does not catch up.
What a cancelled response still had to say is dropped, for nobody will play it.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

MAX_FRAME_BYTES = 2**20
"""Pipecat and the websockets client close the connection on larger messages."""

MAX_AUDIO_CHARS = 128 * 1024
"""Base64 of one audio delta; a multiple of 4 characters, 2 s of 24 kHz PCM16. Longer deltas are
split, so that a barge-in can drop what was not yet sent."""

OVERFULL = 4
"""Times the bound: room for the answers to a client that sends much before it reads."""

_AUDIO_DELTA = "response.output_audio.delta"


class SendQueue:
    """FIFO of encoded events.

    Args:
        max_bytes: above it :attr:`is_full`; a soft bound, for control events always fit.
        new_id: makes the event ids of split deltas.
    """

    def __init__(self, max_bytes: int, new_id: Callable[[str], str]) -> None:
        self._max_bytes = max_bytes
        self._new_id = new_id
        self._frames: deque[tuple[str, int, str | None]] = deque()
        """(frame, bytes, response id of audio)."""
        self.num_bytes = 0
        self.num_dropped = 0
        """Audio deltas dropped because their response was cancelled."""

    def __bool__(self) -> bool:
        return bool(self._frames)

    @property
    def is_full(self) -> bool:
        return self.num_bytes > self._max_bytes

    @property
    def is_overfull(self) -> bool:
        """Whether even answers to what the client asks are too much; sound alone stops before."""
        return self.num_bytes > self._max_bytes * OVERFULL

    @property
    def has_room(self) -> bool:
        """Whether generation may go on; lower than ``not is_full``, so as not to flutter."""
        return self.num_bytes <= self._max_bytes // 2

    def put(self, event: Mapping[str, Any]) -> None:
        """Queue one event; frames over MAX_FRAME_BYTES go out as an ``error`` in its place."""
        if event["type"] == _AUDIO_DELTA:
            for part in self._split(event):
                self._append(_encode(part), event["response_id"])
            return
        if event["type"] == "response.done" and event["response"]["status"] == "cancelled":
            self._drop_audio(event["response"]["id"])
        frame = _encode(event)
        if (num_bytes := _num_bytes(frame)) > MAX_FRAME_BYTES:
            frame = _encode(self._too_large(event, num_bytes))
        self._append(frame, None)

    def get(self) -> str | None:
        """Take the oldest frame, or None."""
        if not self._frames:
            return None
        frame, num_bytes, _ = self._frames.popleft()
        self.num_bytes -= num_bytes
        return frame

    def _append(self, frame: str, audio_of: str | None) -> None:
        num_bytes = _num_bytes(frame)
        self._frames.append((frame, num_bytes, audio_of))
        self.num_bytes += num_bytes

    def _split(self, event: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        audio: str = event["delta"]
        if len(audio) <= MAX_AUDIO_CHARS:
            yield event
            return
        for start in range(0, len(audio), MAX_AUDIO_CHARS):
            part = {**event, "delta": audio[start : start + MAX_AUDIO_CHARS]}
            if start:
                part["event_id"] = self._new_id("event")
            yield part

    def _drop_audio(self, response_id: str) -> None:
        kept = deque(entry for entry in self._frames if entry[2] != response_id)
        self.num_dropped += len(self._frames) - len(kept)
        self._frames = kept
        self.num_bytes = sum(num_bytes for _, num_bytes, _ in kept)

    def _too_large(self, event: Mapping[str, Any], num_bytes: int) -> dict[str, Any]:
        return {
            "type": "error",
            "event_id": event["event_id"],
            "error": {
                "type": "server_error",
                "code": "server_error",
                "message": f"{event['type']} needs {num_bytes} of {MAX_FRAME_BYTES} bytes",
                "param": None,
                "event_id": None,
            },
        }


def _encode(event: Mapping[str, Any]) -> str:
    # Unescaped: as escapes, an emoji of 4 bytes takes 12, and an item that fits no longer would.
    frame = json.dumps(event, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    try:
        _num_bytes(frame)
    except UnicodeEncodeError:  # half of a surrogate pair, such as a model can write in a call
        frame = json.dumps(event, separators=(",", ":"), ensure_ascii=True)
    return frame


def _num_bytes(frame: str) -> int:
    return len(frame) if frame.isascii() else len(frame.encode())  # audio deltas are ASCII
