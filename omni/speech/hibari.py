"""The default speech decoder: hibari, an 8 MB model for one voice that runs 60 times real time.

Its weights come with the ``hibari-tts`` package; nothing is ever downloaded. The network predicts
a spectrum per 12.5 ms and the package's signal processing makes the waveform. Duration units are
25 ms, exact for every phoneme, and give the alignment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from hibari import dsp
from numpy.typing import NDArray

from omni.speech.clauses import ClausePolicy
from omni.speech.contract import SpeechStream
from omni.speech.onnx import open_session
from omni.speech.phonemes import ASSETS, Phonemizer
from omni.speech.stream import ClauseStream
from omni.speech.voices import check_opening
from omni.types import OUTPUT_RATE_HZ

_DURATIONS = "/CumSum_output_0"  # of hibari.onnx in hibari-tts 0.2.1: summed durations [1, L]
_UNIT_SAMPLES = 2 * dsp.HOP


class HibariDecoder:
    """One voice, ``heart`` (American English)."""

    sample_rate_hz: int = OUTPUT_RATE_HZ
    voices: tuple[str, ...] = ("heart",)

    def __init__(self, session: Any, phonemizer: Phonemizer) -> None:
        self._session = session
        self._phonemizer = phonemizer

    @staticmethod
    def load(folder: Path) -> HibariDecoder:
        """Load from the installed package (``folder`` is not used: the package has the weights).

        Raises:
            ModelError: the package's model file is missing or another version's.
        """
        del folder
        session = open_session(ASSETS / "hibari.onnx", _DURATIONS, num_threads=1)
        return HibariDecoder(session, Phonemizer())

    def open(self, *, voice: str, speed: float = 1.0) -> SpeechStream:
        """Begin an answer (see the contract)."""
        check_opening(voice, speed, self.voices)
        return ClauseStream(self, self._phonemizer, ClausePolicy(), speed)

    def speak(
        self, phonemes: str, *, speed: float, seed: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Phonemes to samples [n] and the sample at which each id ends (see ``Acoustics``)."""
        ids = np.asarray([self._phonemizer.ids(phonemes)], np.int64)
        *spectrum, ends = self._session.run(
            None, {"ids": ids, "speed": np.asarray([speed], np.float32)}
        )
        samples = dsp.synth(*(part[0] for part in spectrum), np.random.default_rng(seed))
        return samples, ends.reshape(-1).astype(np.int64) * _UNIT_SAMPLES
