"""Who spoke when, read off a recording by voice activity: the only source of latency figures.

A recording is two tracks on one time line, [n] float32 at 24 kHz: what the user said and what the
assistant was heard saying.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING

import numpy as np
from omni_encoders.vad import VoiceActivity
from scipy.signal import resample_poly

from omni.types import INPUT_RATE_HZ, OUTPUT_RATE_HZ

if TYPE_CHECKING:
    from numpy.typing import NDArray

FRAME_SAMPLES = 512
"""silero's frame at 16 kHz: 32 ms."""
THRESHOLD = 0.5
JOIN_S = 0.25
"""Speech runs closer than this are one."""
QUIET_SHARE = 0.02
"""An edge of speech is where the signal rises above this share of the run's peak (-34 dB): frames
of 32 ms alone would be too coarse for latencies."""


@dataclass(frozen=True, slots=True)
class Run:
    """Speech from ``start_s`` to ``end_s``."""

    start_s: float
    end_s: float


def speech_runs(track: NDArray[np.float32], vad: VoiceActivity) -> list[Run]:
    """Runs of speech in ``track``, edges refined to 5 ms by level."""
    div = gcd(OUTPUT_RATE_HZ, INPUT_RATE_HZ)
    audio = resample_poly(track, INPUT_RATE_HZ // div, OUTPUT_RATE_HZ // div).astype(np.float32)
    state = vad.open()
    count = len(audio) // FRAME_SAMPLES
    frames = audio[: count * FRAME_SAMPLES].reshape(count, FRAME_SAMPLES)
    active = np.array([vad.probability(frame, state) >= THRESHOLD for frame in frames], bool)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], active.astype(np.int8), [0]])))
    frame_s = FRAME_SAMPLES / INPUT_RATE_HZ
    runs: list[Run] = []
    for start, end in edges.reshape(-1, 2):
        if runs and start * frame_s - runs[-1].end_s < JOIN_S:
            runs[-1] = Run(runs[-1].start_s, end * frame_s)
        else:
            runs.append(Run(start * frame_s, end * frame_s))
    return [_refine(track, run) for run in runs]


def _refine(track: NDArray[np.float32], run: Run) -> Run:
    margin_s, step = 0.15, OUTPUT_RATE_HZ // 200
    first = max(0, round((run.start_s - margin_s) * OUTPUT_RATE_HZ))
    last = min(len(track), round((run.end_s + margin_s) * OUTPUT_RATE_HZ))
    piece = np.abs(track[first:last])
    piece = piece[: len(piece) // step * step].reshape(-1, step).max(1)
    loud = np.flatnonzero(piece > QUIET_SHARE * piece.max()) if len(piece) else piece
    if not len(loud):
        return run
    return Run(
        (first + loud[0] * step) / OUTPUT_RATE_HZ, (first + (loud[-1] + 1) * step) / OUTPUT_RATE_HZ
    )
