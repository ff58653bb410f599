"""Questions that no camera may answer, whatever model would: what is said instead.

Called by :mod:`omni_streaming.describe` and :mod:`omni_encoders.answers` before anything else: is
it safe to cross, which way to go, what a traffic light shows, who somebody is. Today's models are
not to be trusted with these (EgoBlind, safety questions: people 91.9, the best model 65.8). Pure.
"""

from __future__ import annotations

import re

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
    r"pothole|drop(?:-| )?off|ledge|edge|(?<!wine )(?<!drinking )glass(?! of)|walls?|fence|gate|"
    r"railing|ladder|poles?|posts?|pillar|obstacles?|puddle|ice|wires?|ramp|platform|escalator|doors?|doorway)\b"
)
_COMING = re.compile(
    r"\b(?:is|are) (?:there )?(?:anything|anyone|anybody|something|somebody|someone|any|an?|the|"
    r"some)\b.*\b(?:coming|approaching|moving|driving|getting closer|near me|close to me|"
    r"behind me)\b"
)
_LOOKS = re.compile(
    r"\b(?:wearing|dressed|pretty|beautiful|handsome|ugly|attractive|fat|race|skin|ethnicity)\b|"
    r"\b(?:i|we|you|he|she|they|(?:man|woman|person|child|boy|girl|people)) looks? like\b|"
    r"\bhow (?:old|young) (?:is|are) (?:he|she|they|(?:the|this) (?:man|woman|person|child|boy|"
    r"girl|people))\b|\bhow do i look\b|"
    r"\bwho (?:is|are|'s) (?:he|she|they|this|that|it|there)\b|"
    r"\bwho (?:is|are|'s) the (?:man|woman|person|child|boy|girl|people)\b"
)
_ASKS_FOR = re.compile(
    r"(?:is there|are there|is|are|do you see|can you see|where(?: is|'s| are)|how far|any|"
    r"there is)\b"
)


def declined(question: str) -> str | None:
    """What is said to a question that no camera may answer; None: it is none of these.

    The way, crossings and lights; what no detector sees; what comes near; who people are. When in
    doubt it is declined: "Is it ok to eat eggs?" is not about the way, "Is it ok to go?" may be.
    """
    plain = plain_words(question)
    is_elsewhere = bool(_ELSEWHERE.search(plain)) and not _PLACE.search(plain)
    if _SAFETY.search(plain) and not is_elsewhere:
        return NOT_A_GUIDE
    for pattern, words in ((_COMING, COMING), (_LOOKS, APPEARANCE)):
        if pattern.search(plain):
            return words
    if _UNSEEN.search(plain) and _ASKS_FOR.match(plain):
        return UNSEEN
    return None


_FILLERS = frozenset({"and", "so", "okay", "ok", "please", "hey", "omni", "well", "tell"})


def plain_words(question: str) -> str:
    """Lower case, without signs and openings such as "OK, so": as speech recognisers write."""
    words = re.sub(r"[^\w\s']", " ", question.lower().replace("’", "'")).split()
    while words and words[0] in _FILLERS:
        words = words[1:]
    return " ".join(words)
