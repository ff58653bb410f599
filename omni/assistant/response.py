"""One response: tokens in, text and tool calls out, clauses to the speech decoder, PCM out.

Used by :mod:`omni.assistant.assistant` on the engine thread. Speech runs as parts, one clause at a
time and in order. Knows nothing of the engine or of turns.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from omni.assistant.priorities import PartPriority
from omni.assistant.thoughts import Thought
from omni.errors import CancelledError, OmniError
from omni.models.tokenizer import StreamDecoder
from omni.models.tool_calls import FunctionCall, ToolCallParser
from omni.speech.voices import resolve_voice
from omni.types import (
    AudioDelta,
    Conversation,
    Mark,
    Output,
    Progress,
    ResponseConfig,
    TextDelta,
    ToolCall,
    ToolSpec,
    Usage,
)

if TYPE_CHECKING:
    from omni.assistant.context import Generated
    from omni.assistant.listening import Turn
    from omni.models.template import ChatTemplate
    from omni.models.tokenizer import Tokenizer
    from omni.parts import Parts, Ticket
    from omni.speech.contract import SpeechChunk, SpeechDecoder, SpeechStream

logger = logging.getLogger(__name__)

APOLOGY = "Sorry, I could not answer that."
"""Said when a response fails: a person who listens must never be left in silence."""

LANGUAGES = {
    "ar": "Arabic", "de": "German", "es": "Spanish", "fr": "French", "hi": "Hindi",
    "it": "Italian", "ja": "Japanese", "ko": "Korean", "nl": "Dutch", "pl": "Polish",
    "pt": "Portuguese", "ru": "Russian", "tr": "Turkish", "uk": "Ukrainian", "zh": "Chinese",
}  # fmt: skip


def wrong_language(code: str) -> str:
    """What is said to a user who speaks the language ``code`` (ISO 639-1)."""
    name = LANGUAGES.get(code, "a language other than English")
    return f"That sounded like {name}. I only understand English."


def tool_opening(choice: str, template: ChatTemplate) -> tuple[list[int], str]:
    """How an answer is made to begin where ``choice`` (a tool_choice) wants a tool called."""
    if choice == "required":
        return template.call_opening(None)
    if choice.startswith("function:"):
        return template.call_opening(choice.removeprefix("function:"))
    return [], ""


_SENTENCE_END = re.compile(r"[.!?]\s+")


@dataclass(frozen=True, slots=True)
class Voice:
    """What makes a response heard; the same for all of them."""

    decoder: SpeechDecoder
    parts: Parts
    emit: Callable[[Output], None]


class Response:
    """One answer on its way from tokens to sound.

    ``turn`` is the spoken turn that a speculation answers; it stays when the turn is confirmed.
    """

    def __init__(
        self,
        session_id: str,
        response_id: str,
        config: ResponseConfig,
        voice: Voice,
        *,
        conversation: Conversation | None = None,
        out_of_band: bool = False,
        turn: Turn | None = None,
    ) -> None:
        self.session_id = session_id
        self.response_id = response_id
        self.config = config
        self.conversation = conversation
        self.out_of_band = out_of_band
        self.turn = turn
        self.is_speculative = turn is not None
        self.waiting_for: set[str] = set()
        self.sequence: int | None = None
        self.probe: int | None = None  # sequence that measures whether the turn is a sentence
        self.done_reason = "completed"
        self.is_without_tools = False
        self.is_closing = False  # it says its last words, which no model wrote
        self._voice = voice
        self._usage = Usage()
        self._num_tokens = 0
        self._num_calls = 0
        self._num_chars = 0  # of text given out
        self._num_samples = 0  # of sound given out
        self._generation_done = False
        self._dropped = False
        self._is_paused = False
        self._stream: SpeechStream | None = None
        self._stream_start = Mark(0, 0)  # what was given out when the stream began
        self._unspoken = ""
        self._speech: Ticket | None = None
        self._flushed = False

    @property
    def owns_session(self) -> bool:
        """Whether it runs (or will run) on the session's own sequence."""
        return not self.out_of_band and not self.is_speculative

    @property
    def is_complete(self) -> bool:
        """Generated to the end and, in the audio modality, spoken to the end."""
        spoken = self._stream is None or (self._flushed and self._speech is None)
        return self._generation_done and spoken

    @property
    def has_refused_call(self) -> bool:
        """Whether all it did was to call a tool that does not exist, or in broken JSON."""
        return self.is_empty and bool(self._parser.refused)

    @property
    def is_cut_in_thought(self) -> bool:
        """Whether the limit of tokens came before the end of its thought: nothing went wrong."""
        return self.done_reason == "max_output_tokens" and self._thought.is_open

    @property
    def is_cut_in_writing(self) -> bool:
        """Whether the limit of tokens ended a written answer, perhaps before its first word."""
        return self.config.modality == "text" and self.done_reason == "max_output_tokens"

    @property
    def is_empty(self) -> bool:
        return not self._num_chars and not self._num_calls

    def begin(
        self,
        *,
        generated: Generated,
        tokenizer: Tokenizer,
        tools: tuple[ToolSpec, ...],
        opening: str,
        is_thinking: bool,
        on_spoken: Callable[[], None],
        on_failed: Callable[[BaseException], None],
        usage: Usage,
    ) -> None:
        """Set up what turns tokens into text and sound; called when decoding begins.

        ``opening`` is the beginning of the answer that was chosen for the model; with
        ``is_thinking`` the answer comes after a thought, which nobody gets to know.
        """
        self._generation_done = self._flushed = False
        self._generated = generated
        self._decoder = StreamDecoder(tokenizer, special=bool(tools))
        self._thought = Thought(tokenizer, is_open=is_thinking)
        self._parser = ToolCallParser(tools)
        self._on_spoken = on_spoken
        self._on_failed = on_failed
        self._usage = replace(
            usage,  # a second try comes on top of the first
            input_text_tokens=self._usage.input_text_tokens + usage.input_text_tokens,
            input_image_tokens=self._usage.input_image_tokens + usage.input_image_tokens,
            cached_tokens=self._usage.cached_tokens + usage.cached_tokens,
        )
        self._report()
        self._stream = self._open_stream() if self.config.modality == "audio" else None
        if opening:
            self._text(*self._parser.push(opening))

    def _open_stream(self) -> SpeechStream:
        voice = resolve_voice(self.config.voice, self._voice.decoder)
        self._stream_start = Mark(self._num_samples, self._num_chars)
        return self._voice.decoder.open(voice=voice, speed=self.config.speed)

    def take(self, token_id: int) -> None:
        """One generated token."""
        self._num_tokens += 1
        self._report()
        text = self._thought.push(token_id, self._decoder.push(token_id))
        if text is None:
            return
        self._generated.append(token_id, text)
        self._text(*self._parser.push(text))

    def finish(self, reason: str) -> None:
        """Generation has ended."""
        self._generation_done = True
        is_cut = reason in ("length", "context")
        if is_cut:
            self.done_reason = "max_output_tokens"
        tail = self._decoder.flush()
        visible, calls = self._parser.push("" if self._thought.is_open else tail)
        self._text(visible, calls)
        if not is_cut:  # flushing could close a tool call that was cut off
            self._text(*self._parser.flush())
        self._speak()

    def _text(self, visible: str, calls: list[FunctionCall]) -> None:
        self._say(visible if self._num_chars else visible.lstrip())
        for call in calls:
            self._num_calls += 1
            call_id = f"call_{uuid.uuid4().hex[:16]}"
            self._voice.emit(
                ToolCall(self.session_id, self.response_id, call_id, call.name, call.arguments)
            )

    def _say(self, text: str) -> None:
        if not text:
            return
        self._num_chars += len(text)
        self._voice.emit(TextDelta(self.session_id, self.response_id, text))
        if self._stream is not None:
            self._unspoken += text
            self._speak()

    def _speak(self) -> None:
        """Send what makes a clause to the speech decoder, one clause at a time."""
        stream = self._stream
        if stream is None or self._speech is not None or self._dropped or self._flushed:
            return
        if self._is_paused:
            return
        last = self._generation_done
        if not last and not (self._unspoken and stream.ready(self._unspoken)):
            return
        text, self._unspoken = self._unspoken, ""

        def work(should_stop: Callable[[], bool]) -> list[SpeechChunk]:
            chunks: list[SpeechChunk] = []
            for pieces in (stream.push(text), stream.flush() if last else ()):
                for chunk in pieces:
                    if should_stop():
                        raise CancelledError("speech was stopped")
                    chunks.append(chunk)
            return chunks

        priority = PartPriority.SPEECH if self._num_samples else PartPriority.FIRST_CLAUSE
        ticket: Ticket

        def done(result: list[SpeechChunk] | BaseException) -> None:
            if self._speech is not ticket:  # dropped, or cut short by last words
                return
            self._speech = None
            if isinstance(result, BaseException):
                self._on_failed(result)
                return
            self._flushed = last
            for chunk in result:
                self._sound(chunk)
            if last:
                self._on_spoken()
            else:
                self._speak()

        self._speech = ticket = self._voice.parts.submit(priority, work, done)

    def _sound(self, chunk: SpeechChunk) -> None:
        start = self._stream_start
        marks = (Mark(start.sample + m.sample, start.num_chars + m.num_chars) for m in chunk.marks)
        self._num_samples += len(chunk.pcm) // 2
        self._voice.emit(AudioDelta(self.session_id, self.response_id, chunk.pcm, tuple(marks)))

    def pause(self, is_paused: bool) -> None:
        """Begin no further clause, or go on."""
        self._is_paused = is_paused
        if not is_paused:
            self._speak()

    def drop(self) -> None:
        """Stop speaking; results under way are ignored."""
        self._dropped = True
        self._stop_speech()

    def _stop_speech(self) -> None:
        speech, self._speech = self._speech, None
        if speech is not None:
            speech.cancel()

    def _report(self) -> None:
        self._voice.emit(Progress(self.session_id, self.response_id, self.total_usage()))

    def total_usage(self) -> Usage:
        return replace(self._usage, output_text_tokens=self._num_tokens)

    def recite(self, text: str, on_said: Callable[[], None]) -> None:
        """Say ``text``, which no model wrote; its first sentence is heard while the rest is made.

        ``on_said`` is called when all was said.
        """
        self._on_spoken = on_said
        self._on_failed = lambda error: self._leave_unsaid(error, on_said)
        if self.config.modality == "audio":
            try:
                self._stream = self._open_stream()
            except OmniError as error:
                self._on_failed(error)
                return
        first_end = match.end() if (match := _SENTENCE_END.search(text)) else len(text)
        self._say(text[:first_end])
        self._generation_done = True
        self._say(text[first_end:])
        self._speak()
        if self._stream is None:
            on_said()

    def close_with(self, text: str, on_said: Callable[[], None]) -> None:
        """Say ``text``, which no model wrote, instead of what is still to come.

        ``on_said`` is called when it was said; in writing only where nothing was written yet.
        """
        self._stop_speech()
        self._generation_done, self._flushed, self._unspoken = True, False, ""
        self.is_closing = True
        self._stream = None
        self._on_spoken = on_said
        self._on_failed = lambda error: self._leave_unsaid(error, on_said)
        if self.config.modality == "audio":
            self._close_aloud(f" {text}" if self._num_chars else text)
            return
        if not self._num_chars:
            self._say(text)
        on_said()

    def _close_aloud(self, text: str) -> None:
        try:
            self._stream = self._open_stream()
        except OmniError as error:
            self._on_failed(error)
            return
        self._say(text)

    def _leave_unsaid(self, error: BaseException, on_said: Callable[[], None]) -> None:
        """The words still reached the client as text."""
        logger.error("last words could not be spoken: %s", error)
        self._stream = None
        on_said()
