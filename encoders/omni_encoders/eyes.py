"""Looks at pictures as they come and says what there is to see: the embedded default's eyes.

:class:`Eyes` holds the weights, one for all sessions; :class:`EyesState` is what one session has
seen, a value. ``look(picture, at_ms, state)`` gives a :class:`omni.types.Scene` and the next state.

::

    picture -> measures (light, focus, covered?) -> nothing to see: an empty scene
                  | nothing moved: the last findings again
                  v
               detector -> confidence -> distance -> tracking -> Scene
                  (asked for: classifier -> main, text reader -> lettering)

What is worth saying, and how, is not decided here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from omni.errors import InputError
from omni.scene import Scene, Thing
from omni_encoders.classifier import Classifier, Naming
from omni_encoders.detector import Detector, Finding
from omni_encoders.distance import distance_m
from omni_encoders.image import decode_image
from omni_encoders.measures import Measures, colours_of, measure, motion_between
from omni_encoders.text_reader import TextReader
from omni_encoders.tracking import Tracks, follow

StopCheck = Callable[[], bool]

STILL = 0.002
"""Motion below which the last findings stand: 6 of the thumbnail's 3072 cells."""

MAX_STILL_MS = 2_000
"""After this long the detector looks again all the same: slow change adds up."""

VEHICLES = frozenset({"bicycle", "car", "motorcycle", "bus", "train", "truck"})
ANIMALS = frozenset(
    {"bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"}
)

SURE_SCORE = {"person": 0.4, "vehicle": 0.4, "animal": 0.45, "other": 0.5}
"""Least score of a thing that is new. One that continues a track needs the detector's least."""

_CALIBRATION = {
    "person": ((0.3, 0.75), (0.4, 0.88), (0.5, 0.95), (0.6, 0.98)),
    "vehicle": ((0.3, 0.65), (0.4, 0.85), (0.5, 0.93), (0.6, 0.97)),
    "animal": ((0.3, 0.05), (0.4, 0.3), (0.5, 0.75), (0.6, 0.93)),
    "other": ((0.3, 0.05), (0.45, 0.1), (0.5, 0.2), (0.55, 0.5), (0.6, 0.75), (0.7, 0.9)),
}
"""Score to the share of such findings that are right, straight lines between.

Counted by eye on 55 photos (the samples of scikit-image, scikit-learn and OpenCV, many of them of
things that are none of COCO's kinds) and 16 frames of one street video: 116 people, 41 vehicles, 14
animals, 70 others from 0.3 up, and drawn towards the middle where there were few. It holds for
such pictures: one's own camera, in one's own rooms, may be better or worse.
"""


@dataclass(frozen=True, slots=True, eq=False)
class EyesState:
    """What one session's eyes remember: nothing but the last picture's thumbnail and findings."""

    tracks: Tracks = field(default_factory=Tracks)
    thumbnail: NDArray[np.float32] | None = None  # of the picture that was last looked at
    looked_ms: int = 0  # when the detector last looked
    findings: tuple[Finding, ...] = ()  # of that picture
    size: tuple[int, int] = (0, 0)  # its width and height
    last: Scene | None = None


