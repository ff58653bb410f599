"""Transcripts of the user's turns: when the client may see them, and what the context keeps.

Called by :mod:`omni_streaming.session`. Stable words of a turn are held until the turn is an item
(``committed``), unless the client asked for live words with ``transcription.delay``. A final
transcript that arrives before the end of the turn (a speculation hears to the end) waits too,
and is forgotten when the user goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from omni.types import Failed, TranscriptDelta, TranscriptDone
from omni_streaming import events
from omni_streaming.conversation import Content, ItemList


@dataclass(slots=True)
class _Transcript:
    stable: str = ""
    sent: str = ""
    done: TranscriptDone | None = None
    is_committed: bool = False
    is_shown: bool = False  # transcription was on when the turn ended


class Transcripts:
    """Transcripts of turns that are open or wait for their final text."""

    def __init__(self, emit: Callable[[events.Event], None], items: ItemList) -> None:
        self._emit = emit
        self._items = items
        self._turns: dict[str, _Transcript] = {}
        self.options: Mapping[str, Any] | None = None
        """``audio.input.transcription`` of the session."""

    def open(self, turn_id: str) -> None:
        """A turn that the assistant hears; idempotent."""
        self._turns.setdefault(turn_id, _Transcript())

    def forget(self, turn_id: str) -> None:
        """The turn was cleared or its item deleted."""
        self._turns.pop(turn_id, None)

    def add(self, delta: TranscriptDelta) -> None:
        """More stable words."""
        if (turn := self._turns.get(delta.turn_id)) is not None:
            turn.stable += delta.text
            self._send_stable(delta.turn_id, turn)

    def finish(self, done: TranscriptDone) -> None:
        """The final transcript."""
        if (turn := self._turns.get(done.turn_id)) is not None:
            turn.done = done
            self._settle(done.turn_id, turn)

    def reopen(self, turn_id: str) -> None:
        """The user goes on: a transcript called final was not."""
        if (turn := self._turns.get(turn_id)) is not None:
            turn.done = None

    def commit(self, turn_id: str) -> None:
        """The turn is an item now."""
        if (turn := self._turns.get(turn_id)) is not None:
            turn.is_committed = True
            turn.is_shown = self.options is not None
            self._send_stable(turn_id, turn)
            self._settle(turn_id, turn)

    def is_known_empty(self, turn_id: str) -> bool:
        """It is known already that no words were heard."""
        turn = self._turns.get(turn_id)
        return turn is not None and turn.done is not None and not turn.done.text.strip()

    def fail(self, failed: Failed) -> bool:
        """Take a failure that names a turn; False when it does not."""
        turn = self._turns.pop(failed.response_id or "", None)
        if turn is None:
            return False
        if turn.is_shown:
            assert failed.response_id is not None
            self._emit(events.transcription_failed(failed.response_id, failed.code, failed.message))
        return True

    def _send_stable(self, turn_id: str, turn: _Transcript) -> None:
        is_live = self.options is not None and self.options.get("delay") is not None
        if (turn.is_shown or (is_live and not turn.is_committed)) and turn.stable != turn.sent:
            self._emit(events.transcription_delta(turn_id, turn.stable[len(turn.sent) :]))
            turn.sent = turn.stable

    def _settle(self, turn_id: str, turn: _Transcript) -> None:
        done = turn.done
        if done is None or not turn.is_committed:
            return
        del self._turns[turn_id]
        if turn.is_shown:
            rest = done.text[len(turn.sent) :]
            if done.text.startswith(turn.sent) and rest:
                self._emit(events.transcription_delta(turn_id, rest))
            self._emit(events.transcription_completed(turn_id, done.text, done.duration_ms))
        content = self._content(turn_id)
        if content is not None:
            content.text = done.text.strip()
            content.is_shown = turn.is_shown

    def _content(self, turn_id: str) -> Content | None:
        item = self._items.get(turn_id)
        parts = item.content if item else ()
        return next((c for c in parts if c.turn_id == turn_id), None)
