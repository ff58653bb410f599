"""Where pictures come from when nobody sends them: a video file or a camera of this machine.

Used by :mod:`omni_streaming.describe_file`. A file is read as it is needed, a frame at a time, so
that hours take no more memory than minutes; a camera's newest picture waits and older ones are
dropped.
"""

from __future__ import annotations

import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from omni_encoders.clip import Held, check_codec, how_held, pixels_of, upright
from omni_encoders.image import decode_image
from omni_encoders.image_header import MARK_BYTES, kind_of, read_header

from omni.errors import InputError

Pixels = NDArray[np.uint8]
"""RGB [H, W, 3]."""

MAX_PIXELS = 4 * 2**20
"""Larger frames are reduced: print is read at this size, and the detector needs far less."""

MAX_PHOTO_BYTES = 128 * 2**20
"""Of a photo's file, which is read at once: 64 megapixels take less, even as a PNG."""

STILL_S = 10
"""A photo is shown this long: the notice, a breath and the overview take eight."""

MAX_BAD_PACKETS = 8
"""In a row; then the file is taken to end. Players go on after one, too."""

MAX_GAP_S = 60.0
"""Clocks of broken files leap by hours: after more than this, or back, time goes on as before."""


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One picture; ``at_ms`` on the clock of the run, 0 at the begin."""

    pixels: Pixels
    at_ms: int


class Source(Protocol):
    """Pictures as time passes."""

    def take(self, now_ms: int) -> Picture | None:
        """The newest picture taken by ``now_ms`` and not given before; None: none is new.

        Raises:
            InputError: it broke off.
        """
        ...

    @property
    def is_over(self) -> bool:
        """There will be no more."""
        ...


class Frames:
    """The pictures of an iterator, in the order of their times."""

    def __init__(self, pictures: Iterator[Picture]) -> None:
        self._pictures = pictures
        self._next = next(pictures, None)

    def take(self, now_ms: int) -> Picture | None:
        newest: Picture | None = None
        while self._next is not None and self._next.at_ms <= now_ms:
            newest, self._next = self._next, next(self._pictures, None)
        return newest

    @property
    def is_over(self) -> bool:
        return self._next is None


# --- Files ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class Damage:
    """What was wrong with a file that could be read all the same."""

    num_bad_packets: int = 0
    num_leaps: int = 0  # of its clock


class VideoFile:
    """A video file, or a photo; ``duration_s`` as its header says, None: it does not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damage = Damage()
        self.duration_s: float | None = None
        self._container: Any = None
        self._photo: Pixels | None = None

    def open(self) -> Self:
        """Read the header.

        Raises:
            InputError: no such file, not a video, a damaged photo, or nothing to be seen in it.
        """
        _check_is_file(self.path)
        try:
            self._photo = _photo_of(self.path)
            if self._photo is not None:
                self.duration_s = STILL_S
                return self
            self._container = av.open(str(self.path), metadata_errors="replace")
        except (av.FFmpegError, OSError) as error:
            why = (error.strerror or str(error)).removesuffix(" when processing input")
            raise InputError(f"cannot read {self.path}: not a video ({why})") from error
        if not self._container.streams.video:
            self.close()
            raise InputError(f"{self.path} has no video stream, only sound or text")
        check_codec(self._container.streams.video[0].codec_context)
        if self._container.duration is not None:
            self.duration_s = self._container.duration / 1e6
        return self

    def close(self) -> None:
        if self._container is not None:
            self._container.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def pictures(self, fps: float) -> Iterator[Picture]:
        """What a player shows, ``fps`` times a second: a frame stands until the next one comes.

        The only one, a photo, stands for STILL_S.

        Raises:
            InputError: no frame can be decoded.
        """
        every_ms, num = 1000 / fps, 0
        if self._photo is not None:
            yield from self._still(self._photo, fps)
            return
        standing: Any = None  # the frame that is shown, and what it looks like
        shown: Pixels | None = None
        held: Held | None = None
        for frame, at_ms in self._timed():
            while standing is not None and num * every_ms < at_ms:
                held = held or how_held(standing)
                if shown is None:
                    shown = upright(pixels_of(standing, MAX_PIXELS), *held)
                yield Picture(shown, round(num * every_ms))
                num += 1
            standing, shown = frame, None
        if standing is None:
            raise InputError(f"{self.path} is damaged: none of its frames can be decoded")
        last = upright(pixels_of(standing, MAX_PIXELS), *(held or how_held(standing)))
        if num:
            yield Picture(last, round(num * every_ms))
        else:
            yield from self._still(last, fps)

    def _still(self, pixels: Pixels, fps: float) -> Iterator[Picture]:
        for num in range(round(STILL_S * fps)):
            yield Picture(pixels, round(num * 1000 / fps))

    def _timed(self) -> Iterator[tuple[Any, float]]:
        """Frames and when each is shown, ascending from 0."""
        begin_s: float | None = None
        last_s, offset_s = 0.0, 0.0
        for frame in self._decoded():
            if frame.time is None:
                continue
            if begin_s is None:
                begin_s = frame.time
            at_s = frame.time - begin_s + offset_s
            if not last_s <= at_s <= last_s + MAX_GAP_S:
                self.damage.num_leaps += 1
                offset_s += last_s - at_s
                at_s = last_s
            last_s = at_s
            yield frame, 1000 * at_s

    def _decoded(self) -> Iterator[Any]:
        """Every frame that can be decoded: one bad packet does not end a file."""
        stream = self._container.streams.video[0]
        stream.thread_type = "NONE"  # the cores are the detector's
        num_bad = 0
        packets = self._container.demux(stream)
        while num_bad < MAX_BAD_PACKETS:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                frames = packet.decode()
                num_bad = 0
            except av.FFmpegError:
                num_bad += 1
                self.damage.num_bad_packets += 1
                continue
            yield from frames


