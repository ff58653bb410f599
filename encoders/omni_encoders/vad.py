"""Voice activity: silero's network, one shared session, explicit state per stream.

Called on every 32 ms of every stream, so it stays on one thread and copies little.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from omni.errors import ModelError

FRAME_SAMPLES = 512  # 32 ms at 16 kHz
CONTEXT_SAMPLES = 64  # the network also sees the end of the previous frame
_RATE = np.array(16_000, dtype=np.int64)


@dataclass(slots=True)
class VadState:
    """One stream's memory: ``recurrent`` [2, 1, 128] and the frame buffer with its context."""

    recurrent: NDArray[np.float32] = field(
        default_factory=lambda: np.zeros((2, 1, 128), dtype=np.float32)
    )
    window: NDArray[np.float32] = field(
        default_factory=lambda: np.zeros((1, CONTEXT_SAMPLES + FRAME_SAMPLES), dtype=np.float32)
    )


class VoiceActivity:
    """Speech probability per 32 ms frame. Safe to share between threads and streams."""

    def __init__(self, path: Path | None = None) -> None:
        """Load ``path``, else the network in the silero-vad package (whose code is not imported).

        Raises:
            ModelError: the package or its network is missing or unreadable.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        path = path or _packaged_network()
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors share no base class but Exception
            raise ModelError(f"{path} is not a readable voice-activity network: {error}") from error

    def open(self) -> VadState:
        """State of a new stream."""
        return VadState()

    def probability(self, frame: NDArray[np.float32], state: VadState) -> float:
        """Probability that ``frame`` [512] (16 kHz, [-1, 1]) is speech; advances ``state``.

        Raises:
            ValueError: ``frame`` is not 512 samples long.
        """
        if frame.shape != (FRAME_SAMPLES,):
            raise ValueError(f"frame has shape {frame.shape}, expected ({FRAME_SAMPLES},)")
        state.window[0, :CONTEXT_SAMPLES] = state.window[0, -CONTEXT_SAMPLES:]
        state.window[0, CONTEXT_SAMPLES:] = frame
        probability, state.recurrent = self._session.run(
            None, {"input": state.window, "state": state.recurrent, "sr": _RATE}
        )
        return float(probability[0, 0])


def _packaged_network() -> Path:
    spec = find_spec("silero_vad")
    if spec is None or spec.origin is None:
        raise ModelError("package silero-vad is not installed; install it: pip install silero-vad")
    path = Path(spec.origin).parent / "data" / "silero_vad_16k_op15.onnx"
    if not path.is_file():
        raise ModelError(f"{path} is missing; reinstall the package silero-vad")
    return path
