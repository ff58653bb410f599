"""Clips with known truth for live description: approaches, streets, photos, spoilt pictures, signs.

Pedestrians are cut out of a static street view (OpenCV's vtest.avi: the detector's tracked boxes,
the background subtracted) and walk again, now towards the camera: as a pinhole camera of the field
of view that :mod:`omni_encoders.distance` assumes would see them. Pictures are RGB [H, W, 3].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from omni_encoders.distance import FIELD_OF_VIEW_DEGREES, HEIGHTS_M
from omni_streaming.describe_settings import (
    CLOSE_M,
    GROWING_WITHIN_M,
    GROWTH_PER_S,
    SOON_PER_S,
)
from omni_streaming.describe_source import Picture

from omni.assistant.watching import Watcher
from omni.errors import OmniError

Pixels = NDArray[np.uint8]

STREET = Path("/usr/share/doc/opencv-doc/examples/data/vtest.avi")
"""79.5 s at 10 frames a second, 768 x 576, from above: people pass, nobody approaches."""
STREET_FPS = 10
FPS = 4.0
"""Pictures a second that the clips give."""

CONTACT_M = 0.6
"""Arm's length."""
HORIZON = 0.42
"""Of the picture's height."""
EYE_M = 1.5
"""How high the camera is held."""


# --- Street and photos ---------------------------------------------------------------------------


def street_frames(first: int = 0, last: int | None = None) -> Iterator[Pixels]:
    """Frames of the street.

    Raises:
        OmniError: the video is not here.
    """
    if not STREET.is_file():
        raise OmniError(f"there is no {STREET}: install the Debian package opencv-doc")
    video = cv2.VideoCapture(str(STREET))
    number = 0
    while last is None or number < last:
        is_there, frame = video.read()
        if not is_there:
            break
        if number >= first:
            yield np.ascontiguousarray(frame[:, :, ::-1], dtype=np.uint8)
        number += 1
    video.release()


@cache
def background() -> Pixels:
    """The street without people: the median over time."""
    frames = [frame for number, frame in enumerate(street_frames()) if number % 25 == 0]
    return np.asarray(np.median(np.stack(frames), axis=0), dtype=np.uint8)


def photo(name: str) -> Pixels:
    """A photo of scikit-image, at most 640 pixels wide.

    Raises:
        OmniError: scikit-image is not installed.
    """
    try:
        import skimage
    except ImportError as error:
        raise OmniError("the photos need scikit-image: pip install scikit-image") from error
    (path,) = (Path(skimage.__file__).parent / "data").glob(f"{name}.*")
    image = cv2.imread(str(path))
    assert image is not None, path
    scale = min(1.0, 640 / image.shape[1])
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(small[:, :, ::-1], dtype=np.uint8)


def jpeg(pixels: Pixels) -> bytes:
    """As a page in a browser sends it."""
    _, data = cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    return bytes(data.tobytes())


def held(pixels: Pixels, at_ms: int, rng: np.random.Generator, sway: float = 0.004) -> Pixels:
    """Held in a hand: it sways by a few pixels, slowly, and the sensor has noise."""
    height, width = pixels.shape[:2]
    x = sway * width * math.sin(at_ms / 1300)
    y = sway * height * math.sin(at_ms / 900 + 1)
    shift = np.asarray([[1, 0, x], [0, 1, y]], dtype=np.float32)
    moved = cv2.warpAffine(pixels, shift, (width, height), borderMode=cv2.BORDER_REPLICATE)
    noise = rng.normal(0, 2.0, pixels.shape)
    return np.clip(moved + noise, 0, 255).astype(np.uint8)


def still(pixels: Pixels, seconds: float, *, begin_ms: int = 0, seed: int = 0) -> Iterator[Picture]:
    """A picture for some time, held in a hand."""
    rng = np.random.default_rng(seed)
    for number in range(round(seconds * FPS)):
        at_ms = begin_ms + round(1000 * number / FPS)
        yield Picture(held(pixels, at_ms, rng), at_ms)


# --- People --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Cutout:
    """Somebody cut out: ``pixels`` [h, w, 3] and how much of each is them, ``alpha`` [h, w]."""

    pixels: Pixels
    alpha: NDArray[np.float32]


Person = tuple[Cutout, ...]
"""Somebody in the steps of their walk, 10 a second."""


