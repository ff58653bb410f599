"""One response: tokens in, text and tool calls out, clauses to the speech decoder, PCM out.

Used by :mod:`omni.assistant.assistant` on the engine thread. Speech runs as parts, one clause at a
time and in order. Knows nothing of the engine or of turns.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from omni.assistant.priorities import PartPriority
from omni.errors import CancelledError
from omni.models.tokenizer import StreamDecoder
from omni.models.tool_calls import FunctionCall, ToolCallParser
from omni.speech.voices import resolve_voice
from omni.types import (
    AudioDelta,
    Conversation,
    Output,
    ResponseConfig,
    TextDelta,
    ToolCall,
    Usage,
)

if TYPE_CHECKING:
    from omni.assistant.context import Generated
    from omni.assistant.listening import Turn
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


def tool_opening(choice: str) -> str:
    """How an answer is made to begin where ``choice`` (a tool_choice) wants a tool called."""
    if choice == "required":
        return '{"name": "'
    if choice.startswith("function:"):
        return f'{{"name": {json.dumps(choice.removeprefix("function:"))}, "arguments":'
    return ""


class Response:
    """One answer on its way from tokens to sound.

    ``turn`` is the spoken turn that a speculation answers; it stays when the turn is confirmed.
    """

    def __init__(
        self,
        session_id: str,
        response_id: str,
        config: ResponseConfig,
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
        self._usage = Usage()
        self._num_tokens = 0
        self._num_calls = 0
        self._has_text = False
        self._generation_done = False
        self._dropped = False
        self._is_paused = False
        self._stream: SpeechStream | None = None
        self._unspoken = ""
        self._speech: Ticket | None = None
        self._flushed = False
        self._has_spoken = False

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
    def is_empty(self) -> bool:
        return not self._has_text and not self._num_calls

    def begin(
        self,
        *,
        generated: Generated,
        tokenizer: Tokenizer,
        speech: SpeechDecoder,
        parts: Parts,
        tools: tuple[str, ...],
        opening: str,
        emit: Callable[[Output], None],
        on_spoken: Callable[[], None],
        on_failed: Callable[[BaseException], None],
        usage: Usage,
    ) -> None:
        """Set up what turns tokens into text and sound; called when decoding begins.

        ``opening`` is the beginning of the answer that was chosen for the model.
        """
        self._generation_done = self._flushed = False
        self._generated = generated
        self._decoder = StreamDecoder(tokenizer, special=bool(tools))
        self._parser = ToolCallParser(tools)
        self._parts = parts
        self._emit = emit
        self._on_spoken = on_spoken
        self._on_failed = on_failed
        self._usage = usage
        self._stream = self._open_stream(speech) if self.config.modality == "audio" else None
        if opening:
            self._text(*self._parser.push(opening))

    def _open_stream(self, speech: SpeechDecoder) -> SpeechStream:
        voice = resolve_voice(self.config.voice, speech)
        return speech.open(voice=voice, speed=self.config.speed)

    def take(self, token_id: int) -> None:
        """One generated token."""
        self._num_tokens += 1
        text = self._decoder.push(token_id)
        self._generated.append(token_id, text)
        self._text(*self._parser.push(text))

    def finish(self, reason: str) -> None:
        """Generation has ended."""
        self._generation_done = True
        is_cut = reason in ("length", "context")
        if is_cut:
            self.done_reason = "max_output_tokens"
        tail = self._decoder.flush()
        visible, calls = self._parser.push(tail)
        self._text(visible, calls)
        if not is_cut:  # flushing could close a tool call that was cut off
            self._text(*self._parser.flush())
        self._speak()

    def _text(self, visible: str, calls: list[FunctionCall]) -> None:
        if visible and not self._has_text:
            visible = visible.lstrip()
        if visible:
            self._has_text = True
            self._emit(TextDelta(self.session_id, self.response_id, visible))
            if self._stream is not None:
                self._unspoken += visible
                self._speak()
        for call in calls:
            self._num_calls += 1
            call_id = f"call_{uuid.uuid4().hex[:16]}"
            self._emit(
                ToolCall(self.session_id, self.response_id, call_id, call.name, call.arguments)
            )

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

        priority = PartPriority.SPEECH if self._has_spoken else PartPriority.FIRST_CLAUSE

        def done(result: list[SpeechChunk] | BaseException) -> None:
            self._speech = None
            if self._dropped:
                return
            if isinstance(result, BaseException):
                self._on_failed(result)
                return
            self._flushed = last
            for chunk in result:
                self._has_spoken = True
                self._emit(
                    AudioDelta(self.session_id, self.response_id, chunk.pcm, tuple(chunk.marks))
                )
            if last:
                self._on_spoken()
            else:
                self._speak()

        self._speech = self._parts.submit(priority, work, done)

    def pause(self, is_paused: bool) -> None:
        """Begin no further clause, or go on."""
        self._is_paused = is_paused
        if not is_paused and self.sequence is not None:
            self._speak()

    def drop(self) -> None:
        """Stop speaking; results under way are ignored."""
        self._dropped = True
        if self._speech is not None:
            self._speech.cancel()
            self._speech = None

    def total_usage(self) -> Usage:
        return replace(self._usage, output_text_tokens=self._num_tokens)

    def notice(self, text: str, speech: SpeechDecoder) -> list[Output]:
        """Say ``text``, which no model wrote, unless something was said already."""
        if self._has_spoken or (self._has_text and self.config.modality == "text"):
            return []
        outputs: list[Output] = []
        if not self._has_text:
            outputs.append(TextDelta(self.session_id, self.response_id, text))
        if self.config.modality == "audio":
            try:
                stream = self._open_stream(speech)
                for chunk in (*stream.push(text), *stream.flush()):
                    outputs.append(
                        AudioDelta(self.session_id, self.response_id, chunk.pcm, tuple(chunk.marks))
                    )
            except Exception:  # the words still reach the client as text
                logger.exception("a notice could not be spoken")
        return outputs
