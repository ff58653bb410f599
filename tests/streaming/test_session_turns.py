"""Speculation, the ends of turns and interruptions, in the protocol's order."""

from __future__ import annotations

import base64
from functools import partial

from omni.config import Config, ServerConfig
from omni.scripted import Script
from omni.types import (
    Cancel,
    Commit,
    Confirm,
    Done,
    Edit,
    Failed,
    Feed,
    Respond,
    ScoreTurn,
    Speculate,
    TextDelta,
    TranscriptDone,
    TurnScore,
    Usage,
)
from tests.streaming.driver import (
    DONE,
    LONG,
    TURN_END,
    Driver,
    messages,
    of_type,
    set_detection,
    silence,
    speak,
    tone,
    types,
    words,
)

# --- Speculation ---------------------------------------------------------------------------------


def test_an_answer_begins_in_the_pause_and_goes_out_when_the_turn_has_ended() -> None:
    driver = Driver()
    driver.audio(tone(600) + silence(300), steps=1)
    assert driver.commands_of(Speculate)
    assert driver.commands_of(Confirm) == []
    assert types(driver.events) == ["session.created", "input_audio_buffer.speech_started"]
    events = driver.audio(silence(200), steps=1)
    assert len(driver.commands_of(Confirm)) == 1
    assert driver.commands_of(Respond, Commit, Cancel) == []
    # Everything that was ready goes out at once, in order.
    assert types(events)[:5] == [*TURN_END, "response.created"]
    assert of_type(events, "response.output_audio.delta")


def test_a_speculation_is_dropped_in_silence_when_the_user_goes_on() -> None:
    driver = Driver()
    driver.audio(tone(600) + silence(250) + tone(600), steps=1)
    dropped = driver.commands_of(Speculate)[0].response_id
    assert [c.response_id for c in driver.commands_of(Cancel)] == [dropped]
    assert types(driver.events) == ["session.created", "input_audio_buffer.speech_started"]
    driver.audio(silence(700), steps=1)
    driver.finish()
    assert len(of_type(driver.events, "response.created")) == 1
    assert dropped not in {e["response"]["id"] for e in of_type(driver.events, "response.created")}
    # The pause was fed after all: the turn's audio has no gap.
    feeds = driver.commands_of(Feed)
    assert sum(len(f.samples) for f in feeds) >= 16 * (600 + 250 + 600)


def test_a_changed_session_drops_the_speculation_and_the_turn_is_still_answered() -> None:
    driver = Driver()
    driver.audio(tone(600) + silence(200))
    driver.send("session.update", session={"type": "realtime", "instructions": "Be brief."})
    driver.audio(silence(400), steps=1)
    driver.finish()
    assert len(driver.commands_of(Cancel)) == 1
    assert driver.commands_of(Confirm) == []
    assert driver.events[-1]["type"] == "response.done"
    assert driver.commands_of(Edit)[0].conversation.instructions == "Be brief."


def test_a_failed_speculation_is_made_good_after_the_turn() -> None:
    driver = Driver()
    driver.audio(tone(600) + silence(200))
    speculation = driver.commands_of(Speculate)[0]
    driver.handle(Failed("sess_1", speculation.response_id, "rate_limit_exceeded", "full"))
    driver.audio(silence(400), steps=1)
    driver.finish()
    assert driver.commands_of(Commit, Respond)
    assert driver.events[-1]["response"]["status"] == "completed"


def test_no_speculation_when_nobody_is_to_answer() -> None:
    driver = Driver()
    set_detection(driver, type="server_vad", create_response=False)
    speak(driver)
    assert driver.commands_of(Speculate, Confirm, Respond) == []
    assert len(driver.commands_of(Commit)) == 1
    assert types(driver.events)[-4:] == TURN_END


# --- Ends of turns -------------------------------------------------------------------------------


def end_ms(driver: Driver, score: float, eagerness: str) -> int:
    """Silence after which a semantic turn with this end-of-turn score ends."""
    driver.assistant = type(driver.assistant)(script=Script(scores=(score,)))
    driver.assistant.submit(driver.commands[0])
    set_detection(driver, type="semantic_vad", eagerness=eagerness)
    driver.audio(tone(640) + silence(9000), steps=1)
    stopped = of_type(driver.events, "input_audio_buffer.speech_stopped")
    return int(stopped[0]["audio_end_ms"]) - 640


def test_a_finished_sentence_ends_its_turn_soon_and_an_unfinished_one_late() -> None:
    assert end_ms(Driver(), 0.97, "auto") <= 260
    assert 880 <= end_ms(Driver(), 0.5, "auto") <= 1000
    assert 4000 <= end_ms(Driver(), 0.02, "auto") <= 4100
    assert 8000 <= end_ms(Driver(), 0.02, "low") <= 8100
    assert 2000 <= end_ms(Driver(), 0.02, "high") <= 2100


