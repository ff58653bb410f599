"""Speech and weights shared by the encoder tests."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from audio_samples import Audio, Say
from omni_encoders.audio import StreamingRecogniser
from omni_encoders.classifier import Classifier
from omni_encoders.detector import Detector
from omni_encoders.eyes import Eyes
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


def _sight(models: Path, name: str) -> Path:
    if not (models / name).is_dir():
        pytest.skip(f"needs {name} in the model store: run `omni fetch`")
    return models / name


@pytest.fixture(scope="session")
def detector(models: Path) -> Detector:
    return Detector(_sight(models, "nanodet-416"))


@pytest.fixture(scope="session")
def classifier(models: Path) -> Classifier:
    return Classifier(_sight(models, "efficientnet-lite0"))


@pytest.fixture(scope="session")
def eyes(models: Path) -> Eyes:
    return Eyes(_sight(models, "nanodet-416"), _sight(models, "efficientnet-lite0"))
