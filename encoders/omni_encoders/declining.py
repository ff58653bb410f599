"""Questions that no camera may answer, whatever model would: what is said instead.

Called by :mod:`omni_streaming.describe`, :mod:`omni_encoders.answers` and
:mod:`omni.assistant.seeing` before anything else: is it safe to cross, which way to go, what a
traffic light shows, who somebody is. Today's models are not to be trusted with these (EgoBlind,
safety questions: people 91.9, the best model 65.8). Pure.

Lists of phrasings are never whole, and speech recognisers spell as they like. So a model without
eyes of its own is asked about nothing that is here and now (:func:`is_general`).
"""

from __future__ import annotations

import re
from functools import cache
from itertools import pairwise

from omni_encoders.nouns import coco_labels

NOT_A_GUIDE = (
    "I cannot judge that. I am not a mobility aid: please rely on your cane, dog or hearing."
)

UNSEEN = (
    "I cannot see steps, kerbs, holes, glass or walls. Please rely on your cane, dog or hearing."
)

COMING = "I warn you of what I see coming near, but I may miss it. Please rely on your hearing."

APPEARANCE = "I do not judge how people look or who they are."

REFUSALS = frozenset({NOT_A_GUIDE, UNSEEN, COMING, APPEARANCE})

# --- The way and what may happen on it -----------------------------------------------------------

_LIGHT = r"\b(?:lights?|signals?|walk(?:ing)? (?:sign|man)|(?:green|red|little) man|hand)\b"
_TRAFFIC = (
    r"\b(?:cars?|bus(?:es)?|trams?|trains?|trucks?|lorr(?:y|ies)|drivers?|cyclists?|bikes?|"
    r"vehicles?)\b"
)
_SAFETY = re.compile(
    r"\b(?:safe|unsafe|dangerous|ok|okay|all right|alright)\b.*\b(?:to|for|if)\b|"
    r"\b(?:can|may|should|could|shall|do|am|will|must|might) (?:i|we) (?:now |just |be able to |"
    r"going to |gonna |keep |need to |have to |get |make )*(?:go|going|cross|walk|move|step|turn|"
    r"drive|pass|past|by|across|continue|proceed|stop|wait|hit|fall|trip|fit|bump|it|through)\b|"
    r"\b(?:is|was) (?:it|this|the \w+) (?:safe|clear|free|blocked)\b|\bclear\b|\bcoast\b|"
    r"\b(?:room|gap|space) (?:to|for|between|in the)\b|\bin (?:my|the) way\b|"
    r"\bwhich (?:way|direction)\b|\bwhere (?:can|should|do|must|shall) (?:i|we) (?:go|walk|turn|"
    r"cross|step)\b|\b(?:guide|lead|navigate|take) (?:me|us)\b|"
    rf"{_LIGHT}.*\b(?:green|red|amber|yellow|orange|show|say|changed?|on|up|yet|for me)\b|"
    rf"\bwhat(?:'s)? (?:colou?r )?(?:is |are )?(?:the )?(?:\w+ )?{_LIGHT}|"
    rf"\b(?:green|red|traffic) {_LIGHT}|"
    r"\b(?:is|has|did|are|have) (?:it|they) (?:\w+ )?(?:turn(?:ed)? |gone |go )?(?:green|red)\b|"
    r"\bcross(?:es|ed|ing|able)?\b|\bcros\b|\bsaif\b|\bsave to\b|\bright of way\b|\bkeep going\b|"
    r"\b(?:hits?|hurts?|catch(?:es)?|sees?) (?:me|us)\b|\brun (?:me |us )?over\b|\bget hit\b|"
    rf"{_TRAFFIC} (?:\w+ )*(?:stop\w*|wait\w*|mov\w+|slow\w*|let\w*|close|fast)\b|"
    rf"\bfast (?:is|are) (?:the|that|this) {_TRAFFIC}|\b(?:stop|wait)\w* for (?:me|us)\b|"
    r"\b(?:good|enough|right|have|got|there|the) (?:\w+ )?time\b|"
    r"\btime (?:to|for me to) (?:go|walk)\b|"
    r"\b(?:go or|or go|or wait|wait or)\b|\bwhat (?:should|shall|must|do) (?:i|we) do\b|"
    r"\beverything (?:is )?(?:ok|okay|fine|safe|all right)\b|\bgood to go\b|"
    r"\b(?:is|are) (?:it|this|that|we|you) (?:ok|okay|fine|all right|alright|safe)\b|"
    r"\b(?:i|we) (?:can|may|could|should) (?:\w+ )?(?:go|cross|walk)\b"
)
_RISK = re.compile(
    r"\b(?:safe(?:ly|ty|r)?|unsafe|danger(?:ous|s)?|risk(?:y|s)?|hazards?|traffic)\b"
)
"""Not about the way in a question of knowledge: "Why is smoking dangerous?"."""
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
_COMING = re.compile(
    r"\b(?:coming|approaching|getting closer)\b|"
    r"\b(?:is|are) (?:there )?(?:anything|anyone|anybody|something|somebody|someone|any|an?|the|"
    r"some)\b.*\b(?:moving|driving|near me|close to me|behind me|following me)\b|\bfollowing me\b"
)

# --- What no detector finds ----------------------------------------------------------------------

