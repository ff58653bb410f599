"""End of turn: does the speech so far sound finished? smart-turn v3 on the last 8 seconds.

The score alone is not enough (95% of finished clips score above 0.5, but so do many that pause):
the session combines it with how long it has been silent.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from omni.errors import ModelError
from omni_encoders.features import HOP_SAMPLES, SAMPLE_RATE_HZ, log_mel, zero_mean_unit_variance

WINDOW_SAMPLES = 8 * SAMPLE_RATE_HZ


class EndOfTurn:
    """smart-turn v3; stateless, safe to share between threads."""

    def __init__(self, folder: Path, *, threads: int = 1) -> None:
        """Load the single ``*.onnx`` file of ``folder``.

        Raises:
            ModelError: no such file, more than one, or unreadable.
        """
        paths = sorted(Path(folder).glob("*.onnx"))
        if len(paths) != 1:
            raise ModelError(
                f"{folder} holds {len(paths)} .onnx files, expected one; run: omni fetch"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Spinning workers would take the core from the backbone between scores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                str(paths[0]), sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors share no base class but Exception
            raise ModelError(f"{paths[0]} is not a readable network: {error}") from error

    def score(self, audio: NDArray[np.float32]) -> float:
        """Probability that the turn ``audio`` [n] (16 kHz) is finished, judged on its last 8 s."""
        window = np.zeros(WINDOW_SAMPLES, dtype=np.float32)
        recent = audio[-WINDOW_SAMPLES:]
        if len(recent):
            window[-len(recent) :] = recent
        mel = log_mel(zero_mean_unit_variance(window), WINDOW_SAMPLES // HOP_SAMPLES)
        (probability,) = self._session.run(None, {"input_features": mel.numpy()[None]})
        return float(probability[0, 0])
