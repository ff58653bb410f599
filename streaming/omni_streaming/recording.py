"""A conversation on one time line: what the user said and when the assistant was heard.

Used by :mod:`omni_streaming.client`. Playback is simulated the way a sound card plays: from the
moment audio arrives, back to back, cut at once by an interruption. Does no I/O but :meth:`write`;
times are seconds since the recording began, passed in.
"""

from __future__ import annotations

import wave
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from omni.types import OUTPUT_RATE_HZ

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPEECH_SHARE = 0.02
"""Of the clip's peak (-34 dB): what is quieter at its end is not speech any more."""


@dataclass(slots=True)
class _Segment:
    item_id: str
    start_s: float
    pcm: NDArray[np.int16]

    @property
    def end_s(self) -> float:
        return self.start_s + len(self.pcm) / OUTPUT_RATE_HZ


class Recording:
    """Two tracks of int16 mono at 24 kHz: ``user`` as captured, ``assistant`` as heard."""

    def __init__(self) -> None:
        self._user: list[NDArray[np.int16]] = []
        self._num_user_samples = 0
        self._segments: list[_Segment] = []

    @property
    def user_s(self) -> float:
        """How far the user's track goes."""
        return self._num_user_samples / OUTPUT_RATE_HZ

    @property
    def play_end_s(self) -> float:
        """When everything that has arrived will have been played."""
        return self._segments[-1].end_s if self._segments else 0.0

    def capture(self, pcm: NDArray[np.int16]) -> None:
        """Append ``pcm`` [n] to the user's track."""
        self._user.append(pcm)
        self._num_user_samples += len(pcm)

    def play(self, item_id: str, pcm: NDArray[np.int16], now_s: float) -> float:
        """Play ``pcm`` [n] after what is already playing; returns when it starts to sound."""
        start_s = max(now_s, self.play_end_s)
        self._segments.append(_Segment(item_id, start_s, pcm))
        return start_s

    def cut(self, now_s: float) -> tuple[str, int] | None:
        """Stop playing: (the item that was sounding, its milliseconds played), None if silent."""
        if not self._segments or self.play_end_s <= now_s:
            return None
        item_id = next(s.item_id for s in self._segments if s.end_s > now_s)
        for segment in self._segments:
            kept = max(0, round((now_s - segment.start_s) * OUTPUT_RATE_HZ))
            segment.pcm = segment.pcm[:kept]
        self._segments = [segment for segment in self._segments if len(segment.pcm)]
        num_played = sum(len(s.pcm) for s in self._segments if s.item_id == item_id)
        return item_id, num_played * 1000 // OUTPUT_RATE_HZ

    def tracks(self) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
        """(user [n], assistant [n]), both as long as the longer one."""
        num = max(self._num_user_samples, round(self.play_end_s * OUTPUT_RATE_HZ))
        user, assistant = np.zeros(num, np.int16), np.zeros(num, np.int16)
        if self._user:
            user[: self._num_user_samples] = np.concatenate(self._user)
        for segment in self._segments:
            start = round(segment.start_s * OUTPUT_RATE_HZ)
            piece = segment.pcm[: num - start]
            assistant[start : start + len(piece)] = piece
        return user, assistant

    def write(self, path: Path) -> None:
        """Write both tracks as a stereo WAV file: the user left, the assistant right."""
        write_wav(path, np.stack(self.tracks(), axis=1))


def write_wav(path: Path, pcm: NDArray[np.int16]) -> None:
    """Write ``pcm`` [n] or [n, channels] at 24 kHz.

    Raises:
        OSError: the file cannot be written.
    """
    # Opened here: where wave opens a file itself and cannot, its destructor fails as well.
    with path.open("wb") as stream, wave.open(stream, "wb") as file:
        file.setnchannels(1 if pcm.ndim == 1 else pcm.shape[1])
        file.setsampwidth(2)
        file.setframerate(OUTPUT_RATE_HZ)
        file.writeframes(pcm.astype("<i2").tobytes())


def speech_end_s(pcm: NDArray[np.int16]) -> float:
    """When speech ends in a clip [n] at 24 kHz, to 5 ms, judged by level (for clean clips)."""
    step = OUTPUT_RATE_HZ // 200
    levels = np.abs(pcm[: len(pcm) // step * step].astype(np.int32)).reshape(-1, step).max(1)
    loud = np.flatnonzero(levels > SPEECH_SHARE * levels.max(initial=0))
    return (int(loud[-1]) + 1) * step / OUTPUT_RATE_HZ if len(loud) else 0.0
