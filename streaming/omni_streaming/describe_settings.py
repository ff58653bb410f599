"""How live description behaves: what a user chooses, what is asked for, and the rules' figures.

Called by :mod:`omni_streaming.describe` and by the session that owns it. Milliseconds throughout,
on the session's clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from omni_encoders.wording import WordingOptions

Kind = Literal["hazard", "change", "answer", "text", "framing"]
Speech = Literal["hazard", "change", "answer", "text", "framing", "assistant"]
"""What is being said: one of ours, or an ordinary answer of the assistant."""
CommandName = Literal["repeat", "more", "quiet", "resume", "front", "read", "stop"]

KIND_KEY, FRAME_KEY = "omni_kind", "omni_frame_ms"
"""Metadata of a response that is a description: its kind, and when its picture was taken."""

# --- When ----------------------------------------------------------------------------------------

STALE_MS = 4_000
"""What describes an older picture is not said: the world has moved on."""
TEXT_STALE_MS = 10_000
"""Text on request may be older: it stays where it is, and reading it takes seconds on a CPU."""
LATE_MS = 2_000
"""A picture that comes later than this after it was taken is not used."""
AFTER_SPEECH_MS = 700
"""A breath between one utterance and the next description."""
AFTER_USER_MS = 3_000
"""After speech of the user that was not for the assistant: perhaps somebody else answers."""
ANSWER_WAIT_MS = 6_000
"""After a question to the assistant, for its answer to begin."""
ANSWER_LATE_MS = 8_000
"""An answer that could not be given for so long is not wanted any more."""
READ_LATE_MS = 60_000
"""Text that was asked for waits so long for the end of another answer."""

# --- How much ------------------------------------------------------------------------------------

MOVING_WORDS, STILL_WORDS = 12, 30
MIN_WORDS = 12
"""An utterance of fewer words has no room for a place and a distance: better to wait."""
BRIEF_WORDS = 15
"""Of a still user who wants it brief."""
SHARE = 0.4
"""Of the time in a window of WINDOW_MS: descriptions and framing; warnings and answers are free."""
WINDOW_MS = 60_000
SLOWEST_MS_PER_WORD = 450
"""Of speech that nobody has timed yet; the measured pace takes over when it is slower."""
SAME_WORDS_MS = 60_000
"""The same sentence is not said twice within it: in a lively street that somebody else walks there
now, too, is no news."""

SAME_CAMERA_MS = 15_000
"""Nor that the camera shows nothing; but whoever relies on warnings must know it soon."""

# --- What counts as a change ---------------------------------------------------------------------

SETTLE_MS = 400
"""A thing is there once it was seen this long, and in two pictures."""
GONE_MS, GONE_LOOKS = 1_500, 4
"""A thing is gone after this long and in so many pictures without it: detectors blink."""
DEPARTED_MS = 4_000
"""That a thing has gone is told after this long: detectors lose what is small for seconds."""
FAR_M = 20.0
"""What comes farther away than this is news only for those who want everything."""
REMEMBER_MS = 20_000
"""A thing of the same kind that comes within it, after one went unannounced, is the same one."""
MOVED_SHARE, MOVED_MS = 0.35, 1_000
"""Of the picture's width, for so long: worth a word."""
OVERVIEW_AGAIN_MS = 8_000
"""Between two overviews."""
FIRST_LOOK_MS = 1_000
"""An empty picture is believed after this long."""
TURN_MS = 1_000
"""What is first seen so soon after the camera moved did not come: it was there."""
EMPTY_MS = 4_000
"""After a turn of the camera away from all that was seen: people look around."""

# --- Motion, with hysteresis ---------------------------------------------------------------------

MOVING_FROM, MOVING_AFTER_MS = 0.25, 400
STILL_FROM, STILL_AFTER_MS = 0.12, 1_500

# --- Warnings ------------------------------------------------------------------------------------

HAZARD_CONFIDENCE = 0.4
GROWTH_PER_S = 0.2
"""Growth in height per second that means contact in 5 s or less (height / its rate of growth)."""
SOON_PER_S = 0.4
"""Contact in 2.5 s or less: asked of whoever walks and is not yet CLOSE_M. In a street video from
above, where nobody comes near, people 6 to 8 m away seem to grow by 0.2 to 0.5 per second now and
then, for their boxes are 100 pixels high and waver: 10 warnings in 80 s, none with this rule. (0.3
would warn 0.4 s earlier, and of what is in that video.)"""
CLOSE_M, GROWING_WITHIN_M, VEHICLE_WITHIN_M = 3.0, 6.0, 30.0
VERY_NEAR_M, VEHICLE_NEAR_M = 1.2, 2.5
VERY_NEAR_HEIGHT = 0.85
"""Of the picture's height, when the distance is unknown."""
CUT_OFF_LOOKS = 3
"""Pictures in a row until somebody very near is believed, whom the side of a moving picture cuts
off and who does not grow."""
AHEAD_SHARE = 0.3
"""Either side of the middle; beyond it only what is already tall is in the way."""
TALL_SHARE = 0.3
REPEAT_MS = 6_000
"""Until the same thing is warned of again while it still comes nearer."""
MUCH_CLOSER = 0.6
"""Of the distance at the last warning (or of its inverse, height): warned of again at once."""
HEARD_MS = 1_200
"""A warning is given this long before another of no greater urgency cuts it off."""

# --- The camera ----------------------------------------------------------------------------------

BAD_MS = 2_000
"""A picture that cannot be judged is spoken of when it stays so."""
CLEAR_MS = 1_000
FROZEN_MS = 5_000
"""Without a new picture: the camera has stopped, or is gone."""

NOTICE = "Not a mobility aid: I cannot see steps, kerbs or glass."
STOPPED = "The camera picture has stopped. Please check the camera."
SLOW = "I am falling behind: this computer is busy."
READING = "Reading."
FAILING = "I cannot recognise things: the detector is not working."
SEEING_AGAIN = "I can see again."


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribeSettings:
    """What a user chooses; may change at any time.

    ``has_native_sight``: the assistant's model sees pictures itself, so that overviews and answers
    are asked of it; warnings, changes, text and framing are never left to a model.
    """

    verbosity: Literal["brief", "normal", "detailed"] = "normal"
    units: Literal["metric", "imperial", "steps"] = "metric"
    directions: Literal["sides", "clock"] = "sides"
    hazards: bool = True
    quiet: bool = False
    language: Literal["en"] = "en"
    has_native_sight: bool = False
    view_degrees: float = 60.0  # how wide the camera sees

    @property
    def wording(self) -> WordingOptions:
        return WordingOptions(
            directions=self.directions,
            units=self.units,
            verbosity=self.verbosity,
            view_degrees=self.view_degrees,
        )


# --- What the describer asks for -----------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Say:
    """Say prepared text. It must begin before ``expires_at_ms`` or not at all.

    ``interrupts``: whatever is being said ends now; otherwise nothing is being said.
    """

    kind: Kind
    text: str
    frame_at_ms: int
    expires_at_ms: int
    interrupts: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AskModel:
    """Let the model look at the picture taken at ``frame_at_ms`` and say what it sees."""

    kind: Kind
    prompt: str
    frame_at_ms: int
    expires_at_ms: int
    interrupts: bool = False


@dataclass(frozen=True, slots=True)
class LookForText:
    """The next look must read text: its Scene has ``lettering`` other than None."""


@dataclass(frozen=True, slots=True)
class StopSpeaking:
    """Be silent now."""


Action = Say | AskModel | LookForText | StopSpeaking
