"""Live description of a file or a camera without a session: what would be said, and when.

The very :class:`~omni_streaming.describe.Describer` of a session decides; this is its other
adapter, with a clock of its own. One picture is looked at at a time, the newest waits, and older
ones are dropped, as in a session. On the virtual clock a look takes the time that it took (or a
fixed one), so that the run says what a camera would have got, however fast it goes.

::

    Source -> newest picture -> eyes (take their time) -> Describer -> Voice -> Utterance

Used by ``omni describe`` and ``omni bench describe``.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from omni_encoders.wording import num_words

from omni.assistant.watching import Watcher
from omni.scene import Scene
from omni.speech.contract import SpeechDecoder
from omni.types import OUTPUT_RATE_HZ
from omni_streaming.describe import Describer
from omni_streaming.describe_settings import (
    CommandName,
    DescribeSettings,
    Kind,
    LookForText,
    Say,
    StopSpeaking,
)
from omni_streaming.describe_source import Picture, Source

STEP_MS = 10
"""Of the clock."""
TICK_MS = 50
"""Of the describer, as in a session."""
MS_PER_WORD = 320
"""Of the embedded voice at its own pace: 300 to 315 in sentences, 470 in a warning of 3 words."""
START_MS = 20
"""From asking to the first sound: 12 ms for the embedded voice, and a step."""


@dataclass(slots=True, eq=False)
class Utterance:
    """Something said; times on the clock of the run.

    ``began_ms`` None: something more urgent came before its first sound. ``ended_ms`` None: it is
    still being said.
    """

    kind: Kind
    text: str
    frame_at_ms: int  # when the picture was taken that it tells of
    at_ms: int  # when it was decided on
    began_ms: int | None = None
    ended_ms: int | None = None
    cut_off: bool = False
    pcm: NDArray[np.int16] = field(default_factory=lambda: np.zeros(0, np.int16))

    def record(self) -> dict[str, object]:
        """As a line of the log."""
        return {
            "at_ms": self.at_ms,
            "kind": self.kind,
            "text": self.text,
            "frame_at_ms": self.frame_at_ms,
            "began_ms": self.began_ms,
            "ended_ms": self.ended_ms,
            "cut_off": self.cut_off,
        }


# --- Voices --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Spoken:
    """How a text sounds: after ``delay_ms``, for ``length_ms``; ``pcm`` may be empty."""

    delay_ms: int
    length_ms: int
    pcm: NDArray[np.int16]


class Voice(Protocol):
    def speak(self, text: str) -> Spoken: ...


class CountedVoice:
    """No sound: words at the pace of the embedded voice, ``rate`` times as fast."""

    def __init__(self, rate: float = 1.0) -> None:
        self._ms_per_word = MS_PER_WORD / rate

    def speak(self, text: str) -> Spoken:
        return Spoken(START_MS, round(num_words(text) * self._ms_per_word), np.zeros(0, np.int16))


class DecoderVoice:
    """A speech decoder; ``delay_ms`` is in place of the time that its first sound took."""

    def __init__(
        self, decoder: SpeechDecoder, voice: str, rate: float = 1.0, delay_ms: int | None = None
    ) -> None:
        self._decoder, self._voice, self._rate = decoder, voice, rate
        self._delay_ms = delay_ms
        for _ in self.speak("Ready.").pcm[:1]:  # the first one also allocates
            pass

    def speak(self, text: str) -> Spoken:
        began_s = time.perf_counter()
        stream = self._decoder.open(voice=self._voice, speed=self._rate)
        first_ms: int | None = None
        pieces = []
        for chunk in chain(stream.push(text), stream.flush()):
            if first_ms is None:
                first_ms = round(1000 * (time.perf_counter() - began_s))
            pieces.append(chunk.pcm)
        pcm = np.frombuffer(b"".join(pieces), "<i2").astype(np.int16)
        delay_ms = self._delay_ms if self._delay_ms is not None else first_ms or START_MS
        return Spoken(delay_ms, len(pcm) * 1000 // OUTPUT_RATE_HZ, pcm)


# --- Clocks --------------------------------------------------------------------------------------


class Fast:
    """As fast as it goes."""

    def wait(self, now_ms: int) -> None:
        return


class RealTime:
    """A second takes a second."""

    def __init__(self) -> None:
        self._origin_s = time.monotonic()

    def wait(self, now_ms: int) -> None:
        if (left_s := self._origin_s + now_ms / 1000 - time.monotonic()) > 0:
            time.sleep(left_s)


Pace = Fast | RealTime


# --- The run -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """``look_ms``: what a look takes, None: as long as it took."""

    settings: DescribeSettings = field(default_factory=DescribeSettings)
    look_ms: int | None = None
    commands: tuple[tuple[int, CommandName], ...] = ()  # pressed at these times, ascending


class Run:
    """One run over ``source``; ``on_begin`` and ``on_end`` are called with each utterance."""

    def __init__(
        self,
        source: Source,
        watcher: Watcher,
        voice: Voice,
        options: Options,
        pace: Pace,
        *,
        on_begin: Callable[[Utterance], None] = lambda _: None,
        on_end: Callable[[Utterance], None] = lambda _: None,
        on_scene: Callable[[Scene], None] = lambda _: None,
    ) -> None:
        self.now_ms = 0
        self.num_pictures = self.num_looks = 0
        self.looking_ms: list[int] = []
        self._source, self._watcher, self._voice, self._pace = source, watcher, voice, pace
        self._options = options
        self._on_begin, self._on_end, self._on_scene = on_begin, on_end, on_scene
        self._describer = Describer(options.settings, 0)
        self._commands = list(options.commands)
        self._state: object | None = None
        self._newest: Picture | None = None
        self._waiting: Picture | None = None
        self._wants_text = False
        self._seen: tuple[Scene, int] | None = None  # being looked at, and until when
        self._coming: tuple[Utterance, Spoken] | None = None  # asked for
        self._current: tuple[Utterance, Spoken] | None = None  # being heard
        self._expires_ms = 0

    def run(self) -> Iterator[int]:
        """Go on to the end, and give the time at every step.

        Closing the iterator ends the run where it is: :meth:`close` it then.

        Raises:
            InputError: the source broke off.
            ModelError: there is no detector.
        """
        while not self._source.is_over or self._waiting or self._seen:
            self._pace.wait(self.now_ms)
            self._look()
            self._speak()
            while self._commands and self._commands[0][0] <= self.now_ms:
                self._describer.command(self._commands.pop(0)[1], self.now_ms)
                self._act()
            if self.now_ms % TICK_MS == 0:
                self._describer.tick(self.now_ms)
                self._act()
            yield self.now_ms
            self.now_ms += STEP_MS
        while self._current is not None:  # what is being said is heard to its end
            self._pace.wait(self.now_ms)
            self._speak(is_last=True)
            yield self.now_ms
            self.now_ms += STEP_MS
        self.close()

    def close(self) -> None:
        """Whatever is being said ends now."""
        self._hush()

    # --- Seeing ----------------------------------------------------------------------------------

    def _look(self) -> None:
        if self._seen is not None and self._seen[1] <= self.now_ms:
            (scene, _), self._seen = self._seen, None
            self._on_scene(scene)
            self._describer.see(scene, self.now_ms)
            self._act()
        picture = self._source.take(self.now_ms)
        if picture is not None:
            self.num_pictures += 1
            self._newest = self._waiting = picture
        if self._seen is not None or self._waiting is None:
            return
        picture, self._waiting = self._waiting, None
        wants_text, self._wants_text = self._wants_text, False
        began_s = time.perf_counter()
        scene, self._state = self._watcher.look(
            picture.pixels, picture.at_ms, self._state, wants_text=wants_text
        )
        took_ms = round(1000 * (time.perf_counter() - began_s))
        self.num_looks += 1
        self.looking_ms.append(took_ms)
        fixed_ms = self._options.look_ms
        self._seen = scene, self.now_ms + (took_ms if fixed_ms is None else fixed_ms)

    # --- Speaking --------------------------------------------------------------------------------

    def _act(self) -> None:
        while actions := self._describer.actions():
            for action in actions:
                if isinstance(action, LookForText):
                    self._wants_text = True
                    self._waiting = self._waiting or self._newest
                elif isinstance(action, StopSpeaking):
                    self._hush()
                elif isinstance(action, Say) and self.now_ms <= action.expires_at_ms:
                    self._say(action)

    def _say(self, action: Say) -> None:
        if action.interrupts:
            self._hush()
        elif self._current is not None or self._coming is not None:
            return
        one = Utterance(action.kind, action.text, action.frame_at_ms, self.now_ms)
        self._coming = one, self._voice.speak(action.text)
        self._expires_ms = action.expires_at_ms

    def _speak(self, *, is_last: bool = False) -> None:
        """Begin and end what is due."""
        if self._current is not None:
            one, spoken = self._current
            assert one.began_ms is not None
            if self.now_ms >= one.began_ms + spoken.length_ms:
                self._end(one, one.began_ms + spoken.length_ms)
        if is_last or self._coming is None or self._current is not None:
            return
        one, spoken = self._coming
        if self.now_ms >= one.at_ms + spoken.delay_ms:
            self._coming = None
            self._current = one, spoken
            one.began_ms = self.now_ms
            self._on_begin(one)
            self._describer.speaking(one.kind, self.now_ms)
            self._act()

    def _hush(self) -> None:
        if self._coming is not None:
            one, self._coming = self._coming[0], None
            one.cut_off = True
            self._on_end(one)
        if self._current is not None:
            one, _ = self._current
            one.cut_off = True
            self._end(one, self.now_ms)

    def _end(self, one: Utterance, at_ms: int) -> None:
        assert self._current is not None
        assert one.began_ms is not None
        num_samples = (at_ms - one.began_ms) * OUTPUT_RATE_HZ // 1000
        one.ended_ms, one.pcm = at_ms, self._current[1].pcm[:num_samples]
        self._current = None
        self._on_end(one)
        self._describer.speaking(None, self.now_ms)
        self._act()


# --- Figures -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Summary:
    """What was said in all; it keeps figures, not utterances."""

    kinds: Counter[str] = field(default_factory=Counter)
    num_words: int = 0
    num_cut_off: int = 0
    speech_ms: int = 0
    latencies_ms: list[int] = field(default_factory=list)
    """From a picture to the first sound about it; not of framing and answers without one."""

    def take(self, one: Utterance) -> None:
        """Count an utterance that has ended."""
        if one.began_ms is None or one.ended_ms is None:
            return
        self.kinds[one.kind] += 1
        self.num_words += num_words(one.text)
        self.num_cut_off += one.cut_off
        self.speech_ms += one.ended_ms - one.began_ms
        if one.kind in ("hazard", "change", "text"):
            self.latencies_ms.append(one.began_ms - one.frame_at_ms)

    def latency_ms(self, share: float) -> float | None:
        """A percentile; None: nothing was said of a picture."""
        if not self.latencies_ms:
            return None
        return float(np.percentile(self.latencies_ms, 100 * share))
