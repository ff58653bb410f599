"""The stack of card kernels against the CPU's, with the same weights, in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import interpreted  # noqa: F401
import pytest
import torch
from omni_kernels.linear import PackedWeight, pack, pack_quantized, unpack
from omni_kernels.linear.triton_layout import CardWeight, dequantize
from omni_kernels.triton_graph import nobody
from tiny_backbone import ATTENTION, HYBRID, Mixers, one_thread, relative_rms, stack_parts
from tiny_models import Driver
from tiny_qwen3_5 import Kind, make
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from omni.engine.shares import Shares
from omni.engine.state_cache import StateCache
from omni.errors import ModelError
from omni.models import registry, weights
from omni.models.backbone import BackboneConfig, DecoderStack
from omni.models.batch import Batch, GraphedBackbone, StateView
from omni.models.card import CardStack
from omni.models.card_layers import CardParameters
from omni.models.layers import QuantisedRows
from omni.models.parameters import Parameter
from omni.models.weights import SafetensorsFolder

__all__ = ["one_thread"]

MOVES = (torch.ops.aten.lift_fresh, torch.ops.aten._to_copy, torch.ops.aten.copy_)
"""Operators by which a tensor of the host is made and goes to a card."""
HOST, NOWHERE = torch.device("cpu"), torch.device("meta")


def both(config: BackboneConfig, values: dict[str, Parameter]) -> tuple[DecoderStack, CardStack]:
    return DecoderStack(config, values), CardStack(
        config, values, device=HOST, page_dtype=torch.float32
    )


def opened(kind: Kind, folder: Path) -> tuple[BackboneConfig, dict[str, Parameter]]:
    """A random model of transformers with two layers, in plain numbers."""
    layers = ["linear_attention", "full_attention"]
    make(kind, num_hidden_layers=2, layer_types=layers).save_pretrained(folder)
    description = weights.read_hf_config(folder)
    family = registry.family_of(description.get("model_type"))
    config, checkpoint = family.config_from_hf(description), SafetensorsFolder(folder)
    return config, weights.read_dense(family.plan(config, "hf", checkpoint.names), checkpoint)


@pytest.mark.parametrize("mixers", [ATTENTION, HYBRID], ids=["attention", "hybrid"])
def test_ragged_pieces_and_single_tokens_have_the_logits_of_the_cpu(mixers: Mixers) -> None:
    stacks = both(*stack_parts(mixers=mixers))
    drivers = [Driver(stack, num_sequences=3, journal=8) for stack in stacks]
    for new in ([[3, 4, 5, 6, 7], [], [1, 2]], [[8], [9, 10, 11], []], [[1], [2], [3]]):
        expected, got = (driver.step(new) for driver in drivers)
        assert relative_rms(got, expected) < 1e-5
    if mixers == HYBRID:
        host, card = (driver.state for driver in drivers)
        assert host.recurrent is not None
        assert card.recurrent is not None
        assert relative_rms(card.recurrent[1:], host.recurrent[1:]) < 1e-5


@pytest.mark.parametrize("kind", ["dense", "moe", "next"])
def test_a_familys_gates_norms_and_experts_have_the_logits_of_the_cpu(
    kind: Kind, tmp_path: Path
) -> None:
    stacks = both(*opened(kind, tmp_path))
    drivers = [Driver(stack, num_sequences=2, journal=8) for stack in stacks]
    for new in ([[3, 4, 5], [1]], [[6], [2]]):
        expected, got = (driver.step(new) for driver in drivers)
        assert relative_rms(got, expected) < 1e-5
    assert (stacks[1].capture is None) == (kind != "dense")  # who runs is the host's to know


def test_embeddings_with_three_axes_take_the_place_of_tokens(tmp_path: Path) -> None:
    config, values = opened("dense", tmp_path)
    given = torch.randn(3, config.hidden_size, generator=torch.Generator().manual_seed(5))
    logits = []
    for stack in both(config, values):
        driver = Driver(stack)
        batch = Batch(
            token_ids=torch.tensor([7, -1, -1, -1, 9]),
            positions=torch.tensor([[0, 1, 1, 1, 3], [0, 1, 1, 2, 3], [0, 1, 2, 1, 3]]),
            cu_seqlens=(0, 5),
            num_computed=(0,),
            page_table=((3, 1),),
            slots=(1,),
            logits_rows=torch.tensor([2, 4]),
            embeddings=given,
        )
        logits.append(stack.forward(batch, driver.state))
    assert logits[1].shape == (2, config.vocab_size)
    assert relative_rms(logits[1], logits[0]) < 1e-5


def test_pages_of_16_bits_are_close_and_what_a_card_gets_by_default() -> None:
    config, values = stack_parts(mixers=("attention",))
    assert CardStack(config, values, device=HOST).state_spec.kv_dtype == torch.bfloat16
    card = CardStack(config, values, device=HOST, page_dtype=torch.float16)
    drivers = Driver(DecoderStack(config, values)), Driver(card)
    for new in ([[3, 4, 5]], [[6]]):
        expected, got = (driver.step(new) for driver in drivers)
        assert got.dtype == torch.float32
        assert 0 < relative_rms(got, expected) < 2e-3


def test_nothing_wanted_is_no_logits() -> None:
    config, values = stack_parts(mixers=("attention",))
    stack = both(config, values)[1]
    driver = Driver(stack)
    assert driver.step([[4, 5]], all_rows=False).shape == (1, config.vocab_size)
    batch = Batch(
        token_ids=torch.tensor([6]),
        positions=torch.tensor([2]),
        cu_seqlens=(0, 1),
        num_computed=(2,),
        page_table=((5,),),
        slots=(0,),
        logits_rows=torch.tensor([], dtype=torch.int64),
    )
    assert stack.forward(batch, driver.state).shape == (0, config.vocab_size)


def with_offsets(weight: torch.Tensor) -> PackedWeight:
    """Four bits from the least of each group of 32."""
    groups = weight.view(len(weight), -1, 32)
    least, most = groups.amin(2), groups.amax(2)
    scales = (most - least) / 15
    codes = ((groups - least[..., None]) / scales[..., None]).round().clamp(0, 15)
    return pack_quantized(codes.to(torch.int8).view(weight.shape), scales, 4, offsets=least)


def packed(values: dict[str, torch.Tensor]) -> dict[str, Parameter]:
    """Matrices of every width a file can have; the table of embeddings stays in rows."""
    bits = {"qkv": 8, "project": 8, "out": 5, "gate_up": 4, "down": 8, "head": 4}
    found: dict[str, Parameter] = {}
    for name, value in values.items():
        kind = bits.get(name.rpartition(".")[2])
        found[name] = value if kind is None else pack(value, kind)
    codes = torch.randint(-127, 128, values["embed"].shape).to(torch.int8)
    found["embed"] = QuantisedRows(codes, (torch.rand(len(codes), 2) / 500).half())
    return found


def test_quantised_weights_have_the_logits_of_the_numbers_they_stand_for() -> None:
    torch.manual_seed(2)
    config, values = stack_parts(mixers=("recurrent", "attention"), vocab_size=16)
    quantised = packed(values)
    plain = {
        name: unpack(value) if isinstance(value, PackedWeight) else value
        for name, value in quantised.items()
    }
    expected = Driver(DecoderStack(config, plain))
    got = Driver(CardStack(config, quantised, device=HOST, page_dtype=torch.float32))
    assert relative_rms(got.step([[3, 4]]), expected.step([[3, 4]])) < 1e-5


@pytest.mark.parametrize("bits", [8, 5, 4])
def test_a_matrix_keeps_its_numbers_on_a_card(bits: int) -> None:
    weight = pack(torch.randn(48, 64, generator=torch.Generator().manual_seed(1)), bits)
    parameters = CardParameters({"w": weight}, HOST)
    moved = parameters.linear("w").weight
    assert isinstance(moved, CardWeight)
    assert moved.bits == (4 if bits == 4 else 8)
    assert torch.equal(dequantize(moved), unpack(weight))
    parts = [part.weight for part in parameters.linears("w", 3)]
    assert torch.equal(torch.cat([dequantize(part) for part in parts]), unpack(weight))


def test_a_matrix_with_offsets_is_rounded_to_8_bits() -> None:
    weight = with_offsets(torch.randn(32, 64, generator=torch.Generator().manual_seed(1)))
    moved = CardParameters({"w": weight}, HOST).linear("w").weight
    assert isinstance(moved, CardWeight)
    step = moved.scales.float().repeat_interleave(32, dim=1)
    apart = (dequantize(moved) - unpack(weight)).abs()
    assert bool((apart <= step / 2 * 1.001).all())
    assert bool((apart > 0).any())


def test_a_shape_that_the_kernels_are_not_written_for_is_refused_in_a_sentence() -> None:
    config, values = stack_parts(mixers=HYBRID)
    assert config.delta is not None
    wrong = {
        "heads of width 24": replace(config, head_dim=24),
        "the rotated part of heads of width 12": replace(config, rotary_dim=12),
        "key heads of width 8": replace(config, delta=replace(config.delta, key_dim=8)),
        "a convolution of width 3": replace(config, delta=replace(config.delta, conv_width=3)),
    }
    for says, changed in wrong.items():
        with pytest.raises(ModelError, match=f'^{says} do.*set engine.device to "cpu"$'):
            CardStack(changed, values, device=HOST, page_dtype=torch.float32)
    short = {name: value for name, value in values.items() if name != "layers.0.delta.a_log"}
    with pytest.raises(ModelError, match=r"no parameter layers\.0\.delta\.a_log"):
        CardStack(config, short, device=HOST, page_dtype=torch.float32)


def test_a_replay_of_rows_that_are_not_there_is_refused() -> None:
    stack = both(*stack_parts(mixers=HYBRID))[1]
    state = Driver(stack, journal=4).state
    with pytest.raises(ValueError, match="the journal has no rows 2 to 5"):
        stack.replay(state, 1, slice(2, 5))


class OneDevice(TorchDispatchMode):
    """Refuses an operator that is given a tensor with dimensions on another device."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.num_custom = 0

    def __torch_dispatch__(
        self,
        function: OpOverload,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        self.num_custom += function.namespace == "omni"
        if function.overloadpacket not in MOVES:
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, torch.Tensor) and value.dim():
                    assert value.device == self.device, f"{function} on {value.device}"
        return function(*args, **(kwargs or {}))


