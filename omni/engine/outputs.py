"""What the engine gives out: sampled tokens, and counts for usage and metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled", "context", "capacity", "error", "measured"]


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """One sampled token, or the end of a generation.

    ``length`` and ``context`` come with the last token that was allowed or had room. ``token_id``
    is None where an end comes without a token: ``cancelled``, ``capacity`` (no page was left;
    ``message`` names the limit), ``error`` (the logits were not numbers). With ``stop`` it is the
    stop token, which is not part of the sequence. ``measured`` answers :meth:`Engine.measure` with
    ``probability``.
    """

    seq_id: int
    token_id: int | None
    finish_reason: FinishReason | None = None
    probability: float = 0.0
    message: str = ""

    @property
    def is_kept(self) -> bool:
        """Whether the token is part of the sequence."""
        return self.token_id is not None and self.finish_reason != "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceUsage:
    """Tokens of one sequence since it was added, never reset."""

    num_processed: int  # went through the backbone
    num_cached: int  # taken over computed, from a shared prefix or a parent
    num_generated: int  # sampled and kept


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Occupancy now and work since the start."""

    num_sequences: int
    max_sequences: int
    num_held: int  # sequences on hold
    num_snapshots: int
    num_pages: int
    num_pages_free: int  # cached ones included: they can be had at once
    num_pages_cached: int
    num_steps: int
    num_tokens: int  # computed in all steps
    num_tokens_cached: int  # taken over from a shared prefix instead of computed
    num_tokens_sampled: int
    last_step_tokens: int
