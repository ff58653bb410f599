"""Finds the things of everyday life in a picture: NanoDet 416 over the 80 kinds of COCO.

Pixels go in, :class:`Finding` with boxes and scores come out; what a score is worth, how far away a
thing is and whether it was there before is for :mod:`omni_encoders.eyes`. Stateless.

Every picture is seen twice, once filling the network's square and once with a margin. A small
network is easily fooled, but seldom twice in the same way: of findings whose mean score is at least
0.6 none of 86 was wrong on 55 photos and 16 video frames. Close-ups that fill the picture (a cup,
an apple) are found in the second view only.

The letters of shapes: A anchors (points of the picture that speak for a thing), K kinds of things.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from omni.errors import ModelError
from omni_encoders.nouns import coco_labels
from omni_encoders.tfjs_graph import TfjsGraph

StopCheck = Callable[[], bool]

SIDE = 416
"""Pixels on a side of the square that the network sees."""

STRIDES = (8, 16, 32)
"""Pixels between two anchors, for small, middling and large things."""

NUM_BINS = 11
"""A side's distance from its anchor is a distribution over 0..10 strides."""

MEAN_BGR = (103.53, 116.28, 123.675)
STD_BGR = (57.375, 57.12, 58.395)

VIEWS = (1.0, 0.7)
"""What share of the square's side the picture's longer side takes in each view."""

UNSEEN = 0.15
"""Score of a thing in a view where nothing was found; the least that is looked at in a view."""

LEAST_SCORE = 0.3
"""Mean score of both views below which findings are noise."""

MOST_OVERLAP = 0.5
"""Intersection over union above which two findings of a kind are one thing."""

SAME_OVERLAP = 0.85
"""The same for findings of two kinds: a car that is also taken for a truck."""

