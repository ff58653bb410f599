"""Client events are parsed strictly; each fault has its code, its param and the client's id."""

from __future__ import annotations

import json
import re
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omni_streaming import events
from omni_streaming.items import ClientError
from openai.types.realtime import RealtimeServerEvent
from pydantic import ValidationError

from omni.types import Usage
from tests.streaming.driver import README, SERVER_EVENTS
from tests.streaming.oracles import OURS, check


def fault(message: str | bytes | dict[str, Any]) -> tuple[str, str | None]:
    """(code, param) with which a message is refused."""
    raw = json.dumps(message) if isinstance(message, dict) else message
    with pytest.raises(ClientError) as caught:
        events.parse_client_event(raw)
    return caught.value.code, caught.value.param


def update(**session: Any) -> dict[str, Any]:
    return {"type": "session.update", "session": {"type": "realtime", **session}}


def item(**fields: Any) -> dict[str, Any]:
    return {"type": "conversation.item.create", "item": fields}


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        (b"\x00binary", "invalid_event", None),
        ("{", "invalid_json", None),
        ("", "invalid_json", None),
        ('{"type": "response.create", "event_id": NaN}', "invalid_json", None),
        ('{"type": "response.create", "event_id": "\\ud800"}', "invalid_json", None),
        ("[" * 40_000, "invalid_json", None),
        ("[]", "invalid_event", None),
        ("{}", "invalid_event", "type"),
        ('{"type": 3}', "invalid_value", "type"),
        ('{"type": "output_audio_buffer.clear"}', "invalid_value", "type"),
        ('{"type": "conversation.item.created"}', "invalid_value", "type"),
    ],
)
def test_what_is_no_event_is_refused(message: str | bytes, code: str, param: str | None) -> None:
    assert fault(message) == (code, param)


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        ({"type": "response.create", "nonsense": 1}, "unknown_parameter", "nonsense"),
        (update(nonsense=1), "unknown_parameter", "session.nonsense"),
        (update(id="sess_2"), "unknown_parameter", "session.id"),
        (
            update(audio={"input": {"turn_detection": {"type": "server_vad", "x": 1}}}),
            "unknown_parameter",
            "session.audio.input.turn_detection.x",
        ),
        (
            {"type": "session.update", "session": {}},
            "missing_required_parameter",
            "session.type",
        ),
        ({"type": "session.update"}, "missing_required_parameter", "session"),
        (update(type="beta"), "invalid_value", "session.type"),
        (update(output_modalities=["audio", "text"]), "invalid_value", "session.output_modalities"),
        (update(max_output_tokens=0), "invalid_value", "session.max_output_tokens"),
        (update(max_output_tokens="many"), "invalid_value", "session.max_output_tokens"),
        (update(tool_choice="perhaps"), "invalid_value", "session.tool_choice"),
        (update(tools=[{"type": "mcp"}]), "invalid_value", "session.tools[0].type"),
        (
            update(tools=[{"type": "function"}]),
            "missing_required_parameter",
            "session.tools[0].name",
        ),
        (
            update(audio={"input": {"format": {"type": "audio/pcm", "rate": 16000}}}),
            "invalid_value",
            "session.audio.input.format.rate",
        ),
        (
            update(audio={"input": {"turn_detection": {"threshold": 0.5}}}),
            "missing_required_parameter",
            "session.audio.input.turn_detection.type",
        ),
        (
            update(audio={"input": {"turn_detection": {"type": "server_vad", "threshold": 2}}}),
            "invalid_value",
            "session.audio.input.turn_detection.threshold",
        ),
        (
            update(
                audio={"input": {"turn_detection": {"type": "server_vad", "idle_timeout_ms": 9}}}
            ),
            "invalid_value",
            "session.audio.input.turn_detection.idle_timeout_ms",
        ),
        (update(audio={"output": {"speed": 2.0}}), "invalid_value", "session.audio.output.speed"),
        (item(role="user"), "missing_required_parameter", "item.type"),
        (item(type="message", content=[]), "missing_required_parameter", "item.role"),
        (
            item(type="message", role="user", content=[{"type": "input_text"}]),
            "missing_required_parameter",
            "item.content[0].text",
        ),
        (
            item(type="message", role="assistant", content=[{"type": "output_audio"}]),
            "invalid_value",
            "item.content[0].type",
        ),
        (
            item(type="message", role="user", content=[], id="x" * 33),
            "invalid_value",
            "item.id",
        ),
        (
            {"type": "response.create", "response": {"metadata": {str(i): "" for i in range(17)}}},
            "invalid_value",
            "response.metadata",
        ),
        (
            {"type": "response.create", "response": {"metadata": {"key": "x" * 513}}},
            "invalid_value",
            "response.metadata",
        ),
        (
            {"type": "conversation.item.truncate", "item_id": "i", "content_index": 0},
            "missing_required_parameter",
            "audio_end_ms",
        ),
        (
            {
                "type": "conversation.item.truncate",
                "item_id": "i",
                "content_index": 0,
                "audio_end_ms": -1,
            },
            "invalid_value",
            "audio_end_ms",
        ),
    ],
)
def test_each_fault_has_its_code_and_param(message: dict[str, Any], code: str, param: str) -> None:
    assert fault(message) == (code, param)


