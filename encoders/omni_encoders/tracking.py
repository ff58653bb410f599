"""Follows things from picture to picture: the same keep their numbers, what grows comes near.

The state is a value (:class:`Tracks`): :func:`follow` takes one and gives the next, mutating
nothing, so that sessions share nothing and a picture can be looked at again from the same state.
Called by :mod:`omni_encoders.eyes`; knows nothing of pixels, labels' meanings or clocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from scipy.optimize import linear_sum_assignment

from omni.scene import Thing
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

MIN_STEP_MS, MAX_HEIGHTS = 180, 6
"""Heights are remembered so far apart, and so many."""

LEFT_OUT = 1.25
"""Without its largest step a growth seems smaller than it is: by so much, at the wavering of boxes
in a street video."""


@dataclass(frozen=True, slots=True)
class Track:
    """One thing, last found in ``thing`` at ``at_ms``; ``log_growth`` of its height per second."""

    thing: Thing
    at_ms: int
    log_growth: float = 0.0
    num_missed: int = 0
    num_steps: int = 0  # growths that were measured
    heights: tuple[tuple[int, float], ...] = ()  # (at_ms, logarithm) of late, oldest first


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
            begun = replace(thing, track_id=next_id)
            found.append(Track(begun, at_ms, heights=_heights((), thing, at_ms)))
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
    heights = _heights(track.heights, thing, at_ms)
    numbered = replace(
        thing,
        track_id=track.thing.track_id,
        approach_per_s=math.expm1(min(growth, max(0.0, LEFT_OUT * _sure_growth(heights)))),
        num_frames=track.thing.num_frames + 1,
    )
    return Track(numbered, at_ms, growth, num_steps=num_steps, heights=heights)


def _heights(
    before: tuple[tuple[int, float], ...], thing: Thing, at_ms: int
) -> tuple[tuple[int, float], ...]:
    """``before`` and the height now, in place of one that was too soon after the last but one."""
    if len(before) > 1 and before[-1][0] - before[-2][0] < MIN_STEP_MS:
        before = before[:-1]
    return (*before, (at_ms, math.log(max(thing.height, 1e-6))))[-MAX_HEIGHTS:]


def _sure_growth(heights: Sequence[tuple[int, float]]) -> float:
    """Logarithm per second without the largest step.

    A box that leaps, since two became one or it changed owner, leaps once; what comes near grows in
    every picture. Fewer than two steps prove nothing.
    """
    steps = [(b[1] - a[1], b[0] - a[0]) for a, b in pairwise(heights)]
    if len(steps) < 2:
        return 0.0
    steps.remove(max(steps))
    elapsed_ms = sum(ms for _, ms in steps)
    return 1000 * sum(grown for grown, _ in steps) / elapsed_ms if elapsed_ms > 0 else 0.0


def _centre(box: tuple[float, float, float, float]) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _diagonal(box: tuple[float, float, float, float]) -> float:
    return math.hypot(box[2] - box[0], box[3] - box[1])


def _area(box: tuple[float, float, float, float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
