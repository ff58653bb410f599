"""The eyes: scenes of real pictures, what is reused and not guessed, a state that is a value."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from omni_encoders.distance import distance_m
from omni_encoders.eyes import MAX_STILL_MS, Eyes, EyesState, confidence_of
from photos import Pixels, blurred, covered, jpeg, needs_street, photo, smeared, street

from omni.errors import CancelledError, InputError
from omni.scene import Scene

PHOTOS = ("astronaut", "camera", "chelsea", "coffee", "motorcycle_left", "rocket", "page")


def labels(scene: Scene) -> list[str]:
    return [thing.label for thing in scene.things]


@pytest.mark.weights
def test_a_photo_becomes_a_scene(eyes: Eyes) -> None:
    scene, _ = eyes.look(jpeg(photo("chelsea")), 40, EyesState(), wants_main=True)
    assert scene.at_ms == 40
    assert labels(scene) == ["cat"]
    assert (scene.main, scene.condition, scene.motion) == ("cat", "clear", 0.0)
    assert scene.main_confidence > 0.9
    assert "brown" in scene.colours
    assert scene.lettering is None
    (cat,) = scene.things
    assert (cat.track_id, cat.num_frames, cat.distance_m) == (1, 1, None)  # it fills the picture


@pytest.mark.weights
def test_bytes_and_pixels_give_the_same_scene(eyes: Eyes) -> None:
    from omni_encoders.image import decode_image

    data = jpeg(photo("astronaut"))
    assert eyes.look(data, 0, EyesState())[0] == eyes.look(decode_image(data), 0, EyesState())[0]


@pytest.mark.weights
@pytest.mark.parametrize("spoil", [blurred, smeared, covered])
def test_nothing_is_guessed_in_spoilt_pictures(eyes: Eyes, spoil: object) -> None:
    assert callable(spoil)
    for name in PHOTOS:
        scene, _ = eyes.look(spoil(photo(name)), 0, EyesState(), wants_main=True)
        assert scene.condition in ("blurred", "covered"), name
        assert (scene.things, scene.main) == ((), None), name


@pytest.mark.weights
@pytest.mark.parametrize(
    ("level", "condition"), [(0, "covered"), (128, "covered"), (255, "bright")]
)
def test_a_blank_picture_has_nothing(eyes: Eyes, level: int, condition: str) -> None:
    scene, _ = eyes.look(np.full((480, 640, 3), level, dtype=np.uint8), 0, EyesState())
    assert (scene.condition, scene.things) == (condition, ())


@pytest.mark.weights
def test_what_is_no_image_is_refused_and_leaves_the_state(eyes: Eyes) -> None:
    with pytest.raises(InputError):
        eyes.look(b"GIF89a nothing", 0, EyesState())
    with pytest.raises(InputError, match=r"expected uint8 \[H, W, 3\]"):
        eyes.look(np.zeros((4, 4), dtype=np.uint8), 0, EyesState())


@pytest.mark.weights
def test_an_unchanged_picture_is_not_looked_at_again_but_ages(
    eyes: Eyes, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    find = eyes._detector.find
    monkeypatch.setattr(eyes._detector, "find", lambda *a: looks.append(1) or find(*a))
    noise = np.random.default_rng(0)
    state, scenes = EyesState(), []
    for at_ms in range(0, MAX_STILL_MS, 200):
        pixels = photo("chelsea").astype(np.int16) + noise.integers(-3, 4, (300, 451, 3))
        scene, state = eyes.look(np.clip(pixels, 0, 255).astype(np.uint8), at_ms, state)
        scenes.append(scene)
    assert len(looks) == 1
    assert [scene.at_ms for scene in scenes] == list(range(0, MAX_STILL_MS, 200))
    assert [scene.things[0].num_frames for scene in scenes] == list(range(1, 11))
    assert {scene.things[0].track_id for scene in scenes} == {1}
    _, state = eyes.look(photo("chelsea"), MAX_STILL_MS, state)
    assert len(looks) == 2  # all the same, after a while
    scene, state = eyes.look(photo("coffee"), MAX_STILL_MS + 200, state)
    assert len(looks) == 3
    assert scene.motion > 0.3
    assert "cat" not in labels(scene)


@pytest.mark.weights
def test_a_covered_moment_hides_things_and_keeps_their_numbers(eyes: Eyes) -> None:
    state = EyesState()
    first, state = eyes.look(photo("astronaut"), 0, state)
    hidden, state = eyes.look(covered(photo("astronaut")), 300, state)
    again, state = eyes.look(photo("astronaut"), 600, state)
    assert hidden.things == ()
    assert again.things[0].track_id == first.things[0].track_id
    assert again.things[0].num_frames == 2


@pytest.mark.weights
def test_the_state_is_a_value(eyes: Eyes) -> None:
    """The same picture from the same state gives the same scene, whatever was seen between."""
    _, state = eyes.look(photo("camera"), 0, EyesState())
    once, _ = eyes.look(photo("astronaut"), 500, state)
    eyes.look(photo("chelsea"), 900, state)
    assert eyes.look(photo("astronaut"), 500, state)[0] == once


@pytest.mark.weights
def test_threads_share_the_eyes(eyes: Eyes) -> None:
    wanted = {name: eyes.look(photo(name), 0, EyesState())[0] for name in PHOTOS[:4]}
    seen: dict[str, Scene] = {}

    def look(name: str, pixels: Pixels) -> None:
        seen[name] = eyes.look(pixels, 0, EyesState())[0]

    threads = [threading.Thread(target=look, args=(name, photo(name))) for name in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Summing in another order moves a box by less than a thousandth.
    for name, scene in wanted.items():
        assert labels(seen[name]) == labels(scene)
        for thing, other in zip(seen[name].things, scene.things, strict=True):
            assert thing.box == pytest.approx(other.box, abs=1e-3)


@pytest.mark.weights
def test_looking_can_be_stopped(eyes: Eyes) -> None:
    with pytest.raises(CancelledError):
        eyes.look(photo("chelsea"), 0, EyesState(), should_stop=lambda: True)


@pytest.mark.weights
@needs_street
def test_people_in_the_street_keep_their_numbers(eyes: Eyes) -> None:
    """Three people walk apart for two seconds; two parked vehicles never move."""
    state, scenes = EyesState(), []
    for number, frame in enumerate(street(*range(0, 20, 2))):
        scene, state = eyes.look(frame, 200 * number, state)
        scenes.append(scene)
    people = [{t.track_id for t in scene.things if t.label == "person"} for scene in scenes]
    lasting = set.intersection(*people)
    assert len(lasting) == 3
    for scene in scenes[3:]:
        assert all(t.num_frames > 3 for t in scene.things if t.track_id in lasting)
        # Nobody comes straight at a camera on a roof.
        assert all(abs(t.approach_per_s) < 0.35 for t in scene.things if t.track_id in lasting)
    distances = [t.distance_m for t in scenes[-1].things if t.track_id in lasting]
    assert all(d is not None and 5 < d < 25 for d in distances), distances


def test_confidence_grows_with_the_score_and_stays_a_probability() -> None:
    for label in ("person", "car", "dog", "cup"):
        shares = [confidence_of(label, score / 100) for score in range(101)]
        assert shares == sorted(shares)
        assert 0 <= shares[0] <= shares[-1] < 1
    assert confidence_of("person", 0.45) > confidence_of("kite", 0.45) + 0.5


def test_distance_follows_from_height_and_is_not_guessed() -> None:
    near = distance_m("person", (0.4, 0.1, 0.6, 0.9), 640, 480)
    far = distance_m("person", (0.45, 0.3, 0.55, 0.7), 640, 480)
    assert near is not None
    assert far is not None
    assert near == pytest.approx(1.79, abs=0.01)  # 1.65 m in 0.8 of 60 degrees
    assert far == pytest.approx(2 * near)
    assert distance_m("person", (0.4, 0.2, 0.6, 1.0), 640, 480) is None  # feet not seen
    assert distance_m("kite", (0.4, 0.1, 0.6, 0.9), 640, 480) is None  # of any size
    assert distance_m("person", (0.2, 0.4, 0.8, 0.6), 640, 480) is None  # lies down


def test_a_picture_twice_as_large_shows_the_same_distance() -> None:
    box = (0.4, 0.3, 0.6, 0.8)
    assert distance_m("car", box, 640, 480) == pytest.approx(distance_m("car", box, 1280, 960))
