"""LoRA adapters in the format of the ``peft`` package: low-rank matrices added to a model's own.

Called by :mod:`omni.models.loading`, which merges one adapter while it reads the weights. It names
the modules of transformers' model; a family's plan of a Hugging Face checkpoint tells which rows of
the stack those are, so the same adapter fits a GGUF file of the model too.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from omni.errors import ModelError
from omni.models.weights import Entry, LowRank, Piece

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_STEM = "base_model.model."
_TABLE = "model.embed_tokens"  # a tied head is not this module, though it has its weights
_PARTS = {".lora_A.weight": "a", ".lora_B.weight": "b"}
_PLAIN = (
    ("peft_type", "LORA"),
    ("bias", "none"),
    ("use_dora", False),
    ("fan_in_fan_out", False),
    ("modules_to_save", None),
    ("lora_bias", False),
    ("layer_replication", None),
    ("target_parameters", None),
    ("trainable_token_indices", None),
    ("alora_invocation_tokens", None),
    ("use_qalora", False),
    ("use_bdlora", None),
)
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq")
"""Beginnings of initialisations that subtract the first matrices from the model's own weights."""
_FLOATS = ("F64", "F32", "F16", "BF16")


class Adapter:
    """The adapter in a folder; ``files`` are what it is read from.

    Raises:
        ModelError: missing, damaged, or with more than low-rank matrices.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = [path / _CONFIG, path / _WEIGHTS]
        self._config = _read_config(path / _CONFIG)
        self._modules = _read_modules(path / _WEIGHTS)

    def applied(self, plan: Sequence[Entry], described: Sequence[Entry]) -> list[Entry]:
        """``plan`` with the adapter added to the pieces that it changes.

        ``described`` is the plan of the same stack from a Hugging Face checkpoint, whose names the
        adapter uses.

        Raises:
            ModelError: a module that the model does not have, or of another shape.
        """
        left, adapted = dict(self._modules), []
        for entry, names in zip(plan, described, strict=True):
            assert entry.target == names.target, "two plans of one stack agree"
            pieces = list(entry.pieces)
            # Experts may lie in other pieces here than there; no adapter's module is one.
            if entry.kind == "matrix" and len(pieces) == len(names.pieces):
                for at, named in enumerate(names.pieces):
                    module = _module(named.name)
                    if module in self._modules and module != _TABLE:
                        left.pop(module, None)
                        pieces[at] = replace(pieces[at], added=self._added(module, named))
            adapted.append(replace(entry, pieces=tuple(pieces)))
        if left:
            name = min(left)
            raise ModelError(
                f"the adapter {self.path} changes {name}, which this model does not have or does "
                "not let change"
            )
        return adapted

    def _added(self, module: str, piece: Piece) -> LowRank:
        a, b = self._modules[module]
        expected = piece.shape
        if (len(b), a.shape[1]) != expected or b.shape[1] != len(a):
            raise ModelError(
                f"the adapter {self.path} is for another model: {module} is {list(expected)} here, "
                f"its matrices are {list(b.shape)} and {list(a.shape)}"
            )
        rows = slice(None) if piece.rows is None else np.array(piece.rows)
        return LowRank(a, b[rows] * np.float32(self._scale(module, len(a))))

    def _scale(self, module: str, rank: int) -> float:
        said = self._value("rank_pattern", "r", module)
        if said is not None and said != rank:
            raise ModelError(
                f"{self.path / _CONFIG} gives {module} the rank {said}, its matrices have {rank}"
            )
        alpha = self._value("alpha_pattern", "lora_alpha", module)
        is_number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
        if not is_number or not math.isfinite(alpha):
            raise ModelError(f"{self.path / _CONFIG} has lora_alpha {alpha!r}, expected a number")
        return float(alpha) / (rank**0.5 if self._config.get("use_rslora") else rank)

    def _value(self, pattern: str, key: str, module: str) -> Any:
        """What ``pattern``, of regular expressions of the ends of modules' names, has for one.

        Without a match: the value of ``key``.
        """
        given = self._config.get(pattern) or {}
        where = self.path / _CONFIG
        if not isinstance(given, dict):
            raise ModelError(f"{where} has {pattern} = {given!r}, expected an object")
        for expression, value in given.items():
            try:
                if re.fullmatch(rf"(.*\.)?({expression})", module):
                    return value
            except re.error as error:
                raise ModelError(
                    f"{where} has the {pattern} {expression!r}, which is no pattern: {error}"
                ) from error
        return self._config.get(key)


def _module(name: str) -> str:
    """A checkpoint tensor's module, named alike whether a vision encoder is beside the stack."""
    return name.removesuffix(".weight").replace("model.language_model.", "model.", 1)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ModelError(f"{path.parent} is no LoRA adapter: it has no {path.name}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot read the adapter's {path}: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a JSON object")
    for key, expected in _PLAIN:
        value = config.get(key, expected)
        if value != expected and not (value == [] and expected is None):
            raise ModelError(f"{path} has {key} = {value!r}: only {expected!r} is supported")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_CHANGED_BASE):
        raise ModelError(
            f"{path} has init_lora_weights = {start!r}: that changed the model's own weights; "
            "save the adapter with path_initial_model_for_weight_conversion"
        )
    return config


def _read_modules(path: Path) -> dict[str, tuple[Any, Any]]:
    """Module -> its matrices A [rank, inputs] and B [outputs, rank], fp32."""
    parts: dict[str, dict[str, Any]] = {}
    if not path.exists() and (other := path.with_suffix(".bin")).exists():
        raise ModelError(f"{other} is not read: save it as {path.name}")
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (safe_open is no mapping)
                suffix = next((end for end in _PARTS if name.endswith(end)), None)
                if suffix is None or not name.startswith(_STEM):
                    raise ModelError(f"{path} holds {name}, which is no LoRA matrix of a module")
                part = file.get_slice(name)
                shape, kind = part.get_shape(), part.get_dtype()
                if len(shape) != 2 or 0 in shape or kind not in _FLOATS:
                    raise ModelError(
                        f"tensor {name} of {path} has {kind} numbers in the shape {shape}, "
                        "expected floats in a matrix"
                    )
                values = file.get_tensor(name).to(torch.float32)
                if not torch.isfinite(values).all():
                    raise ModelError(f"tensor {name} of {path} holds NaN or infinity")
                module = _module(name.removeprefix(_STEM).removesuffix(suffix))
                parts.setdefault(module, {})[_PARTS[suffix]] = values.numpy()
    except (SafetensorError, OSError) as error:
        raise ModelError(f"cannot read the adapter's {path}: {error}") from error
    if not parts:
        raise ModelError(f"{path} holds no matrices: the adapter changes nothing")
    for module, pair in parts.items():
        if len(pair) != 2:
            raise ModelError(f"{path} has only one of the two matrices of {module}")
    return {module: (pair["a"], pair["b"]) for module, pair in parts.items()}