def _photo_of(path: Path) -> Pixels | None:
    """A photo, upright and reduced; None: no photo, or one that moves.

    Raises:
        InputError: it is damaged, too small or too large.
        OSError: it cannot be read.
    """
    # Cameras write JPEGs one after the other as a video, too, and photos with more of them behind
    # the first: only the name tells which it is.
    if path.suffix.lower() in (".mjpeg", ".mjpg"):
        return None
    with path.open("rb") as file:
        data = file.read(MARK_BYTES)
        if kind_of(data) is None:
            return None
        data += file.read(MAX_PHOTO_BYTES)
    if len(data) > MAX_PHOTO_BYTES:
        most = f"{MAX_PHOTO_BYTES // 2**20} MiB"
        raise InputError(f"cannot read {path}: a photo of more than {most}; reduce it")
    try:
        if read_header(data).is_animated:
            return None
        frame = av.VideoFrame.from_ndarray(decode_image(data), format="rgb24")
    except InputError as error:
        raise InputError(f"cannot read {path}: {error}") from error
    return pixels_of(frame, MAX_PIXELS)


def _check_is_file(path: Path) -> None:
    """Refuse what is none before it is opened: a pipe into which nobody writes waits for ever.

    Raises:
        InputError: nothing is there, or a folder, pipe, socket or device.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"cannot read {path}: no such file") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "no file")
        raise InputError(
            f"cannot read {path}: it is {kind}, expected a video, a photo or a camera "
            "(a number, /dev/videoN)"
        )


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


# --- Cameras -------------------------------------------------------------------------------------


class CameraSource:
    """A camera of this machine, read on a thread of its own; at most ``fps`` pictures a second.

    Raises:
        InputError: there is no such camera, or it gives no picture.
    """

    def __init__(self, device: int | str, fps: float) -> None:
        self._name = str(device)
        self._every_ms = 1000 / fps
        self._camera = _opened(device)
        self._lock = threading.Lock()
        self._newest: tuple[Pixels, float] | None = None  # and when it came, monotonic
        self._taken_ms = -self._every_ms
        self._is_closing = self._is_broken = False
        self._thread = threading.Thread(target=self._read, name="camera", daemon=True)
        self._thread.start()

    is_over = False
    """Until Ctrl-C."""

    def take(self, now_ms: int) -> Picture | None:
        if now_ms - self._taken_ms < self._every_ms:
            return None
        with self._lock:
            newest, self._newest = self._newest, None
        if newest is None:
            if self._is_broken:
                raise InputError(f"the camera {self._name} stopped giving pictures")
            return None
        self._taken_ms = now_ms
        pixels, came_s = newest
        return Picture(pixels, round(now_ms - 1000 * (time.monotonic() - came_s)))

    def close(self) -> None:
        self._is_closing = True
        self._thread.join(timeout=2)
        self._camera.release()

    def _read(self) -> None:
        while not self._is_closing:
            is_there, frame = self._camera.read()
            if not is_there:
                self._is_broken = True
                return
            pixels = np.ascontiguousarray(frame[:, :, ::-1], dtype=np.uint8)
            with self._lock:
                self._newest = pixels, time.monotonic()


def _opened(device: int | str) -> cv2.VideoCapture:
    number = str(device).removeprefix("/dev/video")
    if Path("/dev").is_dir() and number.isdigit() and not Path(f"/dev/video{number}").exists():
        # Said here, where OpenCV writes warnings of its own to the terminal.
        raise InputError(f"there is no camera {device}: nothing at /dev/video{number}")
    camera = cv2.VideoCapture(int(number) if number.isdigit() else str(device))
    if not camera.isOpened():
        camera.release()
        raise InputError(f"cannot open the camera {device}: is it in use, may you read it?")
    return camera


def camera_of(name: str) -> int | None:
    """The camera that ``name`` means: a number, or /dev/videoN; None: it is a file."""
    number = name.removeprefix("/dev/video")
    return int(number) if number.isdigit() and len(number) < 4 else None
