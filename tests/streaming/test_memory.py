"""What long messages cost is not kept when they, and their sessions, are gone."""

from __future__ import annotations

import asyncio
import base64
import ctypes
import gc
import json
import platform
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from omni_streaming.server import new_id
from omni_streaming.session import Session

from omni.config import Config
from tests.streaming.serving import TIMEOUT_S, Running, serving, socket

MIB = 2**20
LONGEST = base64.b64encode(bytes(15 * MIB // 4 * 3)).decode()  # 4 minutes of silence
OFF = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}


def resident_bytes() -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


@pytest.fixture
def _no_collection() -> Iterator[None]:
    """A collection of everything may be an hour away in a process with torch in it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collection")
@pytest.mark.parametrize("ending", ["", "input_audio_buffer.commit"])
def test_a_closed_session_holds_no_audio(ending: str) -> None:
    session = Session(
        session_id="sess_1",
        config=Config(),
        model="m",
        voices=("heart",),
        new_id=new_id,
        now_ms=0,
        expires_at_s=2**40,
        intent="realtime",
    )
    tracemalloc.start()
    session.receive(json.dumps({"type": "session.update", "session": OFF}), 0)
    session.receive(json.dumps({"type": "input_audio_buffer.append", "audio": LONGEST}), 0)
    if ending:
        session.receive(json.dumps({"type": ending}), 0)
    session.commands()
    session.events_to_send()
    held_bytes, _ = tracemalloc.get_traced_memory()
    session.close()
    left_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held_bytes > 5 * MIB
    assert left_bytes < 0.1 * MIB


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps what was freed")
@pytest.mark.slow
async def test_a_flood_of_long_messages_is_not_resident_after_it() -> None:
    ctypes.CDLL(None).malloc_trim(0)  # what earlier tests left behind
    async with serving() as running, socket(running) as other:
        await flood(running, 1)
        before = resident_bytes()
        await asyncio.gather(*(flood(running, 3) for _ in range(3)))
        async with asyncio.timeout(TIMEOUT_S):
            while resident_bytes() > before + 32 * MIB:
                await asyncio.sleep(0.05)
        assert await other.answer("talk 1") == "1 "


async def flood(running: Running, num_messages: int) -> None:
    """One session that appends and clears."""
    async with socket(running) as client:
        for _ in range(num_messages):
            await client.send("input_audio_buffer.append", audio=LONGEST)
            await client.send("input_audio_buffer.clear")
            await client.until("input_audio_buffer.cleared")
