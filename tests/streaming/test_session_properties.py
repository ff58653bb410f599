"""Invariants of a session under arbitrary clients and assistants (REALTIME invariants 1 to 10)."""

from __future__ import annotations

import base64
import json
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from omni.config import Config, ServerConfig
from omni.scripted import Answer, Call, Script
from omni.types import (
    AudioDelta,
    Done,
    Failed,
    Output,
    TextDelta,
    TranscriptDone,
    TurnScore,
    Usage,
)
from tests.streaming.driver import Driver, silence, tone
from tests.streaming.invariants import CommandInvariants, EventInvariants

TOOL = {"type": "function", "name": "look", "parameters": {"type": "object"}}
SCRIPT = Script(
    transcripts=("what time is it", "", "tell me more please"),
    scores=(0.9, 0.05, 0.5),
    answers=(
        Answer(text="It is late, and the night is dark and long."),
        Answer(text="Let me look.", calls=(Call("look", '{"at": "it"}'),)),
        Answer(calls=(Call("look"), Call("look"))),
        Answer(text=""),
        Answer(text="I am", failure="server_error"),
        Answer(failure="server_error"),
    ),
)

turn_detections = st.one_of(
    st.none(),
    st.builds(
        lambda create, interrupt, silence_ms, idle: {
            "type": "server_vad",
            "create_response": create,
            "interrupt_response": interrupt,
            "silence_duration_ms": silence_ms,
            "idle_timeout_ms": idle,
        },
        st.booleans(),
        st.booleans(),
        st.sampled_from([0, 200, 500]),
        st.sampled_from([None, 5000]),
    ),
    st.builds(
        lambda eagerness, interrupt: {
            "type": "semantic_vad",
            "eagerness": eagerness,
            "interrupt_response": interrupt,
        },
        st.sampled_from(["low", "auto", "high"]),
        st.booleans(),
    ),
)
formats = st.sampled_from([{"type": "audio/pcm"}, {"type": "audio/pcmu"}, {"type": "audio/pcma"}])
patches = st.fixed_dictionaries(
    {"type": st.just("realtime")},
    optional={
        "instructions": st.sampled_from(["", "Be brief.", None]),
        "output_modalities": st.sampled_from([["text"], ["audio"]]),
        "tools": st.sampled_from([[], [TOOL]]),
        "tool_choice": st.sampled_from(["auto", "none", {"type": "function", "name": "look"}]),
        "max_output_tokens": st.sampled_from([1, 3, "inf"]),
        "audio": st.fixed_dictionaries(
            {},
            optional={
                "input": st.fixed_dictionaries(
                    {},
                    optional={
                        "turn_detection": turn_detections,
                        "transcription": st.sampled_from([None, {"model": "whisper-1"}]),
                    },
                ),
                "output": st.fixed_dictionaries(
                    {}, optional={"format": formats, "speed": st.sampled_from([0.5, 1.5])}
                ),
            },
        ),
    },
)
faulty = st.sampled_from(
    [
        b"\x00\x01",
        "{",
        "[]",
        "null",
        '{"type": "no.such.event"}',
        '{"type": "session.update", "session": {}}',
        '{"type": "session.update", "session": {"type": "realtime", "nonsense": 1}}',
        '{"type": "session.update", "session": {"type": "realtime", "audio": {"output": '
        '{"voice": "nobody"}}, "instructions": "not this"}}',
        '{"type": "input_audio_buffer.append", "audio": "!"}',
        '{"type": "input_audio_buffer.append", "audio": "AAAA"}',
        '{"type": "conversation.item.delete", "item_id": "nothing"}',
        '{"type": "conversation.item.retrieve", "item_id": "nothing"}',
        '{"type": "conversation.item.create", "item": {"type": "message", "role": "user", '
        '"content": [{"type": "input_image", "image_url": "data:image/png;base64,"}]}}',
        '{"type": "output_audio_buffer.clear"}',
    ]
)


