"""Wire types of ``POST /v1/chat/completions`` and what they ask of the assistant.

Used by :mod:`omni_streaming.chat_completions`. pydantic, strict, as :mod:`omni_streaming.items`: a
key that is not declared is an error. Keys that only matter to a hosted service are accepted and
ignored (:class:`Ignored`); keys that would change the answer and are not supported are accepted
with the one value that changes nothing. Sans-I/O.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, JsonValue, Tag, ValidationError

from omni.errors import InputError
from omni.types import (
    CallPart,
    Conversation,
    MediaPart,
    Message,
    Part,
    ResponseConfig,
    ResultPart,
    TextPart,
    ToolSpec,
)
from omni_streaming.events import MAX_ELEMENTS, parse_json, raise_client_error
from omni_streaming.items import ClientError, Wire
from omni_streaming.pictures import read_data_uri

MAX_MESSAGES = 1000
MAX_PARTS = 64
MAX_TOOLS = 128
MAX_PICTURES = 32
"""As many as a Realtime session keeps."""
MAX_STOPS = 4
MAX_STOP_CHARS = 256
MAX_BYTES_PER_TOKEN = 8
"""Text longer than this for every token of the context is refused without counting its tokens: to
count those of 256 KiB holds up other sessions for half a second. Ordinary text has 2 to 5."""

DEFAULT_INSTRUCTIONS = "You are a helpful assistant."
"""Stands in for a system message: the server's own instructions are for answers that are heard."""

MAX_OUTPUT_TOKENS = 2**20
SMALLEST_TOP_P = 1e-6
"""What 0 means: the likeliest token alone."""

ROLES = ("system", "developer", "user", "assistant", "tool")


# --- Messages ------------------------------------------------------------------------------------


def _by_type(value: object) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    # Bracketed, so that the paths of errors can drop them.
    return f"<{kind}>" if isinstance(kind, str) else None


def _by_role(value: object) -> str | None:
    role = value.get("role") if isinstance(value, dict) else getattr(value, "role", None)
    return f"<{role}>" if isinstance(role, str) else None


class Text(Wire):
    type: Literal["text"]
    text: str


class ImageUrl(Wire):
    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class Image(Wire):
    type: Literal["image_url"]
    image_url: ImageUrl


class RefusalPart(Wire):
    type: Literal["refusal"]
    refusal: str


def _as_parts(content: object) -> object:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


Texts = Annotated[list[Text], BeforeValidator(_as_parts), Field(max_length=MAX_PARTS)]
Shown = Annotated[
    list[
        Annotated[
            Annotated[Text, Tag("<text>")] | Annotated[Image, Tag("<image_url>")],
            Discriminator(_by_type),
        ]
    ],
    BeforeValidator(_as_parts),
    Field(min_length=1, max_length=MAX_PARTS),
]
Said = Annotated[
    list[
        Annotated[
            Annotated[Text, Tag("<text>")] | Annotated[RefusalPart, Tag("<refusal>")],
            Discriminator(_by_type),
        ]
    ],
    BeforeValidator(_as_parts),
    Field(max_length=MAX_PARTS),
]
CallId = Annotated[str, Field(min_length=1, max_length=256)]


class SystemMessage(Wire):
    role: Literal["system", "developer"]
    content: Texts
    name: str | None = None


class UserMessage(Wire):
    role: Literal["user"]
    content: Shown
    name: str | None = None


class CalledFunction(Wire):
    name: str = Field(min_length=1, max_length=64)
    arguments: str


class ToolCallOf(Wire):
    id: CallId
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None  # of those who send back what was streamed to them


class AssistantMessage(Wire):
    role: Literal["assistant"]
    content: Said | None = None
    refusal: str | None = None
    tool_calls: Annotated[list[ToolCallOf], Field(max_length=MAX_TOOLS)] | None = None
    name: str | None = None
    annotations: list[JsonValue] | None = None


class ToolMessage(Wire):
    role: Literal["tool"]
    content: Texts
    tool_call_id: CallId
    name: str | None = None


AnyMessage = Annotated[
    Annotated[SystemMessage, Tag("<system>")]
    | Annotated[SystemMessage, Tag("<developer>")]
    | Annotated[UserMessage, Tag("<user>")]
    | Annotated[AssistantMessage, Tag("<assistant>")]
    | Annotated[ToolMessage, Tag("<tool>")],
    Discriminator(_by_role),
]


# --- The request ---------------------------------------------------------------------------------


class Function(Wire):
    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str = ""
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    strict: bool | None = None  # calls are checked by whoever carries them out


