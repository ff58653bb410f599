"""What holds for every stream of server events and of commands, whatever the client did.

:class:`EventInvariants` is fed server events in order (a session's, or a socket's in an end-to-end
test) and raises AssertionError at the first that breaks the protocol. :class:`CommandInvariants`
does the same for what a session asks of the assistant.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any

from omni.types import (
    AudioPart,
    CallPart,
    Cancel,
    Close,
    Command,
    Commit,
    Confirm,
    Conversation,
    Discard,
    Edit,
    Feed,
    MediaPart,
    Open,
    Respond,
    ResultPart,
    Say,
    ScoreTurn,
    Speculate,
    TextPart,
)

Event = dict[str, Any]
CONTENT = ("response.output_text.", "response.output_audio", "response.content_part.")


@dataclass
class _Item:
    is_message: bool
    is_done: bool = False
    is_part_open: bool = False
    is_part_done: bool = False
    text: str = ""
    done_text: str | None = None
    arguments: str = ""
    done_arguments: str | None = None
    num_audio_bytes: int = 0
    is_audio_done: bool = False


@dataclass
class _Response:
    created: Event
    items: dict[str, _Item] = field(default_factory=dict)
    done: Event | None = None


class EventInvariants:
    """The protocol's promises about one session's server events."""

    def __init__(self) -> None:
        self.responses: dict[str, _Response] = {}
        self.event_ids: set[str] = set()
        self.added: dict[str, bool] = {}  # conversation item -> done
        self.open_speech: str | None = None
        self.committed: list[str] = []
        self.last_offset_ms = 0
        self.num_events = 0

    @property
    def active(self) -> list[str]:
        """In-band responses without their response.done."""
        return [
            id_
            for id_, r in self.responses.items()
            if r.done is None and r.created["conversation_id"] is not None
        ]

    def check(self, event: Event) -> None:
        """Take the next event."""
        assert event["event_id"] not in self.event_ids, "event ids are unique"
        self.event_ids.add(event["event_id"])
        kind = event["type"]
        assert (kind == "session.created") == (self.num_events == 0), "session.created is first"
        self.num_events += 1
        if kind.startswith("response."):
            self._response(kind, event)
        elif kind.startswith("input_audio_buffer."):
            self._buffer(kind.removeprefix("input_audio_buffer."), event)
        elif kind == "conversation.item.added":
            item_id = event["item"]["id"]
            assert item_id not in self.added
            assert len(item_id) <= 32
            self.added[item_id] = False
        elif kind == "conversation.item.done":
            assert self.added[event["item"]["id"]] is False, "added, then done, once"
            self.added[event["item"]["id"]] = True
        elif kind == "conversation.item.deleted":
            self.added.pop(event["item_id"], None)

    def check_finished(self) -> None:
        """At the end of a session nothing is left open."""
        for response_id, response in self.responses.items():
            assert response.done is not None, f"{response_id} has no response.done"
        assert all(self.added.values()), "every item that was added is done"

    def _buffer(self, kind: str, event: Event) -> None:
        for key in ("audio_start_ms", "audio_end_ms"):
            if kind != "timeout_triggered" and key in event:
                assert event[key] >= self.last_offset_ms, "offsets only grow"
                self.last_offset_ms = event[key]
        if kind == "speech_started":
            assert self.open_speech is None
            self.open_speech = event["item_id"]
        elif kind == "speech_stopped":
            assert self.open_speech == event["item_id"]
            self.open_speech = None
        elif kind == "cleared":
            self.open_speech = None
        elif kind == "committed":
            if self.open_speech is not None:
                assert event["item_id"] == self.open_speech
                self.open_speech = None
            assert event["item_id"] not in self.committed
            self.committed.append(event["item_id"])

    def _response(self, kind: str, event: Event) -> None:
        if kind == "response.created":
            response = event["response"]
            assert response["id"] not in self.responses
            assert response["status"] == "in_progress"
            is_free = not self.active or response["conversation_id"] is None
            assert is_free, "one active response per conversation"
            self.responses[response["id"]] = _Response(response)
            return
        response_id = event.get("response_id") or event["response"]["id"]
        state = self.responses[response_id]
        assert state.done is None, f"{kind} after response.done"
        if kind == "response.done":
            self._done(state, event["response"])
            return
        if kind == "response.output_item.added":
            item = event["item"]
            assert event["output_index"] == len(state.items)
            assert all(i.is_done for i in state.items.values()), "one item after the other"
            assert item["status"] == "in_progress"
            assert item.get("content", []) == []
            state.items[item["id"]] = _Item(item["type"] == "message")
            return
        if kind == "response.output_item.done":
            entry = state.items[event["item"]["id"]]
            assert not entry.is_done
            assert not entry.is_message or entry.is_part_done
            assert entry.is_message or entry.done_arguments is not None
            entry.is_done = True
            return
        entry = state.items[event["item_id"]]
        assert list(state.items).index(event["item_id"]) == event["output_index"]
        assert not entry.is_done
        is_text = state.created["output_modalities"] == ["text"]
        what = kind.removeprefix("response.")
        match what:
            case "content_part.added":
                assert not entry.is_part_open
                assert event["part"]["type"] == ("text" if is_text else "audio")
                entry.is_part_open = True
            case "content_part.done":
                assert entry.is_part_open
                assert not entry.is_part_done
                assert entry.done_text is not None
                assert is_text or entry.is_audio_done
                text = event["part"]["text" if is_text else "transcript"]
                assert text == entry.text
                entry.is_part_done = True
            case "output_text.delta" | "output_audio_transcript.delta":
                assert is_text == (what == "output_text.delta")
                assert entry.is_part_open
                assert entry.done_text is None
                assert event["delta"]
                entry.text += event["delta"]
            case "output_text.done" | "output_audio_transcript.done":
                assert is_text == (what == "output_text.done")
                assert is_text or entry.is_audio_done, "audio is done before its transcript"
                entry.done_text = event["text" if is_text else "transcript"]
                assert entry.done_text == entry.text, "deltas concatenate to the done"
            case "output_audio.delta":
                assert not is_text
                assert entry.is_part_open
                assert not entry.is_audio_done
                data = base64.b64decode(event["delta"], validate=True)
                assert data
                audio_format = state.created["audio"]["output"]["format"]["type"]
                assert audio_format != "audio/pcm" or len(data) % 2 == 0
                entry.num_audio_bytes += len(data)
            case "output_audio.done":
                assert not is_text
                assert not entry.is_audio_done
                entry.is_audio_done = True
            case "function_call_arguments.delta":
                assert entry.done_arguments is None
                entry.arguments += event["delta"]
            case "function_call_arguments.done":
                entry.done_arguments = event["arguments"]
                assert entry.done_arguments == entry.arguments
            case _:
                raise AssertionError(f"unexpected {kind}")

    def _done(self, state: _Response, response: Event) -> None:
        state.done = response
        assert response["status"] in ("completed", "cancelled", "failed", "incomplete")
        assert response["usage"] is not None
        assert all(i.is_done for i in state.items.values()), "everything open is closed before"
        assert [i["id"] for i in response["output"]] == list(state.items)
        for key in ("output_modalities", "max_output_tokens", "audio", "metadata"):
            assert response[key] == state.created[key], f"{key} is that of the response's start"
        if response["status"] != "completed":
            assert response["status_details"]["type"] == response["status"]


class CommandInvariants:
    """What a session may ask of the assistant, and in which order."""

    def __init__(self) -> None:
        self.is_open = False
        self.is_closed = False
        self.turns: dict[str, int] = {}  # open turn -> position in samples
        self.ended: set[str] = set()
        self.speculations: dict[str, str] = {}  # response -> turn
        self.responses: set[str] = set()

    def check(self, command: Command) -> None:
        """Take the next command."""
        assert not self.is_closed, "nothing follows Close"
        assert self.is_open != isinstance(command, Open), "Open is first"
        match command:
            case Open():
                self.is_open = True
                check_context(command.conversation)
            case Edit():
                check_context(command.conversation)
            case Feed():
                assert command.turn_id not in self.ended, "an ended turn is not fed"
                assert len(command.samples)
                position = self.turns.get(command.turn_id)
                if position is not None:
                    assert command.start_ms == position // 16, "audio has no gaps"
                    position += len(command.samples)
                else:
                    position = command.start_ms * 16 + len(command.samples)
                # Positions are whole milliseconds at a turn's start; audio starts on a sample.
                self.turns[command.turn_id] = position
            case ScoreTurn():
                assert command.turn_id in self.turns
            case Commit() | Discard():
                assert command.turn_id in self.turns
                assert command.turn_id not in self.speculations.values()
                del self.turns[command.turn_id]
                self.ended.add(command.turn_id)
            case Speculate():
                assert command.turn_id in self.turns
                assert not self.speculations, "one speculation at a time"
                self.speculations[command.response_id] = command.turn_id
            case Confirm():
                turn_id = self.speculations.pop(command.response_id)
                del self.turns[turn_id]
                self.ended.add(turn_id)
                self.responses.add(command.response_id)
            case Say():
                assert command.text
                assert command.response_id not in self.responses
                self.responses.add(command.response_id)
            case Respond():
                if command.conversation is not None:
                    check_context(command.conversation)
                assert command.response_id not in self.responses
                self.responses.add(command.response_id)
            case Cancel():
                assert (
                    self.speculations.pop(command.response_id, None) is not None
                    or command.response_id in self.responses
                )
            case Close():
                self.is_closed = True
                assert not self.speculations


def check_context(conversation: Conversation) -> None:
    """A context is something a chat template can render."""
    called: set[str] = set()
    for message in conversation.messages:
        assert message.parts
        for part in message.parts:
            if isinstance(part, CallPart):
                assert message.role == "assistant"
                called.add(part.call_id)
            elif isinstance(part, ResultPart):
                assert message.role == "tool"
                assert part.call_id in called, "a result follows its call"
            elif isinstance(part, TextPart):
                assert part.text
            else:
                assert isinstance(part, AudioPart | MediaPart)
                assert message.role == "user"
