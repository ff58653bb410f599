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
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, QK_K, GGMLQuantizationType
from gguf.quants import Q4_K, dequantize
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
    """A matrix in groups of 32 columns.

    A value is code times scale, the codes of ``bits`` on both sides of 0; with ``offsets`` a value
    is code times scale plus offset, the codes from 0 on.
    """

    codes: NDArray[np.int8]  # [rows, columns]
    scales: NDArray[np.float16]  # [rows, columns / 32]
    bits: Bits
    offsets: NDArray[np.float16] | None = None  # [rows, columns / 32]


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
            raise ModelError(
                f"{self.path} is not a GGUF file (it does not begin with 'GGUF'); name one, or the "
                "folder of a Hugging Face model"
            )
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
        """The matrix in groups, without any loss; of Q4_K and Q5_K up to the rounding of each
        group's scale and offset to float16.

        Returns None where the format has no such form (it must be requantised).

        Raises:
            ModelError: a scale is not finite.
        """
        tensor = self.tensors[name]
        rows, columns = math.prod(tensor.shape[:-1]), tensor.shape[-1]
        if tensor.kind in _SUPERBLOCKS:
            groups = _superblocks(self.raw(name).reshape(rows, columns // QK_K, -1), tensor.kind)
        elif tensor.kind in _BLOCKS:
            groups = _blocks(self.raw(name).reshape(rows, columns // GROUP, -1), tensor.kind)
        else:
            return None
        for numbers in (groups.scales, groups.offsets):
            if numbers is not None:
                _check_finite(numbers, name, self.path)
        return groups


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


_BLOCKS: dict[GGMLQuantizationType, tuple[Bits, bool]] = {
    GGMLQuantizationType.Q8_0: (8, False),
    GGMLQuantizationType.Q5_0: (5, False),
    GGMLQuantizationType.Q4_0: (4, False),
    GGMLQuantizationType.Q5_1: (5, True),
    GGMLQuantizationType.Q4_1: (4, True),
}
"""Formats whose blocks are groups: bits of a code, and whether an offset follows the scale."""

_SUPERBLOCKS: dict[GGMLQuantizationType, Bits] = {
    GGMLQuantizationType.Q5_K: 5,
    GGMLQuantizationType.Q4_K: 4,
}
"""Formats of 8 groups under a common scale and offset, which 6 bits per group multiply."""


def _blocks(blocks: NDArray[np.uint8], kind: GGMLQuantizationType) -> Groups:
    """[rows, groups, bytes]: scale, offset if there is one, fifth bits if there are, the rest."""
    bits, has_offsets = _BLOCKS[kind]
    at = 4 if has_offsets else 2
    numbers = np.ascontiguousarray(blocks[..., :at]).view(np.float16)  # [rows, groups, 1 or 2]
    scales, offsets = numbers[..., 0], numbers[..., 1] if has_offsets else None
    body = blocks[..., at:]
    if bits == 8:
        codes = np.ascontiguousarray(body).view(np.int8)
    else:
        unsigned = _nibbles(body[..., -GROUP // 2 :])
        if bits == 5:
            unsigned |= np.unpackbits(body[..., :4], axis=-1, bitorder="little") << 4
        codes = unsigned.view(np.int8) - np.int8(0 if has_offsets else 1 << (bits - 1))
    return Groups(codes.reshape(len(blocks), -1), scales, bits, offsets)


def _superblocks(blocks: NDArray[np.uint8], kind: GGMLQuantizationType) -> Groups:
    """[rows, superblocks, bytes]: scale, offset, 8 times 6 + 6 bits, fifth bits, nibbles."""
    rows, bits = len(blocks), _SUPERBLOCKS[kind]
    common = np.ascontiguousarray(blocks[..., :4]).view(np.float16).astype(np.float32)
    parts = Q4_K.get_scale_min(np.ascontiguousarray(blocks[..., 4:16]).reshape(-1, 12))
    factors = np.stack([part.reshape(rows, -1, 8) for part in parts], axis=-1)
    with np.errstate(over="ignore"):
        numbers = (common[:, :, None] * factors * np.array([1, -1], np.float32)).astype(np.float16)
    numbers = numbers.reshape(rows, -1, 2)
    # Each run of 32 bytes holds two groups, one in the lower nibbles and one in the upper.
    pairs = blocks[..., -QK_K // 2 :].reshape(rows, -1, 1, GROUP)
    unsigned = np.concatenate([pairs & 0x0F, pairs >> 4], axis=2).reshape(rows, -1, 8, GROUP)
    if bits == 5:
        fifth = blocks[..., 16 : 16 + GROUP].reshape(rows, -1, 1, GROUP)
        unsigned |= (fifth >> np.arange(8, dtype=np.uint8)[:, None] & 1) << 4
    return Groups(unsigned.view(np.int8).reshape(rows, -1), numbers[..., 0], bits, numbers[..., 1])


def _nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[..., 16] bytes -> [..., 32] nibbles: low ones are columns 0..15, high ones 16..31."""
    return np.concatenate([packed & 0x0F, packed >> 4], axis=-1)
