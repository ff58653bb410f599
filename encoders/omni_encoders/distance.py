"""How far away a thing is, roughly, from how large such things are.

Called by :mod:`omni_encoders.eyes`; pure. Assumes a camera that sees 60 degrees from the top of a
4:3 picture to its bottom (the wide side of a phone held upright and the main camera of most laptops
are within 10 degrees of it); another field of view puts every distance off by one factor. Things
also differ in size, and people sit: take the figures as good to a half.
"""

from __future__ import annotations

import math

FIELD_OF_VIEW_DEGREES = 60.0
"""Across the height of a 4:3 picture; of other pictures, across three quarters of the width."""

MIN_DISTANCE_M = 0.3
MAX_DISTANCE_M = 50.0
"""Beyond, a box is a few pixels high, and one pixel is metres."""

EDGE = 0.01
"""Share of the picture within which a box touches its edge: the rest of the thing is not seen."""

HEIGHTS_M = {  # of things that stand as they do, whichever way they are turned
    "person": 1.65,
    "bicycle": 1.05,
    "car": 1.5,
    "motorcycle": 1.15,
    "bus": 3.1,
    "train": 3.8,
    "truck": 3.0,
    "traffic light": 0.9,
    "fire hydrant": 0.75,
    "stop sign": 0.75,
    "parking meter": 1.3,
    "bench": 0.85,
    "dog": 0.55,
    "cat": 0.3,
    "horse": 1.7,
    "cow": 1.5,
    "sheep": 0.9,
    "chair": 0.9,
    "couch": 0.85,
    "refrigerator": 1.7,
    "toilet": 0.75,
    "bottle": 0.25,
    "cup": 0.1,
    "suitcase": 0.65,
}
"""Usual heights; what is not listed has none."""

TALLEST_SHAPE = {"person": 1.2}
"""Least height for a width: a person whose box is wider sits, bends or is seen in part."""


def distance_m(
    label: str, box: tuple[float, float, float, float], width: int, height: int
) -> float | None:
    """Metres to the thing ``label`` in ``box`` (shares of a picture of ``width`` x ``height``).

    None: the size of such things is not known, or the box is cut off by the picture's edge.
    """
    left, top, right, bottom = box
    if label not in HEIGHTS_M or min(left, top, 1 - right, 1 - bottom) < EDGE:
        return None
    tall, wide = (bottom - top) * height, (right - left) * width  # pixels
    if tall <= 0 or tall < TALLEST_SHAPE.get(label, 0.0) * wide:
        return None
    # A portrait picture is a 4:3 one on its side or cut out of one: its longer side sees more.
    seen = 0.75 * max(width, height)
    focal = seen / 2 / math.tan(math.radians(FIELD_OF_VIEW_DEGREES) / 2)  # pixels
    metres = HEIGHTS_M[label] * focal / tall
    return min(MAX_DISTANCE_M, max(MIN_DISTANCE_M, metres))
