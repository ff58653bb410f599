"""Tiny random models of transformers' qwen3_5, qwen3_5_moe and qwen3_next."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    PreTrainedModel,
    Qwen3_5Config,
    Qwen3_5ForCausalLM,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForCausalLM,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

Kind = Literal["dense", "moe", "next", "vision", "moe-vision"]

VOCABULARY = 160
EXPERTS = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 64,
}
VISION = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "num_position_embeddings": 16,
    "out_hidden_size": 96,
}


def text_config(
    kind: Kind, ratio: int, *, tied: bool = False, key_dim: int = 16
) -> dict[str, object]:
    """Shape of a model whose recurrent layers have ``ratio`` value heads for each key head."""
    shape: dict[str, object] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention", "full_attention", *["linear_attention"] * 2],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2 * ratio,
        "linear_key_head_dim": key_dim,
        "linear_value_head_dim": 32,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.25,
        },
        "tie_word_embeddings": tied,
    }
    if kind != "next":
        shape["rope_parameters"] |= {"mrope_section": [2, 1, 1], "mrope_interleaved": True}
    if kind in ("moe", "moe-vision", "next"):
        shape |= EXPERTS
        del shape["intermediate_size"]
    return shape


def make(
    kind: Kind, ratio: int = 2, *, tied: bool = False, seed: int = 3, key_dim: int = 16
) -> PreTrainedModel:
    """A random fp32 model; every parameter is drawn, decays from quick to slow."""
    shape = text_config(kind, ratio, tied=tied, key_dim=key_dim)
    match kind:
        case "dense":
            model = Qwen3_5ForCausalLM(Qwen3_5TextConfig(**shape))
        case "moe":
            model = Qwen3_5MoeForCausalLM(Qwen3_5MoeTextConfig(**shape))
        case "next":
            model = Qwen3NextForCausalLM(Qwen3NextConfig(**shape))
        case "vision":
            config = Qwen3_5Config(
                text_config=shape, vision_config=VISION, tie_word_embeddings=tied
            )
            model = Qwen3_5ForConditionalGeneration(config)
        case "moe-vision":
            config = Qwen3_5MoeConfig(
                text_config=shape, vision_config=VISION, tie_word_embeddings=tied
            )
            model = Qwen3_5MoeForConditionalGeneration(config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.3 if parameter.dim() == 1 else 0.15)
            if name.endswith("A_log"):
                parameter.uniform_(-4.0, 2.0)
            elif name.endswith("linear_attn.norm.weight"):
                parameter.add_(1.0)  # the one norm that is not zero-centred
    model.set_experts_implementation("eager")  # the one that can compute in double precision
    return model.eval()


def change_tensors(folder: Path, change: object) -> None:
    """Replace the tensors of a saved model by what ``change`` (dict -> dict) makes of them."""
    assert callable(change)
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(
        {name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors"
    )


def reference(model: PreTrainedModel, tokens: list[int], **extra: torch.Tensor) -> torch.Tensor:
    """transformers' logits [T, vocab] of all tokens in one pass."""
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([tokens]), **extra).logits[0]
    return logits
