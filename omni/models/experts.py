"""The mixture-of-experts feed-forward: a router, experts of which few run, one that always runs.

Called by :mod:`omni.models.backbone`. Letters: M rows, D hidden width, E experts, T experts chosen
per row. Source: transformers ``qwen3_5_moe`` (Qwen2MoE's block with a renormalised router).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

Expert = Callable[[torch.Tensor], torch.Tensor]
"""A gated feed-forward, [M, D] -> [M, D]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsShape:
    """Shape of every mixture of a stack."""

    num_experts: int
    num_chosen: int  # experts per token
    expert_size: int  # feed-forward width of one expert
    shared_size: int  # of the expert that always runs
    renormalised: bool = True  # the chosen experts' weights sum to 1


class MixtureOfExperts:
    """sum of weight * expert(x) over the chosen experts, + sigmoid(gate x) * shared(x).

    ``router`` [E, D] and ``shared_gate`` [1, D] are fp32: a rounded score may choose others.
    """

    def __init__(
        self,
        *,
        router: torch.Tensor,
        experts: Sequence[Expert],
        shared: Expert,
        shared_gate: torch.Tensor,
        shape: ExpertsShape,
    ) -> None:
        self._router = router
        self._experts = experts
        self._shared = shared
        self._shared_gate = shared_gate
        self._shape = shape

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [M, D] -> [M, D].

        A row sees no neighbour, but the last bits of its scores (an fp32 product) may depend on M.
        """
        weights, chosen = self.route(x)  # [M, T]
        out = self._shared(x).mul_(torch.sigmoid(functional.linear(x, self._shared_gate)))
        flat = chosen.flatten()
        # Rows of the same expert together, in order: every expert's weights are read once.
        order = torch.argsort(flat, stable=True)
        experts, counts = torch.unique_consecutive(flat[order], return_counts=True)
        weights, first = weights.flatten()[order], 0
        for expert, count in zip(experts.tolist(), counts.tolist(), strict=True):
            group = slice(first, first + count)
            rows = order[group] // chosen.shape[1]
            out.index_add_(0, rows, self._experts[expert](x[rows]).mul_(weights[group, None]))
            first += count
        return out

    def route(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights fp32 and numbers int64 [M, T] of the experts chosen for each row."""
        scores = functional.linear(x, self._router).softmax(dim=-1)  # [M, E]
        weights, chosen = scores.topk(self._shape.num_chosen, dim=-1)
        if self._shape.renormalised:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return weights, chosen
