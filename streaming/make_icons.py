"""Draw the icons of the page that describes: ``python streaming/make_icons.py``.

An eye of two circles inside a ring, far enough from the edge for masks of any shape.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

WEB = Path(__file__).parent / "omni_streaming" / "web"
SIZES = (180, 192, 512)  # pixels: Apple's home screen, the manifest's two
FINER = 4  # drawn larger, then reduced: smooth edges

# Blue, green, red, as OpenCV wants them; radii in shares of the icon's side.
GROUND = (27, 24, 16)
RINGS = (
    (0.36, (197, 203, 132)),
    (0.29, (27, 24, 16)),
    (0.20, (154, 157, 79)),
    (0.09, (27, 24, 16)),
)


def draw(size: int) -> NDArray[np.uint8]:
    """The icon as ``[size, size, 3]`` uint8, BGR."""
    side = size * FINER
    image = np.full((side, side, 3), GROUND, np.uint8)
    for radius, colour in RINGS:
        cv2.circle(image, (side // 2, side // 2), round(radius * side), colour, -1)
    reduced: NDArray[np.uint8] = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    return reduced


def main() -> None:
    for size in SIZES:
        cv2.imwrite(str(WEB / f"see-{size}.png"), draw(size), [cv2.IMWRITE_PNG_COMPRESSION, 9])


if __name__ == "__main__":
    main()
