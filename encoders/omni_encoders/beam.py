"""Beam search over a window's transcript, for readings that greedy decoding is not sure of.

Called by :mod:`omni_encoders.recogniser` for final passes only: it costs about a decoder step per
token, whatever the draft. Hypotheses are ranked by their mean log probability, as openai/whisper
and faster-whisper do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from omni.errors import CancelledError
from omni_encoders.whisper import DecoderState, Heard, Whisper

NUM_BEAMS = 5  # openai/whisper's and faster-whisper's


@dataclass(frozen=True, slots=True)
class Rules:
    """What may come: masks [V] added to all logits and to the first ones; ``end`` ends."""

    suppressed: Tensor
    suppressed_first: Tensor  # or [1]: zero
    end: int


def search(
    model: Whisper,
    heard: Heard,
    state: DecoderState,
    prompt: Sequence[int],
    rules: Rules,
    *,
    max_tokens: int,
    should_stop: Callable[[], bool],
) -> list[int]:
    """The most probable tokens behind ``prompt``, without the end.

    ``state`` holds the positions before ``prompt`` and is left as it was.

    Raises:
        CancelledError: ``should_stop()`` became true.
    """
    length = state.length
    hidden, _ = model.decode(prompt, state, heard)
    branches = state.branches(NUM_BEAMS, state.length + max_tokens)
    state.length = length
    first = model.logits(hidden[-1:]) + rules.suppressed + rules.suppressed_first
    live: list[list[int]] = [[]]
    scores = torch.zeros(1)
    logprobs = first.log_softmax(-1)  # [B, V]
    ended: list[tuple[float, list[int]]] = []
    while True:
        width = logprobs.shape[1]
        best, places = (scores[:, None] + logprobs).flatten().topk(2 * NUM_BEAMS)
        parents: list[int] = []
        grown: list[list[int]] = []
        kept: list[float] = []
        for rank, (score, place) in enumerate(zip(best.tolist(), places.tolist(), strict=True)):
            parent, token = divmod(place, width)
            if token == rules.end:
                if rank < NUM_BEAMS:
                    ended.append((score / (len(live[parent]) + 1), live[parent]))
            elif len(grown) < NUM_BEAMS:
                parents.append(parent)
                grown.append([*live[parent], token])
                kept.append(score)
        live, scores = grown, torch.tensor(kept)
        if len(ended) >= NUM_BEAMS or len(live[0]) >= max_tokens:
            break
        if should_stop():
            raise CancelledError("the recogniser's pass was stopped")
        branches.select(parents)
        hidden = model.decode_branches([tokens[-1] for tokens in live], branches, heard)
        logprobs = (model.logits(hidden) + rules.suppressed).log_softmax(-1)
    if not ended:  # no room for an end
        return live[0]
    return max(ended, key=lambda scored: scored[0])[1]
