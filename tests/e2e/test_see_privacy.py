"""What a camera shows stays in the process: not on disk, not in a log, not on another socket."""

from __future__ import annotations

import base64
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from omni_streaming.assembly import assemble

from omni.config import Config, home
from omni.store import is_present
from tests.streaming.serving import serving_on_a_thread, socket

NEEDED = (
    "qwen2.5-coder-0.5b",
    "whisper-base",
    "smart-turn-v3",
    "nanodet-416",
    "efficientnet-lite0",
)
pytestmark = pytest.mark.weights


class Guard:
    """Notes every file that is opened for writing and every connection, while it is on."""

    def __init__(self) -> None:
        self.is_on = False
        self.written: list[str] = []
        self.reached: list[object] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.is_on:
            return
        if event == "open":
            path, mode, flags = arguments
            is_writing = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if is_writing and str(path) != os.devnull:
                self.written.append(f"{path} {mode}")
        elif event in ("socket.connect", "socket.sendto"):
            self.reached.append(arguments[1])


GUARD = Guard()


@pytest.fixture
def guard() -> Iterator[Guard]:
    GUARD.written.clear()
    GUARD.reached.clear()
    yield GUARD
    GUARD.is_on = False


def store(folder: Path) -> str:
    """A model store of its own, with the weights of the real one."""
    if not all(is_present(name, home(Config())) for name in NEEDED):
        pytest.skip("the embedded weights are absent: run `omni fetch`")
    for name in ("models", "repacked"):
        (folder / name).symlink_to(home(Config()) / name)
    return str(folder)


def photo() -> bytes:
    """A picture that no two runs share, so that its bytes are found wherever they are."""
    pixels = np.random.default_rng().integers(0, 256, (240, 320, 3), dtype=np.uint8)
    pixels[60:180, 80:240] = cv2.GaussianBlur(pixels[60:180, 80:240], (31, 31), 0)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def files_under(*folders: Path) -> dict[str, int]:
    """Every file below the folders, with the time of its last change."""
    found = {}
    for folder in folders:
        for place, _, names in os.walk(folder):
            for name in names:
                path = Path(place, name)
                if path.is_file() and not path.is_symlink():
                    found[str(path)] = path.stat().st_mtime_ns
    return found


async def show(url: str, frame: bytes) -> Any:
    """Describe mode for a while: frames, an overview on request, text, a question about it.

    Returns what the server says of the pictures: ``session.omni``.
    """
    async with socket(url) as client:
        omni = {"describe": {"verbosity": "brief"}}
        await client.send("session.update", session={"type": "realtime", "omni": omni})
        updated = await client.until("session.updated")
        image = base64.b64encode(frame).decode()
        for number in range(4):
            await client.send("omni.frame.append", image=image, taken_ms=number * 250.0)
        await client.until("response.done")  # the notice
        await client.send("omni.describe.command", command="front")
        await client.until("response.done")
        await client.send("omni.describe.command", command="read")
        await client.until("response.done")
        await client.until("response.done")
        shown = {"type": "input_image", "image_url": f"data:image/jpeg;base64,{image}"}
        item = {"type": "message", "role": "user", "content": [shown]}
        await client.send("conversation.item.create", item=item)
        await client.ask("What is this?")
        await client.until("response.done")
        return updated["session"]["omni"]


async def test_no_picture_touches_the_disk_or_leaves_the_process(
    tmp_path: Path, guard: Guard, caplog: pytest.LogCaptureFixture
) -> None:
    config = Config(home=store(tmp_path), log_level="debug")
    watched = (tmp_path, Path(tempfile.gettempdir()), Path.cwd())
    frame = photo()
    with (
        caplog.at_level(logging.DEBUG),
        serving_on_a_thread(assemble(config)) as url,
    ):
        await show(url, frame)  # everything is loaded by now
        before = files_under(*watched)
        async with socket(url):
            guard.is_on = True
            first = len(guard.reached)
        told = await show(url, frame)
        guard.is_on = False
        after = files_under(*watched)
    assert not guard.written
    assert "recorded" not in told
    addresses = {str(address) for address in guard.reached[first:]}
    assert all("127.0.0.1" in address for address in addresses), addresses
    changed = {path for path, at in after.items() if before.get(path) != at}
    needle = frame[200:260]
    leaked = [path for path in changed if needle in Path(path).read_bytes()]
    assert not leaked
    encoded = base64.b64encode(frame).decode()[200:260]
    assert encoded not in caplog.text
    assert frame[:40].hex() not in caplog.text


async def test_with_record_every_picture_is_kept_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    (tmp_path / "store").mkdir()
    config = Config(home=store(tmp_path / "store"), record=str(folder))
    frame = photo()
    with serving_on_a_thread(assemble(config)) as url:
        told = await show(url, frame)
    assert told["recorded"] is True
    assert folder.stat().st_mode & 0o077 == 0
    lines = [json.loads(line) for line in (folder / "scenes.jsonl").read_text().splitlines()]
    assert len(lines) >= 2
    assert all((folder / line["picture"]).read_bytes() == frame for line in lines)
    assert {"things", "condition", "motion"} <= lines[0].keys()
