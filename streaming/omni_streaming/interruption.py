"""Which sounds may interrupt the assistant while it speaks: words, not hums, coughs or its echo.

Called by :mod:`omni_streaming.turns` with one frame (512 samples at 16 kHz, 32 ms) after the other
while the assistant is heard. Time is frames; there is no clock and no network here.

Echo is told by level: a sound far below what the loudspeaker plays is its echo. Hums and coughs are
told by the course of the spectrum since the onset: words open the lips (energy above 700 Hz), move
(the spectrum's shape changes) and hiss (s, t, sh); a hum with closed lips does none of it, a cough
has no voice. Five such measures are weighed by a logistic regression at every frame, so that a
clear word interrupts after three frames and a doubtful one when it has become clear.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omni.types import INPUT_RATE_HZ

# --- Echo ----------------------------------------------------------------------------------------

ECHO_MARGIN_DB = 15.0
"""A sound this far below what the loudspeaker plays is its echo."""
ECHO_HEADROOM_DB = 6.0
"""Margin above the echo that was measured, when it is weaker than ECHO_MARGIN_DB says."""
ECHO_WAIT_FRAMES = 22
"""Playback of 0.7 s before the echo is measured: until then it may not have arrived."""
ECHO_LEARN_FRAMES = 16
"""Half a second of measured echo before it is trusted."""
ECHO_MEMORY_FRAMES = 128
"""The loudest echo of the last four seconds counts."""
AUDIBLE_DB = -50.0
"""Quieter playback has no echo worth measuring."""

# --- Words ---------------------------------------------------------------------------------------

ONSET_FRAMES = 16
"""Half a second: what is older says nothing about a sound that begins."""
LEVEL_FRAMES = 32
"""A second: what follows a hum that has ended must not pass for a sound of its own."""
MIN_FRAMES = 3
"""The measures of fewer frames say little."""
MIN_VOICED_FRAMES = 2
"""Voiced frames that an interruption needs: a cough has few or none."""
VOICED = 0.5
"""Normalised autocorrelation of a voiced frame; noise (coughs, clicks, keys) stays under it."""
MAX_VOICED_FRAMES = 10
"""A longer voice is no stronger evidence: one can hum for seconds."""
QUIET_DB = 8.0
"""Voiced frames this far below the loudest of the onset may be background."""
FAINT_DB = 20.0
"""So may unvoiced ones: s and t are weaker than vowels."""

WHISPER_FRAMES = 10
"""So many unvoiced frames with open lips in half a second are no cough but a whisper."""

NUM_FEATURES = 5
WEIGHTS = (-0.021, 0.226, 1.17, 0.556, -0.59)
BIAS = -0.14
"""Of :func:`features`, log odds of words; fitted by ``python -m omni.benchmarks.interruptions``."""
THRESHOLD = 0.0
"""Log odds that interrupt: 4% of hums and 5% of coughs do, and the 95th percentile of words comes
at 292 ms; at 0.75 it would be 3%, 2% and 314 ms."""


@dataclass(frozen=True, slots=True)
class Sound:
    """What one frame sounds like."""

    level_db: float  # re full scale
    periodicity: float  # 0..1, of a pitch of 60..400 Hz
    bands_db: NDArray[np.float64]  # [6] re the lowest band, which holds the pitch

    @property
    def is_voiced(self) -> bool:
        return self.periodicity >= VOICED

    @property
    def openness_db(self) -> float:
        """Energy of 0.7 to 3.5 kHz re below 0.4 kHz: closed lips keep it in."""
        return _sum_db(self.bands_db[2:5])

    @property
    def is_open(self) -> bool:
        return self.openness_db > 0.0

    @property
    def hiss_db(self) -> float:
        """Energy above 2 kHz re below."""
        return _sum_db(self.bands_db[4:]) - _sum_db(self.bands_db[:4])


_FFT_SAMPLES = 1024
_BAND_EDGES_HZ = (80, 400, 700, 1200, 2000, 3500, 8000)
_BAND_EDGES = np.array(_BAND_EDGES_HZ) * _FFT_SAMPLES // INPUT_RATE_HZ
_SHORTEST_PERIOD, _LONGEST_PERIOD = INPUT_RATE_HZ // 400, INPUT_RATE_HZ // 60
_FLOOR_DB = -35.0  # bands this far below the lowest are the microphone's noise
SILENCE_DB = -60.0


def _sum_db(levels_db: NDArray[np.float64]) -> float:
    return float(10 * np.log10(np.sum(10 ** (levels_db / 10))))


def analyse(frame: NDArray[np.float32]) -> Sound:
    """[512] float32 at 16 kHz -> its level, pitch strength and the shape of its spectrum."""
    frame = frame - frame.mean()
    energy = float(np.dot(frame, frame))
    level_db = float(10 * np.log10(energy / len(frame) + 1e-10))
    if level_db < SILENCE_DB:
        return Sound(level_db, 0.0, np.zeros(len(_BAND_EDGES) - 1))
    power = np.square(np.abs(np.fft.rfft(frame * np.hanning(len(frame)), _FFT_SAMPLES)))
    bands_db = 10 * np.log10(np.add.reduceat(power[:-1], _BAND_EDGES[:-1]) + 1e-9)
    return Sound(level_db, _periodicity(frame), np.maximum(bands_db - bands_db[0], _FLOOR_DB))


def _periodicity(frame: NDArray[np.float32]) -> float:
    """Largest normalised autocorrelation at the lag of a pitch."""
    spectrum = np.square(np.abs(np.fft.rfft(frame, 2 * len(frame))))
    correlation = np.fft.irfft(spectrum)[_SHORTEST_PERIOD:_LONGEST_PERIOD]
    cumulated = np.concatenate([[0.0], np.cumsum(np.square(frame))])
    lags = np.arange(_SHORTEST_PERIOD, _LONGEST_PERIOD)
    head = cumulated[len(frame) - lags]
    tail = cumulated[-1] - cumulated[lags]
    return float(np.clip(np.max(correlation / np.sqrt(head * tail + 1e-12)), 0.0, 1.0))


def features(onset: Sequence[Sound], loudest_db: float) -> NDArray[np.float64] | None:
    """[5] measures of the frames of an onset that count as voice; None: too little voice in it.

    ``loudest_db``: the level beside which a frame is loud or quiet.

    In dB: the second most open frame, the most of 400 to 700 Hz (a half-open mouth), the largest
    change of the spectrum's shape, the strongest hiss; and the number of voiced frames.
    """
    voiced = [s for s in onset if s.is_voiced and s.level_db > loudest_db - QUIET_DB]
    if len(voiced) < MIN_VOICED_FRAMES:
        return None
    hisses = [s.hiss_db for s in onset if not s.is_voiced and s.level_db > loudest_db - FAINT_DB]
    openness = sorted(max(s.openness_db, _FLOOR_DB) for s in voiced)
    shapes = np.stack([s.bands_db for s in voiced])
    shapes = np.minimum(shapes, -_FLOOR_DB)
    shapes -= shapes.mean(axis=1, keepdims=True)
    changes = np.square(shapes[:, None] - shapes[None]).mean(axis=2)
    return np.array(
        [
            openness[-2],
            max(s.bands_db[1] for s in voiced),
            np.sqrt(changes.max()),
            np.clip(max(hisses, default=0.0), 0.0, 20.0),
            min(sum(s.is_voiced for s in onset), MAX_VOICED_FRAMES),
        ]
    )


def log_odds(measures: NDArray[np.float64]) -> float:
    """Of words against hums and coughs, given :func:`features`."""
    return float(np.dot(measures, WEIGHTS) + BIAS)


class InterruptionGate:
    """Judges the frames heard while the assistant speaks.

    The echo floor adapts downwards only: with headphones or an echo canceller the input is quiet
    while the assistant speaks, and a quiet voice may interrupt.
    """

    def __init__(self) -> None:
        self._losses_db: deque[float] = deque(maxlen=ECHO_MEMORY_FRAMES)
        self._num_audible = 0
        self._onset: deque[Sound | None] = deque(maxlen=ONSET_FRAMES)  # None: not a voice
        self._levels_db: deque[float] = deque(maxlen=LEVEL_FRAMES)  # of the voice

    def reset(self) -> None:
        """An interruption has begun: were it by echo after all, it has to be learnt anew."""
        self.forget_onset()
        self._losses_db.clear()
        self._num_audible = 0

    def forget_onset(self) -> None:
        """The frames that follow do not belong to the sound so far."""
        self._onset.clear()
        self._levels_db.clear()

    @property
    def loudest_db(self) -> float:
        """Level of the loudest frame of the sound so far."""
        return max(self._levels_db, default=0.0)

    @property
    def onset_frames(self) -> int:
        """Frames since the voice began."""
        return len(self._onset)

    def push(self, frame: NDArray[np.float32], is_speech: bool, source_db: float) -> list[Sound]:
        """Take one frame [512]; the frames of voice since the onset, empty if it is not one.

        ``is_speech`` by voice activity; ``source_db`` the loudest level played whose echo the frame
        could hold.
        """
        sound = analyse(frame)
        is_echo = self._is_echo(sound.level_db, source_db)
        counts = is_speech and not is_echo
        self._onset.append(sound if counts else None)
        self._levels_db.append(sound.level_db if counts else SILENCE_DB)
        while self._onset and self._onset[0] is None:
            self._onset.popleft()
        return [sound for sound in self._onset if sound is not None] if counts else []

    def hears_words(
        self, frame: NDArray[np.float32], is_speech: bool, source_db: float, min_frames: int
    ) -> bool:
        """Take one frame as :meth:`push` does; whether the user now surely speaks."""
        onset = self.push(frame, is_speech, source_db)
        if len(onset) < max(min_frames, MIN_FRAMES):
            return False
        measures = features(onset, self.loudest_db)
        if measures is None:
            return sum(s.is_open and not s.is_voiced for s in onset) >= WHISPER_FRAMES
        return log_odds(measures) >= THRESHOLD

    def _is_echo(self, level_db: float, source_db: float) -> bool:
        loss_db = source_db - level_db
        if loss_db < self._margin_db():
            return False
        self._num_audible = self._num_audible + 1 if source_db > AUDIBLE_DB else 0
        if self._num_audible > ECHO_WAIT_FRAMES:
            self._losses_db.append(loss_db)
        return True

    def _margin_db(self) -> float:
        if len(self._losses_db) < ECHO_LEARN_FRAMES:
            return ECHO_MARGIN_DB
        return max(ECHO_MARGIN_DB, min(self._losses_db) - ECHO_HEADROOM_DB)
