"""When the user's turn starts, pauses and ends; which sounds may interrupt the assistant.

Called by :mod:`omni_streaming.session` with one frame (512 samples at 16 kHz, 32 ms) after the
other, each with its speech probability. Time is samples; there is no other clock here.

A turn starts after ``min_speech_ms`` of speech, or ``barge_in_speech_ms`` while the assistant is
heard, when in addition the sound has to pass :class:`InterruptionGate`. It pauses after
``speculate_after_ms`` of silence, and ends after the silence that the mode asks for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from omni.config import TurnConfig
from omni.types import INPUT_RATE_HZ
from omni_streaming.settings import Detection

FRAME_SAMPLES = 512
FRAME_MS = FRAME_SAMPLES * 1000 // INPUT_RATE_HZ

HYSTERESIS = 0.15
"""Silence is a probability this far below the threshold of speech (silero's own rule)."""
RESUME_FRAMES = 2
"""One loud frame in a pause is a click, two are speech."""
ONSET_GAP_FRAMES = 2
"""Unvoiced or quiet frames allowed inside the onset of a turn."""

SHORTEST_WAIT_MS = 200
"""Silence that ends a turn of semantic_vad which surely sounds finished."""
UNFINISHED_SCORE, FINISHED_SCORE = 0.1, 0.9
"""End-of-turn probabilities that mean the longest and the shortest wait; geometric between."""

ECHO_MARGIN_DB = 15.0
"""A sound this far below what the loudspeaker plays is its echo."""
ECHO_HEADROOM_DB = 3.0
"""Margin above the echo that was measured, when it is weaker than ECHO_MARGIN_DB says."""
ECHO_LEARN_FRAMES = 30
"""About a second of playback before a measured echo is trusted."""
HUM_DB = -28.0
"""Energy above 1 kHz re below: a hum with closed lips may stay under it, vowels do not."""
VOICED = 0.5
"""Normalised autocorrelation of a voiced frame; noise (coughs, clicks, keys) stays under it."""
MIN_VOICED_FRAMES = 2
"""Voiced frames that an interruption needs: a cough has none."""
SIBILANT_DB = 12.0
"""Energy above 1 kHz re below of an s, t or sh; the breath of 'mm-hm' stays under it."""
MOVEMENT_DB = 5.5
"""Spectral change that an interruption needs: words move (6.6 to 19 dB RMS within 300 ms for 33
of 35 openings, two synthesisers and human readers), 'mm-hm', 'uh-huh', hums and tones stand still
(under 4 dB)."""
QUIET_DB = 10.0
"""Frames this far below the loudest of the onset say nothing about its spectrum."""


@dataclass(frozen=True, slots=True)
class Sound:
    """What one frame sounds like, beside its speech probability."""

    level_db: float  # re full scale
    high_db: float  # energy above 1 kHz re below
    periodicity: float  # 0..1, of a pitch of 70..400 Hz
    bands_db: NDArray[np.float64]  # [10], mean 0: the shape of the spectrum

    @property
    def is_voiced(self) -> bool:
        return self.periodicity >= VOICED


_SPLIT_BIN = 1000 * 1024 // INPUT_RATE_HZ
_LOW_BIN = 60 * 1024 // INPUT_RATE_HZ
_BAND_EDGES_HZ = (100, 200, 300, 450, 650, 900, 1250, 1700, 2300, 3100, 4200)
_BAND_EDGES = np.array(_BAND_EDGES_HZ) * 1024 // INPUT_RATE_HZ
_BAND_RANGE_DB = 35.0  # what is further below the loudest band is noise
_SHORTEST_PERIOD, _LONGEST_PERIOD = INPUT_RATE_HZ // 400, INPUT_RATE_HZ // 70


def analyse(frame: NDArray[np.float32]) -> Sound:
    """[512] float32 at 16 kHz -> its level, spectral balance and pitch strength."""
    frame = frame - frame.mean()
    energy = float(np.dot(frame, frame))
    level_db = 10 * np.log10(energy / len(frame) + 1e-10)
    if energy < 1e-6 * len(frame):  # -60 dB: nothing to be learnt
        return Sound(float(level_db), 0.0, 0.0, np.zeros(len(_BAND_EDGES) - 1))
    power = np.square(np.abs(np.fft.rfft(frame * np.hanning(len(frame)), 1024)))
    high, low = power[_SPLIT_BIN:].sum(), power[_LOW_BIN:_SPLIT_BIN].sum()
    bands = np.add.reduceat(power[: _BAND_EDGES[-1]], _BAND_EDGES[:-1]) / np.diff(_BAND_EDGES)
    bands_db = 10 * np.log10(bands + 1e-12)
    bands_db = np.maximum(bands_db, bands_db.max() - _BAND_RANGE_DB)
    spectrum = np.square(np.abs(np.fft.rfft(frame, 2 * len(frame))))
    correlation = np.fft.irfft(spectrum)[_SHORTEST_PERIOD:_LONGEST_PERIOD]
    cumulated = np.concatenate([[0.0], np.cumsum(np.square(frame))])
    lags = np.arange(_SHORTEST_PERIOD, _LONGEST_PERIOD)
    head = cumulated[len(frame) - lags]
    tail = cumulated[-1] - cumulated[lags]
    periodicity = np.max(correlation / np.sqrt(head * tail + 1e-12))
    return Sound(
        float(level_db),
        float(10 * np.log10((high + 1e-12) / (low + 1e-12))),
        float(np.clip(periodicity, 0.0, 1.0)),
        bands_db - bands_db.mean(),
    )


def movement_db(sounds: Sequence[Sound]) -> float:
    """Largest spectral distance (RMS over bands) between two telling frames of an onset."""
    loudest = max((s.level_db for s in sounds), default=0.0)
    telling = [
        s.bands_db
        for s in sounds
        if s.level_db > loudest - QUIET_DB and (s.is_voiced or s.high_db > SIBILANT_DB)
    ]
    squares = (np.mean(np.square(a - b)) for a, b in combinations(telling, 2))
    return float(np.sqrt(max(squares, default=0.0)))


class InterruptionGate:
    """Keeps the assistant's echo, hums and coughs from interrupting it.

    The echo floor adapts downwards only: with headphones or an echo canceller the input is quiet
    while the assistant speaks, and a quiet voice may interrupt.
    """

    def __init__(self) -> None:
        self._losses_db: deque[float] = deque(maxlen=2 * ECHO_LEARN_FRAMES)

    def is_voice(self, sound: Sound, source_db: float, is_speech: bool) -> bool:
        """The frame may count as the user's voice; ``source_db`` what the loudspeaker plays."""
        loss_db = source_db - sound.level_db
        if loss_db >= self._margin_db():
            if source_db > -50.0:
                self._losses_db.append(loss_db)
            return False
        return is_speech and sound.high_db > HUM_DB

    def _margin_db(self) -> float:
        if len(self._losses_db) < ECHO_LEARN_FRAMES:
            return ECHO_MARGIN_DB
        loudest = float(np.quantile(np.asarray(self._losses_db), 0.1))
        return max(ECHO_MARGIN_DB, loudest - ECHO_HEADROOM_DB)


class Signal(Enum):
    """What a frame meant for the turn."""

    STARTED = auto()
    PAUSED = auto()  # may be the end: time to speculate
    RESUMED = auto()  # it was not
    STOPPED = auto()


class TurnDetector:
    """Finds turns in frames; one instance per session and turn_detection setting."""

    def __init__(self, detection: Detection, config: TurnConfig) -> None:
        self._detection = detection
        self._config = config
        self._gate = InterruptionGate()
        self.is_speaking = False
        self.is_paused = False
        self.onset_frames = 0
        """Frames from the first one of the onset to the one that started the turn."""
        self._onset: deque[tuple[bool, Sound | None]] = deque()  # (counts as speech, if heard)
        self._silence_frames = 0
        self._loud_frames = 0
        self._score: float | None = None

    def reset(self) -> None:
        """Forget the turn, open or beginning."""
        self.is_speaking = self.is_paused = False
        self._onset.clear()
        self._silence_frames = self._loud_frames = 0
        self._score = None

    def score(self, probability: float) -> Signal | None:
        """How finished the turn sounds, judged on its audio up to the pause; may end it."""
        self._score = probability
        if self.is_paused and not self._loud_frames and self.silence_ms >= self.wait_ms:
            self.reset()
            return Signal.STOPPED
        return None

    @property
    def silence_ms(self) -> int:
        return self._silence_frames * FRAME_MS

    @property
    def wait_ms(self) -> int:
        """Silence that ends the turn, by what is known."""
        detection = self._detection
        if detection.kind == "server_vad":
            return detection.silence_duration_ms
        if self._score is None:
            return detection.longest_wait_ms
        share = (self._score - UNFINISHED_SCORE) / (FINISHED_SCORE - UNFINISHED_SCORE)
        share = min(max(share, 0.0), 1.0)
        longest = detection.longest_wait_ms
        return int(longest * (SHORTEST_WAIT_MS / longest) ** share)

    def push(
        self,
        frame: NDArray[np.float32],
        probability: float,
        *,
        is_assistant_heard: bool = False,
        echo_source_db: float = -100.0,
    ) -> Signal | None:
        """One frame [512] and its speech probability; at most one thing happens.

        ``is_assistant_heard``: the assistant is audible at the client, ``echo_source_db`` the
        loudest level of it whose echo could be in this frame.
        """
        if self.is_speaking:
            return self._in_turn(probability)
        return self._before_turn(frame, probability, is_assistant_heard, echo_source_db)

    def _before_turn(
        self,
        frame: NDArray[np.float32],
        probability: float,
        is_assistant_heard: bool,
        echo_source_db: float,
    ) -> Signal | None:
        counts, sound = probability >= self._detection.threshold, None
        needed_ms = self._config.min_speech_ms
        if is_assistant_heard:
            sound = analyse(frame)
            counts = self._gate.is_voice(sound, echo_source_db, counts)
            needed_ms = self._config.barge_in_speech_ms
        needed = max(-(-needed_ms // FRAME_MS), 1)
        self._onset.append((counts, sound))
        while self._onset and (
            len(self._onset) > needed + ONSET_GAP_FRAMES or not self._onset[0][0]
        ):
            self._onset.popleft()
        is_enough = sum(counted for counted, _ in self._onset) >= needed
        if not (counts and is_enough) or (is_assistant_heard and not self._is_interruption()):
            return None
        self.onset_frames = len(self._onset)
        self.reset()
        self.is_speaking = True
        return Signal.STARTED

    def _is_interruption(self) -> bool:
        """The onset sounds like words, not like a cough or a hum."""
        sounds = [sound for counted, sound in self._onset if counted and sound is not None]
        num_voiced = sum(sound.is_voiced for sound in sounds)
        return num_voiced >= MIN_VOICED_FRAMES and movement_db(sounds) >= MOVEMENT_DB

    def _in_turn(self, probability: float) -> Signal | None:
        if probability >= self._detection.threshold:
            self._loud_frames += 1
        elif probability < self._detection.threshold - HYSTERESIS or self._silence_frames:
            self._loud_frames = 0
        if self._loud_frames >= RESUME_FRAMES or (self._loud_frames and not self._silence_frames):
            was_paused, self.is_paused = self.is_paused, False
            self._silence_frames = 0
            self._score = None
            return Signal.RESUMED if was_paused else None
        if self._silence_frames or probability < self._detection.threshold - HYSTERESIS:
            self._silence_frames += 1
        if self._loud_frames:
            return None  # perhaps the user goes on: one more frame will tell
        if self.is_paused and self.silence_ms >= self.wait_ms:
            self.reset()
            return Signal.STOPPED
        if not self.is_paused and self.silence_ms >= self._config.speculate_after_ms:
            self.is_paused = True
            return Signal.PAUSED
        return None
