"""Qwen2 and Qwen2.5: bias on query, key and value; ChatML with tools."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from omni.models import family
from omni.models.backbone import BackboneConfig
from omni.models.template import ChatTemplate
from omni.models.tokenizer import Tokenizer
from omni.models.weights import Entry


class Qwen2:
    """Reference: transformers ``models/qwen2``; llama.cpp's ``LLM_ARCH_QWEN2``."""

    def config_from_gguf(
        self, metadata: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]
    ) -> BackboneConfig:
        return family.config_from_gguf(metadata, tensors, "qwen2")

    def config_from_hf(self, config: Mapping[str, Any]) -> BackboneConfig:
        return family.config_from_hf(config, qkv_bias=True)

    def plan(
        self, config: BackboneConfig, source: family.Format, names: Collection[str] = ()
    ) -> list[Entry]:
        return family.decoder_plan(config, source)

    def ignored(self, config: BackboneConfig) -> tuple[str, ...]:
        return ()

    def vision(self, config: Mapping[str, Any]) -> None:
        return None

    def template(self, tokenizer: Tokenizer, thinking: bool = False) -> ChatTemplate:
        family.refuse_thinking(thinking)
        return ChatTemplate(
            tokenizer,
            default_system=("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
        )
