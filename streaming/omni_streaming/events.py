"""Client events parsed strictly, and server events built by small functions.

Called by :mod:`omni_streaming.session` and :mod:`omni_streaming.response`. Server events are dicts
without ``event_id``, which the session adds. Names and shapes are those of the OpenAI Realtime API
(GA); both ``openai`` and ``openai-agents`` validate every event in our tests.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NoReturn

from pydantic import Field, ValidationError

from omni.types import Usage
from omni_streaming.items import (
    MAX_ID_CHARS,
    ClientError,
    NewItem,
    ResponseParams,
    SessionPatch,
    Wire,
)

Event = dict[str, Any]

MAX_ELEMENTS = 50_000
"""Values in one message: parsing and checking more would hold the interpreter from other sessions
for too long, whichever thread does it. 128 tools with large schemas are about 15,000."""
MAX_CLOCK_MS = 2**53
"""Of a client's clock, either side of its beginning: whole milliseconds are exact so far."""
MAX_FAULTS = 100
"""Faults of one event that are looked through for the most telling one."""
MAX_PATH_CHARS = 200
"""Of a parameter's path in an error: clients choose the keys."""

ItemId = Annotated[str, Field(max_length=MAX_ID_CHARS)]

# --- Client events -------------------------------------------------------------------------------


class ClientEvent(Wire):
    type: str
    event_id: str | None = Field(None, max_length=512)


class SessionUpdate(ClientEvent):
    session: SessionPatch


class AppendAudio(ClientEvent):
    audio: str


class CommitAudio(ClientEvent):
    pass


class ClearAudio(ClientEvent):
    pass


class CreateItem(ClientEvent):
    item: NewItem
    previous_item_id: ItemId | None = None


class RetrieveItem(ClientEvent):
    item_id: ItemId


class TruncateItem(ClientEvent):
    item_id: ItemId
    content_index: int = Field(ge=0)
    audio_end_ms: int = Field(ge=0)


class DeleteItem(ClientEvent):
    item_id: ItemId


class CreateResponse(ClientEvent):
    response: ResponseParams | None = None


class CancelResponse(ClientEvent):
    response_id: ItemId | None = None


class AudioPlayed(ClientEvent):
    """Our own addition: how much of an item's audio the client has played, never answered."""

    item_id: ItemId
    content_index: int = Field(0, ge=0)
    played_ms: int = Field(ge=0)


class AppendFrame(ClientEvent):
    """Our own addition: one picture of the camera, for describe mode.

    ``image`` is a data URI or the base64 of an image file; ``taken_ms`` is on the client's clock.
    """

    image: str
    taken_ms: float | None = Field(None, ge=-MAX_CLOCK_MS, le=MAX_CLOCK_MS)


class DescribeCommand(ClientEvent):
    """Our own addition: a key or button of describe mode; the voice can do the same."""

    command: Literal["repeat", "more", "quiet", "resume", "front", "read", "stop"]


CLIENT_EVENTS: dict[str, type[ClientEvent]] = {
    "session.update": SessionUpdate,
    "input_audio_buffer.append": AppendAudio,
    "input_audio_buffer.commit": CommitAudio,
    "input_audio_buffer.clear": ClearAudio,
    "conversation.item.create": CreateItem,
    "conversation.item.retrieve": RetrieveItem,
    "conversation.item.truncate": TruncateItem,
    "conversation.item.delete": DeleteItem,
    "response.create": CreateResponse,
    "response.cancel": CancelResponse,
    "omni.output_audio.played": AudioPlayed,
    "omni.frame.append": AppendFrame,
    "omni.describe.command": DescribeCommand,
}


def parse_client_event(message: str | bytes) -> ClientEvent:
    """One WebSocket message as a client event.

    Raises:
        ClientError: with the code and param of the protocol's error table.
    """
    if isinstance(message, bytes):
        raise ClientError(
            "invalid_event", "Binary frames are not part of the protocol; send JSON text."
        )
    if not _is_bounded(message):
        raise ClientError(
            "invalid_value", f"The message has more than {MAX_ELEMENTS} values; send fewer at once."
        )
    data = parse_json(message)
    if not isinstance(data, dict):
        raise ClientError("invalid_event", "An event is a JSON object with a 'type'.")
    event_id = data.get("event_id")
    event_id = event_id if isinstance(event_id, str) and len(event_id) <= 512 else None
    kind = data.get("type")
    if kind is None:
        raise ClientError("invalid_event", "Missing required parameter: 'type'.", "type", event_id)
    model = CLIENT_EVENTS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise ClientError(
            "invalid_value",
            f"Invalid value: {str(kind)[:100]!r}. Supported events: {', '.join(CLIENT_EVENTS)}.",
            "type",
            event_id,
        )
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise_client_error(error, data, event_id)