class Tool(Wire):
    type: Literal["function"]
    function: Function


class ChosenFunction(Wire):
    name: str = Field(max_length=64)


class Choice(Wire):
    type: Literal["function"]
    function: ChosenFunction


class StreamOptions(Wire):
    include_usage: bool = False
    include_obfuscation: bool | None = None


class ResponseFormat(Wire):
    type: Literal["text"]


class Ignored(Wire):
    """Keys without any effect here: bookkeeping, caching and routing of a hosted service, and
    wishes that a model on one's own machine has no way to grant."""

    user: str | None = None
    metadata: dict[str, JsonValue] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None


def _as_list(stop: object) -> object:
    return [stop] if isinstance(stop, str) else stop


Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Number = Annotated[int, Field(ge=1, le=MAX_OUTPUT_TOKENS)]
Zero = Annotated[float, Field(ge=0, le=0)]


class Request(Ignored):
    messages: list[AnyMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Number | None = None
    max_completion_tokens: Number | None = None
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: Annotated[list[Stop], BeforeValidator(_as_list), Field(max_length=MAX_STOPS)] = Field(
        default_factory=list
    )
    tools: list[Tool] = Field(default_factory=list, max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | Choice | None = None
    # What would change the answer, at the value that does not.
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None
    logprobs: Literal[False] | None = None
    logit_bias: Annotated[dict[str, JsonValue], Field(max_length=0)] | None = None
    response_format: ResponseFormat | None = None
    modalities: list[Literal["text"]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request as the assistant takes it."""

    conversation: Conversation
    config: ResponseConfig
    stop: tuple[str, ...] = ()
    is_streamed: bool = False
    has_usage: bool = False  # a last chunk says what it cost
    model: str | None = None


def parse(body: bytes, *, max_context_tokens: int) -> Ask:
    """What the request in ``body`` asks.

    Raises:
        ClientError: with code and param as the hosted service has them.
    """
    data = _object(body)
    for index, message in enumerate(_list(data.get("messages"))):
        role = message.get("role") if isinstance(message, dict) else None
        if role is not None and role not in ROLES:
            raise ClientError(
                "invalid_value",
                f"Invalid value: {str(role)[:100]!r}. Supported values are: {', '.join(ROLES)}.",
                f"messages[{index}].role",
            )
    try:
        request = Request.model_validate(data)
    except ValidationError as error:
        raise_client_error(error, data)
    tools = tuple(
        ToolSpec(t.function.name, t.function.description, dict(t.function.parameters))
        for t in request.tools
    )
    instructions, messages = _messages(request.messages)
    conversation = Conversation(
        instructions=instructions or DEFAULT_INSTRUCTIONS, tools=tools, messages=messages
    )
    _check_length(conversation, max_context_tokens)
    limits = (request.max_tokens, request.max_completion_tokens)
    max_tokens = min((limit for limit in limits if limit is not None), default=MAX_OUTPUT_TOKENS)
    seed = request.seed if request.seed is not None else secrets.randbits(63)
    return Ask(
        conversation=conversation,
        config=ResponseConfig(
            modality="text",
            max_output_tokens=max_tokens,
            tool_choice=_choice(request, tools),
            temperature=request.temperature,
            top_p=max(request.top_p, SMALLEST_TOP_P),
            seed=seed % 2**63,
            is_whole=True,
        ),
        stop=tuple(request.stop),
        is_streamed=request.stream,
        has_usage=bool(request.stream_options and request.stream_options.include_usage),
        model=request.model,
    )


def _object(body: bytes) -> dict[str, Any]:
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_ELEMENTS:
        raise ClientError(
            "invalid_value", f"The request has more than {MAX_ELEMENTS} values; send fewer at once."
        )
    try:
        # Strict, where json would let surrogates pass that are written as bytes.
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ClientError("invalid_json", f"The body is not valid JSON: {error}") from None
    data = parse_json(text, "body")
    if not isinstance(data, dict):
        raise ClientError("invalid_json", "The body is not a JSON object.")
    return data


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _choice(request: Request, tools: tuple[ToolSpec, ...]) -> str:
    choice = request.tool_choice
    if choice is None or choice == "none" or (choice == "auto" and tools):
        return choice or "auto"
    if not tools:
        raise ClientError(
            "invalid_value", "'tool_choice' is only allowed when 'tools' are given.", "tool_choice"
        )
    if not isinstance(choice, Choice):
        return choice
    if choice.function.name not in {tool.name for tool in tools}:
        raise ClientError(
            "invalid_value",
            f"Tool choice '{choice.function.name}' is not among the 'tools'.",
            "tool_choice",
        )
    return f"function:{choice.function.name}"


def _messages(
    sources: list[SystemMessage | UserMessage | AssistantMessage | ToolMessage],
) -> tuple[str, tuple[Message, ...]]:
    """(instructions: the system messages at the beginning, all that follows)."""
    instructions: list[str] = []
    messages: list[Message] = []
    calls: set[str] = set()
    num_pictures = 0
    for index, source in enumerate(sources):
        where = f"messages[{index}]"
        match source:
            case SystemMessage():
                if not messages:
                    instructions.append(_text(source.content))
                else:
                    messages.append(Message("system", (TextPart(_text(source.content)),)))
            case UserMessage():
                parts: list[Part] = []
                for at, part in enumerate(source.content):
                    if isinstance(part, Image):
                        num_pictures += 1
                        parts.append(_picture(part, num_pictures, f"{where}.content[{at}]"))
                    else:
                        parts.append(TextPart(part.text))
                messages.append(Message("user", tuple(parts)))
            case AssistantMessage():
                messages.append(_assistant(source, where))
                calls |= {call.id for call in source.tool_calls or ()}
            case ToolMessage():
                if source.tool_call_id not in calls:
                    raise ClientError(
                        "invalid_value",
                        "A message with role 'tool' must answer a preceding message with "
                        f"'tool_calls': none has the id '{source.tool_call_id}'.",
                        f"{where}.tool_call_id",
                    )
                result = ResultPart(source.tool_call_id, _text(source.content))
                messages.append(Message("tool", (result,)))
    if not messages:  # the model needs something to answer
        messages.append(Message("user", (TextPart(instructions.pop()),)))
    return "\n\n".join(filter(None, instructions)), tuple(messages)


def _text(content: list[Text]) -> str:
    return "\n".join(part.text for part in content)


def _picture(part: Image, number: int, where: str) -> MediaPart:
    if number > MAX_PICTURES:
        raise ClientError(
            "invalid_value", f"A request has at most {MAX_PICTURES} images.", f"{where}.image_url"
        )
    try:
        data = read_data_uri(part.image_url.url)
    except InputError as error:
        raise ClientError("invalid_value", str(error), f"{where}.image_url.url") from None
    is_small = part.image_url.detail == "low"
    return MediaPart(f"image_{number}", "image", data, is_small=is_small)


def _assistant(source: AssistantMessage, where: str) -> Message:
    texts = [p.text if isinstance(p, Text) else p.refusal for p in source.content or ()]
    text = "\n".join([*texts, source.refusal] if source.refusal else texts)
    parts: list[Part] = [TextPart(text)] if text else []
    parts += [
        CallPart(call.id, call.function.name, call.function.arguments)
        for call in source.tool_calls or ()
    ]
    if not parts and source.content is None:
        raise ClientError(
            "invalid_value",
            "An assistant's message has 'content', 'tool_calls' or both.",
            f"{where}.content",
        )
    return Message("assistant", tuple(parts or [TextPart("")]))


def _check_length(conversation: Conversation, max_context_tokens: int) -> None:
    num_bytes = len(conversation.instructions.encode())
    num_bytes += sum(len(str(tool).encode()) for tool in conversation.tools)
    for message in conversation.messages:
        for part in message.parts:
            match part:
                case TextPart(text) | CallPart(arguments=text) | ResultPart(output=text):
                    num_bytes += len(text.encode())
    if num_bytes > max_context_tokens * MAX_BYTES_PER_TOKEN:
        raise ClientError(
            "context_length_exceeded",
            f"The messages and tools are {num_bytes} bytes of text; the model's context is "
            f"{max_context_tokens} tokens. Shorten them.",
            "messages",
        )


class StopStrings:
    """Cuts an answer exactly before the first of ``stops``, in whatever pieces it comes."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.has_stopped = False

    def push(self, text: str) -> str:
        """What of the answer so far may be shown now; the beginning of a stop is held back."""
        if self.has_stopped:
            return ""
        text = self._held + text
        # Of stops that end at the same place the longer began first; of others the first to end.
        ends = [(at + len(s), -len(s)) for s in self._stops if (at := text.find(s)) >= 0]
        if ends:
            end, minus_length = min(ends)
            self.has_stopped = True
            self._held = ""
            return text[: end + minus_length]
        kept = max(
            (n for s in self._stops for n in range(1, len(s)) if text.endswith(s[:n])), default=0
        )
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def flush(self) -> str:
        """The answer has ended: what was held back."""
        text, self._held = self._held, ""
        return text
