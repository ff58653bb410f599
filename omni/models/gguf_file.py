"""Reads a GGUF file: metadata by parsing, tensors by mapping; nothing is copied before it is asked.

Called by :mod:`omni.models.weights`. Knows the container and its block formats, not what the
tensors mean. The ``gguf`` package's own reader builds one numpy view per string, which takes eight
seconds for a vocabulary of 150,000; this one takes a fifth of a second. Its table of block sizes
and its dequantisers are used as they are.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray
from omni_kernels.linear import GROUP, Bits

from omni.errors import ModelError

_MAGIC = b"GGUF"
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i",
    6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_MAX_NAME_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class Groups:
    """A matrix in groups of 32 columns: the codes fit in ``bits``, a value is code times scale."""

    codes: NDArray[np.int8]  # [rows, columns]
    scales: NDArray[np.float16]  # [rows, columns / 32]
    bits: Bits


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """Where one tensor lies. ``shape`` is in row-major order: [rows, columns] for a matrix."""

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


class GGUFFile:
    """A mapped GGUF file: ``metadata`` and ``tensors`` by name.

    Raises:
        ModelError: not a GGUF file, cut short, or of an unknown version or tensor type.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ModelError(f"cannot read the model file {path}: {error}") from error
        self._at = 0
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, GGUFTensor] = {}
        try:
            self._parse()
        except (struct.error, IndexError, UnicodeDecodeError) as error:
            raise ModelError(
                f"{path} is damaged: its header ends or breaks at byte {self._at}; fetch it again"
            ) from error

    def _parse(self) -> None:
        if self._map[:4] != _MAGIC:
            raise ModelError(f"{self.path} is not a GGUF file (it does not begin with 'GGUF')")
        self._at = 4
        version = self._scalar("<I")
        if version not in (2, 3):
            raise ModelError(f"{self.path} is GGUF version {version}; versions 2 and 3 are known")
        num_tensors, num_fields = self._scalar("<Q"), self._scalar("<Q")
        for _ in range(num_fields):
            key = self._string()
            self.metadata[key] = self._value(self._scalar("<I"))
        infos = []
        for _ in range(num_tensors):
            name = self._string()
            dims = [self._scalar("<Q") for _ in range(self._scalar("<I"))]
            infos.append((name, dims, self._scalar("<I"), self._scalar("<Q")))
        alignment = int(self.metadata.get("general.alignment", 32))
        start = -(-self._at // alignment) * alignment
        for name, dims, kind_id, offset in infos:
            try:
                kind = GGMLQuantizationType(kind_id)
            except ValueError:
                raise ModelError(
                    f"tensor {name} of {self.path} has the unknown type {kind_id}"
                ) from None
            block, block_bytes = GGML_QUANT_SIZES[kind]
            num_bytes = math.prod(dims) // block * block_bytes
            if start + offset + num_bytes > len(self._map):
                raise ModelError(
                    f"{self.path} is cut short: {name} ends at byte {start + offset + num_bytes}, "
                    f"the file at {len(self._map)}; fetch it again"
                )
            self.tensors[name] = GGUFTensor(
                name, kind, tuple(reversed(dims)), start + offset, num_bytes
            )

    def _scalar(self, code: str) -> Any:
        value = struct.unpack_from(code, self._map, self._at)[0]
        self._at += struct.calcsize(code)
        return value

    def _string(self) -> str:
        size = self._scalar("<Q")
        if size > _MAX_NAME_BYTES or self._at + size > len(self._map):
            raise IndexError(size)
        text = self._map[self._at : self._at + size].decode("utf-8")
        self._at += size
        return text

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            if kind not in _SCALARS:
                raise IndexError(kind)
            return self._scalar(_SCALARS[kind])
        item, count = self._scalar("<I"), self._scalar("<Q")
        if count > len(self._map):
            raise IndexError(count)
        if item == _STRING:
            return [self._string() for _ in range(count)]
        if item not in _SCALARS:
            raise IndexError(item)
        code = f"<{count}{_SCALARS[item][1]}"
        values = struct.unpack_from(code, self._map, self._at)
        self._at += struct.calcsize(code)
        return list(values)

    @property
    def names(self) -> Collection[str]:
        """Names of all tensors."""
        return self.tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Row-major shape of a tensor."""
        return self.tensors[name].shape

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The tensor's blocks as they lie in the file: [rows, bytes per row], read-only.

        A vector is one row of bytes; more than two dimensions have all but the last as rows.
        """
        tensor = self.tensors[name]
        flat = np.frombuffer(self._map, np.uint8, tensor.num_bytes, tensor.offset)
        return flat.reshape(math.prod(tensor.shape[:-1]), -1)

    def dense(self, name: str, first: int = 0, last: int | None = None) -> NDArray[np.float32]:
        """Rows (of a vector: values) ``first`` to ``last`` of the tensor as float32.

        Raises:
            ModelError: a value is not finite.
        """
        kind, is_vector = self.tensors[name].kind, len(self.tensors[name].shape) == 1
        blocks = self.raw(name) if is_vector else self.raw(name)[first:last]
        values = np.ascontiguousarray(dequantize(blocks, kind), np.float32)
        if is_vector:
            values = values[0, first:last]
        _check_finite(values, name, self.path)
        return values

    def groups(self, name: str) -> Groups | None:
        """The matrix in groups, without any loss.

        Returns None where the format has no such form (it must be requantised).

        Raises:
            ModelError: a scale is not finite.
        """
        tensor = self.tensors[name]
        if tensor.kind not in _EXACT:
            return None
        unpack, bits = _EXACT[tensor.kind]
        rows, columns = math.prod(tensor.shape[:-1]), tensor.shape[-1]
        blocks = self.raw(name).reshape(rows, columns // GROUP, -1)
        scales = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0]
        _check_finite(scales, name, self.path)
        return Groups(unpack(blocks[..., 2:]).reshape(rows, columns), scales, bits)


def quantise(values: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Round a matrix [rows, columns] to int8 with one float16 scale per 32 columns.

    The scale is rounded up to float16 first, so that no code is clipped and each is the nearest one
    under the scale in use. A magnitude beyond 127 * 65504 gives an infinite scale.
    """
    rows, columns = values.shape
    grouped = values.reshape(rows, columns // GROUP, GROUP)
    exact = np.abs(grouped).max(axis=-1) / np.float32(127.0)
    with np.errstate(over="ignore"):
        scales = exact.astype(np.float16)
    below = scales.astype(np.float32) < exact
    scales[below] = np.nextafter(scales[below], np.float16(np.inf))
    wide = scales.astype(np.float32)
    inverse = np.divide(1.0, wide, out=np.zeros_like(wide), where=wide > 0)
    codes = np.rint(grouped * inverse[..., None]).astype(np.int8)
    return codes.reshape(rows, columns), scales


def _check_finite(values: NDArray[Any], name: str, path: Path) -> None:
    if not np.isfinite(values).all():
        raise ModelError(f"tensor {name} of {path} holds NaN or infinity; fetch the file again")


def _nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[..., 16] bytes -> [..., 32] nibbles: low ones are columns 0..15, high ones 16..31."""
    return np.concatenate([packed & 0x0F, packed >> 4], axis=-1)


def _q8_0(body: NDArray[np.uint8]) -> NDArray[np.int8]:
    return np.ascontiguousarray(body).view(np.int8)


def _q4_0(body: NDArray[np.uint8]) -> NDArray[np.int8]:
    return _nibbles(body).view(np.int8) - np.int8(8)


def _q5_0(body: NDArray[np.uint8]) -> NDArray[np.int8]:
    fifth = np.unpackbits(body[..., :4], axis=-1, bitorder="little")
    return (_nibbles(body[..., 4:]) | (fifth << 4)).view(np.int8) - np.int8(16)


_EXACT: dict[GGMLQuantizationType, tuple[Callable[[NDArray[np.uint8]], NDArray[np.int8]], Bits]] = {
    GGMLQuantizationType.Q8_0: (_q8_0, 8),
    GGMLQuantizationType.Q5_0: (_q5_0, 5),
    GGMLQuantizationType.Q4_0: (_q4_0, 4),
}
"""How the bytes after a block's scale become codes, and of how many bits."""
