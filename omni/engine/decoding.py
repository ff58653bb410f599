"""Decoding steps as graphs: which steps are such, and their way there and back.

Called by :mod:`omni.engine.runner` where the backbone is on a card. The launch of a kernel shaped
for a long context costs time in a short one, so there are graphs for contexts of a few lengths.
"""

from __future__ import annotations

import torch
from omni_kernels.triton_graph import SIZES, Capture, DecodeGraphs, DecodeInputs, nobody

from omni.models.batch import Batch, GraphedBackbone, StateView

FIRST_PAGES = 64
"""Pages of the shortest context that has graphs of its own; each next one is 4 times as long."""


class DecodingSteps:
    """Runs steps in which each sequence has one new token, and none an embedding."""

    def __init__(self, backbone: GraphedBackbone, view: StateView, capture: Capture) -> None:
        self._backbone = backbone
        self._view = view
        self._capture = capture
        self._graphs: dict[int, DecodeGraphs] = {}  # by pages of the longest context

    def take(self, batch: Batch) -> bool:
        """Whether :meth:`run` computes ``batch``, which is in host memory."""
        size = batch.num_sequences
        return size == batch.cu_seqlens[-1] and size <= SIZES[-1] and batch.embeddings is None

    def run(self, batch: Batch) -> torch.Tensor:
        """Compute ``batch``; logits [R, vocab_size] of its ``logits_rows``, valid for good."""
        logits = self._run(self._inputs(batch))
        return logits[batch.logits_rows.to(logits.device)]

    def warm_up(self, max_sequences: int) -> None:
        """Capture the graphs of short contexts, on rows of nobody."""
        for size, smaller in zip(SIZES, (0, *SIZES), strict=False):
            if smaller < max_sequences:
                self._run(nobody(size, 1, "cpu"))

    def _run(self, inputs: DecodeInputs) -> torch.Tensor:
        num_pages = FIRST_PAGES
        while num_pages < inputs.page_table.shape[1]:
            num_pages *= 4
        if num_pages not in self._graphs:
            self._graphs[num_pages] = DecodeGraphs(
                lambda given: self._backbone.decode(given, self._view),
                num_pages=num_pages,
                device=self._backbone.state_spec.device,
                capture=self._capture,
            )
        return self._graphs[num_pages].run(inputs)

    def _inputs(self, batch: Batch) -> DecodeInputs:
        size, positions = batch.num_sequences, batch.positions
        starts = (-1,) * size if batch.journal_starts is None else batch.journal_starts
        return DecodeInputs(
            token_ids=batch.token_ids,
            # Of text all axes are alike.
            positions=positions if positions.dim() == 1 else positions[0],
            num_computed=torch.tensor(batch.num_computed, dtype=torch.int32),
            page_table=batch.padded_pages(),
            places=torch.tensor(batch.places(self._view.page_tokens), dtype=torch.int64),
            slots=torch.tensor(batch.slots, dtype=torch.int32),
            journal_starts=torch.tensor(starts, dtype=torch.int32),
        )
