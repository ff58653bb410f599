"""Two threads beside the event loop: the engine thread and the parts thread.

The *engine* thread owns the assistant: it takes commands from a bounded inbox, steps while there is
work, sleeps on a condition when there is none, and hands outputs to each session on its own event
loop. The *parts* thread runs what takes longer than about 30 ms and cannot be stepped; the engine
thread never waits for it.

One session's failure ends one session: an exception while a command is taken fails that command's
response; an exception in a step fails the responses under way; an assistant that goes on failing is
built again. Knows nothing of sockets or of the protocol.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from omni.engine.outputs import EngineStats
from omni.errors import OmniError
from omni.parts import Parts, ThreadParts
from omni.types import (
    Cancel,
    Close,
    Command,
    Confirm,
    Done,
    Edit,
    Failed,
    Output,
    Pause,
    Respond,
    Resume,
    Speculate,
)

logger = logging.getLogger(__name__)

Deliver = Callable[[Sequence[Output]], None]
"""Called on the session's event loop with outputs in order."""

State = Literal["loading", "ready", "failed", "stopped"]

MAX_PENDING_COMMANDS = 4096
"""Commands of one session that wait in the inbox; beyond it the session fails.

Connections stop reading long before (see ``Worker.num_pending``), so only a bug gets here.
"""

MAX_IN_FLIGHT = 64
"""Outputs of one session on their way to it; beyond it the session pauses until half are handled.

An event loop that is busy with one session's flood must not keep a memory of it for minutes.
"""

SWITCH_INTERVAL_S = 0.001
"""How long a thread may keep the interpreter from others that wait for it (Python's own: 5 ms).

Every send of the event loop waits for it anew: with an engine thread busy in Python, a socket's
ping took 9 ms (p50) at 5 ms and 4 ms at 1 ms on 2 cores.
"""

MAX_FAILED_STEPS = 3
"""Steps in a row that raise before the assistant is built again."""


class Port(Protocol):
    """What the worker drives; see :class:`omni.assistant.Assistant`."""

    def submit(self, command: Command) -> None: ...

    def step(self) -> list[Output]: ...

    def has_work(self) -> bool: ...

    def stats(self) -> EngineStats | None: ...

    def close(self) -> None: ...


@dataclass(slots=True)
class _Client:
    """A session as the worker knows it; guarded by the worker's lock where not said otherwise."""

    deliver: Deliver
    loop: asyncio.AbstractEventLoop
    num_pending: int = 0  # commands in the inbox
    edit_at: int | None = None  # index of its last command in the inbox, if that is an Edit
    num_in_flight: int = 0  # outputs sent and not yet acknowledged
    is_held: bool = False  # by the session itself
    is_paused: bool = False  # as last told to the assistant
    responses: set[str] = field(default_factory=set)  # under way, engine thread only
    failed: set[str] = field(default_factory=set)  # Failed was sent; swallow what follows
    is_closed: bool = False  # a Close was submitted or the session failed
    is_detached: bool = False  # event loop thread only

    def hand_over(self, outputs: Sequence[Output]) -> None:
        if not self.is_detached:
            self.deliver(outputs)


