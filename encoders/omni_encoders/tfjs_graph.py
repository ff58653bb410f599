"""Reads a TensorFlow.js graph model (JSON topology, float16 weights) and runs it in torch.

Just the operations that a detector converted from ONNX is made of; another one is refused when the
model is opened, not when it first runs. Called by :mod:`omni_encoders.detector`; knows no boxes.

Shapes are those of the graph: the transposes around every convolution are views here, so the memory
stays ``[B, C, H, W]`` throughout and nothing is moved.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from omni.errors import CancelledError, ModelError

StopCheck = Callable[[], bool]
"""Asked between operations; true ends the work with CancelledError."""

Values = list[torch.Tensor]
"""What one node gives; all but a split give one tensor."""

_DTYPES = {"float32": np.float32, "int32": np.int32, "bool": np.bool_}


@dataclass(frozen=True, slots=True)
class _Step:
    """One operation: ``inputs`` name values as (node, number), ``dropped`` those needed no more."""

    name: str
    run: Callable[[Sequence[torch.Tensor]], Values]
    inputs: tuple[tuple[str, int], ...]
    dropped: tuple[str, ...]


class TfjsGraph:
    """A graph with its weights; stateless, so threads may share it."""

    def __init__(self, topology: Path) -> None:
        """Open ``topology``, a ``.json`` with the weight files that it names beside it.

        Raises:
            ModelError: a file is missing, damaged or of another kind, or the graph has an operation
                that is not known here.
        """
        try:
            model = json.loads(topology.read_text(encoding="utf-8"))
            nodes = {node["name"]: node for node in model["modelTopology"]["node"]}
            weights = _read_weights(model["weightsManifest"], topology.parent)
            signature = model["signature"]
            self.output_names = tuple(_node_of(name)[0] for name in signature["outputs"])
            (self._input_name,) = (_node_of(name)[0] for name in signature["inputs"])
        except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"{topology} is no TensorFlow.js graph model that can be read ({error}); "
                "fetch it again"
            ) from error
        self._constants, self._steps = _compile(nodes, weights, self._input_name, self.output_names)

    def run(
        self, value: torch.Tensor, should_stop: StopCheck = lambda: False
    ) -> dict[str, torch.Tensor]:
        """All outputs by name for the one input ``value`` (float32, the shape of the signature).

        Raises:
            CancelledError: ``should_stop()`` became true between two operations.
        """
        values: dict[str, Values] = {self._input_name: [value]}
        with torch.inference_mode():
            for step in self._steps:
                if should_stop():
                    raise CancelledError("nobody waits for this picture any more")
                arguments = [
                    (values[node] if node in values else self._constants[node])[number]
                    for node, number in step.inputs
                ]
                values[step.name] = step.run(arguments)
                for name in step.dropped:
                    del values[name]
        return {name: values[name][0] for name in self.output_names}


def _node_of(reference: str) -> tuple[str, int]:
    """``a/b:1`` is the second value of node ``a/b``."""
    name, _, number = reference.partition(":")
    return name, int(number or 0)


def _read_weights(manifest: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = {}
    for group in manifest:
        data = b"".join((folder / path).read_bytes() for path in group["paths"])
        at = 0
        for entry in group["weights"]:
            stored = np.dtype(entry.get("quantization", entry)["dtype"])
            kind = _DTYPES[entry["dtype"]]
            if stored not in (np.dtype(kind), np.dtype(np.float16)):
                raise ValueError(f"{entry['name']} is stored as {stored}, expected float16")
            count = math.prod(entry["shape"])
            array: NDArray[Any] = np.frombuffer(data, stored, count, at).astype(kind)
            weights[entry["name"]] = torch.from_numpy(array.reshape(entry["shape"]))
            at += count * stored.itemsize
        if at != len(data):
            raise ValueError(f"the weights hold {len(data)} bytes, expected {at}")
    return weights


def _compile(
    nodes: Mapping[str, Mapping[str, Any]],
    weights: Mapping[str, torch.Tensor],
    input_name: str,
    outputs: Sequence[str],
) -> tuple[dict[str, Values], list[_Step]]:
    """Order the nodes, compute once what depends on weights only, drop values after their use."""
    constants: dict[str, Values] = {name: [weight] for name, weight in weights.items()}
    for node in nodes.values():
        if node["op"] == "Conv2D" and (kernel := node["input"][1]) in weights:
            # Laid out as torch reads it, so that the view of it that a convolution takes is whole.
            filters = weights[kernel].permute(3, 2, 0, 1).contiguous()
            constants[kernel] = [filters.permute(2, 3, 1, 0)]
    steps: list[_Step] = []
    for name in _in_order(nodes, outputs):
        node = nodes[name]
        if name == input_name or node["op"] == "Const":
            continue
        inputs = tuple(_node_of(reference) for reference in node.get("input", ()))
        if node["op"] not in _OPERATIONS:
            raise ModelError(f"the graph's {name} is a {node['op']}, which is not known here")
        run = _OPERATIONS[node["op"]](node.get("attr", {}))
        if all(source in constants for source, _ in inputs):
            constants[name] = run([constants[source][number] for source, number in inputs])
        else:
            steps.append(_Step(name, run, inputs, ()))
    last = {source: step.name for step in steps for source, _ in step.inputs}
    kept = set(constants) | set(outputs)
    return constants, [
        _Step(
            step.name,
            step.run,
            step.inputs,
            tuple(s for s, user in last.items() if user == step.name and s not in kept),
        )
        for step in steps
    ]


def _in_order(nodes: Mapping[str, Mapping[str, Any]], outputs: Sequence[str]) -> list[str]:
    """Names of what the outputs need, each behind what it needs itself."""
    order: dict[str, None] = {}
    waiting = list(reversed(outputs))
    while waiting:
        name = waiting[-1]
        needed = [
            source
            for source, _ in map(_node_of, nodes[name].get("input", ()))
            if source not in order
        ]
        if needed and name not in order:
            waiting += needed
        else:
            order[waiting.pop()] = None
    return list(order)


def _pads(value: torch.Tensor) -> list[int]:
    """TensorFlow's [axis, (before, after)] as torch's list, last axis first."""
    return [int(amount) for pair in reversed(value.tolist()) for amount in pair]


def _text(attributes: Mapping[str, Any], key: str) -> str:
    return base64.b64decode(attributes[key]["s"]).decode()


def _ints(attributes: Mapping[str, Any], key: str) -> list[int]:
    return [int(number) for number in attributes[key]["list"]["i"]]


def _spatial(attributes: Mapping[str, Any], key: str) -> tuple[int, int]:
    """Height's and width's share of a [B, H, W, C] attribute."""
    _, height, width, _ = _ints(attributes, key)
    return height, width


def _require_valid(attributes: Mapping[str, Any]) -> None:
    if _text(attributes, "padding") != "VALID" or _text(attributes, "data_format") != "NHWC":
        raise ModelError("the graph has an operation with padding of its own, expected none")


def _convolution(attributes: Mapping[str, Any]) -> Callable[[Sequence[torch.Tensor]], Values]:
    _require_valid(attributes)
    stride = _spatial(attributes, "strides")
    dilation = _spatial(attributes, "dilations")

    def run(arguments: Sequence[torch.Tensor]) -> Values:
        value, kernel = arguments  # [B, H, W, C], [h, w, C, D]
        planes = value.permute(0, 3, 1, 2)
        filters = kernel.permute(3, 2, 0, 1)
        result = F.conv2d(planes, filters, stride=stride, dilation=dilation)
        return [result.permute(0, 2, 3, 1)]

    return run


def _max_pool(attributes: Mapping[str, Any]) -> Callable[[Sequence[torch.Tensor]], Values]:
    _require_valid(attributes)
    size, stride = _spatial(attributes, "ksize"), _spatial(attributes, "strides")

    def run(arguments: Sequence[torch.Tensor]) -> Values:
        planes = arguments[0].permute(0, 3, 1, 2)
        return [F.max_pool2d(planes, size, stride).permute(0, 2, 3, 1)]

    return run


def _resize(attributes: Mapping[str, Any]) -> Callable[[Sequence[torch.Tensor]], Values]:
    if attributes["align_corners"]["b"] or not attributes["half_pixel_centers"]["b"]:
        raise ModelError("the graph resizes by corners, expected half-pixel centres")

    def run(arguments: Sequence[torch.Tensor]) -> Values:
        planes = arguments[0].permute(0, 3, 1, 2)
        size = [int(number) for number in arguments[1]]
        return [F.interpolate(planes, size=size, mode="bilinear").permute(0, 2, 3, 1)]

    return run


def _split(attributes: Mapping[str, Any]) -> Callable[[Sequence[torch.Tensor]], Values]:
    def run(arguments: Sequence[torch.Tensor]) -> Values:
        sizes = [int(size) for size in arguments[1]]
        return list(torch.split(arguments[0], sizes, dim=int(arguments[2])))

    return run


def _sparse_to_dense(attributes: Mapping[str, Any]) -> Callable[[Sequence[torch.Tensor]], Values]:
    def run(arguments: Sequence[torch.Tensor]) -> Values:
        indices, shape, values, default = arguments
        dense = default.expand([int(size) for size in shape]).clone()
        dense[tuple(indices.long().T)] = values
        return [dense]

    return run


def _plain(
    operation: Callable[[Sequence[torch.Tensor]], torch.Tensor],
) -> Callable[[Mapping[str, Any]], Callable[[Sequence[torch.Tensor]], Values]]:
    """An operation without attributes."""
    return lambda attributes: lambda arguments: [operation(arguments)]


def _leaky(attributes: Mapping[str, Any]) -> Callable[[Sequence[torch.Tensor]], Values]:
    slope = float(attributes["alpha"]["f"])
    return lambda arguments: [F.leaky_relu(arguments[0], slope)]


_OPERATIONS: dict[
    str, Callable[[Mapping[str, Any]], Callable[[Sequence[torch.Tensor]], Values]]
] = {
    "Add": _plain(lambda a: a[0] + a[1]),
    "AddV2": _plain(lambda a: a[0] + a[1]),
    "ConcatV2": _plain(lambda a: torch.cat(list(a[:-1]), dim=int(a[-1]))),
    "Conv2D": _convolution,
    "Identity": _plain(lambda a: a[0]),
    "LeakyRelu": _leaky,
    "MaxPool": _max_pool,
    "Pad": _plain(lambda a: F.pad(a[0], _pads(a[1]))),
    "PadV2": _plain(lambda a: F.pad(a[0], _pads(a[1]), value=float(a[2]))),
    "Reshape": _plain(lambda a: a[0].reshape([int(size) for size in a[1]])),
    "ResizeBilinear": _resize,
    "Sigmoid": _plain(lambda a: torch.sigmoid(a[0])),
    "SparseToDense": _sparse_to_dense,
    "SplitV": _split,
    "Transpose": _plain(lambda a: a[0].permute([int(axis) for axis in a[1]])),
}
