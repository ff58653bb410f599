"""The camera in somebody's hand: whether they move, and whether the picture can be judged.

Called by :mod:`omni_streaming.describe` with every look. Both answers have hysteresis, since a
picture is blurred for a moment at every step. Milliseconds on the describer's own clock.
"""

from __future__ import annotations

from typing import Literal

from omni_encoders.wording import ABSTENTIONS

from omni_streaming.describe_settings import (
    BAD_MS,
    CLEAR_MS,
    FAILING,
    FROZEN_MS,
    MOVING_AFTER_MS,
    MOVING_FROM,
    SEEING_AGAIN,
    SETTLE_MS,
    SLOW,
    STILL_AFTER_MS,
    STILL_FROM,
    STOPPED,
)

Sight = Literal["clear", "dark", "bright", "blurred", "covered", "failing", "stopped", "slow"]
"""What keeps us from seeing; a detector that fails and a camera that stops are among it."""


class Motion:
    """Whether the user moves, from how much of each picture moved."""

    def __init__(self) -> None:
        self.is_moving = False
        self.moved_ms = -STILL_AFTER_MS
        """When a picture last moved enough to count as moving."""
        self._since_ms: int | None = None  # since when the pictures say the contrary

    def is_stopping(self, now_ms: int) -> bool:
        """Whether the camera seems to have come to rest, and it is too early to be sure."""
        is_at_rest = self.is_moving and self._since_ms is not None
        return is_at_rest and now_ms - self.moved_ms >= SETTLE_MS

    def look(self, motion: float, now_ms: int) -> None:
        """Take how much of a picture moved, 0..1."""
        if motion >= MOVING_FROM:
            self.moved_ms = now_ms
        says_other = motion < STILL_FROM if self.is_moving else motion >= MOVING_FROM
        if not says_other:
            self._since_ms = None
            return
        if self._since_ms is None:
            self._since_ms = now_ms
        wait_ms = STILL_AFTER_MS if self.is_moving else MOVING_AFTER_MS
        if now_ms - self._since_ms >= wait_ms:
            self.is_moving = not self.is_moving
            self._since_ms = None


class Camera:
    """Whether we can see, and whether the user has been told so."""

    def __init__(self, now_ms: int) -> None:
        self.sight: Sight = "clear"
        """As of the last look, or for want of looks."""
        self._looked_ms = now_ms
        self._since_ms = now_ms  # since when the looks are clear, or not clear, without a break
        self._is_told_bad = False
        self._came_ms = now_ms - FROZEN_MS  # when the last picture came, looked at or not

    def came(self, now_ms: int) -> None:
        """A picture came; it has not been looked at yet."""
        self._came_ms = now_ms

    def look(self, sight: Sight, now_ms: int) -> None:
        """A new picture came; ``sight`` is how well it can be judged."""
        if (sight == "clear") != (self.sight == "clear"):
            self._since_ms = now_ms
        self.sight = sight
        self._looked_ms = now_ms

    def tick(self, now_ms: int) -> None:
        """Time passes; without pictures the camera has stopped, without looks we are too slow."""
        if now_ms - self._looked_ms >= FROZEN_MS:
            if self.sight == "clear":
                self._since_ms = self._looked_ms
            is_coming = now_ms - self._came_ms < FROZEN_MS
            self.sight = "slow" if is_coming else "stopped"

    def due(self, now_ms: int) -> str | None:
        """What the user should be told about the camera now; call :meth:`told` when it was."""
        is_bad = self.sight != "clear"
        if is_bad == self._is_told_bad:
            return None
        if now_ms - self._since_ms < (BAD_MS if is_bad else CLEAR_MS):
            return None
        return self.problem if is_bad else SEEING_AGAIN

    def is_untold(self, text: str) -> bool:
        """Whether ``text`` is what keeps us from seeing, and the user has not been told."""
        return self.sight != "clear" and not self._is_told_bad and text == self.problem

    def told(self) -> None:
        self._is_told_bad = self.sight != "clear"

    def untold(self) -> None:
        """The user did not hear it after all."""
        self._is_told_bad = not self._is_told_bad

    @property
    def problem(self) -> str:
        """What keeps us from seeing and what to do about it; only while something does."""
        assert self.sight != "clear"
        if self.sight in ("stopped", "slow"):
            return STOPPED if self.sight == "stopped" else SLOW
        return FAILING if self.sight == "failing" else ABSTENTIONS[self.sight]
