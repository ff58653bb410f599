"""Commands of one session on their way to the assistant.

Called by :mod:`omni_streaming.session` and :mod:`omni_streaming.turn_taking`. Audio of a turn
gathers until another command or the driver wants it, so that a burst goes down as one Feed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from omni.types import Command, Feed, Speculate


class CommandQueue:
    """Commands in order."""

    def __init__(self, session_id: str) -> None:
        self._session_id = session_id
        self._commands: list[Command] = []
        self._pieces: list[NDArray[np.float32]] = []
        self._feed_of: tuple[str, int] | None = None  # (turn, ms of the first piece)

    def add(self, command: Command) -> None:
        """Append a command; audio that was fed before goes before."""
        self._flush()
        self._commands.append(command)

    def feed(self, turn_id: str, samples: NDArray[np.float32], start_ms: int) -> None:
        """Append audio [n] of a turn; it continues what was fed of this turn before."""
        if self._feed_of is None or self._feed_of[0] != turn_id:
            self._flush()
            self._feed_of = (turn_id, start_ms)
        self._pieces.append(samples)

    def retract(self, response_id: str) -> bool:
        """Take back a Speculate that nobody has seen; False when it is gone already."""
        for index, command in enumerate(self._commands):
            if isinstance(command, Speculate) and command.response_id == response_id:
                del self._commands[index]
                return True
        return False

    def drain(self) -> list[Command]:
        """All commands since the last call."""
        self._flush()
        drained, self._commands = self._commands, []
        return drained

    def _flush(self) -> None:
        if self._feed_of is None:
            return
        (turn_id, start_ms), self._feed_of = self._feed_of, None
        pieces, self._pieces = self._pieces, []
        samples = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        self._commands.append(Feed(self._session_id, turn_id, samples, start_ms))