class Worker:
    """Runs one assistant on its own thread for any number of sessions.

    Args:
        build: makes the assistant, on the engine thread; may take seconds (weights, warm-up).
        parts: where the assistant's heavy work runs; started and stopped with the worker.
    """

    def __init__(self, build: Callable[[Parts], Port], parts: ThreadParts | None = None) -> None:
        self._build = build
        self.parts = parts or ThreadParts()
        self.parts.on_finished = self._wake
        self._wakeup = threading.Condition()
        self._inbox: list[tuple[str, Command]] = []
        self._clients: dict[str, _Client] = {}
        self._is_stopping = False
        self._settled = threading.Event()
        self._num_failed_steps = 0
        self._thread = threading.Thread(target=self._run, name="omni-engine", daemon=True)
        self.state: State = "loading"
        self.failure: BaseException | None = None
        """Why ``state`` is ``failed``."""
        self.stats: EngineStats | None = None
        """The engine after its latest step, None without one: a value that any thread may read."""

    # --- called from event loops -----------------------------------------------------------------

    def start(self) -> None:
        """Start both threads. Sets the interpreter's switch interval for the whole process."""
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self.parts.start()
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End both threads; sessions hear nothing more. Idempotent."""
        with self._wakeup:
            self._is_stopping = True
            self._wakeup.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self.parts.stop()
        if self.state != "failed":
            self.state = "stopped"

    def wait(self, timeout_s: float | None = None) -> State:
        """Block until the assistant is built, or has failed to be."""
        self._settled.wait(timeout_s)
        return self.state

    def attach(self, session_id: str, deliver: Deliver) -> None:
        """Begin a session; ``deliver`` gets its outputs on the running event loop.

        Whoever handles them says so with :meth:`acknowledge`, or the session stays paused.
        """
        with self._wakeup:
            assert session_id not in self._clients, session_id
            self._clients[session_id] = _Client(deliver, asyncio.get_running_loop())

    def detach(self, session_id: str) -> None:
        """End a session: nothing is delivered any more; the assistant frees what it holds."""
        with self._wakeup:
            client = self._clients.pop(session_id, None)
            if client is None:
                return
            client.is_detached = True
            if not client.is_closed:
                client.is_closed = True
                self._inbox.append((session_id, Close(session_id)))
                self._wakeup.notify()

    def submit(self, session_id: str, commands: Iterable[Command]) -> None:
        """Queue ``commands`` in order; never blocks. Unknown sessions are ignored.

        A session with more than MAX_PENDING_COMMANDS waiting fails, and only it.
        """
        with self._wakeup:
            client = self._clients.get(session_id)
            if client is None or client.is_closed:
                return
            if self.state not in ("loading", "ready"):
                self._fail(session_id, None, "server_error", "the assistant has stopped")
                return
            for command in commands:
                client.is_closed = client.is_closed or isinstance(command, Close)
                self._put(session_id, client, command)
            if client.num_pending > MAX_PENDING_COMMANDS and not client.is_closed:
                self._inbox.append((session_id, Close(session_id)))
                self._fail(
                    session_id,
                    None,
                    "rate_limit_exceeded",
                    f"more than {MAX_PENDING_COMMANDS} commands are waiting; send more slowly",
                )
            self._wakeup.notify()

    def hold(self, session_id: str, is_held: bool) -> None:
        """Pause the session's generation, or let it go on: its client reads too slowly."""
        with self._wakeup:
            if client := self._clients.get(session_id):
                client.is_held = is_held
                self._regulate(session_id, client)

    def acknowledge(self, session_id: str, num_outputs: int) -> None:
        """The session has handled ``num_outputs`` more of what was delivered."""
        with self._wakeup:
            if client := self._clients.get(session_id):
                client.num_in_flight -= num_outputs
                self._regulate(session_id, client)

    def num_pending(self, session_id: str) -> int:
        """Commands of the session that the engine thread has not taken yet."""
        client = self._clients.get(session_id)
        return client.num_pending if client is not None else 0

    # --- the engine thread -----------------------------------------------------------------------

    def _wake(self) -> None:
        with self._wakeup:
            self._wakeup.notify()

    def _run(self) -> None:
        assistant = self._make()
        while assistant is not None:
            with self._wakeup:
                while not (
                    self._is_stopping
                    or self._inbox
                    or self.parts.is_ready()
                    or assistant.has_work()
                ):
                    self._wakeup.wait()
                if self._is_stopping:
                    break
                batch, self._inbox = self._inbox, []
                for session_id, _ in batch:
                    if client := self._clients.get(session_id):
                        client.num_pending -= 1
                        client.edit_at = None
            for session_id, command in batch:
                self._take(assistant, session_id, command)
            if not self._step(assistant):
                self._close(assistant)
                assistant = self._make()
            self.stats = assistant.stats() if assistant is not None else None
        if assistant is not None:
            self._close(assistant)

    def _make(self) -> Port | None:
        """Build the assistant; on failure the worker is dead and says why."""
        self.state = "loading"
        self._num_failed_steps = 0
        try:
            assistant = self._build(self.parts)
        except BaseException as error:  # kept: /readyz and omni serve show it
            if not isinstance(error, OmniError):
                logger.exception("the assistant could not be built")
            self.failure = error
            self.state = "failed"
            self._settled.set()
            self._fail_everybody()
            return None
        self.stats = assistant.stats()
        self.state = "ready"
        self._settled.set()
        return assistant

    def _close(self, assistant: Port) -> None:
        self.stats = None
        try:
            assistant.close()
        except Exception:
            logger.exception("the assistant could not be closed")
        self.parts.forget()

    def _take(self, assistant: Port, session_id: str, command: Command) -> None:
        client = self._clients.get(session_id)
        response_id = getattr(command, "response_id", None)
        if client is not None and isinstance(command, Respond | Speculate):
            client.responses.add(command.response_id)
        has_failed = client is not None and response_id in client.failed
        if has_failed and isinstance(command, Confirm | Cancel):
            return
        try:
            assistant.submit(command)
        except Exception as error:
            if not isinstance(error, OmniError):
                logger.exception("%s failed", type(command).__name__)
            code, message = _explain(error)
            if response_id is None:
                self._close_session(assistant, session_id)
            with self._wakeup:
                self._fail(session_id, response_id, code, message)

    def _step(self, assistant: Port) -> bool:
        """One step and its deliveries; False if the assistant must be built again."""
        try:
            outputs = assistant.step()
        except Exception as error:
            self._num_failed_steps += 1
            logger.exception("a step failed (%d in a row)", self._num_failed_steps)
            if self._num_failed_steps >= MAX_FAILED_STEPS:
                self._fail_everybody()
                return False
            self._fail_responses(assistant, *_explain(error))
            return True
        self._num_failed_steps = 0
        self._deliver(outputs)
        return True

    def _deliver(self, outputs: list[Output]) -> None:
        batches: dict[str, list[Output]] = {}
        for output in outputs:
            client = self._clients.get(output.session_id)
            if client is None:
                continue
            if isinstance(output, Done | Failed) and output.response_id is not None:
                client.responses.discard(output.response_id)
                if output.response_id in client.failed:
                    client.failed.discard(output.response_id)
                    continue
            if getattr(output, "response_id", None) in client.failed:
                continue
            batches.setdefault(output.session_id, []).append(output)
        with self._wakeup:
            for session_id, batch in batches.items():
                self._send(session_id, batch)

    def _fail_responses(self, assistant: Port, code: str, message: str) -> None:
        """A step failed and does not say whose it was: end every response that is under way."""
        for session_id, client in list(self._clients.items()):
            for response_id in list(client.responses):
                try:
                    assistant.submit(Cancel(session_id, response_id))
                except Exception:
                    logger.exception("a failed response could not be cancelled")
                with self._wakeup:
                    self._fail(session_id, response_id, code, message)

    def _fail_everybody(self) -> None:
        with self._wakeup:
            self._inbox.clear()
            for session_id, client in list(self._clients.items()):
                client.edit_at = None
                self._fail(session_id, None, "server_error", "the assistant had to be restarted")

    def _close_session(self, assistant: Port, session_id: str) -> None:
        try:
            assistant.submit(Close(session_id))
        except Exception:
            logger.exception("a failed session could not be closed")

    # --- both; the lock is held ------------------------------------------------------------------

    def _put(self, session_id: str, client: _Client, command: Command) -> None:
        """Append to the inbox; an Edit, being whole, takes the place of one right before it."""
        if isinstance(command, Edit) and client.edit_at is not None:
            self._inbox[client.edit_at] = (session_id, command)
            return
        client.edit_at = len(self._inbox) if isinstance(command, Edit) else None
        client.num_pending += 1
        self._inbox.append((session_id, command))

    def _fail(self, session_id: str, response_id: str | None, code: str, message: str) -> None:
        client = self._clients.get(session_id)
        if client is None:
            return
        if response_id is None:
            client.is_closed = True
        else:
            client.responses.discard(response_id)
            client.failed.add(response_id)
        self._send(session_id, [Failed(session_id, response_id, code, message)])

    def _send(self, session_id: str, outputs: list[Output]) -> None:
        client = self._clients.get(session_id)
        if client is None:
            return
        client.num_in_flight += len(outputs)
        self._regulate(session_id, client)
        try:
            client.loop.call_soon_threadsafe(client.hand_over, outputs)
        except RuntimeError:  # its event loop has ended, and the session with it
            self._clients.pop(session_id, None)
            self._inbox.append((session_id, Close(session_id)))

    def _regulate(self, session_id: str, client: _Client) -> None:
        """Tell the assistant when the session is to pause and when it may go on."""
        limit = MAX_IN_FLIGHT // 2 if client.is_paused else MAX_IN_FLIGHT
        should_pause = client.is_held or client.num_in_flight > limit
        if should_pause == client.is_paused or client.is_closed:
            return
        client.is_paused = should_pause
        self._put(session_id, client, Pause(session_id) if should_pause else Resume(session_id))
        self._wakeup.notify()


def _explain(error: Exception) -> tuple[str, str]:
    """(code, message) for the client; only our own errors are worded for others to read."""
    if isinstance(error, OmniError):
        return error.code, str(error)
    return "server_error", "the assistant failed; the server's log has the details"
