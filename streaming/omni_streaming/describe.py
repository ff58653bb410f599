"""Live description for people who cannot see: every decision, and no clock, thread or socket.

Called by the session that owns it with what is seen (:meth:`Describer.see`), what is said, what the
user says or presses, and the time (:meth:`Describer.tick`, at least every 250 ms); it answers with
:data:`~omni_streaming.describe_settings.Action` values, taken by :meth:`Describer.actions`.

What is to be said is kept as facts, not as sentences: when there is room for an utterance it is
made from the newest picture, so that nothing stale waits in a queue. Warnings go past all of it.
Order: warnings, answers, the notice at the start, the camera, an overview, changes.
"""

from __future__ import annotations

from typing import Literal

from omni_encoders import answers, wording
from omni_encoders.declining import declined, is_general
from omni_encoders.wording import Told, num_words

from omni.scene import Scene
from omni_streaming.describe_camera import Camera, Motion
from omni_streaming.describe_commands import match_command
from omni_streaming.describe_floor import Floor
from omni_streaming.describe_hazards import HazardLane
from omni_streaming.describe_memory import Entity, SceneMemory
from omni_streaming.describe_mouth import MORE_PROMPT, OVERVIEW_PROMPT, Clock, Mouth, Undo
from omni_streaming.describe_settings import (
    AFTER_USER_MS,
    ANSWER_LATE_MS,
    BRIEF_WORDS,
    EMPTY_MS,
    FIRST_LOOK_MS,
    LATE_MS,
    MIN_WORDS,
    MOVING_FROM,
    MOVING_WORDS,
    NOTICE,
    OVERVIEW_AGAIN_MS,
    READ_LATE_MS,
    READING,
    SAME_CAMERA_MS,
    SETTLE_MS,
    STALE_MS,
    STILL_WORDS,
    TEXT_STALE_MS,
    TURN_MS,
    Action,
    CommandName,
    DescribeSettings,
    Kind,
    Speech,
)