_UNSEEN = re.compile(
    r"\b(?:steps?|stairs?|staircase|kerbs?|curbs?|(?:man|pot)?holes?|drop(?:-| )?off|ledge|edge|"
    r"(?<!wine )(?<!drinking )glass(?! of)|walls?|fence|gate|railing|ladder|poles?|posts?|pillar|"
    r"obstacles?|puddle|ice|wires?|ramp|platform|escalator|doors?|doorway|slippery|"
    r"(?:floor|ground|pavement|surface|path|road) (?:\w+ )?(?:wet|flat|even|uneven|level|icy|"
    r"open))\b"
)
_NOT_UNSEEN = re.compile(
    r"^(?:who|why|when|what (?:is|are|does|do) an?|tell me|explain)\b|"
    r"\b(?:say|says|read|written)\b|\bon the (?:walls?|doors?|fence|gate|post)\b"
)
"""Knowledge about such things, and text on them."""

# --- People --------------------------------------------------------------------------------------

_PEOPLE = r"(?:man|woman|person|child|boy|girl|people)"
_LOOKS = re.compile(
    r"\b(?:wearing|dressed|pretty|beautiful|handsome|ugly|attractive|fat|race|skin|ethnicity)\b|"
    rf"\b(?:i|we|you|he|she|they|{_PEOPLE}) looks? like\b|\bhow do i look\b|"
    rf"\bhow (?:old|young) (?:is|are) (?:he|she|they|(?:the|this) {_PEOPLE})\b|"
    r"\bwho (?:is|are|'s) (?:he|she|they|this|that|it|there)\b|"
    rf"\bwho (?:is|are|'s) the {_PEOPLE}\b"
)


def declined(question: str) -> str | None:
    """What is said to a question that no camera may answer; None: it is none of these.

    The way, crossings and lights; what no detector sees; what comes near; who people are. When in
    doubt it is declined: "Is it ok to eat eggs?" is not about the way, "Is it ok to go?" may be.
    """
    plain = plain_words(question)
    if _ELSEWHERE.search(plain) and not _PLACE.search(plain):
        return None
    if _SAFETY.search(plain):
        return NOT_A_GUIDE
    if _COMING.search(plain):
        return COMING
    if _LOOKS.search(plain):
        return APPEARANCE
    if _UNSEEN.search(plain) and not _NOT_UNSEEN.search(plain):
        return UNSEEN
    if _RISK.search(plain) and not is_general(question):
        return NOT_A_GUIDE
    return None


# --- Here and now --------------------------------------------------------------------------------

_SMALL_TALK = re.compile(
    r"(?:hello|hi|hey|good (?:morning|evening|afternoon|night|day)|thanks?|thank you|bye|goodbye|"
    r"sorry|never mind|yes|no|how are you|who are you|what are you|what is your name|"
    r"what's your name|what can you do|help)(?: (?:there|again|very much|so much|you|omni|please))*"
)
_KNOWLEDGE = re.compile(
    r"(?:what|who|whose|when|where|why|how|which) .+|"
    r"(?:(?:can|could|would|will) you )?(?:tell me|give me|teach me|sing|write|translate|explain|"
    r"define|spell|calculate|recite|count|list|name|suggest|recommend|play|make up) (?!when|if|"
    r"whether|where|how many|what)(?P<rest>.+)|"
    r"(?:do|did|are|have|can|could|would) you (?:know|think|like|speak|believe|remember|have|"
    r"help) .+"
)
_HERE_AND_NOW = re.compile(
    r"\b(?:here|there(?! (?:in|on) (?:an?|the (?:world|universe))\b)|now|yet|today|ahead|front|"
    r"behind|left|right|near\w*|around|this|that|these|those|it|its|it's|me|my|mine|i|i'm|im|i'll|"
    r"we|us|our|he|she|they|him|her|them|his|their|(?:some|any|every)(?:one|body|thing)|camera|"
    r"picture|photo|image|view|scene|see|look\w*|sign|lights?|button|roads?|streets?|pavement|"
    r"sidewalk|path|way|floor|ground|doors?|room|gap|lit|walk\w*|going|stop\w*|wait\w*)\b|"
    r"\byou do\b"
)


def is_general(question: str) -> bool:
    """Whether a question is certainly not about what is here and now.

    "Why is the sky blue?", "Tell me a joke.": knowledge and small talk. All else may be about what
    the camera shows, "Cross now?" and "Just yes or no" among it.
    """
    plain = plain_words(question)
    if _SMALL_TALK.fullmatch(plain):
        return True
    if _ELSEWHERE.search(plain) and not _PLACE.search(plain):
        return True
    if (match := _KNOWLEDGE.fullmatch(plain)) is None:
        return False
    asked = match.group("rest") or plain
    if _HERE_AND_NOW.search(asked):
        return False
    words = asked.split()
    return not any(before in ("the", "any") and _is_seen(word) for before, word in pairwise(words))


def _is_seen(word: str) -> bool:
    """Whether it is something that the detector may have found."""
    return bool({word, word.removesuffix("s"), word.removesuffix("es")} & _seen_words())


@cache
def _seen_words() -> frozenset[str]:
    others = "man woman people child children boy girl animal table bike driver"
    return frozenset(part for label in (*coco_labels(), others) for part in label.split())


_FILLERS = frozenset({"and", "so", "okay", "ok", "please", "hey", "omni", "well"})


def plain_words(question: str) -> str:
    """Lower case, without signs and openings such as "OK, so": as speech recognisers write."""
    words = re.sub(r"[^\w\s']", " ", question.lower().replace("’", "'")).split()
    while len(words) > 1 and words[0] in _FILLERS:
        words = words[1:]
    return " ".join(words)
