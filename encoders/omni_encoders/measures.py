"""What can be measured in a picture without knowing what it shows: light, focus, colours, motion.

Cheap (a few milliseconds): everything is taken from reductions of the picture. Called by
:mod:`omni_encoders.eyes`; pure functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Condition = Literal["clear", "dark", "bright", "blurred", "covered"]

MEASURED_SIDE = 320
"""Pixels of the longer side on which sharpness is measured, so that it does not depend on size."""

DARK = 0.06
"""Mean luminance below which nothing is told apart."""

BRIGHT = 0.94
"""The same above: the lamp or the sun is in the lens."""

BLURRED = 0.2
"""Sharpness below which a picture is too blurred to judge (the type's own limit)."""

COVERED_SPREAD = 0.05
"""Standard deviation of luminance, coarse parts of the picture, below which nothing is there."""

FAINTEST_EDGE = 0.012
"""99th percentile of the gradient (luminance per pixel) below which a picture has no edges."""

MOTION_SIZE = (64, 48)
MOTION_STEP = 0.08
"""Change of luminance that counts as motion: above a camera's noise, averaged over a cell."""

PALETTE: dict[str, tuple[int, int, int]] = {
    "black": (15, 15, 15),
    "dark grey": (70, 70, 70),
    "grey": (128, 128, 128),
    "light grey": (195, 195, 195),
    "white": (250, 250, 250),
    "red": (205, 30, 35),
    "dark red": (110, 20, 25),
    "orange": (240, 130, 30),
    "brown": (120, 72, 40),
    "beige": (220, 195, 155),
    "yellow": (245, 215, 40),
    "green": (50, 145, 60),
    "dark green": (28, 66, 34),
    "light green": (150, 210, 110),
    "turquoise": (50, 180, 175),
    "light blue": (140, 190, 235),
    "blue": (40, 85, 190),
    "dark blue": (22, 32, 90),
    "purple": (125, 55, 150),
    "pink": (240, 145, 175),
}
"""Plain names and what they look like, sRGB."""

_BEND = np.asarray([[1.0, -2.0, 1.0]], dtype=np.float32)
"""Second derivative along x: one direction of the Laplacian."""

LEAST_SHARE = 0.12
"""Share of the picture that a colour must have to be named."""


@dataclass(frozen=True, slots=True)
class Measures:
    """Of one picture; ``thumbnail`` [48, 64] luminance 0..1 is what motion is measured against."""

    light: float
    sharpness: float
    condition: Condition
    thumbnail: NDArray[np.float32]


def measure(pixels: NDArray[np.uint8]) -> Measures:
    """Measure ``pixels``, RGB [H, W, 3]."""
    luminance = _fitted(pixels)
    light = float(luminance.mean())
    sharpness = sharpness_of(luminance)
    thumbnail = _shrunk(luminance, MOTION_SIZE)
    return Measures(
        light=light,
        sharpness=sharpness,
        condition=_condition(luminance, thumbnail, light, sharpness),
        thumbnail=thumbnail,
    )


def sharpness_of(luminance: NDArray[np.float32]) -> float:
    """0..1: how much of a picture's own contrast is left at its finest, on [H, W] of one size.

    The Laplacian (Pech-Pacheco et al., 2000) depends on contrast as much as on focus, so it is
    divided by the spread of the picture. Its two directions are measured apart: a moving camera
    blurs only one, and the worse one counts.
    """
    spread = float(luminance.std())
    if spread < 1e-4:
        return 0.0
    smooth = cv2.GaussianBlur(luminance, (0, 0), 0.8)  # a sensor's noise is gone after this
    # The sharpest places decide: a sharp cat before a soft background is in focus.
    strongest = min(
        float(np.percentile(np.abs(cv2.filter2D(smooth, cv2.CV_32F, kernel)), 99.0))
        for kernel in (_BEND, _BEND.T)
    )
    return float(np.clip(strongest / (0.6 * spread + 0.02), 0.0, 1.0))


def colours_of(pixels: NDArray[np.uint8], most: int = 3) -> tuple[str, ...]:
    """Plain names of the commonest colours of ``pixels`` (RGB [H, W, 3]), the commonest first."""
    small = np.asarray(cv2.resize(pixels, (48, 48), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    lab = _lab(small.reshape(-1, 3))  # [N, 3]
    names = list(PALETTE)
    swatches = _lab(np.asarray(list(PALETTE.values()), dtype=np.uint8))
    distances = ((lab[:, None] - swatches[None]) ** 2).sum(axis=2)  # [N, names]
    counts = np.bincount(distances.argmin(axis=1), minlength=len(names))
    order = np.argsort(-counts, kind="stable")[:most]
    return tuple(names[i] for i in order if counts[i] >= LEAST_SHARE * len(lab))


def motion_between(before: NDArray[np.float32], now: NDArray[np.float32]) -> float:
    """Share 0..1 of the picture that moved between two thumbnails.

    A lamp or the camera's exposure changes all of it alike: the best gain and offset are taken out
    first, so that this is no motion.
    """
    same = np.ones(before.shape, dtype=np.bool_)
    for _ in range(3):  # what moved is left out of the fit, as far as it is known
        expected = _relit(before, now, same)
        error = np.abs(now - expected)
        same = error <= max(MOTION_STEP, float(np.median(error)))
    return float((error > MOTION_STEP).mean())


def _relit(
    before: NDArray[np.float32], now: NDArray[np.float32], same: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """``before`` in the light of ``now``: the gain and offset that fit best where ``same``."""
    mean, mean_now = before[same].mean(), now[same].mean()
    centred = before[same] - mean
    variance = float((centred**2).mean())
    gain = float((centred * (now[same] - mean_now)).mean()) / variance if variance > 1e-5 else 1.0
    # Near black and white the sensor clips, which no gain describes.
    relit = mean_now + np.float32(np.clip(gain, 0.4, 2.5)) * (before - mean)
    return np.asarray(np.clip(relit, 0.0, 1.0), dtype=np.float32)


def _condition(
    luminance: NDArray[np.float32],
    thumbnail: NDArray[np.float32],
    light: float,
    sharpness: float,
) -> Condition:
    # Over several pixels, so that noise in the dark is no edge.
    smooth = cv2.GaussianBlur(luminance, (0, 0), 1.5)
    across, down = np.gradient(smooth)
    edge = float(np.percentile(np.hypot(across, down), 99.0))
    has_no_edges = edge < FAINTEST_EDGE
    if has_no_edges and float(thumbnail.std()) < COVERED_SPREAD and light < BRIGHT:
        return "covered"
    if light < DARK:
        return "covered" if has_no_edges else "dark"
    if light > BRIGHT and has_no_edges:
        return "bright"
    return "blurred" if sharpness < BLURRED else "clear"


def _fitted(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Luminance 0..1 of RGB [H, W, 3], reduced to :data:`MEASURED_SIDE`; small pictures stay."""
    grey = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
    scale = MEASURED_SIDE / max(grey.shape)
    if scale < 1:
        # A gradient needs two pixels each way, in the narrowest strip too.
        size = max(2, round(grey.shape[1] * scale)), max(2, round(grey.shape[0] * scale))
        grey = np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return grey.astype(np.float32) / np.float32(255)


def _shrunk(values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    return np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_AREA), dtype=np.float32)


def _lab(colours: NDArray[np.uint8]) -> NDArray[np.float32]:
    """sRGB [N, 3] in CIE L*a*b*, where distance is how different colours look."""
    lab = cv2.cvtColor(colours[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    return np.asarray(lab[0], dtype=np.float32)
