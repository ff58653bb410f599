"""Checkpoint tensors to the stack's parameters; missing and extra names are errors.

A family says which checkpoint tensors make up each parameter (:class:`Entry`); here they are
checked, read and either kept as fp32 or brought to groups of 4, 5 or 8 bits. Called by
:mod:`omni.models.loading`; knows no family.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from omni_kernels.linear import GROUP
from safetensors import SafetensorError, safe_open

from omni.errors import ModelError
from omni.models.gguf_file import Groups, quantise
from omni.models.parameters import Parameter

_BLOCK_ROWS = 4096
_FLOATS = ("F64", "F32", "F16", "BF16")
"""Number types of safetensors that mean what they say: the others come with scales elsewhere."""
_INDEX = "model.safetensors.index.json"

Rows = range | tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """``b`` [rows, rank] times ``a`` [rank, columns], fp32, both in the stack's order."""

    a: NDArray[np.float32]
    b: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of one checkpoint tensor of ``shape``.

    Three dimensions and more are read as a matrix with the last one's columns. ``rows`` of it are
    taken in that order (None: all), then its ``columns`` are put in theirs. ``added`` comes on top.
    """

    name: str
    shape: tuple[int, ...]
    rows: Rows | None = None
    columns: tuple[int, ...] | None = None
    change: Literal["none", "plus one", "log of the negative"] = "none"
    added: LowRank | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A parameter of the stack: the rows of its pieces, one after another.

    A ``plain`` one stays fp32, a ``matrix`` may be packed, ``rows`` are a table to look up.
    """

    target: str
    kind: Literal["plain", "matrix", "rows"]
    pieces: tuple[Piece, ...]


class Checkpoint(Protocol):
    """Named tensors on disk; more than two dimensions are a matrix with the last one's columns."""

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

    def groups(self, name: str) -> Groups | None:
        """The matrix in groups without loss, or None where that is impossible."""
        ...


class SafetensorsFolder:
    """A Hugging Face folder: ``model.safetensors``, or the files that its index names.

    ``files`` are what the weights are read from.

    Raises:
        ModelError: no such file, one is missing, or one is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = _weight_files(path)
        self._files: dict[str, Any] = {}  # safe_open has no types
        for file in self.files:
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
        part = self._files[name].get_slice(name)
        if part.get_dtype() not in _FLOATS:
            raise ModelError(
                f"tensor {name} of {self.path} holds {part.get_dtype()} numbers, expected one of "
                f"{', '.join(_FLOATS)}: take a checkpoint that is not quantised"
            )
        shape = part.get_shape()
        depth = math.prod(shape[1:-1])  # rows of the matrix in one entry of the first dimension
        last = shape[0] * depth if last is None else min(last, shape[0] * depth)
        begin = first // depth
        values = part[begin : -(-last // depth)].to(torch.float32)
        if len(shape) > 2:
            values = values.reshape(-1, shape[-1])[first - begin * depth : last - begin * depth]
        if not torch.isfinite(values).all():
            raise ModelError(
                f"tensor {name} of {self.path} holds NaN or infinity; take another checkpoint"
            )
        array: NDArray[np.float32] = values.numpy()
        return array

    def groups(self, name: str) -> Groups | None:
        return None


def _weight_files(path: Path) -> list[Path]:
    index = path / _INDEX
    if not index.exists():
        single = path / "model.safetensors"
        files = [single] if single.exists() else sorted(path.glob("*.safetensors"))
        if not files:
            pickled = next(path.glob("*.bin"), None)
            hint = f", only {pickled.name}: save it as safetensors" if pickled else ""
            raise ModelError(f"{path} holds no *.safetensors file{hint}")
        return files
    try:
        named = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        files = [path / name for name in named]
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is damaged: {error!r}; fetch it again") from error
    if missing := [file.name for file in files if not file.exists()]:
        raise ModelError(
            f"{path} lacks {', '.join(missing)} of the {len(files)} files that {_INDEX} names; "
            "fetch what is missing"
        )
    return files


def read_hf_config(folder: Path) -> dict[str, object]:
    """``config.json`` of a Hugging Face folder."""
    file = folder / "config.json"
    if not file.exists() and (found := sorted(folder.glob("*.gguf"))):
        raise ModelError(f"{folder} holds {len(found)} models: name one, for example {found[0]}")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot read {file}: {error}; fetch it again") from error
    if not isinstance(config, dict):
        raise ModelError(f"{file} is not a JSON object; fetch it again")
    return config


def check(plan: Iterable[Entry], checkpoint: Checkpoint, ignored: tuple[str, ...] = ()) -> None:
    """Raise :class:`ModelError` unless the checkpoint holds just what the plan needs.

    Names that begin with one of ``ignored`` may be there too. A dimension of 1 may be left out.
    """
    wanted = {piece.name: piece.shape for entry in plan for piece in entry.pieces}
    present = set(checkpoint.names)
    if missing := sorted(wanted.keys() - present):
        raise ModelError(
            f"{checkpoint.path} lacks {_some(missing)}, which its description asks for; "
            "fetch it again"
        )
    if extra := sorted(name for name in present - wanted.keys() if not name.startswith(ignored)):
        raise ModelError(
            f"{checkpoint.path} holds {_some(extra)}, which this architecture does not have; "
            "take the model as it was published"
        )
    for name, shape in wanted.items():
        if _without_ones(checkpoint.shape(name)) != _without_ones(shape):
            raise ModelError(
                f"tensor {name} of {checkpoint.path} has the shape {list(checkpoint.shape(name))}, "
                f"expected {list(shape)}: its description is of another model"
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
    return np.concatenate([_dense_piece(piece, checkpoint) for piece in entry.pieces])


def _dense_piece(piece: Piece, checkpoint: Checkpoint) -> NDArray[np.float32]:
    first, last, order = _span(piece.rows)
    values = checkpoint.dense(piece.name, first, last)
    if order is not None:
        values = values[order]
    if piece.columns is not None:
        values = np.ascontiguousarray(values[:, piece.columns])
    if piece.change == "plus one":
        values = values + np.float32(1.0)
    elif piece.change == "log of the negative":
        if not (values < 0).all():
            raise ModelError(f"tensor {piece.name} of {checkpoint.path} has values of 0 or above")
        values = np.log(-values)
    if piece.added is not None:
        values = values + piece.added.b @ piece.added.a
    return values


def quantised_entry(entry: Entry, checkpoint: Checkpoint) -> Groups:
    """One matrix in groups: exact where the checkpoint's format allows, else rounded to 8 bits.

    It has as many bits as the widest of its pieces, and offsets if it is a matrix and all have.
    """
    parts = [_exact(piece, checkpoint) or _requantised(piece, checkpoint) for piece in entry.pieces]
    if entry.kind == "rows" or any(part.offsets is None for part in parts):
        parts = [
            part if part.offsets is None else _requantised(piece, checkpoint)
            for part, piece in zip(parts, entry.pieces, strict=True)
        ]
    offsets = [part.offsets for part in parts if part.offsets is not None]
    return Groups(
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scales for part in parts]),
        max(part.bits for part in parts),
        np.concatenate(offsets) if offsets else None,
    )


def _exact(piece: Piece, checkpoint: Checkpoint) -> Groups | None:
    """The piece from the checkpoint's own groups; None where it has none or they are torn up."""
    groups = None
    if piece.added is not None:
        return None
    if piece.columns is not None:
        blocks = np.array(piece.columns).reshape(-1, GROUP)
        groups = blocks[:, 0] // GROUP
        if (blocks != groups[:, None] * GROUP + np.arange(GROUP)).any():
            return None
    exact = checkpoint.groups(piece.name)
    if exact is None:
        return None
    first, last, order = _span(piece.rows)

    def chosen(part: NDArray[Any], columns: NDArray[Any] | tuple[int, ...] | None) -> NDArray[Any]:
        part = part[first:last] if order is None else part[first:last][order]
        return part if columns is None else part[:, columns]

    return Groups(
        chosen(exact.codes, piece.columns),
        chosen(exact.scales, groups),
        exact.bits,
        None if exact.offsets is None else chosen(exact.offsets, groups),
    )


