"""Architecture name (as in GGUF and Hugging Face configs) -> the family that knows it."""

from __future__ import annotations

from importlib import import_module

from omni.errors import ModelError
from omni.models.family import Family

FAMILIES = {
    "qwen2": "omni.models.qwen2:Qwen2",
    "llama": "omni.models.llama:Llama",
    "qwen3_5": "omni.models.qwen3_5:Qwen3_5",
    "qwen3_5_text": "omni.models.qwen3_5:Qwen3_5",
    "qwen3_5_moe": "omni.models.qwen3_5:Qwen3_5",
    "qwen3_5_moe_text": "omni.models.qwen3_5:Qwen3_5",
    "qwen3_next": "omni.models.qwen3_5:Qwen3_5",
    "qwen35": "omni.models.qwen3_5:Qwen3_5",
    "qwen35moe": "omni.models.qwen3_5:Qwen3_5",
}


def family_of(architecture: object) -> Family:
    """Import and construct the family of ``architecture``.

    Raises:
        ModelError: no family is registered under that name.
    """
    if not isinstance(architecture, str) or architecture not in FAMILIES:
        raise ModelError(
            f"architecture {architecture!r} is not known; known: {', '.join(FAMILIES)}"
        )
    module, name = FAMILIES[architecture].split(":")
    family: Family = getattr(import_module(module), name)()
    return family
