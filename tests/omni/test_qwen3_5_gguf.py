"""Qwen3.5 as GGUF: llama.cpp's names, order of heads and decays; and llama.cpp itself agrees."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType
from omni_kernels.linear import PackedWeight, unpack
from tiny_models import Driver, relative_rms
from tiny_qwen3_5 import VOCABULARY, Kind, make, reference, save_gguf

from omni.errors import ModelError
from omni.models import load_backbone
from omni.models.backbone import BackboneConfig
from omni.models.gguf_file import GGUFFile
from omni.models.qwen3_5 import Qwen3_5
from omni.models.repacked import open_or_make
from omni.models.weights import Entry, read_dense

TOKENS = random.Random(3).choices(range(VOCABULARY), k=70)
F32, Q8_0 = GGMLQuantizationType.F32, GGMLQuantizationType.Q8_0


@pytest.mark.parametrize("kind", ["dense", "moe"])
@pytest.mark.parametrize("ratio", [1, 2, 3])
@pytest.mark.parametrize("num_predicting", [0, 1, 3])
def test_logits_equal_transformers(
    kind: Kind, ratio: int, num_predicting: int, tmp_path: Path
) -> None:
    model, path = make(kind, ratio, tied=ratio == 1), tmp_path / "model.gguf"
    save_gguf(model, path, F32, num_predicting=num_predicting)
    backbone = load_backbone(path, home=tmp_path, precision="fp32")
    assert relative_rms(Driver(backbone).step([TOKENS]), reference(model, TOKENS)) <= 1e-5


@pytest.mark.parametrize("kind", ["dense", "moe"])
@pytest.mark.parametrize("ratio", [1, 2, 3])
def test_llama_cpp_reads_the_same_probabilities_out_of_the_file(
    kind: Kind, ratio: int, tmp_path: Path
) -> None:
    model, path = make(kind, ratio, linear_key_head_dim=32), tmp_path / "model.gguf"
    save_gguf(model, path, F32)
    backbone = load_backbone(path, home=tmp_path, precision="fp32")
    for length, theirs in zip((1, 5, 70), llama_cpp(path, (1, 5, 70)), strict=True):
        ours = Driver(backbone).step([TOKENS[:length]])[-1].log_softmax(0)
        # llama.cpp keeps keys and values in half precision.
        torch.testing.assert_close(ours, theirs, atol=0.01, rtol=0)


def llama_cpp(path: Path, lengths: Sequence[int]) -> list[torch.Tensor]:
    """llama.cpp's log probabilities of every token after the first ``length`` of TOKENS."""
    xllamacpp = pytest.importorskip("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.verbosity = 128, 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_ram_mib = 0
    server = xllamacpp.Server(params)
    found = []
    for length in lengths:
        answer = server.handle_completions(
            {
                "prompt": TOKENS[:length],
                "n_predict": 1,
                "temperature": 0.0,
                "n_probs": VOCABULARY,
                "cache_prompt": False,
            }
        )
        (first,) = answer["choices"][0]["logprobs"]["content"]
        of_token = {item["id"]: item["logprob"] for item in first["top_logprobs"]}
        found.append(torch.tensor([of_token[token] for token in range(VOCABULARY)]))
    return found


def opened(path: Path) -> tuple[BackboneConfig, list[Entry], GGUFFile]:
    file = GGUFFile(path)
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    config = Qwen3_5().config_from_gguf(file.metadata, shapes)
    return config, Qwen3_5().plan(config, "gguf", file.names), file


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_reordered_rows_and_columns_keep_their_groups_without_loss(
    kind: Kind, tmp_path: Path
) -> None:
    save_gguf(make(kind, 3), tmp_path / "model.gguf", Q8_0)
    _, plan, file = opened(tmp_path / "model.gguf")
    dense, packed = read_dense(plan, file), open_or_make(tmp_path / "repacked", plan, file)
    num_packed = 0
    for name, value in packed.items():
        expected = dense[name]
        assert isinstance(expected, torch.Tensor)
        if isinstance(value, PackedWeight):
            num_packed += 1
            assert torch.equal(unpack(value), expected)
        elif isinstance(value, torch.Tensor):
            assert torch.equal(value, expected)
    assert num_packed == 1 + 4 * (4 if kind == "dense" else 6)


def test_columns_that_tear_groups_are_rounded_anew(tmp_path: Path) -> None:
    save_gguf(make("dense", 2, linear_value_head_dim=16), tmp_path / "model.gguf", Q8_0)
    _, plan, file = opened(tmp_path / "model.gguf")
    dense, packed = read_dense(plan, file), open_or_make(tmp_path / "repacked", plan, file)
    out, exact = packed["layers.0.delta.out"], dense["layers.0.delta.out"]
    assert isinstance(out, PackedWeight)
    assert isinstance(exact, torch.Tensor)
    assert 0 < relative_rms(unpack(out), exact) < 0.01


def test_a_decay_that_is_none_is_refused(tmp_path: Path) -> None:
    model, path = make("dense"), tmp_path / "model.gguf"
    with torch.no_grad():
        model.model.layers[2].linear_attn.A_log.fill_(-torch.inf)  # exp of it is 0
    save_gguf(model, path, F32)
    with pytest.raises(ModelError, match=r"blk\.2\.ssm_a .* has values of 0 or above"):
        load_backbone(path, home=tmp_path)


def test_sections_that_do_not_fit_the_rotated_width_are_refused(tmp_path: Path) -> None:
    model, path = make("dense"), tmp_path / "model.gguf"
    model.config.rope_parameters["mrope_section"] = [11, 11, 10]
    save_gguf(model, path, F32)
    with pytest.raises(ModelError, match="do not make up the 4 rotated pairs"):
        load_backbone(path, home=tmp_path)