def people(watcher: Watcher, num_frames: int = 260, min_steps: int = 10) -> list[Person]:
    """Those whom the detector follows over ``min_steps`` frames, clear of others and of edges."""
    empty = background().astype(np.int16)
    state: object | None = None
    walks: dict[int, list[Cutout]] = {}
    for number, frame in enumerate(street_frames(0, num_frames)):
        scene, state = watcher.look(frame, 1000 * number // STREET_FPS, state)
        boxes = {t.track_id: t.box for t in scene.things if t.label == "person"}
        for track, box in boxes.items():
            others = [other for key, other in boxes.items() if key != track]
            if any(_near(box, other) for other in others) or not 0.11 < box[3] - box[1] < 0.3:
                continue
            if (cut := _cut(frame, empty, box)) is not None:
                walks.setdefault(track, []).append(cut)
    clean = [_usual(steps) for _, steps in sorted(walks.items())]
    return [steps for steps in clean if len(steps) >= min_steps]


def _usual(steps: Sequence[Cutout]) -> Person:
    """Without the steps in which something else was cut out, too."""
    shares = [float(step.alpha.mean()) for step in steps]
    shapes = [step.alpha.shape[0] / step.alpha.shape[1] for step in steps]
    share, shape = float(np.median(shares)), float(np.median(shapes))
    return tuple(
        step
        for step, s, h in zip(steps, shares, shapes, strict=True)
        if abs(s / share - 1) < 0.15 and abs(h / shape - 1) < 0.12
    )


def _near(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    gap = 0.012
    return a[0] < b[2] + gap and b[0] < a[2] + gap and a[1] < b[3] + gap and b[1] < a[3] + gap


def _cut(frame: Pixels, empty: NDArray[np.int16], box: tuple[float, ...]) -> Cutout | None:
    height, width = frame.shape[:2]
    pad = 0.08 * (box[3] - box[1])
    left, right = round((box[0] - pad) * width), round((box[2] + pad) * width)
    top, bottom = round((box[1] - pad) * height), round((box[3] + pad) * height)
    if left < 0 or top < 0 or right > width or bottom > height:
        return None
    piece = frame[top:bottom, left:right]
    differs = np.abs(piece.astype(np.int16) - empty[top:bottom, left:right]).max(2) > 22
    kernel = np.ones((5, 5), np.uint8)
    whole = cv2.morphologyEx(differs.astype(np.uint8), cv2.MORPH_CLOSE, kernel, iterations=2)
    num, labels, stats, _ = cv2.connectedComponentsWithStats(whole)
    if num < 2:
        return None
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    share = stats[largest, cv2.CC_STAT_AREA] / whole.size
    tall = stats[largest, cv2.CC_STAT_HEIGHT] / whole.shape[0]
    if share < 0.2 or tall < 0.8:
        return None
    alpha = cv2.GaussianBlur((labels == largest).astype(np.float32), (0, 0), 0.8)
    rows = slice(stats[largest, cv2.CC_STAT_TOP], None)
    rows = slice(rows.start, rows.start + int(stats[largest, cv2.CC_STAT_HEIGHT]))
    return Cutout(np.ascontiguousarray(piece[rows]), np.ascontiguousarray(alpha[rows]))


def paste(picture: Pixels, cutout: Cutout, x: float, metres: float, *, mirrored: bool) -> None:
    """Put somebody into ``picture``, which is changed: centred at ``x``, ``metres`` away."""
    height, width = picture.shape[:2]
    focal = 0.75 * width / 2 / math.tan(math.radians(FIELD_OF_VIEW_DEGREES) / 2)
    tall = HEIGHTS_M["person"] * focal / metres
    feet = HORIZON * height + EYE_M * focal / metres
    scale = tall / cutout.pixels.shape[0]
    wide = cutout.pixels.shape[1] * scale
    # Only what is inside is enlarged: somebody at arm's length is larger than the picture.
    to_picture = np.asarray(
        [[scale, 0, x * width - wide / 2], [0, scale, feet - tall]], dtype=np.float32
    )
    pixels, alpha = cutout.pixels, cutout.alpha
    if mirrored:
        pixels, alpha = pixels[:, ::-1], alpha[:, ::-1]
    size, smooth = (width, height), cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    drawn = cv2.warpAffine(
        np.ascontiguousarray(pixels),
        to_picture,
        size,
        flags=smooth,
        borderMode=cv2.BORDER_REPLICATE,
    )
    mask = cv2.warpAffine(np.ascontiguousarray(alpha), to_picture, size, flags=cv2.INTER_LINEAR)
    mask = mask[:, :, None]
    picture[:] = (drawn * mask + picture * (1 - mask)).astype(np.uint8)


# --- Approaches ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Approach:
    """Somebody who stands, walks towards the camera and stops at arm's length; times in ms."""

    number: int
    speed_m_s: float
    x: float
    from_m: float = 12.0
    waits_ms: int = 8_000

    @property
    def contact_ms(self) -> int:
        return self.waits_ms + round(1000 * (self.from_m - CONTACT_M) / self.speed_m_s)

    @property
    def danger_ms(self) -> int:
        """When the first picture is taken in which the approach is dangerous by the truth.

        The limits are those that live description sets itself for people: they are near and come
        nearer, or contact is near.
        """
        is_near_m = min(CLOSE_M, self.speed_m_s / GROWTH_PER_S)
        is_soon_m = min(GROWING_WITHIN_M, self.speed_m_s / SOON_PER_S)
        near_m = min(max(is_near_m, is_soon_m), self.from_m)
        at_ms = self.waits_ms + 1000 * (self.from_m - near_m) / self.speed_m_s
        return math.ceil(math.ceil(at_ms * FPS / 1000) * 1000 / FPS)

    def metres(self, at_ms: int) -> float:
        walked = self.speed_m_s * max(0, at_ms - self.waits_ms) / 1000
        return max(CONTACT_M, self.from_m - walked)


def approaches(count: int) -> list[Approach]:
    """Slow and brisk walkers, runners and cyclists' speeds, left, right and straight ahead."""
    rng = np.random.default_rng(7)
    speeds = (1.0, 1.4, 2.0, 3.0)
    return [
        Approach(number=n, speed_m_s=speeds[n % 4], x=float(rng.uniform(0.35, 0.65)))
        for n in range(count)
    ]


def approach_clip(approach: Approach, crowd: Sequence[Person]) -> Iterator[Picture]:
    """The approach among two who cross behind, 1 s longer than until contact."""
    rng = np.random.default_rng(approach.number)
    empty = background()
    if approach.number % 2:
        empty = np.ascontiguousarray(empty[:, ::-1])
    walker = crowd[approach.number % len(crowd)]
    others = [crowd[(approach.number + n) % len(crowd)] for n in (1, 2)]
    lanes = [(float(rng.uniform(9, 14)), float(rng.choice([-1, 1]))) for _ in others]
    for number in range(round((approach.contact_ms + 1_000) * FPS / 1000)):
        at_ms = round(1000 * number / FPS)
        picture = empty.copy()
        for (metres, way), other, start in zip(lanes, others, (0.1, 0.6), strict=True):
            # 1.2 m/s across; the picture is 4/3 * tan(30 degrees) * 2 wide per metre of distance.
            x = start + way * 1.2 * at_ms / 1000 / (metres * 1.54)
            step = other[at_ms * STREET_FPS // 1000 % len(other)]
            paste(picture, step, x % 1.4 - 0.2, metres, mirrored=way < 0)
        is_walking = at_ms > approach.waits_ms
        step = walker[at_ms * STREET_FPS // 1000 % len(walker) if is_walking else 0]
        paste(picture, step, approach.x, approach.metres(at_ms), mirrored=False)
        yield Picture(held(picture, at_ms, rng), at_ms)


# --- Nothing approaches --------------------------------------------------------------------------

Clip = tuple[str, float, Callable[[], Iterator[Picture]]]
"""Name, seconds and pictures."""

WINDOWS = ((0.0, 0.0, 1.0), (0.0, 0.1, 0.8), (0.2, 0.2, 0.8), (0.1, 0.25, 0.7))
"""Left, top and size of parts of the street: as seen from nearer."""
QUIET_PHOTOS = ("coffee", "rocket", "page", "grass", "brick", "hubble_deep_field")


def quiet_clips(*, quick: bool) -> list[Clip]:
    """Clips in which nothing approaches: 12 minutes, half a minute each of photos; quick: one."""
    if quick:
        return [("street", 40.0, lambda: _window(WINDOWS[0], mirrored=False, last=400))]
    clips: list[Clip] = []
    for number, window in enumerate(WINDOWS):
        for mirrored in (False, True):
            name = f"street {number + 1}{' mirrored' if mirrored else ''}"
            clips.append((name, 79.5, lambda w=window, m=mirrored: _window(w, mirrored=m)))  # type: ignore[misc]
    for name in QUIET_PHOTOS:
        clips.append((name, 30.0, lambda n=name: still(photo(n), 30.0)))  # type: ignore[misc]
    return clips


def _window(
    window: tuple[float, float, float], *, mirrored: bool, last: int | None = None
) -> Iterator[Picture]:
    num, shown = 0, None
    left, top, size = window
    for frame_number, frame in enumerate(street_frames(0, last)):
        at_ms = 1000 * frame_number / STREET_FPS
        if at_ms < 1000 * num / FPS:
            continue
        height, width = frame.shape[:2]
        y, x = round(top * height), round(left * width)
        part = frame[y : y + round(size * height), x : x + round(size * width)]
        shown = np.ascontiguousarray(part[:, ::-1] if mirrored else part)
        yield Picture(shown, round(1000 * num / FPS))
        num += 1


# --- Changes, spoilt pictures, signs -------------------------------------------------------------


def scenes() -> dict[str, Pixels]:
    """Pictures of which something can be told at a glance."""
    found = {name: photo(name) for name in ("chelsea", "rocket", "grass", "brick")}
    for number in (0, 300, 500, 650):
        found[f"street {number}"] = next(street_frames(number, number + 1))
    return found


CHANGES = (
    ("grass", "street 0"),
    ("rocket", "chelsea"),
    ("street 300", "chelsea"),
    ("chelsea", "street 500"),
    ("brick", "street 650"),
    ("grass", "chelsea"),
    ("rocket", "street 300"),
    ("brick", "street 0"),
)


def spoilt(pixels: Pixels) -> dict[str, Pixels]:
    """The picture as a camera shows it through a finger, without focus, swung, or in the dark."""
    height, width = pixels.shape[:2]
    rng = np.random.default_rng(0)
    few = cv2.resize(pixels, (4, 3), interpolation=cv2.INTER_AREA)
    glow = cv2.resize(few, (width, height), interpolation=cv2.INTER_CUBIC)
    finger = glow * np.array([0.4, 0.15, 0.1]) + rng.normal(0, 4, pixels.shape)
    swing = np.full((1, max(3, round(0.05 * width))), 1.0)
    return {
        "covered": np.clip(finger, 0, 255).astype(np.uint8),
        "blurred": cv2.GaussianBlur(pixels, (0, 0), 0.02 * width).astype(np.uint8),
        "swung": cv2.filter2D(pixels, -1, swing / swing.sum()).astype(np.uint8),
        "dark": np.clip(pixels * 0.02 + rng.normal(0, 1.5, pixels.shape), 0, 255).astype(np.uint8),
    }


def blank() -> dict[str, Pixels]:
    """Frames of one colour, with a sensor's noise."""
    rng = np.random.default_rng(1)
    levels = {"black": 0, "grey": 110, "white": 255}
    return {
        name: np.clip(level + rng.normal(0, 2, (480, 640, 3)), 0, 255).astype(np.uint8)
        for name, level in levels.items()
    }


SIGNS = (
    ("Platform 9", "Trains to London"),
    ("Exit", "Please close the door"),
    ("Room 214", "Doctor Miller"),
    ("Bakery", "Open until 18:00"),
)


def sign(lines: Sequence[str]) -> Pixels:
    """A sign on a wall: dark letters on a light plate."""
    wall = cv2.resize(photo("brick"), (960, 720), interpolation=cv2.INTER_CUBIC)
    picture = np.ascontiguousarray(wall if wall.ndim == 3 else np.stack([wall] * 3, 2))
    cv2.rectangle(picture, (140, 200), (820, 200 + 120 * len(lines)), (235, 235, 225), -1)
    for number, line in enumerate(lines):
        at = (180, 285 + 110 * number)
        cv2.putText(picture, line, at, cv2.FONT_HERSHEY_DUPLEX, 1.9, (20, 20, 60), 4, cv2.LINE_AA)
    return picture.astype(np.uint8)
