"""What there is to see in one picture, for those who decide without a model.

Made by :mod:`omni_encoders.eyes`, carried by :class:`omni.types.Seen`, told by
:mod:`omni_encoders.wording` and :mod:`omni_streaming.describe`. Plain values, as all of
:mod:`omni.types`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """One thing in a picture.

    ``box`` is left, top, right, bottom as shares of the picture, 0..1 from its upper left corner.
    """

    label: str  # an English noun, such as "person" or "traffic light"
    confidence: float  # calibrated: the share of such findings that are right
    box: tuple[float, float, float, float]
    distance_m: float | None = None  # rough, from the size that such things have; None: unknown
    track_id: int = 0  # the same thing in later pictures has the same number; 0: not tracked
    approach_per_s: float = (
        0.0  # growth of its height per second, as a share; 0.5: half as tall again
    )
    num_frames: int = 1  # pictures in a row in which it was found

    @property
    def centre_x(self) -> float:
        return (self.box[0] + self.box[2]) / 2

    @property
    def height(self) -> float:
        return self.box[3] - self.box[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lettering:
    """A line of text in a picture; ``box`` as in :class:`Thing`."""

    text: str
    confidence: float
    box: tuple[float, float, float, float]
    is_cut_off: bool = False  # it runs out of the picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What there is to see in one picture taken at ``at_ms`` on the session's clock."""

    at_ms: int
    things: tuple[Thing, ...] = ()
    main: str | None = None  # what the picture is of, if it is of one thing
    main_confidence: float = 0.0
    colours: tuple[str, ...] = ()  # the commonest first
    lettering: tuple[Lettering, ...] | None = None  # in reading order; None: nobody looked for it
    light: float = 0.5  # mean luminance, 0..1
    sharpness: float = 1.0  # 0..1; below 0.2 too blurred to judge
    condition: Literal["clear", "dark", "bright", "blurred", "covered"] = "clear"
    motion: float = 0.0  # how much of the picture moved since the last one, 0..1
