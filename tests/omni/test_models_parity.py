"""The stack against transformers, and against itself under every way of cutting the work."""

from __future__ import annotations

import random
from pathlib import Path

import gguf
import pytest
import torch
from omni_kernels.linear import PackedWeight, unpack
from tiny_models import Driver, make_hf, relative_rms, save_gguf
from transformers import PreTrainedModel

from omni.models import load_backbone
from omni.models.backbone import BackboneConfig, DecoderStack
from omni.models.batch import Batch
from omni.models.gguf_file import GGUFFile
from omni.models.parameters import Parameter
from omni.models.qwen2 import Qwen2
from omni.models.repacked import open_or_make
from omni.models.weights import read_dense

TOKENS = random.Random(3).choices(range(160), k=70)

CASES = [
    pytest.param("qwen2", True, 6, 2, id="qwen2-tied-grouped"),
    pytest.param("qwen2", False, 4, 4, id="qwen2-untied-multihead"),
    pytest.param("llama", True, 3, 1, id="llama-tied-multiquery"),
    pytest.param("llama", False, 6, 3, id="llama-untied-grouped"),
]


def reference(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([tokens])).logits[0]
    return logits


@pytest.mark.parametrize(("architecture", "tied", "heads", "kv_heads"), CASES)
@pytest.mark.parametrize("container", ["safetensors", "gguf"])
def test_logits_equal_transformers_however_prefill_is_cut(
    architecture: str, tied: bool, heads: int, kv_heads: int, container: str, tmp_path: Path
) -> None:
    model = make_hf(architecture, tied=tied, heads=heads, kv_heads=kv_heads)
    path = tmp_path
    if container == "gguf":
        path = tmp_path / "model.gguf"
        save_gguf(model, path, gguf.GGMLQuantizationType.F32)
    else:
        model.save_pretrained(path)
    backbone = load_backbone(path, home=tmp_path, precision="fp32")
    expected = reference(model, TOKENS)
    for chunk in (1, 3, 4, 5, 33, 70):
        driver = Driver(backbone)
        parts = [driver.step([TOKENS[at : at + chunk]]) for at in range(0, len(TOKENS), chunk)]
        assert relative_rms(torch.cat(parts), expected) <= 1e-5


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_hf("qwen2", tied=False, heads=6, kv_heads=2)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_sequence_never_depends_on_its_neighbours(
    model: PreTrainedModel, precision: str, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    backbone = load_backbone(
        tmp_path, home=tmp_path, precision="int8" if precision == "int8" else "fp32"
    )
    alone = Driver(backbone).step([TOKENS[:40]], all_rows=False)
    together = Driver(backbone, num_sequences=3)
    rng = random.Random(5)
    left = [list(TOKENS[:40]), rng.choices(range(160), k=61), rng.choices(range(160), k=17)]
    last = torch.empty(0)
    while left[0]:
        new = []
        for tokens in left:
            count = rng.randint(0, 9)
            new.append(tokens[:count])
            del tokens[:count]
        if not any(new):
            continue
        logits = together.step(new, all_rows=False)
        if new[0]:
            last = logits[:1]
    assert relative_rms(last, alone) <= 1e-5


def test_no_wanted_rows_still_computes_the_state(model: PreTrainedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path, home=tmp_path, precision="fp32")
    driver = Driver(backbone)
    silent = driver.step([TOKENS[:20]])[:0]
    assert silent.shape == (0, 160)
    assert relative_rms(driver.step([TOKENS[20:30]]), reference(model, TOKENS[:30])[20:]) <= 1e-5


def test_embeddings_stand_in_for_tokens(model: PreTrainedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path, home=tmp_path, precision="fp32")
    table = model.get_input_embeddings().weight.detach()
    driver = Driver(backbone)
    tokens = torch.tensor(TOKENS[:12])
    given = tokens.clone()
    given[3:7] = -1
    batch = Batch(
        token_ids=given,
        positions=torch.arange(12),
        cu_seqlens=(0, 12),
        num_computed=(0,),
        page_table=((1, 2, 3),),
        slots=(0,),
        logits_rows=torch.arange(12),
        embeddings=table[tokens[3:7]],
    )
    logits = backbone.forward(batch, driver.state)
    assert relative_rms(logits, reference(model, TOKENS[:12])) <= 1e-5


def dense_and_packed(
    folder: Path,
) -> tuple[BackboneConfig, dict[str, Parameter], dict[str, Parameter]]:
    """Read ``folder``/model.gguf twice."""
    file = GGUFFile(folder / "model.gguf")
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    config = Qwen2().config_from_gguf(file.metadata, shapes)
    plan = Qwen2().plan(config, "gguf")
    return config, read_dense(plan, file), open_or_make(folder / "repacked", plan, file)


@pytest.mark.parametrize(
    ("kind", "bits"), [("Q8_0", 8), ("Q5_0", 5), ("Q4_0", 4), ("Q5_1", 5), ("Q4_1", 4)]
)
def test_groups_carry_simple_gguf_formats_without_loss_or_widening(
    model: PreTrainedModel, kind: str, bits: int, tmp_path: Path
) -> None:
    save_gguf(model, tmp_path / "model.gguf", gguf.GGMLQuantizationType[kind])
    config, dense, packed = dense_and_packed(tmp_path)
    num_packed = 0
    for name, value in packed.items():
        expected = dense[name]
        assert isinstance(expected, torch.Tensor)
        if isinstance(value, PackedWeight):
            num_packed += 1
            assert torch.equal(unpack(value), expected)
            assert (value.bits, value.has_offsets) == (bits, kind.endswith("_1"))
    assert num_packed == 1 + 4 * config.num_layers
    int8 = Driver(DecoderStack(config, packed)).step([TOKENS])
    fp32 = Driver(DecoderStack(config, dense)).step([TOKENS])
    assert relative_rms(int8, fp32) <= 0.06  # rounded activations, amplified by random weights


@pytest.mark.parametrize("kind", ["Q5_0", "Q5_1"])
def test_a_matrix_made_of_several_has_the_bits_of_the_widest(
    model: PreTrainedModel, kind: str, tmp_path: Path
) -> None:
    five, eight = gguf.GGMLQuantizationType[kind], gguf.GGMLQuantizationType.Q8_0
    save_gguf(model, tmp_path / "model.gguf", five, {"layers.1.self_attn.v_proj": eight})
    _, dense, packed = dense_and_packed(tmp_path)
    bits = {}
    for name, value in packed.items():
        if isinstance(value, PackedWeight):
            expected = dense[name]
            assert isinstance(expected, torch.Tensor)
            # Pieces with offsets beside one without are rounded to 8 bits.
            limit = 0.02 if value.bits == 8 and kind == "Q5_1" else 0
            assert relative_rms(unpack(value), expected) <= limit
            bits[name] = value.bits
    assert sorted(set(bits.values())) == [5, 8]
    assert [name for name in bits if bits[name] == 8] == ["layers.1.attention.qkv"]
