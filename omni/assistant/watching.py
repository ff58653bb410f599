"""Frames of a session's camera become scenes, one after another, on the lane of looks.

Used by :mod:`omni.assistant.assistant` on the engine thread. What a scene means is for others to
decide; here frames are seen in order, and nothing of them is kept but what the eyes need to compare
the next one with.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from omni_encoders.eyes import Eyes, EyesState

from omni.assistant.priorities import PartPriority
from omni.errors import CancelledError, CapacityError, InputError, OmniError
from omni.parts import Parts, ShouldStop, Ticket
from omni.scene import Scene
from omni.types import Look, Output, Seen

if TYPE_CHECKING:
    from omni.assistant.session import Session

logger = logging.getLogger(__name__)

MAX_WAITING_FRAMES = 2
"""Frames of a session that wait to be seen; older ones are skipped, unless text is wanted."""


MAX_SCENES = 8
"""Scenes of the last frames that a question may be about."""

Fault = Literal["skipped", "bad_picture", "no_eyes"]


class Watcher(Protocol):
    """Eyes that follow a camera: :class:`LateEyes`, or a test's."""

    def look(
        self,
        picture: bytes | NDArray[np.uint8],
        at_ms: int,
        state: object | None,
        *,
        wants_text: bool = False,
        wants_main: bool = False,
        should_stop: ShouldStop = lambda: False,
    ) -> tuple[Scene, object]:
        """See one frame taken at ``at_ms``; ``state`` is what was seen before, None: nothing.

        Raises:
            InputError: it is no picture.
            CancelledError: ``should_stop()`` became true.
        """
        ...


@dataclass(slots=True)
class Watch:
    """One session's camera."""

    state: object | None = None  # the eyes' own, of the frames so far
    waiting: deque[Look] = field(default_factory=deque)
    ticket: Ticket | None = None
    scenes: dict[str, Scene] = field(default_factory=dict)  # of the last frames, by frame_id


class LateEyes:
    """Eyes that open at the first look: nobody who only talks waits for their weights."""

    def __init__(self, open_eyes: Callable[[], Eyes]) -> None:
        self._open = open_eyes
        self._eyes: Eyes | None = None
        self._lock = threading.Lock()

    def look(
        self,
        picture: bytes | NDArray[np.uint8],
        at_ms: int,
        state: object | None,
        *,
        wants_text: bool = False,
        wants_main: bool = False,
        should_stop: ShouldStop = lambda: False,
    ) -> tuple[Scene, object]:
        """As :meth:`omni_encoders.eyes.Eyes.look`.

        Raises:
            ModelError: there are no weights for them.
        """
        with self._lock:
            self._eyes = eyes = self._eyes or self._open()
        return eyes.look(
            picture,
            at_ms,
            state if isinstance(state, EyesState) else EyesState(),
            wants_text=wants_text,
            wants_main=wants_main,
            should_stop=should_stop,
        )


class Watching:
    """The cameras of all sessions; ``watcher`` None: there are no eyes."""

    def __init__(
        self, watcher: Watcher | None, parts: Parts, *, emit: Callable[[Output], None]
    ) -> None:
        self._watcher = watcher
        self._parts = parts
        self._emit = emit
        self._is_failing = False  # and the log has said why

    def look(self, session: Session, command: Look) -> None:
        """See a frame once those before it have been seen."""
        if self._watcher is None:
            self._tell(command, "no_eyes", "the detector is missing; run `omni fetch`")
            return
        watch = session.watch
        watch.waiting.append(command)
        while len(watch.waiting) > MAX_WAITING_FRAMES:
            skipped = next((w for w in watch.waiting if not w.wants_text), watch.waiting[0])
            watch.waiting.remove(skipped)
            self._tell(skipped, "skipped", "newer frames are waiting")
        if watch.ticket is None:
            self._next(watch)

    def close(self, session: Session) -> None:
        session.watch.waiting.clear()
        ticket, session.watch.ticket = session.watch.ticket, None
        if ticket is not None:
            ticket.cancel()

    def _next(self, watch: Watch) -> None:
        if not watch.waiting:
            return
        watcher, command, state = self._watcher, watch.waiting.popleft(), watch.state
        assert watcher is not None

        def work(should_stop: ShouldStop) -> tuple[Scene, object]:
            return watcher.look(
                command.data,
                command.at_ms,
                state,
                wants_text=command.wants_text,
                should_stop=should_stop,
            )

        ticket: Ticket

        def done(result: tuple[Scene, object] | BaseException) -> None:
            if watch.ticket is not ticket:  # the session is gone
                return
            watch.ticket = None
            if isinstance(result, InputError):
                self._tell(command, "bad_picture", str(result))
            elif isinstance(result, BaseException):
                is_full = isinstance(result, CancelledError | CapacityError)
                if not is_full:
                    self._log(result)
                self._tell(command, "skipped" if is_full else "no_eyes", str(result))
            else:
                self._is_failing = False
                scene, watch.state = result
                watch.scenes[command.frame_id] = scene
                while len(watch.scenes) > MAX_SCENES:
                    del watch.scenes[next(iter(watch.scenes))]
                self._emit(Seen(command.session_id, command.frame_id, scene))
            self._next(watch)

        watch.ticket = ticket = self._parts.eyes.submit(PartPriority.LOOK, work, done)

    def _log(self, error: BaseException) -> None:
        """Say why frames are not seen: once, since the next one comes in a moment."""
        if self._is_failing:
            return
        self._is_failing = True
        trace = None if isinstance(error, OmniError) else error
        logger.error("frames cannot be seen: %s", error, exc_info=trace)

    def _tell(self, command: Look, fault: Fault, reason: str) -> None:
        self._emit(Seen(command.session_id, command.frame_id, None, fault, reason))
