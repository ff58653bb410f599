"""What live description keeps whatever the camera, the detector, the user and the clock do."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omni_encoders.nouns import HAZARDS
from omni_encoders.wording import num_words
from omni_streaming.describe import Describer
from omni_streaming.describe_memory import MAX_ENTITIES, SceneMemory
from omni_streaming.describe_settings import CLOSE_M, NOTICE, TALL_SHARE, DescribeSettings, Say

from omni.scene import Scene, Thing
from tests.streaming.describing import World, at, scene, sign, thing

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SAFE = ("chair", "couch", "potted plant", "tv", "cup", "dining table", "person", "dog", "car")
seeds = st.integers(0, 2**32 - 1)


def jittered(rng: random.Random, seen: Thing, *, swaps: bool) -> Thing:
    """The same thing as a detector finds it the next time."""
    dx, dy = rng.uniform(-0.01, 0.01), rng.uniform(-0.01, 0.01)
    left, top, right, bottom = seen.box
    return Thing(
        label=seen.label,
        confidence=min(max(seen.confidence + rng.uniform(-0.08, 0.08), 0.0), 1.0),
        box=(left + dx, top + dy, right + dx, bottom + dy),
        distance_m=None if seen.distance_m is None else seen.distance_m * rng.uniform(0.9, 1.1),
        track_id=rng.randrange(1, 10**6) if swaps and rng.random() < 0.2 else seen.track_id,
        num_frames=1 if swaps else 10,
    )


class Blinking:
    """A still scene before a detector that loses things for one or two pictures."""

    def __init__(self, things: list[Thing], seed: int, *, swaps: bool, rate: float) -> None:
        self._things = things
        self._rng = random.Random(seed)
        self._swaps = swaps
        self._rate = rate
        self._hidden = [0] * len(things)  # pictures for which it stays away
        self._rest = [0] * len(things)  # pictures for which it is found again

    def look(self, _: int) -> Scene:
        rng, found = self._rng, []
        for index, one in enumerate(self._things):
            if self._hidden[index]:
                self._hidden[index] -= 1
                continue
            if self._rest[index]:
                self._rest[index] -= 1
            elif rng.random() < self._rate:
                self._hidden[index], self._rest[index] = rng.randrange(2), 3
                continue
            found.append(jittered(rng, one, swaps=self._swaps))
        rng.shuffle(found)
        return scene(*found)


still_things = st.lists(
    st.tuples(st.sampled_from(SAFE), st.none() | st.floats(1.5, 12), st.floats(0.3, 1)),
    max_size=9,
).map(
    lambda kinds: [
        thing(label, (n % 3) * 0.35 + 0.15, track=n + 1, metres=metres, size=0.18, confidence=sure)
        if n < 3
        else Thing(
            label=label,
            confidence=sure,
            box=(
                0.06 + 0.35 * (n % 3),
                0.02 + 0.65 * (n // 6),
                0.22 + 0.35 * (n % 3),
                0.15 + 0.65 * (n // 6),
            ),
            distance_m=metres,
            track_id=n + 1,
            num_frames=10,
        )
        for n, (label, metres, sure) in enumerate(kinds)
    ]
)


# --- Changes only --------------------------------------------------------------------------------


@FEW
@given(
    things=still_things,
    seed=seeds,
    swaps=st.booleans(),
    rate=st.sampled_from([0.0, 0.05, 0.2]),
    verbosity=st.sampled_from(["brief", "normal"]),
    step_ms=st.sampled_from([16, 33, 100, 200, 500, 1000]),
)
def test_a_still_scene_is_described_once_however_the_detector_blinks(
    things: list[Thing], seed: int, swaps: bool, rate: float, verbosity: str, step_ms: int
) -> None:
    # Of five slow pictures before the first overview a thing may be in two: it is told later.
    rate = rate if step_ms <= 100 else min(rate, 0.05) if step_ms == 200 else 0.0
    chosen = DescribeSettings(verbosity=verbosity, hazards=False)  # type: ignore[arg-type]
    world = World(chosen)
    blinking = Blinking(things, seed, swaps=swaps, rate=rate)
    world.run(60_000 if step_ms >= 100 else 15_000, blinking.look, step_ms=step_ms)
    kinds = Counter(one.kind for one in world.spoken)
    assert kinds == {"framing": 1, "change": 1}, world.said()


@FEW
@given(things=still_things, seed=seeds)
def test_a_thing_that_stays_away_longer_is_still_no_news_when_it_is_back(
    things: list[Thing], seed: int
) -> None:
    """Unless it was told to have gone."""
    rng = random.Random(seed)
    world = World()
    world.show(scene(*things), 20_000)
    for _ in range(4):
        left = [one for one in things if rng.random() < 0.6]
        world.show(scene(*left), rng.choice([1_000, 2_000, 3_000]))
        world.show(scene(*things), 5_000)
    gone = sum("gone" in text for text in world.said("change"))
    came = sum("appeared" in text for text in world.said("change"))
    assert came <= gone


# --- Everything at once --------------------------------------------------------------------------


class Chaos:
    """A world in which anything happens, judged as it goes."""

    def __init__(self, seed: int, chosen: DescribeSettings) -> None:
        self.rng = random.Random(seed)
        self.world = World(chosen, ms_per_word=self.rng.choice([220, 300, 400, 450]))
        self.things: list[Thing] = []
        self.motion = 0.0
        self.condition = "clear"
        self.user_until_ms = -1
        self.user_stopped_ms: int | None = None
        self.num_asked = 0
        self.was_heard = False

    def run(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.change()
            self.world.run(self.rng.choice([100, 200, 400]), self.look, step_ms=100)
            self.judge()

    def change(self) -> None:
        rng, world = self.rng, self.world
        if rng.random() < 0.3 and self.things:
            self.things.pop(rng.randrange(len(self.things)))
        if rng.random() < 0.3 and len(self.things) < 30:
            self.things.append(
                thing(
                    rng.choice(SAFE),
                    rng.random(),
                    track=rng.randrange(1, 10**6),
                    metres=rng.choice([None, rng.uniform(0.5, 20)]),
                    size=rng.uniform(0.05, 0.8),
                    growth=rng.choice([0.0, 0.0, 0.1, 0.4]),
                    confidence=rng.uniform(0.2, 1),
                )
            )
        if rng.random() < 0.05:
            self.motion = rng.choice([0.0, 0.1, 0.2, 0.6])
        if rng.random() < 0.05:
            self.condition = rng.choice(["clear", "clear", "dark", "blurred", "covered"])
        if rng.random() < 0.03 and self.user_until_ms < 0:
            self.user_until_ms = world.now_ms + rng.randrange(300, 3_000)
            self.user_stopped_ms = None
            world.describer.user_speaks(True, world.now_ms)
            world.take()
        if 0 <= self.user_until_ms <= world.now_ms:
            self.user_until_ms = -1
            self.user_stopped_ms, self.was_heard = world.now_ms, False
            world.describer.user_speaks(False, world.now_ms)
            world.take()
            if rng.random() < 0.4:
                self.was_heard = True
                text = rng.choice(["read this", "what do you see", "repeat", "why is that", "more"])
                if world.describer.heard(text, world.now_ms) is None and world.is_silent:
                    world.assistant_speaks(rng.randrange(1, 30))
                world.take()
        if rng.random() < 0.02:
            names = ["repeat", "more", "front", "read", "stop", "quiet", "resume", "resume"]
            world.command(rng.choice(names))

    def look(self, now_ms: int) -> Scene | None:
        rng = self.rng
        if rng.random() < 0.1:
            return None
        if rng.random() < 0.05:  # a straggler
            old = at(
                scene(thing("bus", track=99, metres=1.0)), now_ms - rng.randrange(2_100, 9_000)
            )
            self.world.describer.see(old, now_ms)
            self.world.take()
        found = [one for one in self.things if rng.random() < 0.9]
        text = (sign("EXIT"),) if rng.random() < 0.05 else None
        return scene(*found, motion=self.motion, condition=self.condition, lettering=text)

    def judge(self) -> None:
        world = self.world
        for one in world.spoken[self.num_asked :]:
            assert "Bus" not in one.text, "a picture that came late was used"
            if one.kind not in ("change", "framing"):
                continue
            assert not one.interrupts
            assert self.user_until_ms < 0
            if self.user_stopped_ms is not None and not self.was_heard:
                assert one.asked_ms - self.user_stopped_ms >= 3_000
        self.num_asked = len(world.spoken)


@FEW
@given(
    seed=seeds,
    chosen=st.builds(
        DescribeSettings,
        verbosity=st.sampled_from(["brief", "normal", "detailed"]),
        units=st.sampled_from(["metric", "imperial", "steps"]),
        directions=st.sampled_from(["sides", "clock"]),
        hazards=st.booleans(),
        has_native_sight=st.booleans(),
    ),
)
def test_whatever_happens_the_rules_of_speaking_hold(seed: int, chosen: DescribeSettings) -> None:
    """The voice itself refuses two utterances at once, stale ones and long ones."""
    chaos = Chaos(seed, chosen)
    chaos.run(500)
    world = chaos.world
    assert world.largest_share("change") <= 0.4  # that we cannot see is said all the same
    if not chosen.hazards:
        assert world.said("hazard") == []
    whole = [
        (one.text, one.begun_ms, 59_000 if one.kind == "change" else 14_000)
        for one in world.spoken
        if one.kind in ("change", "framing") and one.begun_ms is not None and not one.is_cut
    ]
    if not chosen.has_native_sight:
        last: dict[str, int] = {}
        for text, begun_ms, least_ms in whole:
            assert begun_ms - last.get(text, -(10**6)) >= least_ms, text
            last[text] = begun_ms


@settings(FEW, max_examples=8)
@given(seed=seeds, num=st.integers(100, 500))
def test_hundreds_of_things_cost_and_say_no_more(seed: int, num: int) -> None:
    rng = random.Random(seed)

    def look(_: int) -> Scene:
        found = (
            thing(rng.choice(SAFE), rng.random(), track=rng.randrange(1, 10**6), size=0.1)
            for _ in range(num)
        )
        return scene(*found)

    world = World()
    world.run(6_000, look, step_ms=500)
    world.run(6_000, lambda _: scene(*look(0).things, motion=0.9), step_ms=500)
    assert all(num_words(one.text) <= 30 for one in world.spoken)
    memory = SceneMemory()
    for now_ms in range(0, 5_000, 500):
        memory.see(look(0), now_ms, is_moving=False)
    assert len(memory.entities) <= MAX_ENTITIES


@FEW
@given(seed=seeds)
def test_a_moving_user_hears_twelve_words_at_most(seed: int) -> None:
    chaos = Chaos(seed, DescribeSettings())
    world = chaos.world
    for _ in range(300):
        chaos.change()
        chaos.motion, chaos.condition = 0.6, "clear"
        world.run(100, chaos.look, step_ms=100)
        if world.describer.is_moving:
            for one in world.spoken[chaos.num_asked :]:
                assert one.kind in ("text", "answer", "assistant") or num_words(one.text) <= 12, (
                    one.text
                )
        chaos.num_asked = len(world.spoken)


@FEW
@given(seed=seeds)
def test_quiet_is_quiet(seed: int) -> None:
    rng = random.Random(seed)
    chaos = Chaos(seed, DescribeSettings(quiet=True))
    for _ in range(200):
        chaos.world.run(200, chaos.look, step_ms=200)
        chaos.condition = rng.choice(["clear", "clear", "dark"])
        if rng.random() < 0.5:
            chaos.things.append(thing(rng.choice(SAFE), rng.random(), track=rng.randrange(1, 99)))
    # That we cannot see, or can again, matters to whoever relies on warnings.
    assert {one.kind for one in chaos.world.spoken} <= {"hazard", "framing"}
    assert NOTICE not in chaos.world.said()


# --- Warnings ------------------------------------------------------------------------------------


dangers = st.builds(
    lambda label, x, growth, metres, size: thing(
        label, x, track=77, growth=growth, metres=metres, size=size, frames=2
    ),
    st.sampled_from(sorted(HAZARDS)),
    st.floats(0.25, 0.75),
    st.floats(0.25, 3),
    st.none() | st.floats(0.1, CLOSE_M),
    st.floats(TALL_SHARE + 0.01, 0.9),  # a box of just that size is a rounding smaller
)


@FEW
@given(seed=seeds, danger=dangers, num=st.integers(1, 120), quiet=st.booleans())
def test_a_warning_never_waits(seed: int, danger: Thing, num: int, quiet: bool) -> None:
    """It is asked for in the very look that shows the danger, whatever is going on."""
    chaos = Chaos(seed, DescribeSettings(quiet=quiet))
    for _ in range(num):
        chaos.change()
        chaos.things = [one for one in chaos.things if one.label not in HAZARDS]
        chaos.world.run(200, chaos.look, step_ms=100)
    world = chaos.world
    assert world.said("hazard") == []
    world.show(scene(*chaos.things, danger), 100, step_ms=100)
    (warning,) = [one for one in world.spoken if one.kind == "hazard"]
    assert (warning.asked_ms, warning.frame_at_ms) == (world.now_ms, world.now_ms)
    assert warning.interrupts


@FEW
@given(
    seed=seeds,
    start_m=st.floats(3, 9),
    speed=st.floats(0, 2.5),
    swaps=st.booleans(),
    step_ms=st.sampled_from([16, 100, 500]),
)
def test_one_danger_is_not_repeated_unless_it_is_much_closer(
    seed: int, start_m: float, speed: float, swaps: bool, step_ms: int
) -> None:
    rng = random.Random(seed)
    away: dict[int, float] = {}

    def look(now_ms: int) -> Scene:
        metres = max(start_m - speed * now_ms / 1000, 0.4) * rng.uniform(0.95, 1.05)
        away[now_ms] = metres
        track = rng.randrange(1, 10**6) if swaps else 5
        x = 0.5 + rng.uniform(-0.05, 0.05)
        return scene(thing("person", x, track=track, metres=metres, growth=speed / metres))

    world = World(DescribeSettings())
    world.run(15_000, look, step_ms=step_ms)
    warnings = [one.asked_ms for one in world.spoken if one.kind == "hazard"]
    for before, after in pairwise(warnings):
        assert after - before >= 6_000 or away[after] <= 0.6 * away[before]
    if speed == 0 and start_m > 2:
        assert warnings == []


@FEW
@given(track=st.integers(0, 3), growth=st.floats(0.25, 5), x=st.floats(0, 1), sure=st.floats(0, 1))
def test_a_single_picture_far_away_never_warns(
    track: int, growth: float, x: float, sure: float
) -> None:
    world = World()
    one = thing("car", x, track=track, growth=growth, metres=8.0, frames=1, confidence=sure)
    world.show(scene(one), 5_000)
    assert world.said("hazard") == []


# --- Time ----------------------------------------------------------------------------------------


@FEW
@given(
    jumps=st.lists(
        st.tuples(
            st.sampled_from([0, 0, 16, 100, 5_000, 10**7, -100, -5_000, -(10**7)]), st.booleans()
        ),
        max_size=200,
    )
)
def test_a_clock_that_jumps_repeats_nothing_and_stops_nothing(
    jumps: list[tuple[int, bool]],
) -> None:
    describer = Describer(DescribeSettings(), 0)
    room = scene(thing("chair", 0.2, track=1), thing("person", 0.5, track=2, metres=3.0))
    now_ms, said = 0, []

    def take() -> None:
        for action in describer.actions():
            assert isinstance(action, Say)
            assert -2_000 <= action.frame_at_ms - now_ms <= 0 or action.kind == "framing"
            said.append(action.text)
            describer.speaking(action.kind, now_ms)
            describer.speaking(None, now_ms)

    for jump, is_seen in jumps:
        now_ms += jump
        if is_seen:
            describer.see(at(room, now_ms), now_ms)
        else:
            describer.tick(now_ms)
        take()
    for _ in range(200):
        now_ms += 100
        describer.see(at(room, now_ms), now_ms)
        take()
    changes = [text for text in said if text.startswith("In front")]
    assert len(changes) == 1
    describer.see(at(scene(thing("dog", 0.5, track=9, metres=0.5)), now_ms + 50), now_ms + 100)
    assert [type(one) for one in describer.actions()] == [Say]


@FEW
@given(step_ms=st.integers(1, 3_000), seed=seeds)
def test_any_frame_rate_gets_the_same_description(step_ms: int, seed: int) -> None:
    things = [thing("chair", 0.2, track=1, metres=2.0), thing("couch", 0.8, track=2, metres=3.0)]
    world = World()
    world.show(scene(*things), 400 * step_ms if step_ms < 60 else 30_000, step_ms=step_ms)
    if world.now_ms >= 12_000:
        assert world.said("change") == [
            "In front of you: a chair on the left, about 2 metres; "
            "a couch on the right, about 3 metres."
        ]
