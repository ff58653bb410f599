"""Rotary angles against transformers: partial, on three axes, integer and floating."""

from __future__ import annotations

import pytest
import torch
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLRotaryEmbedding,
    Qwen2_5_VLTextConfig,
)
from transformers.models.qwen3_5.modeling_qwen3_5 import (
    Qwen3_5TextConfig,
    Qwen3_5TextRotaryEmbedding,
)

from omni.models.rotary import Rotary

POSITIONS = torch.tensor([0, 1, 5, 63, 4095, 4096, 9000, 70_000, 262_143])
THREE = torch.stack([POSITIONS, POSITIONS.flip(0) // 2, POSITIONS // 3 + 7])  # [3, N]


def qwen3_5() -> Rotary:
    return Rotary(dim=64, theta=1e7, sections=(11, 11, 10), interleaved=True)


def expected_of_qwen3_5(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    config = Qwen3_5TextConfig(
        head_dim=256,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1e7,
            "partial_rotary_factor": 0.25,
            "mrope_section": [11, 11, 10],
        },
    )
    three = positions.expand(3, -1)[:, None]  # [3, 1, N]
    cosine, sine = Qwen3_5TextRotaryEmbedding(config)(torch.zeros(1), three)
    return cosine[0, :, :32], sine[0, :, :32]


@pytest.mark.parametrize("positions", [POSITIONS, THREE], ids=["one axis", "three axes"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float64])
def test_interleaved_sections_equal_transformers(
    positions: torch.Tensor, dtype: torch.dtype
) -> None:
    if dtype.is_floating_point:
        positions = positions.to(dtype) / 4
    got = qwen3_5()(positions.to(dtype))
    for ours, theirs in zip(got, expected_of_qwen3_5(positions), strict=True):
        assert ours.is_contiguous()  # the kernels take no other
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_sections_that_follow_each_other_equal_transformers(dtype: torch.dtype) -> None:
    sections = [16, 24, 24]
    config = Qwen2_5_VLTextConfig(
        hidden_size=512,
        num_attention_heads=4,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections},
    )
    positions = THREE.to(dtype) / 4 if dtype.is_floating_point else THREE
    expected = Qwen2_5_VLRotaryEmbedding(config)(torch.zeros(1), positions[:, None])
    got = Rotary(dim=128, theta=1e6, sections=(16, 24, 24))(positions)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs[0, :, :64], atol=1e-6, rtol=0)


def test_a_position_has_the_same_angles_whatever_came_before() -> None:
    jumped, walked = qwen3_5(), qwen3_5()
    for last in (10, 5000, 9000, 40_000):
        walked(torch.tensor([last]))
    for ours, theirs in zip(jumped(POSITIONS), walked(POSITIONS), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(jumped(POSITIONS), jumped(POSITIONS.expand(3, -1)), strict=True):
        assert torch.equal(ours, theirs)


def test_the_table_holds_what_was_asked_for_and_not_the_whole_context() -> None:
    rotary = qwen3_5()
    rotary(torch.tensor([3000]))
    assert len(rotary._cosine) == 4096
    rotary(torch.tensor([4096]))
    assert len(rotary._cosine) == 8192
    assert rotary(torch.empty(0, dtype=torch.int64))[0].shape == (0, 32)


def test_sections_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="are not 32 pairs"):
        Rotary(dim=64, theta=1e7, sections=(11, 11, 11))


def test_three_axes_need_sections() -> None:
    with pytest.raises(ValueError, match="three axes"):
        Rotary(dim=64, theta=1e7)(THREE)
