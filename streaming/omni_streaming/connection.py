"""One client's connection: socket <-> session <-> worker, with bounded queues between them.

Called by :mod:`omni_streaming.server` once a client is admitted. Owns the clock, the voice-activity
state and the tasks of one WebSocket; knows nothing of the protocol beyond event names it counts.

    socket --receive--> Session.receive --commands--> Worker
    socket <--writer--- SendQueue <--events-- Session.handle <--outputs-- Worker

Backpressure: reading stops while the worker has many of this session's commands waiting, the send
queue is overfull, or the client has had its share of the loop; generation pauses while the send
queue is full; a client that does not catch up is closed with 1013. Work that would hold up other
sessions (a long message, seconds of audio at once) goes to a thread; long messages of all sessions
to the same one, for each takes five times its size while it is taken in.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from omni_encoders.vad import VoiceActivity
from starlette.websockets import WebSocket, WebSocketDisconnect

from omni.config import Config
from omni.types import INPUT_RATE_HZ, Edit, Output
from omni.worker import Worker
from omni_streaming.loop_share import LoopShare
from omni_streaming.memory import give_back_memory
from omni_streaming.metrics import Metrics, SessionMetrics
from omni_streaming.send_queue import SendQueue
from omni_streaming.session import Session

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

TICK_S = 0.04  # Session.tick wants at most 50 ms between calls
EDITS_AT_ONCE = 8  # a tick apart; a turn is one or two
EDITS_PER_S = 2  # after that: each renders and may compute a whole conversation anew
LONG_MESSAGE_BYTES = 256 * 1024  # parsing and resampling more than this would hold up the loop
FRAMES_AT_ONCE = 16  # voice activity takes about 0.2 ms per frame
MAX_PENDING_COMMANDS = 256  # reading stops above this; a session at rest has none or one
BACKPRESSURE_POLL_S = 0.01
GIVE_BACK_S = 1.0  # after the end of a session; by then its last commands have been carried out
CLOSE_TIMEOUT_S = 2.0  # for the close frame to be taken by the socket

Intent = Literal["realtime", "transcription"]

ABORT = "omni.abort"
"""In the ASGI scope's extensions: ``{"abort": () -> None}`` drops the TCP connection at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What every connection of a server shares."""

    config: Config
    worker: Worker
    vad: VoiceActivity
    model: str  # name shown to clients
    voices: Callable[[], tuple[str, ...]]  # the first is the default
    metrics: Metrics
    new_id: Callable[[str], str]
    sees_natively: Callable[[], bool]  # the model looks at pictures itself
    long_messages: Executor  # one thread: their memory is not needed several times over


class _Stalled(Exception):
    """The client does not read."""


