"""LoRA adapters as peft saves them: merged into every kind of checkpoint, or refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import tiny_qwen3_5
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import load_file, save_file
from tiny_models import Driver, relative_rms
from tiny_qwen3_5 import reference
from transformers import PreTrainedModel

from omni.cli import main
from omni.errors import ModelError
from omni.models import load_backbone

TOKENS = random.Random(3).choices(range(160), k=40)
MODULES = {
    "qwen2": ["layers.0.self_attn.q_proj", "layers.1.self_attn.v_proj", "layers.2.mlp.down_proj"],
    "llama": ["layers.0.self_attn.q_proj", "layers.1.self_attn.k_proj", "layers.2.mlp.up_proj"],
    "dense": [
        "layers.0.linear_attn.in_proj_qkv",
        "layers.0.linear_attn.in_proj_a",
        "layers.0.linear_attn.in_proj_z",
        "layers.2.linear_attn.out_proj",
        "layers.1.self_attn.q_proj",
        "layers.1.self_attn.o_proj",
        "layers.3.mlp.gate_proj",
    ],
    "next": [
        "layers.0.linear_attn.in_proj_qkvz",
        "layers.0.linear_attn.in_proj_ba",
        "layers.1.self_attn.q_proj",
    ],
}
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 6,
    "bias": "none",
    "use_dora": False,
    "use_rslora": False,
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "target_modules": ["q_proj"],
    "alpha_pattern": {},
    "rank_pattern": {},
}


def make(kind: str) -> PreTrainedModel:
    if kind in ("qwen2", "llama"):
        return tiny_models.make_hf(kind, tied=True, heads=6, kv_heads=2)
    return tiny_qwen3_5.make("next" if kind == "next" else "dense", 2)


def save(folder: Path, tensors: dict[str, torch.Tensor], **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | changes))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def matrices(model: PreTrainedModel, modules: list[str], rank: int = 4) -> dict[str, torch.Tensor]:
    """Random A and B of each module under the names that peft gives them."""
    generator = torch.Generator().manual_seed(1)
    found = {}
    for module in modules:
        rows, columns = model.get_submodule("model." + module).weight.shape
        stem = f"base_model.model.model.{module}."
        found[stem + "lora_A.weight"] = torch.randn(rank, columns, generator=generator) * 0.3
        found[stem + "lora_B.weight"] = torch.randn(rows, rank, generator=generator) * 0.2
    return found


def merge(model: PreTrainedModel, tensors: dict[str, torch.Tensor], scale: float) -> None:
    """Do to transformers' own weights what the adapter means."""
    for name, a in tensors.items():
        if "lora_A" in name:
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            with torch.no_grad():
                b = tensors[name.replace("lora_A", "lora_B")]
                model.get_submodule(module).weight.add_(scale * (b @ a))


@pytest.mark.parametrize(
    ("kind", "container"),
    [
        *((kind, "folder") for kind in ("qwen2", "llama", "dense", "next")),
        *((kind, "gguf") for kind in ("qwen2", "llama", "dense")),
    ],
)
def test_an_adapted_model_equals_transformers_with_the_same_sum(
    kind: str, container: str, tmp_path: Path
) -> None:
    model, base = make(kind), tmp_path / "base"
    if container == "folder":
        model.save_pretrained(base)
    else:
        writer = tiny_qwen3_5.save_gguf if kind == "dense" else tiny_models.save_gguf
        base.mkdir()
        writer(model, base / "model.gguf", GGMLQuantizationType.F32)
    tensors = matrices(model, MODULES[kind])
    adapter = save(tmp_path / "adapter", tensors)
    plain = reference(model, TOKENS)
    merge(model, tensors, 6 / 4)
    expected = reference(model, TOKENS)
    assert relative_rms(plain, expected) > 0.1
    dense = load_backbone(base, home=tmp_path, precision="fp32", adapter=adapter)
    assert relative_rms(Driver(dense).step([TOKENS]), expected) <= 1e-5
    packed = load_backbone(base, home=tmp_path, adapter=adapter)
    assert relative_rms(Driver(packed).step([TOKENS]), expected) <= 0.25


