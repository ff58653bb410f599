"""Writes the CTranslate2 format that the product only reads; for tests."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

KINDS = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}


def _string(text: str) -> bytes:
    raw = text.encode() + b"\0"
    return struct.pack("<H", len(raw)) + raw


def serialise(
    arrays: Mapping[str, np.ndarray],
    aliases: Mapping[str, str],
    *,
    spec: str = "WhisperSpec",
    version: int = 6,
) -> bytes:
    out = [struct.pack("<I", version), _string(spec), struct.pack("<II", 3, len(arrays))]
    for name, array in arrays.items():
        out += [_string(name), struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)]
        out += [struct.pack("<BI", KINDS[array.dtype.name], array.nbytes), array.tobytes()]
    out.append(struct.pack("<I", len(aliases)))
    out += [_string(alias) + _string(name) for alias, name in aliases.items()]
    return b"".join(out)


def write(path: Path, arrays: Mapping[str, np.ndarray], aliases: Mapping[str, str]) -> None:
    path.write_bytes(serialise(arrays, aliases))
