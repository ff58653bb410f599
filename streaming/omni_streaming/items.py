"""Wire types of the Realtime protocol that clients send: sessions, items, tools, responses.

The only home of these types, with :mod:`omni_streaming.events`. pydantic, strict: no conversions,
and a key that is not declared is an error. A null counts as an absent key except where a model
says otherwise (:attr:`Wire.nullable`); LiveKit sends ``instructions: null``.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    field_validator,
    model_validator,
)

from omni.errors import InputError

MAX_ID_CHARS = 32
MAX_NAMES = 128
"""Entries of a list of names, such as languages or keywords."""
MAX_METADATA_PAIRS = 16
MAX_METADATA_KEY_CHARS = 64
MAX_METADATA_VALUE_CHARS = 512
MAX_SILENCE_MS = 10_000
MAX_PREFIX_MS = 5_000

HOSTED_VOICES = (
    "alloy", "ash", "ballad", "cedar", "coral", "echo", "marin", "sage", "shimmer", "verse",
)  # fmt: skip
"""Voices of the hosted service: accepted, and spoken with the default voice."""

ErrorType = Literal["invalid_request_error", "server_error", "rate_limit_error"]


class ClientError(InputError):
    """A client event that cannot be carried out; becomes one ``error`` event.

    ``code`` and ``param`` follow the protocol's table; ``event_id`` is the client's own id.
    """

    def __init__(
        self,
        code: str,
        message: str,
        param: str | None = None,
        event_id: str | None = None,
        kind: ErrorType = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.event_id = event_id
        self.kind: ErrorType = kind


class Wire(BaseModel):
    """Base of everything that clients send."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    nullable: ClassVar[frozenset[str]] = frozenset()
    """Keys whose null means something; every other null is as good as absent."""

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        present = {k: v for k, v in value.items() if v is not None or k in cls.nullable}
        # One unknown key is enough to refuse the rest: pydantic would make an error of each.
        unknown = [k for k in present if k not in cls.model_fields]
        for key in unknown[1:]:
            del present[key]
        return present


def _tagged(key: str, default: str | None = None) -> Discriminator:
    """Choose a union's member by ``key``; tags are bracketed so that error paths can drop them."""

    def choose(value: object) -> str | None:
        tag = value.get(key) if isinstance(value, dict) else getattr(value, key, None)
        tag = default if tag is None else tag
        return f"<{tag}>" if isinstance(tag, str) else None

    return Discriminator(choose)


# --- Audio formats, voices, tools ----------------------------------------------------------------


class PcmFormat(Wire):
    type: Literal["audio/pcm"]
    rate: Literal[24000] = 24000


class UlawFormat(Wire):
    type: Literal["audio/pcmu"]


class AlawFormat(Wire):
    type: Literal["audio/pcma"]


Format = Annotated[
    Annotated[PcmFormat, Tag("<audio/pcm>")]
    | Annotated[UlawFormat, Tag("<audio/pcmu>")]
    | Annotated[AlawFormat, Tag("<audio/pcma>")],
    _tagged("type"),
]


class VoiceId(Wire):
    id: str = Field(min_length=1, max_length=256)


Voice = Annotated[str, Field(min_length=1, max_length=256)] | VoiceId


class FunctionTool(Wire):
    type: Literal["function"] = "function"
    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str = ""
    parameters: dict[str, JsonValue] = Field(default_factory=dict)


Tool = Annotated[Annotated[FunctionTool, Tag("<function>")], _tagged("type", "function")]


class FunctionChoice(Wire):
    type: Literal["function"]
    name: str = Field(max_length=64)


ToolChoice = Literal["none", "auto", "required"] | FunctionChoice
Modalities = Annotated[list[Literal["audio", "text"]], Field(min_length=1, max_length=1)]
MaxTokens = Annotated[int, Field(ge=1, le=4096)] | Literal["inf"]


# --- The session object --------------------------------------------------------------------------


class ServerVad(Wire):
    nullable = frozenset({"idle_timeout_ms"})
    type: Literal["server_vad"]
    threshold: float | None = Field(None, ge=0.0, le=1.0)
    prefix_padding_ms: int | None = Field(None, ge=0, le=MAX_PREFIX_MS)
    silence_duration_ms: int | None = Field(None, ge=0, le=MAX_SILENCE_MS)
    idle_timeout_ms: int | None = Field(None, ge=5_000, le=30_000)
    create_response: bool | None = None
    interrupt_response: bool | None = None


