"""The stack's switches: a mixer per layer, pages and slots side by side."""

from __future__ import annotations

import random

import pytest
import torch
from tiny_models import Driver, relative_rms

from omni.errors import ModelError
from omni.models.attention import Step
from omni.models.backbone import BackboneConfig, DecoderStack, Parameter, Parameters
from omni.models.batch import StateView

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
    recurrent_shape=(32,),
)
TOKENS = random.Random(2).choices(range(50), k=60)


class LeakySum:
    """The smallest recurrent mixer: s <- 0.9 s + x, y = s W, one state per slot and layer."""

    def __init__(self, weight: torch.Tensor, row: int) -> None:
        self._weight = weight
        self._row = row

    def __call__(self, x: torch.Tensor, step: Step, state: StateView) -> torch.Tensor:
        assert state.recurrent is not None
        out = torch.empty_like(x)
        starts = step.batch.cu_seqlens
        for b, slot in enumerate(step.batch.slots):
            kept = state.recurrent[slot, self._row]
            for n in range(starts[b], starts[b + 1]):
                kept.mul_(0.9).add_(x[n])
                out[n] = kept
        return out @ self._weight


def build(config: BackboneConfig, parameters: Parameters, prefix: str, row: int) -> LeakySum:
    return LeakySum(parameters.tensor(prefix + "leaky"), row)


@pytest.fixture
def values() -> dict[str, Parameter]:
    generator = torch.Generator().manual_seed(4)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

    made: dict[str, Parameter] = {"embed": drawn(50, 32), "final_norm": torch.ones(32)}
    for layer, kind in enumerate(CONFIG.mixers):
        prefix = f"layers.{layer}."
        made |= {prefix + "mixer_norm": torch.ones(32), prefix + "ffn_norm": torch.ones(32)}
        made |= {prefix + "ffn.gate_up": drawn(128, 32), prefix + "ffn.down": drawn(32, 64)}
        if kind == "attention":
            made[prefix + "attention.qkv"] = drawn(64, 32)
            made[prefix + "attention.out"] = drawn(32, 32)
        else:
            made[prefix + "leaky"] = drawn(32, 32)
    return made


def test_layers_mix_by_their_own_kind_with_their_own_rows_of_state(
    values: dict[str, Parameter],
) -> None:
    stack = DecoderStack(CONFIG, values, {"recurrent": build})
    spec = stack.state_spec
    assert (spec.num_attention, spec.num_recurrent) == (2, 2)
    whole = Driver(stack)
    expected = whole.step([TOKENS])
    assert whole.state.recurrent is not None
    assert whole.state.recurrent[1].abs().amin(dim=1).gt(0).all()  # both layers' rows are used
    assert not whole.state.recurrent[0].any()  # the null slot is not
    for chunk in (1, 7, 23):
        driver = Driver(stack)
        parts = [driver.step([TOKENS[at : at + chunk]]) for at in range(0, 60, chunk)]
        assert relative_rms(torch.cat(parts), expected) <= 1e-5


def test_sequences_of_a_hybrid_stack_keep_their_slots_apart(
    values: dict[str, Parameter],
) -> None:
    stack = DecoderStack(CONFIG, values, {"recurrent": build})
    alone = Driver(stack).step([TOKENS[:30]])
    pair = Driver(stack, num_sequences=2)
    pair.step([TOKENS[:10], TOKENS[40:45]])
    pair.step([[], TOKENS[45:50]])
    together = pair.step([TOKENS[10:30], TOKENS[50:60]])
    assert relative_rms(together[:20], alone[10:]) <= 1e-5


def test_a_mixer_that_is_not_there_is_refused(values: dict[str, Parameter]) -> None:
    with pytest.raises(ModelError, match="layer 0 mixes by 'recurrent'"):
        DecoderStack(CONFIG, values)


def test_a_parameter_that_is_not_there_is_named(values: dict[str, Parameter]) -> None:
    del values["layers.3.attention.out"]
    with pytest.raises(ModelError, match=r"layers\.3\.attention\.out"):
        DecoderStack(CONFIG, values, {"recurrent": build})
