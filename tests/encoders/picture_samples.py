"""Pictures with edges, gradients and noise, and files made of them by another library."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def picture(height: int, width: int, seed: int = 0) -> Pixels:
    """[height, width, 3]: a gradient, a bright disc whose edge rings, and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    shade = np.stack([y / height, x / width, (x + y) / (height + width)], axis=2) * 200
    centre = rng.uniform(0.3, 0.7, 2) * (height, width)
    disc = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < (min(height, width) / 3) ** 2
    shade[disc] = 240
    noisy = shade + rng.normal(0, 9, shade.shape)
    return np.asarray(np.clip(noisy, 0, 250), dtype=np.uint8)  # no white: transparency is


def file_of(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def reference_pixels(data: bytes) -> Pixels:
    """What transformers would see: upright, RGB, transparency on white."""
    from PIL.ImageOps import exif_transpose
    from transformers.image_transforms import convert_to_rgb

    upright = exif_transpose(Image.open(io.BytesIO(data)))
    return np.asarray(convert_to_rgb(upright, return_numpy=True))
