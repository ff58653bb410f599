"""The rich speech decoder: Kokoro-82M (int8), 28 English voices, twice real time on two cores.

Reads ``model.onnx`` and ``voices/*.bin`` from the model store. It was trained on the alphabet that
hibari's grapheme-to-phoneme pipeline writes. Duration units are 25 ms, exact for every phoneme.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omni.errors import ModelError
from omni.speech.clauses import ClausePolicy
from omni.speech.contract import SpeechStream
from omni.speech.onnx import open_session
from omni.speech.phonemes import Phonemizer
from omni.speech.stream import ClauseStream
from omni.speech.voices import check_opening
from omni.types import OUTPUT_RATE_HZ

DEFAULT_VOICE = "af_heart"
_DURATIONS = "/encoder/CumSum_output_0"  # of Kokoro-82M's int8 export: summed durations
_UNIT_SAMPLES = 600  # 25 ms
_STYLE_SHAPE = (510, 256)
"""A voice file: one style vector of float32 per number of phonemes, 1 to 510."""

_POLICY = ClausePolicy(first_max_words=6, min_words=4, max_words=12)
"""Half real time: a clause must not take longer to make than the one before takes to play."""


class KokoroDecoder:
    """All English voices found in the store; the default comes first."""

    sample_rate_hz: int = OUTPUT_RATE_HZ

    def __init__(
        self, session: Any, styles: dict[str, NDArray[np.float32]], phonemizer: Phonemizer
    ) -> None:
        self._session = session
        self._styles = styles
        self._phonemizer = phonemizer

    @property
    def voices(self) -> tuple[str, ...]:
        """Voice names: language (a American, b British), gender, then a name."""
        return tuple(sorted(self._styles, key=lambda name: (name != DEFAULT_VOICE, name)))

    @staticmethod
    def load(folder: Path) -> KokoroDecoder:
        """Load from ``folder``.

        Raises:
            ModelError: files are missing or not the known ones.
        """
        paths = sorted((folder / "voices").glob("[ab][fm]_*.bin"))
        if not paths or not (folder / "model.onnx").is_file():
            raise ModelError(
                f"the speech decoder kokoro-82m needs model.onnx and voices/*.bin in {folder}: "
                "run `omni fetch kokoro-82m`"
            )
        styles = {path.stem: _read_style(path) for path in paths}
        session = open_session(folder / "model.onnx", _DURATIONS, num_threads=2)
        return KokoroDecoder(session, styles, Phonemizer())

    def open(self, *, voice: str, speed: float = 1.0) -> SpeechStream:
        """Begin an answer (see the contract)."""
        check_opening(voice, speed, self.voices)
        acoustics = _KokoroVoice(self._session, self._styles[voice], self._phonemizer)
        return ClauseStream(acoustics, self._phonemizer, _POLICY, speed)


class _KokoroVoice:
    def __init__(self, session: Any, styles: NDArray[np.float32], phonemizer: Phonemizer) -> None:
        self._session = session
        self._styles = styles
        self._phonemizer = phonemizer

    def speak(
        self, phonemes: str, *, speed: float, seed: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Phonemes to samples [n] and the sample at which each id ends (see ``Acoustics``)."""
        del seed  # the export has no noise input: equal phonemes give equal samples
        ids = np.asarray([self._phonemizer.ids(phonemes)], np.int64)
        audio, ends = self._session.run(
            None,
            {
                "tokens": ids,
                "style": self._styles[len(phonemes) - 1][None],
                "speed": np.asarray([speed], np.float32),
            },
        )
        return audio.reshape(-1), ends.reshape(-1).astype(np.int64) * _UNIT_SAMPLES


def _read_style(path: Path) -> NDArray[np.float32]:
    """Style vectors [510, 256] of one voice."""
    size = int(np.prod(_STYLE_SHAPE)) * 4
    data = path.read_bytes()
    if len(data) != size:
        raise ModelError(f"{path} has {len(data)} bytes, expected {size}: fetch kokoro-82m again")
    return np.frombuffer(data, "<f4").reshape(_STYLE_SHAPE)
