"""Items that clients bring, retrieve and cut, and the limits they meet."""

from __future__ import annotations

import base64
import json

from omni.config import Config, EngineConfig
from omni.scripted import Script
from omni.types import (
    Discard,
    Edit,
)
from tests.streaming.driver import (
    ITEM,
    Driver,
    messages,
    of_type,
    set_detection,
    silence,
    tone,
    types,
)


def user_item(**part: object) -> dict[str, object]:
    return {"type": "message", "role": "user", "content": [part]}


def test_audio_inside_an_item_is_heard_and_can_be_retrieved() -> None:
    driver = Driver(Script(transcripts=("from the item",)))
    audio = base64.b64encode(tone(500)).decode()
    created = driver.send(
        "conversation.item.create", item=user_item(type="input_audio", audio=audio)
    )
    assert types(created) == ITEM
    assert "audio" not in created[0]["item"]["content"][0]
    driver.finish()
    driver.send("response.create")
    driver.finish()
    done = driver.events[-1]["response"]
    assert done["output"][0]["content"][0]["transcript"] == "You said: from the item"
    item_id = created[0]["item"]["id"]
    retrieved = driver.send("conversation.item.retrieve", item_id=item_id)[0]["item"]
    assert len(base64.b64decode(retrieved["content"][0]["audio"])) == len(tone(500))


def test_a_retrieved_item_fits_in_a_frame_however_long_its_audio() -> None:
    driver = Driver()
    set_detection(driver)
    audio = base64.b64encode(silence(40_000)).decode()
    driver.send("input_audio_buffer.append", audio=audio)
    item_id = driver.send("input_audio_buffer.commit")[0]["item_id"]
    events = driver.send("conversation.item.retrieve", item_id=item_id)
    assert 900_000 < len(json.dumps(events[0])) < 2**20


def test_images_are_refused_with_a_reason() -> None:
    driver = Driver()
    image = "data:image/png;base64,iVBORw0KGgo="
    error = driver.send(
        "conversation.item.create", item=user_item(type="input_image", image_url=image)
    )[0]["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "item.content[0]")
    assert "not supported" in error["message"]
    assert len(driver.session.items) == 0


def test_an_item_too_large_for_a_frame_is_refused() -> None:
    driver = Driver()
    error = driver.send(
        "conversation.item.create", item=user_item(type="input_text", text="\x00" * 200_000)
    )[0]["error"]
    assert error["code"] == "invalid_value"


def test_a_hundred_items_are_replayed_in_order() -> None:
    driver = Driver()
    previous: str | None = "root"
    for index in range(100):
        item = {**user_item(type="input_text", text=str(index)), "id": f"mine_{index}"}
        events = driver.send("conversation.item.create", item=item, previous_item_id=previous)
        assert types(events) == ITEM
        previous = f"mine_{index}"
    assert [t for _, t in messages(driver.commands_of(Edit)[-1])] == [str(i) for i in range(100)]


def test_a_truncation_beyond_the_audio_is_refused() -> None:
    driver = Driver()
    driver.send("response.create")
    driver.finish()
    item_id = driver.events[-1]["response"]["output"][0]["id"]
    for end_ms, expected in ((721, "error"), (720, "conversation.item.truncated")):
        events = driver.send(
            "conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=end_ms
        )
        assert types(events) == [expected]
    assert (
        driver.send(
            "conversation.item.truncate", item_id="nothing", content_index=0, audio_end_ms=0
        )[0]["error"]["code"]
        == "item_truncate_invalid_item_id"
    )


def test_a_full_context_fails_the_response_when_truncation_is_disabled() -> None:
    driver = Driver(config=Config(engine=EngineConfig(max_context_tokens=200)))
    driver.send("session.update", session={"type": "realtime", "truncation": "disabled"})
    driver.say("word " * 200)
    driver.send("response.create")
    response = driver.events[-1]["response"]
    assert response["status"] == "failed"
    assert response["status_details"]["error"]["code"] == "context_length_exceeded"
    driver.send("session.update", session={"type": "realtime", "truncation": "auto"})
    driver.say("short")
    driver.send("response.create")
    driver.finish()
    assert driver.events[-1]["response"]["status"] == "completed"


def test_turn_detection_can_be_switched_off_and_on_in_mid_turn() -> None:
    driver = Driver()
    driver.audio(tone(500))
    turn_id = of_type(driver.events, "input_audio_buffer.speech_started")[0]["item_id"]
    set_detection(driver)
    driver.audio(tone(300) + silence(900))
    assert not of_type(driver.events, "input_audio_buffer.speech_stopped")
    assert driver.send("input_audio_buffer.commit")[0]["item_id"] == turn_id
    driver.audio(tone(300))
    set_detection(driver, type="server_vad")
    assert len(driver.commands_of(Discard)) == 1
    driver.audio(tone(300) + silence(600))
    driver.finish()
    assert driver.events[-1]["type"] == "response.done"
