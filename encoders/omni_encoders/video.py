"""Video becomes spans while it arrives: a time in words, then what is seen at it, and so on.

Two frames are one moment (a temporal patch). Each moment is seen by itself, so nothing already
seen changes when more video comes, and cutting the stream anywhere changes nothing. The state is a
value: ``encode`` returns the next one and leaves the given one as it was. ::

    state = encoder.open(origin_ms=now_ms)
    spans, state = encoder.encode(frames, state)      # as frames arrive
    spans = encoder.tail(state)                       # the clip ends, or a look in between

Spans alternate: ``TextSpan("<1.2 seconds>")``, ``EmbeddingSpan``, ... The family's template puts
its marks (``<|vision_start|>``, ``<|vision_end|>``) around each EmbeddingSpan: text never becomes
one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from omni.errors import InputError
from omni.types import Span, TextSpan
from omni_encoders.features import fitted_size, resize
from omni_encoders.image import PixelLimits, see
from omni_encoders.vision import StopCheck, VisionTower

FRAMES_PER_S = 2.0
MIN_FRAMES = 4
MAX_FRAMES = 768  # of a clip; a live stream is bounded by the backbone's context
CLIP_MIN_PIXELS = 4096  # published limits of a clip, over all its frames
CLIP_MAX_PIXELS = 24 * 2**20


@dataclass(frozen=True, slots=True)
class Frame:
    """``pixels`` [H, W, 3] RGB, shown from ``at_ms`` on the session's clock."""

    pixels: NDArray[np.uint8]
    at_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pending:
    """First frame of a moment, already at its size, and the size it came in."""

    pixels: torch.Tensor  # uint8 [3, H, W]
    source: tuple[int, int]
    at_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoState:
    """One video so far: a value.

    Attributes:
        origin_ms: where the video's own clock stands at 0.
        every_ms: distance of the frames that are taken; None: every frame is.
        size: (height, width) at which all frames are seen; None: by each frame's own.
        due_ms: the next frame taken is the first at or after it.
        last_ms: when the last frame came, taken or not.
        pending: a frame that waits for the other of its moment.
        num_frames: frames taken.
    """

    origin_ms: float
    every_ms: float | None
    size: tuple[int, int] | None
    due_ms: float = -math.inf
    last_ms: float = -math.inf
    pending: _Pending | None = None
    num_frames: int = 0


def sampled_frames(num_frames: int, frames_per_s: float) -> list[int]:
    """Which frames of a clip are seen: two per second, 4 to 768 of them, evenly spread.

    Args:
        num_frames: frames of the clip, at least 1.
        frames_per_s: the clip's own rate.
    """
    wanted = int(num_frames / frames_per_s * FRAMES_PER_S)
    wanted = min(max(wanted, MIN_FRAMES), MAX_FRAMES, num_frames)
    return [int(i) for i in np.linspace(0, num_frames - 1, wanted).round()]


def clip_size(
    num_frames: int,
    height: int,
    width: int,
    *,
    multiple: int,
    min_pixels: int = CLIP_MIN_PIXELS,
    max_pixels: int = CLIP_MAX_PIXELS,
) -> tuple[int, int]:
    """The size (height, width) of every frame of a clip whose ``num_frames`` sampled are known.

    A single frame counts as the two it will stand for.

    Raises:
        InputError: the frames are too long.
    """
    num_frames = max(num_frames, 2)
    if min(height, width) < multiple:
        scale = max(multiple / height, multiple / width)
        height, width = int(height * scale), int(width * scale)
    return fitted_size(
        height,
        width,
        multiple=multiple,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        num_frames=num_frames,
        counted_frames=round(num_frames / 2) * 2,
    )


class VideoEncoder:
    """Video to spans over one shared tower; stateless but for the states it gives out."""

    def __init__(self, tower: VisionTower, limits: PixelLimits | None = None) -> None:
        """``limits`` bound the pixels of a frame where a state names no size."""
        self._tower = tower
        self._limits = limits or PixelLimits()

    def open(
        self,
        *,
        origin_ms: float = 0,
        every_ms: float | None = 1000 / FRAMES_PER_S,
        size: tuple[int, int] | None = None,
    ) -> VideoState:
        """State of a new video.

        A live stream takes the defaults; a clip's chosen frames (:func:`sampled_frames`) are all
        taken, ``every_ms=None``, at its ``size`` (:func:`clip_size`).

        Raises:
            InputError: a side of ``size`` is no multiple of a token's.
        """
        side = self._tower.config.token_pixels
        if size is not None and (min(size) < side or size[0] % side or size[1] % side):
            raise InputError(f"frames cannot be {size}, expected multiples of {side}")
        return VideoState(origin_ms=origin_ms, every_ms=every_ms, size=size)

    def encode(
        self,
        frames: Sequence[Frame],
        state: VideoState,
        should_stop: StopCheck = lambda: False,
    ) -> tuple[list[Span], VideoState]:
        """See the moments that ``frames`` complete.

        Raises:
            InputError: a frame is not later than the one before, or too long.
            CancelledError: ``should_stop()`` became true between two layers; ``state`` still holds.
        """
        spans: list[Span] = []
        for frame in frames:
            if frame.at_ms <= state.last_ms:
                raise InputError(
                    f"a frame at {frame.at_ms:.0f} ms came after one at {state.last_ms:.0f} ms"
                )
            state = replace(state, last_ms=frame.at_ms)
            if frame.at_ms < state.due_ms:
                continue
            height, width = frame.pixels.shape[:2]
            pending = state.pending
            if pending and pending.source != (height, width):  # the camera was turned
                spans += self._moment([pending], state, should_stop)
                pending = None
            taken = _Pending(
                pixels=resize(frame.pixels, state.size or self._fitted(height, width)),
                source=(height, width),
                at_ms=frame.at_ms,
            )
            if pending:
                spans += self._moment([pending, taken], state, should_stop)
            state = replace(
                state,
                due_ms=_next_due(frame.at_ms, state),
                pending=None if pending else taken,
                num_frames=state.num_frames + 1,
            )
        return spans, state

    def tail(self, state: VideoState, should_stop: StopCheck = lambda: False) -> list[Span]:
        """The moment that is still open, seen with what there is of it; ``state`` still holds."""
        return self._moment([state.pending], state, should_stop) if state.pending else []

    def _moment(
        self, frames: list[_Pending], state: VideoState, should_stop: StopCheck
    ) -> list[Span]:
        start_ms, end_ms = frames[0].at_ms, frames[-1].at_ms
        mean_s = ((start_ms - state.origin_ms) / 1000 + (end_ms - state.origin_ms) / 1000) / 2
        start, end = round(start_ms), round(end_ms)
        time = TextSpan(text=f"<{mean_s:.1f} seconds>", start_ms=start, end_ms=end, final=True)
        return [time, see(self._tower, [f.pixels for f in frames], start, end, should_stop)]

    def _fitted(self, height: int, width: int) -> tuple[int, int]:
        return fitted_size(
            height,
            width,
            multiple=self._tower.config.token_pixels,
            min_pixels=self._limits.min_pixels,
            max_pixels=self._limits.max_pixels,
        )


def _next_due(at_ms: float, state: VideoState) -> float:
    """When the frame after one at ``at_ms`` is due: a late frame does not delay the rest."""
    if state.every_ms is None:
        return -math.inf
    if not state.num_frames:
        return at_ms + state.every_ms
    return state.due_ms + state.every_ms * (math.floor((at_ms - state.due_ms) / state.every_ms) + 1)
