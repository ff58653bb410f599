"""The input audio buffer: client audio to frames, turns and what the assistant is fed.

Called by :mod:`omni_streaming.session`. Positions are samples at 16 kHz since the session began
and only ever grow. With turn detection, audio waits as frames for its speech probability and then
passes through a ring, from which a turn takes its prefix; without, every sample belongs to the
turn that the client will commit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from omni.config import Config
from omni.types import INPUT_RATE_HZ
from omni_streaming.audio import Decoder, Ring, float_to_pcm16
from omni_streaming.settings import Detection, Settings
from omni_streaming.turns import FRAME_SAMPLES, Signal, TurnDetector

RING_S = 15
"""Audio kept from before a turn: the prefix, a manual commit, and the longest held pause (8 s)."""


@dataclass(slots=True)
class Turn:
    """One stretch of user audio that becomes one item; ``id`` is the item's."""

    id: str
    start: int  # position of its first sample
    fed: int  # position up to which the assistant has it
    audio: bytearray = field(default_factory=bytearray)  # int16 16 kHz, for retrieval
    is_announced: bool = False  # by speech_started
    is_held: bool = False  # a speculation rests on what was fed: feed nothing more


class Hearing:
    """The input buffer of one session.

    Args:
        feed: called with (turn, samples [n] float32, position of the first) in order, no gaps.
    """

    def __init__(
        self,
        settings: Settings,
        config: Config,
        new_id: Callable[[str], str],
        feed: Callable[[Turn, NDArray[np.float32], int], None],
    ) -> None:
        self._config = config
        self._new_id = new_id
        self._feed = feed
        self._decoder = Decoder(settings.input_format)
        self._ring = Ring(RING_S * INPUT_RATE_HZ)
        self._frames: deque[NDArray[np.float32] | None] = deque()  # None: cleared after handing out
        self._num_handed = 0
        self._rest: NDArray[np.float32] = np.zeros(0, np.float32)  # less than a frame
        self.turn: Turn | None = None
        """The turn that is open."""
        self.detection: Detection | None = settings.detection
        self.detector = TurnDetector(self.detection, config.turns) if self.detection else None

    @property
    def position(self) -> int:
        """Samples that have passed through: the session's audio clock."""
        return self._ring.end

    @property
    def num_buffered(self) -> int:
        """Samples that a commit would take now."""
        waiting = sum(len(f) for f in self._frames if f is not None) + len(self._rest)
        start = self.turn.start if self.turn else self._ring.start
        return self._ring.end - start + waiting

    def configure(self, settings: Settings) -> Turn | None:
        """Take new settings; returns a turn that is open no longer.

        Without turn detection an open turn, or what is buffered, waits for the client's commit. A
        turn that the client was to commit goes back into the buffer when turn detection begins.
        """
        if settings.input_format != self._decoder.format:
            self._take(self._decoder.flush())
            self._decoder = Decoder(settings.input_format)
        detection = settings.detection
        if detection == self.detection:
            return None
        self.detection = detection
        self.detector = TurnDetector(detection, self._config.turns) if detection else None
        if detection is None:
            self._drain()
            if self.turn is None and self._ring.end > self._ring.start:
                self.open_turn(self._ring.start)
            self.resume()
            return None
        assert self.detector is not None
        if self.turn is None or self.turn.is_announced:
            self.detector.is_speaking = self.turn is not None
            return None
        turn, self.turn = self.turn, None
        return turn

    def append(self, data: bytes) -> None:
        """Take audio in the client's format.

        Raises:
            InputError: bytes that are not whole samples; nothing was taken.
        """
        self._take(self._decoder.push(data))

    def _take(self, samples: NDArray[np.float32]) -> None:
        if self.detector is None:
            if len(samples):
                self._hear(samples)
            return
        samples = np.concatenate([self._rest, samples])
        num_whole = len(samples) // FRAME_SAMPLES * FRAME_SAMPLES
        self._frames.extend(samples[:num_whole].reshape(-1, FRAME_SAMPLES))
        self._rest = samples[num_whole:].copy()

    def _hear(self, samples: NDArray[np.float32]) -> None:
        """Samples of a buffer without turn detection."""
        if self.turn is None:
            self._ring.drop_before(self._ring.end)
            self.open_turn(self._ring.end)
        self._ring.push(samples)
        self._give(samples)

    # --- Frames ----------------------------------------------------------------------------------

    def frames_to_score(self) -> list[NDArray[np.float32]]:
        """Frames not handed out before."""
        handed = [f for i, f in enumerate(self._frames) if i >= self._num_handed and f is not None]
        self._num_handed = len(self._frames)
        return handed

    def next_signal(
        self, probability: float, *, is_assistant_heard: bool, echo_source_db: float
    ) -> Signal | None:
        """Take the probability of the oldest frame handed out; feeds the open turn."""
        assert self._num_handed > 0, "more probabilities than frames"
        self._num_handed -= 1
        frame = self._frames.popleft()
        if frame is None or self.detector is None:
            return None
        self._ring.push(frame)
        return self.detector.push(
            frame,
            probability,
            is_assistant_heard=is_assistant_heard,
            echo_source_db=echo_source_db,
        )

    def _drain(self) -> None:
        """Frames that wait become plain audio of the buffer, their probabilities unwanted."""
        waiting = [f for f in self._frames if f is not None]
        self._forget_frames()
        for samples in (*waiting, self._rest):
            self._ring.push(samples)
            self.listen()  # frame by frame: more may wait than the ring holds
        self._rest = np.zeros(0, np.float32)

    def _forget_frames(self) -> None:
        self._frames = deque([None] * self._num_handed)

    # --- Turns -----------------------------------------------------------------------------------

    def open_turn(self, start: int | None = None) -> Turn:
        """Begin a turn at ``start``; None: at the onset just detected, with its prefix."""
        assert self.turn is None
        is_announced = start is None
        if start is None:
            assert self.detector is not None
            assert self.detection is not None
            onset = self._ring.end - self.detector.onset_frames * FRAME_SAMPLES
            start = onset - self.detection.prefix_padding_ms * INPUT_RATE_HZ // 1000
            start = max(start, self._ring.start)
        self.turn = Turn(self._new_id("item"), start, start, is_announced=is_announced)
        return self.turn

    def listen(self) -> None:
        """Feed the open turn what it has not had, unless a speculation holds it."""
        if self.turn is not None and not self.turn.is_held:
            self._give(self._ring.read(self.turn.fed, self._ring.end))

    def resume(self) -> None:
        """The speculation on the open turn is gone: feed what was held."""
        if self.turn is not None:
            self.turn.is_held = False
            self.listen()

    def _give(self, samples: NDArray[np.float32]) -> None:
        turn = self.turn
        assert turn is not None
        if len(samples):
            self._feed(turn, samples, turn.fed)
            turn.fed += len(samples)
            turn.audio += float_to_pcm16(samples)

    def end_turn(self) -> Turn | None:
        """End the open turn at what has been scored; what was held is kept but never fed."""
        turn, self.turn = self.turn, None
        if turn is not None:
            turn.audio += float_to_pcm16(self._ring.read(turn.fed, self._ring.end))
        self._ring.drop_before(self._ring.end)
        if self.detector is not None:
            self.detector.reset()
        return turn

    def take_all(self) -> Turn:
        """End a turn of everything in the buffer, as the client's commit asks."""
        if self.turn is None:
            self.open_turn(self._ring.start)
        self.resume()
        self._take(self._decoder.flush())
        self._drain()
        turn = self.end_turn()
        assert turn is not None
        return turn

    def clear(self) -> Turn | None:
        """Empty the buffer; returns the turn that was open."""
        waiting = [f for f in self._frames if f is not None]
        self._forget_frames()
        for samples in (*waiting, self._rest):
            self._ring.push(samples)  # the clock goes on
        self._rest = np.zeros(0, np.float32)
        return self.end_turn()

    def close(self) -> None:
        """Let the audio go; nothing is heard any more."""
        self.turn = None
        self._forget_frames()
        self._rest = np.zeros(0, np.float32)
        self._ring = Ring(0)
