"""Says what a picture is of, if it is of one thing: EfficientNet-lite0 over ImageNet's 1000 kinds.

Called by :mod:`omni_encoders.eyes` when somebody asks; stateless. Batch norms are folded into the
convolutions when the weights are read.

The architecture is published as EfficientNet-lite (Tan and Le, 2019, with ReLU6 for swish and
without squeeze-and-excitation); the file's names are those of the PyTorch port it comes from.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from omni.errors import CancelledError, ModelError

StopCheck = Callable[[], bool]

SIDE = 224
"""Pixels on a side of what the network sees."""

BORDER = 0.875
"""Share of a picture's shorter side that was seen in training's evaluation: 224 of 256."""

MEAN = 127.0
STD = 128.0
"""Of the lite models' inputs: pixels become -1..1."""

EPSILON = 1e-3
"""Of the batch norms, as trained in TensorFlow."""

SURE = 0.6
"""Least probability at which a picture is said to be of something. Of some 60 photos (those of
:mod:`omni_encoders.eyes`) 14 reach it and 11 of them are right, from 0.9 on all 6 are: the
network's own probability is near those shares and is reported as it is.
"""

SURE_OF_KIND = 0.9
"""Below it a breed or species gives way to its family: a dog, not a Pekinese."""

FAMILIES = {
    "fish": ((0, 7), (389, 398)),
    "bird": ((7, 25), (80, 101), (127, 147)),
    "lizard": ((38, 49),),
    "snake": ((52, 69),),
    "spider": ((72, 78),),
    "dog": ((151, 269),),
    "cat": ((281, 286),),
    "bear": ((294, 298),),
    "beetle": ((300, 308),),
    "butterfly": ((321, 327),),
    "rabbit": ((330, 333),),
    "monkey": ((369, 383),),
    "mushroom": ((991, 997),),
}
"""Kinds that only experts tell apart: [from, to) in the order of the outputs."""

_STAGES = (  # blocks, stride of the first
    (1, 1),
    (2, 2),
    (2, 2),
    (3, 2),
    (3, 1),
    (4, 2),
    (1, 1),
)


@dataclass(frozen=True, slots=True)
class Naming:
    """What a picture is of: an English ``label`` and the ``probability`` that it is right."""

    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class _Convolution:
    """One convolution with its batch norm folded in; ``groups`` is the channels' number or 1."""

    weight: torch.Tensor
    bias: torch.Tensor
    stride: int
    groups: int

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        pads = _same(value.shape[2], self.weight.shape[2], self.stride)
        before, after = pads
        if before == after:
            return F.conv2d(value, self.weight, self.bias, self.stride, before, 1, self.groups)
        value = F.pad(value, (before, after, before, after))
        return F.conv2d(value, self.weight, self.bias, self.stride, 0, 1, self.groups)