def _requantised(piece: Piece, checkpoint: Checkpoint) -> Groups:
    """A matrix rounded to int8 groups, a block of rows at a time: fp32 would fill the memory."""
    if piece.shape[-1] % GROUP:
        raise ModelError(
            f"tensor {piece.name} of {checkpoint.path} has {piece.shape[-1]} columns, int8 groups "
            f"need a multiple of {GROUP}"
        )
    assert piece.change == "none", "only plain numbers are changed"
    first, last, order = _span(piece.rows)
    if last is None:
        last = math.prod(piece.shape[:-1])
    if piece.added is not None:
        whole, order = _dense_piece(piece, checkpoint), None  # one module, so not very large
        parts = (whole[at : at + _BLOCK_ROWS] for at in range(0, len(whole), _BLOCK_ROWS))
    else:
        runs = (range(at, min(last, at + _BLOCK_ROWS)) for at in range(first, last, _BLOCK_ROWS))
        parts = (_dense_piece(replace(piece, rows=run), checkpoint) for run in runs)
    blocks = [quantise(part) for part in parts]
    codes, scales = (np.concatenate(part) for part in zip(*blocks, strict=True))
    if not np.isfinite(scales).all():
        raise ModelError(
            f"tensor {piece.name} of {checkpoint.path} has values too large for int8 groups"
        )
    if order is not None:
        codes, scales = codes[order], scales[order]
    return Groups(codes, scales, 8)


def _span(rows: Rows | None) -> tuple[int, int | None, NDArray[np.int64] | None]:
    """First row, end, and the order within them (None: as they are) of a piece's rows."""
    if rows is None:
        return 0, None, None
    if isinstance(rows, range):
        assert rows.step == 1, "a range of rows has no gaps"
        return rows.start, rows.stop, None
    order = np.array(rows)
    first = int(order.min())
    return first, int(order.max()) + 1, order - first


def unpaired_rows(heads: int, dim: int) -> tuple[int, ...]:
    """Rows of a matrix whose heads' rotary pairs lie side by side, in the stack's order.

    llama.cpp stores the query and key rows of llama models as (0, K/2, 1, K/2 + 1, ...); the stack
    pairs row i with row i + K/2.
    """
    paired = np.arange(heads * dim).reshape(heads, dim // 2, 2)
    return tuple(paired.swapaxes(1, 2).ravel().tolist())


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _some(names: Sequence[str]) -> str:
    listed = ", ".join(names[:3])
    return listed if len(names) <= 3 else f"{listed} and {len(names) - 3} more tensors"
