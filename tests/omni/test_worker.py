"""The worker's threads: order, wake-ups, bounded queues, and failures that stay where they are."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager

import pytest

from omni.engine.outputs import EngineStats
from omni.errors import CancelledError, CapacityError, ModelError
from omni.parts import InlineParts, Parts, ThreadParts
from omni.types import (
    Cancel,
    Close,
    Command,
    Conversation,
    Done,
    Edit,
    Failed,
    Message,
    Open,
    Output,
    Pause,
    Respond,
    ResponseConfig,
    Resume,
    TextDelta,
    TextPart,
    Usage,
)
from omni.worker import (
    MAX_FAILED_STEPS,
    MAX_IN_FLIGHT,
    MAX_PENDING_COMMANDS,
    Worker,
)


class EchoPort:
    """Answers every Respond with its response id, one letter a step; can be told to fail."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.commands: list[Command] = []
        self.left: dict[tuple[str, str], str] = {}
        self.outputs: list[Output] = []
        self.fail_submit: Exception | None = None
        self.fail_steps = 0
        self.thread_ids: set[int] = set()
        self.paused: set[str] = set()
        self.is_closed = False
        self.engine_stats: EngineStats | None = None

    def submit(self, command: Command) -> None:
        self.thread_ids.add(threading.get_ident())
        self.commands.append(command)
        if self.fail_submit is not None:
            error, self.fail_submit = self.fail_submit, None
            raise error
        match command:
            case Respond(session_id, response_id):
                self.left[session_id, response_id] = response_id
            case Pause(session_id):
                self.paused.add(session_id)
            case Resume(session_id):
                self.paused.discard(session_id)
            case Cancel(session_id, response_id) if (session_id, response_id) in self.left:
                del self.left[session_id, response_id]
                self.outputs.append(Done(session_id, response_id, "cancelled", Usage()))

    def step(self) -> list[Output]:
        self.thread_ids.add(threading.get_ident())
        self.parts.poll()
        if self.fail_steps and self.left:
            self.fail_steps -= 1
            raise RuntimeError("broken step")
        outputs, self.outputs = self.outputs, []
        for (session_id, response_id), text in list(self.left.items()):
            if session_id in self.paused:
                continue
            if text:
                outputs.append(TextDelta(session_id, response_id, text[0]))
                self.left[session_id, response_id] = text[1:]
            else:
                outputs.append(Done(session_id, response_id, "completed", Usage()))
                del self.left[session_id, response_id]
        return outputs

    def stats(self) -> EngineStats | None:
        return self.engine_stats

    def has_work(self) -> bool:
        return bool(self.outputs) or any(key[0] not in self.paused for key in self.left)

    def close(self) -> None:
        self.is_closed = True


class Listener:
    """One session's end of the worker."""

    def __init__(self, worker: Worker, session_id: str) -> None:
        self.worker = worker
        self.session_id = session_id
        self.outputs: list[Output] = []
        self.acknowledges = True
        self._came = asyncio.Event()
        worker.attach(session_id, self._deliver)
        self.submit(Open(session_id, Conversation()))

    def _deliver(self, outputs: Sequence[Output]) -> None:
        self.outputs.extend(outputs)
        if self.acknowledges:
            self.worker.acknowledge(self.session_id, len(outputs))
        self._came.set()

    def submit(self, *commands: Command) -> None:
        self.worker.submit(self.session_id, commands)

    def respond(self, response_id: str) -> None:
        self.submit(Respond(self.session_id, response_id, ResponseConfig()))

    async def until(self, is_enough: Callable[[list[Output]], bool]) -> list[Output]:
        async with asyncio.timeout(10):
            while not is_enough(self.outputs):
                await self._came.wait()
                self._came.clear()
        return self.outputs

    async def until_ended(self, response_id: str) -> list[Output]:
        def ended(outputs: list[Output]) -> bool:
            return any(
                isinstance(o, Done | Failed) and o.response_id == response_id for o in outputs
            )

        await self.until(ended)
        return [o for o in self.outputs if getattr(o, "response_id", None) == response_id]


