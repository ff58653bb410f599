from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from checkpoint_writer import serialise
from omni_encoders import checkpoint

from omni.errors import ModelError

ARRAYS = {
    "decoder/weight": np.arange(6, dtype=np.float16).reshape(2, 3),
    "decoder/heads": np.array(8, dtype=np.int16),
    "encoder/bias": np.linspace(0, 1, 5, dtype=np.float32),
}
ALIASES = {"projection/weight": "decoder/weight"}
WHOLE = serialise(ARRAYS, ALIASES)


def read(path: Path, data: bytes) -> dict[str, np.ndarray]:
    path.write_bytes(data)
    return dict(checkpoint.read(path, spec="WhisperSpec"))


def test_arrays_and_aliases_come_back(tmp_path: Path) -> None:
    arrays = read(tmp_path / "model.bin", WHOLE)
    assert set(arrays) == {*ARRAYS, *ALIASES}
    for name, expected in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], expected)
        assert arrays[name].dtype == expected.dtype
    np.testing.assert_array_equal(arrays["projection/weight"], ARRAYS["decoder/weight"])


def test_file_cut_anywhere_is_a_model_error(tmp_path: Path) -> None:
    for length in range(len(WHOLE)):
        with pytest.raises(ModelError, match=r"model\.bin"):
            read(tmp_path / "model.bin", WHOLE[:length])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (WHOLE + b"\0", "bytes after its end"),
        (serialise(ARRAYS, ALIASES, version=5), "format version 5, expected 6"),
        (serialise(ARRAYS, ALIASES, spec="TransformerSpec"), "'TransformerSpec' model"),
        (serialise(ARRAYS, {"a": "b"}), "unknown array 'b'"),
        (WHOLE.replace(b"\x04\x0c\0\0\0", b"\x09\x0c\0\0\0"), "unknown type 9"),
        (WHOLE.replace(b"\x04\x0c\0\0\0", b"\x04\x0b\0\0\0"), "has 11 bytes"),
        (WHOLE.replace(b"decoder/heads", b"decoder/\xff\xfe\xfdds"), "unreadable name"),
        (b"<html>not found</html>" * 10, "format version"),
    ],
)
def test_damage_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read(tmp_path / "model.bin", data)


def test_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="omni fetch"):
        checkpoint.read(tmp_path / "model.bin", spec="WhisperSpec")
