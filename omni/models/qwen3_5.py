"""Qwen3.5 and Qwen3-Next: Gated DeltaNet with full attention in every fourth layer, dense or MoE.

Reference: transformers ``models/qwen3_5``, ``qwen3_5_moe``, ``qwen3_next``; llama.cpp's
``LLM_ARCH_QWEN35`` and ``LLM_ARCH_QWEN35MOE``. The vision tower (``model.visual``) is
:mod:`omni_encoders.vision`'s; multi-token prediction (``mtp``) is not used.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from omni_encoders.vision import VisionConfig

from omni.errors import ModelError
from omni.models import qwen3_5_names
from omni.models.backbone import BackboneConfig, MixerKind
from omni.models.experts import ExpertsShape
from omni.models.family import Format, field, rope_of
from omni.models.gated_delta import DeltaShape
from omni.models.qwen3_5_template import Qwen3_5Template
from omni.models.template import ChatTemplate
from omni.models.tokenizer import Tokenizer
from omni.models.weights import Entry

_FULL_ATTENTION_INTERVAL = 4
_SECTIONS = (11, 11, 10)
_PARTIAL_ROTARY = 0.25
_MAX_PREDICTING = 4
_VISION = "model.visual."
_KINDS: dict[str, MixerKind] = {"full_attention": "attention", "linear_attention": "recurrent"}


class Qwen3_5:
    """Qwen3.5, its mixtures of experts and Qwen3-Next: one stack, other shapes and names."""

    def config_from_gguf(
        self, metadata: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]
    ) -> BackboneConfig:
        architecture = field(metadata, "general.architecture", str)

        def number(key: str, default: int | None = None) -> int:
            return field(metadata, f"{architecture}.{key}", int, default)

        if metadata.get(f"{architecture}.rope.scaling.type", "none") != "none":
            raise ModelError(f"this {architecture} model scales its rotary positions: unsupported")
        if "token_embd.weight" not in tensors:
            raise ModelError("the model file has no token_embd.weight")
        num_layers = number("block_count") - number("nextn_predict_layers", 0)
        interval = number("full_attention_interval", _FULL_ATTENTION_INTERVAL)
        value_heads = number("ssm.time_step_rank")
        sections = metadata.get(f"{architecture}.rope.dimension_sections", [*_SECTIONS, 0])
        head_dim = number("attention.key_length")
        rotary_dim = number("rope.dimension_count", int(head_dim * _PARTIAL_ROTARY))
        experts = None
        if number("expert_count", 0):
            size = number("expert_feed_forward_length")
            experts = ExpertsShape(
                num_experts=number("expert_count"),
                num_chosen=number("expert_used_count"),
                expert_size=size,
                shared_size=number("expert_shared_feed_forward_length", size),
            )
        return BackboneConfig(
            vocab_size=tensors["token_embd.weight"][0],
            hidden_size=number("embedding_length"),
            intermediate_size=0 if experts else number("feed_forward_length"),
            mixers=_mixers(num_layers, interval),
            num_heads=number("attention.head_count"),
            num_kv_heads=number("attention.head_count_kv"),
            head_dim=head_dim,
            rms_norm_eps=field(metadata, f"{architecture}.attention.layer_norm_rms_epsilon", float),
            rope_theta=field(metadata, f"{architecture}.rope.freq_base", float),
            max_positions=number("context_length"),
            qkv_bias=False,
            tied_head="output.weight" not in tensors,
            rotary_dim=rotary_dim,
            rope_sections=_checked(sections, rotary_dim),
            rope_interleaved=True,
            qk_norm=True,
            output_gate=True,
            delta=DeltaShape(
                num_key_heads=number("ssm.group_count"),
                num_value_heads=value_heads,
                key_dim=number("ssm.state_size"),
                value_dim=number("ssm.inner_size") // value_heads,
                conv_width=number("ssm.conv_kernel"),
            ),
            experts=experts,
        )

    def config_from_hf(self, config: Mapping[str, Any]) -> BackboneConfig:
        text = config.get("text_config", config)
        if not isinstance(text, dict):
            raise ModelError(f"text_config is {text!r}, expected an object")

        def number(key: str, default: int | None = None) -> int:
            return field(text, key, int, default)

        _refuse_what_differs(text)
        rope = rope_of(text)
        if rope.get("rope_type", rope.get("type", "default")) not in ("default", "mrope"):
            raise ModelError(f"rotary scaling {rope} is not supported")
        head_dim = number("head_dim", 256)
        key = "partial_rotary_factor"
        share = field(rope, key, float, field(text, key, float, _PARTIAL_ROTARY))
        rotary_dim = int(head_dim * share)
        has_axes = text.get("model_type") != "qwen3_next"
        sections = field(rope, "mrope_section", list, list(_SECTIONS))
        tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
        experts = None
        if text.get("num_experts"):
            experts = ExpertsShape(
                num_experts=number("num_experts"),
                num_chosen=number("num_experts_per_tok"),
                expert_size=number("moe_intermediate_size"),
                shared_size=number("shared_expert_intermediate_size"),
                renormalised=field(text, "norm_topk_prob", bool, True),
            )
        return BackboneConfig(
            vocab_size=number("vocab_size"),
            hidden_size=number("hidden_size"),
            intermediate_size=0 if experts else number("intermediate_size"),
            mixers=_mixers_of(text),
            num_heads=number("num_attention_heads"),
            num_kv_heads=number("num_key_value_heads"),
            head_dim=head_dim,
            rms_norm_eps=field(text, "rms_norm_eps", float),
            rope_theta=field(rope, "rope_theta", float, field(text, "rope_theta", float, 10000.0)),
            max_positions=number("max_position_embeddings"),
            qkv_bias=False,
            tied_head=bool(tied),
            rotary_dim=rotary_dim,
            rope_sections=_checked(sections, rotary_dim) if has_axes else None,
            rope_interleaved=True,
            qk_norm=True,
            output_gate=True,
            delta=DeltaShape(
                num_key_heads=number("linear_num_key_heads"),
                num_value_heads=number("linear_num_value_heads"),
                key_dim=number("linear_key_head_dim"),
                value_dim=number("linear_value_head_dim"),
                conv_width=number("linear_conv_kernel_dim", 4),
            ),
            experts=experts,
        )

    def plan(
        self, config: BackboneConfig, source: Format, names: Collection[str] = ()
    ) -> list[Entry]:
        return qwen3_5_names.plan(config, source, names)

    def ignored(self, config: BackboneConfig) -> tuple[str, ...]:
        # A tied head may lie in the file all the same; llama.cpp puts the layers of multi-token
        # prediction (one, so far) after the last one.
        return (
            "mtp.",
            _VISION,
            *(f"blk.{config.num_layers + extra}." for extra in range(_MAX_PREDICTING)),
            *(["lm_head."] if config.tied_head else []),
        )

    def vision(self, config: Mapping[str, Any]) -> tuple[VisionConfig, str] | None:
        described = config.get("vision_config")
        if described is None:
            return None
        if not isinstance(described, dict):
            raise ModelError(f"vision_config is {described!r}, expected an object")
        return VisionConfig.from_hf(described), _VISION

    def template(self, tokenizer: Tokenizer, thinking: bool = False) -> ChatTemplate:
        return Qwen3_5Template(tokenizer, thinking=thinking)


def _mixers(num_layers: int, interval: int) -> tuple[MixerKind, ...]:
    return tuple(
        "recurrent" if (index + 1) % interval else "attention" for index in range(num_layers)
    )


def _mixers_of(text: Mapping[str, Any]) -> tuple[MixerKind, ...]:
    num_layers = field(text, "num_hidden_layers", int)
    if text.get("layer_types") is None:
        interval = field(text, "full_attention_interval", int, _FULL_ATTENTION_INTERVAL)
        return _mixers(num_layers, interval)
    kinds = [str(kind) for kind in field(text, "layer_types", list)]
    if len(kinds) != num_layers or not set(kinds) <= set(_KINDS):
        raise ModelError(
            f"layer_types are {len(kinds)} of {sorted(set(kinds))}, expected {num_layers} of "
            f"{sorted(_KINDS)}"
        )
    return tuple(_KINDS[kind] for kind in kinds)


def _checked(sections: Any, rotary_dim: int) -> tuple[int, int, int]:
    time, height, width, *rest = (*sections, 0, 0, 0)[:4]
    if (
        not all(isinstance(size, int) for size in sections)
        or time + height + width != rotary_dim // 2
        or any(rest)
    ):
        raise ModelError(
            f"rotary sections {list(sections)} do not make up the {rotary_dim // 2} rotated pairs"
        )
    return time, height, width


def _refuse_what_differs(text: Mapping[str, Any]) -> None:
    """Switches of the config that published models leave as this stack has them."""
    for key, expected in (
        ("attention_bias", False),
        ("hidden_act", "silu"),
        ("attn_output_gate", True),
        ("decoder_sparse_step", 1),
        ("mlp_only_layers", []),
        ("use_sliding_window", False),
    ):
        if text.get(key) is not None and text[key] != expected:
            raise ModelError(f"{key} = {text[key]!r} is not supported, only {expected!r}")
