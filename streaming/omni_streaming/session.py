"""The state machine of one Realtime session: client events and outputs in, events and commands out.

Sans-I/O: :mod:`omni_streaming.connection` drives it and owns the socket, the clock and the voice
activity model. Two clocks are passed in: the samples received, and ``now_ms`` (monotonic
milliseconds, any origin). No method blocks, waits or reads a clock. Not thread-safe: one owner.

The cycle of a driver::

    session.receive(message, now_ms)              # one WebSocket message
    frames = session.frames_to_score()
    session.score_frames(vad(frames), now_ms)     # as many probabilities as frames
    for command in session.commands(): assistant.submit(command)
    for output in outputs: session.handle(output, now_ms)
    session.tick(now_ms)                          # at least every 50 ms
    for event in session.events_to_send(): send(event)
    if session.close_code: close(*session.close_code)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from omni.config import Config
from omni.types import Command, Output

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Session:
    """One Realtime session.

    Args:
        session_id: ``sess_...``; also the ``session_id`` of every command and output.
        config: the server's settings (turn detection, limits).
        model: the model name shown to the client.
        voices: names a client may ask for (aliases included); the first is the default.
        new_id: ``new_id("item")`` -> a fresh id such as ``item_x8...``, at most 32 characters.
        now_ms: monotonic milliseconds.
        expires_at_s: unix seconds at which the session ends, shown to the client.
        intent: ``transcription`` opens a transcription session (``?intent=transcription``).
        initial: a session object to apply at once (from a client secret); must be valid.
    """

    def __init__(
        self,
        *,
        session_id: str,
        config: Config,
        model: str,
        voices: tuple[str, ...],
        new_id: Callable[[str], str],
        now_ms: int,
        expires_at_s: int,
        intent: Literal["realtime", "transcription"] = "realtime",
        initial: Mapping[str, Any] | None = None,
    ) -> None:
        raise NotImplementedError

    close_code: tuple[int, str] | None
    """Set when the connection must close the socket: (WebSocket close code, reason)."""

    def receive(self, message: str | bytes, now_ms: int) -> None:
        """Take one WebSocket message; faults become ``error`` events, never exceptions."""
        raise NotImplementedError

    def frames_to_score(self) -> list[NDArray[np.float32]]:
        """Frames [512] float32 16 kHz that wait for a speech probability, in order; drained.

        Every frame returned must be answered, in order, through :meth:`score_frames`.
        """
        raise NotImplementedError

    def score_frames(self, probabilities: Sequence[float], now_ms: int) -> None:
        """Speech probabilities of the oldest frames handed out and not yet scored."""
        raise NotImplementedError

    def handle(self, output: Output, now_ms: int) -> None:
        """Take one output of the assistant; outputs of unknown turns or responses are dropped."""
        raise NotImplementedError

    def tick(self, now_ms: int) -> None:
        """Let time pass: idle, expiry, silent clients; at least every 50 ms."""
        raise NotImplementedError

    def report_played(self, item_id: str, played_ms: int, now_ms: int) -> None:
        """The client has played exactly ``played_ms`` of the item's audio (heard point).

        Also reachable as the client event ``omni.output_audio.played``
        ``{item_id, content_index: 0, played_ms}``, which is never answered.
        """
        raise NotImplementedError

    def events_to_send(self) -> list[dict[str, Any]]:
        """Server events in order, each with ``event_id`` and ``type``; drained."""
        raise NotImplementedError

    def commands(self) -> list[Command]:
        """Commands for the assistant in order; drained. The first is Open."""
        raise NotImplementedError

    def close(self) -> None:
        """End the session: ends responses, emits the Close command. Idempotent."""
        raise NotImplementedError
