"""The conversation as tokens: the rendering of which an engine sequence is a cache.

Used by :mod:`omni.assistant.assistant`. An assistant message that this process generated renders to
the very tokens it was generated with, or to the prefix of them that was heard, so that the longest
common prefix with what is already computed is as long as can be. Knows nothing of the engine but
what it takes: prompts.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from omni.engine.prompt import Prompt, joined
from omni.errors import ContextLengthError
from omni.models.template import ChatTemplate, merge_results
from omni.models.tokenizer import Tokenizer
from omni.types import (
    AudioPart,
    Conversation,
    EmbeddingSpan,
    MediaPart,
    Message,
    Span,
    TextPart,
    ToolSpec,
)

KEEP_SHARE = 0.8
"""Share of the context kept when messages are dropped, so that dropping is rare (each drop
recomputes the sequence). The Realtime API's ``retention_ratio`` default."""


ANSWER_RESERVE_TOKENS = 1024
"""Context kept free for the answer when old messages have to be left out."""


MAX_RESERVE_SHARE = 0.25
"""Of a small context, the room kept for an answer: the conversation needs the rest."""


@dataclass(slots=True)
class Generated:
    """Tokens of one response and where each ends in its text."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    ends: list[int] = field(default_factory=list)
    """``ends[i]``: characters of ``text`` complete after token i."""

    def append(self, token_id: int, text: str) -> None:
        self.token_ids.append(token_id)
        self.text += text
        self.ends.append(len(self.text))


def sentence_ends(tokenizer: Tokenizer, template: ChatTemplate) -> NDArray[np.int64]:
    """Ids of all tokens that end a sentence or a turn."""
    ends = [
        index
        for index in range(tokenizer.vocab_size)
        if tokenizer.token_bytes(index).lstrip()[:1] in (b".", b"?", b"!")
    ]
    return np.array([*ends, *template.stop_ids, *tokenizer.encode("\n")], np.int64)


@dataclass(slots=True)
class Senses:
    """What became of a session's sound and pictures: a :class:`omni.models.template.Perceived`."""

    texts: dict[str, str] = field(default_factory=dict)  # by turn_id, once the turn has ended
    sights: dict[str, tuple[Span, ...]] = field(default_factory=dict)  # by media_id

    def heard(self, part: AudioPart) -> str:
        """The turn's text; where it is not known, its item's transcript."""
        return self.texts.get(part.turn_id, part.transcript or "")

    def seen(self, part: MediaPart) -> tuple[Span, ...]:
        return self.sights[part.media_id]