class Connection:
    """Runs one admitted client until it leaves, fails or is told to go.

    Args:
        websocket: accepted.
        intent: ``transcription`` opens a transcription session.
        initial: the session object of the client's secret, if it came with one.
    """

    def __init__(
        self,
        websocket: WebSocket,
        service: Service,
        *,
        intent: Intent = "realtime",
        initial: Mapping[str, Any] | None = None,
    ) -> None:
        self._websocket = websocket
        self._service = service
        self._worker = service.worker
        self.session_id = service.new_id("sess")
        limits = service.config.server
        self._session = Session(
            session_id=self.session_id,
            config=service.config,
            model=service.model,
            voices=service.voices(),
            new_id=service.new_id,
            now_ms=_now_ms(),
            expires_at_s=int(time.time()) + limits.max_session_age_s,
            intent=intent,
            initial=initial,
            has_native_sight=service.sees_natively(),
        )
        self._share = LoopShare(time.monotonic())
        self._busy_s = 0.0  # on the loop, since it was last weighed
        self._session_lock = asyncio.Lock()  # held while a thread is inside the session
        self._in_thread: asyncio.Future[None] | None = None
        self._took_long_message = False
        self._vad_state = service.vad.open()
        self._metrics = SessionMetrics(service.metrics)
        self._queue = SendQueue(limits.max_send_queue_bytes, service.new_id)
        self._something_to_write = asyncio.Event()
        self._outputs: list[Output] = []
        self._outputs_came = asyncio.Event()
        self._close_code: tuple[int, str] | None = None
        self._is_held = False
        self._edited_s = 0.0  # when the assistant was last told of a changed conversation
        self._num_edits_due = float(EDITS_AT_ONCE)  # it may be told of so many changes now
        self._full_since_s: float | None = None
        self._send_since_s: float | None = None
        self._idle = asyncio.Event()  # no response is under way
        self._idle.set()

    async def run(self) -> None:
        """Serve the client; returns when the socket is closed. Never raises on a client's fault."""
        self._service.metrics.sessions.inc()
        self._worker.attach(self.session_id, self._deliver)
        self._flush()
        tasks = [
            asyncio.create_task(work, name=f"{self.session_id} {name}")
            for name, work in self._loops().items()
        ]
        code = 1011
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            code = await self._end(next(iter(done)))
        finally:
            for task in tasks:
                task.cancel()
            unfinished: list[asyncio.Future[Any]] = [*tasks]
            if self._in_thread is not None:
                unfinished.append(self._in_thread)
            await asyncio.gather(*unfinished, return_exceptions=True)
            self._session.close()
            self._worker.submit(self.session_id, self._session.commands())
            self._worker.detach(self.session_id)
            self._service.metrics.sessions.dec()
            self._service.metrics.ended.labels(str(code)).inc()
            self._service.metrics.dropped.inc(self._queue.num_dropped)
            if self._took_long_message:
                loop = asyncio.get_running_loop()
                long_messages = self._service.long_messages
                loop.call_later(GIVE_BACK_S, loop.run_in_executor, long_messages, give_back_memory)
            logger.info("session %s ended with %d", self.session_id, code)

    @property
    def is_answering(self) -> bool:
        """Whether a response is under way."""
        return not self._idle.is_set()

    async def drain(self, timeout_s: float) -> None:
        """Let the response under way finish or cancel it after ``timeout_s``; close with 1012."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        async with self._session_lock:
            self._session.close()
            self._flush()
        self._close(1012, "the server is going down; connect again")

    # --- the tasks -------------------------------------------------------------------------------

    def _loops(self) -> dict[str, Coroutine[None, None, int]]:
        """Each returns the close code with which the connection has ended."""
        return {
            "read": self._read(),
            "write": self._write(),
            "outputs": self._handle_outputs(),
            "tick": self._tick(),
        }

    async def _read(self) -> int:
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return int(message.get("code") or 1005)
            data: str | bytes = message.get("text") or message.get("bytes") or b""
            while self._is_overrun:
                await asyncio.sleep(BACKPRESSURE_POLL_S)
            async with self._session_lock:
                if len(data) > LONG_MESSAGE_BYTES:
                    await self._receive_in_thread(data)
                else:
                    with self._timed():
                        self._session.receive(data, _now_ms())
            await self._score()
            with self._timed():
                self._flush()
            # A flood of messages is received without ever waiting: let other sessions in.
            busy_s, self._busy_s = self._busy_s, 0.0
            await asyncio.sleep(self._share.rest_s(busy_s, time.monotonic()))

    @property
    def _is_overrun(self) -> bool:
        """Whether the worker or the socket has so much to do that nothing more may be asked."""
        return (
            self._worker.num_pending(self.session_id) > MAX_PENDING_COMMANDS
            or self._queue.is_overfull
        )

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        """Count the processor's time in the block against this client's share of the loop."""
        began_s = time.thread_time()
        yield
        self._busy_s += time.thread_time() - began_s

    async def _receive_in_thread(self, data: str | bytes) -> None:
        # Shielded: a cancelled await would leave the thread inside the session, unwaited for.
        loop = asyncio.get_running_loop()
        self._took_long_message = True
        self._in_thread = loop.run_in_executor(
            self._service.long_messages, self._session.receive, data, _now_ms()
        )
        await asyncio.shield(self._in_thread)

    async def _score(self) -> None:
        """Voice activity of the frames that have come in, in slices that yield to others."""
        frames = self._session.frames_to_score()
        for start in range(0, len(frames), FRAMES_AT_ONCE):
            part = frames[start : start + FRAMES_AT_ONCE]
            if len(frames) <= FRAMES_AT_ONCE:
                with self._timed():
                    probabilities = self._probabilities(part)
            else:
                probabilities = await asyncio.to_thread(self._probabilities, part)
            async with self._session_lock:
                self._session.score_frames(probabilities, _now_ms())
            if max(probabilities) >= self._service.config.turns.threshold:
                self._metrics.voice(time.monotonic())
            self._metrics.heard(sum(map(len, part)) / INPUT_RATE_HZ)
            self._flush()

    def _probabilities(self, frames: Sequence[NDArray[np.float32]]) -> list[float]:
        return [self._service.vad.probability(frame, self._vad_state) for frame in frames]

    async def _write(self) -> int:
        while True:
            while (frame := self._queue.get()) is None:
                if self._close_code is not None:
                    return await self._send_close(*self._close_code)
                self._something_to_write.clear()
                await self._something_to_write.wait()
            self._send_since_s = time.monotonic()
            await self._websocket.send_text(frame)
            self._send_since_s = None
            if self._is_held and self._queue.has_room:
                self._is_held = False
                self._worker.hold(self.session_id, False)

    async def _handle_outputs(self) -> int:
        while True:
            await self._outputs_came.wait()
            self._outputs_came.clear()
            outputs, self._outputs = self._outputs, []
            async with self._session_lock:
                for output in outputs:
                    self._metrics.output(output)
                    self._session.handle(output, _now_ms())
            self._flush()
            self._worker.acknowledge(self.session_id, len(outputs))

    async def _tick(self) -> int:
        limit_s = self._service.config.server.send_stall_s
        while True:
            await asyncio.sleep(TICK_S)
            async with self._session_lock:
                self._session.tick(_now_ms())
            self._flush()
            now_s = time.monotonic()
            for since_s in (self._full_since_s, self._send_since_s):
                if since_s is not None and now_s - since_s > limit_s:
                    raise _Stalled

    # --- between them ----------------------------------------------------------------------------

    def _deliver(self, outputs: Sequence[Output]) -> None:
        """Called by the worker on this loop."""
        self._outputs.extend(outputs)
        self._outputs_came.set()

    def _flush(self) -> None:
        """Pass on what the session wants said and done; pause generation if that is too much."""
        now_s = time.monotonic()
        since_s = now_s - self._edited_s
        num_due = min(self._num_edits_due + since_s * EDITS_PER_S, EDITS_AT_ONCE)
        commands = self._session.commands(edit=since_s >= TICK_S and num_due >= 1)
        for command in commands:
            self._metrics.command(command)
            if isinstance(command, Edit):
                self._edited_s = now_s
                self._num_edits_due = max(num_due - 1, 0)
        for event in self._session.events_to_send():
            self._metrics.event(event, now_s)
            self._queue.put(event)
        if self._queue.is_full:
            self._full_since_s = self._full_since_s or now_s
            if not self._is_held:
                self._is_held = True
                self._service.metrics.pauses.inc()
                self._worker.hold(self.session_id, True)
        else:
            self._full_since_s = None
        if commands:
            self._worker.submit(self.session_id, commands)
        if self._metrics.active_responses:
            self._idle.clear()
        else:
            self._idle.set()
        if self._session.close_code is not None:
            self._close(*self._session.close_code)
        self._something_to_write.set()

    def _close(self, code: int, reason: str) -> None:
        """Close once everything queued is written; the first reason counts."""
        self._close_code = self._close_code or (code, reason)
        self._something_to_write.set()

    # --- the end ---------------------------------------------------------------------------------

    async def _end(self, task: asyncio.Task[int]) -> int:
        """The task that ended first says why; returns the close code."""
        error = task.exception()
        match error:
            case None:
                return task.result()
            case WebSocketDisconnect():
                return error.code
            case _Stalled():
                logger.info("session %s: the client does not read; closed", self.session_id)
                return await self._send_close(1013, "the client does not read")
            case _:
                logger.error("session %s failed", self.session_id, exc_info=error)
                self._queue.put(_error_event(self._service.new_id("event")))
                with contextlib.suppress(WebSocketDisconnect, TimeoutError):
                    async with asyncio.timeout(CLOSE_TIMEOUT_S):
                        while (frame := self._queue.get()) is not None:
                            await self._websocket.send_text(frame)
                return await self._send_close(1011, "the session failed")

    async def _send_close(self, code: int, reason: str) -> int:
        """Send the close frame; drop the connection if the socket does not take it."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._websocket.close(code, reason)
        except TimeoutError:
            abort = self._websocket.scope.get("extensions", {}).get(ABORT)
            if abort is not None:
                abort["abort"]()
        except (WebSocketDisconnect, RuntimeError):  # it was closed already
            pass
        return code


def _error_event(event_id: str) -> dict[str, Any]:
    return {
        "type": "error",
        "event_id": event_id,
        "error": {
            "type": "server_error",
            "code": "server_error",
            "message": "the session failed; connect again",
            "param": None,
            "event_id": None,
        },
    }


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
