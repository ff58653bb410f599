"""Decoding as graphs: padding, sizes and reuse. Capturing itself needs a card."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from omni_kernels.triton_graph import DecodeGraphs, DecodeInputs, Step, nobody

PAGES = 4


class Recorder:
    """A forward pass that remembers what it was given, and a capture that replays it eagerly."""

    def __init__(self) -> None:
        self.seen: list[DecodeInputs] = []
        self.captures = 0

    def forward(self, inputs: DecodeInputs) -> torch.Tensor:
        self.seen.append(
            DecodeInputs(**{name: getattr(inputs, name).clone() for name in inputs.__slots__})
        )
        return inputs.token_ids[:, None] * 10 + inputs.page_table.to(torch.int64)

    def capture(self, step: Step) -> tuple[Callable[[], None], torch.Tensor]:
        self.captures += 1
        out = step()

        def replay() -> None:
            out.copy_(step())

        return replay, out


def batch(size: int, num_pages: int = 2) -> DecodeInputs:
    one = torch.arange(1, size + 1)
    return DecodeInputs(
        token_ids=one,
        positions=one,
        num_computed=one.to(torch.int32),
        page_table=torch.full((size, num_pages), 7, dtype=torch.int32),
        places=one,
        slots=one.to(torch.int32),
        journal_starts=one.to(torch.int32),
    )


def make(sizes: tuple[int, ...] = (1, 2, 4)) -> tuple[Recorder, DecodeGraphs]:
    recorder = Recorder()
    graphs = DecodeGraphs(
        recorder.forward, num_pages=PAGES, device="cpu", sizes=sizes, capture=recorder.capture
    )
    return recorder, graphs


def test_capturing_runs_on_rows_of_nobody() -> None:
    recorder, graphs = make()
    graphs.run(batch(2))
    first = recorder.seen[0]
    assert not first.slots.any()
    assert (first.places == -1).all()
    assert (first.journal_starts == -1).all()


def test_a_smaller_batch_is_padded_with_nobody() -> None:
    recorder, graphs = make()
    full = graphs.run(batch(4, PAGES)).clone()
    got = graphs.run(batch(3))
    assert torch.equal(got[:, 2:], full[:3, 2:] - 7)  # its pages behind the second are page 0
    assert torch.equal(got[:, :2], full[:3, :2])
    seen, expected = recorder.seen[-1], nobody(1, PAGES, "cpu")
    for name in seen.__slots__:
        assert torch.equal(getattr(seen, name)[3:], getattr(expected, name))
        first_column = getattr(seen, name)[:3].reshape(3, -1)[:, 0]
        assert torch.equal(first_column, getattr(batch(3), name).reshape(3, -1)[:, 0])


def test_each_size_is_captured_once_and_the_smallest_is_taken() -> None:
    recorder, graphs = make()
    for size in (1, 3, 4, 1, 3, 2):
        assert len(graphs.run(batch(size))) == size
    assert recorder.captures == 3
    assert [len(seen.slots) for seen in recorder.seen] == [1, 1, 4, 4, 4, 1, 4, 2, 2]


def test_what_does_not_fit_is_the_eager_paths() -> None:
    _, graphs = make()
    assert graphs.fits(batch(4, PAGES))
    for wrong in (batch(5), batch(1, PAGES + 1), batch(0)):
        assert not graphs.fits(wrong)
        with pytest.raises(ValueError, match="take 1 to 4 of 4"):
            graphs.run(wrong)