def test_a_score_of_an_earlier_pause_does_not_end_the_turn() -> None:
    driver = Driver()
    set_detection(driver, type="semantic_vad")
    driver.audio(tone(600) + silence(150) + tone(600) + silence(300))
    turn_id = driver.commands_of(ScoreTurn)[1].turn_id
    driver.handle(TurnScore("sess_1", turn_id, 0.99, 700))
    assert not of_type(driver.events, "input_audio_buffer.speech_stopped")
    driver.handle(TurnScore("sess_1", turn_id, 0.99, 2000))
    assert of_type(driver.events, "input_audio_buffer.speech_stopped")


def test_a_client_that_falls_silent_inside_a_turn_is_answered() -> None:
    driver = Driver()
    driver.audio(tone(600))
    driver.wait(1400)
    assert not of_type(driver.events, "input_audio_buffer.speech_stopped")
    driver.wait(200)
    driver.finish()
    assert types(driver.events)[2:6] == TURN_END
    assert driver.events[-1]["type"] == "response.done"


def test_a_turn_that_never_ends_is_cut_at_the_buffers_limit() -> None:
    driver = Driver(config=Config(server=ServerConfig(max_buffer_s=3)))
    driver.audio(tone(4000))
    stopped = of_type(driver.events, "input_audio_buffer.speech_stopped")
    assert len(stopped) == 1
    assert stopped[0]["audio_end_ms"] <= 3100


def test_noise_without_words_gets_an_empty_answer() -> None:
    driver = Driver(Script(transcripts=("",)))
    speak(driver, steps=0)
    confirmed = driver.commands_of(Confirm)[0].response_id
    turn_id = of_type(driver.events, "input_audio_buffer.committed")[0]["item_id"]
    driver.handle(TranscriptDone("sess_1", turn_id, "", 900))
    driver.handle(TextDelta("sess_1", confirmed, "too late"))
    assert types(driver.events)[-2:] == ["response.created", "response.done"]
    response = driver.events[-1]["response"]
    assert (response["status"], response["output"]) == ("completed", [])
    assert driver.commands_of(Cancel)[0].response_id == confirmed
    driver.say("now with words")
    assert messages(driver.commands_of(Edit)[-1]) == [("user", "now with words")]


# --- Interruptions -------------------------------------------------------------------------------


