"""What a speech decoder is: text in, PCM with its alignment out.

Called by the assistant's parts thread, clause by clause, while the backbone is still writing.
Knows nothing of sessions, responses or sockets; a stream is one answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from omni.types import Mark


@dataclass(frozen=True, slots=True)
class SpeechChunk:
    """A piece of speech: ``pcm`` int16 little-endian mono at ``OUTPUT_RATE_HZ``, and its marks.

    A mark's ``sample`` counts from the start of the stream and lies within this chunk (ends
    included); ``num_chars`` counts characters of the text as it was pushed. Over a stream
    ``sample`` never decreases and ``num_chars`` grows from mark to mark: one mark for every word
    that can be told apart, the last of a clause covering all of its text. Only a flush may yield a
    chunk without PCM: its mark covers trailing text that makes no sound (an emoji, code).
    """

    pcm: bytes
    marks: tuple[Mark, ...] = ()


class SpeechStream(Protocol):
    """One answer being spoken. ``push`` and ``flush`` belong to one thread; ``ready`` to any."""

    def push(self, text: str) -> Iterator[SpeechChunk]:
        """Append ``text`` at once; the iterator speaks every clause that is now whole.

        The iterator is lazy: a clause is synthesised when it is reached, so a caller that stops
        between chunks has cancelled the rest. What an abandoned iterator did not reach is spoken
        by the next one. Any chunking of a text gives the same clauses and the same PCM.
        """
        ...

    def flush(self) -> Iterator[SpeechChunk]:
        """The text ends here: speak what is pending."""
        ...

    def ready(self, text: str) -> bool:
        """Whether pushing ``text`` now would make sound; cheap, pure, callable from any thread."""
        ...


class SpeechDecoder(Protocol):
    """A loaded voice model; streams share its weights."""

    @property
    def sample_rate_hz(self) -> int:
        """Always ``omni.types.OUTPUT_RATE_HZ``."""
        ...

    @property
    def voices(self) -> tuple[str, ...]:
        """Names that ``open`` takes; the first is the default."""
        ...

    def open(self, *, voice: str, speed: float = 1.0) -> SpeechStream:
        """Begin an answer.

        Raises:
            InputError: ``voice`` is not in ``voices`` or ``speed`` is outside 0.25..2.5.
        """
        ...
