"""Which sequences compute how many tokens in the next step.

Called by :mod:`omni.engine.engine`; changes nothing. The policy:

- classes in order of :class:`~omni.engine.sequence.Priority`, each standing for a deadline;
- within a class the smallest gap first, so a token of an answer never waits for a long prompt of
  its own class, and the longest-waiting first among equals;
- while a sequence generates, classes less urgent than it share at most a quarter of the budget:
  the length of a step is what its listener waits for the next token;
- nothing is preempted: state that was computed while listening is what makes answers quick.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from omni.engine.sequence import Sequence

_SPARE_DIVISOR = 4
"""Part of a step that less urgent classes may fill while a sequence generates."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next ``num_tokens`` uncomputed tokens of a sequence, ending at its last if sampled."""

    sequence: Sequence
    num_tokens: int
    is_sampled: bool


def schedule(sequences: Iterable[Sequence], step_tokens: int) -> list[Chunk]:
    """Spend a budget of ``step_tokens`` tokens on the gaps of ``sequences``."""
    gaps = [(sequence.num_pending, sequence) for sequence in sequences]
    waiting = [(s.priority, gap, s.waiting_since, s.seq_id, s) for gap, s in gaps if gap]
    waiting.sort(key=lambda entry: entry[:4])
    budget = step_tokens
    generating: int | None = None  # most urgent class that generates in this step
    chunks: list[Chunk] = []
    for priority, gap, _, _, sequence in waiting:
        if generating is not None and priority > generating:
            budget = min(budget, max(1, step_tokens // _SPARE_DIVISOR))
            generating = None
        if budget == 0:
            break
        num_tokens = min(gap, budget, sequence.num_to_mark or gap)
        budget -= num_tokens
        is_sampled = sequence.generation is not None and num_tokens == gap
        chunks.append(Chunk(sequence, num_tokens, is_sampled))
        if sequence.generation and generating is None and budget:
            generating = priority
    return chunks