def message(role: str, kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": [{"type": kind, **fields}]}


new_items = st.sampled_from(
    [
        message("user", "input_text", text="hello"),
        message("user", "input_audio", audio=base64.b64encode(tone(200)).decode()),
        message("user", "input_audio", transcript="as I said"),
        message("system", "input_text", text="A new rule."),
        message("assistant", "output_text", text="I said so."),
        {"type": "function_call", "name": "look", "arguments": "{}", "call_id": "call_mine"},
        {"type": "function_call_output", "call_id": "call_mine", "output": "seen"},
        {"type": "function_call_output", "call_id": "call_00000001", "output": "done"},
    ]
)


class SessionMachine(RuleBasedStateMachine):
    """Clients and assistants that do anything at all, in any order."""

    @initialize(intent=st.sampled_from(["realtime", "realtime", "realtime", "transcription"]))
    def open(self, intent: str) -> None:
        config = Config(server=ServerConfig(max_items=12, max_tool_calls=3, max_buffer_s=4))
        self.driver = Driver(SCRIPT, config, intent=intent)
        self.events = EventInvariants()
        self.commands = CommandInvariants()
        self.num_seen = self.num_commands = 0
        self.intent = intent
        self.is_closed = False

    # --- the client ------------------------------------------------------------------------------

    @rule(patch=patches)
    def update(self, patch: dict[str, Any]) -> None:
        before = json.dumps(self.driver.session.settings.wire)
        events = self.driver.send("session.update", session=patch)
        if not self.is_closed and "session.updated" not in [e["type"] for e in events]:
            assert json.dumps(self.driver.session.settings.wire) == before, "rejected whole"

    @rule(
        speech_ms=st.sampled_from([0, 40, 100, 250, 600]),
        silence_ms=st.integers(0, 700),
        steps=st.integers(0, 2),
    )
    def talk(self, speech_ms: int, silence_ms: int, steps: int) -> None:
        self.driver.audio(tone(speech_ms) + silence(silence_ms), steps=steps)

    @rule(speech_ms=st.integers(0, 1500), silence_ms=st.integers(0, 1500))
    def talk_in_one_burst(self, speech_ms: int, silence_ms: int) -> None:
        audio = base64.b64encode(tone(speech_ms) + silence(silence_ms)).decode()
        self.driver.send("input_audio_buffer.append", audio=audio)

    @rule(speech_ms=st.integers(1, 800))
    def talk_and_act_before_the_frames_are_scored(self, speech_ms: int) -> None:
        session, now_ms = self.driver.session, self.driver.now_ms
        audio = base64.b64encode(tone(speech_ms)).decode()
        session.receive(json.dumps({"type": "input_audio_buffer.append", "audio": audio}), now_ms)
        frames = session.frames_to_score()
        for kind in ("commit", "clear"):
            session.receive(json.dumps({"type": f"input_audio_buffer.{kind}"}), now_ms)
        session.score_frames([0.9] * len(frames), now_ms)
        self.driver.pump()

    @rule()
    def commit(self) -> None:
        self.driver.send("input_audio_buffer.commit")

    @rule()
    def clear(self) -> None:
        self.driver.send("input_audio_buffer.clear")

    @rule(item=new_items, item_id=st.sampled_from([None, "mine_1", "mine_2"]), data=st.data())
    def create_item(self, item: dict[str, Any], item_id: str | None, data: st.DataObject) -> None:
        after = data.draw(st.sampled_from([None, "root", *self.item_ids()]))
        self.driver.send(
            "conversation.item.create", item={**item, "id": item_id}, previous_item_id=after
        )

    @precondition(lambda self: self.item_ids())
    @rule(data=st.data(), kind=st.sampled_from(["delete", "retrieve"]))
    def touch_item(self, data: st.DataObject, kind: str) -> None:
        self.driver.send(
            f"conversation.item.{kind}", item_id=data.draw(st.sampled_from(self.item_ids()))
        )

    @precondition(lambda self: self.item_ids())
    @rule(data=st.data(), end_ms=st.integers(0, 3000), kind=st.sampled_from(["cut", "report"]))
    def stop_hearing(self, data: st.DataObject, end_ms: int, kind: str) -> None:
        item_id = data.draw(st.sampled_from(self.item_ids()))
        if kind == "cut":
            self.driver.send(
                "conversation.item.truncate",
                item_id=item_id,
                content_index=0,
                audio_end_ms=end_ms,
            )
        else:
            events = self.driver.send("omni.output_audio.played", item_id=item_id, played_ms=end_ms)
            assert events == []

    @rule(
        response=st.sampled_from(
            [
                None,
                {"conversation": "none", "metadata": {"topic": "aside"}},
                {"conversation": "none", "input": [], "output_modalities": ["text"]},
                {"input": [message("user", "input_text", text="only this")]},
                {"instructions": "Be very brief.", "max_output_tokens": 2},
                {"audio": {"output": {"format": {"type": "audio/pcmu"}}}},
            ]
        )
    )
    def create_response(self, response: dict[str, Any] | None) -> None:
        self.driver.send("response.create", response=response)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        response_id = data.draw(st.sampled_from([None, "resp_0", *self.events.responses]))
        self.driver.send("response.cancel", response_id=response_id)

    @rule(raw=faulty)
    def send_nonsense(self, raw: str | bytes) -> None:
        events = self.driver.send_raw(raw)
        num_errors = sum(e["type"] == "error" for e in events)
        assert num_errors == (not self.is_closed)

    # --- the assistant and time ------------------------------------------------------------------

    @rule(steps=st.integers(1, 12))
    def step(self, steps: int) -> None:
        self.driver.step(steps)

    @rule(ms=st.integers(0, 4000))
    def listen_to_the_answer(self, ms: int) -> None:
        self.driver.finish()
        self.driver.wait(ms, tick_ms=200)

    @rule(
        data=st.data(), kind=st.sampled_from(["text", "audio", "failed", "done", "turn", "score"])
    )
    def say_anything_about_anything(self, data: st.DataObject, kind: str) -> None:
        ids = ["resp_none", *self.events.responses, *self.events.committed]
        turn_id = self.driver.session.turns.open_turn_id
        id_ = data.draw(st.sampled_from([*ids, turn_id] if turn_id else ids))
        session = "sess_1"
        outputs: dict[str, Output] = {
            "text": TextDelta(session, id_, " word"),
            "audio": AudioDelta(session, id_, bytes(4800)),
            "failed": Failed(session, id_, "server_error", "it broke"),
            "done": Done(session, id_, "completed", Usage()),
            "turn": TranscriptDone(session, id_, "", 100),
            "score": TurnScore(session, id_, 1.0, 10**9),
        }
        self.driver.handle(outputs[kind])

    @rule(ms=st.sampled_from([40, 500, 2000, 12_000]))
    def wait(self, ms: int) -> None:
        self.driver.wait(ms, tick_ms=max(ms // 10, 40))

    @rule(is_sure=st.integers(0, 9))
    def close(self, is_sure: int) -> None:
        if is_sure == 0:
            self.finish()

    # --- what holds ------------------------------------------------------------------------------

    def item_ids(self) -> list[str]:
        return list(self.events.added)

    @invariant()
    def events_and_commands_are_in_order(self) -> None:
        if not hasattr(self, "driver"):
            return
        for event in self.driver.events[self.num_seen :]:
            self.events.check(event)
            assert len(json.dumps(event)) < 2**20, "a frame is at most 1 MiB"
        self.num_seen = len(self.driver.events)
        for command in self.driver.commands[self.num_commands :]:
            self.commands.check(command)
        self.num_commands = len(self.driver.commands)
        session = self.driver.session
        assert (
            [session.active.id] == self.events.active
            if session.active
            else (not self.events.active)
        )
        assert len(session.items) <= 13, "the newest may be one too many while it is spoken"

    def finish(self) -> None:
        """Close: everything ends, once, and everything is freed."""
        driver = self.driver
        driver.session.close()
        driver.pump()
        first = len(driver.commands)
        driver.session.close()
        driver.send("response.create")
        driver.audio(tone(300))
        driver.wait(100)
        assert len(driver.commands) == first, "close is idempotent and final"
        self.events_and_commands_are_in_order()
        self.events.check_finished()
        assert self.commands.is_closed
        assert not driver.session.responses
        assert not driver.assistant.has_work()
        self.is_closed = True

    def teardown(self) -> None:
        if hasattr(self, "driver"):
            self.finish()


TestSession = SessionMachine.TestCase
TestSession.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
