"""English nouns for what a detector finds: articles, plurals, and what is dangerous.

Called by :mod:`omni_encoders.wording`. Labels are COCO's or any other English noun. Nothing here
says who somebody is or what they look like: "man" and "girl" are said as "person".
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

VEHICLES: Final = frozenset({"bicycle", "car", "motorcycle", "bus", "train", "truck"})
ANIMALS: Final = frozenset({"dog", "horse", "cow", "elephant", "bear"})
HAZARDS: Final = frozenset({"person"}) | VEHICLES | ANIMALS
"""What can walk or drive into somebody. Steps, kerbs and glass are no classes of any detector."""

_SAID_AS: Final = {
    "man": "person",
    "woman": "person",
    "boy": "person",
    "girl": "person",
    "child": "person",
    "pedestrian": "person",
    "people": "person",
    "tv": "TV",
    "remote": "remote control",
    "hair drier": "hair dryer",
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
}
_PAIRS: Final = frozenset({"scissors", "skis", "glasses", "trousers", "shoes", "gloves"})
_MASS: Final = frozenset({"broccoli", "water", "grass", "food", "furniture", "bread", "rice"})
_IRREGULAR: Final = {
    "person": "people",
    "mouse": "mice",
    "sheep": "sheep",
    "knife": "knives",
    "shelf": "shelves",
    "leaf": "leaves",
    "loaf": "loaves",
    "foot": "feet",
    "tooth": "teeth",
    "goose": "geese",
    "fish": "fish",
    "deer": "deer",
    "broccoli": "broccoli",
}
_SPOKEN_VOWEL: Final = ("hour", "honest", "heir", "X-ray")
_SPOKEN_CONSONANT: Final = ("uni", "use", "euro", "one", "ewe", "uku")
_NUMBERS: Final = (
    *("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
)


@cache
def coco_labels() -> tuple[str, ...]:
    """COCO's 80 kinds of things, in the order of the detector's network."""
    text = (Path(__file__).parent / "coco_labels.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line and not line.startswith("#"))


def noun(label: str) -> str:
    """The word that is said for a label: neutral, and as people say it."""
    plain = " ".join(label.split())
    return _SAID_AS.get(plain.lower(), plain)


def with_article(label: str) -> str:
    """ "a dog", "an apple", "a pair of scissors", "some broccoli"."""
    word = noun(label)
    if word in _PAIRS:
        return f"a pair of {word}"
    if word in _MASS:
        return f"some {word}"
    return f"{_article(word)} {word}"


def plural(label: str) -> str:
    """ "people", "buses", "pairs of scissors"; the last word of several is the one that changes."""
    word = noun(label)
    if word in _PAIRS:
        return f"pairs of {word}"
    head, _, last = word.rpartition(" ")
    return f"{head} {_plural_word(last)}" if head else _plural_word(last)


def counted(label: str, num: int) -> str:
    """A number of things in words; beyond ten a detector's count is no more than a bound.

    Raises:
        ValueError: fewer than one.
    """
    if num < 1:
        raise ValueError(f"cannot name {num} of {label!r}: expected at least 1")
    if num == 1:
        return with_article(label)
    if noun(label) in _MASS:
        return with_article(label)
    number = _NUMBERS[num] if num < len(_NUMBERS) else "more than ten"
    return f"{number} {plural(label)}"


def _article(word: str) -> str:
    if word.startswith(_SPOKEN_VOWEL):
        return "an"
    if word.lower().startswith(_SPOKEN_CONSONANT):
        return "a"
    return "an" if word[:1].lower() in "aeiou" and word else "a"


def _plural_word(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return f"{word}es"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}s"
