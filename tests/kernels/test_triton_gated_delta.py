"""Gated DeltaNet for cards against its reference, in Triton's interpreter, and its promises."""

from __future__ import annotations

from itertools import pairwise

import interpreted  # noqa: F401
import pytest
import torch
from omni_kernels.gated_delta import GatedDelta, reference
from omni_kernels.gated_delta import triton_ops as ops
from omni_kernels.gated_delta.triton_state import DeltaRows, DeltaState, DeltaWeights, ReplayRows

LAYERS = 2
CAPACITY = 8
NUM_SLOTS = 5


class Case:
    """Two layers of random weights and NUM_SLOTS slots of random state."""

    def __init__(
        self, heads: tuple[int, int] = (2, 2), dtype: torch.dtype = torch.float32, width: int = 16
    ) -> None:
        self.random = torch.Generator().manual_seed(7)
        key_heads, value_heads = heads
        channels = 2 * key_heads * width + value_heads * width
        self.dtype, self.width, self.heads, self.channels = dtype, width, heads, channels
        self.ops = [
            GatedDelta(
                num_key_heads=key_heads,
                num_value_heads=value_heads,
                key_dim=width,
                value_dim=width,
                conv_weight=self.normal(channels, 4),
                a_log=self.normal(value_heads),
                dt_bias=self.normal(value_heads),
                norm=1 + self.normal(width),
                eps=1e-6,
            )
            for _ in range(LAYERS)
        ]
        self.recurrent = self.normal(NUM_SLOTS, LAYERS, value_heads, width, width)
        self.conv = self.normal(NUM_SLOTS, LAYERS, 3, channels).to(dtype)
        shape = (NUM_SLOTS, LAYERS, CAPACITY, channels + 2 * value_heads)
        self.journal = torch.full(shape, torch.nan, dtype=dtype)
        self.counters = torch.zeros(LAYERS * NUM_SLOTS * key_heads, dtype=torch.int32)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.random)

    def rows(self, num_tokens: int) -> torch.Tensor:
        return self.normal(num_tokens, self.ops[0].input_width).to(self.dtype)

    def weights(self, layer: int) -> DeltaWeights:
        op = self.ops[layer]
        return DeltaWeights(
            taps=op.taps, a_log=op.a_log, dt_bias=op.dt_bias, norm=op.norm, eps=op.eps
        )

    def all_weights(self) -> DeltaWeights:
        def stack(name: str) -> torch.Tensor:
            return torch.stack([getattr(op, name) for op in self.ops])

        return DeltaWeights(
            taps=stack("taps"),
            a_log=stack("a_log"),
            dt_bias=stack("dt_bias"),
            norm=self.ops[0].norm,
            eps=1e-6,
        )

    def state(self, layer: int) -> DeltaState:
        return DeltaState(
            recurrent=self.recurrent[:, layer],
            conv=self.conv[:, layer],
            journal=self.journal[:, layer],
        )

    def run(
        self,
        x: torch.Tensor,
        slots: list[int],
        lengths: list[int],
        journal_starts: list[int] | None = None,
        layer: int = 0,
    ) -> torch.Tensor:
        rows = DeltaRows(
            slots=ints(slots),
            cu_seqlens=ints([0, *torch.tensor(lengths).cumsum(0).tolist()]),
            journal_starts=None if journal_starts is None else ints(journal_starts),
            counters=self.counters,
        )
        step = ops.decode if max(lengths) == 1 else ops.prefill
        out = step(x, self.weights(layer), self.state(layer), rows)
        assert not self.counters.any()
        return out

    def truth(
        self, x: torch.Tensor, slots: list[int], lengths: list[int], layer: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Output, recurrent and conv [slots, ...] of the layer by the reference in fp64."""
        recurrent, conv = self.recurrent[:, layer].double(), self.conv[:, layer].double()
        cu_seqlens = [0, *torch.tensor(lengths).cumsum(0).tolist()]
        op = self.ops[layer]
        out = reference.gated_delta_net(x.double(), op, recurrent, conv, slots, cu_seqlens)
        return out, recurrent, conv


def ints(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def error(got: torch.Tensor, truth: torch.Tensor) -> float:
    return ((got.double() - truth).norm() / truth.norm()).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("heads", [(2, 2), (1, 2), (1, 3)], ids=["1:1", "1:2", "1:3"])
@pytest.mark.parametrize("lengths", [[1, 1], [1, 2, 5]], ids=["decode", "prefill"])
def test_tokens_equal_the_reference(
    heads: tuple[int, int], dtype: torch.dtype, lengths: list[int]
) -> None:
    case = Case(heads, dtype)
    slots = [3, 1, 4][: len(lengths)]
    x = case.rows(sum(lengths))
    out, recurrent, conv = case.truth(x, slots, lengths)
    got = case.run(x, slots, lengths)
    assert got.dtype == dtype
    assert error(got, out) < (1e-3 if dtype == torch.float16 else 2e-6)
    assert error(case.recurrent[slots, 0], recurrent[slots]) < 2e-6
    assert torch.equal(case.conv[:, 0].double(), conv)


def test_a_head_shared_by_programs_equals_the_reference() -> None:
    case = Case((1, 2), width=32)
    x = case.rows(3)
    out, recurrent, _ = case.truth(x, [2], [3])
    assert error(case.run(x, [2], [3]), out) < 2e-6
    assert error(case.recurrent[2, 0], recurrent[2]) < 2e-6


@pytest.mark.parametrize("cut", [(1,) * 6, (2, 4), (5, 1)], ids=str)
def test_any_cut_gives_the_same_bits(cut: tuple[int, ...]) -> None:
    whole, parts = Case((1, 2)), Case((1, 2))
    x = whole.rows(6)
    expected = whole.run(x, [2], [6])
    starts = [0, *torch.tensor(cut).cumsum(0).tolist()]
    got = [parts.run(x[first:last], [2], [last - first]) for first, last in pairwise(starts)]
    assert torch.equal(torch.cat(got), expected)
    assert torch.equal(parts.recurrent, whole.recurrent)
    assert torch.equal(parts.conv, whole.conv)


def test_neighbours_and_slot_numbers_do_not_change_a_bit() -> None:
    alone, together = Case(), Case()
    x = alone.rows(4)
    together.recurrent[4], together.conv[4] = alone.recurrent[2].clone(), alone.conv[2].clone()
    expected = alone.run(x[1:3], [2], [2])
    got = together.run(x, [1, 4, 3], [1, 2, 1])
    assert torch.equal(got[1:3], expected)
    assert torch.equal(together.recurrent[4], alone.recurrent[2])


def test_other_slots_and_layers_keep_their_bits() -> None:
    case = Case()
    recurrent, conv = case.recurrent.clone(), case.conv.clone()
    case.run(case.rows(2), [2], [2], layer=1)
    changed = torch.zeros(NUM_SLOTS, LAYERS, dtype=torch.bool)
    changed[2, 1] = True
    assert torch.equal((case.recurrent != recurrent).flatten(2).any(2), changed)
    assert torch.equal((case.conv != conv).flatten(2).any(2), changed)
    assert case.journal.isnan().all()


def test_a_place_nobody_holds_is_zero_and_touches_nothing() -> None:
    case = Case()
    recurrent, conv = case.recurrent.clone(), case.conv.clone()
    x = case.rows(3)
    expected, _, _ = case.truth(x[1:2], [2], [1])
    got = case.run(x, [0, 2, -1], [1, 1, 1], [0, 0, 0])
    assert not got[0].any()
    assert not got[2].any()
    assert error(got[1:2], expected) < 2e-6
    others = [0, 1, 3, 4]
    assert torch.equal(case.recurrent[others], recurrent[others])
    assert torch.equal(case.conv[others], conv[others])
    assert case.journal[others].isnan().all()


def test_the_journal_holds_the_raw_rows_at_their_places() -> None:
    case = Case((2, 4), torch.float16)
    x = case.rows(5)
    case.run(x, [3, 1, 2], [2, 1, 2], [4, -1, 0])
    width = case.ops[0].journal_width
    assert torch.equal(case.journal[3, 0, 4:6], x[:2, :width])
    assert torch.equal(case.journal[2, 0, :2], x[3:, :width])
    assert case.journal[1].isnan().all()
    assert case.journal[3, 0, :4].isnan().all()
    assert case.journal[3, 0, 6:].isnan().all()


@pytest.mark.parametrize(
    ("dtype", "kept"), [(torch.float32, 1), (torch.float32, 5), (torch.float16, 3)], ids=str
)
def test_snapshot_and_replay_are_bit_by_bit_having_decoded(dtype: torch.dtype, kept: int) -> None:
    case = Case((1, 2), dtype)
    case.journal.zero_()
    recurrent, conv = case.recurrent.clone(), case.conv.clone()
    at_kept = None
    for token in range(5):
        for layer in range(LAYERS):
            case.run(case.rows(1), [2], [1], [token + 1], layer)
        if token + 1 == kept:
            at_kept = case.recurrent[2].clone(), case.conv[2].clone()
    assert at_kept is not None
    case.recurrent.copy_(recurrent)
    case.conv.copy_(conv)
    for tensor in (case.recurrent, case.conv):  # the replay goes into another slot: a fork
        tensor[4] = tensor[2]
    ops.replay(
        case.all_weights(),
        DeltaState(recurrent=case.recurrent, conv=case.conv, journal=case.journal),
        ReplayRows(
            slots=ints([0, 4]),
            journal_slots=ints([1, 2]),
            firsts=ints([0, 1]),
            lasts=ints([2, kept + 1]),
            counters=case.counters,
        ),
    )
    assert torch.equal(case.recurrent[4], at_kept[0])
    assert torch.equal(case.conv[4], at_kept[1])
    assert torch.equal(case.recurrent[:4], recurrent[:4])
    assert not case.counters.any()


def test_keys_all_alike_and_almost_no_decay_stay_close() -> None:
    case = Case()
    x = case.rows(1).repeat(24, 1) + 1e-3 * case.rows(24)
    decay = slice(case.channels + 2, case.channels + 4)
    x[:, decay] = -30.0  # softplus(-30) is about 1e-13
    out, recurrent, _ = case.truth(x, [2], [24])
    assert error(case.run(x, [2], [24]), out) < 1e-5
    assert error(case.recurrent[2, 0], recurrent[2]) < 1e-5
    x[:, decay] = 200.0  # forgets everything: no overflow, no NaN
    out, recurrent, _ = case.truth(x, [3], [24])
    assert error(case.run(x, [3], [24]), out) < 1e-5


def test_what_does_not_fit_is_refused() -> None:
    case = Case()
    state, x = case.state(0), case.rows(1)
    with pytest.raises(ValueError, match="dense rows of"):
        case.run(x[:, 1:], [1], [1])
    with pytest.raises(ValueError, match="power of 2"):
        DeltaState(recurrent=case.recurrent[:, 0, :, :, :15], conv=case.conv[:, 0])
    with pytest.raises(ValueError, match="expected 3 rows"):
        DeltaState(recurrent=state.recurrent, conv=case.conv[:, 0, :2])
    with pytest.raises(ValueError, match="does not fit"):
        DeltaState(recurrent=state.recurrent, conv=case.conv[:, 0, :, :-1])
    with pytest.raises(ValueError, match="must be contiguous"):
        DeltaState(recurrent=state.recurrent.transpose(2, 3), conv=state.conv)
    with pytest.raises(ValueError, match="journal"):
        DeltaState(recurrent=state.recurrent, conv=state.conv, journal=case.journal[:, 0, :, 1:])
    case.counters = case.counters[:1]
    with pytest.raises(ValueError, match="counters"):
        case.run(x, [1], [1])


def test_the_operators_tell_torch_what_they_change() -> None:
    case = Case()
    x, w, s = case.rows(2), case.weights(0), case.state(0)
    rest = (ints([1]), ints([0, 2]), ints([0]), case.counters, False)
    torch.library.opcheck(
        torch.ops.omni.gated_delta.default,
        (x, w.taps, w.a_log, w.dt_bias, w.norm, w.eps, s.recurrent, s.conv, s.journal, *rest),
    )
    case.journal.zero_()
    w = case.all_weights()
    rows = (ints([1]), ints([1]), ints([0]), ints([2]), case.counters)
    torch.library.opcheck(
        torch.ops.omni.gated_delta_replay.default,
        (w.taps, w.a_log, w.dt_bias, case.recurrent, case.conv, case.journal, *rows),
    )
