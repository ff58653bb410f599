"""Llama-shaped models; SmolLM2 is the one that is tested: no bias, ChatML."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from omni.errors import ModelError
from omni.models import family
from omni.models.backbone import BackboneConfig
from omni.models.template import ChatTemplate
from omni.models.tokenizer import Tokenizer
from omni.models.weights import Entry


class Llama:
    """Reference: transformers ``models/llama``; llama.cpp's ``LLM_ARCH_LLAMA``."""

    def config_from_gguf(
        self, metadata: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]
    ) -> BackboneConfig:
        return family.config_from_gguf(metadata, tensors, "llama")

    def config_from_hf(self, config: Mapping[str, Any]) -> BackboneConfig:
        if config.get("mlp_bias") or config.get("attention_bias"):
            raise ModelError("llama models with mlp_bias or attention_bias are not supported")
        return family.config_from_hf(config, qkv_bias=False)

    def plan(
        self, config: BackboneConfig, source: family.Format, names: Collection[str] = ()
    ) -> list[Entry]:
        # llama.cpp rotates neighbouring pairs for this architecture, so its converter reorders
        # the query and key rows (convert_hf_to_gguf.py, LlamaModel.permute).
        return family.decoder_plan(config, source, interleaved_rotary=source == "gguf")

    def ignored(self, config: BackboneConfig) -> tuple[str, ...]:
        return ()

    def vision(self, config: Mapping[str, Any]) -> None:
        return None

    def template(self, tokenizer: Tokenizer, thinking: bool = False) -> ChatTemplate:
        family.refuse_thinking(thinking)
        return ChatTemplate(
            tokenizer,
            default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
        )
