"""Audio for the encoder tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Audio = NDArray[np.float32]
Say = Callable[[str], Audio]

RATE_HZ = 16_000


def silence(seconds: float) -> Audio:
    return np.zeros(int(seconds * RATE_HZ), dtype=np.float32)


def noise(seconds: float, level: float, seed: int = 0) -> Audio:
    """White noise of RMS ``level``."""
    samples = np.random.default_rng(seed).standard_normal(int(seconds * RATE_HZ))
    return np.asarray(samples * level, dtype=np.float32)
