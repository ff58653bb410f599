"""Spoken commands of live description: a whole utterance or nothing.

Called by :mod:`omni_streaming.describe` with transcripts. "Stop" is a command; "stop at the shop on
the way" and "how do I read this in French" are for the assistant. Pure.
"""

from __future__ import annotations

import re

from omni_streaming.describe_settings import CommandName

_BEFORE = re.compile(
    r"^(?:(?:okay|ok|hey|hi|hello|oh|um|uh|er|well|so|and|now|right|alright|omni|please|just|sorry|"
    r"excuse me|could you|can you|would you|will you|i want you to|i would like you to|"
    r"i'd like you to|go ahead and|no)\s+)+"
)
_AFTER = re.compile(
    r"(?:\s+(?:please|now|for me|omni|thanks|thank you|then|okay|ok|right now|"
    r"will you|would you|could you|can you|if you can|for a moment|for a while|for a bit|"
    r"for a minute))+$"
)

_SEEN = (
    r"(?:this|that|it|(?:the|this|that) (?:sign|text|label|page|menu|letter|screen|writing|words?|"
    r"board|box))"
)
_PATTERNS: tuple[tuple[CommandName, str], ...] = (
    (
        "repeat",
        r"repeat|repeat (?:that|it|this)(?: again)?|repeat (?:what you|the last thing you) said|"
        r"say (?:that|it|this) (?:again|once more|one more time)|say again|(?:once|one time) more|"
        r"what did you(?: just)? say|what was that|come again|pardon(?: me)?|again",
    ),
    (
        "more",
        r"more|(?:tell|give) me more(?: details?| about (?:it|that|this))?|more details?|"
        r"what else|what else (?:is there|do you see|can you see|is (?:here|around me))|"
        r"anything else|describe (?:more|it in more detail|this in more detail)|in more detail|"
        r"go on",
    ),
    (
        "quiet",
        r"(?:be |keep |stay )?(?:quiet|silent)|quiet mode|hush|shush|shh+|silence|mute|"
        r"stop (?:describing|narrating)(?: (?:things|everything|it|this))?|"
        r"(?:do not|don't) (?:describe|talk|speak)(?: anymore| any more)?|pause(?: describing)?|"
        r"(?:pause|stop) (?:the )?descriptions?",
    ),
    (
        "resume",
        r"resume(?: describing| (?:the )?descriptions?)?|unmute|"
        r"(?:start|begin|keep|continue|go back to) (?:describing|talking|the descriptions?)"
        r"(?: again)?|(?:start|begin|speak|talk|go on|carry on) again|"
        r"start|wake up|speak(?: up)?|continue|describe again|"
        r"you (?:can|may) (?:talk|speak)(?: again)?",
    ),
    (
        "front",
        r"what(?:'s| is) (?:that |there )?(?:in front of|before|ahead of|around|near) (?:me|us)|"
        r"what(?:'s| is) (?:this|that|it)|what am i holding|"
        r"what(?:'s| is) ahead|what(?:'s| is) there|what(?:'s| is) here|what am i looking at|"
        r"what (?:do|can) you see(?: here| now| there| ahead| in front of me)?|"
        r"what do you see around me|where am i looking|look around|describe (?:the|this) "
        r"(?:scene|room|place|picture|view)|describe what you(?: can)? see|"
        r"describe(?: what(?:'s| is))? (?:in front of me|around me|my surroundings|this|it)|"
        r"tell me what you(?: can)? see|tell me what(?:'s| is) (?:in front of|around|ahead of) me",
    ),
    (
        "read",
        rf"read|read {_SEEN}(?: (?:to|out to) me| out| aloud| out loud)*|read (?:aloud|out loud)|"
        rf"what does (?:{_SEEN}|it all) say|"
        r"what(?:'s| is) written (?:here|there|on (?:it|this|that))|"
        r"what(?:'s| is) (?:on|written on) the (?:sign|label|page|screen|menu)|"
        r"is there any (?:text|writing)(?: here)?",
    ),
    (
        "stop",
        r"stop|stop (?:it|that|talking|speaking|reading|there)|enough|that(?:'s| is) enough|"
        r"that(?:'s| is) okay|shut up|cancel|never mind|nevermind",
    ),
)
_COMMANDS = tuple((name, re.compile(rf"(?:{pattern})")) for name, pattern in _PATTERNS)
_LONGEST = 120
"""Characters; what is longer is no command, and costs nothing to look at."""


def match_command(text: str) -> CommandName | None:
    """The command that an utterance as a whole is, whatever its case, punctuation and fillers."""
    if len(text) > _LONGEST:
        return None
    plain = re.sub(r"[^\w\s']", " ", text.lower().replace("’", "'"))
    plain = " ".join(plain.split())
    for said in (plain, _AFTER.sub("", _BEFORE.sub("", plain)), _BEFORE.sub("", plain)):
        for name, pattern in _COMMANDS:
            if pattern.fullmatch(said):
                return name
    words = plain.split()
    if 2 <= len(words) <= 4 and len(set(words)) == 1:  # "stop stop stop"
        return match_command(words[0])
    return None
