"""The vision tower against transformers', and against itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from omni_encoders.vision import Grid, VisionConfig, VisionTower
from omni_kernels import library
from tiny_vision import make_reference, make_tower, relative_rms
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5VisionModel

from omni.errors import CancelledError, ModelError

PUBLISHED = {  # Qwen3.5-0.8B's vision_config
    "deepstack_visual_indexes": [],
    "depth": 12,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 768,
    "in_channels": 3,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "model_type": "qwen3_5",
    "num_heads": 12,
    "num_position_embeddings": 2304,
    "out_hidden_size": 1024,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}

GRIDS = [
    pytest.param([Grid(1, 4, 4)], id="square"),
    pytest.param([Grid(1, 2, 2)], id="one-token"),
    pytest.param([Grid(1, 2, 14)], id="wide"),
    pytest.param([Grid(1, 22, 4)], id="taller-than-the-position-table"),
    pytest.param([Grid(1, 8, 6), Grid(1, 2, 10), Grid(1, 6, 8)], id="several-sizes"),
    pytest.param([Grid(4, 6, 4)], id="video"),
    pytest.param([Grid(1, 4, 6), Grid(3, 2, 4), Grid(2, 10, 2)], id="image-and-videos"),
]


@pytest.fixture(scope="module")
def reference() -> Qwen3_5VisionModel:
    return make_reference()


@pytest.fixture(scope="module")
def tower(reference: Qwen3_5VisionModel) -> VisionTower:
    return make_tower(reference)


def patches_for(grids: list[Grid], config: VisionConfig, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    num_patches = sum(grid.num_patches for grid in grids)
    return torch.rand(num_patches, config.patch_inputs, generator=generator) * 2 - 1


@pytest.mark.parametrize("grids", GRIDS)
def test_embeddings_equal_transformers(
    reference: Qwen3_5VisionModel, tower: VisionTower, grids: list[Grid]
) -> None:
    patches = patches_for(grids, tower.config)
    with torch.inference_mode():
        expected = reference(patches, grid_thw=torch.tensor(grids)).pooler_output
    got = tower.encode(patches, grids)
    assert [len(part) for part in got] == [grid.num_patches // 4 for grid in grids]
    assert relative_rms(torch.cat(got), expected) <= 1e-5


def test_embeddings_equal_transformers_at_another_patch_size() -> None:
    reference = make_reference(patch=14, seed=3)
    tower = make_tower(reference)
    grids = [Grid(2, 4, 6)]
    patches = patches_for(grids, tower.config)
    with torch.inference_mode():
        expected = reference(patches, grid_thw=torch.tensor(grids)).pooler_output
    assert relative_rms(tower.encode(patches, grids)[0], expected) <= 1e-5


def test_neither_neighbours_nor_other_frames_are_seen(tower: VisionTower) -> None:
    grids = [Grid(1, 4, 6), Grid(3, 2, 4)]
    patches = patches_for(grids, tower.config)
    together = torch.cat(tower.encode(patches, grids))
    frames = [Grid(1, 4, 6), *[Grid(1, 2, 4)] * 3]
    start, alone = 0, []
    for grid in frames:
        alone += tower.encode(patches[start : start + grid.num_patches], [grid])
        start += grid.num_patches
    assert relative_rms(torch.cat(alone), together) <= 1e-6


@pytest.mark.skipif(library.cpu() is None, reason="no compiled kernel on this machine")
def test_eight_bits_stay_near(reference: Qwen3_5VisionModel, tower: VisionTower) -> None:
    packed = make_tower(reference, "int8")
    grids = [Grid(1, 8, 6), Grid(2, 4, 4)]
    patches = patches_for(grids, tower.config)
    exact, near = (torch.cat(t.encode(patches, grids)) for t in (tower, packed))
    assert 1e-5 < relative_rms(near, exact) <= 0.02


def test_published_config_is_read() -> None:
    config = VisionConfig.from_hf(PUBLISHED)
    assert config == VisionConfig(
        depth=12, hidden_size=768, intermediate_size=3072, num_heads=12, out_hidden_size=1024
    )
    assert (config.side, config.token_pixels, config.patch_inputs) == (48, 32, 1536)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "silu"}, "hidden_act 'silu'"),
        ({"deepstack_visual_indexes": [8, 16]}, r"deepstack_visual_indexes \[8, 16\]"),
        ({"rope_parameters": {"rope_theta": 1e6}}, "expected rope_theta 10000"),
        ({"num_heads": 7}, "hidden_size 768 and num_heads 7"),
        ({"num_position_embeddings": 2305}, "2305, expected a square"),
        ({"depth": "12"}, "depth '12', expected a count"),
        ({"patch_size": 0}, "patch_size 0, expected a count"),
    ],
)
def test_config_for_another_tower_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        VisionConfig.from_hf(PUBLISHED | change)


def test_config_without_a_size_is_refused() -> None:
    with pytest.raises(ModelError, match="has no num_heads"):
        VisionConfig.from_hf({k: v for k, v in PUBLISHED.items() if k != "num_heads"})


def test_weights_must_be_all_and_only_the_towers(reference: Qwen3_5VisionModel) -> None:
    config = VisionConfig.from_hf(reference.config.to_dict())
    weights = dict(reference.state_dict())
    missing = {k: v for k, v in weights.items() if k != "blocks.1.attn.proj.bias"}
    with pytest.raises(ModelError, match=r"no weight 'blocks\.1\.attn\.proj\.bias'"):
        VisionTower(config, missing)
    with pytest.raises(ModelError, match=r"no use for weights \['deepstack\.0\.weight'\]"):
        VisionTower(config, weights | {"deepstack.0.weight": torch.zeros(1)})
    with pytest.raises(ModelError, match=r"'merger\.linear_fc2\.weight' is \[48, 256\]"):
        VisionTower(replace(config, out_hidden_size=32), weights)


def test_weights_of_half_precision_are_widened(reference: Qwen3_5VisionModel) -> None:
    config = VisionConfig.from_hf(reference.config.to_dict())
    halves = {name: weight.bfloat16() for name, weight in reference.state_dict().items()}
    grids = [Grid(1, 4, 4)]
    patches = patches_for(grids, config)
    widened = {name: weight.float() for name, weight in halves.items()}
    expected = VisionTower(config, widened).encode(patches, grids)[0]
    torch.testing.assert_close(
        VisionTower(config, halves).encode(patches, grids)[0], expected, rtol=0, atol=0
    )


@pytest.mark.parametrize(
    ("num_patches", "grid"), [(15, Grid(1, 4, 4)), (12, Grid(1, 4, 3)), (12, Grid(1, 3, 4))]
)
def test_patches_must_fit_their_grid(tower: VisionTower, num_patches: int, grid: Grid) -> None:
    with pytest.raises(ValueError, match="expected patches"):
        tower.encode(torch.zeros(num_patches, tower.config.patch_inputs), [grid])


def test_tower_stops_between_layers(tower: VisionTower) -> None:
    asked = []

    def should_stop() -> bool:
        asked.append(True)
        return len(asked) == 3

    with pytest.raises(CancelledError):
        tower.encode(patches_for([Grid(1, 4, 4)], tower.config), [Grid(1, 4, 4)], should_stop)
    assert len(asked) == 3
