"""A sequence's tokens and state at one moment.

Made and restored by :mod:`omni.engine.engine`; opaque to its callers.
"""

from __future__ import annotations

from omni.engine.state import State
from omni.errors import InputError


class Snapshot:
    """A sequence's tokens and state at one moment; holds pages until released."""

    __slots__ = ("_state",)

    def __init__(self, state: State) -> None:
        self._state: State | None = state

    @property
    def state(self) -> State:
        """Raises InputError when the snapshot has been released."""
        if self._state is None:
            raise InputError("this snapshot has been released")
        return self._state

    @property
    def num_tokens(self) -> int:
        return self.state.num_known

    def forget(self) -> None:
        self._state = None
