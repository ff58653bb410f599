"""A headless Chromium on the page, with a recording as its microphone, and a server to talk to.

The browser's own WebSocket and loudspeaker are watched from outside the page: every event with its
time, and when sound leaves the page.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import threading
import wave
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from omni_encoders.vad import VoiceActivity
from omni_streaming.listener import Listener, bind
from omni_streaming.server import Server

from omni.config import Config
from omni.parts import Parts
from omni.scripted import Script, ScriptedAssistant
from omni.types import Command, Commit, Confirm, Speculate
from omni.worker import Worker

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
ESPEAK = shutil.which("espeak-ng")
MICROPHONE_HZ = 48_000

WATCH = """
window.watched = {wire: [], sound: [], errors: [], phases: []};
window.addEventListener("error", (event) => watched.errors.push(event.message));
window.addEventListener("unhandledrejection", (event) => watched.errors.push(`${event.reason}`));
const PlainSocket = window.WebSocket;
window.WebSocket = class extends PlainSocket {
  constructor(...args) {
    super(...args);
    window.watched.socket = this;
    this.addEventListener("message", ({data}) => watched.note("in", data));
    const send = this.send.bind(this);
    this.send = (data) => { watched.note("out", data); send(data); };
  }
};
watched.note = (direction, data) => {
  const {audio, delta, image, ...event} = JSON.parse(data);
  if (image) {
    event.image_chars = image.length;
    watched.image = image;
  }
  if (audio) {
    const bytes = Uint8Array.from(atob(audio), (char) => char.charCodeAt(0));
    const samples = new Int16Array(bytes.buffer);
    event.num_samples = samples.length;
    event.peak = Math.max(...samples.map(Math.abs)) / 32768;
  }
  watched.wire.push({direction, at: performance.now(), ...event});
};
document.addEventListener("DOMContentLoaded", () => {
  const note = () => watched.phases.push(document.body.dataset.phase);
  new MutationObserver(note).observe(document.body, {attributeFilter: ["data-phase"]});
});
const plainConnect = AudioNode.prototype.connect;
AudioNode.prototype.connect = function (target, ...rest) {
  if (target instanceof AudioDestinationNode) {
    const analyser = this.context.createAnalyser();
    analyser.fftSize = 256;
    plainConnect.call(this, analyser);
    const samples = new Float32Array(analyser.fftSize);
    let wasAudible = false;
    setInterval(() => {
      analyser.getFloatTimeDomainData(samples);
      const isAudible = samples.some((sample) => Math.abs(sample) > 0.003);
      if (isAudible !== wasAudible) watched.sound.push({at: performance.now(), isAudible});
      wasAudible = isAudible;
    }, 5);
  }
  return plainConnect.call(this, target, ...rest);
};
"""


ONSET_PEAK = 0.02  # of a chunk that carries voice; the recordings' silence is below 0.001


def require_browser() -> None:
    """Skip the test, saying why, where there is no Chromium to drive."""
    for name, found in (("chromium", CHROMIUM), ("chromedriver", CHROMEDRIVER)):
        if found is None:
            pytest.skip(f"{name} is not installed (docker/test-packages.sh installs it)")
    pytest.importorskip("selenium", reason="selenium is not installed (pip install '.[dev]')")


def speak(text: str, folder: Path) -> NDArray[np.float32]:
    """``text`` by espeak-ng at the microphone's rate."""
    if ESPEAK is None:
        pytest.skip("espeak-ng is not installed (docker/test-packages.sh installs it)")
    file = folder / "espeak.wav"
    subprocess.run([ESPEAK, "-v", "en-us", "-s", "150", "-w", file, text], check=True)
    with wave.open(str(file)) as recording:
        rate = recording.getframerate()
        samples = np.frombuffer(recording.readframes(recording.getnframes()), "<i2")
    times = np.arange(int(len(samples) * MICROPHONE_HZ / rate)) * rate / MICROPHONE_HZ
    spoken: NDArray[np.float32] = np.interp(times, np.arange(len(samples)), samples / 32768.0)
    return spoken.astype(np.float32)


def write_microphone(file: Path, parts: Sequence[NDArray[np.float32] | float]) -> Path:
    """A recording for the fake microphone: samples, and numbers for seconds of silence."""
    noise = np.random.default_rng(0)
    pieces = [
        part
        if isinstance(part, np.ndarray)
        else 1e-4 * noise.standard_normal(int(part * MICROPHONE_HZ))
        for part in parts
    ]
    with wave.open(str(file), "wb") as recording:
        recording.setnchannels(1)
        recording.setsampwidth(2)
        recording.setframerate(MICROPHONE_HZ)
        recording.writeframes((np.concatenate(pieces) * 32767).astype("<i2").tobytes())
    return file


@contextlib.contextmanager
def serving(server: Server, port: int = 0, *, is_ready: bool = True) -> Iterator[str]:
    """Serve from another thread, on a free port by default; yields the page's address.

    With ``is_ready`` false, the assistant is not waited for.
    """
    started = threading.Event()
    box: dict[str, Any] = {}

    async def run() -> None:
        with bind("127.0.0.1", port) as listening:
            async with Listener(
                server.app(), server.config.server, listening, server.drain
            ) as listener:
                box.update(url=listener.url, loop=asyncio.get_running_loop())
                box["over"] = asyncio.Event()
                started.set()
                await box["over"].wait()

    server.worker.start()
    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        if is_ready:
            assert server.worker.wait(120) == "ready", server.worker.failure
        assert started.wait(10)
        yield box["url"]
    finally:
        box["loop"].call_soon_threadsafe(box["over"].set)
        thread.join()
        server.worker.stop()


