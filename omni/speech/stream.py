"""One answer being spoken: clauses -> speakable text -> phonemes -> samples, with marks.

Shared by the decoders, which differ only in how phonemes become samples (:class:`Acoustics`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from omni.speech.clauses import Clause, ClausePolicy, Splitter
from omni.speech.contract import SpeechChunk
from omni.speech.phonemes import Phonemizer
from omni.speech.speakable import announcement, speakable
from omni.speech.stretch import stretch
from omni.types import OUTPUT_RATE_HZ, Mark

FIRST_CHUNK_SAMPLES = OUTPUT_RATE_HZ // 10
CHUNK_SAMPLES = OUTPUT_RATE_HZ // 4

SILENCE_DB = -52.0
"""Level re full scale under which a block at a phrase's edge is silence; speech peaks near -10."""
_BLOCK_SAMPLES = OUTPUT_RATE_HZ // 200  # 5 ms
_LEAD_SAMPLES = OUTPUT_RATE_HZ * 15 // 1000  # kept before the first sound: soft onsets
_TAIL_SAMPLES = OUTPUT_RATE_HZ * 40 // 1000  # kept after the last sound

MODEL_SPEEDS = (0.5, 1.0)
"""Range in which the acoustic models change their own pace; beyond it the samples are stretched.

Durations are whole units of 25 ms, so hibari blurs when it hurries: at speed 1.5 a recogniser gets
19% of the words wrong, 3% when the same speech is stretched; at 0.25 it is 17% and 2%.
"""

_PAUSE_MS = {"paragraph": 420, "sentence": 260, "clause": 120, "word": 0}
"""Silence between clauses at speed 1, beside the 55 ms of lead and tail."""


_LAG_SAMPLES = OUTPUT_RATE_HZ * 50 // 1000
"""How far the models' duration units run behind their sound: a fricative that ends a word is over
50 ms (quartiles 41 and 60, 27 words, both models) before its unit ends."""


