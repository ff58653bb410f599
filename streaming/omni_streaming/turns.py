"""When the user's turn starts, pauses and ends.

Called by :mod:`omni_streaming.session` with one frame (512 samples at 16 kHz, 32 ms) after the
other, each with its speech probability. Time is samples; there is no other clock here.

A turn starts after ``min_speech_ms`` of speech, or ``barge_in_speech_ms`` while the assistant is
heard, when in addition the sound has to pass :mod:`omni_streaming.interruption`. It pauses after
``speculate_after_ms`` of silence, and ends after the silence that the mode asks for.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto

import numpy as np
from numpy.typing import NDArray

from omni.config import TurnConfig
from omni.types import INPUT_RATE_HZ
from omni_streaming.interruption import InterruptionGate
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
        self._onset: deque[bool] = deque()  # whether a frame is speech
        self._silence_frames = 0
        self._loud_frames = 0
        self._score: float | None = None

    def reset(self) -> None:
        """Forget the turn, open or beginning."""
        self.is_speaking = self.is_paused = False
        self._onset.clear()
        self._gate.forget_onset()
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
        is_speech = probability >= self._detection.threshold
        if is_assistant_heard:
            self._onset.clear()
            needed = -(-self._config.barge_in_speech_ms // FRAME_MS)
            if not self._gate.hears_words(frame, is_speech, echo_source_db, needed):
                return None
            return self._start(self._gate.onset_frames)
        self._gate.forget_onset()
        needed = max(-(-self._config.min_speech_ms // FRAME_MS), 1)
        self._onset.append(is_speech)
        while self._onset and (len(self._onset) > needed + ONSET_GAP_FRAMES or not self._onset[0]):
            self._onset.popleft()
        if not is_speech or sum(self._onset) < needed:
            return None
        return self._start(len(self._onset))

    def _start(self, onset_frames: int) -> Signal:
        self.onset_frames = onset_frames
        self.reset()
        self._gate.reset()
        self.is_speaking = True
        return Signal.STARTED

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
