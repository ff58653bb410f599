"""A world on a virtual clock for the describer: scenes go in, a voice says what comes out.

The voice judges every action: never two utterances at once, nothing stale, warnings short.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from omni_encoders.wording import num_words
from omni_streaming.describe import Describer
from omni_streaming.describe_settings import (
    Action,
    AskModel,
    DescribeSettings,
    LookForText,
    Say,
    Speech,
    StopSpeaking,
)

from omni.scene import Lettering, Scene, Thing


def thing(
    label: str = "chair",
    x: float = 0.5,
    *,
    track: int = 0,
    metres: float | None = None,
    size: float = 0.25,
    growth: float = 0.0,
    frames: int = 10,
    confidence: float = 0.9,
) -> Thing:
    """A thing whose centre is at ``x``."""
    return Thing(
        label=label,
        confidence=confidence,
        box=(x - size / 2, 0.4, x + size / 2, 0.4 + size),
        distance_m=metres,
        track_id=track,
        approach_per_s=growth,
        num_frames=frames,
    )


def scene(*things: Thing, **more: object) -> Scene:
    """A scene; the world sets its time."""
    return Scene(at_ms=0, things=things, **more)  # type: ignore[arg-type]


def at(seen: Scene, at_ms: int) -> Scene:
    return Scene(
        at_ms=at_ms,
        things=seen.things,
        main=seen.main,
        main_confidence=seen.main_confidence,
        colours=seen.colours,
        lettering=seen.lettering,
        condition=seen.condition,
        motion=seen.motion,
    )


def sign(text: str) -> Lettering:
    return Lettering(text=text, confidence=0.98, box=(0.2, 0.4, 0.8, 0.5))


@dataclass(slots=True)
class Spoken:
    """One utterance; ``ended_ms`` None: it never ended or never began."""

    kind: Speech
    text: str
    asked_ms: int
    frame_at_ms: int
    interrupts: bool
    begun_ms: int | None = None
    ended_ms: int | None = None
    is_cut: bool = False


@dataclass(slots=True)
class World:
    """One user with a camera. ``delay_ms`` is from an action to its first sound."""

    settings: DescribeSettings = field(default_factory=DescribeSettings)
    ms_per_word: int = 350
    delay_ms: int = 200
    now_ms: int = 0
    spoken: list[Spoken] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)
    describer: Describer = field(init=False)
    _next: Spoken | None = None
    _current: Spoken | None = None
    _expires_ms: int = 0

    def __post_init__(self) -> None:
        self.describer = Describer(self.settings, self.now_ms)

    # --- Running ---------------------------------------------------------------------------------

    def run(
        self, duration_ms: int, look: Callable[[int], Scene | None], *, step_ms: int = 200
    ) -> None:
        """Show what ``look`` gives for the time; None: no picture came."""
        end_ms = self.now_ms + duration_ms
        while self.now_ms < end_ms:
            self.now_ms += step_ms
            self._speak()
            seen = look(self.now_ms)
            if seen is None:
                self.describer.tick(self.now_ms)
            else:
                self.describer.see(at(seen, self.now_ms), self.now_ms)
            self.take()

    def show(self, seen: Scene, duration_ms: int, *, step_ms: int = 200) -> None:
        self.run(duration_ms, lambda _: seen, step_ms=step_ms)

    def take(self) -> list[Action]:
        """Carry out what the describer wants; call after telling it something."""
        actions = self.describer.actions()
        for action in actions:
            self._do(action)
        self.actions += actions
        return actions

    def command(self, name: str) -> list[Action]:
        self.describer.command(name, self.now_ms)  # type: ignore[arg-type]
        return self.take()

    def hear(self, text: str) -> str | None:
        """The user says this to the assistant, just now."""
        self.describer.user_speaks(True, self.now_ms)
        self.take()
        self.describer.user_speaks(False, self.now_ms)
        name = self.describer.heard(text, self.now_ms)
        self.take()
        return name

    def assistant_speaks(self, num: int) -> None:
        """An ordinary answer of ``num`` words begins."""
        assert self._current is None
        self._current = Spoken("assistant", "word " * num, self.now_ms, self.now_ms, False)
        self._current.begun_ms = self.now_ms
        self.spoken.append(self._current)
        self.describer.speaking("assistant", self.now_ms)
        self.take()

    @property
    def is_silent(self) -> bool:
        return self._current is None and self._next is None

    def said(self, *kinds: str) -> list[str]:
        """Texts of what was asked to be said, in order."""
        return [one.text for one in self.spoken if not kinds or one.kind in kinds]

    # --- The voice -------------------------------------------------------------------------------

    def _do(self, action: Action) -> None:
        if isinstance(action, LookForText):
            return
        if isinstance(action, StopSpeaking):
            self._cut()
            return
        assert isinstance(action, Say | AskModel)
        if not action.interrupts:
            assert self.is_silent, f"two utterances at once: {action}"
        if action.interrupts:
            self._cut()
        stale_ms = 10_000 if action.kind == "text" else 4_000
        assert 0 <= self.now_ms - action.frame_at_ms <= stale_ms
        assert action.expires_at_ms == action.frame_at_ms + stale_ms
        text = action.text if isinstance(action, Say) else "word " * 20
        assert text
        assert text == text.strip() or isinstance(action, AskModel)
        if action.kind == "hazard":
            assert num_words(text) <= 8
        elif action.kind != "text":
            assert num_words(text) <= 30
        self._next = Spoken(action.kind, text, self.now_ms, action.frame_at_ms, action.interrupts)
        self._expires_ms = action.expires_at_ms
        self.spoken.append(self._next)

    def _cut(self) -> None:
        self._next = None
        if self._current is not None:
            self._current.ended_ms, self._current.is_cut = self.now_ms, True
            self._current = None
            self.describer.speaking(None, self.now_ms)
            for action in self.describer.actions():
                self._do(action)

    def _speak(self) -> None:
        if self.now_ms > self._expires_ms:
            self._next = None
        current = self._current
        if current is not None:
            assert current.begun_ms is not None
            if self.now_ms - current.begun_ms >= num_words(current.text) * self.ms_per_word:
                current.ended_ms, self._current = self.now_ms, None
                self.describer.speaking(None, self.now_ms)
                self.take()
        coming = self._next
        is_free = coming is not None and self._current is None
        if is_free and self.now_ms - coming.asked_ms >= self.delay_ms:
            self._next, self._current = None, coming
            coming.begun_ms = self.now_ms
            self.describer.speaking(coming.kind, self.now_ms)
            self.take()

    # --- Figures ---------------------------------------------------------------------------------

    def largest_share(self, *kinds: str, window_ms: int = 60_000) -> float:
        """Of any window, spent on these kinds."""
        times = [
            (one.begun_ms, one.ended_ms if one.ended_ms is not None else self.now_ms)
            for one in self.spoken
            if one.kind in kinds and one.begun_ms is not None
        ]
        worst = 0
        for _, end in times:
            start = end - window_ms
            worst = max(worst, sum(max(0, min(e, end) - max(b, start)) for b, e in times))
        return worst / window_ms


ROOM = scene(thing("chair", 0.2, track=1, metres=2.0), thing("person", 0.5, track=2, metres=3.0))


def settled(seen: Scene = ROOM, settings: DescribeSettings | None = None) -> World:
    """A world whose first descriptions are over."""
    world = World(settings or DescribeSettings())
    world.show(seen, 20_000)
    assert world.is_silent
    return world
