"""What the tests of the page that describes share: cameras, and a server told what to say.

The server speaks the events of live description as the protocol has them, but sees nothing: a test
says what is in the picture. Everything on the browser's side is real.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib.util
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from omni_streaming.listener import Listener, bind
from omni_streaming.server import WEB, Pages
from page_driver import Page, chromium, write_microphone
from starlette.applications import Starlette
from starlette.routing import Mount, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from omni.config import ServerConfig

ENTER, ESCAPE, TAB, SPACE, SHIFT = "\ue007", "\ue00c", "\ue004", " ", "\ue008"
RATE_HZ = 24_000

VOICE = """
watched.spoken = [];
speechSynthesis.getVoices = () => [{lang: "en", name: "of the test"}];
speechSynthesis.speak = ({text}) => watched.spoken.push(text);
"""
"""Gives the browser a voice: headless ones have none. What it is told to say is kept."""


def write_camera(file: Path, *, is_still: bool = False) -> Path:
    """A recording for the fake camera, 1280 x 720: noise that moves, or one picture only."""
    noise = np.random.default_rng(0)
    small = noise.integers(0, 255, (9, 16, 3)).astype(np.uint8)
    picture = cv2.resize(small, (1280, 720), interpolation=cv2.INTER_CUBIC)
    frames = [picture] * 2 if is_still else [np.roll(picture, 40 * k, axis=1) for k in range(32)]
    with file.open("wb") as recording:
        for frame in frames:
            recording.write(cv2.imencode(".jpg", frame)[1].tobytes())
    return file


class Describing:
    """A server of one session at a time that says what a test tells it to say."""

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        self.num_connections = 0
        self.session: dict[str, Any] = {}
        self.refuses: tuple[int, str] | None = None
        """Close code and error code for whoever connects, as the server refuses clients."""
        self.is_recording = False
        self._socket: WebSocket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._num_responses = 0

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                WebSocketRoute("/v1/realtime", self._serve),
                Mount("/", Pages(directory=WEB, html=True)),
            ]
        )

    async def _serve(self, socket: WebSocket) -> None:
        self._loop = asyncio.get_running_loop()
        self.num_connections += 1
        await socket.accept("realtime")
        if self.refuses is not None:
            close_code, code = self.refuses
            error = {"type": "server_error", "code": code, "message": code, "param": None}
            await socket.send_json({"type": "error", "error": error})
            await socket.close(close_code)
            return
        self._socket = socket
        await socket.send_json({"type": "session.created", "session": {"type": "realtime"}})
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                event = json.loads(await socket.receive_text())
                if event["type"] != "input_audio_buffer.append":
                    self.received.append(event)
                if event["type"] == "session.update":
                    self.session = event["session"]
                    await socket.send_json(self.updated())
                if event["type"] == "input_audio_buffer.commit":
                    await socket.send_json(
                        {"type": "input_audio_buffer.committed", "item_id": "item_user"}
                    )

    def updated(self) -> dict[str, Any]:
        """The event that shows the session as it is."""
        recorded = {"recorded": True} if self.is_recording else {}
        shown = {**self.session, "omni": {**self.session["omni"], **recorded}}
        return {"type": "session.updated", "session": shown}

    def of(self, type_: str) -> list[dict[str, Any]]:
        return [event for event in self.received if event["type"] == type_]

    @property
    def commands(self) -> list[str]:
        return [event["command"] for event in self.of("omni.describe.command")]

    def send(self, *events: dict[str, Any]) -> None:
        async def all_of_them() -> None:
            assert self._socket is not None
            for event in events:
                await self._socket.send_json(event)

        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(all_of_them(), self._loop).result(10)

    def drop(self, code: int) -> None:
        assert self._loop is not None
        assert self._socket is not None
        asyncio.run_coroutine_threadsafe(self._socket.close(code), self._loop).result(10)

    def say(self, kind: str, text: str, *, sound_s: float = 0.3) -> str:
        """Say ``text`` as one response; returns its id."""
        response = self.begin(kind, text, sound_s=sound_s)
        self.finish(response, text)
        return response

    def begin(self, kind: str, text: str, *, sound_s: float = 0.3) -> str:
        self._num_responses += 1
        response_id = f"resp_{self._num_responses}"
        item_id = f"item_{self._num_responses}"
        metadata = {"omni_kind": kind, "omni_frame_ms": "0"}
        response = {"id": response_id, "status": "in_progress", "metadata": metadata}
        item = {"id": item_id, "type": "message", "role": "assistant", "status": "in_progress"}
        at = {"response_id": response_id, "item_id": item_id}
        pieces = [text[k : k + 5] for k in range(0, len(text), 5)]
        events: list[dict[str, Any]] = [
            {"type": "response.created", "response": {**response, "output": []}},
            {"type": "response.output_item.added", "response_id": response_id, "item": item},
        ]
        if self.session["output_modalities"] == ["text"]:
            delta = "response.output_text.delta"
        else:
            delta = "response.output_audio_transcript.delta"
            wave = np.sin(np.arange(int(sound_s * RATE_HZ)) * 2 * np.pi * 440 / RATE_HZ)
            pcm = (wave * 9000).astype("<i2").tobytes()
            sound = base64.b64encode(pcm).decode()
            events.append({"type": "response.output_audio.delta", **at, "delta": sound})
        events += [{"type": delta, **at, "delta": piece} for piece in pieces]
        self.send(*events)
        return response_id

    def finish(self, response_id: str, text: str, status: str = "completed") -> None:
        item_id = response_id.replace("resp", "item")
        item = {"id": item_id, "type": "message", "role": "assistant"}
        item["status"] = "completed" if status == "completed" else "incomplete"
        events: list[dict[str, Any]] = []
        if self.session["output_modalities"] == ["audio"]:
            events.append({"type": "response.output_audio.done", "item_id": item_id})
        response = {"id": response_id, "status": status, "output": [item]}
        events.append(
            {"type": "response.output_item.done", "response_id": response_id, "item": item}
        )
        self.send(*events, {"type": "response.done", "response": response})


@contextlib.contextmanager
def serving_sight(sight: Describing, port: int = 0) -> Iterator[str]:
    """Serve from another thread; yields the address of the page that describes."""
    started = threading.Event()
    box: dict[str, Any] = {}

    async def nothing_to_drain() -> None:
        return None

    async def run() -> None:
        with bind("127.0.0.1", port) as listening:
            config = ServerConfig()
            async with Listener(sight.app(), config, listening, nothing_to_drain) as listener:
                box.update(url=listener.url, loop=asyncio.get_running_loop())
                box["over"] = asyncio.Event()
                started.set()
                await box["over"].wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert started.wait(10)
        yield f"{box['url']}/see"
    finally:
        box["loop"].call_soon_threadsafe(box["over"].set)
        thread.join()


@contextlib.contextmanager
def watching(
    folder: Path, *flags: str, is_still: bool = False, granted: bool = True
) -> Iterator[Page]:
    """A browser with a camera and a silent microphone."""
    folder.mkdir(parents=True, exist_ok=True)
    camera = write_camera(folder / "camera.mjpeg", is_still=is_still)
    microphone = write_microphone(folder / "silence.wav", [1.0])
    file = f"--use-file-for-fake-video-capture={camera}"
    with chromium(folder / "profile", microphone, file, *flags, granted=granted) as page:
        yield page


def open_page(page: Page, url: str, *, settings: dict[str, Any] | None = None) -> None:
    """Open the page as a new visitor, or as one who has chosen ``settings`` before."""
    page.open(url)
    page.js("localStorage.clear()")
    if settings:
        page.js("localStorage.setItem('omni.see', arguments[0])", json.dumps(settings))
    page.open(url)


def start(page: Page, sight: Describing, url: str, **settings: Any) -> None:
    """Open the page and press Start; returns once it is connected and listens."""
    sight.refuses = None
    sight.received.clear()
    open_page(page, url, settings=settings)
    page.press(ENTER)
    page.wait(lambda p: p.phase == "listening")


def until(page: Page, what: Callable[[], Any], timeout_s: float = 15.0) -> Any:
    """Wait until something is true at the server."""
    return page.wait(lambda _: what(), timeout_s)


def axe_source() -> str:
    """The rules of axe-core; its Python package is not imported, only its script is used."""
    spec = importlib.util.find_spec("axe_playwright_python")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("axe-playwright-python is not installed (pip install '.[dev]')")
    folder = Path(spec.submodule_search_locations[0])
    return (folder / "axe.min.js").read_text(encoding="utf-8")


def violations(page: Page) -> list[str]:
    """What axe-core finds wrong with the page as it is now."""
    page.js(axe_source())
    found: list[str] = page.driver.execute_async_script(
        "const done = arguments[0];"
        "axe.run(document, {resultTypes: ['violations']}).then(({violations}) => done("
        "violations.map(({id, nodes}) => `${id}: ${nodes.map((n) => n.html).join(' | ')}`)))"
    )
    return found
