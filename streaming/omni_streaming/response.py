"""One response: the assistant's outputs become server events in the protocol's order.

Called by :mod:`omni_streaming.session`, which decides when a response starts and ends. Exactly one
``response.done`` ends it, every part that was opened is closed before, and the deltas of a part
concatenate to its ``*.done``.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from omni.types import (
    OUTPUT_RATE_HZ,
    AudioDelta,
    Done,
    Failed,
    Mark,
    Progress,
    TextDelta,
    ToolCall,
    Usage,
)
from omni_streaming import events
from omni_streaming.audio import Encoder
from omni_streaming.conversation import Content, Item, ItemList, Spoken
from omni_streaming.settings import ResponseSettings

MAX_DELTA_BYTES = 96_000
"""Audio in one delta: 2 s of PCM16, 128 kB of base64, far below the 1 MiB of a frame."""

NOTICE = "Sorry, something went wrong and I cannot answer that."
"""What the user sees when a response fails before it has said anything."""

SERVER_FAULTS = frozenset({"server_error", "rate_limit_exceeded"})
"""Codes of failures that are not the request's: it may be sent again as it is."""

Status = Literal["completed", "cancelled", "failed", "incomplete"]
ResponseOutput = TextDelta | AudioDelta | ToolCall | Progress | Done | Failed


class Player(Protocol):
    """The client's loudspeaker as the session imagines it."""

    def play(self, pcm: bytes) -> float:
        """``pcm`` (int16, 24 kHz) is sent now; returns when it begins to play, in ms."""


@dataclass(frozen=True, slots=True)
class Channels:
    """What a response writes to: events, the conversation, the loudspeaker, fresh ids."""

    emit: Callable[[events.Event], None]
    items: ItemList
    player: Player
    new_id: Callable[[str], str]


