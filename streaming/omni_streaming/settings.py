"""The effective session object and the fixed settings of one response.

Called by :mod:`omni_streaming.session`. A :class:`Settings` is a value: an update makes a new one
or fails whole, and a response keeps the one it started with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from omni.config import Config
from omni.types import ResponseConfig, ToolSpec
from omni_streaming.audio import AudioFormat
from omni_streaming.events import raise_client_error
from omni_streaming.items import (
    HOSTED_VOICES,
    ClientError,
    FunctionTool,
    RealtimeSession,
    ResponseParams,
    SessionPatch,
    TranscriptionSession,
    voice_name,
    wire,
)

Intent = Literal["realtime", "transcription"]

MAX_OUTPUT_TOKENS = 4096
"""What ``inf`` means."""

MAX_SESSION_JSON_BYTES = 640 * 1024
"""``session.updated`` repeats the session and must fit in a frame of 1 MiB."""

_VALUE_KEYS = frozenset(
    {"format", "transcription", "noise_reduction", "truncation", "tracing", "prompt", "tool_choice"}
)
"""Objects that are replaced as one value; the others are merged key by key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """How turns are found; None in :attr:`Settings.detection` means that the client commits."""

    kind: Literal["server_vad", "semantic_vad"]
    threshold: float  # speech probability that counts as speech
    prefix_padding_ms: int
    silence_duration_ms: int  # ends a turn of server_vad
    longest_wait_ms: int  # ends a turn of semantic_vad that sounds unfinished
    idle_timeout_ms: int | None
    create_response: bool
    interrupt_response: bool