def test_a_fault_echoes_the_clients_event_id() -> None:
    with pytest.raises(ClientError) as caught:
        events.parse_client_event('{"type": "no.such", "event_id": "mine"}')
    assert caught.value.event_id == "mine"


def test_nulls_are_absent_keys_except_where_they_mean_something() -> None:
    parsed = events.parse_client_event(
        json.dumps(
            update(
                instructions=None,
                tools=None,
                audio={
                    "input": {
                        "format": None,
                        "turn_detection": None,
                        "transcription": None,
                        "noise_reduction": None,
                    },
                    "output": None,
                },
            )
        )
    )
    assert isinstance(parsed, events.SessionUpdate)
    assert parsed.session.model_dump(exclude_unset=True) == {
        "type": "realtime",
        "audio": {
            "input": {"turn_detection": None, "transcription": None, "noise_reduction": None}
        },
    }


def test_a_nulls_place_in_a_tools_schema_is_kept() -> None:
    tool = {"name": "f", "parameters": {"type": "object", "default": None}}
    parsed = events.parse_client_event(json.dumps(update(tools=[tool])))
    assert isinstance(parsed, events.SessionUpdate)
    assert parsed.session.model_dump()["tools"][0]["parameters"] == tool["parameters"]


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner),
    max_leaves=12,
)


@given(kind=st.sampled_from(list(events.CLIENT_EVENTS)), fields=json_values)
def test_any_json_is_an_event_or_a_client_error(kind: str, fields: Any) -> None:
    extra = fields if isinstance(fields, dict) else {"session": fields, "item": fields}
    code = None
    try:
        events.parse_client_event(json.dumps({**extra, "type": kind}))
    except ClientError as error:
        code = error.code
    known = {"invalid_value", "invalid_json", "unknown_parameter", "missing_required_parameter"}
    assert code in known | {None}


@given(raw=st.text() | st.binary())
def test_any_message_is_an_event_or_a_client_error(raw: str | bytes) -> None:
    with pytest.raises(ClientError):
        events.parse_client_event(raw)


def test_errors_and_transcription_failures_satisfy_both_oracles() -> None:
    for event in (
        events.error("it broke", None, "server_error"),
        events.error("no", "invalid_value", param="type", event_id="mine"),
        events.transcription_failed("item_1", "server_error", "it broke"),
        events.timeout_triggered("item_1", 0, 5000),
    ):
        check({"event_id": "event_1", **event})


def test_usage_adds_up() -> None:
    usage = events.usage_object(
        Usage(
            input_text_tokens=5,
            input_audio_tokens=7,
            cached_tokens=4,
            output_text_tokens=3,
            output_audio_tokens=2,
        )
    )
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (12, 5, 17)
    assert usage["input_token_details"]["cached_tokens"] == 4


def test_the_readme_lists_the_client_events_that_the_code_knows() -> None:
    table = README.split("### Client events")[1].split("### Server events")[0]
    assert set(re.findall(r"^\| `([a-z_.]+)` \|", table, re.MULTILINE)) == set(events.CLIENT_EVENTS)


