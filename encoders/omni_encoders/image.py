"""Images become spans: decoded, turned upright, brought to size, seen by the vision tower.

Called by the assistant when an image comes in; stateless. What the picture is embedded in (the
marks around it) is the family's template's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from omni.errors import InputError
from omni.types import EmbeddingSpan
from omni_encoders.features import fitted_size, patchify, resize
from omni_encoders.image_header import inspect
from omni_encoders.vision import Grid, StopCheck, VisionConfig, VisionTower, token_positions

_BAND_PIXELS = 2**16
"""Converted at once: a file of half a megabyte may hold 64 megapixels, whose fractions of a whole
picture would take gigabytes."""

WHOLE_PIXELS = 4800 * 4800
"""Of a picture that is taken as it is; a larger one is halved. The longer side still has 2400 then,
and the text reader, which sees most, looks at 1600."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelLimits:
    """How many pixels of an image are seen; each 1024 cost a token. Published defaults."""

    min_pixels: int = 256 * 256  # smaller images are enlarged to 64 tokens
    max_pixels: int = 4096 * 4096  # larger ones are reduced to 16,384


def decode_image(data: bytes, *, whole_pixels: int = WHOLE_PIXELS) -> NDArray[np.uint8]:
    """Decode a JPEG, PNG, WebP or still GIF file to upright RGB pixels [H, W, 3].

    A picture of more than ``whole_pixels`` comes at half its width and height, rounded up: 64
    megapixels held up everybody else's looks for seconds. Smaller ones keep every pixel.

    Transparent parts are shown on white, 16-bit channels lose their lower byte. Animations are
    refused: one frame would pass for the whole.

    Raises:
        InputError: not an image, cut off, damaged, animated, too small or too large.
    """
    header = inspect(data)
    is_halved = header.width * header.height > whole_pixels
    # Unchanged: the other modes drop transparency instead of showing what is behind it.
    mode = cv2.IMREAD_UNCHANGED
    if is_halved and header.kind == "JPEG":  # the decoder leaves out half the frequencies
        mode = cv2.IMREAD_REDUCED_COLOR_2 | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        decoded = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), mode)
    except cv2.error:
        decoded = None
    if decoded is None:
        raise InputError(f"the {header.kind} image is damaged and cannot be decoded; send it again")
    rgb = _rgb(decoded, is_halved=is_halved and header.kind != "JPEG")
    return np.ascontiguousarray(_upright(rgb, header.orientation))


def _rgb(
    decoded: NDArray[np.integer[Any] | np.floating[Any]], *, is_halved: bool
) -> NDArray[np.uint8]:
    """OpenCV's [H, W], [H, W, 3] BGR or [H, W, 4] BGRA of 8 or 16 bits as RGB on white."""
    height, width = decoded.shape[:2]
    factor = 2 if is_halved else 1
    rgb = np.empty((-(-height // factor), -(-width // factor), 3), dtype=np.uint8)
    num_rows = max(1, _BAND_PIXELS // width // factor) * factor
    for top in range(0, height, num_rows):
        band = _band(decoded[top : top + num_rows])
        into = rgb[top // factor : (top + num_rows) // factor]
        into[:] = _halved(band) if is_halved else band
    return rgb


def _halved(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The mean of every two by two; an odd edge counts double."""
    height, width = pixels.shape[:2]
    if height % 2 or width % 2:
        margins = (0, height % 2, 0, width % 2)
        pixels = np.asarray(cv2.copyMakeBorder(pixels, *margins, cv2.BORDER_REPLICATE), np.uint8)
    size = pixels.shape[1] // 2, pixels.shape[0] // 2
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _band(decoded: NDArray[np.integer[Any] | np.floating[Any]]) -> NDArray[np.uint8]:
    pixels = decoded // 256 if decoded.dtype == np.uint16 else decoded
    pixels = pixels.astype(np.uint8, copy=False)
    if pixels.ndim == 2:
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB), dtype=np.uint8)
    rgb = np.asarray(cv2.cvtColor(pixels[:, :, :3], cv2.COLOR_BGR2RGB), dtype=np.uint8)
    if pixels.shape[2] == 3:
        return rgb
    alpha = pixels[:, :, 3:].astype(np.float32) / 255
    return np.rint(rgb * alpha + 255 * (1 - alpha)).astype(np.uint8)


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Undo how the camera was held: EXIF ``orientation`` 1..8."""
    if orientation >= 5:  # stored on its side
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


class ImageEncoder:
    """Images to spans over one shared tower."""

    def __init__(self, tower: VisionTower, limits: PixelLimits | None = None) -> None:
        """``limits`` None: the published ones, far beyond what a laptop sees in a second."""
        self._tower = tower
        self._limits = limits or PixelLimits()

    def num_tokens(self, height: int, width: int) -> int:
        """Tokens that an image of ``height`` x ``width`` pixels will take.

        Raises:
            InputError: the image is too long.
        """
        side = self._tower.config.token_pixels
        height, width = self._fitted(height, width)
        return (height // side) * (width // side)

    def encode(
        self,
        pixels: NDArray[np.uint8],
        *,
        at_ms: int = 0,
        should_stop: StopCheck = lambda: False,
    ) -> EmbeddingSpan:
        """See ``pixels`` [H, W, 3] (:func:`decode_image`), shown at ``at_ms``.

        Raises:
            InputError: the image is too long.
            CancelledError: ``should_stop()`` became true between two layers.
        """
        frame = resize(pixels, self._fitted(*pixels.shape[:2]))
        return see(self._tower, [frame], at_ms, at_ms, should_stop)

    def _fitted(self, height: int, width: int) -> tuple[int, int]:
        return fitted_size(
            height,
            width,
            multiple=self._tower.config.token_pixels,
            min_pixels=self._limits.min_pixels,
            max_pixels=self._limits.max_pixels,
        )


def see(
    tower: VisionTower,
    frames: list[torch.Tensor],
    start_ms: int,
    end_ms: int,
    should_stop: StopCheck = lambda: False,
) -> EmbeddingSpan:
    """One moment as a span: ``frames``, uint8 [3, H, W] each, fill one temporal patch.

    The last one stands for those that are missing, as a still image does for all.
    """
    config = tower.config
    frames = frames + frames[-1:] * (config.temporal_patch_size - len(frames))
    patches = patchify(
        torch.stack(frames),
        config.patch_size,
        config.temporal_patch_size,
        config.spatial_merge_size,
    )
    grid = grid_of(config, *frames[0].shape[1:])
    (embeddings,) = tower.encode(patches, [grid], should_stop)
    merge = config.spatial_merge_size
    positions, _ = token_positions(grid.rows // merge, grid.columns // merge)
    return EmbeddingSpan(
        embeddings=embeddings, positions=positions, start_ms=start_ms, end_ms=end_ms, final=True
    )


def grid_of(config: VisionConfig, height: int, width: int) -> Grid:
    """Patches of one moment of ``height`` x ``width`` pixels."""
    return Grid(1, height // config.patch_size, width // config.patch_size)
