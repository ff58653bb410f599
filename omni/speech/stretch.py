"""Changes the pace of speech without its pitch, where the acoustic model's own range ends.

Waveform-similarity overlap-add (Verhelst and Roelands, ICASSP 1993): windows are taken from the
input at the new pace, each moved by at most one pitch period to where it continues the last one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from omni.types import OUTPUT_RATE_HZ

WINDOW_SAMPLES = OUTPUT_RATE_HZ * 40 // 1000
_HOP = WINDOW_SAMPLES // 2
_SEARCH_SAMPLES = OUTPUT_RATE_HZ * 10 // 1000  # a period of 100 Hz


def stretch(samples: NDArray[np.float32], pace: float) -> NDArray[np.float32]:
    """Play ``samples`` [n] ``pace`` times as fast: [about n / pace], the same pitch."""
    if pace == 1.0 or len(samples) < 2 * WINDOW_SAMPLES:
        return samples
    num_windows = int(len(samples) / pace / _HOP)
    source = np.pad(samples, (_SEARCH_SAMPLES, 2 * WINDOW_SAMPLES + 2 * _SEARCH_SAMPLES))
    window = np.hanning(WINDOW_SAMPLES + 1)[:-1].astype(np.float32)
    out = np.zeros((num_windows + 1) * _HOP, np.float32)
    begin = _SEARCH_SAMPLES
    out[:WINDOW_SAMPLES] += source[begin : begin + WINDOW_SAMPLES] * window
    out[:_HOP] = source[begin : begin + _HOP]  # the first half has no partner
    for index in range(1, num_windows):
        expected = source[begin + _HOP : begin + _HOP + WINDOW_SAMPLES]
        low = int(index * _HOP * pace)  # padding moved the input by _SEARCH_SAMPLES
        region = source[low : low + WINDOW_SAMPLES + 2 * _SEARCH_SAMPLES]
        begin = low + _most_similar(region, expected)
        out[index * _HOP :][:WINDOW_SAMPLES] += source[begin : begin + WINDOW_SAMPLES] * window
    return out


def _most_similar(region: NDArray[np.float32], expected: NDArray[np.float32]) -> int:
    """Offset at which ``expected`` correlates best with ``region``, each place by its energy."""
    products = np.correlate(region[::2], expected[::2], "valid")  # 12 kHz: pitch lives below
    energy = np.convolve(region[::2] ** 2, np.ones(len(expected[::2]), np.float32), "valid")
    return 2 * int(np.argmax(products / np.sqrt(energy + 1e-6)))
