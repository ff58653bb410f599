"""What a step's logits become: tokens of their sequences, and the ends of generations.

Called by :mod:`omni.engine.engine` once per step; :mod:`omni.engine.sampler` chooses the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch

from omni.engine.outputs import FinishReason, TokenOutput
from omni.engine.sampler import SampleRow, mass, sample
from omni.engine.sequence import Sequence
from omni.engine.state_cache import StateCache
from omni.errors import CapacityError


def take_logits(
    sequences: Seq[Sequence], logits: torch.Tensor, cache: StateCache, max_tokens: int
) -> list[TokenOutput]:
    """Sample or measure once for each of ``sequences``, all generating; ``logits`` [R, vocab].

    A sequence may grow to ``max_tokens``, the context limit.
    """
    rows = []
    for sequence in sequences:
        assert sequence.generation is not None, "a sampled chunk belongs to a generation"
        rows.append(SampleRow(sequence.generation.params, sequence.state.token_ids))
    outputs = []
    for sequence, token_id, row in zip(sequences, sample(logits, rows), logits, strict=True):
        assert sequence.generation is not None
        if (measured_ids := sequence.generation.measured_ids) is None:
            outputs.append(_accept(sequence, token_id, cache, max_tokens))
        else:
            sequence.generation = None
            probability = mass(row, measured_ids)
            outputs.append(TokenOutput(sequence.seq_id, None, "measured", probability))
    return outputs


def _accept(
    sequence: Sequence, token_id: int | None, cache: StateCache, max_tokens: int
) -> TokenOutput:
    generation, state = sequence.generation, sequence.state
    assert generation is not None, "only a generating sequence is sampled"
    reason: FinishReason | None = None
    message = ""
    if token_id is None:
        reason = "error"
    elif token_id in generation.params.stop_ids:
        reason = "stop"
    else:
        try:
            cache.fit(state.pages, state.num_computed, state.num_known + 1, state.account)
        except CapacityError as error:
            token_id, reason, message = None, "capacity", str(error)
        else:
            state.token_ids.append(token_id)
            generation.num_sampled += 1
            sequence.num_generated += 1
            if generation.num_sampled == generation.params.max_tokens:
                reason = "length"
            elif state.length >= max_tokens:
                reason = "context"
    if reason:
        sequence.generation = None
    return TokenOutput(sequence.seq_id, token_id, reason, message=message)
