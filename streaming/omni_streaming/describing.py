"""One session's camera: frames to looks, looks to the describer, its decisions to responses.

Called by :mod:`omni_streaming.session` and :mod:`omni_streaming.turn_taking`; sans-I/O like them.
What is worth saying is :mod:`omni_streaming.describe`'s business. Without ``session.omni.describe``
nothing here does anything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from omni.types import Conversation as Context
from omni.types import Look, MediaPart, Message, ResponseConfig, Say, Seen, TextPart
from omni_streaming import events
from omni_streaming.describe import Describer
from omni_streaming.describe_settings import (
    FRAME_KEY,
    KIND_KEY,
    READING,
    Action,
    AskModel,
    CommandName,
    DescribeSettings,
    LookForText,
    Speech,
    StopSpeaking,
)
from omni_streaming.describe_settings import Say as SayWords

if TYPE_CHECKING:
    from omni_streaming.response import Response
    from omni_streaming.session import Session
    from omni_streaming.settings import ResponseSettings

NUM_TIMED_FRAMES = 64
"""The quickest of the last so many tells how the clocks differ. They drift apart, and leap: set
right, or asleep with their machine. A longer memory would take every later frame for an old one."""

READ_MS_PER_WORD = 250
"""Of words in writing: nobody says when they have been read. Screen readers are set to about 300
words a minute (Bragg 2021), and begin a little later."""

MAX_ANSWER_TOKENS = 400
"""About two minutes of speech: a small model that repeats itself does not stop by itself, and while
it talks nothing that changes is told."""

NOT_CHANGES = ("framing", "hazard", "answer", "text")

GUIDE = "The user is blind and shows you what their camera sees."
BRACKETS = (
    "It stands in square brackets. Answer questions about it only from it. If it does not say, "
    "answer: I cannot tell from the picture."
)
NO_JUDGEMENT = "Never say who somebody is or judge how they look."
"""Added to the instructions, BRACKETS for a model that is told in words what there is to see.
Without them the 0.5B says of a street that "the traffic light is green" where none was seen
(docs/quality.md)."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of the camera; ``at_ms`` on the session's clock."""

    frame_id: str
    data: bytes
    at_ms: int
    taken_ms: float | None  # on the client's clock

    def part(self) -> MediaPart:
        """The frame inside a message."""
        return MediaPart(self.frame_id, "image", self.data, is_small=True)


