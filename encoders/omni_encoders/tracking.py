"""Follows things from picture to picture: the same keep their numbers, what grows comes near.

The state is a value (:class:`Tracks`): :func:`follow` takes one and gives the next, mutating
nothing, so that sessions share nothing and a picture can be looked at again from the same state.
Called by :mod:`omni_encoders.eyes`; knows nothing of pixels, labels' meanings or clocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from omni.types import Thing
from omni_encoders.detector import overlap

MAX_MISSED = 2
"""Pictures in a row in which a thing may be hidden or overlooked without losing its number."""

MAX_GAP_MS = 5_000
"""After a longer pause everything is new: what is where it was may be something else."""

FARTHEST = 0.6
"""Centres may be this far apart, in diagonals of the boxes, plus what :data:`DRIFT` allows."""

DRIFT_PER_S = 0.5
"""Of a diagonal, per second between the pictures beyond the first half: slow cameras see leaps."""

LARGEST_CHANGE = 2.5
"""A box that is more than this much larger or smaller is another thing."""

GROWTH_MEMORY_S = 0.8
"""Time constant of the smoothed growth: jitter of the boxes is gone, a car shows in a second."""

LARGEST_GROWTH = 3.0
"""Per second; what is said to grow faster is a box that jumped."""


@dataclass(frozen=True, slots=True)
class Track:
    """One thing, last found in ``thing`` at ``at_ms``; ``log_growth`` of its height per second."""

    thing: Thing
    at_ms: int
    log_growth: float = 0.0
    num_missed: int = 0
    num_steps: int = 0  # growths that were measured


@dataclass(frozen=True, slots=True)
class Tracks:
    """What is followed, and the next number to be given."""

    tracks: tuple[Track, ...] = ()
    next_id: int = 1


def follow(
    state: Tracks,
    sure: Sequence[Thing],
    at_ms: int,
    unsure: Sequence[Thing] = (),
) -> tuple[tuple[Thing, ...], Tracks]:
    """Number the things found in the picture taken at ``at_ms``.

    ``unsure`` ones count only where they continue a track that no sure one continues: what was
    certain a moment ago needs less proof than what is new.

    Returns:
        The things with ``track_id``, ``approach_per_s`` and ``num_frames`` filled in (the sure ones
        in their order, then those that were continued), and the next state.
    """
    old = tuple(track for track in state.tracks if 0 <= at_ms - track.at_ms <= MAX_GAP_MS)
    pairs = _matched(old, sure, at_ms)
    left = [number for number in range(len(old)) if number not in pairs.values()]
    weaker = _matched([old[number] for number in left], unsure, at_ms)
    next_id = state.next_id
    found: list[Track] = []
    for number, thing in enumerate(sure):
        if number in pairs:
            found.append(_continued(old[pairs[number]], thing, at_ms))
        else:
            found.append(Track(replace(thing, track_id=next_id), at_ms))
            next_id += 1
    found += [_continued(old[left[weaker[n]]], unsure[n], at_ms) for n in sorted(weaker)]
    seen = {track.thing.track_id for track in found}
    hidden = tuple(
        replace(track, num_missed=track.num_missed + 1)
        for track in old
        if track.thing.track_id not in seen and track.num_missed < MAX_MISSED
    )
    return tuple(track.thing for track in found), Tracks((*found, *hidden), next_id)


def _matched(tracks: Sequence[Track], things: Sequence[Thing], at_ms: int) -> dict[int, int]:
    """For things by number, the track each continues; the best pairing as a whole."""
    if not tracks or not things:
        return {}
    costs = np.asarray([[_cost(track, thing, at_ms) for track in tracks] for thing in things])
    rows, columns = linear_sum_assignment(np.minimum(costs, 1e3))
    return {
        int(row): int(column)
        for row, column in zip(rows, columns, strict=True)
        if math.isfinite(costs[row, column])
    }


def _cost(track: Track, thing: Thing, at_ms: int) -> float:
    """How unlike the continuation of ``track`` a ``thing`` is; infinite: it cannot be."""
    if track.thing.label != thing.label:
        return math.inf
    before, now = track.thing.box, thing.box
    ratio = math.sqrt(max(_area(now), 1e-9) / max(_area(before), 1e-9))
    if not 1 / LARGEST_CHANGE <= ratio <= LARGEST_CHANGE:
        return math.inf
    diagonal = math.sqrt((_diagonal(before) ** 2 + _diagonal(now) ** 2) / 2)
    apart = math.dist(_centre(before), _centre(now)) / max(diagonal, 1e-6)
    late_s = max(0.0, (at_ms - track.at_ms) / 1000 - 0.5)
    if apart > FARTHEST + DRIFT_PER_S * late_s:
        return math.inf
    shared = float(overlap(np.asarray(before), np.asarray([now]))[0])
    return (1 - shared) + apart + 0.2 * track.num_missed


def _continued(track: Track, thing: Thing, at_ms: int) -> Track:
    """``track`` after it was found as ``thing``."""
    growth, num_steps = track.log_growth, track.num_steps
    elapsed_s = (at_ms - track.at_ms) / 1000
    if elapsed_s > 0:
        ratio = max(thing.height, 1e-6) / max(track.thing.height, 1e-6)
        limit = math.log1p(LARGEST_GROWTH)
        measured = min(limit, max(-limit, math.log(ratio) / elapsed_s))
        # The first measurements count as much as what is remembered: nothing is, yet.
        share = max(1 - math.exp(-elapsed_s / GROWTH_MEMORY_S), 1 / (num_steps + 2))
        growth += share * (measured - growth)
        num_steps += 1
    numbered = replace(
        thing,
        track_id=track.thing.track_id,
        approach_per_s=math.expm1(growth),
        num_frames=track.thing.num_frames + 1,
    )
    return Track(numbered, at_ms, growth, num_steps=num_steps)


def _centre(box: tuple[float, float, float, float]) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _diagonal(box: tuple[float, float, float, float]) -> float:
    return math.hypot(box[2] - box[0], box[3] - box[1])


def _area(box: tuple[float, float, float, float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
