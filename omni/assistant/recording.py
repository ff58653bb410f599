"""Keeps what the camera showed, for whoever asked for it with ``omni serve --record``.

Nothing else in Omni writes a picture to disk.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import time
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from omni.assistant.watching import Watcher
from omni.errors import ConfigError
from omni.parts import ShouldStop
from omni.scene import Scene

logger = logging.getLogger(__name__)


class RecordingEyes:
    """A :class:`~omni.assistant.watching.Watcher` that keeps every picture and what it saw in it.

    ``folder`` gets ``TIME.jpg`` (the picture's own bytes, whatever their kind) and a line in
    ``scenes.jsonl`` for each, only its owner may read them. A full disk stops the recording, not
    the seeing; what is there is whole.

    Raises:
        ConfigError: ``folder`` cannot be made.
    """

    def __init__(self, watcher: Watcher, folder: Path) -> None:
        self._watcher = watcher
        self._folder = folder
        self._is_failing = False
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot record to {folder}: {error.strerror}") from error
        logger.warning("every picture that the camera shows is kept in %s", folder)

    def look(
        self,
        picture: bytes | NDArray[np.uint8],
        at_ms: int,
        state: object | None,
        *,
        wants_text: bool = False,
        wants_main: bool = False,
        should_stop: ShouldStop = lambda: False,
    ) -> tuple[Scene, object]:
        """As the watcher's own; the picture and its scene are kept."""
        scene, after = self._watcher.look(
            picture,
            at_ms,
            state,
            wants_text=wants_text,
            wants_main=wants_main,
            should_stop=should_stop,
        )
        self._keep(picture, scene)
        return scene, after

    def _keep(self, picture: bytes | NDArray[np.uint8], scene: Scene) -> None:
        name = f"{time.time_ns() // 1_000_000}.jpg"
        if not isinstance(picture, bytes):
            picture = cv2.imencode(".jpg", picture[:, :, ::-1])[1].tobytes()
        line = json.dumps({"picture": name, **asdict(scene)}) + "\n"
        arriving = self._folder / f".{name}.part"
        try:
            arriving.write_bytes(picture)
            _append(self._folder / "scenes.jsonl", line.encode())
            arriving.rename(self._folder / name)
        except OSError as error:
            with contextlib.suppress(OSError):  # it may be the folder that is gone
                arriving.unlink(missing_ok=True)
            if not self._is_failing:
                logger.error("the camera is no longer recorded: %s", error)
            self._is_failing = True


def _append(path: Path, data: bytes) -> None:
    """Write all of ``data`` at the end of ``path``, or nothing.

    Raises:
        OSError: it does not fit.
    """
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        if file.write(data) < len(data):  # what fitted on the disk
            file.truncate(before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
