"""Plain values that cross the seams of Omni: spans, the conversation, commands and outputs.

Data goes down as :data:`Command` and comes up as :data:`Output`. Encoders turn media into
:data:`Span`. Nothing here knows torch, sockets or clocks; every layer may import it.

Units: ``_ms`` milliseconds on the session's audio clock (samples received), ``_samples`` samples at
the rate named beside them. Audio going in is float32 mono 16 kHz in [-1, 1]; audio coming out is
int16 little-endian mono at :data:`OUTPUT_RATE_HZ`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from omni.scene import Scene

INPUT_RATE_HZ = 16_000
"""Rate at which encoders hear (Whisper, silero and smart-turn are all trained at 16 kHz)."""

OUTPUT_RATE_HZ = 24_000
"""Rate at which speech decoders speak (the Realtime API's only PCM rate)."""


# --- Spans: what encoders emit -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSpan:
    """A run of recognised text. ``final`` spans are never revised by a later pass.

    ``text`` carries its own leading space, so spans concatenate to the transcript.
    """

    text: str
    start_ms: int
    end_ms: int
    final: bool
    confidence: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingSpan:
    """A run of embeddings that takes the place of tokens.

    ``embeddings`` [T, D] in the backbone's width; ``positions`` [T] or [3, T] relative to the span.
    """

    embeddings: torch.Tensor
    positions: torch.Tensor
    start_ms: int
    end_ms: int
    final: bool


Span = TextSpan | EmbeddingSpan

EMBEDDING_ID = -1
"""Stands among token ids where an embedding takes a token's place."""


# --- The conversation: the truth of which a sequence is a cache ----------------------------------


@dataclass(frozen=True, slots=True)
class TextPart:
    text: str


@dataclass(frozen=True, slots=True)
class AudioPart:
    """What the user said in one turn; the assistant knows the turn's spans by ``turn_id``.

    ``transcript`` is what stands for the turn when the assistant no longer has it.
    """

    turn_id: str
    transcript: str | None = None


@dataclass(frozen=True, slots=True)
class MediaPart:
    """A picture or a clip that the user showed; ``media_id`` stands for ``data``, the file's bytes.

    The same id is the same file, always: it is looked at once.
    """

    media_id: str
    kind: Literal["image", "video"]
    data: bytes = field(compare=False, repr=False)
    is_small: bool = False  # a low level of detail is enough


@dataclass(frozen=True, slots=True)
class CallPart:
    """A tool call that the assistant made; ``arguments`` is JSON text as generated."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ResultPart:
    """What a tool answered."""

    call_id: str
    output: str


Part = TextPart | AudioPart | MediaPart | CallPart | ResultPart


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the conversation.

    An assistant message keeps the ``response_id`` that generated it, so that its very tokens are
    reused when its text is unchanged, and their prefix when the user heard only a part.
    """

    role: Literal["system", "user", "assistant", "tool"]
    parts: tuple[Part, ...]
    response_id: str | None = None


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A function the model may call; ``parameters`` is a JSON schema."""

    name: str
    description: str
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Everything that the backbone's context is rendered from."""

    instructions: str = ""
    tools: tuple[ToolSpec, ...] = ()
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseConfig:
    """How one response is to be made; fixed at its start."""

    modality: Literal["audio", "text"] = "audio"
    voice: str = "heart"
    speed: float = 1.0
    """Speech speed, 0.25..2.5; 1.0 is the voice's own pace."""
    max_output_tokens: int = 4096
    tool_choice: str = "auto"
    """``none``, ``auto``, ``required`` or ``function:NAME``."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    seed: int = 0
    is_whole: bool = False
    """Fail where the context cannot hold every message, rather than leave the oldest out."""


# --- Commands: what a session asks of the assistant ----------------------------------------------


@dataclass(frozen=True, slots=True)
class Open:
    """A session begins; the assistant starts computing its system prompt."""

    session_id: str
    conversation: Conversation


@dataclass(frozen=True, slots=True)
class Feed:
    """Audio of the user's current turn: ``samples`` [n] float32 16 kHz, in order, without gaps.

    The first Feed of a ``turn_id`` opens the turn; ``start_ms`` is where these samples begin.
    """

    session_id: str
    turn_id: str
    samples: NDArray[np.float32]
    start_ms: int


@dataclass(frozen=True, slots=True)
class ScoreTurn:
    """Ask whether the turn sounds finished; answered by :class:`TurnScore`."""

    session_id: str
    turn_id: str


@dataclass(frozen=True, slots=True)
class Commit:
    """The turn has ended: nothing more is fed. Answered by :class:`TranscriptDone`."""

    session_id: str
    turn_id: str


@dataclass(frozen=True, slots=True)
class Discard:
    """The turn's audio was cleared: forget it. No answer."""

    session_id: str
    turn_id: str


@dataclass(frozen=True, slots=True)
class Edit:
    """The conversation changed, in whatever way: this is now the whole of it."""

    session_id: str
    conversation: Conversation


@dataclass(frozen=True, slots=True)
class Speculate:
    """Begin a response as if ``turn_id`` had ended now; nobody hears it before :class:`Confirm`.

    Outputs of a speculative response come up like any other; the session holds them back.
    A tool call ends the speculation's text but is emitted as usual (the session holds it too).
    ``shown`` stands before the turn's words in the user's message.
    """

    session_id: str
    turn_id: str
    response_id: str
    config: ResponseConfig
    shown: tuple[MediaPart, ...] = ()


@dataclass(frozen=True, slots=True)
class Confirm:
    """The turn had indeed ended: its speculative response becomes the real one.

    Implies :class:`Commit` of the turn. A speculation is dropped with :class:`Cancel`.
    """

    session_id: str
    response_id: str


@dataclass(frozen=True, slots=True)
class Respond:
    """Generate a response to ``conversation`` (None: the session's, as of the last Edit).

    ``out_of_band`` responses run beside the session's own and leave no trace in its sequence.
    """

    session_id: str
    response_id: str
    config: ResponseConfig
    conversation: Conversation | None = None
    out_of_band: bool = False


@dataclass(frozen=True, slots=True)
class Say:
    """A response of given words: spoken (or written) as they are, without the backbone.

    It leaves no trace in the session's sequence until an Edit holds its message.
    """

    session_id: str
    response_id: str
    text: str
    config: ResponseConfig


@dataclass(frozen=True, slots=True)
class Look:
    """See one frame of the session's camera, taken at ``at_ms``; answered by :class:`Seen`.

    ``data`` is an image file. Frames come in order; whoever sends the next before the answer makes
    it wait.
    """

    session_id: str
    frame_id: str
    data: bytes = field(compare=False, repr=False)
    at_ms: int
    wants_text: bool = False  # read what is written there, too


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop a response now; no output with its id follows except one :class:`Done`."""

    session_id: str
    response_id: str


@dataclass(frozen=True, slots=True)
class Pause:
    """The client reads too slowly: generate nothing for the session until :class:`Resume`.

    Outputs that are already on their way still come, and so does the Done of a Cancel.
    """

    session_id: str


@dataclass(frozen=True, slots=True)
class Resume:
    """The client has caught up: generation goes on where :class:`Pause` stopped it."""

    session_id: str


@dataclass(frozen=True, slots=True)
class Close:
    """The session is gone; everything it holds is freed."""

    session_id: str


Command = (
    Open
    | Feed
    | ScoreTurn
    | Commit
    | Discard
    | Edit
    | Speculate
    | Confirm
    | Respond
    | Say
    | Look
    | Cancel
    | Pause
    | Resume
    | Close
)


# --- Outputs: what the assistant tells a session -------------------------------------------------


@dataclass(frozen=True, slots=True)
class TranscriptDelta:
    """Text of the user's turn that is now stable; deltas of a turn concatenate."""

    session_id: str
    turn_id: str
    text: str


@dataclass(frozen=True, slots=True)
class TranscriptDone:
    """The turn's final transcript; it may revise the deltas. Empty when no words were heard."""

    session_id: str
    turn_id: str
    text: str
    duration_ms: int
    language: str = "en"


@dataclass(frozen=True, slots=True)
class Seen:
    """What was in a frame; without a ``scene``, ``fault`` and ``reason`` say why."""

    session_id: str
    frame_id: str
    scene: Scene | None
    fault: Literal["", "skipped", "bad_picture", "no_eyes"] = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TurnScore:
    """Probability that the turn sounded finished, judged on its audio up to ``at_ms``."""

    session_id: str
    turn_id: str
    probability: float
    at_ms: int


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Text of the answer: what is (being) said, or written in the text modality."""

    session_id: str
    response_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Mark:
    """``num_chars`` of the response's text have been said once ``sample`` has been played.

    Both count from the start of the response; ``sample`` at :data:`OUTPUT_RATE_HZ`.
    """

    sample: int
    num_chars: int


@dataclass(frozen=True, slots=True)
class AudioDelta:
    """Speech: ``pcm`` int16 mono at :data:`OUTPUT_RATE_HZ`, with the alignment of what it says."""

    session_id: str
    response_id: str
    pcm: bytes
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCall:
    session_id: str
    response_id: str
    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens the engine really processed; ``cached_tokens`` of the input were already computed."""

    input_text_tokens: int = 0
    input_audio_tokens: int = 0
    input_image_tokens: int = 0
    cached_tokens: int = 0
    output_text_tokens: int = 0
    output_audio_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """What a response has used so far; one as it begins and one for every token.

    So that whoever ends a response knows what it cost without waiting for its :class:`Done`.
    """

    session_id: str
    response_id: str
    usage: Usage


@dataclass(frozen=True, slots=True)
class Done:
    """The one terminal output of a response that did not fail."""

    session_id: str
    response_id: str
    reason: Literal["completed", "max_output_tokens", "cancelled"]
    usage: Usage
    is_thinking: bool = False  # max_output_tokens ended it inside its thought


@dataclass(frozen=True, slots=True)
class Failed:
    """A response (or, with ``response_id`` None, the session) failed; others never notice."""

    session_id: str
    response_id: str | None
    code: str
    message: str


Output = (
    TranscriptDelta
    | TranscriptDone
    | TurnScore
    | Seen
    | TextDelta
    | AudioDelta
    | ToolCall
    | Progress
    | Done
    | Failed
)
