"""Describe mode of a session: frames, descriptions, warnings, questions, commands by voice."""

from __future__ import annotations

import base64
from typing import Any

import cv2
import numpy as np
import pytest
from omni_encoders.declining import NOT_A_GUIDE
from omni_streaming.describe_settings import NOTICE
from omni_streaming.describing import (
    BRACKETS,
    GUIDE,
    MAX_ANSWER_TOKENS,
    NO_JUDGEMENT,
    READ_MS_PER_WORD,
)

from omni.config import Config
from omni.scene import Scene, Thing
from omni.scripted import Answer, Script
from omni.types import Cancel, Edit, Look, MediaPart, Respond, Say, Seen, Speculate, TextPart
from tests.streaming.driver import (
    Driver,
    of_type,
    set_detection,
    silence,
    speak,
    tone,
    types,
    words,
)

CHAIR = Thing(label="chair", confidence=0.9, box=(0.4, 0.4, 0.6, 0.9), distance_m=2.0, track_id=1)
DOG = Thing(label="dog", confidence=0.9, box=(0.1, 0.5, 0.3, 0.9), distance_m=3.0, track_id=2)
CAR = Thing(
    label="car",
    confidence=0.9,
    box=(0.3, 0.2, 0.7, 0.9),
    distance_m=2.0,
    track_id=3,
    approach_per_s=0.8,
    num_frames=4,
)
ROOM = Scene(at_ms=0, things=(CHAIR,))


def jpeg(grey: int = 90) -> bytes:
    return cv2.imencode(".jpg", np.full((48, 64, 3), grey, np.uint8))[1].tobytes()


FRAME = base64.b64encode(jpeg()).decode()


