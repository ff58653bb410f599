"""Reads a CTranslate2 ``model.bin`` (format version 6): how Whisper's weights are stored.

The format is a header (version, spec name, revision) followed by named arrays and aliases; all
integers are little-endian, strings are zero-terminated after their 16-bit length.
Knows nothing of what the arrays mean.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from omni.errors import ModelError

_VERSION = 6
# CTranslate2's DataType enumeration: float32, int8, int16, int32, float16 (bfloat16 has no numpy).
_DTYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}

Array = NDArray[np.generic]


class _Reader:
    """A cursor over the file's bytes that refuses to run past their end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._data: Array = np.memmap(path, dtype=np.uint8, mode="r")
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise ModelError(f"cannot read {path}: {error}; run: omni fetch") from error
        self.position = 0

    def take(self, num_bytes: int) -> Array:
        end = self.position + num_bytes
        if end > len(self._data):
            raise self.corrupt(f"ends at byte {len(self._data)}, expected at least {end}")
        taken = self._data[self.position : end]
        self.position = end
        return taken

    def integer(self, num_bytes: int) -> int:
        return int.from_bytes(self.take(num_bytes).tobytes(), "little")

    def string(self) -> str:
        raw = self.take(self.integer(2)).tobytes()
        try:
            return raw.rstrip(b"\0").decode("ascii")
        except UnicodeDecodeError:
            raise self.corrupt(f"has an unreadable name before byte {self.position}") from None

    def at_end(self) -> bool:
        return self.position == len(self._data)

    def corrupt(self, what: str) -> ModelError:
        return ModelError(f"{self._path} is corrupt ({what}); delete it and run: omni fetch")


def read(path: Path, *, spec: str) -> Mapping[str, Array]:
    """Arrays of ``path`` by name, memory-mapped; aliases point to the same array.

    Raises:
        ModelError: missing, truncated or corrupt file, another format version or another spec.
    """
    reader = _Reader(path)
    version = reader.integer(4)
    if version != _VERSION:
        raise reader.corrupt(f"has format version {version}, expected {_VERSION}")
    found = reader.string()
    if found != spec:
        raise ModelError(f"{path} holds a {found!r} model, expected {spec!r}")
    reader.integer(4)  # revision of the spec: names below decide, not this number
    arrays: dict[str, Array] = {}
    for _ in range(reader.integer(4)):
        name = reader.string()
        shape = struct.unpack(f"<{(rank := reader.integer(1))}I", reader.take(4 * rank).tobytes())
        kind = reader.integer(1)
        num_bytes = reader.integer(4)
        if kind not in _DTYPES:
            raise reader.corrupt(f"array {name!r} has unknown type {kind}")
        dtype = np.dtype(_DTYPES[kind])
        if num_bytes != dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
            raise reader.corrupt(f"array {name!r} of shape {shape} has {num_bytes} bytes")
        arrays[name] = reader.take(num_bytes).view(dtype).reshape(shape)
    for _ in range(reader.integer(4)):
        alias, name = reader.string(), reader.string()
        if name not in arrays:
            raise reader.corrupt(f"alias {alias!r} points to unknown array {name!r}")
        arrays[alias] = arrays[name]
    if not reader.at_end():
        raise reader.corrupt(f"has bytes after its end at {reader.position}")
    return arrays
