"""Gated DeltaNet against its reference and transformers, on every path, and its promises."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from omni_kernels import library
from omni_kernels.gated_delta import GatedDelta, gated_delta_net, reference, replay
from torch.nn import functional
from transformers.models.qwen3_5 import modeling_qwen3_5 as qwen

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

    def untouched(self, op: GatedDelta, *slots: int) -> bool:
        """Whether the other layers, and the slots not named, are as they were made."""
        fresh, others = State(op, len(self.conv)), torch.ones(len(self.conv), dtype=torch.bool)
        others[list(slots)] = False
        return (
            torch.equal(self.recurrent[others], fresh.recurrent[others])
            and torch.equal(self.conv[others], fresh.conv[others])
            and all(
                bool(memory[:, layer].isnan().all())
                for memory in (self.all_recurrent, self.all_conv, self.all_journal)
                for layer in (0, 2)
            )
            and bool(self.journal[others].isnan().all())
        )


@pytest.fixture(autouse=True)
def new_memory_holds_nan() -> Iterator[None]:
    """Let ``torch.empty`` return NaN: an output that is not written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


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


def double(op: GatedDelta, state: State, x: torch.Tensor, slot: int) -> tuple[torch.Tensor, ...]:
    """Return the reference's output and the slot's state after it, in fp64."""
    recurrent, conv = state.recurrent.double(), state.conv.double()
    out = reference.gated_delta_net(x.double(), op, recurrent, conv, (slot,), (0, len(x)))
    return out, recurrent[slot], conv[slot]


