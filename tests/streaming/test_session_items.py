"""Items that clients bring, retrieve and cut, and the limits they meet."""

from __future__ import annotations

import base64
import json
from typing import Any

import cv2
import numpy as np
import pytest
from omni_streaming.conversation import MAX_HISTORY_CHARS, MAX_HISTORY_IMAGES
from omni_streaming.send_queue import SendQueue

from omni.config import Config, EngineConfig, ServerConfig
from omni.scripted import Script
from omni.types import (
    Commit,
    Discard,
    Edit,
    Feed,
    MediaPart,
    Open,
    Respond,
    TextPart,
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


def user_item(**part: object) -> dict[str, Any]:
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


PNG = base64.b64encode(cv2.imencode(".png", np.full((16, 16, 3), 90, np.uint8))[1]).decode()


def user_image(url: str, **more: str) -> dict[str, Any]:
    return user_item(type="input_image", image_url=url, **more)


def test_an_image_is_part_of_the_message_and_is_not_repeated() -> None:
    driver = Driver()
    item = user_image(f"data:image/png;base64,{PNG}", detail="low")
    item["content"].append({"type": "input_text", "text": "What is this?"})
    created = driver.send("conversation.item.create", item=item)
    assert types(created) == ITEM
    assert created[0]["item"]["content"] == [
        {"type": "input_image"},
        {"type": "input_text", "text": "What is this?"},
    ]
    (message,) = driver.commands_of(Edit)[-1].conversation.messages
    picture, text = message.parts
    assert isinstance(picture, MediaPart)
    assert (picture.kind, picture.is_small) == ("image", True)
    assert picture.data == base64.b64decode(PNG)
    assert text == TextPart("What is this?")


def test_images_sent_under_one_item_id_are_told_apart() -> None:
    driver = Driver()
    for _ in range(2):
        item = user_image(f"data:image/png;base64,{PNG}") | {"id": "mine"}
        driver.send("conversation.item.create", item=item)
        driver.send("conversation.item.delete", item_id="mine")
    edits = [edit.conversation.messages for edit in driver.commands_of(Edit)]
    ids = [message[0].parts[0].media_id for message in edits if message]  # type: ignore[union-attr]
    assert len(set(ids)) == 2


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://example.org/cat.jpg", "never fetched"),
        ("cat.jpg", "never fetched"),
        ("data:text/plain;base64,aGk=", "'text/plain'"),
        (f"data:image/png,{PNG}", "not base64"),
        ("data:image/png;base64,%%%", "not valid base64"),
        ("data:image/png;base64,aGVsbG8=", "expected a JPEG, PNG, WebP or GIF"),
        (f"data:image/png;base64,{PNG[:40]}", "ends too early"),
    ],
)
def test_a_bad_image_is_refused_with_the_reason(url: str, reason: str) -> None:
    driver = Driver()
    error = driver.send("conversation.item.create", item=user_image(url))[0]["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "item.content[0].image_url")
    assert reason in error["message"]
    assert len(driver.session.items) == 0


def test_an_image_is_known_by_its_content_whatever_it_calls_itself() -> None:
    driver = Driver()
    item = user_image(f"data:image/jpeg;base64,{PNG}")
    assert types(driver.send("conversation.item.create", item=item)) == ITEM


def test_the_oldest_images_leave_the_context_beyond_the_limit() -> None:
    driver = Driver()
    for _ in range(MAX_HISTORY_IMAGES + 3):
        item = user_image(f"data:image/png;base64,{PNG}")
        item["content"].append({"type": "input_text", "text": "What is this?"})
        driver.send("conversation.item.create", item=item)
    messages_ = driver.commands_of(Edit)[-1].conversation.messages
    assert [len(message.parts) for message in messages_] == [1] * 3 + [2] * MAX_HISTORY_IMAGES


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
    error = response["status_details"]["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "context_length_exceeded")
    assert error["message"].startswith("About ")
    assert "the context has room for 150 beside an answer" in error["message"]
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


def code_of(driver: Driver, type_: str, **fields: object) -> tuple[str, str | None]:
    """(code, param) of the one error that an event causes."""
    events = driver.send(type_, **fields)
    assert types(events) == ["error"]
    return events[0]["error"]["code"], events[0]["error"]["param"]


def test_a_full_buffer_says_so_once_and_drops_what_comes() -> None:
    driver = Driver(config=Config(server=ServerConfig(max_buffer_s=1)))
    set_detection(driver)
    second = base64.b64encode(silence(700)).decode()
    assert driver.send("input_audio_buffer.append", audio=second) == []
    refused = code_of(driver, "input_audio_buffer.append", audio=second)
    assert refused == ("input_audio_buffer_full", "audio")
    assert driver.send("input_audio_buffer.append", audio=second) == []
    driver.send("input_audio_buffer.commit")
    assert sum(len(f.samples) for f in driver.commands_of(Feed)) <= 16 * 700
    assert driver.send("input_audio_buffer.append", audio=second) == []


def test_faults_of_items_have_their_codes() -> None:
    driver = Driver()
    create = "conversation.item.create"
    text = user_item(type="input_text", text="hello")
    assert code_of(driver, create, item=text, previous_item_id="nothing") == (
        "invalid_value",
        "previous_item_id",
    )
    assert code_of(driver, create, item=user_item(type="input_audio")) == (
        "missing_required_parameter",
        "item.content[0].audio",
    )
    odd = base64.b64encode(b"odd").decode()
    assert code_of(driver, create, item=user_item(type="input_audio", audio=odd)) == (
        "invalid_value",
        "item.content[0].audio",
    )
    assert code_of(driver, create, item=user_item(type="input_audio", audio="!")) == (
        "invalid_value",
        "item.content[0].audio",
    )
    driver.send(create, item={**text, "id": "mine"})
    assert code_of(driver, create, item={**text, "id": "mine"}) == (
        "item_create_duplicate_item_id",
        "item.id",
    )
    truncate = {"item_id": "mine", "content_index": 0, "audio_end_ms": 0}
    assert code_of(driver, "conversation.item.truncate", **truncate) == ("invalid_value", "item_id")
    assert len(driver.session.items) == 1


def test_a_message_longer_than_the_limit_is_refused() -> None:
    driver = Driver(config=Config(server=ServerConfig(max_append_bytes=1000)))
    too_long = base64.b64encode(bytes(1000)).decode()
    assert code_of(driver, "input_audio_buffer.append", audio=too_long) == (
        "invalid_value",
        "audio",
    )


def test_a_response_takes_items_by_reference_and_by_value() -> None:
    driver = Driver()
    driver.send(
        "conversation.item.create", item={**user_item(type="input_text", text="one"), "id": "mine"}
    )
    driver.say("two")
    audio = base64.b64encode(tone(300)).decode()
    driver.send(
        "response.create",
        response={
            "conversation": "none",
            "tools": [{"name": "look"}],
            "input": [
                {"type": "item_reference", "id": "mine"},
                {"type": "function_call", "name": "look", "arguments": "{}"},
                user_item(type="input_audio", audio=audio),
            ],
        },
    )
    aside = driver.commands_of(Respond)[0]
    assert [role for role, _ in messages(aside)] == ["user", "assistant", "user"]
    assert [t.name for t in aside.conversation.tools] == ["look"]
    # Its audio was heard before the response was asked for.
    assert [type(c) for c in driver.commands[-3:]] == [Feed, Commit, Respond]
    unknown = {"input": [{"type": "item_reference", "id": "nothing"}]}
    assert code_of(driver, "response.create", response=unknown) == (
        "invalid_value",
        "response.input[0].id",
    )


def test_a_secrets_session_is_there_from_the_start() -> None:
    driver = Driver(initial={"type": "realtime", "instructions": "Be brief."})
    assert driver.events[0]["session"]["instructions"] == "Be brief."
    assert driver.commands_of(Open)[0].conversation.instructions == "Be brief."


def test_an_item_of_emoji_is_repeated_whole() -> None:
    driver = Driver()
    queue = SendQueue(2**24, driver.new_id)
    text = "\U0001f600" * 125_000
    for event in driver.send(
        "conversation.item.create", item=user_item(type="input_text", text=text)
    ):
        queue.put(event)
        sent = json.loads(queue.get() or "")
        assert sent["item"]["content"] == [{"type": "input_text", "text": text}]


def test_changes_that_come_together_are_one_edit() -> None:
    driver = Driver()
    for index in range(100):
        made = {**user_item(type="input_text", text=str(index)), "id": f"mine_{index}"}
        driver.session.receive(
            json.dumps({"type": "conversation.item.create", "item": made}), driver.now_ms
        )
    assert driver.session.commands(edit=False) == []
    driver.session.receive(json.dumps({"type": "response.create"}), driver.now_ms)
    edit, respond = driver.session.commands(edit=False)
    assert isinstance(edit, Edit)
    assert isinstance(respond, Respond)
    assert [t for _, t in messages(edit)] == [str(i) for i in range(100)]
    assert driver.session.commands() == []


def test_the_oldest_items_make_room_for_text_that_is_too_much() -> None:
    driver = Driver()
    text = "x" * (MAX_HISTORY_CHARS // 40)
    ids = []
    for _ in range(40):
        created = driver.send(
            "conversation.item.create", item=user_item(type="input_text", text=text)
        )
        assert types(created) == ITEM
        ids.append(created[0]["item"]["id"])
    last = driver.send("conversation.item.create", item=user_item(type="input_text", text="x" * 20))
    assert types(last) == [*ITEM, "conversation.item.deleted"]
    assert last[-1]["item_id"] == ids[0]
    assert driver.send("conversation.item.retrieve", item_id=ids[1])[0]["item"]["id"] == ids[1]
    deleted = driver.send("conversation.item.delete", item_id=ids[2])
    assert types(deleted) == ["conversation.item.deleted"]
    again = driver.send("conversation.item.create", item=user_item(type="input_text", text=text))
    assert types(again) == ITEM, "what was deleted has made room"
