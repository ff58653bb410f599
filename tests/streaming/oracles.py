"""Two judges of server events, for every test that sees one: the openai and openai-agents packages.

``check(event)`` raises AssertionError; ``Oracles`` keeps the state of one agents client, so that a
whole session is judged in order, as that client acts on it. Works inside and outside event loops.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pydantic
from agents.realtime.model import RealtimeModelListener
from agents.realtime.model_events import (
    RealtimeModelErrorEvent,
    RealtimeModelEvent,
    RealtimeModelExceptionEvent,
)
from agents.realtime.openai_realtime import OpenAIRealtimeWebSocketModel
from openai.types.realtime import RealtimeServerEvent

_STRICT: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(RealtimeServerEvent)

OURS = frozenset({"omni.output_audio.stop"})

UNTYPED = {"id", "object", "expires_at"}
"""Keys of the session object that the openai package types in REST answers only."""


class Oracles(RealtimeModelListener):
    """Judges the events of one session, in order."""

    def __init__(self) -> None:
        self._client = _SilentClient()
        self._problems: list[object] = []
        self._client.add_listener(self)

    async def on_event(self, event: RealtimeModelEvent) -> None:
        """What the agents client makes of an event; a server error is no problem, a bad one is."""
        if isinstance(event, RealtimeModelExceptionEvent) or (
            isinstance(event, RealtimeModelErrorEvent)
            and isinstance(event.error, pydantic.ValidationError)
        ):
            self._problems.append(event)

    def check(self, event: dict[str, Any]) -> None:
        """Judge one event."""
        assert event["event_id"]
        if event["type"] in OURS:
            return
        parsed = _STRICT.validate_python(event, strict=True)
        assert parsed.type == event["type"], f"{event['type']} parsed as {type(parsed)}"
        unknown = {key for key in _unknown_keys(parsed) if not key.startswith("session.omni")}
        unknown -= {f"session.{key}" for key in UNTYPED}
        assert not unknown, f"{event['type']} has keys the openai package does not know: {unknown}"
        _run(self._client._handle_ws_event(event))
        assert not self._problems, f"openai-agents rejects {event}: {self._problems}"

    def check_all(self, events: Iterable[dict[str, Any]]) -> None:
        """Judge events in order."""
        for event in events:
            self.check(event)


def check(event: dict[str, Any]) -> None:
    """Judge one event by itself."""
    Oracles().check(event)


class _SilentClient(OpenAIRealtimeWebSocketModel):
    """The agents client without a socket: what it would send is dropped."""

    async def _send_raw_message(self, event: Any) -> None:
        pass


def _run(coroutine: Any) -> None:
    """Run a coroutine that never has to wait."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()
    raise AssertionError("the agents client waited for something")


def _unknown_keys(value: object, path: str = "") -> Iterable[str]:
    if isinstance(value, pydantic.BaseModel):
        for key in value.model_extra or ():
            yield f"{path}{key}"
        for key in type(value).model_fields:
            yield from _unknown_keys(getattr(value, key), f"{path}{key}.")
    elif isinstance(value, list):
        for element in value:
            yield from _unknown_keys(element, path)