class SemanticVad(Wire):
    type: Literal["semantic_vad"]
    eagerness: Literal["low", "medium", "high", "auto"] | None = None
    create_response: bool | None = None
    interrupt_response: bool | None = None


TurnDetection = Annotated[
    Annotated[ServerVad, Tag("<server_vad>")] | Annotated[SemanticVad, Tag("<semantic_vad>")],
    _tagged("type"),
]


class NoiseReduction(Wire):
    type: Literal["near_field", "far_field"]
    strength: float | None = None


Names = Annotated[list[str], Field(max_length=MAX_NAMES)]


class Transcription(Wire):
    model: str | None = None
    language: str | None = None
    languages: Names | None = None
    prompt: str | None = None
    keywords: Names | None = None
    delay: Literal["minimal", "low", "medium", "high", "xhigh"] | None = None


class AudioInput(Wire):
    nullable = frozenset({"noise_reduction", "transcription", "turn_detection"})
    format: Format | None = None
    noise_reduction: NoiseReduction | None = None
    transcription: Transcription | None = None
    turn_detection: TurnDetection | None = None


class AudioOutput(Wire):
    format: Format | None = None
    voice: Voice | None = None
    speed: float | None = Field(None, ge=0.25, le=1.5)


class SessionAudio(Wire):
    input: AudioInput | None = None
    output: AudioOutput | None = None


class TokenLimits(Wire):
    post_instructions: int | None = Field(None, ge=0)


class RetentionRatio(Wire):
    type: Literal["retention_ratio"]
    retention_ratio: float = Field(ge=0.0, le=1.0)
    token_limits: TokenLimits | None = None


Pairs = Annotated[dict[str, JsonValue], Field(max_length=MAX_NAMES)]


class Tracing(Wire):
    workflow_name: str | None = None
    group_id: str | None = None
    metadata: Pairs | None = None


class Prompt(Wire):
    id: str
    version: str | None = None
    variables: Pairs | None = None


class Reasoning(Wire):
    effort: str | None = None


Include = Annotated[
    list[Literal["item.input_audio_transcription.logprobs"]], Field(max_length=MAX_NAMES)
]


class Describe(Wire):
    """Live description of the camera, our own addition; see ``streaming/README.md``."""

    verbosity: Literal["brief", "normal", "detailed"] | None = None
    units: Literal["metric", "imperial", "steps"] | None = None
    directions: Literal["sides", "clock"] | None = None
    language: Literal["en"] | None = None
    rate: float | None = Field(None, ge=0.25, le=2.5)  # in place of audio.output.speed
    hazards: bool | None = None
    quiet: bool | None = None


class OmniOptions(Wire):
    """The one extra key of a session; shown only to clients that have sent it."""

    nullable = frozenset({"describe"})
    describe: Describe | None = None


class RealtimeSession(Wire):
    """What ``session.update`` may carry; a key that is absent stays as it is."""

    type: Literal["realtime"]
    model: str | None = None
    output_modalities: Modalities | None = None
    instructions: str | None = None
    audio: SessionAudio | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    max_output_tokens: MaxTokens | None = None
    truncation: Literal["auto", "disabled"] | RetentionRatio | None = None
    tracing: Literal["auto"] | Tracing | None = None
    prompt: Prompt | None = None
    include: Include | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    omni: OmniOptions | None = None


class TranscriptionAudio(Wire):
    input: AudioInput | None = None


class TranscriptionSession(Wire):
    type: Literal["transcription"]
    audio: TranscriptionAudio | None = None
    include: Include | None = None


SessionPatch = Annotated[
    Annotated[RealtimeSession, Tag("<realtime>")]
    | Annotated[TranscriptionSession, Tag("<transcription>")],
    _tagged("type"),
]


# --- Conversation items --------------------------------------------------------------------------


class InputText(Wire):
    type: Literal["input_text"]
    text: str


class InputAudio(Wire):
    type: Literal["input_audio"]
    audio: str | None = None
    transcript: str | None = None


