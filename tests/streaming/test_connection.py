"""What bad clients and bad days do to one session, and that the others never notice."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import Iterator

import pytest
from omni_streaming.connection import EDITS_AT_ONCE, EDITS_PER_S
from omni_streaming.session import Session

from omni.parts import Parts
from omni.types import Cancel, Close, Command, Edit, Feed, Open, Pause, Resume
from tests.streaming.serving import (
    Chatter,
    Running,
    Socket,
    make_server,
    serving,
    serving_on_a_thread,
    settings,
    socket,
)

MIB = 2**20


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving_on_a_thread(make_server()) as url:
        yield url


async def still_talks(client: Socket) -> None:
    assert await client.answer("talk 3") == "1 2 3 "


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\xff\x13",
        "not json",
        "[]",
        "null",
        '"text"',
        "{}",
        '{"type": 5}',
        '{"type": "no.such.event"}',
        '{"type": "input_audio_buffer.append", "audio": "@@@"}',
        '{"type": "input_audio_buffer.append", "audio": "QUJD"}',
        '{"type": "input_audio_buffer.append"}',
        "[" * 100_000,
        '{"type": "session.update", "session": ' + '{"a":' * 3000 + "1" + "}" * 3001,
    ],
)
async def test_garbage_gets_one_error_and_the_session_goes_on(
    url: str, garbage: str | bytes
) -> None:
    async with socket(url) as client:
        await client.connection.send(garbage)
        event = await client.receive()
        assert event["type"] == "error"
        assert event["error"]["message"]
        await still_talks(client)
        assert [e["type"] for e in client.events].count("error") == 1


async def test_text_that_is_not_utf8_closes_that_connection_only() -> None:
    async with serving() as running, socket(running) as other, socket(running) as client:
        await client.connection.send(b"\xff\xfe", text=True)
        assert (await client.closed())[0] == 1007
        await still_talks(other)


async def test_a_message_over_the_limit_closes_that_connection_only() -> None:
    config = settings(max_append_bytes=MIB)
    async with serving(config) as running, socket(running) as other, socket(running) as client:
        await client.connection.send("x" * (2 * MIB))
        assert (await client.closed())[0] == 1009
        await still_talks(other)


async def test_an_append_of_fifteen_mebibytes_is_taken_while_others_talk() -> None:
    audio = base64.b64encode(bytes(15 * MIB // 4 * 3)).decode()
    async with serving() as running, socket(running) as other, socket(running) as client:
        await client.send("input_audio_buffer.append", audio=audio)
        await still_talks(other)
        await client.send("input_audio_buffer.clear")
        await client.until("input_audio_buffer.cleared")
        await still_talks(client)
        assert not any(e["type"] == "error" for e in client.events)


async def test_sessions_do_not_hear_each_other() -> None:
    async with serving() as running, socket(running) as one, socket(running) as two:
        answers = await asyncio.gather(one.answer("talk 40"), two.answer("talk 30"))
        assert answers[0].split() == [str(i) for i in range(1, 41)]
        assert answers[1].split() == [str(i) for i in range(1, 31)]
        ids = [
            {e["response_id"] for e in client.events if "response_id" in e} for client in (one, two)
        ]
        assert len(ids[0]) == len(ids[1]) == 1
        assert ids[0] != ids[1]


async def test_a_client_that_vanishes_mid_answer_frees_everything() -> None:
    async with serving() as running, socket(running) as other:
        async with socket(running) as client:
            await client.ask("talk 1000000")
            await client.until("response.output_audio.delta")
            client.connection.transport.abort()
        await still_talks(other)
        await until(lambda: running.server.num_sessions == 1)
        await until(lambda: len(running.chatter.conversations) == 1)
        assert not running.chatter.speeches
        closes = [c for c in running.chatter.commands if isinstance(c, Close)]
        assert len(closes) == 1


async def test_a_client_that_stops_reading_pauses_generation_and_is_dropped() -> None:
    config = settings(max_send_queue_bytes=MIB, send_stall_s=1)
    async with serving(config) as running, socket(running) as other:
        async with socket(running) as client:
            client.connection.transport.pause_reading()
            await client.ask("talk 1000000")
            await until(lambda: has(running, Pause))
            await still_talks(other)
            await until(lambda: running.server.num_sessions == 1)
            client.connection.transport.abort()
        assert running.metric("omni_send_pauses_total") >= 1
        assert running.metric("omni_sessions_ended_total", code="1013") == 1
        spoken = running.metric("omni_audio_seconds_total", direction="out")
        assert spoken < 300, "generation stopped soon after the queue was full"
        await still_talks(other)


async def test_a_slow_client_that_catches_up_gets_the_whole_answer() -> None:
    config = settings(max_send_queue_bytes=MIB // 2)
    async with serving(config) as running, socket(running) as client:
        client.connection.transport.pause_reading()
        await client.ask("talk 300")
        await until(lambda: has(running, Pause))
        client.connection.transport.resume_reading()
        await client.until("response.done")
        words = [
            e["delta"].strip()
            for e in client.events
            if e["type"] == "response.output_audio_transcript.delta"
        ]
        assert words == [str(i) for i in range(1, 301)]
        audio = [e for e in client.events if e["type"] == "response.output_audio.delta"]
        assert sum(len(base64.b64decode(e["delta"])) for e in audio) == 300 * 48_000
        assert has(running, Resume)


async def test_after_a_cancel_no_audio_that_waited_is_sent() -> None:
    async with serving() as running, socket(running) as client:
        client.connection.transport.pause_reading()
        await client.ask("talk 100000")
        await until(lambda: has(running, Pause))
        await client.send("response.cancel")
        await until(lambda: has(running, Cancel))
        client.connection.transport.resume_reading()
        done = await client.until("response.done")
        assert done["response"]["status"] == "cancelled"
        await still_talks(client)


async def test_an_answer_that_crashes_fails_and_the_next_one_is_fine() -> None:
    async with serving() as running, socket(running) as other, socket(running) as client:
        for text in ("crash", "crash later"):
            await client.ask(text)
            done = await client.until("response.done")
            assert done["response"]["status"] == "failed"
            await still_talks(client)
            await still_talks(other)
        assert running.server.worker.state == "ready"


async def test_a_bug_in_one_session_ends_it_with_1011(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as running, socket(running) as other, socket(running) as client:
        receive = Session.receive

        def broken(self: Session, message: str | bytes, now_ms: int) -> None:
            if "boom" in str(message):
                raise ZeroDivisionError("a bug")
            receive(self, message, now_ms)

        monkeypatch.setattr(Session, "receive", broken)
        await client.send("boom")
        code, reason = await client.closed()
        assert code == 1011
        assert client.events[-1]["error"]["code"] == "server_error"
        assert "bug" not in reason + json.dumps(client.events), "our mistakes are ours"
        assert "a bug" in caplog.text
        await still_talks(other)


async def test_what_is_said_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "omni")
    caplog.set_level(logging.DEBUG, "omni_streaming")
    async with serving() as running, socket(running) as client:
        await client.answer("my secret diary")
        await client.connection.send("private garbage")
        await client.until("error")
    assert "secret diary" not in caplog.text
    assert "private garbage" not in caplog.text


async def test_reading_stops_while_the_assistant_is_busy() -> None:
    class Busy(Chatter):
        """Takes commands of turns slowly: 1 ms each."""

        def submit(self, command: Command) -> None:
            if isinstance(command, Feed):
                import time

                time.sleep(0.001)
            super().submit(command)

    chunk = base64.b64encode(bytes(range(256)) * 4).decode()
    async with serving(build=Busy) as running, socket(running) as client:
        off = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}
        await client.send("session.update", session=off)
        await client.until("session.updated")
        for _ in range(1000):
            await client.send("input_audio_buffer.append", audio=chunk)
        await client.send("input_audio_buffer.clear")
        await client.until("input_audio_buffer.cleared")
        assert not any(e["type"] == "error" for e in client.events)
        await still_talks(client)


async def test_fifty_sessions_come_and_go_without_a_trace() -> None:
    async def visit(running: Running, index: int) -> None:
        # A client whose receive queue is full does not see the server's answer to its close.
        async with socket(running, close_timeout=0.2) as client:
            if index % 3 == 0:
                await still_talks(client)
            elif index % 3 == 1:
                await client.ask("talk 1000")
                await client.until("response.created")
            else:
                client.connection.transport.abort()

    async with serving(settings(max_sessions=50)) as running:
        num_tasks = len(asyncio.all_tasks())
        await asyncio.gather(*(visit(running, index) for index in range(50)))
        await running.until_empty()
        await until(lambda: len(asyncio.all_tasks()) <= num_tasks)
        assert not running.chatter.speeches
        assert not running.chatter.paused
        assert running.metric("omni_sessions") == 0
        opened, closed = (
            [c for c in running.chatter.commands if isinstance(c, kind)] for kind in (Open, Close)
        )
        assert len(opened) == len(closed) == 50


async def test_parts_are_given_to_the_assistant() -> None:
    given: list[Parts] = []

    def build(parts: Parts) -> Chatter:
        given.append(parts)
        return Chatter(parts)

    async with serving(build=build) as running:
        assert given == [running.server.worker.parts]


def has(running: Running, kind: type[object]) -> bool:
    return any(isinstance(command, kind) for command in running.chatter.commands)


async def until(is_so: object) -> None:
    assert callable(is_so)
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0.005)


async def test_a_flood_of_items_is_few_edits_and_the_others_are_served_meanwhile() -> None:
    edits: list[Edit] = []

    class Counting(Chatter):
        def submit(self, command: Command) -> None:
            if isinstance(command, Edit):
                edits.append(command)
            super().submit(command)

    num_items = 300
    async with (
        serving(build=Counting) as running,
        socket(running) as other,
        socket(running) as client,
    ):
        for index in range(num_items):
            part = {"type": "input_text", "text": f"{index}"}
            item = {"type": "message", "role": "user", "content": [part]}
            await client.send("conversation.item.create", item=item)
        await still_talks(other)
        async with asyncio.timeout(10):
            while all(len(edit.conversation.messages) < num_items for edit in edits):
                await asyncio.sleep(0.005)
        for _ in range(2 * num_items):  # added, done
            await client.receive()
        assert len(edits) < num_items / 4


async def test_a_client_that_never_stops_editing_is_told_to_the_assistant_twice_a_second() -> None:
    edits: list[Edit] = []

    class Counting(Chatter):
        def submit(self, command: Command) -> None:
            if isinstance(command, Edit):
                edits.append(command)
            super().submit(command)

    async with serving(build=Counting) as running, socket(running) as client:
        began_s = time.monotonic()
        for index in range(150):
            update = {"type": "realtime", "instructions": f"{index}"}
            await client.send("session.update", session=update)
            await client.until("session.updated")
            await asyncio.sleep(0.01)
        took_s = time.monotonic() - began_s
        assert len(edits) <= EDITS_AT_ONCE + EDITS_PER_S * took_s
        await client.answer("talk 1")  # waits for no edit
        assert running.chatter.conversations
        (conversation,) = running.chatter.conversations.values()
        assert conversation.instructions == "149"