def test_an_adapter_of_the_text_model_fits_the_model_with_vision(tmp_path: Path) -> None:
    model = make("dense")
    tensors = matrices(model, MODULES["dense"])
    nested = tiny_qwen3_5.make("vision", 2)
    nested.model.language_model.load_state_dict(model.model.state_dict())
    nested.lm_head.load_state_dict(model.lm_head.state_dict())
    nested.save_pretrained(tmp_path / "base")
    merge(model, tensors, 6 / 4)
    adapter = save(tmp_path / "adapter", tensors)
    backbone = load_backbone(tmp_path / "base", home=tmp_path, precision="fp32", adapter=adapter)
    assert relative_rms(Driver(backbone).step([TOKENS]), reference(model, TOKENS)) <= 1e-5


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({"use_rslora": True}, 3.0),  # 6 / sqrt(4)
        ({"lora_alpha": 2.5}, 0.625),
        ({"alpha_pattern": {"q_proj": 8, "other": 1}}, 2.0),
        ({"alpha_pattern": {r"layers\.\d\.self_attn.q_proj": 1}}, 0.25),
        ({"alpha_pattern": {"proj": 8}}, 1.5),  # no whole name
    ],
)
def test_the_scale_is_what_the_config_says(
    changes: dict[str, Any], scale: float, tmp_path: Path
) -> None:
    model = make("qwen2")
    model.save_pretrained(tmp_path / "base")
    tensors = matrices(model, ["layers.1.self_attn.q_proj"])
    adapter = save(tmp_path / "adapter", tensors, **changes)
    merge(model, tensors, scale)
    backbone = load_backbone(tmp_path / "base", home=tmp_path, precision="fp32", adapter=adapter)
    assert relative_rms(Driver(backbone).step([TOKENS]), reference(model, TOKENS)) <= 1e-5


def test_each_adapter_has_a_cache_of_its_own_beside_the_models(tmp_path: Path) -> None:
    model, base = make("qwen2"), tmp_path / "base"
    model.save_pretrained(base)
    tensors = matrices(model, MODULES["qwen2"])
    first = save(tmp_path / "first", tensors)
    second = save(tmp_path / "second", {name: value * 2 for name, value in tensors.items()})
    repacked: list[int] = []

    def logits(adapter: Path | None) -> torch.Tensor:
        backbone = load_backbone(
            base, home=tmp_path, adapter=adapter, progress=lambda done, total: repacked.append(done)
        )
        return Driver(backbone).step([TOKENS])

    made = [logits(adapter) for adapter in (None, first, second)]
    assert len(list((tmp_path / "repacked").iterdir())) == 3
    assert relative_rms(made[1], made[0]) > 0.1
    assert relative_rms(made[2], made[1]) > 0.1
    repacked.clear()
    for adapter, expected in zip((None, first, second), made, strict=True):
        assert torch.equal(logits(adapter), expected)
    assert repacked == []
    save(tmp_path / "first", {name: value * 3 for name, value in tensors.items()})
    assert relative_rms(logits(first), made[1]) > 0.1
    assert len(list((tmp_path / "repacked").iterdir())) == 3  # in the place of the old one


def sentence(base: Path, adapter: Path, home: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_backbone(base, home=home, adapter=adapter)
    message = str(caught.value)
    assert "\n" not in message
    assert str(adapter) in message
    assert not list(home.glob("repacked/*"))
    return message


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make("qwen2")


@pytest.fixture
def base(model: PreTrainedModel, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_an_adapter_of_another_model_names_the_first_module_that_does_not_fit(
    model: PreTrainedModel, base: Path, tmp_path: Path
) -> None:
    tensors = matrices(model, MODULES["qwen2"])
    for name in tensors:
        if "layers.1" in name and "lora_B" in name:
            tensors[name] = torch.zeros(64, 4)
    message = sentence(base, save(tmp_path / "adapter", tensors), tmp_path)
    assert "model.layers.1.self_attn.v_proj is [32, 96] here" in message
    assert "[64, 4]" in message


@pytest.mark.parametrize(
    "module", ["layers.3.self_attn.q_proj", "layers.0.linear_attn.out_proj", "embed_tokens"]
)
def test_a_module_that_the_model_does_not_have_is_named(
    model: PreTrainedModel, base: Path, tmp_path: Path, module: str
) -> None:
    tensors = matrices(model, MODULES["qwen2"])
    stem = f"base_model.model.model.{module}."
    tensors |= {
        stem + "lora_A.weight": torch.zeros(4, 96),
        stem + "lora_B.weight": torch.zeros(160, 4),
    }
    assert f"changes model.{module}," in sentence(
        base, save(tmp_path / "adapter", tensors), tmp_path
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"peft_type": "IA3"}, "peft_type = 'IA3'"),
        ({"use_dora": True}, "use_dora = True"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save = ['lm_head']"),
        ({"lora_bias": True}, "lora_bias = True"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication = [[0, 2], [1, 3]]"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "target_parameters = ['mlp"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices = [3]"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens = [1, 2]"),
        ({"use_qalora": True}, "use_qalora = True"),
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora = {'nblocks': 2}"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights = 'pissa_niter_4'"),
        ({"init_lora_weights": "olora"}, "changed the model's own weights"),
        ({"lora_alpha": "much"}, "lora_alpha 'much', expected a number"),
        ({"lora_alpha": True}, "lora_alpha True, expected a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha nan, expected a number"),
        ({"alpha_pattern": {"q_proj": float("inf")}}, "lora_alpha inf, expected a number"),
        ({"alpha_pattern": {"(": 3}}, "alpha_pattern '(', which is no pattern"),
        ({"alpha_pattern": [3]}, "alpha_pattern = [3], expected an object"),
        ({"r": 16}, "rank 16"),
        ({"rank_pattern": {"layers.1.self_attn.v_proj": 2}}, "rank 2"),
    ],
)
def test_what_is_more_than_low_rank_matrices_is_refused(
    model: PreTrainedModel, base: Path, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    adapter = save(tmp_path / "adapter", matrices(model, MODULES["qwen2"]), **changes)
    assert expected in sentence(base, adapter, tmp_path)


def spoiled_half(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["base_model.model.model.layers.2.mlp.down_proj.lora_B.weight"]


def spoiled_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.model.layers.2.mlp.down_proj.lora_B.weight"][3, 1] = torch.nan


def spoiled_magnitude(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.model.layers.2.mlp.down_proj.lora_magnitude_vector"] = torch.ones(96)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (spoiled_half, "only one of the two matrices of model.layers.2.mlp.down_proj"),
        (spoiled_nan, "NaN"),
        (spoiled_magnitude, "lora_magnitude_vector"),
    ],
)
def test_damaged_matrices_are_named(
    model: PreTrainedModel, base: Path, tmp_path: Path, spoil: Any, expected: str
) -> None:
    tensors = matrices(model, MODULES["qwen2"])
    spoil(tensors)
    assert expected in sentence(base, save(tmp_path / "adapter", tensors), tmp_path)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (torch.ones(4), "[4]"),
        (torch.tensor(1.0), "[]"),
        (torch.ones(4, 96, 1), "[4, 96, 1]"),
        (torch.ones(0, 96), "[0, 96]"),
        (torch.ones(4, 96, dtype=torch.int8), "I8"),
    ],
)
def test_what_is_no_matrix_of_floats_is_named(
    model: PreTrainedModel, base: Path, tmp_path: Path, values: torch.Tensor, expected: str
) -> None:
    tensors = matrices(model, MODULES["qwen2"])
    name = "base_model.model.model.layers.2.mlp.down_proj.lora_A.weight"
    message = sentence(base, save(tmp_path / "adapter", tensors | {name: values}), tmp_path)
    assert name in message
    assert expected in message


