"""Checkpoint tensors to the stack's parameters; missing and extra names are errors.

A family says which checkpoint tensors make up each parameter (:class:`Entry`); here they are
checked, read and either kept as fp32 or brought to int8 groups. Called by
:mod:`omni.models.loading`; knows no family.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from omni.errors import ModelError
from omni.models.gguf_file import quantise
from omni.models.parameters import Parameter

_BLOCK_ROWS = 4096

Codes = tuple[NDArray[np.int8], NDArray[np.float16]]
"""int8 [rows, columns] and their scales [rows, columns / 32]."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One checkpoint tensor. ``interleaved_heads``: heads whose rotary pairs lie side by side.

    llama.cpp stores the query and key rows of llama models as (0, K/2, 1, K/2 + 1, ...); the stack
    pairs row i with row i + K/2, so such rows are put back into order.
    """

    name: str
    shape: tuple[int, ...]
    interleaved_heads: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """A parameter of the stack: the rows of its pieces, one after another."""

    target: str
    kind: Literal["vector", "matrix", "rows"]
    pieces: tuple[Piece, ...]


class Checkpoint(Protocol):
    """Named tensors on disk."""

    @property
    def path(self) -> Path: ...
    @property
    def names(self) -> Collection[str]: ...
    def shape(self, name: str) -> tuple[int, ...]:
        """Row-major shape."""
        ...

    def dense(self, name: str, first: int = 0, last: int | None = None) -> NDArray[np.float32]:
        """Rows ``first`` to ``last`` as fp32; :class:`ModelError` if a value is not finite."""
        ...

    def groups(self, name: str) -> Codes | None:
        """The matrix as int8 groups without loss, or None where that is impossible."""
        ...


class SafetensorsFolder:
    """A Hugging Face folder: every ``*.safetensors`` file in it.

    Raises:
        ModelError: no such file, or one is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise ModelError(f"{path} holds no *.safetensors file")
        self._files: dict[str, Any] = {}  # safe_open has no types
        for file in files:
            try:
                opened: Any = safe_open(file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{file} is damaged: {error}; fetch it again") from error
            self._files.update(dict.fromkeys(opened.keys(), opened))

    @property
    def names(self) -> Collection[str]:
        return self._files.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._files[name].get_slice(name).get_shape())

    def dense(self, name: str, first: int = 0, last: int | None = None) -> NDArray[np.float32]:
        values = self._files[name].get_slice(name)[first:last].to(torch.float32)
        if not torch.isfinite(values).all():
            raise ModelError(f"tensor {name} of {self.path} holds NaN or infinity")
        array: NDArray[np.float32] = values.numpy()
        return array

    def groups(self, name: str) -> Codes | None:
        return None


def read_hf_config(folder: Path) -> dict[str, object]:
    """``config.json`` of a Hugging Face folder."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {folder / 'config.json'}: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{folder / 'config.json'} is not a JSON object")
    return config


def check(plan: Iterable[Entry], checkpoint: Checkpoint, ignored: Collection[str] = ()) -> None:
    """Raise :class:`ModelError` unless the checkpoint holds just what the plan needs."""
    wanted = {piece.name: piece.shape for entry in plan for piece in entry.pieces}
    present = set(checkpoint.names)
    if missing := sorted(wanted.keys() - present):
        raise ModelError(f"{checkpoint.path} lacks {_some(missing)}")
    if extra := sorted(present - wanted.keys() - set(ignored)):
        raise ModelError(
            f"{checkpoint.path} holds {_some(extra)}, which this architecture does not have"
        )
    for name, shape in wanted.items():
        if checkpoint.shape(name) != shape:
            raise ModelError(
                f"tensor {name} of {checkpoint.path} has the shape {list(checkpoint.shape(name))}, "
                f"expected {list(shape)}"
            )


def read_dense(plan: Iterable[Entry], checkpoint: Checkpoint) -> dict[str, Parameter]:
    """All parameters in fp32, for references and tiny models."""
    shared: dict[tuple[Piece, ...], torch.Tensor] = {}
    for entry in plan:
        if entry.pieces not in shared:
            shared[entry.pieces] = torch.from_numpy(dense_entry(entry, checkpoint))
    return {entry.target: shared[entry.pieces] for entry in plan}


def dense_entry(entry: Entry, checkpoint: Checkpoint) -> NDArray[np.float32]:
    """One parameter in fp32."""
    return np.concatenate(
        [_in_order(checkpoint.dense(piece.name), piece.interleaved_heads) for piece in entry.pieces]
    )


def quantised_entry(entry: Entry, checkpoint: Checkpoint) -> Codes:
    """One matrix as int8 groups: exact where the checkpoint's format allows, else requantised."""
    codes, scales = [], []
    for piece in entry.pieces:
        exact = checkpoint.groups(piece.name)
        part = exact if exact is not None else _requantised(piece, checkpoint)
        codes.append(_in_order(part[0], piece.interleaved_heads))
        scales.append(_in_order(part[1], piece.interleaved_heads))
    return np.concatenate(codes), np.concatenate(scales)


def _requantised(piece: Piece, checkpoint: Checkpoint) -> Codes:
    """A matrix rounded to int8 groups, a block of rows at a time: fp32 would fill the memory."""
    blocks = [
        quantise(checkpoint.dense(piece.name, first, first + _BLOCK_ROWS))
        for first in range(0, piece.shape[0], _BLOCK_ROWS)
    ]
    scales = np.concatenate([block[1] for block in blocks])
    if not np.isfinite(scales).all():
        raise ModelError(
            f"tensor {piece.name} of {checkpoint.path} has values too large for int8 groups"
        )
    return np.concatenate([block[0] for block in blocks]), scales


def _in_order(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Undo llama.cpp's pairing: [heads, K / 2, 2, ...] -> [heads, 2, K / 2, ...] by rows."""
    if not heads:
        return rows
    paired = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(paired.swapaxes(1, 2)).reshape(rows.shape)


def _some(names: Sequence[str]) -> str:
    listed = ", ".join(names[:3])
    return listed if len(names) <= 3 else f"{listed} and {len(names) - 3} more tensors"
