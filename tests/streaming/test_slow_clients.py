"""Clients that connect and then keep the server waiting: dropped in time, at no one else's cost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest

from omni.config import Config
from tests.streaming.serving import TIMEOUT_S, Running, serving, settings, socket

PACE_S = 0.02  # between two bytes of a client that dribbles

HEAD = b"Host: localhost\r\n"
UPGRADE = b"Upgrade: websocket\r\nConnection: upgrade\r\n"
ENDLESS = b"X-Padding: " + b"a" * 8000  # never ends its line

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def connected(running: Running, *, limit: int = 2**16) -> AsyncIterator[Streams]:
    """A bare TCP connection, aborted at the end."""
    port = int(running.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=limit)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def dribble(streams: Streams, data: bytes) -> bytes:
    """Send ``data`` byte by byte until the server answers or hangs up; what it answered."""
    reader, writer = streams
    ended = asyncio.create_task(reader.read())
    async with asyncio.timeout(TIMEOUT_S):
        for byte in data:
            writer.write(bytes([byte]))
            if (await asyncio.wait([ended], timeout=PACE_S))[0]:
                break
        return await ended


async def until_dropped(running: Running, num_left: int = 0) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while len(running.listener.server_state.connections) > num_left:
            await asyncio.sleep(0.01)


@pytest.fixture
def impatient() -> Config:
    return settings(request_timeout_s=1)


async def test_a_client_that_sends_nothing_is_dropped(impatient: Config) -> None:
    async with serving(impatient) as running, connected(running) as (reader, _):
        async with asyncio.timeout(TIMEOUT_S):
            assert await reader.read() == b""
        await until_dropped(running)


@pytest.mark.parametrize(
    "request_line", [b"GET /v1/realtime HTTP/1.1\r\n" + UPGRADE, b"GET / HTTP/1.1\r\n"]
)
async def test_a_request_that_dribbles_in_is_told_so_and_dropped(
    impatient: Config, request_line: bytes
) -> None:
    async with serving(impatient) as running, socket(running) as other:
        async with connected(running) as streams:
            answer = await dribble(streams, request_line + HEAD + ENDLESS)
            assert answer.startswith(b"HTTP/1.1 408 ")
        assert await other.answer("talk 1") == "1 "


async def test_a_second_request_that_dribbles_in_is_dropped_like_the_first(
    impatient: Config,
) -> None:
    async with serving(impatient) as running, connected(running) as (reader, writer):
        writer.write(b"GET /healthz HTTP/1.1\r\n" + HEAD + b"\r\n")
        assert b'{"status":"ok"}' in await reader.readuntil(b"}")
        assert (await dribble((reader, writer), b"GET / HTTP/1.1\r\n" + ENDLESS)).startswith(
            b"HTTP/1.1 408 "
        )


async def test_a_body_that_dribbles_in_is_dropped_and_logs_no_error(
    impatient: Config, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(impatient) as running, connected(running) as streams:
        post = b"POST /v1/realtime/client_secrets HTTP/1.1\r\n" + HEAD
        streams[1].write(post + b"Content-Length: 9000\r\n\r\n")
        assert (await dribble(streams, b" " * 9000)).startswith(b"HTTP/1.1 408 ")
        await until_dropped(running)
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


async def test_a_body_that_goes_on_after_its_answer_is_dropped(impatient: Config) -> None:
    async with serving(impatient) as running, connected(running) as streams:
        streams[1].write(b"GET /healthz HTTP/1.1\r\n" + HEAD + b"Content-Length: 90000\r\n\r\n")
        assert b'{"status":"ok"}' in await dribble(streams, b" " * 90_000)


async def test_answers_that_are_not_read_are_given_up(impatient: Config) -> None:
    async with serving(impatient) as running, connected(running, limit=1) as (_, writer):
        # Pipelined until the socket's buffers are full; the client reads nothing of it.
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write((b"GET /style.css HTTP/1.1\r\n" + HEAD + b"\r\n") * 2000)
        await until_dropped(running)
        assert running.listener.server_state.total_requests < 2000, "dropped before all was sent"


async def test_a_closed_session_whose_last_words_are_not_read_is_given_up(
    impatient: Config,
) -> None:
    async with serving(impatient) as running, socket(running, ping_interval=None) as client:
        client.connection.transport.pause_reading()
        await client.ask("talk 100000")
        (ours,) = running.listener.server_state.connections
        while not ours.transport.get_write_buffer_size():  # the system's buffers are full
            await asyncio.sleep(0.01)
        # Says goodbye, but neither reads nor hangs up.
        client.connection.protocol.send_close(1000)
        client.connection.transport.write(b"".join(client.connection.protocol.data_to_send()))
        await running.until_empty()
        assert ours.transport.is_closing()
        assert ours.transport.get_write_buffer_size(), "the session is over, its last words wait"
        await until_dropped(running)
        assert ours.is_aborted
        client.connection.transport.abort()


async def test_of_too_many_waiting_connections_the_oldest_is_dropped() -> None:
    async with (
        serving(settings(max_waiting=4)) as running,
        socket(running) as session,
        AsyncExitStack() as stack,
        asyncio.timeout(TIMEOUT_S),
    ):
        oldest, second, *_ = [
            await stack.enter_async_context(connected(running)) for _ in range(4 + 1)
        ]
        assert await _ended(oldest[0])
        # Others still get in, each at the price of the one that has waited longest.
        async with socket(running) as newcomer:
            assert await newcomer.answer("talk 1") == "1 "
            assert await _ended(second[0])
        assert await session.answer("talk 1") == "1 ", "a session is no waiting connection"


async def test_two_hundred_clients_at_once_are_all_answered() -> None:
    async def visit(running: Running) -> str:
        async with socket(running, created=False) as client:
            return str((await client.receive())["type"])

    async with serving() as running:
        seen = await asyncio.gather(*(visit(running) for _ in range(200)))
    assert set(seen) <= {"session.created", "error"}
    assert len(seen) == 200


async def _ended(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read() == b""
    except ConnectionResetError:
        return True


async def test_a_client_between_two_requests_and_a_session_at_rest_are_kept(
    impatient: Config,
) -> None:
    async with serving(impatient) as running, socket(running) as client:
        async with connected(running) as streams:
            # Whole requests, each in time: the connection outlives the limit for one of them.
            for _ in range(4):
                streams[1].write(b"GET /healthz HTTP/1.1\r\n" + HEAD + b"\r\n")
                assert b'{"status":"ok"}' in await streams[0].readuntil(b"}")
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.4):
                        await streams[0].read(1)
        assert await client.answer("talk 1") == "1 "
