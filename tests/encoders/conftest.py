"""Speech and weights shared by the encoder tests."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from audio_samples import Audio, Say
from omni_encoders.audio import StreamingRecogniser
from omni_encoders.recogniser import Recogniser
from omni_encoders.vad import VoiceActivity
from scipy.signal import resample_poly

from omni.config import Config, home


@pytest.fixture(scope="session")
def say() -> Say:
    """Speak a sentence with the default voice: float32 at 16 kHz, the same on every call."""
    from hibari import Hibari

    voice = Hibari()

    @lru_cache
    def speak(text: str) -> Audio:
        return np.asarray(resample_poly(voice(text, seed=1), 2, 3), dtype=np.float32)

    return speak


@pytest.fixture(scope="session")
def models() -> Path:
    """The model store; tests that use it are marked ``weights``."""
    return home(Config()) / "models"


@pytest.fixture(scope="session")
def recogniser(models: Path) -> Recogniser:
    return Recogniser(models / "whisper-base", threads=1)


@pytest.fixture(scope="session")
def voice() -> VoiceActivity:
    return VoiceActivity()


@pytest.fixture(scope="session")
def hearing(recogniser: Recogniser, voice: VoiceActivity) -> StreamingRecogniser:
    return StreamingRecogniser(recogniser, voice)