_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[,\[{]', re.DOTALL)
"""A string, whole or without its end, or what comes before a value."""


def _is_bounded(message: str) -> bool:
    """Whether a message has at most MAX_ELEMENTS values; costs little however many it has."""
    if len(message) <= MAX_ELEMENTS or sum(map(message.count, ",[{")) <= MAX_ELEMENTS:
        return True
    # Commas may be a text's own: count outside strings, and no further than need be.
    num_elements = 0
    for token in _TOKEN.finditer(message):
        num_elements += message[token.start()] != '"'
        if num_elements > MAX_ELEMENTS:
            return False
    return True


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:32]} is out of range")
    return number


def parse_json(text: str, what: str = "message") -> object:
    """Strict JSON: no NaN, no number beyond a float, no lone surrogate. Raises ClientError."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    try:
        data = json.loads(text, parse_constant=refuse, parse_float=_finite)
        if "\\u" in text:  # a lone surrogate parses, but no UTF-8 frame could carry it back
            json.dumps(data, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ClientError("invalid_json", f"The {what} is not valid JSON: {error}") from None
    else:
        return data


def raise_client_error(
    error: ValidationError, data: object, event_id: str | None = None
) -> NoReturn:
    """The first fault of validating ``data`` as the protocol states it. Raises ClientError."""
    if error.error_count() > MAX_FAULTS:
        message = f"The event has {error.error_count()} faults."
        raise ClientError("invalid_value", message, None, event_id) from None
    faults = error.errors(include_url=False)
    fault = next((f for f in faults if f["type"] == "extra_forbidden"), faults[0])
    kind, value = fault["type"], fault["input"]
    path = _path(fault["loc"], data, keep_last=kind == "missing")[:MAX_PATH_CHARS]
    if kind == "extra_forbidden":
        message = f"Unknown parameter: '{path}'."
        raise ClientError("unknown_parameter", message, path, event_id) from None
    if kind in ("union_tag_not_found", "union_tag_invalid") and isinstance(value, dict):
        # Messages are told apart by role, everything else by type.
        key = "role" if value.get("type") == "message" else "type"
        path = f"{path}.{key}" if path else key
        if key not in value:
            kind = "missing"
    if kind == "missing":
        message = f"Missing required parameter: '{path}'."
        raise ClientError("missing_required_parameter", message, path, event_id) from None
    reason = fault["msg"]
    if kind == "union_tag_invalid":
        reason = "expected one of " + fault["ctx"]["expected_tags"].translate(_WITHOUT_BRACKETS)
    raise ClientError("invalid_value", f"Invalid '{path}': {reason}.", path, event_id) from None


_WITHOUT_BRACKETS = {ord("<"): None, ord(">"): None}


def _path(loc: tuple[int | str, ...], data: object, *, keep_last: bool) -> str:
    """``a.b[0].c`` of the parts of ``loc`` that are keys of ``data``; the rest name unions."""
    path = ""
    for index, part in enumerate(loc):
        if isinstance(part, int):
            path += f"[{part}]"
            data = data[part] if isinstance(data, list) and part < len(data) else None
        elif isinstance(data, dict) and part in data:
            path += f".{part}" if path else part
            data = data[part]
        elif keep_last and index == len(loc) - 1:
            path += f".{part}" if path else part
    return path


# --- Server events -------------------------------------------------------------------------------


def error(
    message: str,
    code: str | None,
    kind: str = "invalid_request_error",
    param: str | None = None,
    event_id: str | None = None,
) -> Event:
    """``event_id`` is that of the client event at fault."""
    fault = {"type": kind, "code": code, "message": message, "param": param, "event_id": event_id}
    return {"type": "error", "error": fault}


def session_created(session: Mapping[str, Any]) -> Event:
    return {"type": "session.created", "session": session}


def session_updated(session: Mapping[str, Any]) -> Event:
    return {"type": "session.updated", "session": session}


def stop_playback() -> Event:
    """Our own addition, in describe mode only: throw away what has not been played yet."""
    return {"type": "omni.output_audio.stop"}


def speech_started(item_id: str, audio_start_ms: int) -> Event:
    return {
        "type": "input_audio_buffer.speech_started",
        "item_id": item_id,
        "audio_start_ms": audio_start_ms,
    }


def speech_stopped(item_id: str, audio_end_ms: int) -> Event:
    return {
        "type": "input_audio_buffer.speech_stopped",
        "item_id": item_id,
        "audio_end_ms": audio_end_ms,
    }


def timeout_triggered(item_id: str, audio_start_ms: int, audio_end_ms: int) -> Event:
    return {
        "type": "input_audio_buffer.timeout_triggered",
        "item_id": item_id,
        "audio_start_ms": audio_start_ms,
        "audio_end_ms": audio_end_ms,
    }


def audio_committed(item_id: str, previous_item_id: str | None) -> Event:
    return {
        "type": "input_audio_buffer.committed",
        "item_id": item_id,
        "previous_item_id": previous_item_id,
    }


def audio_cleared() -> Event:
    return {"type": "input_audio_buffer.cleared"}


def item_added(item: Event, previous_item_id: str | None) -> Event:
    return {
        "type": "conversation.item.added",
        "item": item,
        "previous_item_id": previous_item_id,
    }


def item_done(item: Event, previous_item_id: str | None) -> Event:
    return {"type": "conversation.item.done", "item": item, "previous_item_id": previous_item_id}


def item_retrieved(item: Event) -> Event:
    return {"type": "conversation.item.retrieved", "item": item}


def item_truncated(item_id: str, content_index: int, audio_end_ms: int) -> Event:
    return {
        "type": "conversation.item.truncated",
        "item_id": item_id,
        "content_index": content_index,
        "audio_end_ms": audio_end_ms,
    }


def item_deleted(item_id: str) -> Event:
    return {"type": "conversation.item.deleted", "item_id": item_id}


def transcription_delta(item_id: str, delta: str) -> Event:
    return {
        "type": "conversation.item.input_audio_transcription.delta",
        "item_id": item_id,
        "content_index": 0,
        "delta": delta,
    }


def transcription_completed(item_id: str, transcript: str, duration_ms: int) -> Event:
    return {
        "type": "conversation.item.input_audio_transcription.completed",
        "item_id": item_id,
        "content_index": 0,
        "transcript": transcript,
        "usage": {"type": "duration", "seconds": duration_ms / 1000},
    }


def transcription_failed(item_id: str, code: str, message: str) -> Event:
    return {
        "type": "conversation.item.input_audio_transcription.failed",
        "item_id": item_id,
        "content_index": 0,
        "error": {"type": "transcription_error", "code": code, "message": message, "param": None},
    }


def response_event(kind: Literal["created", "done"], response: Event) -> Event:
    return {"type": f"response.{kind}", "response": response}


def output_item(
    kind: Literal["added", "done"], response_id: str, output_index: int, item: Event
) -> Event:
    return {
        "type": f"response.output_item.{kind}",
        "response_id": response_id,
        "output_index": output_index,
        "item": item,
    }


def of_content(kind: str, response_id: str, item_id: str, output_index: int, **extra: Any) -> Event:
    """An event about the one content part of a message: ``response.{kind}``."""
    return {
        "type": f"response.{kind}",
        "response_id": response_id,
        "item_id": item_id,
        "output_index": output_index,
        "content_index": 0,
        **extra,
    }


def of_call(
    kind: Literal["delta", "done"],
    response_id: str,
    item_id: str,
    output_index: int,
    call_id: str,
    **extra: str,
) -> Event:
    """``response.function_call_arguments.{kind}``."""
    return {
        "type": f"response.function_call_arguments.{kind}",
        "response_id": response_id,
        "item_id": item_id,
        "output_index": output_index,
        "call_id": call_id,
        **extra,
    }


def usage_object(usage: Usage) -> Event:
    """Tokens as ``response.done`` reports them; cached tokens are text in a text backbone."""
    num_input = usage.input_text_tokens + usage.input_audio_tokens + usage.input_image_tokens
    num_output = usage.output_text_tokens + usage.output_audio_tokens
    return {
        "total_tokens": num_input + num_output,
        "input_tokens": num_input,
        "output_tokens": num_output,
        "input_token_details": {
            "text_tokens": usage.input_text_tokens,
            "audio_tokens": usage.input_audio_tokens,
            "image_tokens": usage.input_image_tokens,
            "cached_tokens": usage.cached_tokens,
            "cached_tokens_details": {
                "text_tokens": usage.cached_tokens,
                "audio_tokens": 0,
                "image_tokens": 0,
            },
        },
        "output_token_details": {
            "text_tokens": usage.output_text_tokens,
            "audio_tokens": usage.output_audio_tokens,
        },
    }