def test_the_readme_lists_server_events_that_exist() -> None:
    """That every event which is sent is listed, the driver checks in every test."""
    known = {
        get_args(member.model_fields["type"].annotation)[0]
        for member in get_args(get_args(RealtimeServerEvent)[0])
    }
    assert known >= SERVER_EVENTS - OURS


@pytest.mark.parametrize(
    "event",
    [
        {"type": "response.done", "response": {"status": "finished"}},
        {"type": "conversation.item.created_anew", "item": {}},
        {"type": "input_audio_buffer.speech_started", "audio_start_ms": "0", "item_id": "item_1"},
        {"type": "input_audio_buffer.cleared", "nonsense": 1},
        {"type": "session.created", "session": {"type": "realtime", "nonsense": 1}},
    ],
)
def test_the_oracles_reject_what_the_protocol_does_not_know(event: dict[str, Any]) -> None:
    with pytest.raises((AssertionError, ValidationError)):
        check({"event_id": "event_1", **event})


@pytest.mark.parametrize(
    "message",
    [
        json.dumps(update(audio={"input": {"transcription": {"languages": [1] * 1_000_000}}})),
        json.dumps({"type": "response.create", **{f"k{i}": i for i in range(200_000)}}),
        json.dumps({"type": "response.create", "x": ["a"] * 500_000}),
        "[" * 1_000_000,
        '"' + '\\"' * 200_000 + "," * 200_000,
    ],
)
def test_a_message_of_very_many_values_is_refused_before_it_is_parsed(
    message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[str] = []
    real = json.loads

    def spy(text: str, **options: Any) -> object:
        parsed.append(text[:10])
        return real(text, **options)

    monkeypatch.setattr(json, "loads", spy)
    code, _ = fault(message)
    if message.startswith('"'):  # one unfinished string is one value: no JSON, but not large
        assert (code, len(parsed)) == ("invalid_json", 1)
    else:
        assert (code, parsed) == ("invalid_value", [])


def test_a_long_text_may_have_as_many_commas_as_it_likes() -> None:
    numbers = json.dumps([0] * 100_000) + ' "quoted", \\ and [more'
    message = json.dumps(item(type="function_call_output", call_id="call_1", output=numbers))
    event = events.parse_client_event(message)
    assert isinstance(event, events.CreateItem)
    assert event.item.model_dump()["output"] == numbers


def test_many_faults_in_one_event_are_not_spelled_out() -> None:
    many = {f"k{i}": 1 for i in range(20_000)}
    assert fault({"type": "response.create", **many}) == ("unknown_parameter", "k0")
    assert fault(update(**many)) == ("unknown_parameter", "session.k0")
    assert fault(update(tools=[{"name": "f", "no": 1}] * 128)) == ("invalid_value", None)
    languages = update(audio={"input": {"transcription": {"languages": ["en"] * 129}}})
    assert fault(languages) == (
        "invalid_value",
        "session.audio.input.transcription.languages",
    )


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1" * 400 + ".0"])
def test_a_number_that_is_not_finite_is_not_json(number: str) -> None:
    message = '{"type": "session.update", "session": {"type": "realtime", "x": N}}'
    with pytest.raises(ClientError, match="is out of range") as caught:
        events.parse_client_event(message.replace("N", number))
    assert caught.value.code == "invalid_json"
    assert len(caught.value.message) < 100


@pytest.mark.parametrize(
    "message",
    [
        {"type": "conversation.item.retrieve", "item_id": "i" * 100_000},
        {"type": "conversation.item.delete", "item_id": "i" * 33},
        {"type": "response.cancel", "response_id": "r" * 100_000},
        {
            **item(type="function_call", name="f", arguments=""),
            "previous_item_id": "i" * 100_000,
        },
        {"type": "response.create", "response": {"input": [{"type": "item_reference",
                                                            "id": "i" * 100_000}]}},
        {"type": "response.create", "k" * 100_000: 1},
    ],
)  # fmt: skip
def test_an_error_never_repeats_a_huge_id(message: dict[str, Any]) -> None:
    with pytest.raises(ClientError) as caught:
        events.parse_client_event(json.dumps(message))
    assert len(caught.value.message) + len(caught.value.param or "") < 500
