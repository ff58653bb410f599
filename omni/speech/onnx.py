"""Loads an ONNX acoustic model with one inner tensor made visible: the phonemes' durations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime as ort

from omni.errors import ModelError


def open_session(path: Path, inner_tensor: str, *, num_threads: int) -> Any:
    """An inference session over ``path`` whose last output is ``inner_tensor``.

    Raises:
        ModelError: the file is missing, corrupt, or has no such tensor.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        model = path.read_bytes()
        return ort.InferenceSession(
            model + _output(inner_tensor), options, providers=["CPUExecutionProvider"]
        )
    except OSError as error:
        raise ModelError(f"cannot read the speech model {path}: {error.strerror}") from error
    except Exception as error:  # onnxruntime's errors share no base of their own
        raise ModelError(f"{path} is not the expected speech model: {error}") from error


def _output(name: str) -> bytes:
    """A protobuf message that adds an output: concatenated messages merge (its encoding guide).

    Fields: ``ModelProto.graph`` = 7, ``GraphProto.output`` = 12, ``ValueInfoProto.name`` = 1.
    """
    return _field(7, _field(12, _field(1, name.encode())))


def _field(number: int, payload: bytes) -> bytes:
    assert len(payload) < 128, "one-byte length"
    return bytes([number << 3 | 2, len(payload)]) + payload
