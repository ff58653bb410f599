"""A short video file in memory as the few frames of it that are looked at.

Called where a clip is part of a conversation; long files are read elsewhere, piece by piece.
"""

from __future__ import annotations

import io
from typing import Any

import av
import numpy as np

from omni.errors import CancelledError, InputError
from omni_encoders.video import Frame, sampled_frames
from omni_encoders.vision import StopCheck

MAX_CLIP_S = 60.0
"""A minute: at two frames a second more than a context wants to hold."""


def read_clip(data: bytes, should_stop: StopCheck = lambda: False) -> list[Frame]:
    """Decode the frames of the clip ``data`` that :func:`omni_encoders.video.sampled_frames` names.

    Raises:
        InputError: not a video, damaged, without a frame, or longer than :data:`MAX_CLIP_S`.
        CancelledError: ``should_stop()`` became true between two frames.
    """
    try:
        opened: Any = av.open(io.BytesIO(data))  # an InputContainer: the file is read
        with opened as container:
            if not container.streams.video:
                raise InputError("the file has sound but no video")
            stream = container.streams.video[0]
            times = _times_s(container, stream)
            wanted = [times[i] for i in sampled_frames(len(times), _rate(times))]
            container.seek(0)
            stream.thread_type = "NONE"  # the cores are the backbone's
            frames: list[Frame] = []
            for frame in container.decode(stream):
                if should_stop():
                    raise CancelledError("the clip was dropped")
                if len(frames) == len(wanted):
                    break
                if frame.time is not None and frame.time >= wanted[len(frames)]:
                    pixels = np.ascontiguousarray(frame.to_ndarray(format="rgb24"))
                    frames.append(Frame(pixels=pixels, at_ms=1000 * (frame.time - times[0])))
    except av.FFmpegError as error:
        raise InputError(f"the video cannot be decoded: {error.strerror}") from error
    if not frames:
        raise InputError("the video is damaged: none of its frames can be decoded")
    return frames


def _times_s(container: Any, stream: Any) -> list[float]:
    """When each frame is shown, ascending; read without decoding."""
    packets = (p for p in container.demux(stream) if p.pts is not None)
    times = sorted({float(p.pts * p.time_base) for p in packets})
    if not times:
        raise InputError("the video has no frame")
    if times[-1] - times[0] > MAX_CLIP_S:
        raise InputError(
            f"the video is {times[-1] - times[0]:.0f} s long, expected at most {MAX_CLIP_S:.0f} s"
        )
    return times


def _rate(times: list[float]) -> float:
    """Frames a second; 1 for a single frame."""
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 1.0
