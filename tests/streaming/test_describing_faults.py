"""Describe mode with clients, clocks and moments that nobody would wish for."""

from __future__ import annotations

import base64
import io

import pytest
from PIL import Image

from omni.scene import Scene, Thing
from omni.scripted import Answer, Script
from omni.types import Look, Respond
from tests.streaming.driver import of_type, set_detection, silence, tone, types, words
from tests.streaming.test_describing import CAR, CHAIR, FRAME, ROOM, Camera

BUS = Thing(label="bus", confidence=0.9, box=(0.2, 0.0, 0.8, 1.0), distance_m=1.0, num_frames=9)
CAR_COMES = Scene(at_ms=0, things=(CHAIR, CAR))
BUS_COMES = Scene(at_ms=0, things=(CHAIR, CAR, BUS))
ON = {"type": "realtime", "omni": {"describe": {}}}
OFF = {"type": "realtime", "omni": {"describe": None}}


def show(camera: Camera, num: int = 1) -> None:
    """Frames are looked at while what is being said goes on, a word for each."""
    for _ in range(num):
        camera.send("omni.frame.append", image=FRAME, taken_ms=camera.now_ms)
        camera.step(1)
        camera.wait(250)


def warned_while_asking(*scenes: Scene) -> Camera:
    """The user asks "What is this?" while a warning is being said."""
    script = Script(
        transcripts=("What is this?",),
        scenes=(ROOM,) * 8 + scenes,
        answers=(Answer(text="A chair."),),
    )
    camera = Camera(script=script)
    camera.watch(2_000)
    camera.audio(words(800), steps=1)
    camera.send("omni.frame.append", image=FRAME, taken_ms=camera.now_ms)
    camera.step(1)
    assert camera.kinds()[-1] == "hazard"
    camera.audio(silence(900))
    camera.step(1)
    return camera


# --- One voice -------------------------------------------------------------------------------


def test_a_second_warning_comes_before_the_answer_that_is_owed() -> None:
    camera = warned_while_asking(CAR_COMES, BUS_COMES)
    while camera.session.playback.remaining_ms or len(camera.kinds()) < 4:
        show(camera)
    assert camera.kinds() == ["framing", "hazard", "hazard", "answer"]
    camera.finish()
    status = [e["response"]["status"] for e in of_type(camera.events, "response.done")]
    assert status == ["completed", "cancelled", "completed", "completed"]


def test_stop_by_key_ends_the_question_that_is_owed_an_answer_too() -> None:
    camera = warned_while_asking(CAR_COMES)
    camera.send("omni.describe.command", command="stop")
    camera.finish()
    camera.wait(1_000)
    assert camera.kinds() == ["framing", "hazard"]
    assert not camera.commands_of(Respond)


def test_a_written_question_ends_a_description_and_is_answered() -> None:
    camera = Camera(script=Script(scenes=(ROOM,), answers=(Answer(text="Paris."),)))
    show(camera)
    camera.step(3)
    assert camera.kinds() == ["framing"]
    camera.say("What is the capital of France?")
    events = camera.send("response.create")
    assert not of_type(events, "error")
    assert types(events)[0] == "omni.output_audio.stop"
    assert of_type(events, "response.done")[0]["response"]["status"] == "cancelled"
    camera.finish()
    assert camera.kinds() == ["framing", "answer"]
    assert of_type(camera.events, "response.done")[-1]["response"]["status"] == "completed"


def test_a_bad_question_leaves_the_description_alone() -> None:
    camera = Camera(ROOM)
    show(camera)
    camera.step(3)
    reference = {"type": "item_reference", "id": "nothing"}
    events = camera.send("response.create", response={"input": [reference]})
    assert types(events) == ["error"]
    assert camera.session.active is not None


def test_a_warning_does_not_give_way_to_a_written_question() -> None:
    camera = Camera(BUS_COMES)
    show(camera)
    assert camera.kinds()[-1] == "hazard"
    camera.say("What is the capital of France?")
    error = camera.send("response.create")[0]["error"]
    assert error["code"] == "conversation_already_has_active_response"


