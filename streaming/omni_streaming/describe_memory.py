"""What is there and what the user knows of it: the redundancy memory of live description.

Called by :mod:`omni_streaming.describe` with every clear picture. Detectors blink and trackers
mistake one thing for another, so a thing here is an :class:`Entity`: it settles before it is news,
outlives gaps, and keeps its identity across tracks. Milliseconds on the describer's own clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from omni_encoders.nouns import HAZARDS, noun
from omni_encoders.wording import (
    BIG_SHARE,
    CERTAIN,
    DOUBTFUL,
    NEAR_M,
    WordingOptions,
    direction,
    importance,
)

from omni.scene import Scene, Thing
from omni_streaming.describe_settings import (
    DEPARTED_MS,
    FAR_M,
    GONE_LOOKS,
    GONE_MS,
    MOVED_MS,
    MOVED_SHARE,
    MOVING_FROM,
    REMEMBER_MS,
    SETTLE_MS,
    STALE_MS,
)

MAX_THINGS, MAX_ENTITIES = 200, 64
"""A picture's most important things are looked at, and so many are remembered."""
SAME_PLACE_IOU, TWIN_IOU = 0.3, 0.6
SAME_PLACE_SHIFT = 0.12
STEADY = 0.6
"""Of the pictures since it was first found: what is found more rarely is noise."""
STILL_THERE = 0.25
"""Confidence that continues a thing which was found before; a new one needs DOUBTFUL."""
LABEL_LOOKS = 5
"""Pictures in a row under another name before that name is believed."""

Box = tuple[float, float, float, float]


@dataclass(slots=True, eq=False)
class Entity:
    """One thing over time."""

    thing: Thing  # as last seen, under the name that is believed
    first_ms: int
    last_ms: int
    confidence: float  # smoothed
    num_seen: int = 1
    num_missed: int = 0  # pictures without it, all
    missed_looks: int = 0  # pictures without it, since the last one
    is_known: bool = False  # the user was told, or it was there when they were told the rest
    is_told: bool = False  # it was mentioned
    told_x: float | None = None  # where it was when it was mentioned last
    known_x: float = 0.0
    moved_ms: int | None = None  # since when it has been away from known_x
    gone_ms: int | None = None
    back_ms: int = 0  # when it was found again after its last gap; 0: it had none
    other_label: str = ""
    num_other: int = 0

    @property
    def word(self) -> str:
        return noun(self.thing.label)

    @property
    def is_visible(self) -> bool:
        """As good as seen now: in the last pictures, or gone for no longer than a blink."""
        return self.gone_ms is None and self.missed_looks < GONE_LOOKS

    def is_settled(self) -> bool:
        share = self.num_seen / (self.num_seen + self.num_missed)
        return (
            self.num_seen >= 2
            and self.last_ms - self.first_ms >= SETTLE_MS
            and share >= STEADY
            and self.confidence >= DOUBTFUL
        )

    def is_back(self, now_ms: int) -> bool:
        """Seen now, and not for the first time after a gap longer than a blink."""
        return self.missed_looks == 0 and now_ms - self.back_ms >= SETTLE_MS

    def as_thing(self) -> Thing:
        return replace(self.thing, confidence=self.confidence)

    def is_where_told(self, options: WordingOptions) -> bool:
        """Whether the user would hear of the direction that they were told last."""
        if self.told_x is None:
            return False
        told = replace(self.thing, box=(self.told_x, 0.0, self.told_x, 1.0))
        return direction(told, options) == direction(self.thing, options)

    def know(self, *, is_told: bool) -> None:
        self.is_known = True
        self.is_told = self.is_told or is_told
        if is_told:
            self.told_x = self.thing.centre_x
        self.known_x = self.thing.centre_x
        self.moved_ms = None