class Describing:
    """Describe mode of one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._describer: Describer | None = None
        self._options: Mapping[str, Any] = {}
        self._newest: Frame | None = None
        self._waiting: Frame | None = None  # to be looked at next; older ones were dropped
        self._looking: Frame | None = None  # what the assistant is looking at
        self._seen: Frame | None = None  # the newest that was looked at
        self._wants_text = False
        self._offsets_ms: deque[float] = deque(maxlen=NUM_TIMED_FRAMES)  # our clock less theirs
        self._last_taken_ms: float | None = None  # on the client's clock
        self._speech: tuple[Speech, str | None] | None = None  # as last told, and of which response
        self._kinds: dict[str, Speech] = {}  # of responses that are under way or audible
        self._audible: str | None = None  # response whose sound or words were sent last
        self._read_until_ms = 0  # what is in writing, by our best knowledge

    @property
    def is_on(self) -> bool:
        return self._describer is not None

    # --- The client ------------------------------------------------------------------------------

    def configure(self, wire: Mapping[str, Any] | None) -> None:
        """Take ``session.omni``: switch describe mode on or off, or change its options."""
        options = (wire or {}).get("describe")
        if options is None:
            self._describer = None
            self._newest = self._waiting = self._looking = self._seen = self._speech = None
            self._wants_text = False
            return
        self._options = options
        chosen = {name: value for name, value in options.items() if name != "rate"}
        settings = DescribeSettings(**chosen, has_native_sight=self._session.has_native_sight)
        if self._describer is None:
            self._describer = Describer(settings, self._session.now_ms)
            self._tell_speech()
        else:
            self._describer.update(settings)
        self._act()

    def show(self, data: bytes, taken_ms: float | None) -> None:
        """A frame has come; only the newest is worth a look."""
        frame = Frame(self._session.new_id("frame"), data, self._time_of(taken_ms), taken_ms)
        self._newest = self._waiting = frame
        if self._describer is not None:
            self._describer.frame_came(self._session.now_ms)
        self._look()

    def command(self, name: CommandName) -> None:
        """A key or a button."""
        if self._describer is not None:
            self._describer.command(name, self._session.now_ms)
            self._carry_out(name)

    # --- The session -----------------------------------------------------------------------------

    def take(self, seen: Seen) -> None:
        """A look has ended."""
        if self._looking is not None and seen.frame_id == self._looking.frame_id:
            self._seen = self._looking if seen.scene is not None else self._seen
            self._looking = None
            self._look()
        describer = self._describer
        if describer is None or seen.fault == "skipped":
            return
        if seen.scene is not None:
            describer.see(seen.scene, self._session.now_ms)
        elif seen.fault == "bad_picture":
            self._session.emit(events.error(seen.reason, "invalid_value", param="image"))
        else:
            describer.failed_to_see(self._session.now_ms)
        self._act()

    def tick(self) -> None:
        """Time has passed."""
        if self._describer is not None:
            self._tell_speech()
            self._describer.tick(self._session.now_ms)
            self._act()

    def user_speaks(self, is_speaking: bool) -> None:
        if self._describer is not None:
            self._describer.user_speaks(is_speaking, self._session.now_ms)
            self._act()

    def heard(self, text: str, item_id: str | None = None) -> bool:
        """What the user said to the assistant; True if the model need not answer.

        ``item_id``: the user's item, of which a model without eyes then learns nothing, nor of what
        is said to it: a small model repeats what stands in its context, whatever it is asked.
        """
        if self._describer is None:
            return False
        name = self._describer.heard(text, self._session.now_ms)
        if name is None:
            return False
        if item_id is not None and not self._session.has_native_sight:
            self._session.items.leave_out(item_id)
            self._session.sync()
        self._carry_out(name)
        return True

    def began(self, response: Response) -> None:
        """A response of any kind begins."""
        if self._describer is not None:
            self._kinds[response.id] = _kind_of(response)

    def sounded(self, response: Response) -> None:
        """Sound of a response was sent."""
        self._audible = response.id
        if self._describer is not None:
            self._tell_speech()

    def wrote(self, response: Response, text: str) -> None:
        """Words of a response were sent in writing: a screen reader says them."""
        begins_ms = max(self._read_until_ms, self._session.now_ms)
        self._read_until_ms = begins_ms + READ_MS_PER_WORD * len(text.split())
        self._audible = response.id
        if self._describer is not None:
            self._tell_speech()

    @property
    def may_give_way(self) -> bool:
        """Whether the active response is a mere description, which a question may end."""
        active = self._session.active
        if self._describer is None or active is None:
            return False
        return _kind_of(active) not in ("assistant", "hazard")

    def give_way(self) -> None:
        """A question is about to be answered: a mere description ends."""
        if self.may_give_way:
            self._fall_silent()

    def shown(self) -> tuple[MediaPart, ...]:
        """What stands before the words of a question: the newest picture that was looked at."""
        if self._describer is None or (frame := self._seen or self._newest) is None:
            return ()
        return (frame.part(),)

    def guided(self, instructions: str) -> str:
        """``instructions`` with what the model must know of its listener and their camera."""
        if self._describer is None:
            return instructions
        told = () if self._session.has_native_sight else (BRACKETS,)
        return " ".join((instructions, GUIDE, *told, NO_JUDGEMENT)).strip()

    def answering(self, settings: ResponseSettings) -> ResponseSettings:
        """``settings`` of an ordinary answer, marked in describe mode as what it is."""
        if self._describer is None:
            return settings
        metadata = {**(settings.metadata or {}), KIND_KEY: "answer"}
        config = self._paced(settings.config)
        most = min(config.max_output_tokens, MAX_ANSWER_TOKENS)
        config = replace(config, max_output_tokens=most)
        return replace(settings, metadata=metadata, config=config)

    # --- Inside ----------------------------------------------------------------------------------

    def _time_of(self, taken_ms: float | None) -> int:
        """When a frame was taken: the quickest one to come tells how the clocks differ."""
        now_ms = self._session.now_ms
        if taken_ms is None:
            return now_ms
        if self._last_taken_ms is not None and taken_ms <= self._last_taken_ms:
            self._offsets_ms.clear()  # it was set back, or stands still: what it said is void
        self._last_taken_ms = taken_ms
        self._offsets_ms.append(now_ms - taken_ms)
        return round(min(taken_ms + min(self._offsets_ms), now_ms))

    def _look(self) -> None:
        """Have the newest frame looked at, if nothing else is."""
        frame = self._waiting
        if frame is None or self._looking is not None:
            return
        self._waiting = None
        self._looking = frame
        wants_text, self._wants_text = self._wants_text, False
        self._session.queue.add(
            Look(self._session.session_id, frame.frame_id, frame.data, frame.at_ms, wants_text)
        )

    def _tell_speech(self) -> None:
        """Tell the describer what is heard from now on, if that has changed."""
        session, describer = self._session, self._describer
        assert describer is not None
        is_sounding = session.playback.is_audible or session.now_ms < self._read_until_ms
        is_heard = is_sounding and self._audible is not None
        kind = self._kinds.get(self._audible or "", "assistant") if is_heard else None
        if session.active is None and not is_heard:
            self._kinds.clear()
        speech = (kind, self._audible) if kind is not None else None
        if speech != self._speech:
            self._speech = speech
            describer.speaking(kind, session.now_ms)

    def _carry_out(self, name: str) -> None:
        """What a command changes of the session itself, and what the describer wants of it."""
        assert self._describer is not None
        if name in ("quiet", "resume"):
            self._options = {**self._options, "quiet": self._describer.is_quiet}
            self._session.note_describe(self._options)
        self._act()

    def _act(self) -> None:
        describer = self._describer
        while describer is not None and (actions := describer.actions()):
            for action in actions:
                self._do(action)

    def _do(self, action: Action) -> None:
        session = self._session
        if isinstance(action, LookForText):
            self._wants_text = True
            self._waiting = self._waiting or self._newest
            self._look()
            return
        if isinstance(action, StopSpeaking):
            session.turns.take_owed()  # nobody wants it any more
            self._fall_silent()
            return
        if session.now_ms > action.expires_at_ms:
            return
        if action.interrupts:
            self._fall_silent()
        elif session.active is not None:
            return
        metadata = {KIND_KEY: action.kind, FRAME_KEY: str(action.frame_at_ms)}
        settings = session.settings.response()
        settings = replace(settings, metadata=metadata, config=self._paced(settings.config))
        if isinstance(action, SayWords):
            told = ("framing", "hazard") if session.has_native_sight else NOT_CHANGES
            is_notice = action.kind in told or action.text == READING
            response = session.begin(session.new_id("resp"), settings, is_notice=is_notice)
            session.queue.add(Say(session.session_id, response.id, action.text, settings.config))
        else:
            self._ask(
                action, replace(settings, config=replace(settings.config, tool_choice="none"))
            )

    def _paced(self, config: ResponseConfig) -> ResponseConfig:
        """``config`` at the pace that the listener has chosen, even beyond the protocol's."""
        return replace(config, speed=self._options.get("rate") or config.speed)

    def _fall_silent(self) -> None:
        self._read_until_ms = self._session.now_ms
        self._session.fall_silent()

    def _ask(self, action: AskModel, settings: ResponseSettings) -> None:
        """Have the model look at the newest picture."""
        session = self._session
        asked = Message("user", (*self.shown(), TextPart(action.prompt)))
        context = session.items.render(self.guided(session.settings.instructions), ())
        messages = (*context.messages, asked)
        session.respond(settings, Context(instructions=context.instructions, messages=messages))


def _kind_of(response: Response) -> Speech:
    """What the describer calls it; an ordinary answer has no frame."""
    metadata = response.settings.metadata or {}
    kind: Any = metadata.get(KIND_KEY) if FRAME_KEY in metadata else "assistant"
    return cast(Speech, kind)
