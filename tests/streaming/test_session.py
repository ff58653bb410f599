"""Sequences of whole turns: what a client sees, in the protocol's order."""

from __future__ import annotations

import base64

import pytest

from omni.config import Config, ServerConfig
from omni.scripted import Answer, Call, Script
from omni.types import (
    Close,
    Discard,
    Edit,
    Failed,
    Feed,
    Respond,
    ScoreTurn,
    Speculate,
)
from tests.streaming.driver import (
    DONE,
    ITEM,
    LONG,
    SPOKEN,
    TURN_END,
    Driver,
    messages,
    of_type,
    set_detection,
    silence,
    speak,
    tone,
    types,
)


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


# --- Text, manual turns, tools, out of band ------------------------------------------------------


def test_a_manual_commit_makes_an_item_and_no_response() -> None:
    driver = Driver()
    set_detection(driver)
    events = driver.audio(tone(500))
    assert events == []
    events = driver.send("input_audio_buffer.commit")
    assert types(events) == ["input_audio_buffer.committed", *ITEM]
    driver.send("response.create")
    driver.finish()
    done = of_type(driver.events, "response.done")[0]["response"]
    assert done["output"][0]["content"][0]["transcript"] == "You said: hello there"
    assert driver.commands_of(Speculate, ScoreTurn) == []


def test_a_commit_of_less_than_100_ms_is_refused() -> None:
    driver = Driver()
    set_detection(driver)
    driver.audio(tone(80))
    error = driver.send("input_audio_buffer.commit", event_id="mine")[0]["error"]
    assert (error["code"], error["event_id"]) == ("input_audio_buffer_commit_empty", "mine")
    assert "80ms" in error["message"] or "79ms" in error["message"]


def test_a_cleared_buffer_is_forgotten() -> None:
    driver = Driver()
    set_detection(driver)
    driver.audio(tone(500))
    assert types(driver.send("input_audio_buffer.clear")) == ["input_audio_buffer.cleared"]
    assert len(driver.commands_of(Discard)) == 1
    error = driver.send("input_audio_buffer.commit")[0]["error"]
    assert error["code"] == "input_audio_buffer_commit_empty"


def test_a_tool_is_called_answered_and_spoken_about() -> None:
    driver = Driver(
        Script(
            answers=(
                Answer(text="Let me look.", calls=(Call("look", '{"at":"sky"}'),)),
                Answer(text="It is blue."),
            )
        )
    )
    tool = {"type": "function", "name": "look", "parameters": {"type": "object"}}
    driver.send(
        "session.update",
        session={"type": "realtime", "tools": [tool], "output_modalities": ["text"]},
    )
    driver.say("What colour is the sky?")
    driver.send("response.create")
    events = driver.finish()
    assert types(events)[-8:] == [
        "response.output_item.done",
        "response.output_item.added",
        "conversation.item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "conversation.item.done",
        "response.output_item.done",
        "response.done",
    ]
    call = events[-1]["response"]["output"][1]
    assert (call["type"], call["name"], call["arguments"]) == (
        "function_call",
        "look",
        '{"at":"sky"}',
    )
    driver.send(
        "conversation.item.create",
        item={"type": "function_call_output", "call_id": call["call_id"], "output": "blue"},
    )
    context = driver.commands_of(Edit)[-1].conversation
    said, result = context.messages[-2:]
    assert [type(p).__name__ for p in said.parts] == ["TextPart", "CallPart"]
    assert said.response_id == events[-1]["response"]["id"]
    assert result.role == "tool"
    driver.send("response.create")
    assert driver.finish()[-1]["response"]["output"][0]["content"][0]["text"] == "It is blue."


def test_too_many_unanswered_calls_fail_the_response() -> None:
    driver = Driver(
        Script(answers=(Answer(calls=(Call("look"),) * 3),)),
        Config(server=ServerConfig(max_tool_calls=2)),
    )
    tool = {"type": "function", "name": "look"}
    driver.send("session.update", session={"type": "realtime", "tools": [tool]})
    driver.send("response.create")
    response = driver.finish()[-1]["response"]
    assert response["status"] == "failed"
    assert response["status_details"]["error"]["code"] == "too_many_tool_calls"
    assert len(response["output"]) == 2


def test_a_response_out_of_band_runs_beside_the_active_one_and_leaves_no_trace() -> None:
    driver = Driver(Script(answers=(LONG, Answer(text="an aside"))))
    driver.say("count")
    driver.send("response.create")
    driver.step(3)
    driver.send(
        "response.create",
        response={
            "conversation": "none",
            "metadata": {"topic": "aside"},
            "output_modalities": ["text"],
            "input": [
                {
                    "type": "message",
                    "role": "user",
                    "content": [{"type": "input_text", "text": "only this"}],
                }
            ],
        },
    )
    events = driver.finish()
    done = {e["response"]["conversation_id"]: e["response"] for e in of_type(events, DONE[-1])}
    assert len(done) == 2
    assert done[None]["metadata"] == {"topic": "aside"}
    aside_id = done[None]["output"][0]["id"]
    assert aside_id not in {e["item"]["id"] for e in of_type(events, "conversation.item.added")}
    aside = driver.commands_of(Respond)[1]
    assert aside.out_of_band
    assert messages(aside) == [("user", "only this")]
    assert "an aside" not in str(driver.commands_of(Edit)[-1])