class SceneMemory:
    """Entities of one session."""

    def __init__(self) -> None:
        self.entities: list[Entity] = []
        self.seen_ms = 0
        """When anything that is surely there was last seen: no blink of the detector counts."""

    # --- Seeing ----------------------------------------------------------------------------------

    def see(self, scene: Scene, now_ms: int, *, is_moving: bool) -> None:
        """Take what a clear picture shows; ``is_moving`` is whether the camera does."""
        # What is not found where the camera was turned to is not there; else it may be a blink.
        least_missed = GONE_LOOKS if scene.motion >= MOVING_FROM else 0
        rest = [thing for thing in scene.things if thing.confidence >= STILL_THERE]
        if len(rest) > MAX_THINGS:
            rest = sorted(rest, key=importance)[:MAX_THINGS]
        free = set(self.entities)
        rest = self._match_tracks(rest, free, now_ms)
        rest = self._match_places(rest, free, now_ms)
        for thing in sorted(rest, key=importance):
            self._take_new(thing, free, now_ms)
        for entity in free:
            entity.num_missed += 1
            entity.missed_looks = max(entity.missed_looks + 1, least_missed)
            is_over = now_ms - entity.last_ms >= GONE_MS and entity.missed_looks >= GONE_LOOKS
            if entity.gone_ms is None and is_over:
                entity.gone_ms = now_ms
        self._recognise()
        if any(one.is_settled() and one.is_back(now_ms) for one in self.entities):
            self.seen_ms = now_ms
        for entity in self.entities:
            if is_moving:
                entity.known_x = entity.thing.centre_x  # the camera moved, not the thing
            is_away = abs(entity.thing.centre_x - entity.known_x) >= MOVED_SHARE
            entity.moved_ms = (entity.moved_ms or now_ms) if is_away else None
        self.entities = [one for one in self.entities if now_ms - one.last_ms <= REMEMBER_MS]

    def _match_tracks(self, things: list[Thing], free: set[Entity], now_ms: int) -> list[Thing]:
        """Continue entities by track; the things that are left."""
        by_track = {one.thing.track_id: one for one in self.entities if one.thing.track_id}
        rest = []
        for thing in things:
            entity = by_track.get(thing.track_id) if thing.track_id else None
            if entity is not None and entity in free:
                free.discard(entity)
                _continue(entity, thing, now_ms)
            else:
                rest.append(thing)
        return rest

    def _match_places(self, things: list[Thing], free: set[Entity], now_ms: int) -> list[Thing]:
        """Continue entities by kind and place; the best pairs first."""
        by_word: dict[str, list[Entity]] = {}
        for entity in free:
            by_word.setdefault(entity.word, []).append(entity)
        pairs = []
        for index, thing in enumerate(things):
            for entity in by_word.get(noun(thing.label), ()):
                likeness = _likeness(thing.box, entity.thing.box)
                if likeness > 0:
                    pairs.append((-likeness, index, entity.first_ms, entity))
        taken = set()
        for _, index, _, entity in sorted(pairs, key=lambda pair: pair[:3]):
            if entity in free and index not in taken:
                taken.add(index)
                free.discard(entity)
                _continue(entity, things[index], now_ms)
        return [thing for index, thing in enumerate(things) if index not in taken]

    def _take_new(self, thing: Thing, free: set[Entity], now_ms: int) -> None:
        """A thing without a past: the twin of another, or new as far as one can tell yet."""
        word = noun(thing.label)
        for one in self.entities:
            is_here = one not in free and one.word == word
            if is_here and _iou(thing.box, one.thing.box) >= TWIN_IOU:
                return
        if thing.confidence >= DOUBTFUL and len(self.entities) < MAX_ENTITIES:
            self.entities.append(Entity(thing, now_ms, now_ms, thing.confidence))

    def _recognise(self) -> None:
        """Who came as somebody alike went unannounced is the same one, on another track."""
        for new in [one for one in self.entities if not one.is_known and one.missed_looks == 0]:
            lost = [
                one
                for one in self.entities
                if one.is_known and one.gone_ms is not None and one.word == new.word
            ]
            if lost:
                old = min(lost, key=lambda one: abs(one.thing.centre_x - new.thing.centre_x))
                new.is_known, new.is_told, new.known_x = True, old.is_told, old.known_x
                new.told_x = old.told_x
                self.entities.remove(old)

    def _may_be_somebody_else(self, entity: Entity, now_ms: int) -> bool:
        """One alike is missing, and it is too early to tell whether this is that one."""
        num_looks = entity.num_seen + entity.num_missed
        is_early = now_ms - entity.first_ms < SETTLE_MS + GONE_MS or num_looks < GONE_LOOKS + 2
        return is_early and any(
            one.is_known and one.missed_looks > 0 and one.word == entity.word
            for one in self.entities
        )

    # --- What the user should know ---------------------------------------------------------------

    def visible(self) -> list[Entity]:
        """What is there, settled."""
        return [one for one in self.entities if one.is_visible and one.is_settled()]

    def seen(self) -> list[Entity]:
        """What was in the last picture, settled or not."""
        return [one for one in self.entities if one.missed_looks == 0]

    def news(self, verbosity: Literal["brief", "normal", "detailed"], now_ms: int) -> list[Entity]:
        """What came and is worth a word."""
        return [
            one
            for one in self.entities
            if not one.is_known
            and one.missed_looks == 0
            and one.is_settled()
            and _matters(one, verbosity)
            and not self._may_be_somebody_else(one, now_ms)
        ]

    def departures(self, now_ms: int, moved_ms: int, options: WordingOptions) -> list[list[Entity]]:
        """What left lately while the camera was still (it last moved at ``moved_ms``).

        Together what is of one kind and went from one direction.
        """
        groups: dict[tuple[str, str], list[Entity]] = {}
        for one in self.entities:
            away_ms = now_ms - one.last_ms
            is_gone = one.gone_ms is not None and DEPARTED_MS <= away_ms <= DEPARTED_MS + STALE_MS
            is_known = one.is_told and one.word in HAZARDS and one.confidence >= CERTAIN
            if is_gone and is_known and moved_ms < one.last_ms:
                groups.setdefault((one.word, direction(one.thing, options)), []).append(one)
        return list(groups.values())

    def is_only(self, entity: Entity) -> bool:
        """No other of its kind is there, so that it is "the" person."""
        return not any(
            one.is_visible and one.word == entity.word for one in self.entities if one is not entity
        )

    def moves(self, now_ms: int) -> list[Entity]:
        """What the user was told of and is elsewhere now, if it is surely that one.

        Among several of a kind nobody knows whom "the person" means, and one who is hidden for a
        while may be the one who is found elsewhere.
        """
        return [
            one
            for one in self.entities
            if one.is_told
            and one.missed_looks == 0
            and one.word in HAZARDS
            and one.confidence >= CERTAIN
            and one.moved_ms is not None
            and now_ms - one.moved_ms >= MOVED_MS
            and self.is_only(one)
            and not any(
                other.is_known and other.word == one.word
                for other in self.entities
                if other is not one
            )
        ]

    def forget(self, entities: Iterable[Entity]) -> None:
        """They are gone and the user knows: who comes next is new."""
        gone = set(entities)
        self.entities = [one for one in self.entities if one not in gone]