@pytest.mark.parametrize("scene", [ROOM, BUS_COMES])
def test_a_turn_committed_by_hand_is_answered_whatever_is_being_said(scene: Scene) -> None:
    script = Script(
        transcripts=("Tell me about the sea.",), scenes=(scene,), answers=(Answer(text="A chair."),)
    )
    camera = Camera(script=script)
    set_detection(camera)  # none: the button is held while a description begins
    camera.audio(tone(900))
    show(camera)
    camera.step(2)
    assert camera.session.active is not None
    camera.send("input_audio_buffer.commit")
    assert not of_type(camera.send("response.create"), "error")
    camera.finish()
    assert camera.kinds()[-1] == "answer"
    assert of_type(camera.events, "response.done")[-1]["response"]["status"] == "completed"


def test_the_notice_waits_for_the_end_of_what_was_being_said_before() -> None:
    camera = Camera(ROOM)
    show(camera)
    camera.step(12)
    assert camera.kinds() == ["framing"]
    for _ in range(100):
        camera.send("session.update", session=OFF)
        camera.send("session.update", session=ON)
    camera.watch(20_000)
    assert camera.kinds() == ["framing", "framing", "change"]
    notices = of_type(camera.events, "response.created")[:2]
    first, second = (int(e["response"]["metadata"]["omni_frame_ms"]) for e in notices)
    assert second - first >= 2_000, "ten words are still being heard"


def test_the_notice_waits_for_an_answer_that_began_before_describe_mode() -> None:
    camera = Camera(script=Script(scenes=(ROOM,), answers=(Answer(text="word " * 20),)))
    camera.send("session.update", session=OFF)
    camera.say("Tell me a story.")
    camera.send("response.create")
    camera.finish()
    camera.send("session.update", session=ON)
    camera.watch(3_000)
    assert camera.kinds() == [""], "twenty words are heard for 4.8 seconds"
    camera.watch(6_000)
    assert camera.kinds()[1] == "framing"


@pytest.mark.parametrize("image", ["http://10.0.0.1/cam.jpg", "file:///etc/passwd"])
def test_a_frame_is_never_fetched_and_its_sender_is_told(image: str) -> None:
    camera = Camera(ROOM)
    error = camera.send("omni.frame.append", image=image)[0]["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "image")
    assert error["message"].startswith(f"The image is at {image!r}, expected a data URI")
    assert error["message"].endswith("images are never fetched from elsewhere.")


def test_a_still_gif_is_a_frame() -> None:
    pixels, file = Image.new("P", (64, 48)), io.BytesIO()
    pixels.save(file, "GIF")
    camera = Camera(ROOM)
    camera.send("omni.frame.append", image=base64.b64encode(file.getvalue()).decode())
    camera.step(1)
    assert [look.data for look in camera.commands_of(Look)] == [file.getvalue()]


# --- Clocks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("taken_ms", [1e300, -1.7e308, 2.0**60, "NaN", "soon", [1]])
def test_a_time_that_no_clock_shows_is_an_error(taken_ms: object) -> None:
    camera = Camera(ROOM)
    error = camera.send("omni.frame.append", image=FRAME, taken_ms=taken_ms)[0]["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "taken_ms")
    camera.watch(3_000)
    assert camera.kinds() == ["framing"]


@pytest.mark.parametrize("leap_ms", [3_600_000, -3_600_000, 2**52])
def test_a_clock_that_leaps_does_not_make_later_frames_old_for_ever(leap_ms: int) -> None:
    camera = Camera(ROOM)
    camera.watch(10_000)
    camera.send("omni.frame.append", image=FRAME, taken_ms=camera.now_ms + leap_ms)
    camera.watch(20_000)
    look = camera.commands_of(Look)[-1]
    assert camera.now_ms - look.at_ms <= 300
    camera.send("omni.describe.command", command="front")
    assert "chair" in camera.said()[-1]


# --- The end ---------------------------------------------------------------------------------


def test_a_session_that_has_ended_holds_no_pictures() -> None:
    camera = Camera(ROOM)
    camera.watch(1_000)
    camera.send("omni.frame.append", image=FRAME)
    assert camera.session.describing.shown()
    camera.session.close()
    assert not camera.session.describing.shown()