@asynccontextmanager
async def running(
    build: Callable[[Parts], EchoPort] = EchoPort, parts: ThreadParts | None = None
) -> AsyncIterator[tuple[Worker, list[EchoPort]]]:
    built: list[EchoPort] = []

    def keep(parts: Parts) -> EchoPort:
        built.append(build(parts))
        return built[-1]

    worker = Worker(keep, parts)
    worker.start()
    try:
        assert worker.wait(10) in ("ready", "failed")
        yield worker, built
    finally:
        worker.stop()


async def test_outputs_of_each_session_come_in_order_and_only_to_it() -> None:
    async with running() as (worker, built):
        listeners = [Listener(worker, f"s{i}") for i in range(5)]
        for listener in listeners:
            listener.respond(f"answer of {listener.session_id}")
        for listener in listeners:
            outputs = await listener.until_ended(f"answer of {listener.session_id}")
            text = "".join(o.text for o in outputs if isinstance(o, TextDelta))
            assert text == f"answer of {listener.session_id}"
            assert {o.session_id for o in listener.outputs} == {listener.session_id}
        assert len(built[0].thread_ids) == 1
        assert threading.get_ident() not in built[0].thread_ids


async def test_commands_keep_their_order() -> None:
    async with running() as (worker, built):
        listener = Listener(worker, "s")
        for i in range(50):
            listener.respond(f"{i}")
        await listener.until_ended("49")
        asked = [c.response_id for c in built[0].commands if isinstance(c, Respond)]
        assert asked == [f"{i}" for i in range(50)]


async def test_a_finished_part_wakes_a_sleeping_engine() -> None:
    go = threading.Event()

    class PartPort(EchoPort):
        def submit(self, command: Command) -> None:
            if isinstance(command, Respond):
                key = command.session_id, command.response_id

                def done(result: str | BaseException) -> None:
                    assert isinstance(result, str)
                    self.left[key] = result

                self.parts.submit(0, lambda _: str(go.wait(10)), done)

    async with running(PartPort) as (worker, built):
        listener = Listener(worker, "s")
        listener.respond("r")
        assert not built[0].has_work()
        go.set()
        outputs = await listener.until_ended("r")
        assert "".join(o.text for o in outputs if isinstance(o, TextDelta)) == "True"


async def test_a_command_that_raises_fails_its_response_and_nothing_else() -> None:
    async with running() as (worker, built):
        healthy, broken = Listener(worker, "healthy"), Listener(worker, "broken")
        healthy.respond("first")
        await healthy.until_ended("first")
        built[0].fail_submit = CapacityError("no free sequence of 24")
        broken.respond("r")
        outputs = await broken.until_ended("r")
        assert outputs == [Failed("broken", "r", "rate_limit_exceeded", "no free sequence of 24")]
        healthy.respond("second")
        assert len(await healthy.until_ended("second")) == len("second") + 1
        assert not any(isinstance(o, Failed) for o in healthy.outputs)


