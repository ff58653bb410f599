"""The effective session: updates change what they name, whole or not at all."""

from __future__ import annotations

import json
from typing import Any

import pytest
from omni_streaming.events import SessionUpdate, parse_client_event
from omni_streaming.items import HOSTED_VOICES, ClientError, ResponseParams
from omni_streaming.settings import Settings

from omni.config import Config, ModelConfig


def initial(**config: Any) -> Settings:
    return Settings.initial(
        session_id="sess_1",
        config=Config(**config),
        model="gpt-realtime",
        voices=("heart", "tone"),
        expires_at_s=1_800_000_000,
        intent="realtime",
    )


def updated(settings: Settings, *, has_spoken: bool = False, **session: Any) -> Settings:
    message = {"type": "session.update", "session": {"type": "realtime", **session}}
    event = parse_client_event(json.dumps(message))
    assert isinstance(event, SessionUpdate)
    return settings.updated(event.session, has_spoken=has_spoken)


def fault(settings: Settings, *, has_spoken: bool = False, **session: Any) -> tuple[str, str]:
    before = json.dumps(settings.wire)
    with pytest.raises(ClientError) as caught:
        updated(settings, has_spoken=has_spoken, **session)
    assert json.dumps(settings.wire) == before
    return caught.value.code, caught.value.param or ""


def test_only_what_is_present_changes() -> None:
    before = initial()
    after = updated(before, audio={"output": {"speed": 1.2}})
    expected = json.loads(json.dumps(before.wire))
    expected["audio"]["output"]["speed"] = 1.2
    assert after.wire == expected


def test_turn_detection_keeps_what_is_not_named_unless_its_kind_changes() -> None:
    first = updated(
        initial(),
        audio={"input": {"turn_detection": {"type": "server_vad", "threshold": 0.7}}},
    )
    second = updated(
        first,
        audio={"input": {"turn_detection": {"type": "server_vad", "create_response": False}}},
    )
    assert second.detection is not None
    assert (second.detection.threshold, second.detection.create_response) == (0.7, False)
    semantic = updated(second, audio={"input": {"turn_detection": {"type": "semantic_vad"}}})
    assert semantic.wire["audio"]["input"]["turn_detection"] == {
        "type": "semantic_vad",
        "eagerness": "auto",
        "create_response": True,
        "interrupt_response": True,
    }
    back = updated(semantic, audio={"input": {"turn_detection": {"type": "server_vad"}}})
    assert back.detection == initial().detection


def test_null_clears_and_empty_clears() -> None:
    settings = updated(initial(), tools=[{"name": "f"}], instructions="Be brief.")
    assert [t.name for t in settings.tools] == ["f"]
    cleared = updated(
        settings, tools=[], instructions="", audio={"input": {"turn_detection": None}}
    )
    assert (cleared.tools, cleared.instructions, cleared.detection) == ((), "", None)
    again = updated(cleared, audio={"input": {"turn_detection": {"type": "server_vad"}}})
    assert again.detection == initial().detection


def test_values_are_replaced_whole() -> None:
    first = updated(
        initial(), audio={"input": {"transcription": {"model": "whisper-1", "language": "de"}}}
    )
    second = updated(first, audio={"input": {"transcription": {"model": "whisper-1"}}})
    assert second.transcription == {"model": "whisper-1"}


def test_the_voice_is_locked_once_audio_was_sent() -> None:
    settings = initial()
    assert updated(settings, audio={"output": {"voice": "tone"}}).response().voice == "tone"
    locked = fault(settings, has_spoken=True, audio={"output": {"voice": "tone"}})
    assert locked == ("cannot_update_voice", "session.audio.output.voice")
    updated(settings, has_spoken=True, audio={"output": {"voice": "heart"}})


def test_hosted_voices_mean_the_default_and_unknown_ones_are_refused() -> None:
    for name in HOSTED_VOICES:
        settings = updated(initial(), audio={"output": {"voice": {"id": name}}})
        response = settings.response()
        assert (response.voice, response.config.voice) == (name, "heart")
    code, param = fault(initial(), audio={"output": {"voice": "nobody"}}, instructions="not this")
    assert (code, param) == ("invalid_value", "session.audio.output.voice")


def test_a_configured_voice_is_the_default() -> None:
    assert initial(model=ModelConfig(voice="tone")).response().config.voice == "tone"
    assert initial(model=ModelConfig(voice="gone")).response().config.voice == "heart"


def test_the_model_is_fixed_but_its_aliases_do_no_harm() -> None:
    settings = initial()
    for name in ("gpt-realtime", "gpt-realtime-mini", "default", "gpt-4o-realtime-preview"):
        assert updated(settings, model=name).wire["model"] == "gpt-realtime"
    assert fault(settings, model="llama-9") == ("invalid_value", "session.model")


def test_tracing_cannot_be_changed_once_on() -> None:
    settings = updated(initial(), tracing="auto")
    assert updated(settings, tracing="auto").wire["tracing"] == "auto"
    assert fault(settings, tracing={"workflow_name": "w"})[1] == "session.tracing"


def test_the_type_of_a_session_is_fixed() -> None:
    message = '{"type": "session.update", "session": {"type": "transcription"}}'
    event = parse_client_event(message)
    assert isinstance(event, SessionUpdate)
    with pytest.raises(ClientError) as caught:
        initial().updated(event.session, has_spoken=False)
    assert caught.value.param == "session.type"


def test_a_session_must_fit_in_a_frame() -> None:
    assert fault(initial(), instructions="x" * 700_000) == ("invalid_value", "session")


def test_a_response_inherits_the_session_and_overrides_it() -> None:
    settings = updated(
        initial(),
        max_output_tokens=77,
        tool_choice={"type": "function", "name": "f"},
        output_modalities=["text"],
    )
    inherited = settings.response()
    assert inherited.config.tool_choice == "function:f"
    assert (inherited.config.modality, inherited.config.max_output_tokens) == ("text", 77)
    params = ResponseParams.model_validate(
        {
            "output_modalities": ["audio"],
            "max_output_tokens": "inf",
            "tool_choice": "none",
            "conversation": "none",
            "audio": {"output": {"voice": "tone", "format": {"type": "audio/pcma"}}},
        }
    )
    response = settings.response(params)
    assert (response.config.modality, response.config.tool_choice) == ("audio", "none")
    assert (response.max_output_tokens, response.config.max_output_tokens) == ("inf", 4096)
    assert (response.voice, response.audio_format) == ("tone", "audio/pcma")
    assert not response.is_in_band


def test_a_secrets_session_is_applied_or_refused() -> None:
    settings = initial().parsed_and_updated({"instructions": "Be brief."})
    assert settings.instructions == "Be brief."
    with pytest.raises(ClientError) as caught:
        initial().parsed_and_updated({"type": "realtime", "nonsense": 1})
    assert (caught.value.code, caught.value.param) == ("unknown_parameter", "nonsense")
