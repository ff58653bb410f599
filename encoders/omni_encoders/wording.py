"""Scenes in plain English for somebody who cannot see, and for a language model's context.

Called by :mod:`omni_streaming.describe` and by assistants whose model cannot see. Pure: text comes
from the values given and nothing else. Nobody is identified or judged by looks, nothing begins
with "as you can see", an unknown distance is not guessed, and what is doubtful is said to be.

A *budget* counts words as ``text.split()`` does. Places come from a thing's box: the centre of the
picture is straight ahead. Order of importance: what can run into somebody, people, near, big.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from omni.scene import Lettering, Scene, Thing
from omni_encoders.nouns import HAZARDS, counted, noun

CERTAIN = 0.6
"""Findings of this calibrated confidence are said as facts, others with "perhaps"."""
DOUBTFUL = 0.35
"""Findings below it are not mentioned."""
NEAR_M = 4.0
BIG_SHARE = 0.04
"""Of the picture's area: big enough to matter whatever it is."""
STEP_M = 0.7
"""A walking step of an adult who walks with care."""
FOOT_M = 0.3048

ABSTENTIONS = {
    "covered": "I cannot see: the lens is covered, or faces a plain surface.",
    "dark": "I cannot see: it is too dark. Please turn on a light.",
    "bright": "I cannot see: the light is too bright. Turn the camera.",
    "blurred": "I cannot see clearly: hold the camera still, or move it back.",
}
"""By Scene.condition; each at most 12 words, what is wrong first and then what to do.

A wall gives the same picture as a covered lens, and in soft light the same as a blurred one.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class WordingOptions:
    """How somebody wants things told; ``view_degrees`` is how wide the camera sees."""

    directions: Literal["sides", "clock"] = "sides"
    units: Literal["metric", "imperial", "steps"] = "metric"
    verbosity: Literal["brief", "normal", "detailed"] = "normal"
    view_degrees: float = 60.0


@dataclass(frozen=True, slots=True)
class Told:
    """A text and the things that it mentions."""

    text: str
    things: tuple[Thing, ...] = ()


def num_words(text: str) -> int:
    """What budgets count."""
    return len(text.split())


# --- Where and how far ---------------------------------------------------------------------------


def direction(thing: Thing, options: WordingOptions) -> str:
    """ "on the left", "slightly right", "ahead", or "at 2 o'clock"."""
    offset = min(max(thing.centre_x, 0.0), 1.0) - 0.5  # -0.5 left edge .. 0.5 right edge
    if options.directions == "clock":
        hours = offset * options.view_degrees / 30  # an hour of the clock face is 30 degrees
        hour = 12 + min(max(_nearest(hours), -2), 2)
        return f"at {hour if hour <= 12 else hour - 12} o'clock"
    if abs(offset) <= 0.1:
        return "ahead"
    side = "left" if offset < 0 else "right"
    return f"slightly {side}" if abs(offset) <= 0.25 else f"on the {side}"


def distance(metres: float | None, options: WordingOptions) -> str:
    """ "about 3 metres"; empty when unknown. Rounded as coarsely as such estimates deserve."""
    if metres is None or not math.isfinite(metres) or metres < 0:
        return ""
    unit_m, one, many = {
        "metric": (1.0, "metre", "metres"),
        "imperial": (FOOT_M, "foot", "feet"),
        "steps": (STEP_M, "step", "steps"),
    }[options.units]
    if metres > 50:
        return "far away"
    if metres < 0.6:
        return "within reach"
    units = metres / unit_m
    grain = 1 if units < 9.5 else 5 if units < 27.5 else 10
    count = max(_nearest(units / grain) * grain, 1)
    return f"about {count} {one if count == 1 else many}"


def _nearest(value: float) -> int:
    """Halves go away from zero, so that left and right are alike."""
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def importance(thing: Thing) -> tuple[float, ...]:
    """Sorts the most important first: hazards, people, near things, big things, sure things."""
    word = noun(thing.label)
    left, top, right, bottom = thing.box
    area = (right - left) * (bottom - top)
    metres = thing.distance_m if thing.distance_m is not None else math.inf
    rank = 0 if word in HAZARDS and word != "person" else 1 if word == "person" else 2
    if rank == 2 and metres > NEAR_M:
        rank = 3
    return (rank, metres if rank < 3 else 0.0, -area, -thing.confidence, thing.box[0])


def is_sure(thing: Thing) -> bool:
    return thing.confidence >= CERTAIN


# --- Groups and clauses --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Group:
    """Things of one kind in one direction."""

    things: tuple[Thing, ...]

    def name(self) -> str:
        return counted(self.things[0].label, len(self.things))


def _groups(things: Iterable[Thing], options: WordingOptions) -> dict[str, list[_Group]]:
    """By direction, then by kind; the most important first in both."""
    found: dict[str, dict[str, list[Thing]]] = {}
    for thing in sorted(things, key=importance):
        side = found.setdefault(direction(thing, options), {})
        side.setdefault(noun(thing.label), []).append(thing)
    return {side: [_Group(tuple(g)) for g in kinds.values()] for side, kinds in found.items()}


def _how_far(things: Sequence[Thing], options: WordingOptions) -> str:
    """Of all the things, when all of their distances are known; else of none."""
    if any(not distance(thing.distance_m, options) for thing in things):
        return ""
    nearest = min(things, key=lambda thing: thing.distance_m or 0.0)
    words = distance(nearest.distance_m, options)
    if all(distance(thing.distance_m, options) == words for thing in things):
        return f", {words}"
    return f", the nearest {words}"


def _listed(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _clauses(
    things: Iterable[Thing], options: WordingOptions, max_words: int
) -> list[tuple[str, tuple[Thing, ...]]]:
    """As many clauses as fit, each with its things; kinds go first, then the distance."""
    clauses: list[tuple[str, tuple[Thing, ...]]] = []
    left = max_words
    for side, groups in _groups(things, options).items():
        for num in range(len(groups), 0, -1):
            told = tuple(thing for group in groups[:num] for thing in group.things)
            place = f"{_listed([group.name() for group in groups[:num]])} {side}"
            far = _how_far(told, options)
            text = place + far if num_words(place + far) <= left else place
            if num_words(text) <= left and (num == 1 or text != place or not far):
                clauses.append((text, told))
                left -= num_words(text)
                break
    return clauses


def placed(things: Iterable[Thing], options: WordingOptions, max_words: int) -> Told:
    """ "two people on the left, about 3 metres; a dog ahead": as many as fit."""
    clauses = _clauses(things, options, max_words)
    return Told(
        "; ".join(text for text, _ in clauses), tuple(t for _, some in clauses for t in some)
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


# --- Sentences -----------------------------------------------------------------------------------


def overview(
    scene: Scene,
    options: WordingOptions,
    max_words: int,
    *,
    things: Sequence[Thing] | None = None,
    opening: str = "In front of you:",
) -> Told:
    """The whole picture within a budget of at least 12 words; what was left out is not in it.

    ``things`` (default: all of the scene's) are told, the rest of the scene only if they say
    little. A picture that cannot be judged is not described.
    """
    if scene.condition != "clear":
        return Told(ABSTENTIONS[scene.condition])
    seen = scene.things if things is None else things
    sure = [thing for thing in seen if is_sure(thing)]
    unsure = [thing for thing in seen if DOUBTFUL <= thing.confidence < CERTAIN]
    text = ""
    told: tuple[Thing, ...] = ()
    left = max_words - num_words(opening)
    if clauses := _clauses(sure, options, left):
        text = f"{opening} {'; '.join(clause for clause, _ in clauses)}."
        told = tuple(thing for _, group in clauses for thing in group)
    doubt = perhaps(unsure, options, max_words - num_words(text))
    if doubt.text:
        text, told = f"{text} {doubt.text}".strip(), (*told, *doubt.things)
    if not text and any(thing.confidence >= DOUBTFUL for thing in seen):
        text = f"{opening} something that I cannot name briefly."
    elif not text:
        text = _without_things(scene)
    if options.verbosity == "detailed" and (phrase := colour_phrase(scene.colours)):
        longer = f"{text} It is {phrase}."
        if num_words(longer) <= max_words and phrase not in text:
            text = longer
    return Told(text, told)


def _without_things(scene: Scene) -> str:
    """At most 12 words on a picture in which no thing was found."""
    if scene.main is not None and scene.main_confidence >= DOUBTFUL:
        name = counted(" ".join(scene.main.split()[:4]), 1)
        if scene.main_confidence >= CERTAIN:
            return f"This looks like {name}."
        return f"I am not sure, perhaps {name}."
    if phrase := colour_phrase(scene.colours):
        return f"I recognise nothing here. It is {phrase}."
    return "I recognise nothing here."


def perhaps(things: Sequence[Thing], options: WordingOptions, max_words: int) -> Told:
    """ "I am not sure, perhaps a cat on the left."; empty when nothing fits."""
    opening = "I am not sure, perhaps"
    clauses = _clauses(things, options, max_words - num_words(opening))[:1]
    if not clauses:
        return Told("")
    return Told(f"{opening} {clauses[0][0]}.", clauses[0][1])


def appeared(
    things: Sequence[Thing], options: WordingOptions, max_words: int, *, has_turned: bool = False
) -> Told:
    """ "A dog has appeared on the right." for the most important that fit; empty if none does.

    ``has_turned``: the camera turned to it; "A dog on the right." claims nothing else.
    """
    texts: list[str] = []
    told: list[Thing] = []
    left = max_words
    for side, groups in _groups([t for t in things if is_sure(t)], options).items():
        for num in range(min(len(groups), 3), 0, -1):
            kinds = groups[:num]
            new = [thing for group in kinds for thing in group.things]
            verb = "has appeared" if len(new) == 1 else "have appeared"
            place = f"{side}{_how_far(new, options)}."
            names = _listed([group.name() for group in kinds])
            text = _capital(" ".join((names, place) if has_turned else (names, verb, place)))
            if num_words(text) <= left:
                texts.append(text)
                told += new
                left -= num_words(text)
                break
    if not texts:
        return perhaps([t for t in things if DOUBTFUL <= t.confidence < CERTAIN], options, left)
    return Told(" ".join(texts), tuple(told))


def gone(things: Sequence[Thing], options: WordingOptions, *, was_only: bool = True) -> str:
    """ "The person on the left has gone." for things of one kind, where they last were.

    ``was_only``: no other of the kind is left; else it is "A person on the left".
    """
    label, side = things[0].label, direction(things[0], options)
    if len(things) == 1 and was_only:
        return f"The {noun(label)} {side} has gone."
    have = "has" if len(things) == 1 else "have"
    return _capital(f"{counted(label, len(things))} {side} {have} gone.")


def moved(thing: Thing, options: WordingOptions) -> str:
    """ "The dog is now on the right, about 2 metres." """
    place = f"{direction(thing, options)}{_how_far([thing], options)}"
    return f"The {noun(thing.label)} is now {place}."


def hazard(thing: Thing, options: WordingOptions, *, is_approaching: bool) -> str:
    """At most 8 words, the thing first: "Car approaching, on the left!"."""
    word = " ".join(noun(thing.label).split()[-3:])
    doing = "approaching" if is_approaching else "very near"
    opening = "" if is_sure(thing) else "Perhaps "
    if opening and num_words(word) > 2:
        word = word.split()[-1]
    return f"{_capital(opening + word)} {doing}, {direction(thing, options)}!"


def colour_phrase(colours: Sequence[str]) -> str:
    """ "mostly red and white"; empty when none is known."""
    return f"mostly {_listed(list(colours[:2]))}" if colours else ""


# --- Text in the picture -------------------------------------------------------------------------

EDGE = 0.02
"""A line this near to the picture's edge runs out of it on that side."""

LEGIBLE = 0.95
"""Confidence of the text reader from which a line is said as certain.

Right, with one character in ten wrong at most, were of lines of confidence 0.6 to 0.9 6 of 57, 0.9
to 0.95 16 of 25, 0.95 to 0.97 39 of 42, above 672 of 673. Counted on 900 random signs of one line
(26 fonts, 24 to 44 pixels), clean, blurred, enlarged, moved, noisy, turned or dark, each to a
random degree, against the text that was drawn; what was cut off or not found counts for neither.
"""


def reading(
    lettering: Sequence[Lettering],
    max_words: int = 200,
    *,
    what: Literal["camera", "picture"] = "camera",
) -> str:
    """The text as it stands, in order, then where it is cut off and what to do about it.

    Lines that are hard to read come last, under one doubt; if they are most of it, all of it does.
    """
    lines = [line for line in lettering if line.text.strip()]
    if not lines:
        return "I see no text."
    clear = [line for line in lines if is_legible(line)]
    unclear = [line for line in lines if not is_legible(line)]
    if _num_letters(unclear) > _num_letters(clear):
        clear, unclear = [], lines  # one doubt over all of it, in its order
    parts: list[str] = []
    left = max_words
    for some, opening in ((clear, "It says:"), (unclear, _DOUBT[bool(clear)])):
        if some and left > 0:
            parts.append(f"{opening} {_text_of(some, left)}")
        left -= sum(num_words(line.text) for line in some)
    if left < 0:
        parts.append("There is more text.")
    if hint := cut_off_hint(lines):
        # Nobody can move the camera of a picture from a file.
        parts.append(hint if what == "camera" else "The text is cut off.")
    return " ".join(parts)


_DOUBT = {False: "I am not sure, perhaps it says:", True: "Not sure, perhaps:"}
"""By whether something else can be read for certain."""


def is_legible(line: Lettering) -> bool:
    return line.confidence >= LEGIBLE


def _num_letters(lines: Sequence[Lettering]) -> int:
    return sum(len(line.text) for line in lines)


def _text_of(lines: Sequence[Lettering], max_words: int) -> str:
    """The first ``max_words`` of ``lines``, ended by a full stop."""
    text = ""
    for line in lines:
        if max_words > 0:
            words = line.text.split()
            text = _joined(text, " ".join(words[:max_words]))
            max_words -= len(words)
    return text if text[-1] in ".!?" else f"{text}."


def _joined(text: str, line: str) -> str:
    """A wrapped sentence goes on; a new line of a sign gets a pause."""
    if not text:
        return line
    if text[-1] in ".,:;!?-" or line[:1].islower():
        return f"{text} {line}"
    return f"{text}, {line}"


def cut_off_hint(lettering: Sequence[Lettering]) -> str:
    """ "The text is cut off on the right, move the camera right."; empty when it is whole."""
    cut = [line for line in lettering if line.is_cut_off]
    if not cut:
        return ""
    rooms = {
        "left": min(line.box[0] for line in cut),
        "right": 1 - max(line.box[2] for line in cut),
        "top": min(line.box[1] for line in cut),
        "bottom": 1 - max(line.box[3] for line in cut),
    }
    if max(rooms["left"], rooms["right"]) <= EDGE or max(rooms["top"], rooms["bottom"]) <= EDGE:
        return "The text is cut off on both sides, move the camera back."
    side = min(rooms, key=lambda name: rooms[name])
    place = f"on the {side}" if side in ("left", "right") else f"at the {side}"
    move = {"top": "up", "bottom": "down"}.get(side, side)
    return f"The text is cut off {place}, move the camera {move}."


# --- For a language model ------------------------------------------------------------------------


def scene_text(
    scene: Scene,
    options: WordingOptions | None = None,
    max_words: int = 80,
    *,
    what: Literal["camera", "picture"] = "camera",
) -> str:
    """The scene as one bracketed line for a language model's context, most important first.

    ``what`` shows it: the user's camera, or a picture or clip from a file.
    Text in the picture is somebody else's and stands in quotes, without line breaks or brackets.
    """
    options = options or WordingOptions()
    if scene.condition != "clear":
        return f"[{nothing_shown(scene, what=what)}]"
    parts = []
    sure = [thing for thing in scene.things if is_sure(thing)]
    unsure = [thing for thing in scene.things if DOUBTFUL <= thing.confidence < CERTAIN]
    parts += [text for text, _ in _clauses(sure, options, max_words)]
    left = max_words - sum(map(num_words, parts))
    parts += [f"perhaps {text}" for text, _ in _clauses(unsure, options, left - 1)[:2]]
    if not parts and scene.main is not None and scene.main_confidence >= DOUBTFUL:
        doubt = "" if scene.main_confidence >= CERTAIN else "perhaps "
        parts.append(f"{doubt}{counted(scene.main, 1)}")
    if phrase := colour_phrase(scene.colours):
        parts.append(f"colours {phrase}")
    if scene.lettering is not None:
        clear = [line for line in scene.lettering if is_legible(line)]
        unclear = [line for line in scene.lettering if not is_legible(line)]
        parts += [f"text: {_quoted(clear)}"] if clear else []
        parts += [f"unclear text, perhaps: {_quoted(unclear)}"] if unclear else []
        parts += [] if scene.lettering else ["no text"]
    return f"[The {what} shows: {'; '.join(parts) or 'nothing recognised'}.]"


def nothing_shown(scene: Scene, *, what: Literal["camera", "picture"] = "picture") -> str:
    """ "The picture shows nothing: it is too dark." """
    return f"The {what} shows nothing: {_WHY[scene.condition]}."


_WHY = {
    "covered": "it seems covered, or faces a plain surface",
    "dark": "it is too dark",
    "bright": "the light is too bright",
    "blurred": "the picture is blurred, or of a plain surface",
}


def _quoted(lettering: Sequence[Lettering], max_words: int = 60) -> str:
    words = " / ".join(" ".join(line.text.split()) for line in lettering).split()
    text = " ".join(words[:max_words]) + (" ..." if len(words) > max_words else "")
    return '"' + text.translate({34: "'", 91: "(", 93: ")"}) + '"'
