"""Clients that send without end: they take their share of the server and no more."""

from __future__ import annotations

import asyncio
import json

import pytest
from omni_streaming import connection
from omni_streaming.loop_share import FREE_S, SHARE, LoopShare
from omni_streaming.protocols import MAX_FRAGMENTS, MAX_UNREAD_BYTES
from websockets.frames import OP_CONT, OP_PING, OP_TEXT, Frame

from tests.streaming.serving import serving, settings, socket

MIB = 2**20


def frame(opcode: int, data: bytes = b"", *, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=True)  # type: ignore[arg-type]


# --- the loop's time -----------------------------------------------------------------------------


def test_who_needs_little_time_never_rests() -> None:
    share = LoopShare(0.0)
    for ms in range(20, 60_000, 20):  # audio in real time
        assert share.rest_s(0.001, ms / 1000) == 0


def test_a_burst_is_free() -> None:
    share = LoopShare(10.0)
    assert share.rest_s(FREE_S, 10.1) == 0


def test_who_takes_all_it_gets_has_its_share() -> None:
    share = LoopShare(0.0)
    now_s = busy_s = 0.0
    while now_s < 100:
        now_s += 0.004
        busy_s += 0.004
        now_s += share.rest_s(0.004, now_s)
    assert busy_s == pytest.approx(FREE_S + 100 * SHARE, rel=0.01)


async def test_a_flood_of_frames_is_read_little_by_little() -> None:
    flood = frame(OP_PING) * (64 * MIB // 6)
    async with (
        serving() as running,
        socket(running) as other,
        socket(running, ping_interval=None) as client,
    ):
        transport = client.connection.transport
        transport.pause_reading()
        transport.write(flood)
        for _ in range(100):
            assert await other.answer("talk 1") == "1 "
        buffered_bytes = 16 * MIB  # at most, by the system at both ends
        assert transport.get_write_buffer_size() > len(flood) - buffered_bytes
        transport.abort()


async def test_a_flood_of_messages_rests_and_a_conversation_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rests: list[float] = []

    class Recorded(LoopShare):
        def rest_s(self, busy_s: float, now_s: float) -> float:
            rests.append(super().rest_s(busy_s, now_s))
            return rests[-1]

    monkeypatch.setattr(connection, "LoopShare", Recorded)
    async with serving() as running, socket(running) as client:
        assert await client.answer("talk 20") == " ".join(map(str, range(1, 21))) + " "
        assert not any(rests)
        num_events = 600
        update = {"type": "realtime", "instructions": "x" * 100_000}

        async def send() -> None:
            for _ in range(num_events):
                await client.send("session.update", session=update)

        sending = asyncio.create_task(send())
        for _ in range(num_events):
            await client.until("session.updated")
        await sending
        assert any(rests)
        assert await client.answer("talk 1") == "1 "


# --- memory --------------------------------------------------------------------------------------


async def test_a_message_in_too_many_fragments_is_refused() -> None:
    async with serving() as running, socket(running) as other, socket(running) as client:
        fragments = frame(OP_CONT, fin=False) * MAX_FRAGMENTS
        client.connection.transport.write(frame(OP_TEXT, b"[", fin=False) + fragments)
        assert (await client.closed())[0] == 1008
        assert await other.answer("talk 1") == "1 "


async def test_a_message_in_many_fragments_is_taken() -> None:
    async with serving() as running, socket(running) as client:
        message = json.dumps({"type": "session.update", "session": {"type": "realtime"}}).encode()
        fragments = b"".join(frame(OP_CONT, bytes([byte]), fin=False) for byte in message)
        client.connection.transport.write(
            frame(OP_TEXT, fin=False) + fragments + frame(OP_PING) + frame(OP_CONT)
        )
        updated = await client.until("session.updated")
        assert updated["session"]["type"] == "realtime"


async def test_a_client_that_pings_and_does_not_read_is_dropped() -> None:
    async with (
        serving() as running,
        socket(running) as other,
        socket(running, ping_interval=None) as client,
    ):
        transport = client.connection.transport
        transport.pause_reading()
        pings = frame(OP_PING, b"x" * 125) * 10_000
        largest = 0
        async with asyncio.timeout(60):
            while running.server.num_sessions == 2:
                if not transport.get_write_buffer_size():
                    transport.write(pings)
                await asyncio.sleep(0.001)
                for ours in running.listener.server_state.connections:
                    largest = max(largest, ours.transport.get_write_buffer_size())
        transport.abort()
        assert largest < 2 * MAX_UNREAD_BYTES
        assert await other.answer("talk 1") == "1 "


async def test_small_events_with_large_answers_are_not_taken_while_nobody_reads_these() -> None:
    config = settings(max_send_queue_bytes=MIB)
    async with serving(config) as running, socket(running) as client:
        update = {"type": "realtime", "instructions": "x" * (MIB // 2)}
        await client.send("session.update", session=update)
        await client.until("session.updated")
        client.connection.transport.pause_reading()
        for _ in range(200):
            await client.send("session.update", session={"type": "realtime"})
        (ours,) = running.server._connections
        largest = 0
        for _ in range(100):
            await asyncio.sleep(0.01)
            largest = max(largest, ours._queue.num_bytes)
        assert MIB < largest < 6 * MIB
        client.connection.transport.resume_reading()
        for _ in range(200):
            await client.until("session.updated")