class Describer:
    """Describes what one session's camera shows."""

    def __init__(self, settings: DescribeSettings, now_ms: int) -> None:
        self._settings = settings
        self._clock = Clock(now_ms)
        self._floor = Floor()
        self._mouth = Mouth(self._floor, self._clock)
        self._camera = Camera(0)
        self._motion = Motion()
        self._memory = SceneMemory()
        self._hazards = HazardLane()
        self._scene: Scene | None = None
        self._scene_ms = -STALE_MS  # when the newest picture was taken, on our own clock
        self._clear_ms: int | None = None  # when the first clear picture came
        self._is_quiet = settings.quiet
        self._is_notice_due = True
        self._is_overview_due = True
        self._overview_ms = -OVERVIEW_AGAIN_MS
        self._answer: tuple[CommandName, int] | None = None  # asked, and when
        self._owed: tuple[str, int] | None = None  # said once it is silent, if by then
        self._text_since_ms: int | None = None  # since when we wait for text

    @property
    def is_quiet(self) -> bool:
        return self._is_quiet

    @property
    def is_moving(self) -> bool:
        return self._motion.is_moving

    def actions(self) -> list[Action]:
        """What is to be done now, in order; each is given once."""
        return self._mouth.take_actions()

    # --- What happens ----------------------------------------------------------------------------

    def update(self, settings: DescribeSettings) -> None:
        """The user's choices changed; what is known stays."""
        if settings.quiet != self._settings.quiet:
            self._is_quiet = settings.quiet
        self._settings = settings

    def see(self, scene: Scene, now_ms: int) -> None:
        """A look has ended. Pictures that are late, or not newer than the last, are not used."""
        now = self._clock.advance(now_ms)
        taken = min(self._clock.inside(scene.at_ms), now)
        if self._text_since_ms is not None and scene.lettering is not None:
            self._read(scene, taken, now)
        if taken <= self._scene_ms or now - taken > LATE_MS:
            self._decide(now)
            return
        self._scene, self._scene_ms = scene, taken
        self._camera.look(scene.condition, now)
        self._motion.look(scene.motion, now)
        if scene.condition == "clear":
            if self._clear_ms is None:
                self._clear_ms = now
            self._memory.see(scene, now, is_moving=self._motion.is_moving)
        if scene.condition in ("clear", "blurred"):
            self._warn(scene, now)
        self._decide(now)

    def frame_came(self, now_ms: int) -> None:
        """A picture has come and will be looked at, sooner or later."""
        self._camera.came(self._clock.advance(now_ms))

    def failed_to_see(self, now_ms: int) -> None:
        """A look came to nothing: there is no detector, or it failed."""
        now = self._clock.advance(now_ms)
        self._camera.look("failing", now)
        self._decide(now)

    def user_speaks(self, is_speaking: bool, now_ms: int) -> None:
        """The user begins or stops to speak, to whomever. Ends a description, not a warning."""
        now = self._clock.advance(now_ms)
        was_speaking = self._floor.is_user_speaking
        self._floor.user_speaks(is_speaking, now)
        if is_speaking and not was_speaking:
            self._hush()
        self._decide(now)

    def heard(self, text: str, now_ms: int) -> CommandName | Literal["answer"] | None:
        """The user's turn was for the assistant and these are its words.

        Returns the command that it was and that is being carried out, or "answer" for a question
        that is answered here: it needs no other answer. None: it is for the assistant's model.
        "Say that again" is, after an answer of the model.
        """
        now = self._clock.advance(now_ms)
        name = match_command(text)
        is_about_answer = name in ("repeat", "more") and self._floor.last_kind == "assistant"
        if name is None or is_about_answer:
            if not is_about_answer and (words := self._own_answer(text, now)) is not None:
                self._floor.keep_quiet(now)
                self._reply(words, now)
                return "answer"
            self._floor.wait_for_answer(now)
            return None
        self._floor.keep_quiet(now)
        self._command(name, now)
        return name

    def _own_answer(self, question: str, now: int) -> str | None:
        """What needs no model, or must not be left to one."""
        if (words := declined(question)) is not None or self._settings.has_native_sight:
            return words
        if self._scene is not None and now - self._scene_ms <= LATE_MS:
            return answers.answer_alone(question, self._scene, self._settings.wording)
        return None if is_general(question) else self._blindness()

    def command(self, name: CommandName, now_ms: int) -> None:
        """The user pressed a key or a button."""
        self._command(name, self._clock.advance(now_ms))

    def speaking(self, kind: Speech | None, now_ms: int) -> None:
        """What is heard from now on; None: silence. Answers of the model are "assistant"."""
        now = self._clock.advance(now_ms)
        if kind is not None:
            if not self._floor.began(kind, now) and self._floor.pending is None:
                self._mouth.heard()
        elif self._floor.ended(now) and self._floor.pending is None:
            self._mouth.heard()
        self._decide(now)

    def tick(self, now_ms: int) -> None:
        """Time passes."""
        self._decide(self._clock.advance(now_ms))

    # --- Commands --------------------------------------------------------------------------------

    def _command(self, name: CommandName, now: int) -> None:
        if name == "stop":
            self._mouth.stop()
            self._floor.keep_quiet(now + AFTER_USER_MS)
            self._answer = self._text_since_ms = None
            return
        if name in ("quiet", "resume"):
            self._is_quiet = name == "quiet"
        self._answer = (name, now)
        self._text_since_ms = None
        self._decide(now)

    def _hush(self) -> None:
        """The user talks: what was being described need not be said again."""
        is_ours = self._floor.current in ("change", "framing", "answer", "text")
        if is_ours or self._floor.pending is not None:
            if self._floor.pending is not None and self._floor.pending.kind == "hazard":
                return
            self._mouth.stop()

    # --- Decisions -------------------------------------------------------------------------------

    def _warn(self, scene: Scene, now: int) -> None:
        if not self._settings.hazards:
            return
        danger = self._hazards.see(scene.things, now, is_panning=scene.motion >= MOVING_FROM)
        if danger is None:
            return
        text = wording.hazard(
            danger.thing, self._settings.wording, is_approaching=danger.is_approaching
        )
        self._interrupt("hazard", text, self._scene_ms, now)
        for entity in self._memory.entities:
            if entity.thing == danger.thing:
                entity.know(is_told=True)

    def _decide(self, now: int) -> None:
        """Say the most important thing for which there is room, if there is any."""
        self._camera.tick(now)
        if self._floor.lost(now):
            self._take_back()
        if self._answer is not None:
            self._give_answer(now)
        if self._text_since_ms is not None and now - self._text_since_ms > TEXT_STALE_MS:
            self._text_since_ms = None
            self._interrupt("answer", "I could not read it in time.", now, now)
        if self._owed is not None and self._give_owed(now):
            return
        if self._answer is not None or self._text_since_ms is not None:
            return
        if not self._floor.may_describe(now):
            return
        if (self._is_quiet or not self._is_notice_due) and self._tell_of_camera(now):
            return
        if self._is_quiet:
            return
        words_left = self._floor.words_left(now)
        if words_left < MIN_WORDS:
            return
        budget = min(self._budget(), words_left)
        if self._is_notice_due:
            self._is_notice_due = False
            self._mouth.say("framing", NOTICE, now, now, undo=Undo(NOTICE, [], is_notice=True))
        elif self._can_see(now):
            self._describe(budget, now)

    def _tell_of_camera(self, now: int) -> bool:
        """Whether it is being said that we cannot see, or can again.

        However much was said already, and to whoever wants quiet but warnings: who hears nothing
        believes that nothing comes near.
        """
        if self._is_quiet and not self._settings.hazards:
            return False
        text = self._camera.due(now)
        if text is None or self._mouth.was_said(text, now, SAME_CAMERA_MS):
            return False
        self._camera.told()
        self._mouth.say("framing", text, now, now, undo=Undo(text, [], is_camera=True))
        return True

    def _reply(self, words: str, now: int) -> None:
        """Answer at once, but let a warning be heard."""
        self._take_back(is_wanted=True)
        if self._floor.is_warning:
            self._owed = words, now + ANSWER_LATE_MS
            return
        undo = self._undo_of(words)
        self._mouth.say("answer", words, self._scene_ms, now, interrupts=True, undo=undo)

    def _give_owed(self, now: int) -> bool:
        """Whether the answer that a warning cut off is being given again."""
        assert self._owed is not None
        text, until_ms = self._owed
        if now > until_ms:
            self._owed = None
            return False
        is_silent = self._floor.is_silent and not self._floor.is_assistants(now)
        if not is_silent or self._floor.is_user_speaking:
            return False
        self._owed = None
        self._mouth.say("answer", text, now, now, undo=self._undo_of(text))
        return True

    def _describe(self, budget: int, now: int) -> None:
        news = self._memory.news(self._settings.verbosity, now)
        visible = self._memory.visible()
        may_see_whole = not self._is_overview_due and self._may_look_round(now)
        if may_see_whole and self._motion.is_stopping(now):
            return  # what is found where a turn ends is told as a whole, not one by one
        if self._is_new_place(news, visible, now):
            self._say_overview(visible, budget, now)
            return
        options = self._settings.wording
        if news:
            has_turned = max(one.first_ms for one in news) - self._motion.moved_ms <= TURN_MS
            things = [one.as_thing() for one in news]
            told = wording.appeared(things, options, budget, has_turned=has_turned)
            if told.text and self._say_change(told, news, now):
                return
        for entity in self._memory.moves(now):
            text = wording.moved(entity.as_thing(), options)
            is_news = not entity.is_where_told(options) and num_words(text) <= budget
            if is_news and self._say_change(Told(text), [entity], now):
                return
        if self._settings.verbosity == "brief" or self._motion.is_moving:
            return
        for alike in self._memory.departures(now, self._motion.moved_ms, options):
            was_only = self._memory.is_only(alike[0])
            text = wording.gone([one.as_thing() for one in alike], options, was_only=was_only)
            if self._say_change(Told(text), [], now):
                self._memory.forget(alike)
                return

    def _may_look_round(self, now: int) -> bool:
        """Whether the last overview is long enough ago for another."""
        return now - self._overview_ms >= OVERVIEW_AGAIN_MS

    def _is_new_place(self, news: list[Entity], visible: list[Entity], now: int) -> bool:
        """Whether a whole overview says it best."""
        if self._is_overview_due:
            wait_ms = SETTLE_MS if visible else FIRST_LOOK_MS
            return self._clear_ms is not None and now - self._clear_ms >= wait_ms
        if not visible:
            turned_ms = self._motion.moved_ms
            # The last pictures of a turn move little and still show what is left behind.
            has_turned_away = self._overview_ms <= self._memory.seen_ms < turned_ms + SETTLE_MS
            return has_turned_away and now - turned_ms >= EMPTY_MS and not self._motion.is_moving
        return self._may_look_round(now) and len(news) >= 3 and len(news) >= 0.6 * len(visible)

    def _say_overview(self, visible: list[Entity], budget: int, now: int) -> None:
        assert self._scene is not None
        things = {one.as_thing(): one for one in visible}
        told = wording.overview(self._scene, self._settings.wording, budget, things=list(things))
        was_said = self._mouth.was_said(told.text, now)
        undo = Undo(told.text, Undo.before(visible), is_overview=self._is_overview_due)
        self._is_overview_due = False
        self._overview_ms = now
        for thing, entity in things.items():
            entity.know(is_told=thing in told.things)
        if was_said:
            return
        if self._settings.has_native_sight:
            self._mouth.ask_model("change", OVERVIEW_PROMPT, budget, self._scene_ms, now, undo=undo)
        else:
            self._mouth.say("change", told.text, self._scene_ms, now, undo=undo)

    def _say_change(self, told: Told, entities: list[Entity], now: int) -> bool:
        """Whether it is being said; not when the same was said a moment ago."""
        if self._mouth.was_said(told.text, now):
            return False
        undo = Undo(told.text, Undo.before(entities))
        for entity in entities:
            entity.know(is_told=entity.is_told or entity.as_thing() in told.things)
        self._mouth.say("change", told.text, self._scene_ms, now, undo=undo)
        return True

    # --- Answers ---------------------------------------------------------------------------------

    def _give_answer(self, now: int) -> None:
        """Answer at once, but let a warning be heard."""
        assert self._answer is not None
        name, asked_ms = self._answer
        if now - asked_ms > ANSWER_LATE_MS:
            self._answer = None
            return
        if self._floor.is_warning:
            return
        self._answer = None
        if name == "repeat":
            last = self._mouth.last_text
            text = last or "I have said nothing yet."
            again = f"I said: {text}"
            text = again if last and num_words(again) <= STILL_WORDS else text
            self._interrupt("answer", text, now, now)
            self._mouth.last_text = last  # else the next time it would be "I said: I said:"
        elif name == "quiet":
            only = "I will be quiet, except for warnings."
            text = only if self._settings.hazards else "I will be quiet."
            self._interrupt("answer", text, now, now)
        elif name == "resume":
            self._interrupt("answer", "I am describing again.", now, now)
        elif name == "read":
            self._ask_for_text(now)
        else:
            self._tell_scene(name, now)

    def _tell_scene(self, name: CommandName, now: int) -> None:
        """What is in front, or what was not mentioned yet."""
        if not self._can_see(now):
            self._interrupt("answer", self._blindness(), now, now)
            return
        assert self._scene is not None
        if self._settings.has_native_sight:
            self._take_back(is_wanted=True)
            self._mouth.ask_model(
                "answer",
                MORE_PROMPT if name == "more" else OVERVIEW_PROMPT,
                self._budget(),
                self._scene_ms,
                now,
                interrupts=True,
            )
            return
        visible = self._memory.visible() or self._memory.seen()  # at once: the first look
        if name == "more" and not (visible := [one for one in visible if not one.is_told]):
            self._interrupt("answer", "That is all I see.", self._scene_ms, now)
            return
        things = {one.as_thing(): one for one in visible}
        opening = "Also:" if name == "more" else "In front of you:"
        options, budget = self._settings.wording, self._budget()
        told = wording.overview(self._scene, options, budget, things=list(things), opening=opening)
        for thing, entity in things.items():
            entity.know(is_told=thing in told.things)
        if name == "front":
            self._is_overview_due = False
            self._overview_ms = now
            for thing, entity in things.items():
                entity.is_told = thing in told.things
        self._interrupt("answer", told.text, self._scene_ms, now)

    def _blindness(self) -> str:
        """Why nothing can be said of the newest picture."""
        if self._camera.sight != "clear":
            return self._camera.problem
        return "I have no picture yet." if self._scene is None else "I have no new picture."

    def _ask_for_text(self, now: int) -> None:
        if self._scene is not None and self._scene.lettering is not None and self._can_see(now):
            self._text_since_ms = self._scene_ms
            self._read(self._scene, self._scene_ms, now)
            return
        self._text_since_ms = now
        # Reading takes seconds on a CPU: whoever asked hears at once that it has begun.
        self._mouth.say("answer", READING, now, now, interrupts=True)
        self._mouth.look_for_text()

    def _read(self, scene: Scene, taken: int, now: int) -> None:
        """Read what a look found that was asked for; an older look does not count."""
        assert self._text_since_ms is not None
        if taken < self._text_since_ms - LATE_MS or now - taken > TEXT_STALE_MS:
            return
        if self._floor.is_warning:
            self._mouth.look_for_text()
            return
        self._text_since_ms = None
        text = wording.reading(scene.lettering or ())
        if scene.condition != "clear" and not scene.lettering:
            text = wording.ABSTENTIONS[scene.condition]
        is_own = self._floor.is_answer and self._mouth.last_text != READING
        if is_own or self._floor.is_assistants(now):
            self._owed = text, now + READ_LATE_MS  # something was asked meanwhile: that comes first
            return
        self._interrupt("text", text, taken, now)

    # --- Speaking --------------------------------------------------------------------------------

    def _budget(self) -> int:
        if self._motion.is_moving:
            return MOVING_WORDS
        return BRIEF_WORDS if self._settings.verbosity == "brief" else STILL_WORDS

    def _can_see(self, now: int) -> bool:
        """Whether the newest picture may be spoken of."""
        return self._camera.sight == "clear" and now - self._scene_ms <= LATE_MS

    def _interrupt(self, kind: Kind, text: str, taken: int, now: int) -> None:
        """Say it now, whatever is being said."""
        self._take_back(is_wanted=kind != "hazard")
        undo = self._undo_of(text) if kind in ("answer", "text") else None
        self._mouth.say(kind, text, taken, now, interrupts=True, undo=undo)

    def _undo_of(self, answer: str) -> Undo:
        """Of an answer that is being given; one that names the camera's problem tells it."""
        is_camera = self._camera.is_untold(answer)
        if is_camera:
            self._camera.told()
        return Undo(answer, [], is_answer=True, is_camera=is_camera)

    def _take_back(self, *, is_wanted: bool = False) -> None:
        """What was being said is cut off, or never began: it is news again.

        ``is_wanted``: by the user, who then needs only what they must not miss.
        """
        undo = self._mouth.take_back()
        if undo is None:
            return
        if undo.is_answer and not is_wanted:
            self._owed = undo.text, self._clock.now_ms + ANSWER_LATE_MS
        if not is_wanted:
            undo.restore_entities()
            self._is_overview_due = self._is_overview_due or undo.is_overview
        self._is_notice_due = self._is_notice_due or undo.is_notice
        if undo.is_camera:
            self._camera.untold()
