"""Folders of Qwen3.5: shards and their index, and what is wrong with a folder in one sentence."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import Driver, relative_rms
from tiny_qwen3_5 import VOCABULARY, change_tensors, make, make_tokenizer, reference
from transformers import PreTrainedModel

from omni.errors import ModelError
from omni.models import load, load_backbone

TOKENS = random.Random(3).choices(range(VOCABULARY), k=30)
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make("vision", 2)


@pytest.fixture
def shards(model: PreTrainedModel, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "hf", max_shard_size="300KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 3
    return tmp_path / "hf"


@pytest.fixture
def folder(model: PreTrainedModel, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def sentence(path: Path, home: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_backbone(path, home=home)
    message = str(caught.value)
    assert "\n" not in message
    assert not list(home.glob("repacked/*"))  # nothing half made stays behind
    return message


def change_config(folder: Path, **changes: object) -> None:
    """Change what the text stack is described by."""
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= changes
    (folder / "config.json").write_text(json.dumps(config))


def test_shards_are_one_model_whatever_else_lies_beside_them(
    model: PreTrainedModel, shards: Path, tmp_path: Path
) -> None:
    save_file({"lora": torch.zeros(3)}, shards / "adapter_model.safetensors")
    for precision in ("fp32", "int8"):
        backbone = load_backbone(
            shards, home=tmp_path, precision="fp32" if precision == "fp32" else "int8"
        )
        got = Driver(backbone).step([TOKENS])
        limit = 1e-5 if precision == "fp32" else 0.25
        assert relative_rms(got, reference(model, TOKENS)) <= limit


def test_a_missing_shard_is_named(shards: Path, tmp_path: Path) -> None:
    files = sorted(shards.glob("model-*.safetensors"))
    files[1].unlink()
    message = sentence(shards, tmp_path)
    assert files[1].name in message
    assert f"of the {len(files)} files" in message


def test_a_shard_that_is_cut_short_is_named(shards: Path, tmp_path: Path) -> None:
    files = sorted(shards.glob("model-*.safetensors"))
    files[2].write_bytes(files[2].read_bytes()[:-50])
    assert files[2].name in sentence(shards, tmp_path)


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'])
def test_a_damaged_index_is_named(shards: Path, tmp_path: Path, text: str) -> None:
    (shards / INDEX).write_text(text)
    assert INDEX in sentence(shards, tmp_path)


def test_a_tensor_that_its_shard_lacks_is_named(shards: Path, tmp_path: Path) -> None:
    name = "model.language_model.layers.0.linear_attn.A_log"
    weights = json.loads((shards / INDEX).read_text())["weight_map"]
    tensors = load_file(shards / weights[name])
    del tensors[name]
    save_file(tensors, shards / weights[name])
    assert name in sentence(shards, tmp_path)


def test_a_wrong_shape_says_what_was_expected(folder: Path, tmp_path: Path) -> None:
    name = "model.language_model.layers.0.linear_attn.conv1d.weight"
    change_tensors(folder, lambda tensors: tensors | {name: torch.zeros(192, 1, 3)})
    message = sentence(folder, tmp_path)
    assert name in message
    assert "[192, 1, 3]" in message
    assert "[192, 1, 4]" in message


@pytest.mark.parametrize("part", ["A_log", "in_proj_b.weight", "conv1d.weight"])
def test_a_value_that_is_not_finite_is_found(folder: Path, tmp_path: Path, part: str) -> None:
    name = f"model.language_model.layers.2.linear_attn.{part}"

    def spoil(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors[name].view(-1)[1] = torch.nan
        return tensors

    change_tensors(folder, spoil)
    message = sentence(folder, tmp_path)
    assert name in message
    assert "NaN" in message


def test_quantised_numbers_are_refused_rather_than_read_without_their_scales(
    folder: Path, tmp_path: Path
) -> None:
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    change_tensors(folder, lambda found: found | {name: found[name].to(torch.float8_e4m3fn)})
    message = sentence(folder, tmp_path)
    assert name in message
    assert "F8_E4M3" in message


def test_columns_that_fill_no_group_are_refused_for_int8(tmp_path: Path) -> None:
    model = make("dense", linear_value_head_dim=20)  # the output projection has 80 columns
    model.save_pretrained(tmp_path / "hf")
    assert "has 80 columns" in sentence(tmp_path / "hf", tmp_path)
    backbone = load_backbone(tmp_path / "hf", home=tmp_path, precision="fp32")
    assert relative_rms(Driver(backbone).step([TOKENS]), reference(model, TOKENS)) <= 1e-5


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"attention_bias": True}, "attention_bias = True is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported"),
        ({"layer_types": ["sliding_attention"] * 4}, "sliding_attention"),
        ({"layer_types": ["full_attention"]}, "1 of"),
        ({"linear_num_key_heads": None}, "no linear_num_key_heads"),
        ({"head_dim": "wide"}, "head_dim is 'wide'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rotary scaling"),
        ({"rope_parameters": {"mrope_section": [4, 4, 4]}}, "do not make up the 4 rotated pairs"),
        ({"layer_types": 3}, "layer_types is 3, expected list"),
        ({"layer_types": [["full_attention"]] * 4}, "layer_types are 4 of"),
        ({"rope_parameters": [1e4]}, "rope_parameters is [10000.0], expected dict"),
        (
            {"rope_parameters": {"partial_rotary_factor": "half"}},
            "factor is 'half', expected float",
        ),
        ({"rope_parameters": {"mrope_section": 4}}, "mrope_section is 4, expected list"),
        ({"rope_parameters": {"mrope_section": ["2", 1, 1]}}, "rotary sections ['2', 1, 1] do not"),
    ],
)
def test_what_the_stack_cannot_do_is_refused_rather_than_wrong(
    folder: Path, tmp_path: Path, changes: dict[str, object], expected: str
) -> None:
    change_config(folder, **changes)
    message = sentence(folder, tmp_path)
    assert expected in message
    assert message.startswith(f"{folder}/config.json: ")


def test_an_unknown_architecture_names_the_known_ones(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "qwen9"}))
    message = sentence(folder, tmp_path)
    assert "qwen9" in message
    assert "qwen3_5_moe" in message


def test_a_tied_head_may_lie_in_the_file_all_the_same(tmp_path: Path) -> None:
    model = make("dense", tied=True)
    model.save_pretrained(tmp_path)
    change_tensors(tmp_path, lambda found: found | {"lm_head.weight": torch.zeros(VOCABULARY, 96)})
    backbone = load_backbone(tmp_path, home=tmp_path, precision="fp32")
    assert relative_rms(Driver(backbone).step([TOKENS]), reference(model, TOKENS)) <= 1e-5


@pytest.mark.parametrize(
    ("depth", "expected"), [(9, "no weight 'blocks.1"), (0, "config.json: vision_config has depth")]
)
def test_what_is_wrong_with_the_vision_tower_names_the_folder(
    tmp_path: Path, depth: int, expected: str
) -> None:
    folder = tmp_path / "hf"
    make("vision", vocab_size=960).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    assert load(folder, home=tmp_path).vision is not None
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["depth"] = depth
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=re.escape(expected)) as caught:
        load(folder, home=tmp_path)
    assert str(caught.value).startswith(str(folder))
