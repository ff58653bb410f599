"""Light, sharpness, condition, colours and motion, on real photos and as properties."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omni_encoders.measures import PALETTE, colours_of, measure, motion_between
from photos import Pixels, blurred, covered, needs_street, photo, smeared, street

PHOTOS = ("astronaut", "camera", "chelsea", "coffee", "motorcycle_left", "rocket", "page", "brick")


@pytest.mark.parametrize("name", PHOTOS)
def test_photos_are_clear_and_spoilt_ones_are_not(name: str) -> None:
    assert measure(photo(name)).condition == "clear"
    assert measure(blurred(photo(name))).condition in ("blurred", "covered")
    assert measure(covered(photo(name))).condition == "covered"


@pytest.mark.parametrize("name", PHOTOS[:-1])
def test_a_swung_camera_blurs(name: str) -> None:
    assert measure(smeared(photo(name))).sharpness < 0.2


@pytest.mark.parametrize("name", PHOTOS)
def test_more_blur_is_less_sharp(name: str) -> None:
    pixels = photo(name)
    sharp = [measure(pixels).sharpness]
    for sigma in (2, 4, 8, 16):
        blurry = np.asarray(cv2.GaussianBlur(pixels, (0, 0), sigma), dtype=np.uint8)
        sharp.append(measure(blurry).sharpness)
    assert sharp == sorted(sharp, reverse=True)


@pytest.mark.parametrize("name", PHOTOS)
def test_size_and_contrast_hardly_change_sharpness(name: str) -> None:
    pixels = photo(name)
    large = np.asarray(cv2.resize(pixels, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC))
    pale = (pixels // 2 + 64).astype(np.uint8)
    wanted = measure(pixels).sharpness
    assert measure(large.astype(np.uint8)).sharpness == pytest.approx(wanted, rel=0.25)
    assert measure(pale).sharpness == pytest.approx(wanted, rel=0.25)


@pytest.mark.parametrize("name", PHOTOS)
def test_too_little_and_too_much_light_are_told(name: str) -> None:
    noise = np.random.default_rng(0).normal(0, 1, photo(name).shape)
    night = np.clip(photo(name) * 0.02 + noise, 0, 255).astype(np.uint8)
    assert measure(night).condition in ("dark", "covered")
    glare = np.clip(photo(name) * 0.1 + 245, 0, 255).astype(np.uint8)
    assert measure(glare).condition == "bright"


def test_a_lamp_in_the_dark_is_darkness_and_no_cover() -> None:
    pixels = np.zeros((480, 640, 3), dtype=np.uint8)
    pixels[200:260, 300:360] = 255
    pixels[100:104, 100:500] = 90
    assert measure(pixels).condition == "dark"


@pytest.mark.parametrize("name", list(PALETTE))
def test_a_colour_is_called_by_its_name(name: str) -> None:
    pixels = np.full((60, 80, 3), PALETTE[name], dtype=np.uint8)
    assert colours_of(pixels) == (name,)


def test_the_commonest_colour_comes_first_and_specks_are_not_named() -> None:
    pixels = np.full((100, 100, 3), PALETTE["red"], dtype=np.uint8)
    pixels[:30] = PALETTE["blue"]
    pixels[90:, 90:] = PALETTE["yellow"]
    assert colours_of(pixels) == ("red", "blue")


def moved(pixels: Pixels, gain: float, offset: float) -> Pixels:
    return np.clip(pixels * gain + offset, 0, 255).astype(np.uint8)


@settings(deadline=None, max_examples=25)
@given(
    gain=st.floats(0.6, 1.3),
    offset=st.floats(-20, 20),
    name=st.sampled_from(("chelsea", "camera", "coffee")),
    seed=st.integers(0, 99),
)
def test_light_and_noise_are_no_motion(gain: float, offset: float, name: str, seed: int) -> None:
    before = photo(name)
    noise = np.random.default_rng(seed).normal(0, 4, before.shape)
    now = np.clip(moved(before, gain, offset) + noise, 0, 255).astype(np.uint8)
    assert motion_between(measure(before).thumbnail, measure(now).thumbnail) < 0.02


@settings(deadline=None, max_examples=25)
@given(x=st.integers(0, 300), y=st.integers(0, 180), gain=st.floats(0.8, 1.2))
def test_what_appears_is_motion_in_any_light(x: int, y: int, gain: float) -> None:
    before = photo("chelsea")
    now = moved(before, gain, 0)
    now[y : y + 100, x : x + 100] = 0 if before[y : y + 100, x : x + 100].mean() > 100 else 255
    motion = motion_between(measure(before).thumbnail, measure(now).thumbnail)
    share = 100 * 100 / (before.shape[0] * before.shape[1])
    assert 0.4 * share < motion < 3 * share


def test_no_change_is_no_motion_and_another_scene_is_much() -> None:
    cat, cup = measure(photo("chelsea")).thumbnail, measure(photo("coffee")).thumbnail
    assert motion_between(cat, cat) == 0
    assert motion_between(cat, cup) > 0.3


@needs_street
def test_people_who_walk_are_motion() -> None:
    frames = [measure(frame).thumbnail for frame in street(0, 5, 10, 15)]
    motions = [motion_between(a, b) for a, b in pairwise(frames)]
    assert all(0.002 < motion < 0.1 for motion in motions), motions


@pytest.mark.parametrize("size", [(9000, 12), (12, 9000), (10, 10)])
def test_the_narrowest_strip_is_measured(size: tuple[int, int]) -> None:
    dark = measure(np.zeros((*size, 3), dtype=np.uint8))
    assert (dark.condition, dark.light) == ("covered", 0.0)