def test_speaking_over_the_answer_ends_it_in_order() -> None:
    driver = Driver(Script(answers=(LONG,)))
    speak(driver, steps=0)
    driver.step(5)
    events = driver.audio(words(500))
    assert types(events) == ["input_audio_buffer.speech_started", *DONE]
    response = events[-1]["response"]
    assert response["status"] == "cancelled"
    assert response["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
    assert response["output"][0]["status"] == "incomplete"
    num_words = len(response["output"][0]["content"][0]["transcript"].split())
    assert response["usage"]["output_tokens"] == num_words > 0
    response_id = response["id"]
    assert [c.response_id for c in driver.commands_of(Cancel)] == [response_id]
    # Nothing of that response follows, whatever the assistant still has to say.
    late = driver.step(5)
    assert not [e for e in late if e.get("response_id") == response_id]


def test_after_an_interruption_the_context_holds_only_what_was_heard() -> None:
    driver = Driver(Script(answers=(LONG,)))
    speak(driver, steps=0)
    driver.finish()  # all ten words are sent at once; 240 ms each
    assert driver.events[-1]["type"] == "response.done"
    driver.audio(silence(1000))
    driver.audio(words(400))
    heard = messages(driver.commands_of(Edit)[-1])[-1]
    # Sent at about 300 ms of the trailing silence; interrupted about 1.5 s later.
    assert heard in [("assistant", "one two three four five"), ("assistant", "one two three four")]
    assert types(driver.events)[-1] == "input_audio_buffer.speech_started"


def test_an_exact_report_corrects_the_clock_and_truncate_corrects_both() -> None:
    driver = Driver(Script(answers=(LONG,)))
    speak(driver, steps=0)
    driver.finish()
    item_id = of_type(driver.events, "response.output_item.added")[0]["item"]["id"]
    driver.audio(silence(1000) + words(400))
    assert driver.send("omni.output_audio.played", item_id=item_id, played_ms=500) == []
    assert messages(driver.commands_of(Edit)[-1])[-1] == ("assistant", "one two")
    events = driver.send(
        "conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=750
    )
    assert types(events) == ["conversation.item.truncated"]
    assert messages(driver.commands_of(Edit)[-1])[-1] == ("assistant", "one two three")
    driver.send("omni.output_audio.played", item_id=item_id, played_ms=100)
    assert messages(driver.commands_of(Edit)[-1])[-1] == ("assistant", "one two three")
    shown = driver.send("conversation.item.retrieve", item_id=item_id)[0]["item"]["content"][0]
    assert shown["transcript"] is None
    assert len(base64.b64decode(shown["audio"])) == 750 * 24 * 2


def test_an_answer_heard_to_the_end_stays_whole() -> None:
    driver = Driver(Script(answers=(LONG,)))
    speak(driver, steps=0)
    driver.finish()
    driver.audio(silence(4000) + tone(400))
    assert messages(driver.commands_of(Edit)[-1])[-1] == ("assistant", LONG.text)


def test_without_interrupt_response_the_answer_goes_on_and_the_turn_is_answered_after() -> None:
    driver = Driver(Script(answers=(LONG,)))
    set_detection(driver, type="server_vad", interrupt_response=False)
    speak(driver, steps=0)
    driver.step(3)
    driver.audio(words(600) + silence(700))
    assert not of_type(driver.events, "response.done")
    driver.finish()
    statuses = [e["response"]["status"] for e in of_type(driver.events, "response.done")]
    assert statuses == ["completed", "completed"]
    assert len(of_type(driver.events, "input_audio_buffer.committed")) == 2


def test_a_hum_over_the_answer_does_not_interrupt() -> None:
    driver = Driver(Script(answers=(LONG,)))
    speak(driver, steps=0)
    driver.step(5)
    assert driver.audio(tone(600, hz=140.0) + silence(200)) == []


# --- What seldom happens -------------------------------------------------------------------------


def test_a_speculation_that_nobody_saw_is_taken_back() -> None:
    driver = Driver()
    burst = tone(500) + silence(250) + tone(500) + silence(250)
    driver.send("input_audio_buffer.append", audio=base64.b64encode(burst).decode())
    assert len(driver.commands_of(Speculate)) == 1
    assert driver.commands_of(Cancel) == []


def test_noise_known_before_the_end_of_the_turn_needs_no_assistant() -> None:
    driver = Driver()
    driver.audio(tone(600) + silence(200))
    speculation = driver.commands_of(Speculate)[0]
    driver.handle(TranscriptDone("sess_1", speculation.turn_id, " ", 800))
    driver.audio(silence(300))
    assert types(driver.events)[-2:] == ["response.created", "response.done"]
    assert driver.events[-1]["response"]["output"] == []
    assert driver.commands_of(Confirm, Respond) == []


def test_a_response_that_the_assistant_gives_up_has_failed() -> None:
    driver = Driver()
    driver.send("response.create")
    response_id = driver.commands_of(Respond)[0].response_id
    driver.handle(Done("sess_1", response_id, "cancelled", Usage()))
    assert driver.events[-1]["response"]["status"] == "failed"


def test_an_answer_that_ended_inside_its_thought_says_so() -> None:
    for is_thinking in (False, True):
        driver = Driver()
        driver.say("hello")
        driver.send("response.create")
        (respond,) = driver.commands_of(Respond)
        done = Done("sess_1", respond.response_id, "max_output_tokens", Usage(), is_thinking)
        driver.handle(done)
        details = driver.events[-1]["response"]["status_details"]
        assert (details["type"], details["reason"]) == ("incomplete", "max_output_tokens")
        assert ("still thinking" in str(details.get("error"))) == is_thinking


def test_a_failed_transcription_is_told() -> None:
    driver = Driver()
    transcription = {"model": "whisper-1"}
    driver.send(
        "session.update",
        session={"type": "realtime", "audio": {"input": {"transcription": transcription}}},
    )
    speak(driver, steps=0)
    turn_id = of_type(driver.events, "input_audio_buffer.committed")[0]["item_id"]
    driver.handle(Failed("sess_1", turn_id, "server_error", "it broke"))
    failed = driver.events[-1]
    assert failed["type"] == "conversation.item.input_audio_transcription.failed"
    assert (failed["item_id"], failed["error"]["code"]) == (turn_id, "server_error")


def test_a_speculation_on_what_has_changed_is_not_confirmed_though_the_edit_still_waits() -> None:
    driver = Driver()
    driver.audio(tone(900) + silence(160))
    (speculate,) = driver.commands_of(Speculate)
    num_commands = len(driver.commands)
    driver.session.commands = partial(driver.session.commands, edit=False)  # type: ignore[method-assign]
    driver.say("an aside")
    assert driver.commands[num_commands:] == [], "the edit waits"
    driver.audio(silence(600))
    assert driver.commands_of(Confirm) == []
    assert Cancel("sess_1", speculate.response_id) in driver.commands
    (respond,) = driver.commands_of(Respond)
    edits = [c for c in driver.commands[: driver.commands.index(respond)] if isinstance(c, Edit)]
    assert ("user", "an aside") in messages(edits[-1])
