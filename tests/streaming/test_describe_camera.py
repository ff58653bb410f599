"""What is said of the camera itself: covered, dark, blurred, stopped, or without a detector."""

from __future__ import annotations

import pytest
from omni_encoders.wording import ABSTENTIONS
from omni_streaming.describe_settings import SEEING_AGAIN, STOPPED

from tests.streaming.describing import ROOM, at, scene, settled, thing


@pytest.mark.parametrize("condition", ["covered", "dark", "bright", "blurred"])
def test_a_bad_picture_is_told_once_and_so_is_its_end(condition: str) -> None:
    world = settled()
    world.show(scene(condition=condition), 1_800)
    assert len(world.spoken) == 2
    world.show(scene(condition=condition), 30_000)
    assert len(world.spoken) == 3
    assert world.said("framing")[-1].startswith("I cannot see")
    world.command("front")
    assert world.said("answer") == [world.said("framing")[-1]]
    world.show(ROOM, 20_000)
    assert world.said("framing")[1:] == [world.said("answer")[0], SEEING_AGAIN]
    assert world.said("change")[1:] == []


@pytest.mark.parametrize("asked", ["What is in front of me?", "Is anybody there?", "Read it."])
def test_an_answer_that_names_the_problem_tells_it(asked: str) -> None:
    world = settled()
    bad = scene(condition="covered", lettering=())
    world.show(bad, 400)
    world.hear(asked)
    world.show(bad, 20_000)
    assert world.said("answer", "text")[-1] == ABSTENTIONS["covered"]
    assert world.said("framing", "change")[2:] == []
    world.show(ROOM, 10_000)
    assert world.said("framing", "change")[2:] == [SEEING_AGAIN]


def test_an_answer_that_was_not_heard_tells_nothing() -> None:
    world = settled()
    world.show(scene(condition="blurred"), 400)
    world.hear("What is in front of me?")
    car = thing("car", 0.5, track=7, metres=1.0)
    world.show(scene(car, condition="blurred"), 200)
    world.assistant_speaks(40)  # for so long that the answer is not wanted any more
    world.show(scene(condition="blurred"), 30_000)
    assert world.said("answer", "framing")[1:] == [ABSTENTIONS["blurred"]] * 2


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
