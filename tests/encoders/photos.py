"""Real pictures for the eyes: scikit-image's photos, and a street's video from Debian."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

STREET = Path("/usr/share/doc/opencv-doc/examples/data/vtest.avi")

needs_street = pytest.mark.skipif(
    not STREET.is_file(), reason="needs the street video of Debian's package opencv-doc"
)


def photo(name: str) -> Pixels:
    """RGB [H, W, 3] of a photo that comes with scikit-image."""
    skimage = pytest.importorskip("skimage", reason="needs the photos of scikit-image")
    (at,) = (Path(skimage.__file__).parent / "data").glob(f"{name}.*")
    image = cv2.imread(str(at))
    assert image is not None, at
    return np.ascontiguousarray(image[:, :, ::-1])


def street(*numbers: int) -> list[Pixels]:
    """The frames ``numbers`` (ascending) of the street video, RGB [576, 768, 3], 10 per second."""
    video = cv2.VideoCapture(str(STREET))
    frames = []
    for number in range(numbers[-1] + 1):
        is_there, frame = video.read()
        assert is_there, number
        if number in numbers:
            frames.append(np.ascontiguousarray(frame[:, :, ::-1]))
    return frames


def jpeg(pixels: Pixels) -> bytes:
    is_written, data = cv2.imencode(".jpg", pixels[:, :, ::-1])
    assert is_written
    return data.tobytes()


def blurred(pixels: Pixels) -> Pixels:
    """As a camera that does not focus shows it."""
    sigma = 0.02 * pixels.shape[1]
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), sigma), dtype=np.uint8)


def smeared(pixels: Pixels) -> Pixels:
    """As a camera that is swung sideways shows it."""
    length = int(0.04 * pixels.shape[1])
    kernel = np.full((1, length), 1 / length)
    return np.asarray(cv2.filter2D(pixels, -1, kernel), dtype=np.uint8)


def covered(pixels: Pixels, seed: int = 0) -> Pixels:
    """Through a finger on the lens: a reddish glow and the sensor's noise."""
    few = cv2.resize(pixels, (4, 3), interpolation=cv2.INTER_AREA)
    glow = cv2.resize(few, pixels.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    glow = glow * np.array([0.4, 0.15, 0.1])
    noise = np.random.default_rng(seed).normal(0, 4, pixels.shape)
    return np.asarray(np.clip(glow + noise, 0, 255), dtype=np.uint8)
