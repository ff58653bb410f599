"""The page, the real eyes and the real model on a street: described, warned, asked.

The street is Debian's recording of pedestrians from above, in which nobody comes near; one of them,
cut out and enlarged from picture to picture, walks up to the camera.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from omni_streaming.assembly import assemble
from page_driver import Page, chromium, require_browser, serving, speak, write_microphone
from see_driver import ENTER, open_page

from omni.config import Config, home
from omni.store import is_present

STREET = Path("/usr/share/doc/opencv-doc/examples/data/vtest.avi")
NEEDED = (
    "qwen2.5-coder-0.5b",
    "whisper-base",
    "smart-turn-v3",
    "nanodet-416",
    "efficientnet-lite0",
)
CAMERA_HZ = 30  # at which the fake camera plays its recording, over and over
QUIET_S, APPROACH_S = 24, 4
WALKER = (200, (0.785, 0.44, 0.865, 0.66))  # a frame and the box of somebody seen whole in it
QUESTION_AT_S = 42.0

pytestmark = [pytest.mark.weights, pytest.mark.slow]


def street() -> Iterator[NDArray[np.uint8]]:
    """Frames of the recording, ten a second."""
    video = cv2.VideoCapture(str(STREET))
    while True:
        is_there, frame = video.read()
        if not is_there:
            return
        yield frame


def walker() -> NDArray[np.uint8]:
    """One pedestrian, cut out along the box."""
    number, (left, top, right, bottom) = WALKER
    frame = next(frame for at, frame in enumerate(street()) if at == number)
    height, width = frame.shape[:2]
    cut = frame[int(top * height) : int(bottom * height), int(left * width) : int(right * width)]
    return np.ascontiguousarray(cut)


def write_street(file: Path) -> Path:
    """A recording for the fake camera: the street, and at its end somebody who comes near."""
    person = walker()
    with file.open("wb") as recording:
        for number, frame in enumerate(street()):
            at_s = number / 10
            if at_s >= QUIET_S + APPROACH_S:
                break
            if at_s >= QUIET_S:
                share = 0.25 * (3.8 ** ((at_s - QUIET_S) / APPROACH_S))
                size = int(frame.shape[0] * share), int(frame.shape[0] * share / 2)
                near = cv2.resize(person, size[::-1], interpolation=cv2.INTER_CUBIC)
                top = (frame.shape[0] - size[0]) // 2
                left = (frame.shape[1] - size[1]) // 2
                frame[top : top + size[0], left : left + size[1]] = near
            data = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
            recording.write(data * (CAMERA_HZ // 10))
    return file


@pytest.fixture
def ready() -> None:
    require_browser()
    if not STREET.is_file():
        pytest.skip("the street video is absent: docker/test-packages.sh installs opencv-doc")
    if not all(is_present(name, home(Config())) for name in NEEDED):
        pytest.skip("the embedded weights are absent: run `omni fetch`")


def kinds(page: Page) -> list[tuple[float, str]]:
    """(time, omni_kind) of each response that has begun."""
    created = page.events("response.created", "in")
    return [(e["at"], (e["response"]["metadata"] or {}).get("omni_kind", "")) for e in created]


def said(page: Page, kind: str) -> list[str]:
    """Whole utterances of this kind: their words come one by one."""
    found: list[str] = page.js(
        "return [...document.querySelectorAll(`.turn[data-kind=${arguments[0]}]`)]"
        ".map((turn) => turn.querySelector('.text').textContent)",
        kind,
    )
    return [text for text in found if text.endswith((".", "!"))]


def test_a_street_is_described_a_walker_is_warned_of_and_a_question_answered(
    tmp_path: Path, ready: None
) -> None:
    camera = write_street(tmp_path / "street.mjpeg")
    question = speak("How many people are there?", tmp_path)
    microphone = write_microphone(tmp_path / "q.wav", [QUESTION_AT_S, question, 60.0])
    file = f"--use-file-for-fake-video-capture={camera}"
    with (
        serving(assemble(Config())) as url,
        chromium(tmp_path / "profile", microphone, file) as page,
    ):
        open_page(page, f"{url}/see", settings={})
        page.press(ENTER)
        described = page.wait(lambda p: said(p, "change"), 40)[0]
        assert "people" in described or "person" in described

        # Something is being said all the time, so that the warning has what to end.
        def warned(p: Page) -> list[str]:
            if p.phase == "listening":
                p.press("f")
            return said(p, "hazard")

        warning = page.wait(warned, 60)[0]
        assert "person" in warning.lower()
        begun = next(at for at, kind in kinds(page) if kind == "hazard")
        stops = [e["at"] for e in page.events("omni.output_audio.stop", "in")]
        assert any(begun - 200 <= at <= begun for at in stops), "the warning ended no speech"

        answer = page.wait(
            lambda p: [text for text in said(p, "answer") if text.startswith(("I see", "One:"))],
            60,
        )[-1]
        assert "people" in answer or "person" in answer
        heard = page.events("input_audio_buffer.speech_stopped", "in")[-1]["at"]
        later = [at for at, kind in kinds(page) if at > heard]
        assert later, "nothing was said after the question"
        assert page.events("error", "in") == []
        assert page.js("return watched.errors") == []