class Camera(Driver):
    """A client in describe mode whose camera sends four frames a second."""

    def __init__(
        self,
        *scenes: Scene,
        script: Script | None = None,
        session: dict[str, Any] | None = None,
        **describe: Any,
    ) -> None:
        super().__init__(script or Script(scenes=scenes), **(session or {}))
        self.send("session.update", session={"type": "realtime", "omni": {"describe": describe}})

    def watch(self, ms: int, every_ms: int = 250) -> list[dict[str, Any]]:
        """Show the camera for so long; what it causes."""
        first = len(self.events)
        for _ in range(ms // every_ms):
            self.send("omni.frame.append", image=FRAME, taken_ms=self.now_ms)
            self.finish()
            self.wait(every_ms)
        return self.events[first:]

    def kinds(self) -> list[str]:
        """``omni_kind`` of every response so far."""
        created = of_type(self.events, "response.created")
        return [(e["response"]["metadata"] or {}).get("omni_kind", "") for e in created]

    def said(self) -> list[str]:
        return [command.text for command in self.commands_of(Say)]


# --- Ordinary clients ------------------------------------------------------------------------


def test_ordinary_clients_never_notice() -> None:
    driver = Driver(Script(scenes=(ROOM,)))
    assert "omni" not in driver.events[0]["session"]
    updated = driver.send("session.update", session={"type": "realtime", "instructions": "Hi."})
    assert "omni" not in updated[0]["session"]
    for event in ({"type": "omni.frame.append", "image": FRAME}, {"type": "omni.describe.command"}):
        kind = event.pop("type")
        extra = {"command": "front"} if "command" in kind else {}
        error = driver.send(kind, **event, **extra)[0]["error"]
        assert "needs describe mode" in error["message"]
    speak(driver)
    driver.finish()
    created = of_type(driver.events, "response.created")
    assert created[0]["response"]["metadata"] is None
    assert not driver.commands_of(Look, Say)


def test_the_options_are_echoed_as_sent_and_merge() -> None:
    camera = Camera(ROOM, verbosity="brief")
    omni = camera.events[-1]["session"]["omni"]
    assert omni == {"describe": {"verbosity": "brief"}}
    patch = {"type": "realtime", "omni": {"describe": {"units": "steps"}}}
    omni = camera.send("session.update", session=patch)[-1]["session"]["omni"]
    assert omni == {"describe": {"verbosity": "brief", "units": "steps"}}
    off = {"type": "realtime", "omni": {"describe": None}}
    assert camera.send("session.update", session=off)[-1]["session"]["omni"] == {"describe": None}
    error = camera.send("omni.frame.append", image=FRAME)[0]["error"]
    assert "needs describe mode" in error["message"]


def test_whoever_shows_a_camera_to_a_server_that_records_is_told() -> None:
    recording = {"config": Config(record="kept")}
    camera = Camera(ROOM, session=recording, quiet=True)
    omni = camera.events[-1]["session"]["omni"]
    assert omni == {"describe": {"quiet": True}, "recorded": True}
    camera.send("omni.describe.command", command="resume")
    assert of_type(camera.events, "session.updated")[-1]["session"]["omni"]["recorded"] is True
    off = {"type": "realtime", "omni": {"describe": None}}
    assert camera.send("session.update", session=off)[-1]["session"]["omni"] == {"describe": None}
    secret = {"omni": {"describe": {}}}
    created = Driver(**recording, initial=secret).events[0]
    assert created["session"]["omni"] == {"describe": {}, "recorded": True}
    assert "omni" not in Driver(**recording).events[0]["session"]


def test_the_pace_may_go_beyond_the_protocols() -> None:
    camera = Camera(ROOM, rate=2.0)
    camera.watch(8_000)
    assert {command.config.speed for command in camera.commands_of(Say)} == {2.0}
    patch = {"type": "realtime", "omni": {"describe": {"rate": 4.0}}}
    error = camera.send("session.update", session=patch)[0]["error"]
    assert error["param"] == "session.omni.describe.rate"


def test_an_unknown_option_is_an_error() -> None:
    driver = Driver()
    patch = {"type": "realtime", "omni": {"describe": {"verbosty": "brief"}}}
    error = driver.send("session.update", session=patch)[0]["error"]
    assert error["param"] == "session.omni.describe.verbosty"


# --- Describing ------------------------------------------------------------------------------


def test_a_static_scene_is_described_once_as_an_item_of_the_conversation() -> None:
    camera = Camera(ROOM)
    camera.watch(60_000)
    assert camera.kinds() == ["framing", "change"]
    notice, overview = camera.said()
    assert "mobility aid" in notice
    assert "chair" in overview
    done = of_type(camera.events, "response.done")
    assert [e["response"]["status"] for e in done] == ["completed"] * 2
    assert done[1]["response"]["output"][0]["content"][0]["transcript"] == overview
    camera.send("response.create")
    context = camera.commands_of(Respond)[-1]
    camera.finish()
    assert context.conversation is None
    # The notice is an item as well, but nothing for the model to repeat.
    (first,) = camera.session.items.render("", ()).messages[:1]
    assert first.parts[0].text == overview  # type: ignore[union-attr]
    assert len(camera.session.items) >= 2


def test_a_warning_ends_what_is_being_said_and_comes_at_once() -> None:
    camera = Camera(ROOM, ROOM, ROOM, Scene(at_ms=0, things=(CHAIR, CAR)))
    camera.say("Tell me a long story.")
    camera.send("response.create")
    camera.step(3)
    story = camera.session.active
    assert story is not None
    first = len(camera.events)
    for _ in range(5):
        camera.send("omni.frame.append", image=FRAME, taken_ms=camera.now_ms)
        camera.step(1)
        camera.wait(120)
    events = camera.events[first:]
    kinds = types(events)
    at = kinds.index("omni.output_audio.stop")
    assert "response.done" in kinds[at:]
    assert kinds.index("response.created") > at
    cancelled = of_type(events, "response.done")[0]["response"]
    assert (cancelled["id"], cancelled["status"]) == (story.id, "cancelled")
    assert camera.kinds()[-1] == "hazard"
    assert "car" in camera.said()[-1].lower()
    camera.finish()
    assert of_type(camera.events, "response.done")[-1]["response"]["status"] == "completed"


def test_only_the_newest_frame_waits_while_one_is_looked_at() -> None:
    camera = Camera(ROOM)
    for number in range(5):
        camera.send("omni.frame.append", image=FRAME, taken_ms=number)
    (look,) = camera.commands_of(Look)
    camera.step(1)
    looks = camera.commands_of(Look)
    assert len(looks) == 2
    assert looks[1].frame_id != look.frame_id
    assert looks[1].at_ms <= camera.now_ms


def test_a_frame_is_as_old_as_the_clients_clock_says() -> None:
    camera = Camera(ROOM)
    camera.send("omni.frame.append", image=FRAME, taken_ms=5_000.0)
    camera.step(1)
    camera.now_ms += 3_000
    camera.send("omni.frame.append", image=FRAME, taken_ms=6_000.0)  # two seconds on its way
    first, second = camera.commands_of(Look)
    assert second.at_ms - first.at_ms == pytest.approx(1_000, abs=2)


@pytest.mark.parametrize("back_ms", [60_000, 100, 0])
def test_a_clients_clock_that_is_set_back_makes_no_frame_old(back_ms: int) -> None:
    camera = Camera(ROOM)
    camera.send("omni.frame.append", image=FRAME, taken_ms=100_000.0)
    camera.finish()
    camera.wait(1_000)
    camera.send("omni.frame.append", image=FRAME, taken_ms=100_000.0 - back_ms)
    first, second = camera.commands_of(Look)
    assert second.at_ms - first.at_ms == pytest.approx(1_000, abs=50)
    camera.finish()
    camera.wait(1_000)
    camera.send("omni.frame.append", image=FRAME, taken_ms=101_000.0 - back_ms)
    assert camera.commands_of(Look)[2].at_ms - second.at_ms == pytest.approx(1_000, abs=50)


@pytest.mark.parametrize("image", ["", "%%%", base64.b64encode(b"text").decode(), FRAME[:40]])
def test_a_bad_frame_is_one_error_and_the_next_is_seen(image: str) -> None:
    camera = Camera(ROOM)
    error = camera.send("omni.frame.append", image=image)[0]["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "image")
    camera.watch(3_000)
    assert camera.kinds() == ["framing"]


def test_a_frame_that_cannot_be_decoded_is_reported_once_it_was_tried() -> None:
    camera = Camera(ROOM)
    camera.send("omni.frame.append", image=FRAME)
    (look,) = camera.commands_of(Look)
    camera.assistant.step()
    camera.handle(Seen("sess_1", look.frame_id, None, "bad_picture", "the JPEG is damaged"))
    assert of_type(camera.events, "error")[-1]["error"]["message"] == "the JPEG is damaged"


def test_without_eyes_the_user_is_told() -> None:
    camera = Camera()
    camera.watch(12_000)
    assert any("detector is not working" in text for text in camera.said())


# --- Questions and commands ------------------------------------------------------------------


def asked(camera: Camera, text: str) -> list[dict[str, Any]]:
    """The user says ``text`` aloud."""
    first = len(camera.events)
    camera.audio(tone(900) + silence(900), steps=1)
    camera.finish()
    camera.wait(200)
    camera.finish()
    return camera.events[first:]


def scripted(*heard: str) -> Script:
    return Script(transcripts=heard, scenes=(ROOM,), answers=(Answer(text="It is a chair."),))


def test_a_spoken_question_is_answered_about_the_newest_frame() -> None:
    camera = Camera(script=scripted("Tell me about the sea."))
    camera.watch(8_000)
    events = asked(camera, "Tell me about the sea.")
    created = of_type(events, "response.created")[0]["response"]
    assert created["metadata"] == {"omni_kind": "answer"}
    guess = camera.commands_of(Speculate)[-1]
    assert guess.config.max_output_tokens == MAX_ANSWER_TOKENS
    (part,) = guess.shown
    assert isinstance(part, MediaPart)
    assert part.data == jpeg()
    item = of_type(events, "conversation.item.added")[0]["item"]
    assert [c["type"] for c in item["content"]] == ["input_image", "input_audio"]
    assert of_type(events, "response.done")[-1]["response"]["status"] == "completed"
    message = camera.session.items.render("", ()).messages[-2]
    assert message.parts[0] == part


def test_a_model_without_eyes_learns_nothing_of_what_was_answered_without_it() -> None:
    """Else it answers "Who wrote Hamlet?" as the question about crossing was answered."""
    script = scripted("Can I cross now?", "Tell me about the sea.")
    camera = Camera(script=script)
    camera.watch(8_000)
    for question in ("Can I cross now?", "Tell me about the sea."):
        asked(camera, question)
        camera.watch(10_000)
    assert NOT_A_GUIDE in camera.said()
    context = camera.session.items.render("", ()).messages
    assert [m.role for m in context][-2:] == ["user", "assistant"]
    told = [p.text for m in context for p in m.parts if isinstance(p, TextPart)]
    assert NOT_A_GUIDE not in told
    assert sum(message.role == "user" for message in context) == 1
    shown = camera.send("conversation.item.retrieve", item_id=camera.session.items.last_id)
    assert shown[-1]["item"]["role"] == "assistant"


@pytest.mark.parametrize(
    ("heard", "expected"),
    [
        ("What is in front of me?", "chair"),
        ("Please repeat that.", "I said"),
        ("Be quiet.", "I will be quiet"),
    ],
)
def test_a_spoken_command_is_carried_out_instead_of_answered(heard: str, expected: str) -> None:
    camera = Camera(script=scripted(heard))
    camera.watch(10_000)
    before = len(camera.said())
    events = asked(camera, heard)
    kinds = [
        (e["response"]["metadata"] or {}).get("omni_frame_ms")
        for e in of_type(events, "response.created")
    ]
    assert len(kinds) == 1
    assert kinds[0] is not None, "the model answered a command"
    assert expected in camera.said()[before]
    guesses = {c.response_id for c in camera.commands_of(Speculate)}
    assert guesses <= {c.response_id for c in camera.commands_of(Cancel)}


def test_a_plain_question_is_answered_from_what_was_seen_not_by_the_model() -> None:
    camera = Camera(script=scripted("Is there a dog?"))
    camera.watch(10_000)
    asked(camera, "Is there a dog?")
    assert camera.said()[-1] == "I do not see a dog. I may have missed it."
    assert not camera.commands_of(Respond)


@pytest.mark.parametrize("is_native", [False, True])
def test_whether_it_is_safe_to_cross_is_never_left_to_a_model(is_native: bool) -> None:
    script = scripted("Is it safe to cross?")
    camera = Camera(script=script, session={"has_native_sight": is_native})
    camera.watch(3_000)
    asked(camera, "Is it safe to cross?")
    assert "not a mobility aid" in camera.said()[-1]


def test_a_written_question_is_declined_or_answered_as_a_spoken_one() -> None:
    camera = Camera(ROOM)
    camera.watch(10_000)
    for question, expected in (
        ("Is the traffic light green?", "not a mobility aid"),
        ("Are there stairs?", "I cannot see steps"),
        ("Is there a dog?", "I do not see a dog."),
        ("What is in front of me?", "chair"),
    ):
        camera.say(question)
        camera.send("response.create")
        camera.finish()
        assert expected in camera.said()[-1], question
        camera.wait(6_000)
        camera.watch(1_000)
    assert not camera.commands_of(Respond)
    camera.say("Tell me a joke.")
    camera.send("response.create")
    camera.finish()
    (respond,) = camera.commands_of(Respond)
    assert respond.conversation is None
    asked_ = [m for m in camera.session.items.render("", ()).messages if m.role == "user"]
    picture, words_ = asked_[-1].parts
    assert isinstance(picture, MediaPart)
    assert words_ == TextPart("Tell me a joke.")


def test_an_answer_that_a_warning_cut_off_is_given_again() -> None:
    scenes = (ROOM,) * 42 + (Scene(at_ms=0, things=(CHAIR, CAR)),) * 4 + (ROOM,)
    camera = Camera(*scenes)
    camera.watch(10_000)
    camera.say("Is it safe to cross?")
    camera.send("response.create")
    camera.step(4)
    camera.watch(8_000)
    kinds = camera.kinds()
    assert "hazard" in kinds
    assert [text for text in camera.said() if "not a mobility aid: please" in text.lower()][1:]


def test_a_slow_server_does_not_blame_the_camera() -> None:
    camera = Camera(ROOM)
    camera.watch(8_000)
    for _ in range(60):  # frames come, and none is looked at
        camera.send("omni.frame.append", image=FRAME, taken_ms=camera.now_ms)
        camera.wait(250)
    camera.finish()
    assert any("falling behind" in text for text in camera.said())
    assert not any("has stopped" in text for text in camera.said())


def test_the_model_is_told_of_its_listener_only_while_describing() -> None:
    camera = Camera(ROOM)
    assert GUIDE in camera.commands_of(Edit)[-1].conversation.instructions
    off = {"type": "realtime", "omni": {"describe": None}}
    shown = camera.send("session.update", session=off)[-1]["session"]["instructions"]
    assert GUIDE not in camera.commands_of(Edit)[-1].conversation.instructions
    assert GUIDE not in shown


@pytest.mark.parametrize("is_native", [False, True])
def test_only_a_model_without_eyes_is_told_of_brackets(is_native: bool) -> None:
    camera = Camera(ROOM, session={"has_native_sight": is_native})
    instructions = camera.commands_of(Edit)[-1].conversation.instructions
    assert (BRACKETS in instructions) is not is_native
    assert NO_JUDGEMENT in instructions


def test_quiet_by_voice_is_shown_in_the_session() -> None:
    camera = Camera(script=scripted("Be quiet."))
    camera.watch(10_000)
    events = asked(camera, "Be quiet.")
    (updated,) = of_type(events, "session.updated")
    assert updated["session"]["omni"]["describe"]["quiet"] is True
    camera.send("omni.describe.command", command="resume")
    assert of_type(camera.events, "session.updated")[-1]["session"]["omni"]["describe"] == {
        "quiet": False
    }


def test_a_key_does_what_the_voice_does_and_stop_silences() -> None:
    camera = Camera(ROOM)
    camera.watch(10_000)
    camera.send("omni.describe.command", command="front")
    assert "chair" in camera.said()[-1]
    camera.step(2)
    events = camera.send("omni.describe.command", command="stop")
    assert types(events)[0] == "omni.output_audio.stop"
    assert of_type(events, "response.done")[0]["response"]["status"] == "cancelled"


def test_text_is_looked_for_when_asked() -> None:
    camera = Camera(ROOM)
    camera.watch(10_000)
    camera.send("omni.describe.command", command="read")
    camera.finish()
    assert camera.commands_of(Look)[-1].wants_text


def test_a_turn_without_words_gets_an_empty_answer() -> None:
    camera = Camera(script=Script(transcripts=("",), scenes=(ROOM,)))
    camera.watch(8_000)
    events = asked(camera, "")
    done = of_type(events, "response.done")
    assert [e["response"]["output"] for e in done] == [[]]


def test_a_warning_during_a_question_leaves_the_question_answered() -> None:
    scenes = (ROOM,) * 8 + (Scene(at_ms=0, things=(CHAIR, CAR)),)
    script = Script(
        transcripts=("Tell me about the sea.",), scenes=scenes, answers=(Answer(text="A chair."),)
    )
    camera = Camera(script=script)
    camera.watch(2_000)
    camera.audio(words(800), steps=1)
    for _ in range(6):
        camera.send("omni.frame.append", image=FRAME, taken_ms=camera.now_ms)
        camera.step(1)
        camera.audio(words(192), steps=1)
    assert "hazard" in camera.kinds()
    camera.audio(silence(1_200), steps=1)
    camera.finish()
    camera.wait(4_000)
    camera.finish()
    assert camera.kinds()[:3] == ["framing", "hazard", "answer"]
    assert of_type(camera.events, "response.done")[-1]["response"]["status"] == "completed"


@pytest.mark.parametrize("waits", [False, True])
def test_a_turn_committed_by_hand_may_be_a_command_too(waits: bool) -> None:
    camera = Camera(script=scripted("What is in front of me?", "Tell me about the sea."))
    set_detection(camera)  # none: the client commits
    camera.watch(10_000)
    for expected in ("change", "answer"):
        camera.audio(tone(900))
        camera.send("input_audio_buffer.commit")
        if waits:
            camera.finish()
        camera.send("response.create")
        camera.finish()
        camera.wait(200)
        camera.finish()
        metadata = of_type(camera.events, "response.created")[-1]["response"]["metadata"]
        assert ("omni_frame_ms" in metadata) == (expected == "change")


def test_a_model_with_eyes_of_its_own_describes_the_scene() -> None:
    script = Script(scenes=(ROOM,), answers=(Answer(text="A quiet room with one chair."),))
    camera = Camera(script=script, session={"has_native_sight": True})
    camera.watch(20_000)
    (respond,) = camera.commands_of(Respond)
    picture, prompt = respond.conversation.messages[-1].parts
    assert isinstance(picture, MediaPart)
    assert "camera shows" in prompt.text
    assert camera.kinds() == ["framing", "change"]
    done = of_type(camera.events, "response.done")[-1]["response"]
    assert done["output"][0]["content"][0]["transcript"] == "A quiet room with one chair."
    # What it was asked is nobody's message: only what it said stays.
    roles = [message.role for message in camera.session.items.render("", ()).messages]
    assert roles == ["assistant"]


# --- Writing, for a screen reader ------------------------------------------------------------


def in_writing(*scenes: Scene) -> Camera:
    camera = Camera(*scenes)
    camera.send("session.update", session={"type": "realtime", "output_modalities": ["text"]})
    return camera


def test_written_descriptions_come_once_as_spoken_ones_do() -> None:
    camera = in_writing(ROOM)
    camera.watch(30_000)
    assert [text for text in camera.said() if text.startswith("Not a mobility aid")] == [NOTICE]
    assert len(camera.said()) == 2
    assert "chair" in camera.said()[1].lower()


def test_what_is_being_read_is_left_its_time_unless_there_is_a_warning() -> None:
    camera = in_writing(ROOM, *(ROOM,) * 11, Scene(at_ms=0, things=(CHAIR, DOG)))
    camera.watch(20_000)
    begun = [event for event in camera.events if event["type"] == "response.created"]
    assert len(begun) == 3
    texts = camera.said()
    starts_ms = [int(event["response"]["metadata"]["omni_frame_ms"]) for event in begun]
    for text, start_ms, next_ms in zip(texts, starts_ms, starts_ms[1:], strict=False):
        assert next_ms - start_ms >= READ_MS_PER_WORD * len(text.split())
    warned = in_writing(ROOM, ROOM, ROOM, Scene(at_ms=0, things=(CAR,)))
    warned.watch(2_500)
    assert warned.kinds()[:2] == ["framing", "hazard"]
    notice, warning = of_type(warned.events, "response.created")[:2]
    frame_ms = [int(e["response"]["metadata"]["omni_frame_ms"]) for e in (notice, warning)]
    assert frame_ms[1] - frame_ms[0] < READ_MS_PER_WORD * len(NOTICE.split()), "it does not wait"
