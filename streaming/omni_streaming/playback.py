"""The client's loudspeaker as the session imagines it: what plays when, and how loud.

Called by :mod:`omni_streaming.session`. The clock alone says that audio plays in real time from
the moment it was sent, one response after another; a client's report corrects it.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from omni.types import OUTPUT_RATE_HZ

ECHO_DELAY_MS = 700
"""An echo reaches us at most this long after we think that its sound was played: network both
ways, the client's buffers, the room."""

TAIL_MS = 300
"""The client's buffers make its playback end later than ours."""

SILENCE_DB = -100.0
_LEVEL_MS = 32
_LEVEL_SAMPLES = OUTPUT_RATE_HZ * _LEVEL_MS // 1000


class Playback:
    """What the client is playing; times in milliseconds of the session's clock."""

    def __init__(self, now_ms: float) -> None:
        self._now_ms = now_ms
        self._ends_at_ms = now_ms
        self._has_played = False
        self._levels: deque[tuple[float, float]] = deque()  # (plays at ms, dB re full scale)

    def advance(self, now_ms: float) -> None:
        """Time has passed."""
        self._now_ms = now_ms
        while self._levels and self._levels[0][0] < now_ms - ECHO_DELAY_MS - _LEVEL_MS:
            self._levels.popleft()

    def play(self, pcm: bytes) -> float:
        """``pcm`` (int16, 24 kHz) is sent now; returns when it begins to play, in ms."""
        begins_at_ms = max(self._ends_at_ms, self._now_ms)
        samples = np.frombuffer(pcm, "<i2").astype(np.float32) / 32768.0
        for index in range(0, len(samples), _LEVEL_SAMPLES):
            power = float(np.mean(np.square(samples[index : index + _LEVEL_SAMPLES])))
            level_db = 10 * np.log10(power + 1e-10)
            self._levels.append((begins_at_ms + index * 1000 / OUTPUT_RATE_HZ, float(level_db)))
        self._ends_at_ms = begins_at_ms + len(samples) * 1000 / OUTPUT_RATE_HZ
        self._has_played = True
        return begins_at_ms

    def correct(self, remaining_ms: float) -> None:
        """The client says how much of the audio sent is still to be played."""
        shift = self._now_ms + remaining_ms - self._ends_at_ms
        self._ends_at_ms += shift
        self._levels = deque((at + shift, level) for at, level in self._levels)

    def flush(self) -> None:
        """The client has thrown away what it had not played."""
        self._ends_at_ms = min(self._ends_at_ms, self._now_ms)
        self._has_played = False
        self._levels.clear()

    @property
    def is_audible(self) -> bool:
        """The assistant is being heard, by our best knowledge."""
        return self._has_played and self._now_ms < self._ends_at_ms + TAIL_MS

    @property
    def remaining_ms(self) -> float:
        """Audio sent and not yet played."""
        return max(self._ends_at_ms - self._now_ms, 0.0)

    @property
    def echo_source_db(self) -> float:
        """Loudest level whose echo could be arriving now."""
        since = self._now_ms - ECHO_DELAY_MS
        levels = (level for at, level in self._levels if since <= at <= self._now_ms + _LEVEL_MS)
        return max(levels, default=SILENCE_DB)