def transformers_layer(
    op: GatedDelta, state: State, x: torch.Tensor, slot: int, *, chunked: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the functions of transformers make of one sequence: [N, HV V], [HV, V, K]."""
    heads, value_heads = op.num_key_heads, op.num_value_heads
    keys, values = heads * op.key_dim, value_heads * op.value_dim
    qkv, b, a, z = torch.split(x, [op.channels, value_heads, value_heads, values], dim=1)
    inputs = torch.cat([state.conv[slot], qkv]).t()[None]  # [1, C, W - 1 + N]
    mixed = qwen.causal_conv1d_fn(inputs, op.conv_weight, activation="silu")[0, :, -len(x) :].t()
    q, k, v = torch.split(mixed, [keys, keys, values], dim=1)
    rule = qwen.torch_chunk_gated_delta_rule if chunked else qwen.torch_recurrent_gated_delta_rule
    read, last = rule(
        q.reshape(1, len(x), heads, op.key_dim),
        k.reshape(1, len(x), heads, op.key_dim),
        v.reshape(1, len(x), value_heads, op.value_dim),
        g=(-op.a_log.exp() * functional.softplus(a + op.dt_bias))[None],
        beta=b.sigmoid()[None],
        initial_state=state.recurrent[slot].transpose(1, 2)[None],
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )
    norm = qwen.Qwen3_5RMSNormGated(op.value_dim, eps=op.eps)
    norm.weight.data = op.norm
    gated = norm(read.reshape(-1, op.value_dim), z.reshape(-1, op.value_dim))
    return gated.reshape(len(x), values).detach(), last[0].transpose(1, 2)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("length", LENGTHS)
def test_layer_equals_the_reference_in_double(path: str, length: int, ratio: int) -> None:
    op = layer(ratio)
    state, x = State(op), normal(length, op.input_width)
    truth, recurrent, conv = double(op, state, x, 3)
    assert relative_error(run(x, op, state, (3,)), truth) < 2e-6
    assert relative_error(state.recurrent[3], recurrent) < 1e-6
    assert torch.equal(state.conv[3].double(), conv)
    assert torch.equal(state.journal[3, :length], x[:, : op.journal_width])
    assert state.untouched(op, 3)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("chunked", [False, True], ids=["recurrent", "chunked"])
def test_layer_equals_transformers(path: str, chunked: bool, length: int, ratio: int) -> None:
    op = layer(ratio)
    state, x = State(op), normal(length, op.input_width, seed=5)
    expected, last = transformers_layer(op, state, x, 1, chunked=chunked)
    torch.testing.assert_close(run(x, op, state, (1,)), expected, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(state.recurrent[1], last, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize(
    ("key_dim", "value_dim"), [(4, 4), (8, 12), (20, 8), (16, 48), (128, 128), (256, 64), (64, 256)]
)
def test_heads_may_have_any_width_in_fours(path: str, key_dim: int, value_dim: int) -> None:
    op = layer(3, 1, key_dim, value_dim)
    state, x = State(op), normal(35, op.input_width)
    truth, recurrent, _ = double(op, state, x, 0)
    assert relative_error(run(x, op, state, (0,)), truth) < 3e-6
    assert relative_error(state.recurrent[0], recurrent) < 1e-6


@pytest.mark.parametrize("width", [2, 3, 5, 8])
def test_convolution_may_have_another_width(path: str, width: int) -> None:
    op = layer(width=width)
    state, x = State(op), normal(11, op.input_width)
    truth, recurrent, conv = double(op, state, x, 0)
    got = torch.cat([run(part, op, state, (0,)) for part in x.split(3)])
    assert relative_error(got, truth) < 2e-6
    assert relative_error(state.recurrent[0], recurrent) < 1e-6
    assert torch.equal(state.conv[0].double(), conv)


def test_first_token_of_all_sees_an_empty_past(path: str) -> None:
    op = layer()
    state, x = State(op), normal(2, op.input_width)
    state.recurrent.zero_()
    state.conv.zero_()
    expected, _ = transformers_layer(op, state, x, 0, chunked=True)
    torch.testing.assert_close(run(x, op, state, (0,)), expected, atol=2e-5, rtol=2e-5)


def test_keys_that_barely_differ_stay_exact(path: str) -> None:
    """Silence and still pictures: the closed form over a chunk is at its worst here."""
    op = layer()
    state, x = State(op), normal(129, op.input_width)
    x[:, : op.channels] = x[:1, : op.channels] + 1e-3 * normal(129, op.channels, seed=6)
    gates = x[:, op.channels : op.journal_width]
    gates[:, : op.num_value_heads] = 10.0  # beta 1: all of the old value is replaced
    gates[:, op.num_value_heads :] = -30.0  # decay 1: nothing is forgotten
    truth, recurrent, _ = double(op, state, x, 2)
    assert relative_error(run(x, op, state, (2,)), truth) < 1e-5
    assert relative_error(state.recurrent[2], recurrent) < 1e-6


@pytest.mark.parametrize("a", [-1e4, -100.0, -20.0, 20.0, 100.0, 1e4])
@pytest.mark.parametrize("b", [-1e4, -100.0, 0.0, 100.0])
def test_gates_have_the_right_limits(path: str, a: float, b: float) -> None:
    op = layer()
    state, x = State(op), normal(9, op.input_width)
    x[:, op.channels : op.channels + op.num_value_heads] = b
    x[:, op.channels + op.num_value_heads : op.journal_width] = a
    before = state.recurrent[0].clone()
    truth, recurrent, _ = double(op, state, x, 0)
    got = run(x, op, state, (0,))
    if a <= -100 and b <= -100:  # keeps everything, writes nothing
        assert torch.equal(state.recurrent[0], before)
    if a >= 100 and b <= -100:  # forgets everything, writes nothing
        assert state.recurrent[0].abs().max() < 1e-30
    else:  # in fp32, e^-54 after nine tokens is known to 3e-6
        assert relative_error(got, truth) < 1e-5
        assert relative_error(state.recurrent[0], recurrent) < 1e-5


@pytest.mark.parametrize("cut", [1, 2, 3, 5, 31, 32, 33, 64, 100])
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
    for row, _ in enumerate(x):
        gated_delta_net(
            x[row : row + 1],
            op,
            recurrent=state.recurrent,
            conv=state.conv,
            slots=(1,),
            cu_seqlens=(0, 1),
            journal=state.journal,
            journal_starts=(row + 5,),
        )
    for part in state.journal[1, 5:75].split(33):
        replay(op, part, recurrent=recurrent, conv=conv)
    assert torch.equal(recurrent, state.recurrent[1])
    assert torch.equal(conv, state.conv[1])
    assert state.journal[1, :5].isnan().all()
    assert state.journal[1, 75:].isnan().all()
    assert state.untouched(op, 1)


def test_going_back_and_on_is_as_if_it_never_happened(path: str) -> None:
    op = layer()
    state, straight, x = State(op), State(op), normal(40, op.input_width)
    said, wrong = x[:20], normal(17, op.input_width, seed=7)
    expected = run(x, op, straight, (4,))
    checkpoint = state.recurrent[4].clone(), state.conv[4].clone()
    run(torch.cat([said, wrong]), op, state, (4,))
    state.recurrent[4], state.conv[4] = checkpoint
    replay(op, state.journal[4, :20], recurrent=state.recurrent[4], conv=state.conv[4])
    assert torch.equal(run(x[20:], op, state, (4,)), expected[20:])
    assert torch.equal(state.recurrent, straight.recurrent)
    assert torch.equal(state.conv, straight.conv)


def test_neighbours_slots_and_threads_do_not_change_a_bit(path: str) -> None:
    op = layer(3)
    lengths, slots = (1, 70, 0, 6), (3, 0, 2, 1)
    offsets = (0, 1, 71, 71, 77)
    x, together = normal(77, op.input_width), State(op)
    expected = run(x, op, together, slots, *lengths)
    assert together.untouched(op, 0, 1, 3)
    for threads in (1, 2, 5):
        library.set_num_threads(threads)
        again = State(op)
        assert torch.equal(run(x, op, again, slots, *lengths), expected)
        assert torch.equal(again.recurrent, together.recurrent)
        for slot, (first, last) in zip(slots, pairwise(offsets), strict=True):
            alone = State(op)
            elsewhere = (slot + 1) % len(alone.conv)
            alone.recurrent[elsewhere] = alone.recurrent[slot]
            alone.conv[elsewhere] = alone.conv[slot]
            assert torch.equal(run(x[first:last], op, alone, (elsewhere,)), expected[first:last])
            assert torch.equal(alone.recurrent[elsewhere], together.recurrent[slot])
            assert torch.equal(alone.conv[elsewhere], together.conv[slot])


def test_threads_that_work_at_once_share_no_scratch(path: str) -> None:
    if path == "torch":
        pytest.skip("the torch path has none")
    op = layer(1, 8, 64, 64)
    x, alone = normal(1500, op.input_width), State(op)

    def advance(state: State) -> torch.Tensor:
        states = {"recurrent": state.recurrent, "conv": state.conv}
        return gated_delta_net(x, op, **states, slots=(0,), cu_seqlens=(0, len(x)))

    library.set_num_threads(1)
    expected = advance(alone)
    library.set_num_threads(4)
    for _ in range(8):  # of 10 ms each, so that helpers join even on a busy machine
        together = State(op)
        assert torch.equal(advance(together), expected)
        assert torch.equal(together.recurrent, alone.recurrent)


def test_a_value_that_is_not_finite_stays_in_its_sequence(path: str) -> None:
    op = layer()
    clean, poisoned, x = State(op), State(op), normal(40, op.input_width)
    expected = run(x, op, clean, (0, 1, 2), 10, 20, 10)
    x[15] = torch.nan
    got = run(x, op, poisoned, (0, 1, 2), 10, 20, 10)
    assert torch.equal(got[:15], expected[:15])
    assert got[15:30].isnan().all()
    assert torch.equal(got[30:], expected[30:])
    assert poisoned.recurrent[1].isnan().all()
    for slot in (0, 2, 3, 4):
        assert torch.equal(poisoned.recurrent[slot], clean.recurrent[slot])
        assert torch.equal(poisoned.conv[slot], clean.conv[slot])


def test_rows_of_the_input_may_lie_apart(path: str) -> None:
    op = layer()
    state, dense = State(op), State(op)
    wide = normal(7, op.input_width + 9)
    part = wide[:, 4 : 4 + op.input_width]
    assert torch.equal(run(part, op, state, (1,)), run(part.contiguous(), op, dense, (1,)))
    assert torch.equal(state.recurrent, dense.recurrent)


def test_a_sequence_may_do_without_a_journal(path: str) -> None:
    op = layer()
    state, x = State(op), normal(6, op.input_width)
    states = {"recurrent": state.recurrent, "conv": state.conv}
    both = {"slots": (0, 2), "cu_seqlens": (0, 2, 6)}
    gated_delta_net(x, op, **states, **both)
    gated_delta_net(x, op, **states, **both, journal=state.journal, journal_starts=(-1, 3))
    assert torch.equal(state.journal[2, 3:7], x[2:, : op.journal_width])
    assert state.journal[2, 7:].isnan().all()
    assert state.untouched(op, 0, 2)
    nothing = gated_delta_net(x[:0], op, **states, slots=(), cu_seqlens=(0,))
    assert nothing.shape == (0, op.output_width)
    replay(op, x[:0, : op.journal_width], recurrent=state.recurrent[3], conv=state.conv[3])
    assert state.untouched(op, 0, 2)


def test_wrong_input_is_refused_and_changes_nothing(path: str) -> None:
    op = layer()
    state, x = State(op), normal(4, op.input_width)
    good = {
        "recurrent": state.recurrent,
        "conv": state.conv,
        "slots": (1, 3),
        "cu_seqlens": (0, 1, 4),
        "journal": state.journal,
        "journal_starts": (0, 0),
    }
    for message, wrong in [
        ("recurrent: expected float32", {"recurrent": state.recurrent[:, :1]}),
        ("recurrent: expected float32", {"recurrent": state.recurrent.double()}),
        ("recurrent: expected slots", {"recurrent": state.recurrent.mT.contiguous().mT}),
        ("conv: expected float32", {"conv": state.conv[:4]}),
        ("slot 5 is not in 0 .. 4", {"slots": (1, 5)}),
        ("slot -1 is not in 0 .. 4", {"slots": (-1, 3)}),
        ("share a slot", {"slots": (3, 3)}),
        ("2 slots, but 2 offsets", {"cu_seqlens": (0, 4)}),
        ("from 0 to 4", {"cu_seqlens": (0, 1, 3)}),
        ("must not fall", {"cu_seqlens": (0, 5, 4)}),
        ("3 offsets and 1 journal starts", {"journal_starts": (0,)}),
        ("3 tokens from journal row 158 do not fit its 160", {"journal_starts": (0, 158)}),
        ("1 tokens from journal row -2", {"journal_starts": (-2, 0)}),
        ("journal row 0 do not fit its 0", {"journal": None}),
        ("journal: expected float32", {"journal": state.journal[:, :, 1:]}),
    ]:
        with pytest.raises(ValueError, match=message):
            gated_delta_net(x, op, **(good | wrong))
    with pytest.raises(ValueError, match="x: expected float32"):
        gated_delta_net(x[:, 1:], op, **good)
    with pytest.raises(ValueError, match="x: expected dense rows"):
        gated_delta_net(x.t().contiguous().t(), op, **good)
    with pytest.raises(ValueError, match="rows: expected float32"):
        replay(op, x, recurrent=state.recurrent[1], conv=state.conv[1])
    with pytest.raises(ValueError, match="recurrent: expected float32"):
        replay(op, x[:, : op.journal_width], recurrent=state.recurrent, conv=state.conv[1])
    assert state.untouched(op)


def test_a_layer_that_no_path_can_run_is_refused() -> None:
    op = layer()
    with pytest.raises(ValueError, match="key heads of width 30: expected a multiple of 4"):
        replace(op, key_dim=30)
    with pytest.raises(
        ValueError, match="value heads of width 260: expected a multiple of 4 up to 256"
    ):
        replace(op, value_dim=260)
    with pytest.raises(ValueError, match="4 value heads are no multiple of 3 key heads"):
        replace(op, num_key_heads=3)
    with pytest.raises(ValueError, match="convolution of width 9: expected 2 to 8"):
        replace(op, conv_weight=torch.zeros(op.channels, 9))
    with pytest.raises(ValueError, match=r"a_log: expected float32 \[4\]"):
        replace(op, a_log=op.a_log[:3])


def test_a_copy_that_would_point_at_the_original_is_refused() -> None:
    with pytest.raises(ValueError, match="pointers cannot be pickled"):
        copy.deepcopy(layer())