async def test_our_own_mistakes_are_not_told_to_clients(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as (worker, built):
        listener = Listener(worker, "s")
        listener.respond("warm")
        await listener.until_ended("warm")
        built[0].fail_submit = RuntimeError("secret detail")
        listener.respond("r")
        (failed,) = await listener.until_ended("r")
        assert isinstance(failed, Failed)
        assert failed.code == "server_error"
        assert "secret" not in failed.message
        assert "secret detail" in caplog.text


async def test_a_step_that_raises_ends_the_responses_under_way_and_the_server_goes_on() -> None:
    async with running() as (worker, built):
        listener = Listener(worker, "s")
        listener.respond("warm")
        await listener.until_ended("warm")
        built[0].fail_steps = 1
        listener.respond("r")
        outputs = await listener.until_ended("r")
        assert [type(o) for o in outputs] == [Failed]
        listener.respond("after")
        assert isinstance((await listener.until_ended("after"))[-1], Done)
        ends = [o for o in listener.outputs if isinstance(o, Done | Failed)]
        assert [o.response_id for o in ends] == ["warm", "r", "after"], "exactly one end each"
        assert len(built) == 1


async def test_stats_are_those_of_the_latest_step_and_of_the_assistant_that_is_there() -> None:
    def stats(num_steps: int) -> EngineStats:
        numbers = dict.fromkeys(EngineStats.__dataclass_fields__, 0)
        return EngineStats(**{**numbers, "num_steps": num_steps})

    threads: set[int] = set()

    class Counting(EchoPort):
        def stats(self) -> EngineStats | None:
            threads.add(threading.get_ident())
            return stats(len(self.commands))

    async with running(Counting) as (worker, built):
        assert worker.stats == stats(0)
        listener = Listener(worker, "s")
        listener.respond("r")
        await listener.until_ended("r")
        listener.respond("again")  # what came before its first output was published by then
        await listener.until(lambda o: any(getattr(x, "response_id", "") == "again" for x in o))
        assert worker.stats in (stats(2), stats(3))
        assert threads == built[0].thread_ids
    assert worker.stats is None


async def test_an_assistant_that_goes_on_failing_is_built_again() -> None:
    class Stubborn(EchoPort):
        def step(self) -> list[Output]:
            if self.fail_steps:
                self.fail_steps -= 1
                raise RuntimeError("broken for good")
            return super().step()

        def has_work(self) -> bool:
            return bool(self.fail_steps) or super().has_work()

    async with running(Stubborn) as (worker, built):
        listener = Listener(worker, "s")
        listener.respond("warm")
        await listener.until_ended("warm")
        built[0].fail_steps = MAX_FAILED_STEPS
        listener.respond("r")
        outputs = await listener.until(
            lambda o: any(isinstance(f, Failed) and f.response_id is None for f in o)
        )
        assert isinstance(outputs[-1], Failed)
        worker.detach("s")
        again = Listener(worker, "again")
        again.respond("hello")
        assert isinstance((await again.until_ended("hello"))[-1], Done)
        assert len(built) == 2
        assert built[0].is_closed
        assert worker.state == "ready"


async def test_an_assistant_that_cannot_be_built_makes_the_worker_fail_with_its_reason() -> None:
    def build(parts: Parts) -> EchoPort:
        raise ModelError("the weights are corrupt: run `omni fetch`")

    async with running(build) as (worker, _):
        assert worker.state == "failed"
        assert "corrupt" in str(worker.failure)
        listener = Listener(worker, "s")
        (failed,) = await listener.until(bool)
        assert isinstance(failed, Failed)
        assert failed.response_id is None


async def test_a_session_that_floods_the_inbox_fails_alone() -> None:
    stuck = threading.Event()

    class SlowPort(EchoPort):
        def submit(self, command: Command) -> None:
            if command.session_id == "slow":
                stuck.wait(10)
            super().submit(command)

    async with running(SlowPort) as (worker, _):
        slow, flood = Listener(worker, "slow"), Listener(worker, "flood")
        flood.submit(*(Cancel("flood", "x") for _ in range(MAX_PENDING_COMMANDS + 1)))
        assert worker.num_pending("flood") >= MAX_PENDING_COMMANDS
        await flood.until(bool)
        stuck.set()
        assert isinstance(flood.outputs[0], Failed)
        assert flood.outputs[0].code == "rate_limit_exceeded"
        slow.respond("fine")
        assert isinstance((await slow.until_ended("fine"))[-1], Done)
        assert not any(isinstance(o, Failed) for o in slow.outputs)


async def test_a_newer_edit_takes_the_place_of_one_that_waits_right_before_it() -> None:
    stuck = threading.Event()

    class SlowPort(EchoPort):
        def submit(self, command: Command) -> None:
            if command.session_id == "slow":
                stuck.wait(10)
            super().submit(command)

    def edit(session_id: str, text: str) -> Edit:
        message = Message("user", (TextPart(text),))
        return Edit(session_id, Conversation(messages=(message,)))

    async with running(SlowPort) as (worker, built):
        one, two = Listener(worker, "one"), Listener(worker, "two")
        one.respond("warm")
        await one.until_ended("warm")
        first = len(built[0].commands)
        slow = Listener(worker, "slow")
        try:
            while worker.num_pending("slow"):
                await asyncio.sleep(0)
            for index in range(10):
                one.submit(edit("one", f"{index}"))
                two.submit(edit("two", f"{index}"))
            assert worker.num_pending("one") == 1
            one.respond("r")
            one.submit(edit("one", "last"))
        finally:
            stuck.set()
        await one.until_ended("r")
        slow.respond("end")
        await slow.until_ended("end")
        taken = [c for c in built[0].commands[first:] if c.session_id == "one"]
        assert taken == [
            edit("one", "9"),
            Respond("one", "r", ResponseConfig()),
            edit("one", "last"),
        ]
        assert built[0].commands.count(edit("two", "9")) == 1
        assert edit("two", "8") not in built[0].commands


async def test_a_session_that_does_not_handle_its_outputs_is_paused_until_it_does() -> None:
    async with running() as (worker, built):
        lazy, busy = Listener(worker, "lazy"), Listener(worker, "busy")
        lazy.acknowledges = False
        lazy.respond("x" * 10 * MAX_IN_FLIGHT)
        busy.respond("y" * 10 * MAX_IN_FLIGHT)
        await busy.until_ended("y" * 10 * MAX_IN_FLIGHT)
        busy.respond("again")
        await busy.until_ended("again")
        assert len(lazy.outputs) <= MAX_IN_FLIGHT + 1, "one step at most after the limit"
        assert built[0].commands.count(Pause("lazy")) == 1
        lazy.acknowledges = True
        worker.acknowledge("lazy", len(lazy.outputs))
        assert len(await lazy.until_ended("x" * 10 * MAX_IN_FLIGHT)) == 10 * MAX_IN_FLIGHT + 1
        assert Resume("lazy") in built[0].commands


async def test_hold_pauses_a_session_and_release_lets_it_go_on() -> None:
    async with running() as (worker, built):
        held, other = Listener(worker, "held"), Listener(worker, "other")
        worker.hold("held", True)
        worker.hold("held", True)
        held.respond("r")
        other.respond("other")
        await other.until_ended("other")
        assert held.outputs == []
        worker.hold("held", False)
        assert isinstance((await held.until_ended("r"))[-1], Done)
        told = [c for c in built[0].commands if isinstance(c, Pause | Resume)]
        assert told == [Pause("held"), Resume("held")]


async def test_detach_frees_the_session_once_and_silences_it() -> None:
    async with running() as (worker, built):
        gone, stays = Listener(worker, "gone"), Listener(worker, "stays")
        gone.respond("x" * 1000)
        await gone.until(bool)
        worker.detach("gone")
        worker.detach("gone")
        num_heard = len(gone.outputs)
        stays.respond("r")
        await stays.until_ended("r")
        assert built[0].commands.count(Close("gone")) == 1
        assert len(gone.outputs) == num_heard


async def test_stop_ends_both_threads_even_with_work_left() -> None:
    async with running() as (worker, built):
        listener = Listener(worker, "s")
        listener.respond("x" * 1_000_000)
        await listener.until(bool)
        worker.stop()
        assert built[0].is_closed
        assert worker.state == "stopped"
        assert not [t for t in threading.enumerate() if t.name.startswith("omni-")]


# --- parts ---------------------------------------------------------------------------------------


@pytest.fixture
def thread_parts() -> Iterator[ThreadParts]:
    parts = ThreadParts(max_waiting=3)
    yield parts
    parts.stop()


def test_a_look_does_not_wait_behind_speech() -> None:
    parts = ThreadParts(eyes=ThreadParts(name="omni-eyes"))
    parts.start()
    results, is_seen, came = Results(), threading.Event(), threading.Event()
    parts.on_finished = came.set
    parts.submit(0, lambda _: is_seen.wait(10), results.done("speech"))
    parts.eyes.submit(4, lambda _: is_seen.set(), results.done("look"))
    while len(results.order) < 2:
        assert came.wait(10), "the look waited for the speech, which waits for the look"
        came.clear()
        parts.poll()
    assert results.by_name == {"look": None, "speech": True}
    parts.stop()
    assert not [t for t in threading.enumerate() if t.name.startswith("omni-")]


class Results:
    """Collects what `done` was called with."""

    def __init__(self) -> None:
        self.by_name: dict[str, object] = {}
        self.order: list[str] = []

    def done(self, name: str) -> Callable[[object], None]:
        def keep(result: object) -> None:
            assert name not in self.by_name, "done is called once"
            self.by_name[name] = result
            self.order.append(name)

        return keep


def finish(parts: ThreadParts, results: Results, num: int) -> None:
    came = threading.Event()
    parts.on_finished = came.set
    while len(results.order) < num:
        parts.poll()
        if len(results.order) < num:
            assert came.wait(10)
            came.clear()


def test_waiting_parts_run_by_priority_then_by_age(thread_parts: ThreadParts) -> None:
    ran: list[str] = []
    results = Results()
    for name, priority in (("late", 4), ("urgent", 0), ("urgent too", 0)):
        thread_parts.submit(priority, lambda _, n=name: ran.append(n), results.done(name))
    assert thread_parts.num_waiting == 3
    thread_parts.start()
    finish(thread_parts, results, 3)
    assert ran == ["urgent", "urgent too", "late"]
    assert thread_parts.num_waiting == 0


def test_a_full_queue_refuses_the_least_urgent_part(thread_parts: ThreadParts) -> None:
    results = Results()
    for name, priority in (("a", 1), ("b", 3), ("c", 1), ("d", 2), ("e", 3)):
        thread_parts.submit(priority, lambda _, n=name: n, results.done(name))
    assert results.by_name == {}, "done never runs inside submit"
    thread_parts.start()
    finish(thread_parts, results, 5)
    refused = {n for n, r in results.by_name.items() if isinstance(r, CapacityError)}
    assert refused == {"b", "e"}
    assert thread_parts.num_refused == 2


def test_cancel_before_a_part_begins_keeps_it_from_running(thread_parts: ThreadParts) -> None:
    results = Results()
    ran: list[str] = []
    ticket = thread_parts.submit(0, lambda _: ran.append("cancelled"), results.done("cancelled"))
    thread_parts.submit(1, lambda _: ran.append("kept"), results.done("kept"))
    ticket.cancel()
    ticket.cancel()
    thread_parts.start()
    finish(thread_parts, results, 2)
    assert ran == ["kept"]
    assert isinstance(results.by_name["cancelled"], CancelledError)


def test_cancel_reaches_a_running_part(thread_parts: ThreadParts) -> None:
    results = Results()
    began = threading.Event()

    def work(should_stop: Callable[[], bool]) -> str:
        began.set()
        while not should_stop():
            pass
        return "too late to matter"

    ticket = thread_parts.submit(0, work, results.done("r"))
    thread_parts.start()
    assert began.wait(10)
    ticket.cancel()
    finish(thread_parts, results, 1)
    assert isinstance(results.by_name["r"], CancelledError)


def test_what_work_raises_is_its_result(thread_parts: ThreadParts) -> None:
    results = Results()
    thread_parts.submit(0, lambda _: 1 // 0, results.done("bad"))
    thread_parts.submit(0, lambda _: 1, results.done("good"))
    thread_parts.start()
    finish(thread_parts, results, 2)
    assert isinstance(results.by_name["bad"], ZeroDivisionError)
    assert results.by_name["good"] == 1


def test_a_done_that_raises_does_not_lose_the_others() -> None:
    results = Results()
    parts = InlineParts()

    def bad(_: object) -> None:
        raise RuntimeError("bad done")

    parts.submit(0, lambda _: 1, bad)
    parts.submit(1, lambda _: 2, results.done("other"))
    with pytest.raises(RuntimeError, match="bad done"):
        parts.poll()
    assert results.by_name == {"other": 2}


def test_inline_parts_run_at_poll_and_leave_out_what_was_cancelled_meanwhile() -> None:
    results = Results()
    parts = InlineParts()
    ran: list[str] = []
    second = parts.submit(2, lambda _: ran.append("second"), results.done("second"))
    parts.submit(1, lambda _: ran.append("first"), lambda _: second.cancel())
    assert parts.is_ready()
    assert parts.num_waiting == 2
    assert ran == []
    parts.poll()
    assert ran == ["first"]
    assert isinstance(results.by_name["second"], CancelledError)
    assert not parts.is_ready()


def test_forgotten_parts_call_nobody(thread_parts: ThreadParts) -> None:
    results = Results()
    began, go = threading.Event(), threading.Event()

    def work(_: Callable[[], bool]) -> None:
        began.set()
        go.wait(10)

    thread_parts.submit(0, work, results.done("running"))
    thread_parts.submit(1, lambda _: None, results.done("waiting"))
    thread_parts.start()
    assert began.wait(10)
    thread_parts.forget()
    go.set()
    thread_parts.submit(0, lambda _: None, results.done("after"))
    finish(thread_parts, results, 1)
    assert results.order == ["after"]