def test_a_second_response_and_a_needless_cancel_are_refused() -> None:
    driver = Driver()
    error = driver.send("response.cancel", event_id="c1")[0]["error"]
    assert error["code"] == "response_cancel_not_active"
    assert error["message"] == "Cancellation failed: no active response found"
    driver.send("response.create")
    error = driver.send("response.create", event_id="c2")[0]["error"]
    assert error["code"] == "conversation_already_has_active_response"
    assert error["event_id"] == "c2"


def test_a_client_cancels_the_answer() -> None:
    driver = Driver(Script(answers=(LONG,)))
    driver.send("response.create")
    driver.step(3)
    events = driver.send("response.cancel")
    assert types(events) == DONE
    assert events[-1]["response"]["status_details"]["reason"] == "client_cancelled"
    assert driver.finish() == []


def test_a_cancelled_answer_reports_what_it_has_used() -> None:
    driver = Driver(Script(answers=(LONG,)))
    driver.send("session.update", session={"type": "realtime", "instructions": "Be very brief."})
    driver.say("tell me all")
    driver.send("response.create")
    driver.step(4)
    usage = driver.send("response.cancel")[-1]["response"]["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (6, 4, 10)
    (words,) = [
        part["transcript"].split() for part in driver.events[-1]["response"]["output"][0]["content"]
    ]
    assert len(words) == 4
    driver.send("response.create")
    usage = driver.send("response.cancel")[-1]["response"]["usage"]
    assert usage["total_tokens"] == 0  # nothing of it was begun


def test_a_failed_answer_reports_what_it_has_used() -> None:
    driver = Driver(Script(answers=(Answer(text="one two three", failure="server_error"),)))
    driver.send("session.update", session={"type": "realtime", "instructions": "Be very brief."})
    driver.say("tell me all")
    driver.send("response.create")
    usage = driver.finish()[-1]["response"]["usage"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (6, 3)


def test_a_cut_answer_is_incomplete() -> None:
    driver = Driver(Script(answers=(LONG,)))
    driver.send("response.create", response={"max_output_tokens": 3})
    response = driver.finish()[-1]["response"]
    assert response["status"] == "incomplete"
    assert response["status_details"]["reason"] == "max_output_tokens"
    assert response["max_output_tokens"] == 3
    assert response["output"][0]["content"][0]["transcript"] == "one two three"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("server_error", "server_error"),
        ("rate_limit_exceeded", "server_error"),
        ("context_length_exceeded", "invalid_request_error"),
    ],
)
def test_a_failed_answer_is_seen_and_is_no_error_event(code: str, kind: str) -> None:
    driver = Driver(Script(answers=(Answer(failure=code),)))
    driver.send("response.create")
    events = driver.finish()
    assert not of_type(events, "error")
    response = events[-1]["response"]
    assert response["status"] == "failed"
    error = response["status_details"]["error"]
    assert (error["type"], error["code"]) == (kind, code)
    assert response["output"][0]["content"][0]["transcript"].startswith("Sorry")
    driver.say("go on")
    assert messages(driver.commands_of(Edit)[-1]) == [("user", "go on")]


def test_a_response_keeps_the_settings_of_its_start() -> None:
    driver = Driver(Script(answers=(LONG,)))
    driver.send("response.create")
    driver.step(2)
    driver.send("session.update", session={"type": "realtime", "output_modalities": ["text"]})
    events = driver.finish()
    assert of_type(events, "response.output_audio.delta")
    assert events[-1]["response"]["output_modalities"] == ["audio"]


def test_telephone_audio_goes_both_ways() -> None:
    driver = Driver()
    law = {"type": "audio/pcmu"}
    audio = {"input": {"format": law, "turn_detection": None}, "output": {"format": law}}
    driver.send("session.update", session={"type": "realtime", "audio": audio})
    driver.send("input_audio_buffer.append", audio=base64.b64encode(b"\xff" * 8000).decode())
    driver.send("input_audio_buffer.commit")
    assert 15_900 <= sum(len(f.samples) for f in driver.commands_of(Feed)) <= 16_000
    driver.send("response.create")
    events = driver.finish()
    size = sum(
        len(base64.b64decode(e["delta"])) for e in of_type(events, "response.output_audio.delta")
    )
    assert size == 3 * 240 * 8  # "I am listening.": silence holds no words


# --- Transcripts ---------------------------------------------------------------------------------


def test_transcripts_are_sent_only_when_asked_for() -> None:
    driver = Driver()
    speak(driver)
    driver.finish()
    transcription = "conversation.item.input_audio_transcription."
    assert not [e for e in driver.events if e["type"].startswith(transcription)]
    item_id = of_type(driver.events, "input_audio_buffer.committed")[0]["item_id"]
    shown = driver.send("conversation.item.retrieve", item_id=item_id)[0]["item"]
    assert shown["content"][0]["transcript"] is None


