"""A conversation in writing, with pictures, on one engine sequence: no hearing, no speech.

Used by ``omni chat``. The same rendering, prefix reuse and rollback as in a spoken conversation:
an answer that is stopped stays as far as it was given out, one that is taken back leaves no trace.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from omni.assistant.context import Context, Senses
from omni.assistant.seeing import Blind, Sight, TowerSight, WordsSight, own_answer
from omni.assistant.thoughts import Thought, is_opened_by
from omni.assistant.watching import Watcher
from omni.config import EngineConfig
from omni.engine.engine import Engine, Priority, SamplingParams
from omni.errors import CapacityError, OmniError
from omni.models import LoadedModel
from omni.models.tokenizer import StreamDecoder
from omni.types import Conversation, MediaPart, Message, TextPart


@dataclass(slots=True)
class AnswerStats:
    """What one answer cost, its thought included. ``first_token_s`` counts from the question."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    first_token_s: float = 0.0
    total_s: float = 0.0
    end: str = "cancelled"
    is_thinking: bool = False
    """It ended within its thought."""

    @property
    def tokens_per_s(self) -> float:
        """Decoding speed after the first token; 0 where it cannot be told."""
        spent = self.total_s - self.first_token_s
        return (self.output_tokens - 1) / spent if spent > 0 and self.output_tokens > 1 else 0.0


@dataclass(slots=True)
class TextChat:
    """Asks and answers in writing; ``conversation`` is the truth, the sequence follows it.

    ``on_thought`` is given what the model thinks, in pieces; no thought is part of an answer.
    """

    model: LoadedModel
    engine: Engine
    context: Context
    conversation: Conversation
    params: SamplingParams
    sight: Sight = field(default_factory=Blind)
    stats: AnswerStats = field(default_factory=AnswerStats)
    on_thought: Callable[[str], None] | None = None
    _sequence: int | None = None
    _num_answers: int = 0
    _senses: Senses = field(default_factory=Senses)

    def look(self, part: MediaPart) -> None:
        """See a picture or clip, so that it can be part of a question.

        Raises:
            InputError: it is none, or a damaged one.
        """
        if part.media_id not in self._senses.sights:
            self._senses.sights[part.media_id] = self.sight.look(part, lambda: False)

    def ask(self, text: str, shown: Sequence[MediaPart] = ()) -> Iterator[str]:
        """Add ``text`` as the user's message and yield the answer in pieces as it is sampled.

        ``shown`` stands before the text; each was given to :meth:`look`.

        Closing the iterator, or an exception in the caller, stops the answer; what was yielded
        stays in the conversation. ``stats`` tell about the last answer.

        Raises:
            CapacityError: the conversation no longer fits; it is left as it was.
            OmniError: the model gave no numbers.
        """
        before = self.conversation
        self._add(Message("user", (*shown, TextPart(text))))
        began_s = time.monotonic()
        self.stats = AnswerStats()
        if (own := own_answer(self.conversation, self._senses)) is not None:
            self.stats.end = "stop"
            self._add(Message("assistant", (TextPart(own),)))
            yield own
            return
        try:
            sequence = self._start()
        except CapacityError:
            self.conversation = before
            raise
        yield from self._answer(sequence, began_s)

    def undo(self) -> bool:
        """Take the last question and its answer back; False if there is none."""
        messages = self.conversation.messages
        if not messages:
            return False
        last = max(i for i, message in enumerate(messages) if message.role == "user")
        self.conversation = replace(self.conversation, messages=messages[:last])
        self.context.prune(self.conversation, set())
        return True

    def restart(self) -> None:
        """Forget all messages."""
        self.conversation = replace(self.conversation, messages=())
        self.context.prune(self.conversation, set())

    def _start(self) -> int:
        tokens = self.context.render(
            self.conversation, self._senses, reserve_tokens=self.params.max_tokens
        )
        header = self.context.answer_header(self.conversation)
        tokens += header
        self.stats.is_thinking = is_opened_by(header, self.model.tokenizer)
        if self._sequence is None:
            self._sequence = self.engine.add(priority=Priority.RESPONDING)
        self.stats.cached_tokens = self.engine.sync(self._sequence, tokens)
        self.stats.input_tokens = len(tokens)
        self.engine.generate(self._sequence, self.params)
        return self._sequence

    def _answer(self, sequence: int, began_s: float) -> Iterator[str]:
        self._num_answers += 1
        response_id = f"answer_{self._num_answers}"
        generated = self.context.begin(response_id)
        decoder = StreamDecoder(self.model.tokenizer)
        stats = self.stats
        thought = Thought(self.model.tokenizer, is_open=stats.is_thinking)
        try:
            while stats.end == "cancelled":
                for output in self.engine.step():
                    if output.seq_id != sequence:
                        continue
                    if output.token_id is not None and output.finish_reason != "stop":
                        stats.output_tokens += 1
                        stats.first_token_s = stats.first_token_s or time.monotonic() - began_s
                        decoded = decoder.push(output.token_id)
                        text = thought.push(output.token_id, decoded)
                        stats.is_thinking = thought.is_open
                        if text is not None:
                            generated.append(output.token_id, text)
                            yield text
                        elif self.on_thought:
                            self.on_thought(decoded)
                    if output.finish_reason == "error":
                        raise OmniError(
                            f"the scores of {self.model.name} are not numbers: its weights (or "
                            "its adapter's) are bad; take another checkpoint"
                        )
                    if output.finish_reason is not None:
                        stats.end = output.finish_reason
            if (rest := decoder.flush()) and not thought.is_open:
                yield rest
        finally:
            stats.total_s = time.monotonic() - began_s
            if stats.end == "cancelled":
                self.engine.cancel(sequence)
                self.engine.step()  # takes the report of the end
            answer = Message("assistant", (TextPart(generated.text),), response_id)
            self._add(answer)

    def _add(self, message: Message) -> None:
        messages = (*self.conversation.messages, message)
        self.conversation = replace(self.conversation, messages=messages)


def open_chat(
    model: LoadedModel,
    config: EngineConfig,
    *,
    instructions: str,
    params: SamplingParams,
    watcher: Watcher | None = None,
) -> TextChat:
    """A new conversation under ``instructions``, on an engine of its own.

    ``watcher`` looks at pictures for a model that cannot.
    """
    sight: Sight = WordsSight(watcher) if watcher else Blind()
    stops = params.stop_ids | model.template.stop_ids
    return TextChat(
        model=model,
        engine=Engine(model.backbone, config),
        context=Context(
            model.template,
            model.tokenizer,
            instructions=instructions,
            max_tokens=min(model.context_tokens, config.max_context_tokens),
        ),
        conversation=Conversation(instructions=instructions),
        params=replace(params, stop_ids=stops),
        sight=TowerSight(model.vision) if model.vision else sight,
    )
