"""Checkpoints of a real model's shapes with random weights, to measure speed without the model.

The shapes are those of Qwen3.5-0.8B's published config; speed does not depend on the values.
Files are written once into ``bench/`` of the model store's folder and kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers

from omni.models import registry
from omni.models.weights import Piece

QWEN3_5_08B: dict[str, Any] = {
    "model_type": "qwen3_5_text",
    "architectures": ["Qwen3_5ForCausalLM"],
    "vocab_size": 248320,
    "hidden_size": 1024,
    "intermediate_size": 3584,
    "num_hidden_layers": 24,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "max_position_embeddings": 262144,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 4,
    "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 6,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000000.0,
        "partial_rotary_factor": 0.25,
        "mrope_section": [11, 11, 10],
        "mrope_interleaved": True,
    },
    "tie_word_embeddings": True,
}

_SHARD_BYTES = 512 * 2**20
_SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"),
    *("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
)


def tiny(num_layers: int, layer_types: list[str], max_positions: int) -> dict[str, Any]:
    """The same architecture at a width that a context of tens of thousands can be computed with."""
    return QWEN3_5_08B | {
        "vocab_size": 1024,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 128,
        "max_position_embeddings": max_positions,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "layer_types": layer_types,
        "rope_parameters": QWEN3_5_08B["rope_parameters"] | {"mrope_section": [6, 5, 5]},
    }


def write_folder(folder: Path, config: Mapping[str, Any]) -> Path:
    """A Hugging Face folder of ``config`` in bf16, in shards; left alone if it is there."""
    text = json.dumps(dict(config), indent=1)
    done = folder / "config.json"
    if done.exists() and done.read_text(encoding="utf-8") == text:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    places: dict[str, str] = {}
    for number, shard in enumerate(_shards(config)):
        name = f"model-{number:05}.safetensors"
        save_file(shard, folder / name)
        places |= dict.fromkeys(shard, name)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    done.write_text(text, encoding="utf-8")
    return folder


def pieces_of(config: Mapping[str, Any]) -> list[Piece]:
    """Every tensor of a checkpoint of ``config``, once."""
    family = registry.family_of(config["model_type"])
    plan = family.plan(family.config_from_hf(config), "hf")
    return list({piece.name: piece for entry in plan for piece in entry.pieces}.values())


def random_tensor(piece: Piece, generator: torch.Generator) -> torch.Tensor:
    """Values that keep activations finite through any number of layers; fp32."""
    shape = piece.shape
    if piece.name.endswith("A_log"):
        return torch.empty(shape).uniform_(1, 16, generator=generator).log()
    if len(shape) == 1:
        return torch.randn(shape, generator=generator) * 0.02
    # One block repeated: drawing 750 million numbers takes longer than all measurements.
    count = torch.Size(shape).numel()
    block = torch.randn(min(count, 2**20 + 7), generator=generator) * shape[-1] ** -0.5
    tensor: torch.Tensor = block.repeat(-(-count // len(block)))[:count].view(shape)
    return tensor


def _shards(config: Mapping[str, Any]) -> Iterator[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shard: dict[str, torch.Tensor] = {}
    num_bytes = 0
    for piece in pieces_of(config):
        tensor = random_tensor(piece, generator).bfloat16()
        if shard and num_bytes + tensor.nbytes > _SHARD_BYTES:
            yield shard
            shard, num_bytes = {}, 0
        shard[piece.name] = tensor
        num_bytes += tensor.nbytes
    yield shard


def write_gguf(path: Path, config: Mapping[str, Any]) -> Path:
    """A GGUF file of ``config`` with matrices in Q8_0; left alone if it is there.

    The vocabulary is made up: the bytes, then words that stand for nothing.
    """
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "qwen35")
    rope = config["rope_parameters"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(config["head_dim"] * rope["partial_rotary_factor"]))
    writer.add_rope_dimension_sections([*rope["mrope_section"], 0])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_ssm_conv_kernel(config["linear_conv_kernel_dim"])
    writer.add_ssm_state_size(config["linear_key_head_dim"])
    writer.add_ssm_group_count(config["linear_num_key_heads"])
    writer.add_ssm_time_step_rank(config["linear_num_value_heads"])
    writer.add_ssm_inner_size(config["linear_value_head_dim"] * config["linear_num_value_heads"])
    writer.add_full_attention_interval(config["full_attention_interval"])
    _add_vocabulary(writer, config["vocab_size"])
    family = registry.family_of("qwen35")
    plan = family.plan(family.config_from_hf(config), "gguf")
    generator = torch.Generator().manual_seed(0)
    for piece in {p.name: p for entry in plan for p in entry.pieces}.values():
        tensor = random_tensor(piece, generator)
        if piece.name.endswith("ssm_a"):
            tensor = -torch.empty(piece.shape).uniform_(1, 16, generator=generator)
        elif piece.name.endswith("norm.weight"):
            tensor += 1
        is_plain = tensor.dim() == 1 or "conv1d" in piece.name
        kind = gguf.GGMLQuantizationType.F32 if is_plain else gguf.GGMLQuantizationType.Q8_0
        values = tensor.squeeze(1).numpy() if tensor.dim() == 3 else tensor.numpy()
        writer.add_tensor(piece.name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(path)
    return path


def _add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*_SPECIAL, *alphabet, "ab", *(f"word{index}" for index in range(size))][:size]
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen35")
    writer.add_token_list(tokens)
    writer.add_token_types([control] * len(_SPECIAL) + [normal] * (size - len(_SPECIAL)))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(_SPECIAL.index("<|im_end|>"))
