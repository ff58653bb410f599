"""Sequences of whole turns: what a client sees, in the protocol's order."""

from __future__ import annotations

import base64

from tests.streaming.driver import Driver, of_type, silence, tone, types

SPOKEN = [
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    "response.output_audio_transcript.delta",
    "response.output_audio.delta",
]
DONE = [
    "response.output_audio.done",
    "response.output_audio_transcript.done",
    "response.content_part.done",
    "conversation.item.done",
    "response.output_item.done",
    "response.done",
]
ITEM = ["conversation.item.added", "conversation.item.done"]
TURN_END = ["input_audio_buffer.speech_stopped", "input_audio_buffer.committed", *ITEM]


def test_session_created_comes_first_and_unprompted() -> None:
    driver = Driver()
    assert types(driver.events) == ["session.created"]
    session = driver.events[0]["session"]
    assert session["audio"]["input"]["turn_detection"]["type"] == "server_vad"
    assert session["expires_at"] == 1_800_000_000


def test_a_text_turn_is_answered_in_order() -> None:
    driver = Driver()
    driver.send("session.update", session={"type": "realtime", "output_modalities": ["text"]})
    driver.say("four words of text")
    driver.send("response.create")
    events = driver.finish()
    assert types(driver.events) == [
        "session.created",
        "session.updated",
        *ITEM,
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "conversation.item.done",
        "response.output_item.done",
        "response.done",
    ]
    deltas = "".join(e["delta"] for e in of_type(events, "response.output_text.delta"))
    assert deltas == "You said: four words of text"
    assert of_type(events, "response.output_text.done")[0]["text"] == deltas
    done = events[-1]["response"]
    assert done["status"] == "completed"
    assert done["output"][0]["content"] == [{"type": "output_text", "text": deltas}]
    assert done["usage"]["output_tokens"] == 6


def test_a_voice_turn_is_answered_in_order() -> None:
    driver = Driver()
    driver.audio(silence(500) + tone(900) + silence(700), steps=1)
    driver.finish()
    assert types(driver.events) == [
        "session.created",
        "input_audio_buffer.speech_started",
        *TURN_END,
        *SPOKEN,
        *(["response.output_audio_transcript.delta", "response.output_audio.delta"] * 3),
        *DONE,
    ]
    started = of_type(driver.events, "input_audio_buffer.speech_started")[0]
    stopped = of_type(driver.events, "input_audio_buffer.speech_stopped")[0]
    committed = of_type(driver.events, "input_audio_buffer.committed")[0]
    assert started["item_id"] == stopped["item_id"] == committed["item_id"]
    assert 150 <= started["audio_start_ms"] <= 250  # onset at 500 ms less 300 ms of padding
    assert 1750 <= stopped["audio_end_ms"] <= 1900  # end at 1400 ms and 400 ms of silence
    audio = b"".join(
        base64.b64decode(e["delta"]) for e in of_type(driver.events, "response.output_audio.delta")
    )
    assert len(audio) == 4 * 240 * 24 * 2
