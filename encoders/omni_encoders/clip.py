"""A short video file in memory as the few frames of it that are looked at.

Called where a clip is part of a conversation; long files are read elsewhere, piece by piece, with
the functions for one frame that are here.
"""

from __future__ import annotations

import io
import math
import struct
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from omni.errors import CancelledError, InputError
from omni_encoders.video import Frame, sampled_frames
from omni_encoders.vision import StopCheck

MAX_CLIP_S = 60.0
"""A minute: at two frames a second more than a context wants to hold."""

MAX_CLIP_PIXELS = 64 * 2**20
"""Kept of all frames together, 200 MB: a minute in 4K would be 3 GB, and far less is seen of it."""

MAX_FRAME_PIXELS = 64 * 2**20
"""Of one frame as stored; a decoder holds several."""

Held = tuple[bool, int, int]
"""Whether frames are stored on their side, and the steps that go down and right once upright."""

_QUARTERS: tuple[Held, ...] = ((False, 1, 1), (True, -1, 1), (False, -1, -1), (True, 1, -1))
"""By quarter turns against the clock."""


def read_clip(data: bytes, should_stop: StopCheck = lambda: False) -> list[Frame]:
    """Decode the frames of the clip ``data`` that :func:`omni_encoders.video.sampled_frames` names.

    Raises:
        InputError: not a video, damaged, without a frame, or longer than :data:`MAX_CLIP_S`.
        CancelledError: ``should_stop()`` became true between two frames.
    """
    try:
        # An InputContainer: the file is read. Titles may be in any old encoding.
        opened: Any = av.open(io.BytesIO(data), metadata_errors="replace")
        with opened as container:
            if not container.streams.video:
                raise InputError("the file has sound but no video")
            stream = container.streams.video[0]
            check_codec(stream.codec_context)
            times = _times_s(container, stream)
            wanted = [times[i] for i in sampled_frames(len(times), _rate(times))]
            container.seek(0)
            stream.thread_type = "NONE"  # the cores are the backbone's
            frames: list[Frame] = []
            held: Held | None = None
            for frame in container.decode(stream):
                if should_stop():
                    raise CancelledError("the clip was dropped")
                if len(frames) == len(wanted):
                    break
                if frame.time is not None and frame.time >= wanted[len(frames)]:
                    # Asked once: a frame whose side data were looked at lives until a collection.
                    held = held or how_held(frame)
                    pixels = upright(pixels_of(frame, MAX_CLIP_PIXELS // len(wanted)), *held)
                    frames.append(Frame(pixels=pixels, at_ms=1000 * (frame.time - times[0])))
    except av.FFmpegError as error:
        raise InputError(f"the video cannot be decoded: {error.strerror}") from error
    if not frames:
        raise InputError("the video is damaged: none of its frames can be decoded")
    return frames


def check_codec(codec: av.VideoCodecContext | None) -> None:
    """See that frames can be decoded and are not too large, now or when their size changes."""
    if codec is None:
        raise InputError("the video cannot be decoded: its format is not known")
    if codec.width * codec.height > MAX_FRAME_PIXELS:
        raise InputError(
            f"the video has {codec.width}x{codec.height} pixels, expected at most "
            f"{MAX_FRAME_PIXELS:,}; reduce it"
        )
    codec.options = {"max_pixels": str(MAX_FRAME_PIXELS)}


def _times_s(container: Any, stream: Any) -> list[float]:
    """When each frame is shown, ascending; read without decoding."""
    packets = (p for p in container.demux(stream) if p.pts is not None)
    times = sorted({float(p.pts * p.time_base) for p in packets})
    if not times:
        raise InputError("the video has no frame")
    if times[-1] - times[0] > MAX_CLIP_S:
        raise InputError(
            f"the video is {math.ceil(times[-1] - times[0])} s long, "
            f"expected at most {MAX_CLIP_S:.0f} s"
        )
    return times


def _rate(times: list[float]) -> float:
    """Frames a second; 1 for a single frame."""
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 1.0


def pixels_of(frame: av.VideoFrame, max_pixels: int) -> NDArray[np.uint8]:
    """RGB [H, W, 3] as stored, reduced where there are more than ``max_pixels``."""
    scale = math.sqrt(max_pixels / (frame.width * frame.height))
    if scale < 1:
        width, height = (max(1, int(side * scale)) for side in (frame.width, frame.height))
        frame = frame.reformat(width, height, "rgb24", interpolation="AREA")
    return np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)


def how_held(frame: av.VideoFrame) -> Held:
    """How the camera was held, from the matrix of its display: [a b u], [c d v], [x y w]."""
    try:
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")  # a buffer
    except ValueError:
        # PyAV 18 gives none of a frame's side data when one, such as EXIF, is of a kind that it
        # does not know. The angle can be had, a mirror cannot. Until it knows them all.
        return _QUARTERS[round(frame.rotation / 90) % 4]
    if matrix is None:
        return False, 1, 1
    a, b, _, c, d = struct.unpack_from("=5i", matrix)
    on_its_side = abs(b) > abs(a)
    down, right = (b, c) if on_its_side else (d, a)
    return on_its_side, -1 if down < 0 else 1, -1 if right < 0 else 1


def upright(
    pixels: NDArray[np.uint8], on_its_side: bool, down: int, right: int
) -> NDArray[np.uint8]:
    """The frame as it should be shown, given :func:`how_held`."""
    if on_its_side:
        pixels = pixels.swapaxes(0, 1)
    return np.ascontiguousarray(pixels[::down, ::right])