def test_a_transcript_follows_its_item_and_its_deltas_concatenate() -> None:
    driver = Driver(Script(transcripts=("what is the time in Rome",)))
    transcription = {"model": "whisper-1"}
    driver.send(
        "session.update",
        session={"type": "realtime", "audio": {"input": {"transcription": transcription}}},
    )
    speak(driver, 2500)
    driver.finish()
    name = "conversation.item.input_audio_transcription."
    deltas = of_type(driver.events, name + "delta")
    completed = of_type(driver.events, name + "completed")
    assert len(completed) == 1
    assert "".join(e["delta"] for e in deltas) == completed[0]["transcript"]
    assert completed[0]["usage"]["type"] == "duration"
    kinds = types(driver.events)
    assert kinds.index("conversation.item.done") < kinds.index(name + "delta")
    item_id = completed[0]["item_id"]
    shown = driver.send("conversation.item.retrieve", item_id=item_id)[0]["item"]
    assert shown["content"][0]["transcript"] == "what is the time in Rome"


def test_live_words_are_sent_while_the_user_speaks_when_delay_is_given() -> None:
    driver = Driver(Script(transcripts=("what is the time in Rome",)))
    transcription = {"model": "whisper-1", "delay": "low"}
    driver.send(
        "session.update",
        session={"type": "realtime", "audio": {"input": {"transcription": transcription}}},
    )
    events = driver.audio(tone(2000), steps=1)
    words_so_far = "".join(
        e["delta"] for e in events if e["type"].endswith("input_audio_transcription.delta")
    )
    assert words_so_far.startswith("what is the")


def test_a_transcription_session_transcribes_and_never_answers() -> None:
    driver = Driver(intent="transcription")
    assert driver.events[0]["session"]["type"] == "transcription"
    speak(driver)
    driver.finish()
    kinds = types(driver.events)
    assert kinds[-1] == "conversation.item.input_audio_transcription.completed"
    assert not [k for k in kinds if k.startswith("response.")]
    assert driver.send("response.create")[0]["error"]["code"] == "invalid_value"


# --- Time and ends -------------------------------------------------------------------------------


def test_a_silent_user_is_spoken_to_after_the_idle_timeout() -> None:
    driver = Driver()
    set_detection(driver, type="server_vad", idle_timeout_ms=5000)
    driver.say("hello")
    driver.send("response.create")
    driver.finish()  # three words of 240 ms
    assert driver.audio(silence(5000)) == []
    events = driver.audio(silence(1000))
    assert types(events) == [
        "input_audio_buffer.timeout_triggered",
        "input_audio_buffer.committed",
        *ITEM,
        "response.created",
    ]
    assert events[0]["audio_end_ms"] - events[0]["audio_start_ms"] in range(4900, 5100)
    driver.finish()


def test_an_old_session_says_so_and_ends() -> None:
    driver = Driver(config=Config(server=ServerConfig(max_session_age_s=60)))
    driver.send("response.create")
    events = driver.wait(60_000, tick_ms=1000)
    assert types(events) == ["response.done", "error"]
    assert events[-1]["error"]["code"] == "session_expired"
    assert driver.session.close_code == (1001, "session expired")


def test_a_client_that_says_nothing_for_long_is_let_go() -> None:
    driver = Driver(config=Config(server=ServerConfig(max_idle_s=10)))
    driver.wait(9_000, tick_ms=500)
    driver.send("input_audio_buffer.clear")
    driver.wait(9_000, tick_ms=500)
    assert driver.session.close_code is None
    driver.wait(2_000, tick_ms=500)
    assert driver.session.close_code == (1001, "idle")


def test_a_failed_session_ends_its_responses_and_says_why() -> None:
    driver = Driver()
    driver.send("response.create")
    driver.handle(Failed("sess_1", None, "server_error", "out of memory"))
    assert types(driver.events)[-2:] == ["response.done", "error"]
    assert driver.session.close_code == (1011, "internal error")


def test_closing_ends_what_is_open_and_is_idempotent() -> None:
    driver = Driver(Script(answers=(LONG,)))
    driver.send("response.create")
    driver.step(2)
    driver.session.close()
    driver.session.close()
    driver.pump()
    assert driver.events[-1]["response"]["status"] == "cancelled"
    assert isinstance(driver.commands[-1], Close)
    assert len(driver.commands_of(Close)) == 1
    assert driver.send("response.create") == []


def test_old_items_make_room() -> None:
    driver = Driver(config=Config(server=ServerConfig(max_items=3)))
    for text in ("a", "b", "c", "d"):
        driver.say(text)
    assert len(of_type(driver.events, "conversation.item.deleted")) == 1
    assert [t for _, t in messages(driver.commands_of(Edit)[-1])] == ["b", "c", "d"]


def test_nothing_follows_the_end_of_a_session() -> None:
    driver = Driver(config=Config(server=ServerConfig(max_session_age_s=60)))
    driver.wait(60_000, tick_ms=1000)
    assert driver.send("response.create") == []
    assert driver.audio(tone(600)) == []
