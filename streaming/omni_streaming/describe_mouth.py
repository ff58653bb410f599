"""How live description speaks: actions with their times, what was said of late, what to take back.

Called by :mod:`omni_streaming.describe`, which decides what to say; here it becomes an action with
the time of its picture and its expiry, in the caller's time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omni_encoders.wording import num_words

from omni_streaming.describe_floor import Floor
from omni_streaming.describe_memory import Entity
from omni_streaming.describe_settings import (
    SAME_WORDS_MS,
    STALE_MS,
    TEXT_STALE_MS,
    Action,
    AskModel,
    Kind,
    LookForText,
    Say,
    StopSpeaking,
)

OVERVIEW_PROMPT = "Describe what the camera shows, the most important things first."
MORE_PROMPT = "Say what else the camera shows that has not been mentioned yet."
RULES_PROMPT = (
    "The listener cannot see: say where things are and roughly how far, and what you are not sure "
    "of. Do not identify people or judge their looks."
)


class Clock:
    """The describer's own clock: the one given, but it never goes back."""

    def __init__(self, now_ms: int) -> None:
        self._outer_ms = now_ms
        self._inner_ms = 0

    def advance(self, now_ms: int) -> int:
        """The time now on our own clock."""
        self._inner_ms += max(now_ms - self._outer_ms, 0)
        self._outer_ms = now_ms
        return self._inner_ms

    @property
    def now_ms(self) -> int:
        """Our own time, as of the last :meth:`advance`."""
        return self._inner_ms

    def inside(self, at_ms: int) -> int:
        return at_ms - self._outer_ms + self._inner_ms

    def outside(self, at_ms: int) -> int:
        return at_ms - self._inner_ms + self._outer_ms


Knowledge = tuple[Entity, bool, bool, float, float | None]
"""(entity, is_known, is_told, known_x, told_x)."""


@dataclass(slots=True)
class Undo:
    """What to take back when nobody heard an utterance to its end."""

    text: str
    entities: list[Knowledge]
    is_notice: bool = False
    is_camera: bool = False
    is_overview: bool = False
    is_answer: bool = False

    @staticmethod
    def before(entities: Sequence[Entity]) -> list[Knowledge]:
        """What the user knows of the entities now."""
        return [(one, one.is_known, one.is_told, one.known_x, one.told_x) for one in entities]

    def restore_entities(self) -> None:
        for entity, is_known, is_told, known_x, told_x in self.entities:
            entity.is_known, entity.is_told = is_known, is_told
            entity.known_x, entity.told_x = known_x, told_x


class Mouth:
    """Says things for one describer."""

    def __init__(self, floor: Floor, clock: Clock) -> None:
        self.last_text = ""
        """What was asked to be said last."""
        self._floor = floor
        self._clock = clock
        self._actions: list[Action] = []
        self._said: dict[str, int] = {}  # sentences of late, and when
        self._undo: Undo | None = None  # of the last utterance, until it was heard

    def take_actions(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions

    def say(
        self,
        kind: Kind,
        text: str,
        taken_ms: int,
        now_ms: int,
        *,
        interrupts: bool = False,
        undo: Undo | None = None,
    ) -> None:
        """Ask for ``text``, which tells of a picture taken at ``taken_ms``."""
        stale_ms = TEXT_STALE_MS if kind == "text" else STALE_MS
        self._actions.append(
            Say(
                kind=kind,
                text=text,
                frame_at_ms=self._clock.outside(taken_ms),
                expires_at_ms=self._clock.outside(taken_ms + stale_ms),
                interrupts=interrupts,
            )
        )
        self._floor.ask(kind, num_words(text), now_ms)
        if undo is None and kind in ("answer", "text"):
            undo = Undo(text, [], is_answer=True)
        self._undo = undo
        self.last_text = text
        if kind in ("change", "framing"):
            recent = {old: ms for old, ms in self._said.items() if now_ms - ms < SAME_WORDS_MS}
            self._said = recent | {text: now_ms}

    def ask_model(
        self,
        kind: Kind,
        prompt: str,
        num_words: int,
        taken_ms: int,
        now_ms: int,
        *,
        interrupts: bool = False,
        undo: Undo | None = None,
    ) -> None:
        """Ask the model for at most ``num_words`` about the picture taken at ``taken_ms``."""
        self._actions.append(
            AskModel(
                kind=kind,
                prompt=f"{prompt} {RULES_PROMPT} Use at most {num_words} words.",
                frame_at_ms=self._clock.outside(taken_ms),
                expires_at_ms=self._clock.outside(taken_ms + STALE_MS),
                interrupts=interrupts,
            )
        )
        self._floor.ask(kind, num_words, now_ms)
        self._undo = undo

    def look_for_text(self) -> None:
        self._actions.append(LookForText())

    def stop(self) -> None:
        """Be silent; what is cut off counts as heard, since somebody wanted it so."""
        self._actions.append(StopSpeaking())
        self._floor.withdraw()
        self._undo = None

    def was_said(self, text: str, now_ms: int, within_ms: int = SAME_WORDS_MS) -> bool:
        """Whether these very words were said a moment ago, unasked."""
        return now_ms - self._said.get(text, -SAME_WORDS_MS) < within_ms

    def heard(self) -> None:
        """The last utterance is over."""
        self._undo = None

    def take_back(self) -> Undo | None:
        """The last utterance was cut off, or never began: what to undo, if anything."""
        undo, self._undo = self._undo, None
        if undo is not None:
            self._said.pop(undo.text, None)
        return undo
