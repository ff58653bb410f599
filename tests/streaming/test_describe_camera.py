"""What is said of the camera itself: covered, dark, blurred, stopped, or without a detector."""

from __future__ import annotations

import pytest
from omni_streaming.describe_settings import SEEING_AGAIN, STOPPED

from tests.streaming.describing import ROOM, at, scene, settled


@pytest.mark.parametrize("condition", ["covered", "dark", "bright", "blurred"])
def test_a_bad_picture_is_told_once_and_so_is_its_end(condition: str) -> None:
    world = settled()
    world.show(scene(condition=condition), 1_800)
    assert len(world.spoken) == 2
    world.show(scene(condition=condition), 30_000)
    assert len(world.spoken) == 3
    assert world.said("framing")[-1].startswith("I cannot see:")
    world.command("front")
    assert world.said("answer") == [world.said("framing")[-1]]
    world.show(ROOM, 20_000)
    assert world.said("framing")[1:] == [world.said("answer")[0], SEEING_AGAIN]
    assert world.said("change")[1:] == []


def test_a_moment_of_blur_is_not_worth_a_word() -> None:
    world = settled()
    world.run(30_000, lambda now_ms: scene(condition="blurred") if now_ms % 2_000 else ROOM)
    assert len(world.spoken) == 2


def test_a_camera_that_stops_is_told_once() -> None:
    world = settled()
    world.run(60_000, lambda _: None)
    assert world.said("framing")[1:] == [STOPPED]
    world.command("front")
    assert world.said("answer") == [STOPPED]


def test_the_same_picture_over_and_over_is_a_camera_that_stopped() -> None:
    world = settled()
    frozen = at(ROOM, world.now_ms)
    for _ in range(100):
        world.run(200, lambda _: None)
        world.describer.see(frozen, world.now_ms)
        world.take()
    assert world.said("framing")[1:] == [STOPPED]


def test_a_failing_detector_is_told_once() -> None:
    world = settled()
    for _ in range(200):
        world.run(200, lambda _: None)
        world.describer.failed_to_see(world.now_ms)
        world.take()
    assert world.said()[2:] == ["I cannot recognise things: the detector is not working."]