class InputImage(Wire):
    type: Literal["input_image"]
    image_url: str
    detail: Literal["auto", "low", "high"] | None = None


class OutputText(Wire):
    type: Literal["output_text"]
    text: str


class ItemBase(Wire):
    id: str | None = Field(None, min_length=1, max_length=MAX_ID_CHARS)
    object: Literal["realtime.item"] | None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None


MAX_CONTENT_PARTS = 64


class SystemMessage(ItemBase):
    type: Literal["message"]
    role: Literal["system"]
    content: list[InputText] = Field(max_length=MAX_CONTENT_PARTS)


UserPart = Annotated[
    Annotated[InputText, Tag("<input_text>")]
    | Annotated[InputAudio, Tag("<input_audio>")]
    | Annotated[InputImage, Tag("<input_image>")],
    _tagged("type"),
]


class UserMessage(ItemBase):
    type: Literal["message"]
    role: Literal["user"]
    content: list[UserPart] = Field(max_length=MAX_CONTENT_PARTS)


class AssistantMessage(ItemBase):
    type: Literal["message"]
    role: Literal["assistant"]
    content: list[OutputText] = Field(max_length=MAX_CONTENT_PARTS)


MessageItem = Annotated[
    Annotated[SystemMessage, Tag("<system>")]
    | Annotated[UserMessage, Tag("<user>")]
    | Annotated[AssistantMessage, Tag("<assistant>")],
    _tagged("role"),
]


class FunctionCallItem(ItemBase):
    type: Literal["function_call"]
    name: str = Field(min_length=1, max_length=64)
    arguments: str
    call_id: str | None = Field(None, min_length=1, max_length=MAX_ID_CHARS)


class FunctionOutputItem(ItemBase):
    type: Literal["function_call_output"]
    call_id: str = Field(min_length=1, max_length=MAX_ID_CHARS)
    output: str


class ItemReference(Wire):
    type: Literal["item_reference"]
    id: str = Field(max_length=MAX_ID_CHARS)


NewItem = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[FunctionCallItem, Tag("<function_call>")]
    | Annotated[FunctionOutputItem, Tag("<function_call_output>")],
    _tagged("type"),
]
InputItem = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[FunctionCallItem, Tag("<function_call>")]
    | Annotated[FunctionOutputItem, Tag("<function_call_output>")]
    | Annotated[ItemReference, Tag("<item_reference>")],
    _tagged("type"),
]
AnyItem = SystemMessage | UserMessage | AssistantMessage | FunctionCallItem | FunctionOutputItem


# --- response.create -----------------------------------------------------------------------------


class ResponseAudioOutput(Wire):
    format: Format | None = None
    voice: Voice | None = None


class ResponseAudio(Wire):
    output: ResponseAudioOutput | None = None


class ResponseParams(Wire):
    """``response`` of ``response.create``: what differs from the session for one response."""

    output_modalities: Modalities | None = None
    instructions: str | None = None
    audio: ResponseAudio | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    max_output_tokens: MaxTokens | None = None
    metadata: Annotated[dict[str, str], Field(max_length=MAX_METADATA_PAIRS)] | None = None
    conversation: Literal["auto", "none"] | None = None
    input: Annotated[list[InputItem], Field(max_length=1000)] | None = None
    prompt: Prompt | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None

    @field_validator("metadata")
    @classmethod
    def _bounded(cls, pairs: dict[str, str] | None) -> dict[str, str] | None:
        for key, value in (pairs or {}).items():
            if len(key) > MAX_METADATA_KEY_CHARS or len(value) > MAX_METADATA_VALUE_CHARS:
                raise ValueError(
                    f"keys are at most {MAX_METADATA_KEY_CHARS} and values at most "
                    f"{MAX_METADATA_VALUE_CHARS} characters"
                )
        return pairs


def voice_name(voice: str | VoiceId) -> str:
    """The name in either spelling of a voice."""
    return voice if isinstance(voice, str) else voice.id


def wire(value: Wire) -> dict[str, Any]:
    """The keys that the client sent, as JSON."""
    dumped: dict[str, Any] = value.model_dump(mode="json", exclude_unset=True)
    return dumped
