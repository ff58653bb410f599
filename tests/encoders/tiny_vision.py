"""A tiny random vision tower of transformers, and ours with its weights."""

from __future__ import annotations

import torch
from omni_encoders.vision import Precision, VisionConfig, VisionTower
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5VisionConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5VisionModel


def make_reference(*, patch: int = 16, seed: int = 0) -> Qwen3_5VisionModel:
    """Every parameter, biases and norms too, is drawn; 64 wide, 3 layers of 2 heads."""
    torch.manual_seed(seed)
    config = Qwen3_5VisionConfig(
        depth=3,
        hidden_size=64,
        intermediate_size=96,
        num_heads=2,
        out_hidden_size=48,
        num_position_embeddings=49,
        patch_size=patch,
    )
    model = Qwen3_5VisionModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.3 if parameter.dim() == 1 else parameter[0].numel() ** -0.5)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
        model.pos_embed.weight.normal_()
    return model


def make_tower(reference: Qwen3_5VisionModel, precision: Precision = "fp32") -> VisionTower:
    config = VisionConfig.from_hf(reference.config.to_dict())
    return VisionTower(config, reference.state_dict(), precision=precision)


def relative_rms(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square of the difference over that of ``expected``."""
    assert got.shape == expected.shape
    return float((got - expected).norm() / expected.norm())
