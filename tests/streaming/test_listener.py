"""The plumbing under the app: clients that vanish or do not read never hold a connection."""

from __future__ import annotations

import asyncio
import base64
import logging
import threading

import numpy as np
import pytest
from numpy.typing import NDArray
from omni_encoders.vad import VadState, VoiceActivity
from omni_streaming import listener

from omni.config import Config
from tests.streaming.serving import Socket, make_server, serving, settings, socket

PING_S = 0.3


@pytest.fixture
def _pings_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "PING_S", PING_S)


@pytest.mark.usefixtures("_pings_often")
@pytest.mark.parametrize("asks", [False, True])
async def test_a_client_that_vanished_without_a_word_is_dropped_at_the_second_ping(
    asks: bool,
) -> None:
    async with serving(settings(send_stall_s=60)) as running, socket(running) as other:
        async with socket(running) as client:
            # As if its cable were cut: nothing is read, no pong is sent, no FIN arrives. With an
            # answer under way there is unsent data, for which a mere close() would wait for ever.
            client.connection.transport.pause_reading()
            if asks:
                await client.ask("talk 1000000")
            async with asyncio.timeout(10):
                while running.server.num_sessions > 1:
                    await asyncio.sleep(0.01)
            client.connection.transport.abort()
        assert await other.answer("talk 2") == "1 2 "
        # Which of the two it is depends on whether the read or the write finds out first.
        codes = ("1005", "1006")
        assert sum(running.metric("omni_sessions_ended_total", code=c) for c in codes) == 1


@pytest.mark.usefixtures("_pings_often")
async def test_a_client_that_is_silent_but_there_is_kept() -> None:
    async with serving() as running, socket(running) as client:
        await asyncio.wait(
            [asyncio.create_task(client.connection.wait_closed())], timeout=PING_S * 4
        )
        assert await client.answer("talk 2") == "1 2 "


class _Slow(VoiceActivity):
    """Voice activity on a machine that is busy with something else."""

    def __init__(self) -> None:
        super().__init__()
        self.may_go_on = threading.Event()

    def probability(self, frame: NDArray[np.float32], state: VadState) -> float:
        assert self.may_go_on.wait(60)
        return super().probability(frame, state)


@pytest.mark.usefixtures("_pings_often")
async def test_a_client_whose_pong_we_do_not_read_is_kept() -> None:
    vad = _Slow()
    audio = base64.b64encode(bytes(2 * 24_000)).decode()
    async with serving(vad=vad) as running, socket(running) as client:
        for _ in range(3):  # one is being heard, one waits, and the pong waits behind the third
            await client.send("input_audio_buffer.append", audio=audio)
        await asyncio.wait(
            [asyncio.create_task(client.connection.wait_closed())], timeout=PING_S * 6
        )
        vad.may_go_on.set()
        assert await client.answer("talk 2") == "1 2 "


async def test_a_connection_whose_buffers_are_full_is_aborted_when_it_is_dropped() -> None:
    config = settings(max_send_queue_bytes=2**20, send_stall_s=1)
    async with serving(config) as running, socket(running) as client:
        client.connection.transport.pause_reading()
        await client.ask("talk 1000000")
        async with asyncio.timeout(20):
            while running.listener.server_state.connections:
                await asyncio.sleep(0.01)
        assert running.server.num_sessions == 0
        assert running.metric("omni_sessions_ended_total", code="1013") == 1
        # What was sent before is still there to read, the close frame was never taken.
        client.connection.transport.resume_reading()
        assert (await client.closed())[0] == 1006


async def test_a_second_signal_does_not_wait_for_the_answers_under_way() -> None:
    began = asyncio.Event()

    async def drain() -> None:
        began.set()
        await asyncio.Event().wait()  # an answer that never ends

    with listener.bind("127.0.0.1", 0) as listening:
        ours = listener.Listener(make_server().app(), Config().server, listening, drain)
        async with asyncio.timeout(10):
            serving = asyncio.create_task(ours.run_until_stopped())
            while not ours.started:
                await asyncio.sleep(0)
            ours._on_signal()
            await began.wait()
            assert not serving.done()
            ours._on_signal()
            await serving


UPGRADE = "Host: localhost\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
VERSION = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
REALTIME = "GET /v1/realtime HTTP/1.1\r\n" + UPGRADE


@pytest.mark.parametrize(
    "head",
    [
        "nonsense\r\n",
        "\x16\x03\x01\r\n",
        REALTIME + "Sec-WebSocket-Version: 99\r\n",
        REALTIME.replace("GET", "POST") + VERSION,
        REALTIME + VERSION + "X-Long: " + "a" * 10_000 + "\r\n",
        REALTIME + VERSION + "".join(f"X-{n}: many\r\n" for n in range(300)),
        REALTIME + VERSION + "Sec-WebSocket-Protocol: \x01\r\n",
    ],
    ids=["nonsense", "tls", "version", "post", "long", "many", "control"],
)
async def test_what_is_not_a_handshake_is_refused_at_once(head: str) -> None:
    async with serving() as running, socket(running) as client:
        port = int(running.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + b"\r\n")
        async with asyncio.timeout(5):  # half of what a request may take
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 4")
        writer.close()
        await writer.wait_closed()
        await _still_talks(client)


@pytest.mark.parametrize("frame", [b"\x83\x80", b"\x88\x82", b"\x81\x02"])
async def test_a_frame_against_the_rules_ends_the_session_and_is_no_error_of_ours(
    frame: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as running:
        async with socket(running) as client:
            await client.ask("talk 100000")
            await client.until("response.output_audio.delta")
            client.connection.transport.write(frame + b"\0\0\0\0\x03\xe7")
            await client.closed()
        await running.until_empty()
        assert running.metric("omni_sessions_ended_total", code="1011") == 0
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


async def _still_talks(client: Socket) -> None:
    assert await client.answer("talk 1") == "1 "