class Classifier:
    """EfficientNet-lite0 over one shared set of weights; threads may share it."""

    def __init__(self, folder: Path) -> None:
        """Open ``efficientnet-lite0.pth`` in ``folder``.

        Raises:
            ModelError: the file is missing or damaged, or it is another network.
        """
        at = folder / "efficientnet-lite0.pth"
        try:
            weights = torch.load(at, map_location="cpu", weights_only=True, mmap=False)
            self._stem, self._blocks, self._head = _network(weights)
            self._fc = weights["_fc.weight"], weights["_fc.bias"]
        except (OSError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
            raise ModelError(f"{at} is no EfficientNet-lite0 ({error}); fetch it again") from error
        self.labels = read_labels()

    def name(
        self, pixels: NDArray[np.uint8], should_stop: StopCheck = lambda: False
    ) -> Naming | None:
        """What ``pixels`` (RGB [H, W, 3]) are of, or None: not sure, or not of one thing.

        Raises:
            CancelledError: ``should_stop()`` became true between two blocks.
        """
        return named(self.rank(pixels, should_stop), self.labels)

    def rank(
        self, pixels: NDArray[np.uint8], should_stop: StopCheck = lambda: False
    ) -> NDArray[np.float32]:
        """Probabilities [1000] of ``pixels`` (RGB [H, W, 3]) being of each of ``labels``.

        Raises:
            CancelledError: ``should_stop()`` became true between two blocks.
        """
        with torch.inference_mode():
            value = F.relu6(self._stem(_square(pixels)))
            for block in self._blocks:
                if should_stop():
                    raise CancelledError("nobody waits for this picture any more")
                value = _run_block(block, value)
            value = F.relu6(self._head(value)).mean(dim=(2, 3))
            scores = F.linear(value, *self._fc)[0].softmax(dim=0)
        probabilities: NDArray[np.float32] = scores.numpy()
        return probabilities


def named(probabilities: NDArray[np.float32], labels: Sequence[str]) -> Naming | None:
    """The surest of ``labels``, or its family where only that is sure, or None."""
    best = int(probabilities.argmax())
    if probabilities[best] >= SURE_OF_KIND:
        return Naming(labels[best], float(probabilities[best]))
    families = {
        family: float(sum(probabilities[slice(*run)].sum() for run in runs))
        for family, runs in FAMILIES.items()
    }
    family = max(families, key=lambda name: families[name])
    if families[family] >= SURE:
        return Naming(family, min(1.0, families[family]))
    if probabilities[best] >= SURE:
        return Naming(labels[best], float(probabilities[best]))
    return None


def read_labels() -> tuple[str, ...]:
    """ImageNet's kinds in the order of the network's outputs."""
    text = (Path(__file__).parent / "imagenet_labels.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if not line.startswith("#"))


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's padding "same" of one axis: before and after, the odd one after."""
    total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
    return total // 2, total - total // 2


def _square(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """The middle of a picture as the network's input [1, 3, 224, 224]."""
    height, width = pixels.shape[:2]
    side = max(1, round(min(height, width) * BORDER))
    top, left = (height - side) // 2, (width - side) // 2
    middle = pixels[top : top + side, left : left + side]
    method = cv2.INTER_AREA if side > SIDE else cv2.INTER_CUBIC
    small = cv2.resize(middle, (SIDE, SIDE), interpolation=method)
    scaled = (small.astype(np.float32) - MEAN) / STD
    return torch.from_numpy(scaled).permute(2, 0, 1)[None]


def _run_block(block: tuple[_Convolution, ...], value: torch.Tensor) -> torch.Tensor:
    """An inverted residual: wider, over the neighbours, narrower again."""
    *inner, project = block
    result = value
    for convolution in inner:
        result = F.relu6(convolution(result))
    result = project(result)
    return result + value if result.shape == value.shape else result


def _network(
    weights: Mapping[str, torch.Tensor],
) -> tuple[_Convolution, list[tuple[_Convolution, ...]], _Convolution]:
    """Stem, blocks and head out of the file's names."""

    def folded(convolution: str, norm: str, stride: int = 1, groups: int = 1) -> _Convolution:
        scale = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + EPSILON).sqrt()
        weight = weights[f"{convolution}.weight"] * scale[:, None, None, None]
        bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
        return _Convolution(
            weight.contiguous(memory_format=torch.channels_last), bias, stride, groups
        )

    blocks = []
    strides = [s if n == 0 else 1 for count, s in _STAGES for n in range(count)]
    for number, stride in enumerate(strides):
        at = f"_blocks.{number}."
        channels = len(weights[f"{at}_depthwise_conv.weight"])
        expand = [folded(f"{at}_expand_conv", f"{at}_bn0")] if number else []
        depthwise = folded(f"{at}_depthwise_conv", f"{at}_bn1", stride, channels)
        project = folded(f"{at}_project_conv", f"{at}_bn2")
        blocks.append((*expand, depthwise, project))
    return folded("_conv_stem", "_bn0", stride=2), blocks, folded("_conv_head", "_bn1")
