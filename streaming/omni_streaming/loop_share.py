"""How much of the event loop's time one client may take.

Used by :mod:`omni_streaming.protocols` for frames and :mod:`omni_streaming.connection` for
messages. A client that sends without end would else keep the loop, and with it the interpreter's
lock, from every other session: the cheapest frames cost us more than they cost the client. It is
not refused but read more slowly, until TCP holds it back. Sans-I/O; the clock is passed in.
"""

from __future__ import annotations

SHARE = 1 / 8
"""Of one core, for as long as the client sends; audio in real time takes about a hundredth."""

FREE_S = 0.1
"""Time on the processor that is not waited for: a large session.update, 500 items replayed."""


class LoopShare:
    """One client's account.

    Args:
        now_s: of a clock that runs while the client rests.
    """

    def __init__(self, now_s: float) -> None:
        self._spent_s = 0.0  # on the processor, less what has been its share since
        self._now_s = now_s

    def rest_s(self, busy_s: float, now_s: float) -> float:
        """How long to read no further, after ``busy_s`` on the processor up to ``now_s``."""
        paid_s = (now_s - self._now_s) * SHARE
        self._spent_s = max(self._spent_s - paid_s, 0.0) + busy_s
        self._now_s = now_s
        return max(self._spent_s - FREE_S, 0.0) / SHARE
