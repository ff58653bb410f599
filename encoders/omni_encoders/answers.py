"""Plain questions about what the camera shows, answered from the scene itself.

Called by :mod:`omni_streaming.describe`, and by :mod:`omni.assistant.seeing` for pictures outside
describe mode, before a language model is asked. A small model answers
"Is there a dog?" from a scene without one with whatever sounds likely; the scene knows what was
found, what was perhaps found, and what its detector could not have found. Pure.

What nobody may be told by a camera is declined before (:mod:`omni_encoders.declining`).
"""

from __future__ import annotations

import re

from omni.scene import Scene
from omni_encoders import wording
from omni_encoders.declining import NOT_A_GUIDE, is_general, plain_words
from omni_encoders.nouns import VEHICLES, coco_labels, counted, noun, plural, with_article
from omni_encoders.wording import WordingOptions

_ARTICLE = r"(?:an?|any|some|the|my|another|one)\s+"
_NOUN = r"(?P<noun>[a-z][a-z ]{1,30}?)"
_HERE = (
    r"(?:\s+(?:here|there|ahead|nearby|around|around me|near me|in front(?: of me)?|in the (?:room|"
    r"picture|scene|street|way)|in view|on (?:the|my) (?:left|right|table|desk|road|street|floor)|"
    r"now|to be seen))*"
)
_ANYBODY = r"(?:anybody|anyone|somebody|someone|a person|people|any people)"
_PATTERNS = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        (
            "all",
            r"what(?: is|'s) (?:on|in|at|under|near|beside) (?:the|my|this) "
            r"(?:table|desk|room|street|road|floor|picture|chair|shelf|counter)|"
            r"(?:what(?: is|'s)|what do you see|(?:is there |do you see )?anything) (?:ahead|"
            r"in front|around|near|nearby|beside|here|there|out there)(?: (?:of )?me)?",
        ),
        (
            "side",
            r"(?:what(?: is|'s)|what do you see|(?:is there |do you see )?anything) (?:on|to) "
            r"(?:the|my) (?P<side>left|right)(?: side)?(?: of me)?",
        ),
        ("is", rf"(?:is there|is|are there|do you see|can you see)\s+{_ANYBODY}{_HERE}"),
        ("is", rf"(?:is there|are there|do you see|can you see)\s+(?:{_ARTICLE})?{_NOUN}{_HERE}"),
        (
            "count",
            rf"how many {_NOUN}(?:\s+(?:are there|are|do you see|can you see|is there))?{_HERE}",
        ),
        ("where", rf"where(?: is|'s| are) (?:{_ARTICLE})?{_NOUN}{_HERE}"),
        ("far", rf"how far(?: away)?(?: is| are) (?:{_ARTICLE})?{_NOUN}(?: away)?{_HERE}"),
    )
)
_COLOURS = re.compile(
    r"(?:what|which) colou?rs? (?:is|are|does|do) (?:it|this|that|these|those|there|you see|the|my)"
    r"(?: [a-z]+){0,2}"
)
_IT = (
    r"(?:it|this|that|(?:the|this|that|all the) (?:text|words?|writing|sign|label|page|letter|note|"
    r"book|menu|screen|picture|image|photo|photograph)(?: (?:in|on) (?:the|this) "
    r"(?:picture|image|photo|photograph|sign|page|label))?)"
)
_READ = re.compile(
    rf"(?:(?:can|could) you )?read {_IT}(?: (?:to|for) me| out| aloud| out loud)*|"
    rf"what(?: does|'s) {_IT} say|what(?: is|'s) written (?:here|there|on {_IT}|in {_IT})|"
    rf"what text (?:is|do you see) (?:in|on|here)(?: {_IT})?|"
    rf"is there (?:any )?(?:text|writing)(?: (?:here|(?:in|on) {_IT}))?"
)
_PICTURE = r"(?:(?:the|this|that|my) (?:picture|image|photo|photograph|scene)|it|this)"
_DESCRIBE = re.compile(
    rf"(?:(?:can|could) you )?describe {_PICTURE}(?: (?:to|for) me)?|"
    rf"what (?:do|can) you see(?: (?:here|in {_PICTURE}))?|"
    r"(?:tell me|describe) what you(?: can)? see|"
    rf"what(?: is|'s) (?:this|that|it|here|(?:shown |to be seen )?(?:in|on) {_PICTURE})|"
    rf"what does {_PICTURE} show|what am i looking at|what(?: is|'s) this (?:a )?picture of"
)
PLACES_WORDS = 30
UNREAD = "I did not look for text in this picture."
UNKNOWN = "I cannot tell: that is nothing I can recognise."

_SAME = {
    "human": "person",
    "man": "person",
    "woman": "person",
    "child": "person",
    "pedestrian": "person",
    "bike": "bicycle",
    "motorbike": "motorcycle",
    "lorry": "truck",
    "van": "truck",
    "sofa": "couch",
    "table": "dining table",
    "desk": "dining table",
    "plant": "potted plant",
    "phone": "cell phone",
    "mobile phone": "cell phone",
    "television": "tv",
    "fridge": "refrigerator",
    "bag": "handbag",
    "rucksack": "backpack",
    "plane": "airplane",
    "computer": "laptop",
    "mug": "cup",
    "puppy": "dog",
    "kitten": "cat",
}
"""Other words for what the detector finds, and neighbours that it takes for it."""