class Scripted(ScriptedAssistant):
    """Ends a turn whose speculative answer was finished before it was confirmed; keeps commands."""

    def __init__(self, script: Script) -> None:
        super().__init__(script=script)
        self.commands: list[Command] = []
        self._turn_of: dict[str, str] = {}

    def submit(self, command: Command) -> None:
        super().submit(command)
        self.commands.append(command)
        if isinstance(command, Speculate):
            self._turn_of[command.response_id] = command.turn_id
        if isinstance(command, Confirm):
            super().submit(Commit(command.session_id, self._turn_of[command.response_id]))


def scripted_server(
    script: Script,
    config: Config | None = None,
    assistant: Scripted | None = None,
    may_load: threading.Event | None = None,
) -> Server:
    """A server whose assistant answers by ``script``, or is ``assistant``.

    With ``may_load`` the assistant is still loading until that is set.
    """

    def build(parts: Parts) -> Scripted:
        assert may_load is None or may_load.wait(120)
        return assistant or Scripted(script)

    return Server(
        config=config or Config(),
        worker=Worker(build),
        vad=VoiceActivity(),
        model="scripted",
        voices=lambda: ScriptedAssistant.voices,
    )


class Page:
    """The page in one browser. Times are milliseconds of the page's clock."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get(url)

    def js(self, code: str, *arguments: object) -> Any:
        return self.driver.execute_script(code, *arguments)

    def text(self, selector: str) -> str:
        """Text of an element as shown; empty when hidden."""
        found: str = self.js(
            "const element = document.querySelector(arguments[0]);"
            "return element?.checkVisibility() ? element.innerText : ''",
            selector,
        )
        return found.strip()

    def click(self, name: str) -> None:
        self.driver.find_element("id", name).click()

    def press(self, *keys: str) -> None:
        """Press keys together, wherever the focus is."""
        from selenium.webdriver import ActionChains

        chain = ActionChains(self.driver)
        for key in keys:
            chain.key_down(key)
        for key in reversed(keys):
            chain.key_up(key)
        chain.perform()

    @property
    def focused(self) -> str:
        found: str = self.js("return document.activeElement.id")
        return found

    @property
    def phase(self) -> str:
        found: str = self.js("return document.body.dataset.phase")
        return found

    @property
    def turns(self) -> list[dict[str, str]]:
        """The transcript: role, text and note of every turn."""
        found: list[dict[str, str]] = self.js(
            "return [...document.querySelectorAll('.turn')].map((turn) => ({"
            "role: turn.classList.contains('user') ? 'user' : 'assistant',"
            "text: turn.querySelector('.text').textContent,"
            "note: turn.querySelector('.note').textContent,"
            "busy: turn.getAttribute('aria-busy')}))"
        )
        return found

    def events(self, type_: str, direction: str | None = None) -> list[dict[str, Any]]:
        """Wire events of a type so far, with ``direction`` in or out and ``at``."""
        wire: list[dict[str, Any]] = self.js("return watched.wire")
        return [e for e in wire if e["type"] == type_ and direction in (None, e["direction"])]

    def voice_at(self) -> list[float]:
        """When chunks with voice in them left the page."""
        sent = self.events("input_audio_buffer.append", "out")
        return [event["at"] for event in sent if event["peak"] > ONSET_PEAK]

    @property
    def phases(self) -> list[str]:
        """Every phase shown so far, in order."""
        found: list[str] = self.js("return watched.phases")
        return found

    @property
    def sound(self) -> list[dict[str, Any]]:
        """Changes between silence and sound at the loudspeaker."""
        found: list[dict[str, Any]] = self.js("return watched.sound")
        return found

    def wait(self, what: Callable[[Page], Any], timeout_s: float = 15.0) -> Any:
        """Wait until ``what`` is true of the page and return it."""
        from selenium.common.exceptions import TimeoutException
        from selenium.webdriver.support.ui import WebDriverWait

        try:
            return WebDriverWait(self.driver, timeout_s, poll_frequency=0.02).until(
                lambda _: what(self)
            )
        except TimeoutException:
            state = {"phase": self.phase, "turns": self.turns, "notice": self.text("#notice")}
            state["errors"] = self.js("return watched.errors")
            state["wire"] = [
                f"{e['direction']} {e['type']}"
                for e in self.js("return watched.wire")
                if e["type"] != "input_audio_buffer.append"
            ][-20:]
            raise AssertionError(f"the page never got there: {json.dumps(state)}") from None


@contextlib.contextmanager
def chromium(
    profile: Path, microphone: Path | None = None, *flags: str, granted: bool = True
) -> Iterator[Page]:
    """A fresh headless browser; ``microphone`` is played once as the user's voice."""
    require_browser()
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1280,800",
        f"--user-data-dir={profile}",
        *flags,
    ):
        options.add_argument(flag)
    if granted:
        options.add_argument("--use-fake-ui-for-media-stream")
    if microphone is not None:
        options.add_argument("--use-fake-device-for-media-stream")
        options.add_argument(f"--use-file-for-fake-audio-capture={microphone}%noloop")
    driver = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    try:
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
        yield Page(driver)
    finally:
        driver.quit()


def type_message(page: Page, text: str) -> None:
    """Write ``text`` on the page and send it."""
    page.driver.find_element("id", "message").send_keys(text, "\ue007")  # Enter
