"""``omni serve --record``: what is kept of a camera is whole, whatever the disk does."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from omni.assistant.recording import RecordingEyes
from omni.scene import Scene


class Sees:
    def look(
        self, picture: bytes | NDArray[np.uint8], at_ms: int, state: object | None, **_: object
    ) -> tuple[Scene, object]:
        return Scene(at_ms=at_ms, main="a cat"), state


@contextmanager
def room_for(num_bytes: int) -> Iterator[None]:
    """No file can grow beyond ``num_bytes``: what does not fit is cut there, as by a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_no_half_picture_and_no_half_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "kept"
    eyes = RecordingEyes(Sees(), folder)
    with room_for(1_000):
        for _ in range(2):
            scene, _ = eyes.look(bytes(2_000), 0, None)
            assert scene.main == "a cat"
    assert list(folder.iterdir()) == []
    assert sum("no longer recorded" in message for message in caplog.messages) == 1

    eyes.look(b"\xff" * 50, 7, None)
    lines = folder / "scenes.jsonl"
    whole = lines.read_bytes()
    assert len(whole) > 50
    with room_for(len(whole) + 60):  # the picture fits, its line does not
        eyes.look(b"\xee" * 50, 8, None)
    assert lines.read_bytes() == whole
    (line,) = (json.loads(line) for line in whole.splitlines())
    assert line["at_ms"] == 7
    assert sorted(p.name for p in folder.iterdir()) == [line["picture"], "scenes.jsonl"]
    assert (folder / line["picture"]).read_bytes() == b"\xff" * 50
