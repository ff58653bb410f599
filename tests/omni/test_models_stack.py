"""The stack's switches: a mixer per layer, pages, slots and journals side by side."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from omni_kernels.linear import PackedWeight, pack
from tiny_models import Driver, relative_rms

from omni.errors import ModelError
from omni.models.backbone import BackboneConfig, DecoderStack, weight_bytes
from omni.models.experts import ExpertsShape, MixtureOfExperts
from omni.models.gated_delta import DeltaShape
from omni.models.layers import GatedFeedForward, Linear
from omni.models.parameters import Parameter, Parameters

DELTA = DeltaShape(num_key_heads=2, num_value_heads=4, key_dim=8, value_dim=12, conv_width=4)
CONFIG = BackboneConfig(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=64,
    mixers=("recurrent", "attention", "recurrent", "attention"),
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    max_positions=128,
    qkv_bias=False,
    tied_head=True,
    rotary_dim=4,
    qk_norm=True,
    output_gate=True,
    delta=DELTA,
)
TOKENS = random.Random(2).choices(range(50), k=60)


def drawn(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5


@pytest.fixture
def values() -> dict[str, Parameter]:
    generator = torch.Generator().manual_seed(4)

    def matrix(*shape: int) -> torch.Tensor:
        return drawn(generator, *shape)

    def norm(width: int) -> torch.Tensor:
        return 1 + 0.3 * torch.randn(width, generator=generator)

    made: dict[str, Parameter] = {"embed": matrix(50, 32), "final_norm": norm(32)}
    for layer, kind in enumerate(CONFIG.mixers):
        prefix = f"layers.{layer}."
        made |= {prefix + "mixer_norm": norm(32), prefix + "ffn_norm": norm(32)}
        made |= {prefix + "ffn.gate_up": matrix(128, 32), prefix + "ffn.down": matrix(32, 64)}
        if kind == "attention":
            name = prefix + "attention."
            made |= {name + "qkv": matrix(96, 32), name + "out": matrix(32, 32)}
            made |= {name + "q_norm": norm(8), name + "k_norm": norm(8)}
        else:
            name = prefix + "delta."
            made |= {
                name + "project": matrix(DELTA.input_width, 32),
                name + "conv": matrix(DELTA.channels, 4),
                name + "a_log": torch.rand(4, generator=generator).log(),
                name + "dt_bias": torch.randn(4, generator=generator),
                name + "norm": norm(12),
                name + "out": matrix(32, 48),
            }
    return made


def test_layers_mix_by_their_own_kind_with_their_own_rows_of_state(
    values: dict[str, Parameter],
) -> None:
    stack = DecoderStack(CONFIG, values)
    spec = stack.state_spec
    assert (spec.num_attention, spec.num_recurrent) == (2, 2)
    assert (spec.recurrent_shape, spec.conv_shape) == ((4, 12, 8), (3, 80))
    assert spec.journal_width == 88
    whole = Driver(stack)
    expected = whole.step([TOKENS])
    for state in (whole.state.recurrent, whole.state.conv):
        assert state is not None
        assert state[1].flatten(1).abs().amax(dim=1).gt(0).all()  # both layers' rows are used
        assert not state[0].any()  # the null slot is not
    for chunk in (1, 7, 23):
        driver = Driver(stack)
        parts = [driver.step([TOKENS[at : at + chunk]]) for at in range(0, 60, chunk)]
        assert relative_rms(torch.cat(parts), expected) <= 1e-5


def test_sequences_of_a_hybrid_stack_keep_their_slots_apart(
    values: dict[str, Parameter],
) -> None:
    stack = DecoderStack(CONFIG, values)
    alone = Driver(stack).step([TOKENS[:30]])
    pair = Driver(stack, num_sequences=2)
    pair.step([TOKENS[:10], TOKENS[40:45]])
    pair.step([[], TOKENS[45:50]])
    together = pair.step([TOKENS[10:30], TOKENS[50:60]])
    assert relative_rms(together[:20], alone[10:]) <= 1e-5


@pytest.mark.parametrize("num_rows", [0, 1, 2, 3, 5, 9, 10, 20])
def test_replaying_the_journal_is_bit_by_bit_having_computed_so_far(
    values: dict[str, Parameter], num_rows: int
) -> None:
    stack = DecoderStack(CONFIG, values)
    driver = Driver(stack, num_sequences=2, journal=24)
    state = driver.state
    assert state.recurrent is not None
    assert state.conv is not None
    driver.step([TOKENS[:10], TOKENS[30:33]])
    kept = state.recurrent[1].clone(), state.conv[1].clone()
    driver.journal_from(0)
    passed = {0: kept}
    for at in range(10, 30, 5):
        driver.step([TOKENS[at : at + 5], TOKENS[at : at + 2]])
        passed[at - 5] = state.recurrent[1].clone(), state.conv[1].clone()
    neighbour = state.recurrent[2].clone()
    state.recurrent[1], state.conv[1] = kept
    stack.replay(state, 1, slice(0, num_rows // 2))
    stack.replay(state, 1, slice(num_rows // 2, num_rows))
    assert torch.equal(state.recurrent[2], neighbour)
    if num_rows in passed:
        assert torch.equal(state.recurrent[1], passed[num_rows][0])
        assert torch.equal(state.conv[1], passed[num_rows][1])
    straight = Driver(stack)
    straight.step([TOKENS[: 10 + num_rows]])
    assert straight.state.recurrent is not None
    assert relative_rms(state.recurrent[1], straight.state.recurrent[1]) <= 1e-5
    driver.rewind(0, 10 + num_rows)
    assert relative_rms(driver.step([TOKENS[40:], []]), straight.step([TOKENS[40:]])) <= 1e-5


def test_a_driver_without_a_journal_computes_the_same(values: dict[str, Parameter]) -> None:
    stack = DecoderStack(CONFIG, values)
    recorded = Driver(stack, journal=60)
    recorded.journal_from(0)
    assert torch.equal(recorded.step([TOKENS]), Driver(stack).step([TOKENS]))


def test_a_journal_that_is_too_short_is_not_replayed(values: dict[str, Parameter]) -> None:
    stack = DecoderStack(CONFIG, values)
    with pytest.raises(ValueError, match="no rows 0 to 25"):
        stack.replay(Driver(stack, journal=24).state, 1, slice(0, 25))
    with pytest.raises(ValueError, match="no rows 0 to 1"):
        stack.replay(Driver(stack).state, 1, slice(0, 1))


def test_a_recurrent_layer_of_no_shape_is_refused(values: dict[str, Parameter]) -> None:
    with pytest.raises(ModelError, match="without its shape"):
        DecoderStack(dataclasses.replace(CONFIG, delta=None), values)


def test_heads_that_the_kernel_cannot_run_are_one_sentence(values: dict[str, Parameter]) -> None:
    odd = dataclasses.replace(DELTA, num_key_heads=3)
    with pytest.raises(ModelError, match="no multiple of 3 key heads"):
        DecoderStack(dataclasses.replace(CONFIG, delta=odd), values)


def test_a_parameter_that_is_not_there_is_named(values: dict[str, Parameter]) -> None:
    del values["layers.3.attention.out"]
    with pytest.raises(ModelError, match=r"layers\.3\.attention\.out"):
        DecoderStack(CONFIG, values)


SHAPE = ExpertsShape(num_experts=6, num_chosen=2, expert_size=32, shared_size=64)


def make_experts(shape: ExpertsShape) -> tuple[MixtureOfExperts, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    values = {
        "router": drawn(generator, 6, 48) * 4,
        "gate_up": drawn(generator, 6, 64, 48),
        "down": drawn(generator, 6, 48, 32),
        "shared.gate_up": drawn(generator, 128, 48),
        "shared.down": drawn(generator, 48, 64),
        "shared.gate": drawn(generator, 1, 48),
    }
    parameters = Parameters(
        {"gate_up": values["gate_up"].view(-1, 48), "down": values["down"].view(-1, 32)}
    )
    pairs = zip(parameters.linears("gate_up", 6), parameters.linears("down", 6), strict=True)
    mixture = MixtureOfExperts(
        router=values["router"],
        experts=[GatedFeedForward(*pair) for pair in pairs],
        shared=GatedFeedForward(Linear(values["shared.gate_up"]), Linear(values["shared.down"])),
        shared_gate=values["shared.gate"],
        shape=shape,
    )
    return mixture, values


def slow_experts(
    x: torch.Tensor, values: dict[str, torch.Tensor], shape: ExpertsShape
) -> torch.Tensor:
    """Every expert on every row, in double precision."""

    def feed_forward(row: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        gate, up = (gate_up.double() @ row).chunk(2)
        return down.double() @ (torch.nn.functional.silu(gate) * up)

    out = []
    for row in x.double():
        scores = (values["router"].double() @ row).softmax(0)
        best = scores.topk(shape.num_chosen).indices
        total = scores[best].sum() if shape.renormalised else 1.0
        shared = feed_forward(row, values["shared.gate_up"], values["shared.down"])
        made = torch.sigmoid(values["shared.gate"].double() @ row) * shared
        for expert in best.tolist():
            weight = scores[expert] / total
            made = made + weight * feed_forward(
                row, values["gate_up"][expert], values["down"][expert]
            )
        out.append(made)
    return torch.stack(out).float()


@pytest.mark.parametrize("rows", [1, 2, 5, 40])
@pytest.mark.parametrize("renormalised", [True, False])
def test_a_mixture_is_the_weighted_sum_of_its_chosen_experts(rows: int, renormalised: bool) -> None:
    shape = dataclasses.replace(SHAPE, renormalised=renormalised)
    mixture, values = make_experts(shape)
    x = torch.randn(rows, 48, generator=torch.Generator().manual_seed(2))
    assert relative_rms(mixture(x), slow_experts(x, values, shape)) <= 1e-6


def test_experts_that_nobody_chose_do_not_run() -> None:
    mixture, _ = make_experts(SHAPE)
    x = torch.randn(3, 48, generator=torch.Generator().manual_seed(2))
    _, chosen = mixture.route(x)
    idle = set(range(6)) - set(chosen.flatten().tolist())
    assert idle
    expected = mixture(x)
    for expert in idle:
        mixture._experts[expert].down.weight[:] = torch.nan
    assert torch.equal(mixture(x), expected)


def test_packed_experts_are_views_of_one_matrix() -> None:
    stacked = drawn(torch.Generator().manual_seed(3), 6 * 32, 64)
    packed = pack(stacked)
    parts = Parameters({"experts": packed}).linears("experts", 6)
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(5))
    together = Linear(packed)(x).chunk(6, dim=1)
    for part, expected in zip(parts, together, strict=True):
        assert isinstance(part.weight, PackedWeight)
        assert part.weight.data.untyped_storage().data_ptr() == packed.data.data_ptr()
        assert torch.equal(part(x), expected)


def test_packed_experts_between_panels_are_refused() -> None:
    packed = pack(drawn(torch.Generator().manual_seed(3), 4 * 24, 64))
    with pytest.raises(ModelError, match="4 matrices of 24 rows"):
        Parameters({"experts": packed}).linears("experts", 4)


def test_a_step_reads_only_the_chosen_experts(values: dict[str, Parameter]) -> None:
    dense = weight_bytes(CONFIG, values)
    assert dense == sum(value.nbytes for value in values.values())
    config = dataclasses.replace(CONFIG, experts=SHAPE)
    more = values | {"layers.0.ffn.experts.down": torch.zeros(6, 100)}
    assert weight_bytes(config, more) == dense + 2 * 400