def _continue(entity: Entity, thing: Thing, now_ms: int) -> None:
    """The entity is seen as ``thing``; its name changes only when the new one stays."""
    old = entity.thing.label
    if noun(thing.label) == entity.word:
        entity.num_other = 0
    elif noun(thing.label) == entity.other_label:
        entity.num_other += 1
    else:
        entity.other_label, entity.num_other = noun(thing.label), 1
    if entity.num_other >= LABEL_LOOKS and now_ms - entity.first_ms >= GONE_MS:
        entity.num_other = 0
    elif entity.num_other:
        thing = replace(thing, label=old)
    entity.thing = thing
    entity.confidence += 0.3 * (thing.confidence - entity.confidence)
    entity.last_ms = now_ms
    entity.back_ms = entity.back_ms if entity.is_visible else now_ms
    entity.num_seen += 1
    entity.missed_looks = 0
    entity.gone_ms = None


def _matters(entity: Entity, verbosity: Literal["brief", "normal", "detailed"]) -> bool:
    """Doubtful things are news only for those who want everything."""
    if verbosity == "detailed":
        return True
    if entity.confidence < CERTAIN:
        return False
    thing = entity.thing
    if entity.word in HAZARDS:
        return thing.distance_m is None or thing.distance_m <= FAR_M
    left, top, right, bottom = thing.box
    is_near = thing.distance_m is not None and thing.distance_m <= NEAR_M
    return verbosity == "normal" and (is_near or (right - left) * (bottom - top) >= BIG_SHARE)


def _iou(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return both / (area - both)


def _likeness(a: Box, b: Box) -> float:
    """Above 0 when two boxes may be one thing; overlapping ones before neighbouring ones."""
    if (iou := _iou(a, b)) >= SAME_PLACE_IOU:
        return 1 + iou
    shift = max(abs((a[0] + a[2]) - (b[0] + b[2])) / 2, abs((a[1] + a[3]) - (b[1] + b[3])) / 2)
    return max(1 - shift / SAME_PLACE_SHIFT, 0.0)