def about_picture(question: str, scene: Scene, options: WordingOptions | None = None) -> str | None:
    """What is said to ``question`` about a picture from a file without asking a model.

    Beside what :func:`answer` has words for: "What do you see?" and "What does it say?". None: it
    is another question. What is declined was declined before.
    """
    options = options or WordingOptions()
    plain = plain_words(question)
    if _READ.fullmatch(plain):
        if scene.lettering is None:
            return UNREAD
        if scene.lettering or scene.condition == "clear":
            return wording.reading(scene.lettering, what="picture")
        return wording.nothing_shown(scene)
    if _DESCRIBE.fullmatch(plain):
        if scene.condition != "clear":
            return wording.nothing_shown(scene)
        told = wording.overview(scene, options, 30, opening="I see:").text
        if not scene.lettering:
            return told
        return f"{told} {wording.reading(scene.lettering, 30, what='picture')}"
    words = answer(question, scene, options)
    if words is not None and scene.condition != "clear" and words != UNKNOWN:
        return wording.nothing_shown(scene)
    return words


def answer(question: str, scene: Scene, options: WordingOptions | None = None) -> str | None:
    """What ``scene`` has to say to a plain question about it.

    None: it is no such question, or asks for what the detector could not have found.
    """
    options = options or WordingOptions()
    plain = plain_words(question)
    if _COLOURS.fullmatch(plain):
        return _colours(scene)
    for kind, pattern in _PATTERNS:
        if (match := pattern.fullmatch(plain)) is None:
            continue
        if kind == "side":
            return _on_side(match["side"], scene, options)
        said = match.groupdict().get("noun") or "person"
        label = _label(said)
        if kind != "all" and label is None:
            return UNKNOWN if _names_a_thing(plain, said) else None
        if scene.condition != "clear":
            return wording.ABSTENTIONS[scene.condition]
        if label is None or kind == "all":
            return wording.overview(scene, options, 30, opening="I see:").text
        return _about(kind, label, scene, options)
    return None


def answer_alone(question: str, scene: Scene, options: WordingOptions) -> str | None:
    """As :func:`answer`, and what it does not answer is not left to a model without eyes.

    None: a question that is certainly not about what is here and now.
    """
    if (words := answer(question, scene, options)) is not None:
        return words
    return None if is_general(question) else cannot_tell(scene, options)


def cannot_tell(scene: Scene, options: WordingOptions | None = None) -> str:
    """To a question about the picture that the findings do not answer: what they are."""
    if scene.condition != "clear":
        return wording.ABSTENTIONS[scene.condition]
    told = wording.overview(scene, options or WordingOptions(), 25, opening="I see:")
    return f"I cannot tell. {told.text}"


def _on_side(side: str, scene: Scene, options: WordingOptions) -> str:
    if scene.condition != "clear":
        return wording.ABSTENTIONS[scene.condition]
    there = [t for t in scene.things if (t.centre_x < 0.4 if side == "left" else t.centre_x > 0.6)]
    if not any(thing.confidence >= wording.DOUBTFUL for thing in there):
        return f"I recognise nothing on the {side}. I may have missed it."
    return wording.overview(scene, options, 30, things=there, opening="I see:").text


def _colours(scene: Scene) -> str:
    if any(noun(thing.label) in (*VEHICLES, "traffic light") for thing in scene.things):
        return NOT_A_GUIDE  # "green" might be taken for a light's
    if scene.condition != "clear":
        return wording.ABSTENTIONS[scene.condition]
    if not (phrase := wording.colour_phrase(scene.colours)):
        return "I cannot tell the colours here."
    return f"I can only tell the colours of the whole picture: {phrase}."


def _names_a_thing(plain: str, said: str) -> bool:
    """Whether a noun that no detector knows is asked for as a thing, not as a name or a subject."""
    words = r"(?:an?|any|some|the|my)"
    return (
        bool(re.search(rf"\b{words} {re.escape(said)}{_HERE}$", plain)) and len(said.split()) <= 2
    )


def _label(said: str) -> str | None:
    """The detector's label for a noun, singular or plural; None: it could not have found it."""
    known = coco_labels()
    by_plural = {plural(label).lower(): label for label in known}
    for word in (said, said.removesuffix("s"), said.removesuffix("es")):
        for name in (word, _SAME.get(word, "")):
            if name in known:
                return name
    return by_plural.get(said) or by_plural.get(plural(_SAME.get(said, said)).lower())


def _about(kind: str, label: str, scene: Scene, options: WordingOptions) -> str:
    alike = [t for t in scene.things if noun(t.label) == noun(label)]
    sure = [thing for thing in alike if wording.is_sure(thing)]
    unsure = [t for t in alike if not wording.is_sure(t) and t.confidence >= wording.DOUBTFUL]
    if not sure and not unsure:
        return f"I do not see {with_article(label)}. I may have missed it."
    if not sure:
        return f"I am not sure. Perhaps {wording.placed(unsure, options, PLACES_WORDS).text}."
    told = wording.placed(sure, options, PLACES_WORDS)
    places = told.text
    if kind == "is":
        return f"Yes: {places}."
    if kind == "count" and len(sure) == 1:
        return f"One: {places}."
    if kind == "count":
        opening = ":" if len(told.things) == len(sure) else ", among them"
        return f"I see {counted(label, len(sure))}{opening} {places}."
    if kind == "far":
        near = min(sure, key=lambda thing: thing.distance_m or float("inf"))
        far = wording.distance(near.distance_m, options)
        if not far:
            return f"I cannot tell how far. I see {places}."
        where = wording.direction(near, options)
        return f"{far[:1].upper()}{far[1:]}, {where}. That is a rough guess."
    return f"{places[:1].upper()}{places[1:]}."