LONGEST_WAIT_MS = {"low": 8_000, "medium": 4_000, "auto": 4_000, "high": 2_000}
"""Silence that ends an unfinished-sounding turn, by eagerness."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseSettings:
    """Everything about one response that is fixed at its start."""

    config: ResponseConfig
    audio_format: AudioFormat
    voice: str  # as the client knows it
    max_output_tokens: int | str  # as the client gave it
    metadata: Mapping[str, str] | None
    is_in_band: bool  # belongs to the conversation


class Settings:
    """The effective session: :attr:`wire` is the JSON that the client sees."""

    def __init__(self, session: dict[str, Any], config: Config, voices: tuple[str, ...]) -> None:
        self.wire = session
        self._config = config
        self._voices = voices

    @classmethod
    def initial(
        cls,
        *,
        session_id: str,
        config: Config,
        model: str,
        voices: tuple[str, ...],
        expires_at_s: int,
        intent: Intent,
    ) -> Settings:
        """What ``session.created`` shows when the client has asked for nothing."""
        turns = config.turns
        audio_input: dict[str, Any] = {
            "format": {"type": "audio/pcm", "rate": 24_000},
            "transcription": None,
            "noise_reduction": None,
            "turn_detection": {
                "type": "server_vad",
                "threshold": turns.threshold,
                "prefix_padding_ms": turns.prefix_padding_ms,
                "silence_duration_ms": turns.silence_duration_ms,
                "idle_timeout_ms": None,
                "create_response": True,
                "interrupt_response": True,
            },
        }
        session: dict[str, Any] = {"type": intent, "id": session_id, "expires_at": expires_at_s}
        if intent == "transcription":
            for key in ("create_response", "interrupt_response", "idle_timeout_ms"):
                del audio_input["turn_detection"][key]
            audio_input["transcription"] = {"model": config.model.recogniser}
            session |= {
                "object": "realtime.transcription_session",
                "audio": {"input": audio_input},
                "include": None,
            }
            return cls(session, config, voices)
        voice = config.model.voice if config.model.voice in voices else voices[0]
        session |= {
            "object": "realtime.session",
            "model": model,
            "output_modalities": ["audio"],
            "instructions": config.model.instructions,
            "tools": [],
            "tool_choice": "auto",
            "max_output_tokens": "inf",
            "truncation": "auto",
            "tracing": None,
            "prompt": None,
            "include": None,
            "audio": {
                "input": audio_input,
                "output": {
                    "format": {"type": "audio/pcm", "rate": 24_000},
                    "voice": voice,
                    "speed": 1.0,
                },
            },
        }
        return cls(session, config, voices)

    # --- Reading ---------------------------------------------------------------------------------

    def shown(self) -> dict[str, Any]:
        """The session as its client sees it: whoever shows a camera is told if that is kept."""
        omni = self.omni
        if omni is None or omni.get("describe") is None or not self._config.record:
            return self.wire
        return {**self.wire, "omni": {**omni, "recorded": True}}

    @property
    def intent(self) -> Intent:
        kind: Intent = self.wire["type"]
        return kind

    @property
    def instructions(self) -> str:
        return str(self.wire.get("instructions") or "")

    @property
    def tools(self) -> tuple[ToolSpec, ...]:
        return tuple(_tool(t) for t in self.wire.get("tools", ()))

    @property
    def input_format(self) -> AudioFormat:
        kind: AudioFormat = self.wire["audio"]["input"]["format"]["type"]
        return kind

    @property
    def transcription(self) -> Mapping[str, Any] | None:
        """Transcription options, or None when the client gets no transcription events."""
        options: Mapping[str, Any] | None = self.wire["audio"]["input"]["transcription"]
        return options

    @property
    def truncation(self) -> Any:
        return self.wire.get("truncation", "auto")

    @property
    def omni(self) -> Mapping[str, Any] | None:
        """Our own additions, None unless the client has asked for some."""
        options: Mapping[str, Any] | None = self.wire.get("omni")
        return options

    @property
    def detection(self) -> Detection | None:
        turn = self.wire["audio"]["input"]["turn_detection"]
        if turn is None:
            return None
        defaults = self._config.turns
        is_realtime = self.intent == "realtime"
        return Detection(
            kind=turn["type"],
            threshold=turn.get("threshold", defaults.threshold),
            prefix_padding_ms=turn.get("prefix_padding_ms", defaults.prefix_padding_ms),
            silence_duration_ms=turn.get("silence_duration_ms", defaults.silence_duration_ms),
            longest_wait_ms=LONGEST_WAIT_MS[turn.get("eagerness", "auto")],
            idle_timeout_ms=turn.get("idle_timeout_ms") if is_realtime else None,
            create_response=is_realtime and turn.get("create_response", True),
            interrupt_response=is_realtime and turn.get("interrupt_response", True),
        )

    # --- Changing --------------------------------------------------------------------------------

    def updated(
        self, patch: RealtimeSession | TranscriptionSession, *, has_spoken: bool
    ) -> Settings:
        """The session after ``patch``; ``has_spoken``: audio was sent, so the voice is locked.

        Raises:
            ClientError: the patch cannot be applied; nothing has changed.
        """
        if patch.type != self.intent:
            raise ClientError(
                "invalid_value",
                f"The session's type is '{self.intent}' and cannot be changed.",
                "session.type",
            )
        change = wire(patch)
        if isinstance(patch, RealtimeSession):
            self._check_model(change.pop("model", None))
            if (
                self.wire["tracing"] is not None
                and change.get("tracing", self.wire["tracing"]) != (self.wire["tracing"])
            ):
                raise ClientError(
                    "invalid_value",
                    "Tracing cannot be changed once it is on.",
                    "session.tracing",
                )
            voice = patch.audio and patch.audio.output and patch.audio.output.voice
            if voice:
                name = self._voice(voice_name(voice), "session.audio.output.voice", has_spoken)
                change["audio"]["output"]["voice"] = name
        session = _merge(self.wire, change)
        turn = session["audio"]["input"]["turn_detection"]
        if turn is not None:
            session["audio"]["input"]["turn_detection"] = self._complete_detection(turn)
        if len(json.dumps(session)) > MAX_SESSION_JSON_BYTES:
            raise ClientError(
                "invalid_value",
                f"The session would exceed {MAX_SESSION_JSON_BYTES} bytes of JSON.",
                "session",
            )
        return Settings(session, self._config, self._voices)

    def parsed_and_updated(self, session: Mapping[str, Any]) -> Settings:
        """The session after a JSON patch, such as a client secret carries.

        Raises:
            ClientError: see :meth:`updated`.
        """
        data = {"type": self.intent, **session}
        try:
            patch = _PATCH.validate_python(data)
        except ValidationError as error:
            raise_client_error(error, data)
        return self.updated(patch, has_spoken=False)

    def with_describe(self, options: Mapping[str, Any]) -> Settings:
        """The session after the user has changed describe mode by voice or key."""
        omni = {**(self.omni or {}), "describe": dict(options)}
        return Settings({**self.wire, "omni": omni}, self._config, self._voices)

    def _complete_detection(self, turn: dict[str, Any]) -> dict[str, Any]:
        """``turn`` with the defaults of its kind for what the client left out."""
        defaults: dict[str, Any] = {"type": turn["type"]}
        if turn["type"] == "server_vad":
            turns = self._config.turns
            defaults |= {
                "threshold": turns.threshold,
                "prefix_padding_ms": turns.prefix_padding_ms,
                "silence_duration_ms": turns.silence_duration_ms,
            }
            if self.intent == "realtime":
                defaults["idle_timeout_ms"] = None
        else:
            defaults["eagerness"] = "auto"
        if self.intent == "realtime":
            defaults |= {"create_response": True, "interrupt_response": True}
        return {**defaults, **turn}

    def _check_model(self, model: str | None) -> None:
        """The model is fixed, but its other names are no reason to fail an update."""
        names = (self.wire["model"], "default", self._config.model.backbone)
        aliases = self._config.model.aliases
        if model and model not in names and not any(fnmatchcase(model, a) for a in aliases):
            raise ClientError(
                "invalid_value",
                f"The session's model is '{names[0]}' and cannot be changed to '{model}'.",
                "session.model",
            )

    def _voice(self, name: str, param: str, has_spoken: bool) -> str:
        if name not in self._voices and name not in HOSTED_VOICES:
            raise ClientError(
                "invalid_value",
                f"Invalid value: '{name}'. Voices: {', '.join(self._voices)}, and "
                f"{', '.join(HOSTED_VOICES)}, which mean the default voice.",
                param,
            )
        if has_spoken and name != self.wire["audio"]["output"]["voice"]:
            raise ClientError(
                "cannot_update_voice",
                "Cannot update a conversation's voice if assistant audio is present.",
                param,
            )
        return name

    # --- Responses -------------------------------------------------------------------------------

    def response(
        self, params: ResponseParams | None = None, *, has_spoken: bool = False
    ) -> ResponseSettings:
        """What a response begun now is made with.

        Raises:
            ClientError: a voice that is unknown or locked.
        """
        params = params or ResponseParams()
        output = self.wire["audio"]["output"]
        audio = params.audio.output if params.audio and params.audio.output else None
        voice = output["voice"]
        if audio and audio.voice:
            voice = self._voice(voice_name(audio.voice), "response.audio.output.voice", has_spoken)
        max_tokens = params.max_output_tokens or self.wire["max_output_tokens"]
        choice = wire_choice(params) or self.wire["tool_choice"]
        modality = (params.output_modalities or self.wire["output_modalities"])[0]
        default = self._config.model.voice
        spoken = voice if voice in self._voices else default
        return ResponseSettings(
            config=ResponseConfig(
                modality=modality,
                voice=spoken if spoken in self._voices else self._voices[0],
                speed=output["speed"],
                max_output_tokens=MAX_OUTPUT_TOKENS if max_tokens == "inf" else max_tokens,
                tool_choice=choice if isinstance(choice, str) else f"function:{choice['name']}",
            ),
            audio_format=(
                audio.format.type if audio and audio.format else output["format"]["type"]
            ),
            voice=voice,
            max_output_tokens=max_tokens,
            metadata=params.metadata,
            is_in_band=params.conversation != "none",
        )


_PATCH: TypeAdapter[RealtimeSession | TranscriptionSession] = TypeAdapter(SessionPatch)


def wire_choice(params: ResponseParams) -> Any:
    """``tool_choice`` as JSON, or None."""
    choice = params.tool_choice
    return choice if choice is None or isinstance(choice, str) else wire(choice)


def tool_specs(tools: list[FunctionTool]) -> tuple[ToolSpec, ...]:
    """Tools of one response as the assistant takes them."""
    return tuple(ToolSpec(t.name, t.description, dict(t.parameters)) for t in tools)


def _tool(tool: Mapping[str, Any]) -> ToolSpec:
    return ToolSpec(tool["name"], tool.get("description", ""), tool.get("parameters", {}))


def _merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the keys of ``change``: objects merge, arrays and values are replaced."""
    merged = dict(base)
    for key, value in change.items():
        merged[key] = value
        old = base.get(key)
        if isinstance(value, dict) and isinstance(old, dict) and key not in _VALUE_KEYS:
            # Another kind of turn detection starts from its own defaults.
            is_other_kind = key == "turn_detection" and value["type"] != old["type"]
            merged[key] = value if is_other_kind else _merge(old, value)
        if key == "format" and merged[key]["type"] == "audio/pcm":
            merged[key] = {"type": "audio/pcm", "rate": 24_000}
        if key == "tools":
            merged[key] = [{"type": "function", **tool} for tool in value]
    return merged
