"""Gated DeltaNet against its reference and transformers, on every path, and its promises."""

from __future__ import annotations

import pytest
import torch
from omni_kernels.gated_delta import GatedDelta, gated_delta_net, reference, replay

LENGTHS = (1, 3, 4, 5, 63, 64, 65, 129)
RATIOS = (1, 2, 3)
JOURNAL = 160


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(
    ratio: int = 2, heads: int = 2, key_dim: int = 32, value_dim: int = 16, width: int = 4
) -> GatedDelta:
    value_heads = heads * ratio
    channels = 2 * heads * key_dim + value_heads * value_dim
    return GatedDelta(
        num_key_heads=heads,
        num_value_heads=value_heads,
        key_dim=key_dim,
        value_dim=value_dim,
        conv_weight=normal(channels, width, seed=1) * 0.5,
        a_log=normal(value_heads, seed=2),
        dt_bias=normal(value_heads, seed=3),
        norm=1 + 0.1 * normal(value_dim, seed=4),
        eps=1e-6,
    )


class State:
    """The slots of three layers, of which the middle one is used; everything else stays NaN."""

    def __init__(self, op: GatedDelta, slots: int = 5, seed: int = 10) -> None:
        self.all_recurrent = torch.full((slots, 3, *op.recurrent_shape), torch.nan)
        self.all_conv = torch.full((slots, 3, *op.conv_shape), torch.nan)
        self.all_journal = torch.full((slots, 3, JOURNAL, op.journal_width), torch.nan)
        self.recurrent = self.all_recurrent[:, 1]
        self.conv = self.all_conv[:, 1]
        self.journal = self.all_journal[:, 1]
        self.recurrent.copy_(normal(*self.recurrent.shape, seed=seed) * 0.3)
        self.conv.copy_(normal(*self.conv.shape, seed=seed + 1))


def run(
    x: torch.Tensor, op: GatedDelta, state: State, slots: tuple[int, ...], *lengths: int
) -> torch.Tensor:
    offsets = [0]
    for length in lengths or (len(x),):
        offsets.append(offsets[-1] + length)
    return gated_delta_net(
        x,
        op,
        recurrent=state.recurrent,
        conv=state.conv,
        slots=slots,
        cu_seqlens=tuple(offsets),
        journal=state.journal,
        journal_starts=(0,) * len(slots),
    )


def relative_error(value: torch.Tensor, truth: torch.Tensor) -> float:
    return ((value.double() - truth).norm() / truth.norm()).item()


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("length", LENGTHS)
def test_layer_equals_the_reference_in_double(path: str, length: int, ratio: int) -> None:
    op = layer(ratio)
    state, x = State(op), normal(length, op.input_width)
    recurrent, conv = state.recurrent.double(), state.conv.double()
    truth = reference.gated_delta_net(x.double(), op, recurrent, conv, (3,), (0, length))
    assert relative_error(run(x, op, state, (3,)), truth) < 2e-6
    assert relative_error(state.recurrent[3], recurrent[3]) < 1e-6
    assert torch.equal(state.conv[3].double(), conv[3])
    assert torch.equal(state.journal[3, :length], x[:, : op.journal_width])


@pytest.mark.parametrize("cut", [1, 2, 3, 5, 64, 100])
def test_any_cut_into_chunks_gives_the_same_bits(path: str, cut: int) -> None:
    op = layer()
    whole, pieces, x = State(op), State(op), normal(129, op.input_width)
    expected = run(x, op, whole, (2,))
    got = torch.cat([run(part, op, pieces, (2,)) for part in x.split(cut)])
    assert torch.equal(got, expected)
    assert torch.equal(pieces.recurrent, whole.recurrent)
    assert torch.equal(pieces.conv, whole.conv)


@pytest.mark.parametrize("ratio", RATIOS)
def test_replay_gives_the_bits_of_having_decoded(path: str, ratio: int) -> None:
    op = layer(ratio)
    state, x = State(op), normal(70, op.input_width)
    recurrent, conv = state.recurrent[1].clone(), state.conv[1].clone()
    for row in x:
        run(row[None], op, state, (1,))
    replay(op, x[:, : op.journal_width], recurrent=recurrent, conv=conv)
    assert torch.equal(recurrent, state.recurrent[1])
    assert torch.equal(conv, state.conv[1])
