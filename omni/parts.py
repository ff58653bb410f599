"""The seam to work over about 30 ms that cannot be stepped: recogniser passes, scores, speech.

The assistant submits parts and gets their results back on its own thread; it never waits for one.
:class:`ThreadParts` runs them on a thread, for :mod:`omni.worker`; :class:`InlineParts` runs them
in :meth:`Parts.poll`, one after another, for tests and for tools without a worker.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from omni.errors import CancelledError, CapacityError

T = TypeVar("T")

MAX_WAITING_PARTS = 64
"""A session has at most a final pass, a partial pass, a score and a few clauses waiting."""

ShouldStop = Callable[[], bool]
"""Asked by work between layers or sentences; when true, raise CancelledError or return early."""


class Ticket(Protocol):
    """One submitted part."""

    def cancel(self) -> None:
        """Ask for the part not to run, or to stop; its result is CancelledError. Idempotent."""
        ...


class Parts(Protocol):
    """A bounded queue of work, most urgent first.

    ``done`` is called exactly once for every part, in :meth:`poll`, on the polling thread and never
    inside :meth:`submit` or :meth:`Ticket.cancel`: with the result, with the exception that the
    work raised, with CancelledError after a cancel, or with CapacityError if the queue was full.
    """

    @property
    def num_waiting(self) -> int:
        """Parts that have been submitted and have not begun."""
        ...

    @property
    def eyes(self) -> Parts:
        """The lane of looks, which never wait behind speech; polled with this one."""
        ...

    def submit(
        self,
        priority: int,
        work: Callable[[ShouldStop], T],
        done: Callable[[T | BaseException], None],
    ) -> Ticket:
        """Queue ``work``; the lowest ``priority`` runs first, equals in order of submission."""
        ...

    def is_ready(self) -> bool:
        """Whether :meth:`poll` would do anything."""
        ...

    def poll(self) -> None:
        """Call ``done`` of every finished part. Raises the first exception that a ``done`` raised,
        after all of them were called."""
        ...


class Job:
    """One part on its way through a queue; its own :class:`Ticket` where no thread shares it."""

    __slots__ = ("done", "is_cancelled", "number", "priority", "result", "work")

    def __init__(
        self,
        priority: int,
        number: int,
        work: Callable[[ShouldStop], Any],
        done: Callable[[Any], None],
    ) -> None:
        self.priority = priority
        self.number = number
        self.work = work
        self.done = done
        self.is_cancelled = False
        self.result: Any = None

    def __lt__(self, other: Job) -> bool:
        return (self.priority, self.number) < (other.priority, other.number)

    def cancel(self) -> None:
        self.is_cancelled = True

    def should_stop(self) -> bool:
        return self.is_cancelled

    def run(self) -> None:
        """Do the work here and now; never raises."""
        if self.is_cancelled:
            return
        try:
            self.result = self.work(self.should_stop)
        except BaseException as error:  # noqa: BLE001 - handed to `done`, whatever it is
            self.result = error

    def finish(self) -> None:
        """Call ``done``."""
        if self.is_cancelled:
            self.result = CancelledError("the part was cancelled")
        self.done(self.result)


def finish_all(jobs: Iterable[Job]) -> None:
    """Call every ``done``; raise the first exception only then, so that no result is lost."""
    first: Exception | None = None
    for job in jobs:
        try:
            job.finish()
        except Exception as error:  # noqa: BLE001 - raised below
            first = first or error
    if first is not None:
        raise first


class InlineParts:
    """Runs parts in :meth:`poll`, on the caller's thread: deterministic, for tests and tools.

    Parts submitted by a ``done`` wait for the next poll. The queue is not bounded.
    """

    def __init__(self) -> None:
        self._queue: list[Job] = []
        self._num_submitted = 0

    @property
    def num_waiting(self) -> int:
        return len(self._queue)

    @property
    def eyes(self) -> Parts:
        return self

    def submit(
        self,
        priority: int,
        work: Callable[[ShouldStop], T],
        done: Callable[[T | BaseException], None],
    ) -> Ticket:
        self._num_submitted += 1
        job = Job(priority, self._num_submitted, work, done)
        heapq.heappush(self._queue, job)
        return job

    def is_ready(self) -> bool:
        return bool(self._queue)

    def poll(self) -> None:
        jobs, self._queue = sorted(self._queue), []
        finish_all(self._run(jobs))

    def _run(self, jobs: list[Job]) -> Iterator[Job]:
        for job in jobs:  # lazily, so that what one `done` cancels does not run
            job.run()
            yield job


class ThreadParts:
    """One thread that runs parts, most urgent first.

    At most ``max_waiting`` parts wait. When full, the least urgent and latest part, waiting or new,
    is refused: its result is CapacityError.

    Args:
        on_finished: called on any thread when :meth:`poll` has something to do.
        initialise: called once on the parts thread before the first part (thread counts).
        eyes: a second lane with a thread of its own, started, polled and stopped with this one;
            None: looks queue here.
    """

    def __init__(
        self,
        *,
        max_waiting: int = MAX_WAITING_PARTS,
        on_finished: Callable[[], None] = lambda: None,
        initialise: Callable[[], None] = lambda: None,
        eyes: ThreadParts | None = None,
        name: str = "omni-parts",
    ) -> None:
        self._on_finished = on_finished
        self._eyes = eyes
        self.num_refused = 0
        self._max_waiting = max_waiting
        self._initialise = initialise
        self._lock = threading.Condition()
        self._waiting: list[Job] = []
        self._running: Job | None = None
        self._finished: list[Job] = []
        self._num_submitted = 0
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def eyes(self) -> Parts:
        return self._eyes or self

    @property
    def on_finished(self) -> Callable[[], None]:
        """Called on any thread when :meth:`poll` has something to do."""
        return self._on_finished

    @on_finished.setter
    def on_finished(self, value: Callable[[], None]) -> None:
        self._on_finished = value
        if self._eyes is not None:
            self._eyes.on_finished = value

    def start(self) -> None:
        self._thread.start()
        if self._eyes is not None:
            self._eyes.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Drop what waits, ask the running part to stop and wait for the thread. Idempotent."""
        with self._lock:
            self._is_stopping = True
            self._waiting.clear()
            if self._running is not None:
                self._running.is_cancelled = True
            self._lock.notify_all()
        if self._eyes is not None:
            self._eyes.stop(timeout_s)
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def submit(
        self,
        priority: int,
        work: Callable[[ShouldStop], T],
        done: Callable[[T | BaseException], None],
    ) -> Ticket:
        refused: Job | None = None
        with self._lock:
            self._num_submitted += 1
            job = Job(priority, self._num_submitted, work, done)
            heapq.heappush(self._waiting, job)
            if len(self._waiting) > self._max_waiting:
                refused = max(self._waiting)
                self._remove(refused)
                refused.result = CapacityError(
                    f"more than {self._max_waiting} parts are waiting; the server is overloaded"
                )
                self._finished.append(refused)
                self.num_refused += 1
            self._lock.notify()
        if refused is not None:
            self._on_finished()
        return _ThreadTicket(self, job)

    def is_ready(self) -> bool:
        return bool(self._finished) or (self._eyes is not None and self._eyes.is_ready())

    def poll(self) -> None:
        finish_all(self._taken())

    def _taken(self) -> list[Job]:
        """What has finished, the lane's included."""
        with self._lock:
            finished, self._finished = self._finished, []
        return finished + (self._eyes._taken() if self._eyes is not None else [])

    def forget(self) -> None:
        """Drop every part, the running one included: no ``done`` of theirs is called any more."""
        with self._lock:
            self._waiting.clear()
            self._finished.clear()
            if self._running is not None:
                self._running.is_cancelled = True
                self._running.done = lambda _: None
        if self._eyes is not None:
            self._eyes.forget()

    def cancel(self, job: Job) -> None:
        """Cancel ``job`` wherever it is: waiting, running, or finished and not yet polled."""
        with self._lock:
            job.is_cancelled = True
            if job not in self._waiting:
                return
            self._remove(job)
            self._finished.append(job)
        self._on_finished()

    def _remove(self, job: Job) -> None:
        self._waiting.remove(job)
        heapq.heapify(self._waiting)

    def _run(self) -> None:
        self._initialise()
        while True:
            with self._lock:
                self._running = None
                while not self._waiting and not self._is_stopping:
                    self._lock.wait()
                if self._is_stopping:
                    return
                job = self._running = heapq.heappop(self._waiting)
            job.run()
            with self._lock:
                self._finished.append(job)
            self._on_finished()


@dataclass(frozen=True, slots=True)
class _ThreadTicket:
    parts: ThreadParts
    job: Job

    def cancel(self) -> None:
        self.parts.cancel(self.job)
