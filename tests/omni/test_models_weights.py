"""Damaged, foreign and incomplete checkpoints: each is one clear sentence."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import make_hf, save_gguf
from transformers import PreTrainedModel

from omni.errors import ModelError
from omni.models import load, load_backbone, repacked
from omni.models.gguf_file import GGUFFile, quantise


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_hf("qwen2", tied=False, heads=6, kv_heads=2)


@pytest.fixture
def folder(model: PreTrainedModel, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


@pytest.fixture
def file(model: PreTrainedModel, tmp_path: Path) -> Path:
    save_gguf(model, tmp_path / "model.gguf", gguf.GGMLQuantizationType.Q8_0)
    return tmp_path / "model.gguf"


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def sentence(path: Path, home: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_backbone(path, home=home)
    message = str(caught.value)
    assert "\n" not in message
    assert not list(home.glob("repacked/*"))  # nothing half made stays behind
    return message


NORM = "model.layers.1.input_layernorm.weight"


def test_a_missing_tensor_is_named(folder: Path, tmp_path: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.pop(NORM))
    assert NORM in sentence(folder, tmp_path)


def test_an_extra_tensor_is_named(folder: Path, tmp_path: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.update(surprise=torch.zeros(3)))
    assert "surprise" in sentence(folder, tmp_path)


def test_a_wrong_shape_says_what_was_expected(folder: Path, tmp_path: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.update({NORM: torch.zeros(95)}))
    message = sentence(folder, tmp_path)
    assert NORM in message
    assert "[95]" in message
    assert "[96]" in message


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_found(folder: Path, tmp_path: Path, value: float) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.2.mlp.up_proj.weight"][7, 5] = value

    change_tensors(folder, spoil)
    assert "model.layers.2.mlp.up_proj.weight" in sentence(folder, tmp_path)


def test_a_scale_that_is_not_finite_is_found_in_quantised_blocks(
    file: Path, tmp_path: Path
) -> None:
    tensor = GGUFFile(file).tensors["blk.1.ffn_down.weight"]
    data = bytearray(file.read_bytes())
    data[tensor.offset : tensor.offset + 2] = np.float16(np.nan).tobytes()
    file.write_bytes(data)
    assert "blk.1.ffn_down.weight" in sentence(file, tmp_path)


@pytest.mark.parametrize("keep", [0, 3, 20, 700, 20_000, -40])
def test_a_truncated_gguf_is_refused_wherever_it_ends(
    file: Path, tmp_path: Path, keep: int
) -> None:
    file.write_bytes(file.read_bytes()[:keep])
    assert str(file) in sentence(file, tmp_path)


def test_every_truncation_of_the_header_is_a_model_error(file: Path, tmp_path: Path) -> None:
    data = file.read_bytes()
    header = min(tensor.offset for tensor in GGUFFile(file).tensors.values())
    short = tmp_path / "short.gguf"
    for keep in range(4, header, 7):
        short.write_bytes(data[:keep])
        with pytest.raises(ModelError):
            GGUFFile(short)


def test_a_truncated_safetensors_file_is_refused(folder: Path, tmp_path: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors" in sentence(folder, tmp_path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    assert "not a GGUF file" in sentence(path, tmp_path)


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    assert "absent.gguf" in sentence(tmp_path / "absent.gguf", tmp_path)


def test_an_unknown_architecture_names_the_known_ones(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    message = sentence(folder, tmp_path)
    assert "mamba" in message
    assert "qwen2" in message


def test_scaled_rotary_positions_are_refused_rather_than_wrong(
    folder: Path, tmp_path: Path
) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}
    (folder / "config.json").write_text(json.dumps(config))
    assert "rotary" in sentence(folder, tmp_path)


def test_a_model_without_a_tokenizer_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="tokenizer"):
        load(file, home=tmp_path)
    assert not list(tmp_path.glob("repacked/*"))  # minutes of work for large weights


@pytest.mark.parametrize("text", [None, "{}", '{"model": '])
def test_a_folder_without_a_tokenizer_says_what_to_do(
    folder: Path, tmp_path: Path, text: str | None
) -> None:
    if text is not None:
        (folder / "tokenizer.json").write_text(text)
    says = "copy tokenizer.json beside" if text is None else r"tokenizer\.json: .*; fetch it again"
    with pytest.raises(ModelError, match=says):
        load(folder, home=tmp_path)
    assert not list(tmp_path.glob("repacked/*"))


@pytest.mark.parametrize("damage", ["short", "garbled", "version"])
def test_a_damaged_cache_is_made_anew(file: Path, tmp_path: Path, damage: str) -> None:
    load_backbone(file, home=tmp_path)
    (folder,) = (tmp_path / "repacked").iterdir()
    whole = (folder / "weights.bin").read_bytes()
    if damage == "short":
        (folder / "weights.bin").write_bytes(whole[:-8])
    elif damage == "garbled":
        (folder / "index.json").write_text("{")
    else:
        index = json.loads((folder / "index.json").read_text())
        (folder / "index.json").write_text(json.dumps(index | {"version": 0}))
    calls: list[int] = []
    load_backbone(file, home=tmp_path, progress=lambda done, total: calls.append(done))
    assert calls
    assert (folder / "weights.bin").read_bytes() == whole


def test_a_changed_checkpoint_takes_the_place_of_its_old_cache(file: Path, tmp_path: Path) -> None:
    load_backbone(file, home=tmp_path)
    (old,) = (tmp_path / "repacked").iterdir()
    other = tmp_path / "other.gguf"
    shutil.copy(file, other)
    load_backbone(other, home=tmp_path)
    dead = tmp_path / "repacked" / ".draft-dead"
    dead.mkdir()
    os.utime(dead, (0, 0))
    changed = make_hf("qwen2", tied=False, heads=6, kv_heads=2, seed=9)
    save_gguf(changed, file, gguf.GGMLQuantizationType.Q8_0)
    load_backbone(file, home=tmp_path)
    left = list((tmp_path / "repacked").iterdir())
    assert len(left) == 2  # the other file's and the new one
    assert old not in left
    assert dead not in left


def test_caches_of_vanished_files_go_and_those_of_later_versions_stay(
    file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.gguf"
    shutil.copy(file, other)
    load_backbone(other, home=tmp_path)
    (vanished,) = (tmp_path / "repacked").iterdir()
    other.unlink()
    later = tmp_path / "repacked" / "later"
    later.mkdir()
    index = {"version": repacked.VERSION + 1, "source": str(file.resolve())}
    (later / "index.json").write_text(json.dumps(index))
    load_backbone(file, home=tmp_path)
    assert not vanished.exists()
    assert later.exists()


def test_an_unwritable_store_is_one_sentence(file: Path, tmp_path: Path) -> None:
    (tmp_path / "repacked").write_text("a file where the folder should be")
    with pytest.raises(ModelError, match="cannot write"):
        load_backbone(file, home=tmp_path)


def test_requantising_is_within_half_a_step() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(64, 320)).astype(np.float32)
    values *= np.float32(10.0) ** rng.integers(-9, 5, size=(64, 1))  # scales down to subnormal ones
    values[5, :32] = 0.0
    codes, scales = quantise(values)
    step = np.repeat(scales.astype(np.float32), 32, axis=1)
    restored = codes.astype(np.float32) * step
    assert (np.abs(restored - values) <= 0.5001 * step).all()
    assert not restored[5, :32].any()


@pytest.mark.parametrize(("kind", "bits"), [("Q4_K", 4), ("Q5_K", 5)])
def test_superblocks_keep_their_codes_and_round_only_scales_and_offsets(
    kind: str, bits: int, tmp_path: Path
) -> None:
    # The gguf package cannot make these blocks: any bytes are some, but for the two floats.
    quantisation = gguf.GGMLQuantizationType[kind]
    _, block_bytes = gguf.GGML_QUANT_SIZES[quantisation]
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, size=(48, 2, block_bytes), dtype=np.uint8)
    common = rng.uniform(1e-5, 1e-2, size=(48, 2, 2)).astype(np.float16)
    blocks[..., :4] = common.view(np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "blocks.gguf", "llama")
    writer.add_tensor("weight", blocks.reshape(48, -1), raw_dtype=quantisation)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile(tmp_path / "blocks.gguf")
    groups = file.groups("weight")
    assert groups is not None
    assert groups.offsets is not None
    assert groups.bits == bits
    assert (groups.codes.min(), groups.codes.max()) == (0, (1 << bits) - 1)
    codes = groups.codes.reshape(48, 16, 32).astype(np.float64)
    scaled, offsets = codes * groups.scales[..., None], groups.offsets[..., None].astype(np.float64)
    truth = file.dense("weight").reshape(48, 16, 32)
    rounding = 2.0**-11 * (scaled - offsets)  # half a unit in the last place of either float16
    assert (np.abs(scaled + offsets - truth) <= rounding + 1e-6).all()


def test_values_beyond_float16_scales_are_refused(folder: Path, tmp_path: Path) -> None:
    def enlarge(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.2.mlp.up_proj.weight"][7, 5] = 1e9

    change_tensors(folder, enlarge)
    assert "too large" in sentence(folder, tmp_path)
