"""Tracks as a value: numbers that last, growth, hidden things; properties over random walks."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omni_encoders.tracking import MAX_GAP_MS, MAX_MISSED, Tracks, follow

from omni.scene import Thing

Box = tuple[float, float, float, float]


def thing(x: float, y: float = 0.5, height: float = 0.3, label: str = "person") -> Thing:
    """A thing around x and y, half as wide as it is high."""
    box: Box = (x - height / 4, y - height / 2, x + height / 4, y + height / 2)
    return Thing(label=label, confidence=0.9, box=box)


def ids(things: tuple[Thing, ...]) -> list[int]:
    return [each.track_id for each in things]


def test_things_that_move_a_little_keep_their_numbers() -> None:
    state = Tracks()
    for step in range(20):
        things, state = follow(state, [thing(0.1 + 0.03 * step), thing(0.9)], 200 * step)
        assert ids(things) == [1, 2]
        assert [each.num_frames for each in things] == [step + 1] * 2


def test_the_order_of_findings_does_not_matter() -> None:
    _, state = follow(Tracks(), [thing(0.2), thing(0.5), thing(0.8)], 0)
    things, _ = follow(state, [thing(0.81), thing(0.21), thing(0.51)], 100)
    assert ids(things) == [3, 1, 2]


def test_another_kind_in_the_same_place_is_another_thing() -> None:
    _, state = follow(Tracks(), [thing(0.5)], 0)
    (dog,), _ = follow(state, [thing(0.5, label="dog")], 100)
    assert dog.track_id == 2


@pytest.mark.parametrize("num_missed", range(MAX_MISSED + 2))
def test_a_hidden_thing_keeps_its_number_for_two_pictures(num_missed: int) -> None:
    _, state = follow(Tracks(), [thing(0.5)], 0)
    for step in range(num_missed):
        things, state = follow(state, [], 100 * (step + 1))
        assert things == ()
    (found,), _ = follow(state, [thing(0.52)], 100 * (num_missed + 1))
    assert (found.track_id == 1) == (num_missed <= MAX_MISSED)


def test_after_a_long_pause_everything_is_new() -> None:
    _, state = follow(Tracks(), [thing(0.5)], 0)
    (found,), _ = follow(state, [thing(0.5)], MAX_GAP_MS + 1)
    assert (found.track_id, found.num_frames) == (2, 1)


def test_an_unsure_finding_only_continues_what_was_there() -> None:
    things, state = follow(Tracks(), [], 0, unsure=[thing(0.5)])
    assert things == ()
    _, state = follow(state, [thing(0.5)], 100)
    things, _ = follow(state, [], 200, unsure=[thing(0.2), thing(0.51)])
    assert ids(things) == [1]
    assert things[0].num_frames == 2


@pytest.mark.parametrize("interval_ms", [100, 200, 500, 1000])
@pytest.mark.parametrize("growth_per_s", [-0.3, 0.0, 0.25, 0.5, 1.0])
def test_growth_is_measured_whatever_the_rate_of_pictures(
    growth_per_s: float, interval_ms: int
) -> None:
    state, found = Tracks(), thing(0.5)
    for at_ms in range(0, 3001, interval_ms):
        height = 0.08 * (1 + growth_per_s) ** (at_ms / 1000)
        (found,), state = follow(state, [thing(0.5, height=height)], at_ms)
    assert found.approach_per_s == pytest.approx(growth_per_s, rel=0.15, abs=0.02)


@settings(deadline=None)
@given(st.lists(st.floats(-0.02, 0.02), min_size=12, max_size=30))
def test_jitter_of_a_box_is_no_approach(jitter: list[float]) -> None:
    """A detector's boxes tremble by 2%; that is not something that comes nearer."""
    state = Tracks()
    for step, noise in enumerate(jitter):
        (found,), state = follow(state, [thing(0.5, height=0.3 * (1 + noise))], 200 * step)
        if step > 8:
            assert abs(found.approach_per_s) < 0.25


boxes = st.tuples(st.floats(0, 0.9), st.floats(0, 0.9), st.floats(0.01, 1), st.floats(0.01, 1)).map(
    lambda four: (four[0], four[1], min(1.0, four[0] + four[2]), min(1.0, four[1] + four[3]))
)
things_of = st.builds(
    Thing, label=st.sampled_from(["person", "car"]), confidence=st.floats(0, 1), box=boxes
)
pictures = st.tuples(
    st.integers(0, 2500), st.lists(things_of, max_size=5), st.lists(things_of, max_size=3)
)


@pytest.mark.parametrize(
    "heights",
    [
        # Of people in a street video who came no nearer: two boxes became one, or changed owner.
        [0.149, 0.148, 0.149, 0.152, 0.151, 0.150, 0.148, 0.143, 0.143, 0.202, 0.202, 0.200],
        [0.137, 0.139, 0.138, 0.137, 0.138, 0.134, 0.132, 0.136, 0.136, 0.138, 0.135, 0.172],
        [0.116, 0.113, 0.118, 0.113, 0.119, 0.121, 0.126, 0.127, 0.125, 0.118, 0.120, 0.185, 0.12],
        [0.2, 0.3, 0.3, 0.3],
    ],
)
@pytest.mark.parametrize("every_ms", [100, 250, 500])
def test_a_box_that_leaps_once_does_not_come_near(heights: list[float], every_ms: int) -> None:
    state = Tracks()
    for number, height in enumerate(heights):
        (found,), state = follow(state, [thing(0.5, height=height)], every_ms * number)
        assert found.approach_per_s < 0.2


@settings(deadline=None)
@given(st.lists(pictures, max_size=12))
def test_anything_may_be_found(walk: list[tuple[int, list[Thing], list[Thing]]]) -> None:
    """Numbers are unique and never used again for another kind; the state is a value."""
    state, at_ms, kinds = Tracks(), 0, {}
    for elapsed_ms, sure, unsure in walk:
        at_ms += elapsed_ms
        before = state
        things, state = follow(before, sure, at_ms, unsure)
        assert follow(before, sure, at_ms, unsure) == (things, state)
        assert len(set(ids(things))) == len(things)
        assert [each.box for each in things[: len(sure)]] == [each.box for each in sure]
        for each in things:
            assert 0 < each.track_id < state.next_id
            assert kinds.setdefault(each.track_id, each.label) == each.label
            assert math.isfinite(each.approach_per_s)
            assert -1 < each.approach_per_s <= 3.01
        assert all(track.num_missed <= MAX_MISSED for track in state.tracks)