def empty_state(stack: CardStack) -> StateView:
    spec, slots = stack.state_spec, (3, stack.state_spec.num_recurrent)
    pages = (spec.num_attention, 2, 9, 4, spec.num_kv_heads, spec.head_dim)
    return StateView(
        kv=torch.empty(pages, dtype=spec.kv_dtype, device=spec.device),
        recurrent=torch.empty(*slots, *spec.recurrent_shape, device=spec.device),
        conv=torch.empty(*slots, *spec.conv_shape, device=spec.device),
        journal=torch.empty(*slots, 8, spec.journal_width, device=spec.device),
    )


def test_a_whole_step_stays_on_its_device_and_decoding_reads_nothing_back() -> None:
    # Tensors without memory: one that was left on the host, or a value that is read, is an error.
    config, values = stack_parts(mixers=HYBRID)
    stack = CardStack(config, values, device=NOWHERE)
    assert isinstance(stack, GraphedBackbone)
    state = empty_state(stack)
    batch = Batch(
        token_ids=torch.tensor([1, 2, 3]),
        positions=torch.tensor([0, 1, 4]),
        cu_seqlens=(0, 2, 3),
        num_computed=(0, 4),
        page_table=((1,), (2, 3)),
        slots=(1, 2),
        logits_rows=torch.tensor([1, 2]),
        journal_starts=(0, -1),
    )
    logits = stack.forward(batch.to(NOWHERE), state)
    assert (logits.shape, logits.device) == ((2, config.vocab_size), NOWHERE)
    inputs = nobody(4, 8, NOWHERE)
    with OneDevice(NOWHERE) as watched:
        logits = stack.decode(inputs, state)
    assert (logits.shape, logits.device) == ((4, config.vocab_size), NOWHERE)
    assert watched.num_custom == 4  # two recurrent layers, an attention layer of two launches
    stack.replay(state, 1, slice(0, 3))