class Response:
    """A response that the client knows of; constructing it emits ``response.created``."""

    def __init__(
        self,
        response_id: str,
        settings: ResponseSettings,
        conversation_id: str,
        channels: Channels,
        turn_id: str | None = None,
        *,
        is_notice: bool = False,
    ) -> None:
        self.id = response_id
        self.settings = settings
        self.turn_id = turn_id
        """The turn that this response answers, if it answers one."""
        self.usage = Usage()
        """What it has cost so far, as far as the assistant has said."""
        self.has_output = False
        self.has_audio = False
        self._is_notice = is_notice  # its words stay out of the model's context
        self._conversation_id = conversation_id if settings.is_in_band else None
        self._channels = channels
        self._encoder = Encoder(settings.audio_format)
        self._output: list[Item] = []
        self._open: Item | None = None
        self._num_chars = 0
        self._num_samples = 0
        self._emit(events.response_event("created", self._shown("in_progress")))

    @property
    def is_in_band(self) -> bool:
        """It belongs to the conversation, of which at most one response is active."""
        return self.settings.is_in_band

    # --- Outputs ---------------------------------------------------------------------------------

    def add_text(self, text: str) -> None:
        """More of what is (being) said or written."""
        if not text:
            return
        item = self._message()
        item.content[0].text = (item.content[0].text or "") + text
        self._num_chars += len(text)
        is_text = self.settings.config.modality == "text"
        kind = "output_text.delta" if is_text else "output_audio_transcript.delta"
        self._emit_content(kind, item, delta=text)

    def add_audio(self, pcm: bytes, marks: Iterable[Mark]) -> None:
        """More speech: int16 at 24 kHz."""
        if self.settings.config.modality == "text" or not pcm:
            return
        item = self._message()
        assert item.spoken is not None
        plays_at_ms = self._channels.player.play(pcm) if self.is_in_band else 0.0
        item.spoken.add(len(pcm) // 2, marks, plays_at_ms)
        self._num_samples += len(pcm) // 2
        if self.is_in_band:
            self._channels.items.keep_audio(item.id, pcm, OUTPUT_RATE_HZ)
        self.has_audio = True
        self._emit_audio(item, self._encoder.push(pcm))

    def add_call(self, call_id: str, name: str, arguments: str) -> None:
        """A whole tool call."""
        self._close_message("completed")
        item = Item(
            self._channels.new_id("item"),
            "function_call",
            status="in_progress",
            name=name,
            call_id=call_id,
            response_id=self.id,
        )
        index = self._add_item(item)
        for kind, extra in (("delta", {"delta": arguments}), ("done", {"arguments": arguments})):
            if kind == "done":
                extra["name"] = name
            self._emit(
                events.of_call(
                    "delta" if kind == "delta" else "done",
                    self.id,
                    item.id,
                    index,
                    call_id,
                    **extra,
                )
            )
        item.arguments = arguments
        self._end_item(item, "completed")

    def add_notice(self, text: str = NOTICE) -> None:
        """Words for the user that are not the model's and stay out of its context."""
        self._message().is_notice = True
        self.add_text(text)

    def finish(
        self,
        status: Status,
        usage: Usage,
        reason: str | None = None,
        error: tuple[str, str] | None = None,
    ) -> None:
        """Close what is open and emit ``response.done``; ``error`` is (code, message)."""
        self._close_message("completed" if status == "completed" else "incomplete")
        details: dict[str, Any] | None = None
        if status != "completed":
            details = {"type": status, "reason": reason}
            if error is not None:
                code, message = error
                kind = "server_error" if code in SERVER_FAULTS else "invalid_request_error"
                details["error"] = {"type": kind, "code": code, "message": message}
        self._emit(events.response_event("done", self._shown(status, details, usage)))

    # --- Inside ----------------------------------------------------------------------------------

    def _message(self) -> Item:
        """The open message; opens one when there is none."""
        if self._open is not None:
            return self._open
        is_text = self.settings.config.modality == "text"
        item = Item(
            self._channels.new_id("item"),
            "message",
            "assistant",
            status="in_progress",
            response_id=self.id,
            spoken=None if is_text else Spoken(self._num_chars, self._num_samples),
            is_notice=self._is_notice,
        )
        self._add_item(item)
        item.content.append(Content("output_text" if is_text else "output_audio", ""))
        self._open = item
        self._emit_content("content_part.added", item, part=self._part(item))
        return item

    def _close_message(self, status: Literal["completed", "incomplete"]) -> None:
        item, self._open = self._open, None
        if item is None:
            return
        text = item.content[0].text or ""
        if item.spoken is None:
            self._emit_content("output_text.done", item, text=text)
        else:
            if status == "completed":
                item.spoken.is_complete = True
                self._emit_audio(item, self._encoder.flush())
            self._emit_content("output_audio.done", item)
            self._emit_content("output_audio_transcript.done", item, transcript=text)
        self._emit_content("content_part.done", item, part=self._part(item))
        self._end_item(item, status)

    def _add_item(self, item: Item) -> int:
        """Announce an item; returns its output_index."""
        index = len(self._output)
        self._output.append(item)
        self.has_output = True
        self._emit(events.output_item("added", self.id, index, item.shown()))
        if self.is_in_band:
            previous = self._channels.items.insert(item)
            self._emit(events.item_added(item.shown(), previous))
        return index

    def _end_item(self, item: Item, status: Literal["completed", "incomplete"]) -> None:
        item.status = status
        if self.is_in_band and item.id in self._channels.items:
            previous = self._channels.items.previous_id(item.id)
            self._emit(events.item_done(item.shown(), previous))
        index = self._output.index(item)
        self._emit(events.output_item("done", self.id, index, item.shown()))

    def _part(self, item: Item) -> dict[str, Any]:
        text = item.content[0].text or ""
        if item.spoken is None:
            return {"type": "text", "text": text}
        return {"type": "audio", "transcript": text}

    def _emit_audio(self, item: Item, data: bytes) -> None:
        for at in range(0, len(data), MAX_DELTA_BYTES):
            delta = base64.b64encode(data[at : at + MAX_DELTA_BYTES]).decode()
            self._emit_content("output_audio.delta", item, delta=delta)

    def _emit_content(self, kind: str, item: Item, **extra: Any) -> None:
        index = self._output.index(item)
        self._emit(events.of_content(kind, self.id, item.id, index, **extra))

    def _emit(self, event: events.Event) -> None:
        self._channels.emit(event)

    def _shown(
        self,
        status: str,
        details: dict[str, Any] | None = None,
        usage: Usage | None = None,
    ) -> dict[str, Any]:
        settings = self.settings
        audio_format: dict[str, Any] = {"type": settings.audio_format}
        if settings.audio_format == "audio/pcm":
            audio_format["rate"] = OUTPUT_RATE_HZ
        return {
            "object": "realtime.response",
            "id": self.id,
            "status": status,
            "status_details": details,
            "output": [item.shown() for item in self._output],
            "conversation_id": self._conversation_id,
            "output_modalities": [settings.config.modality],
            "max_output_tokens": settings.max_output_tokens,
            "audio": {"output": {"format": audio_format, "voice": settings.voice}},
            "usage": events.usage_object(usage) if usage else None,
            "metadata": dict(settings.metadata) if settings.metadata else None,
        }