class Eyes:
    """All the weights, shared by every session and thread.

    The text reader (0.6 s to load, 32 MB) is loaded by the first picture whose text is asked for.
    """

    def __init__(self, detector: Path, classifier: Path) -> None:
        """Open the weights in the folders ``detector`` and ``classifier``.

        Raises:
            ModelError: a file is missing or damaged; the message says what to do.
        """
        self._detector = Detector(detector)
        self._classifier = Classifier(classifier)
        self._reader: TextReader | None = None
        self._lock = threading.Lock()

    def look(
        self,
        picture: bytes | NDArray[np.uint8],
        at_ms: int,
        state: EyesState,
        *,
        wants_text: bool = False,
        wants_main: bool = False,
        should_stop: StopCheck = lambda: False,
    ) -> tuple[Scene, EyesState]:
        """See ``picture`` (a file's bytes, or RGB [H, W, 3]) taken at ``at_ms``.

        A picture in which nothing can be made out (dark, blurred, covered) has no things: an
        honest "I cannot see" is better than a guess. Tracks outlive it.

        Raises:
            InputError: the bytes are no image that can be decoded, or the array has another shape.
            CancelledError: ``should_stop()`` became true; ``state`` is as it was.
        """
        pixels = decode_image(picture) if isinstance(picture, bytes) else _checked(picture)
        measures = measure(pixels)
        motion = 1.0
        if state.thumbnail is not None:
            motion = motion_between(state.thumbnail, measures.thumbnail)
        is_clear = measures.condition == "clear"
        findings, looked_ms = self._find(pixels, at_ms, state, motion, is_clear, should_stop)
        things: tuple[Thing, ...] = ()
        tracks = state.tracks
        if is_clear:
            things, tracks = _followed(findings, at_ms, tracks, pixels.shape)
        main: Naming | None = None
        if wants_main and is_clear:
            main = self._classifier.name(pixels, should_stop)
        lettering = None
        if wants_text:
            # Not only in clear pictures: print is read where little else is told apart.
            lettering = self._open_reader().read(pixels, should_stop)
        scene = Scene(
            at_ms=at_ms,
            things=things,
            main=main.label if main else None,
            main_confidence=main.probability if main else 0.0,
            colours=colours_of(pixels) if measures.condition != "covered" else (),
            lettering=lettering,
            light=measures.light,
            sharpness=measures.sharpness,
            condition=measures.condition,
            motion=motion if state.thumbnail is not None else 0.0,
        )
        return scene, _next_state(state, scene, measures, tracks, findings, looked_ms, pixels.shape)

    def _find(
        self,
        pixels: NDArray[np.uint8],
        at_ms: int,
        state: EyesState,
        motion: float,
        is_clear: bool,
        should_stop: StopCheck,
    ) -> tuple[tuple[Finding, ...], int]:
        """The findings that hold for this picture, and when the detector made them."""
        if not is_clear:
            return (), at_ms
        is_same_kind = state.last is not None and state.last.condition == "clear"
        is_fresh = 0 <= at_ms - state.looked_ms < MAX_STILL_MS
        if is_same_kind and is_fresh and motion < STILL and state.size == _size(pixels.shape):
            return state.findings, state.looked_ms
        return self._detector.find(pixels, should_stop), at_ms

    def _open_reader(self) -> TextReader:
        with self._lock:
            if self._reader is None:
                self._reader = TextReader()
            return self._reader


def confidence_of(label: str, score: float) -> float:
    """The share of findings of ``label`` with the detector's ``score`` that are right."""
    scores, shares = zip(*_CALIBRATION[_group(label)], strict=True)
    return float(np.interp(score, scores, shares))


def _group(label: str) -> str:
    if label == "person":
        return label
    return "vehicle" if label in VEHICLES else "animal" if label in ANIMALS else "other"


def _followed(
    findings: tuple[Finding, ...], at_ms: int, tracks: Tracks, shape: tuple[int, ...]
) -> tuple[tuple[Thing, ...], Tracks]:
    """Findings as things, the surest first, numbered."""
    width, height = _size(shape)
    sure: list[Thing] = []
    unsure: list[Thing] = []
    for finding in findings:
        thing = Thing(
            label=finding.label,
            confidence=confidence_of(finding.label, finding.score),
            box=finding.box,
            distance_m=distance_m(finding.label, finding.box, width, height),
        )
        is_sure = finding.score >= SURE_SCORE[_group(finding.label)]
        (sure if is_sure else unsure).append(thing)
    return follow(tracks, sure, at_ms, unsure)


def _next_state(
    state: EyesState,
    scene: Scene,
    measures: Measures,
    tracks: Tracks,
    findings: tuple[Finding, ...],
    looked_ms: int,
    shape: tuple[int, ...],
) -> EyesState:
    # While the findings stand, so does their picture: slow change must not creep past unseen.
    stands = looked_ms != scene.at_ms and state.thumbnail is not None
    return replace(
        state,
        tracks=tracks,
        thumbnail=state.thumbnail if stands else measures.thumbnail,
        looked_ms=looked_ms,
        findings=findings,
        size=_size(shape),
        last=scene,
    )


def _size(shape: tuple[int, ...]) -> tuple[int, int]:
    """Width and height."""
    return shape[1], shape[0]


def _checked(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise InputError(f"pixels are {pixels.dtype} {pixels.shape}, expected uint8 [H, W, 3]")
    return np.ascontiguousarray(pixels)