def test_a_token_is_five_launches_a_recurrent_layer_and_six_an_attention_layer() -> None:
    config, values = stack_parts(mixers=HYBRID)
    stack = CardStack(config, packed(values), device=NOWHERE)
    with OneDevice(NOWHERE) as watched:
        stack.decode(nobody(1, 8, NOWHERE), empty_state(stack))
    assert watched.num_custom == 5 + 6 + 5 + 1  # and the head


def test_state_and_its_copies_lie_where_the_stack_runs() -> None:
    spec = CardStack(*stack_parts(mixers=HYBRID), device=NOWHERE).state_spec
    cache = StateCache(spec, num_pages=6, page_tokens=4, num_slots=2, journal_tokens=6)
    view = cache.view
    for tensor in (view.kv, view.recurrent, view.conv, view.journal):
        assert tensor is not None
        assert tensor.device == NOWHERE
    account = Shares(max_owners=1, num_pages=6, max_sequences=2, context_pages=6).open("")
    a, b = cache.take_slot(), cache.take_slot()
    pages: list[int] = []
    cache.fit(pages, 0, 6, account)
    cache.share(pages, account)
    with OneDevice(NOWHERE) as watched:
        cache.load(a, None)
        checkpoint = cache.checkpoint(a, 3)
        cache.load(b, checkpoint)
        cache.copy_slot(b, a, 2)
        cache.fit(pages.copy(), 5, 7, account)  # the second page is another's too: copied
    assert checkpoint.slots.recurrent.device == NOWHERE
    assert watched.num_custom == 4  # a launch each
