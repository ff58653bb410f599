"""Photos held before the camera: named or honestly not, and read aloud; real eyes, real speech."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import cv2
import numpy as np
import pytest
from omni_streaming.assembly import assemble

from omni.config import Config, home
from omni.store import is_present
from tests.encoders.photos import photo
from tests.streaming.serving import Socket, serving_on_a_thread, socket

NEEDED = (
    "qwen2.5-coder-0.5b",
    "whisper-base",
    "smart-turn-v3",
    "nanodet-416",
    "efficientnet-lite0",
)
UNSURE = ("not sure", "cannot", "recognise", "mostly")

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    if not all(is_present(name, home(Config())) for name in NEEDED):
        pytest.skip("the embedded weights are absent: run `omni fetch`")
    with serving_on_a_thread(assemble(Config())) as place:
        yield place


def frame(name: str) -> str:
    pixels = np.ascontiguousarray(photo(name)[:, :, ::-1])
    return base64.b64encode(cv2.imencode(".jpg", pixels)[1].tobytes()).decode()


@asynccontextmanager
async def camera_on(url: str, image: str) -> AsyncIterator[Socket]:
    """Describe mode with a camera that shows ``image`` four times a second."""
    async with socket(url) as client:
        await client.send("session.update", session={"type": "realtime", "omni": {"describe": {}}})
        await client.until("session.updated")

        async def film() -> None:
            while True:
                await client.send("omni.frame.append", image=image)
                await asyncio.sleep(0.25)

        filming = asyncio.create_task(film())
        try:
            yield client
        finally:
            filming.cancel()


async def told(client: Socket, kind: str) -> tuple[str, int]:
    """The next response of a kind: its words, and the size of its sound."""
    first = len(client.events)
    while True:
        response = (await client.until("response.done"))["response"]
        if (response["metadata"] or {}).get("omni_kind") == kind and response["output"]:
            break
    sound = [
        len(event["delta"])
        for event in client.events[first:]
        if event["type"] == "response.output_audio.delta" and event["response_id"] == response["id"]
    ]
    return response["output"][0]["content"][0]["transcript"], sum(sound)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("astronaut", ("person",)),
        ("chelsea", ("cat",)),
        ("coffee", ("cup", "espresso", "dining table", *UNSURE)),
        ("rocket", ("rocket", "missile", *UNSURE)),
    ],
)
@pytest.mark.slow
async def test_a_photo_is_named_or_honestly_not(
    url: str, name: str, expected: tuple[str, ...]
) -> None:
    async with camera_on(url, frame(name)) as client:
        text, num_bytes = await told(client, "change")
        assert any(word in text for word in expected), text
        assert num_bytes > 20_000, "it was not spoken"


async def test_a_page_is_read_aloud(url: str) -> None:
    async with camera_on(url, frame("page")) as client:
        await told(client, "framing")
        await client.send("omni.describe.command", command="read")
        text, num_bytes = await told(client, "text")
        assert "Region-based segmentation" in text
        assert "determine markers of the coins" in text
        assert num_bytes > 500_000, "it was not spoken"
