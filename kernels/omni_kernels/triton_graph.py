"""Decoding as CUDA graphs: one captured step for each batch size, replayed with new inputs.

For the engine's runner where there is a card; no Triton is imported here. At batch 1 the launches
of a token cost as much as its memory traffic, unless the card gets them as one graph.

A captured step reads and writes fixed memory, so the inputs are copied into it, and a batch that is
smaller than the captured one is padded with rows of nobody: slot 0, place -1, journal row -1 and
page 0. The kernels neither read nor write state for such rows.

Capturing itself can only run on a card; ``capture`` is a parameter so that everything else is
tested without one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch

Step = Callable[[], torch.Tensor]
Capture = Callable[[Step], tuple[Callable[[], None], torch.Tensor]]

SIZES = (1, 2, 4, 8, 16, 32)
"""Batch sizes worth a graph of their own; each costs a capture and little memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeInputs:
    """What changes from one decoding step to the next, for B sequences of one new token each."""

    token_ids: torch.Tensor  # int64 [B]
    positions: torch.Tensor  # int64 [B]
    num_computed: torch.Tensor  # int32 [B] tokens before this one
    page_table: torch.Tensor  # int32 [B, pages]
    places: torch.Tensor  # int64 [B] page id * T + offset of the new token
    slots: torch.Tensor  # int32 [B]
    journal_starts: torch.Tensor  # int32 [B] journal row of the new token; -1: store none


def nobody(size: int, num_pages: int, device: torch.device | str) -> DecodeInputs:
    """Return inputs of ``size`` rows that belong to nobody."""

    def full(value: int, *shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.full(shape, value, dtype=dtype, device=device)

    return DecodeInputs(
        token_ids=full(0, size, dtype=torch.int64),
        positions=full(0, size, dtype=torch.int64),
        num_computed=full(0, size),
        page_table=full(0, size, num_pages),
        places=full(-1, size, dtype=torch.int64),
        slots=full(0, size),
        journal_starts=full(-1, size),
    )


def capture_cuda(step: Step) -> tuple[Callable[[], None], torch.Tensor]:
    """Capture ``step``, which must not synchronise, and return how to replay it and its output.

    The step runs first, twice, so that kernels are compiled and memory is pooled: its inputs must
    belong to nobody then. The output's memory is overwritten by each replay.
    """
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    return graph.replay, out


class DecodeGraphs:
    """Runs ``forward`` on batches of up to ``sizes[-1]`` sequences as captured graphs."""

    def __init__(
        self,
        forward: Callable[[DecodeInputs], torch.Tensor],
        *,
        num_pages: int,
        device: torch.device | str,
        sizes: tuple[int, ...] = SIZES,
        capture: Capture = capture_cuda,
    ) -> None:
        """Nothing is captured yet.

        Args:
            forward: the whole step on the device, inputs [B] -> logits [B, vocab]; no synchronising
                and no allocation that outlives it.
            num_pages: columns of the page table: the longest context the graphs serve.
            device: where the inputs live.
            sizes: batch sizes, ascending.
            capture: how a step becomes a graph.
        """
        self._forward = forward
        self._num_pages = num_pages
        self._device = device
        self._sizes = sizes
        self._capture = capture
        self._graphs: dict[int, tuple[DecodeInputs, Callable[[], None], torch.Tensor]] = {}

    def fits(self, batch: DecodeInputs) -> bool:
        """Whether :meth:`run` takes ``batch``; if not, it is the eager path's."""
        num_sequences, num_pages = batch.page_table.shape
        return 0 < num_sequences <= self._sizes[-1] and num_pages <= self._num_pages

    def run(self, batch: DecodeInputs) -> torch.Tensor:
        """Compute one step; ``batch`` may be in host memory.

        Returns logits [B, vocab], valid until the next run of the same size.

        Raises:
            ValueError: the batch does not fit.
        """
        if not self.fits(batch):
            raise ValueError(
                f"{len(batch.slots)} sequences of {batch.page_table.shape[1]} pages; the graphs "
                f"take 1 to {self._sizes[-1]} of {self._num_pages}"
            )
        size = self._sizes[bisect_left(self._sizes, len(batch.slots))]
        if size not in self._graphs:
            inputs = nobody(size, self._num_pages, self._device)
            self._graphs[size] = (inputs, *self._capture(lambda: self._forward(inputs)))
        inputs, replay, out = self._graphs[size]
        self._fill(inputs, batch)
        replay()
        return out[: len(batch.slots)]

    def _fill(self, inputs: DecodeInputs, batch: DecodeInputs) -> None:
        """Copy ``batch`` in; the rows and pages behind it become nobody's again."""
        size, num_rest = len(batch.slots), len(inputs.slots) - len(batch.slots)
        rest = nobody(num_rest, self._num_pages, self._device) if num_rest else None
        for field in fields(DecodeInputs):
            target = getattr(inputs, field.name)
            source = getattr(batch, field.name)
            if field.name == "page_table":
                target[:size, source.shape[1] :] = 0
                target[:size, : source.shape[1]].copy_(source, non_blocking=True)
            else:
                target[:size].copy_(source, non_blocking=True)
            if rest is not None:
                target[size:] = getattr(rest, field.name)