MAX_FINDINGS = 50


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing: ``box`` is left, top, right, bottom as shares of the picture; ``score`` is raw."""

    label: str
    score: float
    box: tuple[float, float, float, float]


class Detector:
    """NanoDet over one shared set of weights; threads may share it."""

    def __init__(self, folder: Path) -> None:
        """Open ``nanodet.json`` and ``nanodet.bin`` in ``folder``.

        Raises:
            ModelError: a file is missing or damaged, or it is another network.
        """
        self.labels = coco_labels()
        self._graph = TfjsGraph(folder / "nanodet.json")
        try:
            blank = self._graph.run(torch.zeros(1, 3, SIDE, SIDE))
        except (RuntimeError, IndexError) as error:  # torch's: shapes and axes are weights, too
            reason = str(error).partition("\n")[0]
            raise ModelError(
                f"{folder} is damaged, or another network than NanoDet {SIDE} ({reason})"
            ) from error
        self._outputs: list[tuple[str, str]] = []  # of every stride: scores, sides
        for stride in STRIDES:
            num_anchors = (SIDE // stride) ** 2
            of_stride = {v.shape[2]: k for k, v in blank.items() if v.shape[1] == num_anchors}
            if set(of_stride) != {len(self.labels), 4 * NUM_BINS}:
                raise ModelError(f"{folder} holds another network than NanoDet {SIDE}")
            self._outputs.append((of_stride[len(self.labels)], of_stride[4 * NUM_BINS]))
        self._centres = torch.cat([_centres(stride) for stride in STRIDES])  # [A, 2]
        self._strides = torch.cat(
            [torch.full(((SIDE // stride) ** 2,), float(stride)) for stride in STRIDES]
        )  # [A]

    def find(
        self, pixels: NDArray[np.uint8], should_stop: StopCheck = lambda: False
    ) -> tuple[Finding, ...]:
        """Things in ``pixels`` (RGB [H, W, 3]), the surest first, at most :data:`MAX_FINDINGS`.

        Raises:
            CancelledError: ``should_stop()`` became true between two operations.
        """
        first, second = (self._view(pixels, share, should_stop) for share in VIEWS)
        found: list[Finding] = []
        for finding in sorted(merged(first, second), key=lambda finding: -finding.score):
            if finding.score < LEAST_SCORE or len(found) == MAX_FINDINGS:
                break
            same = overlap(np.asarray(finding.box), _stacked(found)) > SAME_OVERLAP
            if not same.any():
                found.append(finding)
        return tuple(found)

    def _view(
        self, pixels: NDArray[np.uint8], share: float, should_stop: StopCheck
    ) -> list[Finding]:
        """What one view shows, with its own scores from :data:`UNSEEN` up."""
        square, scale, left, top = letterbox(pixels, share)
        outputs = self._graph.run(square, should_stop)
        scores = torch.cat([outputs[name][0] for name, _ in self._outputs])  # [A, K]
        sides = torch.cat([outputs[name][0] for _, name in self._outputs])  # [A, 4 bins]
        best, kinds = scores.max(dim=1)
        chosen = (best >= UNSEEN).nonzero()[:, 0]
        boxes = self._boxes(sides[chosen], chosen).numpy()
        height, width = pixels.shape[:2]
        boxes = (boxes - [left, top, left, top]) / scale / [width, height, width, height]
        found = _best(np.clip(boxes, 0.0, 1.0), best[chosen].numpy(), kinds[chosen].numpy())
        return [Finding(self.labels[kind], score, box) for kind, score, box in found]

    def _boxes(self, sides: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
        """[N, 4 bins] distributions of ``anchors`` [N] as sides in pixels [N, 4]."""
        shares = sides.view(-1, 4, NUM_BINS).softmax(dim=2)
        distances = shares @ torch.arange(NUM_BINS, dtype=torch.float32)  # [N, 4], in strides
        distances *= self._strides[anchors, None]
        centres = self._centres[anchors]
        return torch.cat([centres - distances[:, :2], centres + distances[:, 2:]], dim=1)


def letterbox(
    pixels: NDArray[np.uint8], share: float = 1.0
) -> tuple[torch.Tensor, float, int, int]:
    """RGB [H, W, 3] as the network's input [1, 3, 416, 416], whole and in its proportions.

    Its longer side takes ``share`` of the square's, black is around it.

    Returns:
        The input, what a pixel's coordinate is multiplied with, and the black margin left and top.
    """
    height, width = pixels.shape[:2]
    scale = SIDE * share / max(height, width)
    size = max(1, int(width * scale)), max(1, int(height * scale))
    # Areas where much is thrown away: single samples would flicker with every movement.
    method = cv2.INTER_AREA if scale < 0.5 else cv2.INTER_LINEAR
    small = cv2.resize(pixels, size, interpolation=method)
    left, top = (SIDE - size[0]) // 2, (SIDE - size[1]) // 2
    square = np.zeros((SIDE, SIDE, 3), dtype=np.float32)
    square[top : top + size[1], left : left + size[0]] = small[:, :, ::-1]
    square -= np.asarray(MEAN_BGR, dtype=np.float32)
    square /= np.asarray(STD_BGR, dtype=np.float32)
    # Channels last in memory, as it is: the convolutions are twice as fast so.
    return torch.from_numpy(square).permute(2, 0, 1)[None], scale, left, top


def overlap(one: NDArray[np.floating], others: NDArray[np.floating]) -> NDArray[np.floating]:
    """Intersection over union of ``one`` [4] with each of ``others`` [N, 4]: [N], 0..1."""
    size = np.minimum(one[2:], others[:, 2:]) - np.maximum(one[:2], others[:, :2])
    shared = np.clip(size, 0.0, None).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1) + (one[2:] - one[:2]).prod()
    share: NDArray[np.floating] = shared / np.maximum(areas - shared, 1e-9)
    return share


def _centres(stride: int) -> torch.Tensor:
    """x and y of the anchors of ``stride``, row by row: [A, 2]."""
    along = (torch.arange(SIDE // stride, dtype=torch.float32) + 0.5) * stride
    y, x = torch.meshgrid(along, along, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def merged(first: list[Finding], second: list[Finding]) -> list[Finding]:
    """The findings of two views: those of one kind in one place become one, with the mean score.

    Its box is that of the view where it is surer.
    """
    things: list[Finding] = []
    left_over = list(second)
    for one in first:
        rivals = [other for other in left_over if other.label == one.label]
        shares = overlap(np.asarray(one.box), _stacked(rivals))
        if rivals and shares.max() > MOST_OVERLAP:
            other = rivals[int(shares.argmax())]
            left_over.remove(other)
            box = max(one, other, key=lambda finding: finding.score).box
            things.append(Finding(one.label, (one.score + other.score) / 2, box))
        else:
            things.append(Finding(one.label, (one.score + UNSEEN) / 2, one.box))
    things += [Finding(one.label, (one.score + UNSEEN) / 2, one.box) for one in left_over]
    return things


def _stacked(findings: list[Finding]) -> NDArray[np.float64]:
    """Boxes [N, 4]."""
    return np.asarray([finding.box for finding in findings], dtype=np.float64).reshape(-1, 4)


def _best(
    boxes: NDArray[np.floating], scores: NDArray[np.float32], kinds: NDArray[np.int64]
) -> list[tuple[int, float, tuple[float, float, float, float]]]:
    """Of boxes [N, 4] of the same kind in the same place, the surest: kind, score, box."""
    found = []
    for kind in np.unique(kinds):
        waiting = np.flatnonzero(kinds == kind)
        waiting = waiting[np.argsort(-scores[waiting], kind="stable")]
        while len(waiting):
            first, others = waiting[0], waiting[1:]
            left, top, right, bottom = (float(side) for side in boxes[first])
            found.append((int(kind), float(scores[first]), (left, top, right, bottom)))
            waiting = others[overlap(boxes[first], boxes[others]) <= MOST_OVERLAP]
    found.sort(key=lambda entry: -entry[1])
    return found
