"""Tiny random models of transformers' qwen3_5, qwen3_5_moe and qwen3_next."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import gguf
import tokenizers
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, pre_tokenizers, trainers
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3_5Config,
    Qwen3_5ForCausalLM,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForCausalLM,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3_5Tokenizer,
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
    kind: Kind, ratio: int, tied: bool, changes: dict[str, object]
) -> dict[str, object]:
    """Shape of a model whose recurrent layers have ``ratio`` value heads for each key head."""
    shape: dict[str, object] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2 * ratio,
        "linear_key_head_dim": 16,
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
    return shape | changes


def make(
    kind: Kind, ratio: int = 2, *, tied: bool = False, seed: int = 3, **changes: object
) -> PreTrainedModel:
    """A random fp32 model; every parameter is drawn, decays from quick to slow.

    ``changes`` are fields of the text stack's config.
    """
    shape = text_config(kind, ratio, tied, changes)
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


Tensors = dict[str, torch.Tensor]


def change_tensors(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Replace the tensors of a saved model by what ``change`` makes of them."""
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(
        {name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors"
    )


HIDDEN = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
SHOWN = (
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
TEMPLATE = (Path(__file__).parent / "qwen3_5_chat_template.jinja").read_text(encoding="utf-8")


def make_tokenizer() -> Qwen3_5Tokenizer:
    """transformers' tokenizer with the merges of its chat template's text and Qwen3.5's marks."""
    empty = Qwen3_5Tokenizer().backend_tokenizer
    learner = tokenizers.Tokenizer(tokenizers.models.BPE())
    learner.normalizer, learner.pre_tokenizer = empty.normalizer, empty.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator([TEMPLATE, "\n\n\n \n\nabba\n\n" * 20], trainer)
    model = json.loads(learner.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    made = Qwen3_5Tokenizer(vocab=model["vocab"], merges=merges)
    made.add_tokens([AddedToken(token, special=True) for token in HIDDEN])
    made.add_tokens([AddedToken(token, special=False) for token in SHOWN])
    return made


def reference(model: PreTrainedModel, tokens: list[int], **extra: torch.Tensor) -> torch.Tensor:
    """transformers' logits [T, vocab] of all tokens in one pass."""
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([tokens]), **extra).logits[0]
    return logits


def save_gguf(
    model: PreTrainedModel, path: Path, kind: GGMLQuantizationType, *, num_predicting: int = 0
) -> None:
    """Write a text model as llama.cpp's converter does (its ``conversion/qwen.py``).

    ``num_predicting`` layers of multi-token prediction come after the model's own.
    """
    config = model.config
    is_mixture = "moe" in config.model_type
    writer = gguf.GGUFWriter(path, "qwen35moe" if is_mixture else "qwen35")
    writer.add_block_count(config.num_hidden_layers + num_predicting)
    writer.add_nextn_predict_layers(num_predicting)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(int(config.head_dim * 0.25))
    writer.add_rope_dimension_sections([*config.rope_parameters["mrope_section"], 0])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
    writer.add_ssm_state_size(config.linear_key_head_dim)
    writer.add_ssm_group_count(config.linear_num_key_heads)
    writer.add_ssm_time_step_rank(config.linear_num_value_heads)
    writer.add_ssm_inner_size(config.linear_value_head_dim * config.linear_num_value_heads)
    interval = config.layer_types.index("full_attention") + 1
    writer.add_full_attention_interval(interval)
    if is_mixture:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    else:
        writer.add_feed_forward_length(config.intermediate_size)
    _add_vocabulary(writer, config.vocab_size)
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        for written, tensor in _as_gguf(name, value, config):
            is_plain = tensor.dim() == 1 or "conv1d" in written or "gate_inp" in written
            number = GGMLQuantizationType.F32 if is_plain else kind
            data = gguf.quants.quantize(tensor.float().numpy(), number)
            writer.add_tensor(written, data, raw_dtype=number)
    for layer in range(num_predicting):
        norm = torch.ones(config.hidden_size).numpy()
        writer.add_tensor(f"blk.{config.num_hidden_layers + layer}.nextn.enorm.weight", norm)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """A line break (which llama.cpp asks for) and words that stand for nothing."""
    tokens = ["\u010a", *(f"word{index}" for index in range(1, size))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen35")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * size)
    writer.add_token_merges(["w o"])
    writer.add_eos_token_id(size - 1)


def _as_gguf(
    name: str, value: torch.Tensor, config: PreTrainedConfig
) -> Iterator[tuple[str, torch.Tensor]]:
    """llama.cpp's names of a tensor and what its converter makes of it."""
    heads, group = (
        config.linear_num_key_heads,
        config.linear_num_value_heads // config.linear_num_key_heads,
    )

    def tiled(tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """Value heads from grouped by key head to tiled over the key heads."""
        before, after = tensor.shape[:dim], tensor.shape[dim + 1 :]
        apart = tensor.reshape(*before, heads, group, -1, *after)
        return apart.transpose(dim, dim + 1).reshape(tensor.shape)

    keys = 2 * heads * config.linear_key_head_dim
    part = name.split(".", 3)[3] if ".layers." in name else name
    stem = f"blk.{name.split('.')[2]}." if ".layers." in name else ""
    match part:
        case "linear_attn.in_proj_qkv.weight" | "linear_attn.conv1d.weight":
            value = value.squeeze(1) if value.dim() == 3 else value
            value = torch.cat([value[:keys], tiled(value[keys:])])
        case "linear_attn.A_log":
            value = tiled(-value.exp())
        case "linear_attn.out_proj.weight":
            value = tiled(value, 1)
        case "linear_attn.norm.weight":
            pass
        case _ if part.startswith("linear_attn."):
            value = tiled(value)
        case "mlp.shared_expert_gate.weight":
            value = value.squeeze(0)
        case _ if part.endswith("norm.weight"):
            value = value + 1
    if part == "mlp.experts.gate_up_proj":
        gate, up = value.chunk(2, dim=1)
        yield stem + "ffn_gate_exps.weight", gate.contiguous()
        yield stem + "ffn_up_exps.weight", up.contiguous()
    else:
        yield stem + _GGUF_NAMES[part], value


_GGUF_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "linear_attn.in_proj_qkv.weight": "attn_qkv.weight",
    "linear_attn.in_proj_z.weight": "attn_gate.weight",
    "linear_attn.in_proj_b.weight": "ssm_beta.weight",
    "linear_attn.in_proj_a.weight": "ssm_alpha.weight",
    "linear_attn.conv1d.weight": "ssm_conv1d.weight",
    "linear_attn.A_log": "ssm_a",
    "linear_attn.dt_bias": "ssm_dt.bias",
    "linear_attn.norm.weight": "ssm_norm.weight",
    "linear_attn.out_proj.weight": "ssm_out.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.experts.down_proj": "ffn_down_exps.weight",
    "mlp.shared_expert.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_expert.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_expert.down_proj.weight": "ffn_down_shexp.weight",
    "mlp.shared_expert_gate.weight": "ffn_gate_inp_shexp.weight",
}
