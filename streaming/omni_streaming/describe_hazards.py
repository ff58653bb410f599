"""The warning lane: what can run into somebody, decided from boxes alone, never by a model.

Called by :mod:`omni_streaming.describe` with every clear picture. It knows people, vehicles and
animals; steps, kerbs and glass are no classes of the detector, so this is no mobility aid.
Milliseconds on the describer's own clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from omni_encoders.nouns import HAZARDS, VEHICLES, noun
from omni_encoders.wording import CERTAIN

from omni.scene import Thing
from omni_streaming.describe_settings import (
    AHEAD_SHARE,
    CLOSE_M,
    CUT_OFF_LOOKS,
    GROWING_WITHIN_M,
    GROWTH_PER_S,
    HAZARD_CONFIDENCE,
    HEARD_MS,
    MUCH_CLOSER,
    REPEAT_MS,
    SOON_PER_S,
    TALL_SHARE,
    VEHICLE_NEAR_M,
    VEHICLE_WITHIN_M,
    VERY_NEAR_HEIGHT,
    VERY_NEAR_M,
)

SIDE = 0.02
"""Of the picture's width: a box this near to its side is cut off by it."""
SAME_PLACE = 0.25
"""Of the picture's width: a thing of the same kind this near is the same, whatever its track."""
FORGET_MS = 10_000
"""What was warned of and is not seen for so long is new when it comes back."""


@dataclass(frozen=True, slots=True)
class Danger:
    """Something to warn of. ``urgency`` is 1 / seconds to contact; very near is the most urgent."""

    thing: Thing
    is_approaching: bool
    urgency: float


@dataclass(slots=True)
class _Warned:
    track_id: int
    word: str
    x: float
    gap: float  # at the warning: metres, or 1 / height when no distance is known
    is_in_metres: bool
    said_ms: int
    seen_ms: int

    def is_same(self, thing: Thing) -> bool:
        if self.word != noun(thing.label):
            return False
        if self.track_id and self.track_id == thing.track_id:
            return True
        return abs(self.x - thing.centre_x) <= SAME_PLACE


class HazardLane:
    """Remembers what was warned of; one instance per session."""

    def __init__(self) -> None:
        self._warned: list[_Warned] = []
        self._last: Danger | None = None
        self._last_ms = -HEARD_MS

    def see(
        self, things: Iterable[Thing], now_ms: int, *, is_panning: bool = False
    ) -> Danger | None:
        """The most urgent thing of which the user does not know; to be said at once.

        It counts as warned of from now on. ``is_panning``: the picture itself moves.
        """
        self._warned = [one for one in self._warned if now_ms - one.seen_ms <= FORGET_MS]
        new: list[Danger] = []
        for thing in things:
            if noun(thing.label) not in HAZARDS:
                continue
            known = [one for one in self._warned if one.is_same(thing)]
            found = judge(thing, is_panning=is_panning)
            if found is not None and all(self._is_news(found, one, now_ms) for one in known):
                new.append(found)
            for one in known:
                one.seen_ms = now_ms
                if one.track_id in (0, thing.track_id):
                    one.x = thing.centre_x
        if not new:
            return None
        worst = max(new, key=lambda found: found.urgency)
        if now_ms - self._last_ms < HEARD_MS and self._last is not None:
            told = self._last
            if worst.urgency <= told.urgency:
                return None  # the next picture brings it again
        self._remember(worst, now_ms)
        return worst

    @staticmethod
    def _is_news(found: Danger, known: _Warned, now_ms: int) -> bool:
        gap, is_in_metres = _gap(found.thing)
        if is_in_metres == known.is_in_metres and gap <= MUCH_CLOSER * known.gap:
            return True
        return found.is_approaching and now_ms - known.said_ms >= REPEAT_MS

    def _remember(self, found: Danger, now_ms: int) -> None:
        self._last, self._last_ms = found, now_ms
        thing = found.thing
        self._warned = [one for one in self._warned if not one.is_same(thing)]
        gap, is_in_metres = _gap(thing)
        self._warned.append(
            _Warned(
                track_id=thing.track_id,
                word=noun(thing.label),
                x=thing.centre_x,
                gap=gap,
                is_in_metres=is_in_metres,
                said_ms=now_ms,
                seen_ms=now_ms,
            )
        )


def judge(thing: Thing, *, is_panning: bool = False) -> Danger | None:
    """Whether a thing is dangerous as it stands, whoever has been told.

    Very near needs one picture if it is certain; otherwise two pictures in a row are needed. What a
    turn of the camera cuts off at the side seems nearer than it is, and needs CUT_OFF_LOOKS.
    """
    word = noun(thing.label)
    if word not in HAZARDS or thing.confidence < HAZARD_CONFIDENCE:
        return None
    is_seen_twice = thing.num_frames >= 2
    is_growing = is_seen_twice and thing.approach_per_s >= GROWTH_PER_S
    metres = thing.distance_m
    near_m, within_m = (
        (VEHICLE_NEAR_M, VEHICLE_WITHIN_M) if word in VEHICLES else (VERY_NEAR_M, GROWING_WITHIN_M)
    )
    if metres is None or not math.isfinite(metres):
        is_very_near = thing.height >= VERY_NEAR_HEIGHT
        # Cut off by an edge: who comes into the picture grows, too, but only near people are tall.
        is_within = word != "person" or thing.height >= TALL_SHARE
    else:
        is_very_near, is_within = metres <= near_m, metres <= within_m
        if word not in VEHICLES and metres > CLOSE_M:
            is_growing = is_growing and thing.approach_per_s >= SOON_PER_S
    if is_panning and not is_growing and thing.num_frames < CUT_OFF_LOOKS and _is_cut_off(thing):
        return None
    if is_very_near and (is_seen_twice or thing.confidence >= CERTAIN):
        return Danger(thing, is_growing, math.inf)
    is_in_the_way = abs(thing.centre_x - 0.5) <= AHEAD_SHARE or thing.height >= TALL_SHARE
    if is_growing and is_within and is_in_the_way:
        return Danger(thing, True, thing.approach_per_s)
    return None


def _is_cut_off(thing: Thing) -> bool:
    """By one side of the picture; who reaches from side to side is near indeed."""
    left, _, right, _ = thing.box
    return (left <= SIDE) != (right >= 1 - SIDE)


def _gap(thing: Thing) -> tuple[float, bool]:
    """How far it is, in metres or in another measure that halves with the distance."""
    if thing.distance_m is not None and math.isfinite(thing.distance_m):
        return thing.distance_m, True
    return 1 / max(thing.height, 0.01), False