def test_an_adapter_that_changes_nothing_is_refused(base: Path, tmp_path: Path) -> None:
    assert "holds no matrices" in sentence(base, save(tmp_path / "adapter", {}), tmp_path)


def test_an_adapter_in_another_format_is_named(base: Path, tmp_path: Path) -> None:
    adapter = save(tmp_path / "adapter", {})
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    message = sentence(base, adapter, tmp_path)
    assert "adapter_model.bin" in message
    assert "save it as adapter_model.safetensors" in message


def test_a_folder_of_something_else_is_no_adapter(base: Path, tmp_path: Path) -> None:
    assert "is no LoRA adapter: it has no adapter_config.json" in sentence(base, base, tmp_path)


@pytest.mark.parametrize(
    "damage", ["no config", "no weights", "cut config", "deep config", "cut weights"]
)
def test_a_missing_or_damaged_file_is_named(
    model: PreTrainedModel, base: Path, tmp_path: Path, damage: str
) -> None:
    adapter = save(tmp_path / "adapter", matrices(model, MODULES["qwen2"]))
    file = adapter / ("adapter_config.json" if "config" in damage else "adapter_model.safetensors")
    if damage.startswith("no"):
        file.unlink()
    elif damage.startswith("deep"):
        file.write_text("[" * 100_000)
    else:
        file.write_bytes(file.read_bytes()[:-9])
    assert file.name in sentence(base, adapter, tmp_path)
    assert load_file(base / "model.safetensors")


def test_the_setting_changes_what_is_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMNI_HOME", str(tmp_path))
    model = tiny_qwen3_5.make("dense", 2, vocab_size=960)
    model.save_pretrained(tmp_path / "base")
    tiny_qwen3_5.make_tokenizer().save_pretrained(tmp_path / "base")
    tensors = matrices(model, MODULES["dense"])
    adapter = save(tmp_path / "adapter", tensors)
    wrong = save(
        tmp_path / "wrong", {name: value[:, :3].clone() for name, value in tensors.items()}
    )

    def chat(folder: str) -> int:
        settings = (f"model.backbone={tmp_path / 'base'}", f"model.adapter={folder}")
        sets = [part for setting in settings for part in ("--set", setting)]
        return main(["chat", "--max-tokens", "8", *sets, "What can the function do?"])

    answers = []
    for folder in ("", str(adapter), ""):
        assert chat(folder) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[2] != answers[1]
    assert chat(str(wrong)) == 1
    assert "is for another model" in capsys.readouterr().err
