"""What a sequence is to hold: token ids, and the embeddings that stand in the place of some.

Made by :mod:`omni.assistant.context`, compared and appended by :mod:`omni.engine.engine`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from omni.types import EMBEDDING_ID, EmbeddingSpan


@dataclass(frozen=True, slots=True)
class Prompt:
    """``token_ids`` with :data:`~omni.types.EMBEDDING_ID` where ``spans`` lie, in their order.

    A span lies in one piece. Two prompts agree on a span where both hold the very same one.
    """

    token_ids: list[int]
    spans: tuple[EmbeddingSpan, ...] = ()

    def __add__(self, other: Prompt | list[int]) -> Prompt:
        if isinstance(other, Prompt):
            return Prompt(self.token_ids + other.token_ids, self.spans + other.spans)
        return Prompt(self.token_ids + other, self.spans)

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def num_embeddings(self) -> int:
        return sum(len(span.embeddings) for span in self.spans)

    def placed(self) -> Iterator[tuple[int, EmbeddingSpan]]:
        """Each span with the index at which it begins."""
        at = 0
        for span in self.spans:
            at = self.token_ids.index(EMBEDDING_ID, at)
            yield at, span
            at += len(span.embeddings)

    def rest(self, first: int) -> Prompt:
        """What begins at index ``first``, which lies inside no span."""
        spans = tuple(span for start, span in self.placed() if start >= first)
        return Prompt(self.token_ids[first:], spans)

    def pieces(self) -> Iterator[Sequence[int] | EmbeddingSpan]:
        """Runs of tokens, and spans, in order."""
        at = 0
        for start, span in self.placed():
            if at < start:
                yield self.token_ids[at:start]
            yield span
            at = start + len(span.embeddings)
        if at < len(self.token_ids):
            yield self.token_ids[at:]


def as_prompt(tokens: Sequence[int] | Prompt) -> Prompt:
    """``tokens`` as a prompt; a sequence of ids has no embeddings."""
    return tokens if isinstance(tokens, Prompt) else Prompt(list(tokens))


def joined(prompts: Sequence[Prompt]) -> Prompt:
    """All of them, one after another."""
    ids = [token for prompt in prompts for token in prompt.token_ids]
    return Prompt(ids, tuple(span for prompt in prompts for span in prompt.spans))