class Context:
    """Renders one session's conversation.

    ``instructions`` stand in when the conversation has none; ``max_tokens`` bounds a rendering: the
    oldest messages are left out of it, the system prompt never.
    """

    def __init__(
        self, template: ChatTemplate, tokenizer: Tokenizer, *, instructions: str, max_tokens: int
    ) -> None:
        self._template = template
        self._tokenizer = tokenizer
        self._instructions = instructions
        self._max_tokens = max_tokens
        self._head: tuple[str, tuple[ToolSpec, ...], list[int]] | None = None
        self._generated: dict[str, Generated] = {}
        self._cache: dict[tuple[Message, tuple[str, ...]], Prompt] = {}

    def begin(self, response_id: str) -> Generated:
        """Start remembering the tokens of a response."""
        generated = Generated()
        self._generated[response_id] = generated
        return generated

    def prune(self, conversation: Conversation, active: set[str]) -> None:
        """Forget responses and renderings that the conversation no longer holds."""
        keep = {m.response_id for m in conversation.messages} | active
        self._generated = {k: v for k, v in self._generated.items() if k in keep}
        messages = set(conversation.messages)
        self._cache = {k: v for k, v in self._cache.items() if k[0] in messages}

    def forget(self, response_id: str, asked: Conversation, conversation: Conversation) -> None:
        """Forget a response outside ``conversation``, and renderings that only ``asked`` needed."""
        self._generated.pop(response_id, None)
        messages = set(asked.messages) - set(conversation.messages)
        self._cache = {k: v for k, v in self._cache.items() if k[0] not in messages}

    def render(
        self,
        conversation: Conversation,
        senses: Senses,
        *,
        reserve_tokens: int = 0,
        is_whole: bool = False,
    ) -> Prompt:
        """``conversation`` as far as its last message, or its first picture not yet looked at.

        ``reserve_tokens`` is room left for what comes after, within :data:`MAX_RESERVE_SHARE` of
        the context.

        Raises:
            ContextLengthError: ``is_whole`` asks for every message, and there is no room for all.
        """
        head = self._system(conversation)
        runs = [
            self._message(run[0], senses) if len(run) == 1 else Prompt(self._template.results(run))
            for run in merge_results(
                takewhile(lambda m: _is_seen(m, senses), conversation.messages)
            )
        ]
        reserve_tokens = min(reserve_tokens, int(self._max_tokens * MAX_RESERVE_SHARE))
        limit = self._max_tokens - reserve_tokens - len(head)
        total = sum(map(len, runs))
        if total > limit and is_whole:
            raise ContextLengthError(
                f"the messages are {len(head) + total} tokens, more than fit into a context of "
                f"{self._max_tokens}: shorten them"
            )
        if total > limit:
            first = 0
            while total > limit * KEEP_SHARE and first < len(runs) - 1:
                total -= len(runs[first])
                first += 1
            runs = runs[first:]
        return joined([Prompt(head), *runs])

    def listening(self, text: str) -> list[int]:
        """Tokens of a user turn that is still being spoken: its header and stable ``text``."""
        return self._template.user_header() + self._tokenizer.encode(text.lstrip())

    def unfinished(self, text: str) -> list[int]:
        """A user turn as far as ``text``, without the punctuation that a recogniser adds."""
        return self.listening(text.rstrip(" .?!,;:…-"))

    def answer_header(self, conversation: Conversation, *, thinking: bool = True) -> list[int]:
        """Tokens that have an answer to ``conversation`` generated.

        It begins with a thought if the template has one, unless ``thinking`` is False.
        """
        messages = conversation.messages
        after_results = messages and messages[-1].role == "tool"
        nudge = self._template.after_results() if after_results else []
        template = self._template
        return nudge + (template.assistant_header() if thinking else template.answered_header())

    def num_system_tokens(self, conversation: Conversation) -> int:
        """Tokens of instructions and tools: what sessions that are set up alike have in common."""
        return len(self._system(conversation))

    def _system(self, conversation: Conversation) -> list[int]:
        instructions = conversation.instructions or self._instructions
        if self._head is None or self._head[:2] != (instructions, conversation.tools):
            whole = replace(conversation, instructions=instructions)
            self._head = (instructions, conversation.tools, self._template.system(whole))
        return self._head[2]

    def _message(self, message: Message, senses: Senses) -> Prompt:
        texts = tuple(senses.heard(p) for p in message.parts if isinstance(p, AudioPart))
        key = (message, texts)
        if (run := self._cache.get(key)) is None:
            ids = self._spoken(message)
            if ids is None:
                ids = self._template.message(message, senses)
            run = Prompt(ids, tuple(_embeddings(message, senses)))
            self._cache[key] = run
        return run

    def _spoken(self, message: Message) -> list[int] | None:
        """The very tokens of a message that was generated here; None if it was not."""
        if message.response_id is None or len(message.parts) != 1:
            return None
        part, generated = message.parts[0], self._generated.get(message.response_id)
        if generated is None or not isinstance(part, TextPart):
            return None
        if not generated.text.startswith(part.text):
            return None
        count = bisect_right(generated.ends, len(part.text))
        ids = generated.token_ids[:count]
        rest = part.text[generated.ends[count - 1] if count else 0 :]
        return (
            self._template.answered_header()
            + ids
            + (self._tokenizer.encode(rest) if rest else [])
            + self._template.assistant_end()
        )


def media(conversation: Conversation) -> Iterator[MediaPart]:
    """The pictures and clips of a conversation."""
    for message in conversation.messages:
        yield from (part for part in message.parts if isinstance(part, MediaPart))


def _is_seen(message: Message, senses: Senses) -> bool:
    return all(p.media_id in senses.sights for p in message.parts if isinstance(p, MediaPart))


def _embeddings(message: Message, senses: Senses) -> Iterator[EmbeddingSpan]:
    for part in message.parts:
        if isinstance(part, MediaPart):
            yield from (span for span in senses.seen(part) if isinstance(span, EmbeddingSpan))
