"""Plain questions about what the camera shows, answered from the scene itself.

Called by :mod:`omni_streaming.describe`, and by :mod:`omni.assistant.seeing` for pictures outside
describe mode, before a language model is asked. A small model answers
"Is there a dog?" from a scene without one with whatever sounds likely; the scene knows what was
found, what was perhaps found, and what its detector could not have found. Pure.

What nobody may be told by a camera - whether it is safe to cross, which way to go, what a traffic
light shows - is declined here, whatever model would answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from omni.scene import Scene, Thing
from omni_encoders import wording
from omni_encoders.nouns import coco_labels, counted, noun, plural, with_article
from omni_encoders.wording import WordingOptions

NOT_A_GUIDE = (
    "I cannot judge that. I am not a mobility aid: please rely on your cane, dog or hearing."
)

UNSEEN = (
    "I cannot see steps, kerbs, holes, glass or walls. Please rely on your cane, dog or hearing."
)

COMING = "I warn you of what I see coming near, but I may miss it. Please rely on your hearing."

APPEARANCE = "I do not judge how people look or who they are."

_LIGHT = r"\b(?:lights?|signals?|walk sign)\b"
_SAFETY = re.compile(
    r"\b(?:safe|unsafe|dangerous|ok|okay|all right|alright)\b.*\b(?:to|for)\b|"
    r"\b(?:can|may|should|could|shall|do|am|will) (?:i|we) (?:now |just |be able to |going to |"
    r"gonna )*(?:go|cross|walk|move|step|turn|drive|pass|continue|proceed|stop|hit|fall|trip|fit|"
    r"bump)\b|\b(?:is|was) (?:it|this|the \w+) (?:safe|clear|free|blocked)\b|coast (?:is )?clear|"
    r"is the coast\b|\broom (?:to|for me to)\b|\bin (?:my|the) way\b|"
    r"\bwhich (?:way|direction)\b|\bwhere (?:can|should|do|must|shall) (?:i|we) (?:go|walk|turn|"
    r"cross|step)\b|\b(?:guide|lead|navigate|take) (?:me|us)\b|"
    rf"{_LIGHT}.*\b(?:green|red|amber|yellow|orange|show|say|changed?)|"
    rf"\bwhat colou?r (?:is|are) the (?:\w+ )?{_LIGHT}|\b(?:green|red) {_LIGHT}"
)
_ELSEWHERE = re.compile(
    r"\b(?:to|for|i|we) (?:eat|drink|cook|bake|boil|fry|roast|freeze|reheat|book|buy|order|pay|ask|"
    r"call|phone|email|write|learn|study|invite)\b|\bfor (?:breakfast|lunch|dinner|a holiday)\b|"
    r"\b(?:by|take the) (?:train|plane|air|rail|bus|coach|boat|ferry|tube|metro)\b|"
    r"\b(?:flights?|tickets?|visa|passport|recipe|exam|university|job|interview|opening hours|"
    r"admission|of charge)\b|\b(?:tomorrow|next (?:week|month|year|time)|at the weekend|"
    r"on (?:mon|tues|wednes|thurs|fri|satur|sun)days?)\b"
)
"""What is no question about the way: food, journeys by train, bookings, another day."""
_PLACE = re.compile(
    r"\b(?:this|that|these|those|here|over there|now|ahead|forwards?|straight|left|(?<!all )right|"
    r"behind|in front|way|cross\w*|walk\w*|step\w*|stop\w*|turn\w*|mov\w+|driv\w+|hit|fall|trip|"
    r"fit|bump|jump\w*|run\w*|roads?|streets?|traffic|lanes?|junction|pavement|sidewalk|kerbs?|"
    r"curbs?|lights?|signals?|stairs?|tracks|rails|platform|edge|gap|holes?|doors?|doorway|coast|"
    r"coming|cars?|vehicles?|trucks?|bikes?|trams?)\b|"
    r"\b(?:safe|unsafe|dangerous)\b.*\b(?:the|my|our|it|from|with|while)\b|"
    r"\b(?:the|my|our) \w+ (?:safe|unsafe|dangerous|clear|blocked)\b"
)
"""What may be one about the way, or about a thing that is shown, all the same."""
_UNSEEN = re.compile(
    r"^(?!.*\b(?:many|what|read|say)\b).*\b(?:steps?|stairs?|staircase|kerbs?|curbs?|holes?|"
    r"pothole|drop(?:-| )?off|ledge|edge|glass|walls?|fence|gate|railing|ladder|poles?|posts?|"
    r"pillar|obstacles?|puddle|ice|wires?|ramp|platform|escalator|doors?|doorway)\b"
)
_COMING = re.compile(
    r"\b(?:is|are) (?:there )?(?:anything|anyone|anybody|something|somebody|someone|any|an?|the|"
    r"some)\b.*\b(?:coming|approaching|moving|driving|getting closer|near me|close to me|"
    r"behind me)\b"
)
_LOOKS = re.compile(
    r"\b(?:wearing|dressed|look like|looks like|pretty|beautiful|handsome|ugly|attractive|fat|race|"
    r"skin colou?r|ethnicity)\b|\bhow (?:old|young) (?:is|are) (?:he|she|they|the (?:man|woman|"
    r"person|child|boy|girl|people)|this (?:man|woman|person))\b|\bhow do i look\b|"
    r"\bwho (?:is|are|'s) (?:he|she|they|this|that|it|there)\b|"
    r"\bwho (?:is|are|'s) the (?:man|woman|person|child|boy|girl|people)\b"
)
_ASKS_FOR = re.compile(
    r"(?:is there|are there|is|are|do you see|can you see|where(?: is|'s| are)|how far|any|"
    r"there is)\b"
)
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
        ("is", rf"(?:is there|is|are there|do you see|can you see)\s+{_ANYBODY}{_HERE}"),
        ("is", rf"(?:is there|are there|do you see|can you see)\s+(?:{_ARTICLE})?{_NOUN}{_HERE}"),
        (
            "count",
            rf"how many {_NOUN}(?:\s+(?:are there|are|do you see|can you see|is there))?{_HERE}",
        ),
        ("where", rf"where(?: is|'s| are) (?:{_ARTICLE})?{_NOUN}{_HERE}"),
        ("far", rf"how far(?: away)?(?: is| are) (?:{_ARTICLE})?{_NOUN}(?: away)?{_HERE}"),
        (
            "all",
            r"what(?: is|'s) (?:on|in|at|under|near|beside) (?:the|my|this) "
            r"(?:table|desk|room|street|road|floor|picture|chair|shelf|counter)",
        ),
    )
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
    rf"what (?:do|can) you see(?: (?:here|in {_PICTURE}))?|(?:me|describe) what you(?: can)? see|"
    rf"what(?: is|'s) (?:this|that|it|here|(?:shown |to be seen )?(?:in|on) {_PICTURE})|"
    rf"what does {_PICTURE} show|what am i looking at|what(?: is|'s) this (?:a )?picture of"
)
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


def declined(question: str) -> str | None:
    """What is said to a question that no camera may answer; None: it is none of these.

    The way, crossings and lights; what no detector sees; what comes near; who people are. When in
    doubt it is declined: "Is it ok to eat eggs?" is not about the way, "Is it ok to go?" may be.
    """
    plain = _plain(question)
    is_elsewhere = bool(_ELSEWHERE.search(plain)) and not _PLACE.search(plain)
    if _SAFETY.search(plain) and not is_elsewhere:
        return NOT_A_GUIDE
    for pattern, words in ((_COMING, COMING), (_LOOKS, APPEARANCE)):
        if pattern.search(plain):
            return words
    if _UNSEEN.search(plain) and _ASKS_FOR.match(plain):
        return UNSEEN
    return None


def about_picture(question: str, scene: Scene, options: WordingOptions | None = None) -> str | None:
    """What is said to ``question`` about a picture from a file without asking a model.

    Beside what :func:`declined` and :func:`answer` have words for: "What do you see?" and "What
    does it say?". None: it is another question.
    """
    options = options or WordingOptions()
    plain = _plain(question)
    if (words := declined(question)) is not None:
        return words
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
    plain = _plain(question)
    for kind, pattern in _PATTERNS:
        if (match := pattern.fullmatch(plain)) is None:
            continue
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


_FILLERS = frozenset({"and", "so", "okay", "ok", "please", "hey", "omni", "well", "tell"})


def _plain(question: str) -> str:
    words = re.sub(r"[^\w\s']", " ", question.lower().replace("’", "'")).split()
    while words and words[0] in _FILLERS:
        words = words[1:]
    return " ".join(words)


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
        return f"I am not sure. Perhaps {_places(unsure, options)}."
    places = _places(sure, options)
    if kind == "is":
        return f"Yes: {places}."
    if kind == "count":
        return (
            f"I see {counted(label, len(sure))}: {places}." if len(sure) > 1 else f"One: {places}."
        )
    if kind == "far":
        near = min(sure, key=lambda thing: thing.distance_m or float("inf"))
        far = wording.distance(near.distance_m, options)
        if not far:
            return f"I cannot tell how far. I see {places}."
        where = wording.direction(near, options)
        return f"{far[:1].upper()}{far[1:]}, {where}. That is a rough guess."
    return f"{places[:1].upper()}{places[1:]}."


def _places(things: Sequence[Thing], options: WordingOptions) -> str:
    return "; ".join(wording.placed(things, options, 30))
