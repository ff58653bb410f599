"""The whole way: a camera in a browser, the embedded eyes, words and sound in the page."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray
from omni_streaming.assembly import assemble
from page_driver import chromium, require_browser, serving, write_microphone
from see_driver import ENTER, open_page

from omni.config import Config, home
from omni.store import is_present

NAMES = (
    "qwen2.5-coder-0.5b",
    "whisper-base",
    "smart-turn-v3",
    "nanodet-416",
    "efficientnet-lite0",
)
pytestmark = [
    pytest.mark.weights,
    pytest.mark.skipif(
        not all(is_present(name, home(Config())) for name in NAMES),
        reason="the embedded weights are absent: run `omni fetch`",
    ),
]


def table_with_a_sign() -> NDArray[np.uint8]:
    """A photograph of a cup of coffee, and a sign with FIRE EXIT in the corner; BGR."""
    picture = np.full((720, 1280, 3), 90, np.uint8)
    picture[:, :1080] = cv2.resize(skimage.data.coffee()[:, :, ::-1], (1080, 720))
    sign = np.full((200, 560, 3), 245, np.uint8)
    cv2.putText(sign, "FIRE EXIT", (30, 125), cv2.FONT_HERSHEY_SIMPLEX, 3, (20, 20, 20), 8)
    picture[20:220, 680:1240] = sign
    return picture


def write_noisy_camera(file: Path, picture: NDArray[np.uint8]) -> Path:
    """A recording of ``picture`` by a sensor with noise, as every camera has."""
    noise = np.random.default_rng(0)
    with file.open("wb") as recording:
        for _ in range(16):
            frame = np.clip(picture + noise.integers(-2, 3, picture.shape), 0, 255)
            recording.write(cv2.imencode(".jpg", frame.astype(np.uint8))[1].tobytes())
    return file


@pytest.mark.slow
def test_cup_is_seen_and_a_sign_is_read_aloud(tmp_path: Path) -> None:
    require_browser()
    camera = write_noisy_camera(tmp_path / "camera.mjpeg", table_with_a_sign())
    microphone = write_microphone(tmp_path / "silence.wav", [1.0])
    file = f"--use-file-for-fake-video-capture={camera}"
    with (
        serving(assemble(Config())) as url,
        chromium(tmp_path / "profile", microphone, file) as page,
    ):
        open_page(page, f"{url}/see", settings={"earcons": False})
        page.press(ENTER)
        page.wait(lambda p: any("mobility aid" in turn["text"] for turn in p.turns), 60)
        page.wait(lambda p: p.sound and p.sound[-1]["isAudible"])
        page.wait(lambda p: any("cup" in turn["text"] for turn in p.turns), 60)
        page.press("t")
        page.wait(lambda p: any("FIRE EXIT" in turn["text"] for turn in p.turns), 60)
        page.wait(lambda p: p.phase == "listening", 30)
        assert page.text("#notice") == ""
        assert page.events("error", "in") == []
        assert page.js("return watched.errors") == []
