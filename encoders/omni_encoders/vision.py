"""Qwen3.5's vision tower in plain torch: patches of images and video frames become embeddings.

Called by :mod:`omni_encoders.image` and :mod:`omni_encoders.video`, which own pixels and times;
this file knows tensors only. Weight names are the checkpoint's without its ``model.visual.``.

Letters: N patches, T frames (temporal patches), H x W patches of a frame, M merge side (2),
A heads, K head width, D = A * K width, P patch inputs (3 * 2 * 16 * 16).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from omni_kernels import linear as kernels
from torch import Tensor

from omni.errors import CancelledError, ModelError

NORM_EPSILON = 1e-6
ROPE_THETA = 10_000.0

Precision = Literal["fp32", "int8"]
StopCheck = Callable[[], bool]


class Grid(NamedTuple):
    """Size of one image or video in patches: ``num_frames`` temporal patches of rows x columns."""

    num_frames: int
    rows: int
    columns: int

    @property
    def num_patches(self) -> int:
        return self.num_frames * self.rows * self.columns


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """Shapes of a tower, named as in the ``vision_config`` of a published ``config.json``."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int  # the backbone's width
    num_position_embeddings: int = 2304  # 48 x 48
    patch_size: int = 16  # pixels
    temporal_patch_size: int = 2  # frames
    spatial_merge_size: int = 2  # patches per side that become one token
    in_channels: int = 3

    @classmethod
    def from_hf(cls, config: Mapping[str, object]) -> VisionConfig:
        """Take what is needed from ``vision_config``.

        Raises:
            ModelError: a field is missing or no count, or asks for what this tower does not do.
        """
        for name, only in (("hidden_act", "gelu_pytorch_tanh"), ("deepstack_visual_indexes", [])):
            if config.get(name, only) != only:
                raise ModelError(f"vision_config has {name} {config[name]!r}, expected {only!r}")
        rope = config.get("rope_parameters")
        if isinstance(rope, Mapping) and rope.get("rope_theta", ROPE_THETA) != ROPE_THETA:
            raise ModelError(f"vision_config has {dict(rope)}, expected rope_theta {ROPE_THETA}")
        counts: dict[str, int] = {}
        for field in fields(cls):
            value = config.get(field.name, field.default)
            if value is MISSING:
                raise ModelError(f"vision_config has no {field.name}")
            if not isinstance(value, int) or value < 1:
                raise ModelError(f"vision_config has {field.name} {value!r}, expected a count")
            counts[field.name] = value
        tower = cls(**counts)
        if tower.hidden_size % (4 * tower.num_heads):
            raise ModelError(
                f"vision_config has hidden_size {tower.hidden_size} and num_heads "
                f"{tower.num_heads}, expected heads of a width that is a multiple of 4"
            )
        if tower.side**2 != tower.num_position_embeddings:
            raise ModelError(
                f"vision_config has num_position_embeddings {tower.num_position_embeddings}, "
                "expected a square number"
            )
        return tower

    @property
    def side(self) -> int:
        """Rows and columns of the learned positions."""
        return int(self.num_position_embeddings**0.5)

    @property
    def token_pixels(self) -> int:
        """Side of the square of pixels that becomes one token."""
        return self.patch_size * self.spatial_merge_size

    @property
    def patch_inputs(self) -> int:
        """Values in one patch, P."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2


def token_positions(rows: int, columns: int) -> tuple[Tensor, int]:
    """Rotary positions of one picture's tokens, in row-major order.

    A picture is one moment: its time axis stands still, height and width count from 0. Text goes
    on behind the longer side, as if the picture were that many tokens; this is where a sequence
    arrives that continues behind the largest position of any axis.

    Returns:
        positions [3, rows * columns] int64 (time, height, width) relative to the picture, and the
        distance from its first position to the next text's.
    """
    height, width = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    positions = torch.stack([torch.zeros_like(height), height, width]).flatten(1)
    return positions, max(rows, columns)


class VisionTower:
    """The whole network; stateless after loading, safe to share between threads."""

    def __init__(
        self,
        config: VisionConfig,
        weights: Mapping[str, Tensor],
        *,
        precision: Precision = "fp32",
    ) -> None:
        """Build from ``weights``, of any float type; ``int8`` packs the linears of the layers.

        Raises:
            ModelError: a weight is missing, has another shape, or is one too many.
        """
        reader = _Weights(weights, precision)
        width, merged = config.hidden_size, config.hidden_size * config.spatial_merge_size**2
        sides = (config.temporal_patch_size, config.patch_size, config.patch_size)
        kernel = reader.tensor("patch_embed.proj.weight", (width, config.in_channels, *sides))
        # A convolution whose stride is its kernel is a linear over the values of a patch.
        self._patch_weight = kernel.flatten(1)  # [D, P]
        self._patch_bias = reader.tensor("patch_embed.proj.bias", (width,))
        table = reader.tensor("pos_embed.weight", (config.num_position_embeddings, width))
        self._positions = table.view(config.side, config.side, width)
        self._blocks = [_Block(reader, f"blocks.{i}", config) for i in range(config.depth)]
        self._merge_norm = reader.norm("merger.norm", width)
        self._merge_up = reader.linear("merger.linear_fc1", merged, merged)
        self._merge_down = reader.linear("merger.linear_fc2", config.out_hidden_size, merged)
        reader.check_all_taken()
        half = config.hidden_size // config.num_heads // 2
        self._frequencies = ROPE_THETA ** (-torch.arange(0, half, 2) / half)  # [K / 4]
        self.config = config

    @torch.inference_mode()
    def encode(
        self, patches: Tensor, grids: Sequence[Grid], should_stop: StopCheck = lambda: False
    ) -> list[Tensor]:
        """Encode ``patches`` [N, P] fp32, those of ``grids`` one after another.

        Within a grid, patches go frame by frame and by merge block (:func:`features.patchify`).
        A patch sees the patches of its own frame and no others.

        Returns:
            per grid, [T * H/M * W/M, out_hidden_size] fp32: frame by frame, row-major.

        Raises:
            ValueError: the shape of ``patches`` does not fit ``grids``.
            CancelledError: ``should_stop()`` became true between two layers.
        """
        merge = self.config.spatial_merge_size
        expected = (sum(grid.num_patches for grid in grids), self.config.patch_inputs)
        if tuple(patches.shape) != expected or any(
            g.rows % merge or g.columns % merge for g in grids
        ):
            raise ValueError(
                f"expected patches {list(expected)} in grids that are a multiple of {merge}, got "
                f"{list(patches.shape)} in {list(grids)}"
            )
        x = F.linear(patches, self._patch_weight, self._patch_bias)  # [N, D]
        x += torch.cat([self._learned_positions(grid) for grid in grids])
        angles = torch.cat([self._angles(grid) for grid in grids])  # [N, K / 2]
        rotation = angles.cos()[:, None, None], angles.sin()[:, None, None]
        for block in self._blocks:
            if should_stop():
                raise CancelledError("the vision tower was stopped")
            x = block(x, rotation, grids)
        x = self._merge_norm(x).view(-1, self._merge_up.in_features)  # [N / M^2, M^2 * D]
        x = self._merge_down(F.gelu(self._merge_up(x)))
        return list(torch.split(x, [grid.num_patches // merge**2 for grid in grids]))

    def _learned_positions(self, grid: Grid) -> Tensor:
        """The table stretched over the grid, corner to corner: [T * H * W, D] in merge order."""
        side = len(self._positions)
        rows = _stretch(grid.rows, side) @ self._positions.flatten(1)  # [H, side * D]
        rows = rows.view(grid.rows, side, -1)
        return self._in_merge_order(_stretch(grid.columns, side) @ rows, grid)

    def _angles(self, grid: Grid) -> Tensor:
        """Rotary angles [T * H * W, K / 2]: the first half turns with the row, the other with
        the column."""
        rows = torch.arange(grid.rows)[:, None] * self._frequencies
        columns = torch.arange(grid.columns)[:, None] * self._frequencies
        shape = (grid.rows, grid.columns, len(self._frequencies))
        both = torch.cat([rows[:, None].expand(shape), columns.expand(shape)], dim=-1)
        return self._in_merge_order(both, grid)

    def _in_merge_order(self, cells: Tensor, grid: Grid) -> Tensor:
        """``cells`` [H, W, ...] block by block, once per frame: [T * H * W, ...]."""
        merge = self.config.spatial_merge_size
        shape = (grid.rows // merge, merge, grid.columns // merge, merge, -1)
        frame = cells.reshape(shape).transpose(1, 2).reshape(grid.rows * grid.columns, -1)
        return frame.repeat(grid.num_frames, 1)


def _stretch(count: int, side: int) -> Tensor:
    """Weights [count, side] that interpolate linearly from ``side`` points to ``count``."""
    at = torch.arange(count, dtype=torch.float32) * (side - 1) / max(count - 1, 1)
    return (1 - (at[:, None] - torch.arange(side)).abs()).clamp_(min=0)


class _Block:
    def __init__(self, weights: _Weights, name: str, config: VisionConfig) -> None:
        width, wide = config.hidden_size, config.intermediate_size
        self._num_heads = config.num_heads
        self._norm1 = weights.norm(f"{name}.norm1", width)
        self._qkv = weights.linear(f"{name}.attn.qkv", 3 * width, width)
        self._proj = weights.linear(f"{name}.attn.proj", width, width)
        self._norm2 = weights.norm(f"{name}.norm2", width)
        self._up = weights.linear(f"{name}.mlp.linear_fc1", wide, width)
        self._down = weights.linear(f"{name}.mlp.linear_fc2", width, wide)

    def __call__(self, x: Tensor, rotation: tuple[Tensor, Tensor], grids: Sequence[Grid]) -> Tensor:
        x = x + self._proj(self._attend(self._qkv(self._norm1(x)), rotation, grids))
        return x + self._down(F.gelu(self._up(self._norm2(x)), approximate="tanh"))

    def _attend(
        self, qkv: Tensor, rotation: tuple[Tensor, Tensor], grids: Sequence[Grid]
    ) -> Tensor:
        """Attention within each frame: [N, 3 * D] -> [N, D]."""
        qkv = qkv.view(len(qkv), 3, self._num_heads, -1)
        cos, sin = rotation  # [N, 1, 1, K / 2]
        first, second = qkv[:, :2].chunk(2, dim=-1)
        turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
        mixed, start = [], 0
        for grid in grids:
            end = start + grid.num_patches
            frames = (grid.num_frames, grid.rows * grid.columns)
            q, k = turned[start:end].view(*frames, *turned.shape[1:]).permute(2, 0, 3, 1, 4)
            v = qkv[start:end, 2].reshape(*frames, *qkv.shape[2:]).transpose(1, 2)  # [T, A, HW, K]
            out = F.scaled_dot_product_attention(q, k, v)
            mixed.append(out.transpose(1, 2).reshape(end - start, -1))
            start = end
        return torch.cat(mixed)


class _Linear:
    """``x @ weight.T + bias`` in fp32, or with weight and activations in 8 bits."""

    def __init__(self, weight: Tensor, bias: Tensor, precision: Precision) -> None:
        self.in_features = weight.shape[1]
        self._weight = kernels.pack(weight) if precision == "int8" else weight
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        if isinstance(self._weight, Tensor):
            return F.linear(x, self._weight, self._bias)
        return kernels.linear(x.contiguous(), self._weight, self._bias)


class _Norm:
    """Layer normalisation over the last dimension."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self._weight = weight
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self._weight.shape, self._weight, self._bias, NORM_EPSILON)


class _Weights:
    """Named tensors, each taken once, as fp32."""

    def __init__(self, weights: Mapping[str, Tensor], precision: Precision) -> None:
        self._weights = weights
        self._precision = precision
        self._taken: set[str] = set()

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        given = self._weights.get(name)
        if given is None:
            raise ModelError(f"the vision tower has no weight {name!r}")
        if tuple(given.shape) != shape:
            raise ModelError(
                f"the vision tower's {name!r} is {list(given.shape)}, expected {list(shape)}"
            )
        self._taken.add(name)
        return given.detach().to(torch.float32).contiguous()

    def linear(self, name: str, num_outputs: int, num_inputs: int) -> _Linear:
        weight = self.tensor(f"{name}.weight", (num_outputs, num_inputs))
        return _Linear(weight, self.tensor(f"{name}.bias", (num_outputs,)), self._precision)

    def norm(self, name: str, width: int) -> _Norm:
        return _Norm(self.tensor(f"{name}.weight", (width,)), self.tensor(f"{name}.bias", (width,)))

    def check_all_taken(self) -> None:
        if unknown := sorted(self._weights.keys() - self._taken):
            raise ModelError(f"the vision tower has no use for weights {unknown[:4]}")