class Acoustics(Protocol):
    """Phonemes to samples, for one voice."""

    def speak(
        self, phonemes: str, *, speed: float, seed: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Synthesise at most ``MAX_PHONEMES`` phonemes.

        Returns samples [n] in [-1, 1] at ``OUTPUT_RATE_HZ`` and ends [len(phonemes) + 2]: the
        sample at which each id (pads included) ends. Equal arguments give equal samples.
        """
        ...


class ClauseStream:
    """The :class:`~omni.speech.contract.SpeechStream` of every decoder."""

    def __init__(
        self, acoustics: Acoustics, phonemizer: Phonemizer, policy: ClausePolicy, speed: float
    ) -> None:
        self._acoustics = acoustics
        self._phonemizer = phonemizer
        self._speed = speed
        self._splitter = Splitter(policy)  # a value, replaced whole: `ready` reads it unlocked
        self._made: deque[SpeechChunk] = deque()  # of the clause being spoken, not yet taken
        self._num_samples = 0  # made
        self._num_chars = 0  # of the clauses that were cut off
        self._num_marked = 0  # characters of the last mark
        self._num_phrases = 0
        self._announced = ""  # what the last clause with sound announced instead of reading it
        self._pause = ""  # the kind of end that the last clause with sound had

    def push(self, text: str) -> Iterator[SpeechChunk]:
        """Append ``text``; speak the clauses that are whole (see the contract)."""
        self._splitter = self._splitter.push(text)
        return self._drain(final=False)

    def flush(self) -> Iterator[SpeechChunk]:
        """Speak all that is pending."""
        return self._drain(final=True)

    def ready(self, text: str) -> bool:
        """Whether ``push(text)`` would make sound."""
        announced = self._announced
        for clause in self._splitter.push(text).cuts():
            said = speakable(clause).text
            if any(c.isalnum() for c in said) and (
                announced != announcement(said) or not announced
            ):
                return True
        return False

    def _drain(self, *, final: bool) -> Iterator[SpeechChunk]:
        while True:
            while self._made:
                yield self._made.popleft()
            found = self._splitter.cut(final=final)
            if found is None:
                break
            clause, self._splitter = found
            self._speak(clause)
        if final and self._num_chars > self._num_marked:
            yield SpeechChunk(b"", (self._mark(self._num_samples, self._num_chars),))

    def _speak(self, clause: Clause) -> None:
        """Synthesise ``clause`` and append its chunks to those made."""
        said = speakable(clause)
        start, end = self._num_chars, self._num_chars + len(clause.text)
        self._num_chars = end
        phrases = list(self._phonemizer.phrases(said.text))
        announced = announcement(said.text)
        if not phrases or (announced and announced == self._announced):
            return
        self._announced = announced
        pause = self._pause_samples(clause.text)
        for phrase in phrases:
            samples, ends = self._synthesise(phrase.phonemes)
            self._num_phrases += 1
            first, last = audible(samples)
            marks = [
                (int(np.clip(ends[num_phonemes] - first, 0, last - first)) + pause, start + chars)
                for num_phonemes, num_said in phrase.words
                if (chars := said.num_chars(num_said))
            ]
            if phrase is phrases[-1]:
                marks.append((last - first + pause, end))
            silence = np.zeros(pause, np.float32)
            self._chunk(np.concatenate([silence, samples[first:last]]), marks)
            pause = 0
        self._pause = _end_kind(clause.text)

    def _synthesise(self, phonemes: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Samples [n] at the stream's speed, and where each id ends (see :class:`Acoustics`)."""
        own = float(np.clip(self._speed, *MODEL_SPEEDS))
        samples, ends = self._acoustics.speak(phonemes, speed=own, seed=self._num_phrases)
        pace = self._speed / own
        return stretch(samples, pace), ((ends - _LAG_SAMPLES) / pace).astype(np.int64)

    def _pause_samples(self, text: str) -> int:
        """Silence before a clause that begins with ``text``."""
        if not self._pause:
            return 0
        head = text[: len(text) - len(text.lstrip())]
        kind = "paragraph" if "\n" in head else self._pause
        return int(_PAUSE_MS[kind] * OUTPUT_RATE_HZ / 1000 / self._speed)

    def _chunk(self, samples: NDArray[np.float32], marks: list[tuple[int, int]]) -> None:
        """Cut a phrase's samples [n] into chunks; marks are (sample in the phrase, characters)."""
        pcm = np.round(np.clip(samples, -1.0, 1.0) * 32767.0).astype("<i2")
        begin, size = 0, CHUNK_SAMPLES if self._num_samples else FIRST_CHUNK_SAMPLES
        while begin < len(pcm):
            end = begin + size
            if len(pcm) - end < size // 2:
                end = len(pcm)
            here = tuple(
                self._mark(self._num_samples + sample - begin, chars)
                for sample, chars in marks
                if (begin < sample or not begin) and sample <= end and chars > self._num_marked
            )
            self._made.append(SpeechChunk(pcm[begin:end].tobytes(), here))
            self._num_samples += end - begin
            begin, size = end, CHUNK_SAMPLES

    def _mark(self, sample: int, num_chars: int) -> Mark:
        self._num_marked = num_chars
        return Mark(sample, num_chars)


def audible(samples: NDArray[np.float32]) -> tuple[int, int]:
    """The range of ``samples`` [n] between leading and trailing silence, with short margins."""
    num_blocks = -(-len(samples) // _BLOCK_SAMPLES)
    padded = np.zeros(num_blocks * _BLOCK_SAMPLES, np.float32)
    padded[: len(samples)] = samples
    level = np.abs(padded.reshape(num_blocks, _BLOCK_SAMPLES)).max(axis=1)
    loud = np.flatnonzero(level > 10 ** (SILENCE_DB / 20))
    if not len(loud):
        return 0, len(samples)
    first = int(loud[0]) * _BLOCK_SAMPLES - _LEAD_SAMPLES
    last = (int(loud[-1]) + 1) * _BLOCK_SAMPLES + _TAIL_SAMPLES
    return max(0, first), min(len(samples), last)


def _end_kind(text: str) -> str:
    tail = text.rstrip().rstrip("\"'”’»)]*_")[-1:]
    if tail and tail in ".!?…。！？":
        return "sentence"
    return "clause" if tail and tail in ",;:—–-，；、" else "word"
