"""The page that describes, in a real browser with a camera, against a server told what to say."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import httpx
import make_icons
import numpy as np
import pytest
from omni_streaming.server import WEB
from page_driver import Page, chromium, require_browser, scripted_server, serving
from see_driver import (
    ENTER,
    ESCAPE,
    SPACE,
    VOICE,
    Describing,
    open_page,
    serving_sight,
    start,
    until,
    watching,
)

from omni.config import Config, ServerConfig
from omni.scripted import Script

Sight = tuple[Page, Describing, str]


@pytest.fixture(scope="module")
def sight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sight]:
    require_browser()
    server = Describing()
    with (
        serving_sight(server) as url,
        watching(tmp_path_factory.mktemp("sight")) as page,
    ):
        yield page, server, url
        assert page.js("return watched.errors") == []


def picture_sent(page: Page) -> np.ndarray:
    data = base64.b64decode(page.js("return watched.image"))
    assert data[:3] == b"\xff\xd8\xff", "not a JPEG"
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def test_one_key_starts_camera_microphone_and_description(sight: Sight) -> None:
    page, server, url = sight
    open_page(page, url)
    assert page.focused == "talk"
    assert page.text("#talk-label") == "Start"
    page.press(ENTER)
    page.wait(lambda p: p.phase == "listening")
    assert server.session == {
        "type": "realtime",
        "output_modalities": ["audio"],
        "audio": {
            "input": {
                "transcription": {"model": "whisper-1"},
                "turn_detection": {"type": "server_vad"},
            },
            "output": {"speed": 1},
        },
        "omni": {
            "describe": {
                "verbosity": "normal",
                "units": "metric",
                "directions": "sides",
                "hazards": True,
                "quiet": False,
                "language": "en",
                "rate": 1,
            }
        },
    }
    page.wait(lambda p: p.events("input_audio_buffer.append", "out"))
    phases = page.js("return watched.phases")
    assert phases[-1] == "listening"
    assert set(phases[:-1]) <= {"idle", "connecting"}, "no microphone is missing before it is asked"
    assert page.text("#connection") == "Connected"
    assert page.text("#camera-state").endswith(" on")
    assert page.focused == "talk"


def test_frames_are_small_jpegs_two_to_four_a_second_with_the_time_they_were_taken(
    sight: Sight,
) -> None:
    page, server, url = sight
    start(page, server, url)
    frames = page.wait(lambda p: (f := p.events("omni.frame.append", "out"))[12:] and f)
    connected = page.events("session.updated", "in")[0]["at"]
    assert frames[0]["at"] > connected, "no picture leaves before there is a session"
    spacing = np.diff([frame["at"] for frame in frames])
    assert 250 <= np.median(spacing) <= 500
    taken = np.array([frame["taken_ms"] for frame in frames])
    left = np.array([frame["at"] for frame in frames])
    assert (np.diff(taken) > 0).all()
    assert ((left - taken) >= 0).all()
    height, width, _ = picture_sent(page).shape
    assert (width, height) == (640, 360)
    assert page.js("return watched.image.length") < 100_000


@pytest.mark.slow
def test_frames_stop_while_the_socket_is_behind_and_come_back_smaller(sight: Sight) -> None:
    page, server, url = sight
    start(page, server, url)
    page.wait(lambda p: len(p.events("omni.frame.append", "out")) > 2)
    page.js(
        "window.behind = 1e6;"
        "Object.defineProperty(watched.socket, 'bufferedAmount', {get: () => window.behind})"
    )
    before = len(page.events("omni.frame.append", "out"))
    asked_at = page.js("return performance.now()")
    page.wait(lambda p: p.js("return performance.now()") - asked_at > 3000)
    assert len(page.events("omni.frame.append", "out")) - before <= 1  # one was under way
    page.js("window.behind = 0")
    page.wait(lambda p: len(p.events("omni.frame.append", "out")) > before + 1)
    assert max(picture_sent(page).shape) == 320
    page.wait(lambda p: max(picture_sent(p).shape) == 640, 30)


@pytest.mark.slow
def test_hidden_page_sends_fewer_frames(sight: Sight) -> None:
    page, server, url = sight
    start(page, server, url)
    page.js("Object.defineProperty(document, 'hidden', {get: () => true})")
    page.wait(lambda p: len(p.events("omni.frame.append", "out")) > 2)
    num = len(page.events("omni.frame.append", "out"))
    frames = page.wait(lambda p: (f := p.events("omni.frame.append", "out"))[num + 2 :] and f)
    spacing = np.diff([frame["at"] for frame in frames[num:]])
    assert (spacing >= 1900).all()


def test_keys_and_buttons_send_the_same_commands(sight: Sight) -> None:
    page, server, url = sight
    start(page, server, url)
    for key in "rmfqt":
        page.press(key)
    page.press(ESCAPE)
    by_key = ["repeat", "more", "front", "quiet", "read", "stop"]
    until(page, lambda: server.commands == by_key)
    assert page.text("#quiet-label") == "Resume"
    page.press("q")
    until(page, lambda: server.commands == [*by_key, "resume"])
    server.received.clear()
    for name in by_key:
        page.driver.find_element("css selector", f"[data-command={name}]").click()
    until(page, lambda: server.commands == by_key)


def test_single_keys_can_be_switched_off_but_escape_still_stops(sight: Sight) -> None:
    page, server, url = sight
    start(page, server, url, shortcuts=False)
    for key in "rmfqt":
        page.press(key)
    page.press(ESCAPE)
    until(page, lambda: server.commands == ["stop"])
    assert page.js("return document.querySelectorAll('[data-key][aria-keyshortcuts]').length") == 0
    page.driver.find_element("css selector", "[data-command=repeat]").click()
    until(page, lambda: server.commands == ["stop", "repeat"])


def test_stop_key_silences_at_once(sight: Sight) -> None:
    page, server, url = sight
    start(page, server, url)
    until(page, lambda: len(server.of("session.update")) == 1)
    page.wait(lambda p: p.sound and not p.sound[-1]["isAudible"])  # the earcons are over
    server.begin("change", "A long description that goes on and on.", sound_s=8)
    page.wait(lambda p: p.phase == "speaking" and p.sound[-1]["isAudible"])
    page.js("addEventListener('keydown', () => { window.pressedAt = performance.now(); }, true)")
    page.press(ESCAPE)
    page.wait(lambda p: not p.sound[-1]["isAudible"])
    assert page.sound[-1]["at"] - page.js("return pressedAt") <= 200
    until(page, lambda: server.commands == ["stop"])
    assert not server.of("response.cancel"), "the command ends the answer"
    assert page.wait(lambda p: p.text(".unheard")).endswith("on and on.")


def test_server_can_silence_what_waits_to_be_played(sight: Sight) -> None:
    page, server, url = sight
    start(page, server, url)
    page.wait(lambda p: p.sound and not p.sound[-1]["isAudible"])
    server.say("change", "A long description that goes on and on.", sound_s=8)
    page.wait(lambda p: p.phase == "speaking" and p.sound[-1]["isAudible"])
    began_ms = page.sound[-1]["at"]
    server.send({"type": "omni.output_audio.stop"})
    page.wait(lambda p: not p.sound[-1]["isAudible"] and p.phase == "listening")
    assert page.sound[-1]["at"] - began_ms < 7_000, "it was played to its end"


def test_quiet_asked_for_by_voice_is_shown(sight: Sight) -> None:
    page, server, url = sight
    start(page, server, url)
    assert page.text("#quiet-label") == "Quiet"
    server.session["omni"]["describe"]["quiet"] = True
    server.send({"type": "session.updated", "session": server.session})
    page.wait(lambda p: p.text("#quiet-label") == "Resume")
    page.press("q")
    until(page, lambda: server.commands == ["resume"])


def test_hazard_silences_what_is_being_said_and_is_heard_whole(sight: Sight) -> None:
    page, server, url = sight
    start(page, server, url)
    page.wait(lambda p: p.sound and not p.sound[-1]["isAudible"])
    first = server.begin("change", "A street with shops.", sound_s=20)
    page.wait(lambda p: p.phase == "speaking")
    server.finish(first, "A street with shops.", "cancelled")
    hazard = server.say("hazard", "Car ahead, about 5 metres.", sound_s=0.5)
    played = page.wait(
        lambda p: [
            event["played_ms"]
            for event in p.events("omni.output_audio.played", "out")
            if event["item_id"] == hazard.replace("resp", "item") and event["played_ms"] >= 500
        ]
    )
    assert played[-1] == 500
    assert page.text("#hazard") == "Car ahead, about 5 metres."
    last = "return document.querySelector('.turn:last-child')"
    assert page.js(f"{last}.dataset.kind") == "hazard"
    assert page.js(f"{last}.querySelector('.who').textContent") == "Warning"
    assert page.js("return document.getElementById('hazard').role") == "alert"
    assert page.turns[0]["note"] == "interrupted"


def test_omnis_voice_is_never_repeated_by_the_screen_reader(sight: Sight) -> None:
    page, server, url = sight
    start(page, server, url)
    page.wait(lambda p: p.text("#announcer") == "Starting.")
    page.js(
        "window.announced = [];"
        "new MutationObserver(() => announced.push(document.getElementById('announcer').textContent"
        ")).observe(document.getElementById('announcer'), {childList: true})"
    )
    server.say("change", "A kitchen. A cup is on the left.")
    server.say("hazard", "Person ahead.")
    page.wait(lambda p: p.text("#hazard") and p.phase == "listening")
    asked_at = page.js("return performance.now()")
    page.wait(lambda p: p.js("return performance.now()") - asked_at > 1000)
    assert page.js("return announced") == []
    assert page.js("return document.getElementById('hazard').ariaLive") == "off"


def test_screen_reader_gets_whole_sentences_and_no_sound(sight: Sight) -> None:
    page, server, url = sight
    start(page, server, url, spokenBy="reader", earcons=False)
    assert server.session["output_modalities"] == ["text"]
    page.wait(lambda p: p.text("#announcer"))
    page.js(
        "window.announced = [];"
        "const region = document.getElementById('announcer');"
        "new MutationObserver(() => announced.push(region.textContent))"
        ".observe(region, {childList: true})"
    )
    server.say("change", "A kitchen. A cup is on the left.")
    page.wait(lambda p: p.js("return announced.at(-1)") == "A kitchen. A cup is on the left.")
    assert page.js("return announced") == ["", "A kitchen. A cup is on the left."]
    page.js("announced.length = 0")
    half = server.begin("change", "A dog sleeps. It is brown and")
    page.wait(lambda p: p.js("return announced.at(-1)") == "A dog sleeps.")
    server.finish(half, "", "cancelled")
    server.say("hazard", "Car ahead.")
    page.wait(lambda p: p.text("#hazard") == "Car ahead.")
    assert page.js("return document.getElementById('hazard').ariaLive") == "assertive"
    assert "It is brown" not in "".join(page.js("return announced"))
    assert page.sound == []


def test_connection_lost_is_told_once_and_made_again_with_the_same_settings(
    sight: Sight,
) -> None:
    page, server, url = sight
    start(page, server, url, units="steps")
    page.press("q")
    until(page, lambda: server.commands == ["quiet"])
    before = server.num_connections
    server.refuses = (1013, "rate_limit_exceeded")
    server.drop(1012)
    page.wait(lambda p: p.phase == "lost")
    lost = page.text("#notice-text")
    assert lost == "The server was stopped or is restarting. Trying again."
    until(page, lambda: server.num_connections >= before + 2)
    frames = len(page.events("omni.frame.append", "out"))
    assert page.text("#notice-text") == lost, "further attempts are not told"
    server.refuses = None
    page.wait(lambda p: p.phase == "listening", 20)
    assert server.session["omni"]["describe"]["units"] == "steps"
    assert server.session["omni"]["describe"]["quiet"] is True
    assert page.text("#notice-text") == ""
    page.wait(lambda p: p.text("#announcer") == "Connected again.")
    assert "ready" not in page.js("return watched.phases"), "the microphone was there all along"
    assert frames == len(
        [
            frame
            for frame in page.events("omni.frame.append", "out")
            if frame["at"] < page.events("session.updated", "in")[-1]["at"]
        ]
    ), "no picture is sent while there is no connection"


def test_browsers_voice_tells_of_a_lost_connection_and_the_live_region_does_not(
    tmp_path: Path,
) -> None:
    server = Describing()
    with serving_sight(server) as url, watching(tmp_path) as page:
        page.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": VOICE})
        start(page, server, url)
        server.drop(1011)
        words = "The server had an internal error. Trying again."
        page.wait(lambda p: words in p.js("return watched.spoken"))
        page.wait(lambda p: "Connected again." in p.js("return watched.spoken"))
        assert page.js("return watched.spoken").count(words) == 1
        assert page.js("return document.getElementById('announcer').textContent") == ""


def test_talk_button_by_press_sends_one_turn(sight: Sight) -> None:
    page, server, url = sight
    start(page, server, url, listening="press")
    assert server.session["audio"]["input"]["turn_detection"] is None
    assert page.text("#talk-label") == "Press to talk"
    page.press(SPACE)
    page.wait(lambda p: p.phase == "talking")
    asked_at = page.js("return performance.now()")
    page.wait(lambda p: p.js("return performance.now()") - asked_at > 400)
    page.press(SPACE)
    until(page, lambda: server.of("response.create"))
    kinds = [e["type"] for e in server.received if not e["type"].startswith(("omni", "session"))]
    assert kinds == [
        "input_audio_buffer.clear",
        "input_audio_buffer.commit",
        "response.create",
    ]


def test_talk_button_held_by_key_or_finger_sends_one_turn_each(sight: Sight) -> None:
    from selenium.webdriver import ActionChains

    page, server, url = sight
    start(page, server, url, listening="hold")
    assert page.text("#talk-label") == "Hold to talk"
    ActionChains(page.driver).key_down(SPACE).pause(0.5).key_up(SPACE).perform()
    until(page, lambda: len(server.of("response.create")) == 1)
    button = page.driver.find_element("id", "talk")
    ActionChains(page.driver).click_and_hold(button).pause(0.5).release().perform()
    until(page, lambda: len(server.of("response.create")) == 2)
    page.press(SPACE)  # a tap is no question
    page.wait(lambda p: p.text("#announcer") == "Hold the button while you talk.")
    assert len(server.of("input_audio_buffer.commit")) == 2


def test_settings_are_sent_when_changed_and_kept_for_the_next_visit(sight: Sight) -> None:
    page, server, url = sight
    start(page, server, url)
    page.click("settings-open")
    choose = (
        "const element = document.querySelector(`[name=${arguments[0]}]`);"
        "if (element.type === 'checkbox') element.checked = arguments[1];"
        "else element.value = arguments[1];"
        "element.dispatchEvent(new Event('change'))"
    )
    wanted = {
        "verbosity": "brief",
        "speed": "1.5",
        "directions": "clock",
        "units": "imperial",
        "hazards": False,
        "earcons": False,
        "shortcuts": False,
    }
    for name, value in wanted.items():
        page.js(choose, name, value)
    page.click("settings-close")
    until(page, lambda: server.session["omni"]["describe"]["hazards"] is False)
    describe = server.session["omni"]["describe"]
    assert describe["verbosity"] == "brief"
    assert describe["directions"] == "clock"
    assert describe["units"] == "imperial"
    assert server.session["audio"]["output"]["speed"] == 1.5
    page.open(url)
    kept = json.loads(page.js("return localStorage.getItem('omni.see')"))
    assert wanted.items() <= kept.items()
    shown = page.js(
        "return Object.fromEntries([...document.querySelectorAll('#settings [name]')]"
        ".map((e) => [e.name, e.type === 'checkbox' ? e.checked : e.value]))"
    )
    assert shown == kept


def test_camera_taken_away_is_told_once_and_can_be_started_again(sight: Sight) -> None:
    page, server, url = sight
    start(page, server, url)
    page.wait(lambda p: p.events("omni.frame.append", "out"))
    page.js(
        "const [track] = document.getElementById('preview').srcObject.getTracks();"
        "track.stop(); track.dispatchEvent(new Event('ended'))"
    )
    page.wait(lambda p: "taken away" in p.text("#notice-text"))
    until(page, lambda: server.session["omni"]["describe"] is None)
    page.wait(lambda p: "taken away" in p.text("#announcer"))
    page.press("f")
    page.wait(lambda p: "no camera picture" in p.text("#announcer"))
    assert server.commands == []
    page.press("c")
    until(page, lambda: server.session["omni"]["describe"] is not None)
    assert page.text("#notice-text") == ""
    num = len(page.events("omni.frame.append", "out"))
    page.wait(lambda p: len(p.events("omni.frame.append", "out")) > num)


@pytest.mark.slow
def test_picture_that_never_changes_is_noticed_and_told(tmp_path: Path) -> None:
    require_browser()
    server = Describing()
    with serving_sight(server) as url, watching(tmp_path, is_still=True) as page:
        start(page, server, url)
        page.wait(lambda p: "not changed at all" in p.text("#notice-text"), 30)
        assert page.text("#camera-state") == "Picture frozen"
        # What stands still is not described as if it were there now.
        until(page, lambda: server.session["omni"]["describe"] is None)
        page.press("f")
        page.wait(lambda p: "not changed at all" in p.text("#announcer"))
        assert server.commands == []
        page.press("c")
        page.wait(lambda p: p.text("#camera-state").endswith(" on"))
        until(page, lambda: server.session["omni"]["describe"] is not None)
        assert page.text("#notice-text") == ""


def test_refused_camera_and_microphone_leave_keys_and_buttons(tmp_path: Path) -> None:
    require_browser()
    server = Describing()
    with serving_sight(server) as url, watching(tmp_path, granted=False) as page:
        page.driver.execute_cdp_cmd("Browser.grantPermissions", {"permissions": []})
        open_page(page, url)
        page.press(ENTER)
        page.wait(lambda p: p.phase == "ready")
        page.wait(lambda p: "camera was refused" in p.text("#announcer"))
        assert "microphone was refused" in page.text("#announcer")
        assert page.text("#camera-state") == "No camera (denied)"
        assert server.session["omni"]["describe"] is None
        server.begin("answer", "A long answer that goes on and on.", sound_s=8)
        page.wait(lambda p: p.phase == "speaking")
        page.press(ESCAPE)
        until(page, lambda: server.of("conversation.item.truncate"))
        assert server.commands == [], "there is nothing described"
        assert server.of("response.cancel")
        assert page.events("omni.frame.append", "out") == []


def test_no_camera_at_all_is_told_with_what_to_do(tmp_path: Path) -> None:
    require_browser()
    server = Describing()
    with serving_sight(server) as url, chromium(tmp_path) as page:
        open_page(page, url)
        page.press(ENTER)
        page.wait(lambda p: p.phase == "ready")
        page.wait(lambda p: "No camera was found. Connect one" in p.text("#announcer"))
        assert page.text("#camera-state") == "No camera (missing)"


def test_camera_key_takes_the_next_of_two_cameras(tmp_path: Path) -> None:
    require_browser()
    server = Describing()
    two = "--use-fake-device-for-media-stream=device-count=2"
    with serving_sight(server) as url, chromium(tmp_path, None, two) as page:
        start(page, server, url)
        name = page.text("#camera-state")
        page.press("c")
        page.wait(lambda p: p.text("#camera-state") not in ("", name))
        other = page.text("#camera-state")
        page.press("c")
        page.wait(lambda p: p.text("#camera-state") != other)
        assert page.text("#camera-state") == name


@pytest.mark.slow
def test_only_the_shell_is_kept_and_it_opens_without_the_server(tmp_path: Path) -> None:
    require_browser()
    server = Describing()
    with watching(tmp_path) as page:
        with serving_sight(server) as url:
            start(page, server, url)
            page.driver.execute_async_script("navigator.serviceWorker.ready.then(arguments[0])")
            page.wait(lambda p: len(p.events("omni.frame.append", "out")) > 5)
            page.open(url)  # now by way of the worker
            page.press(ENTER)
            page.wait(lambda p: len(p.events("omni.frame.append", "out")) > 5)
            kept = page.driver.execute_async_script(
                "const done = arguments[0];"
                "(async () => {"
                "  const urls = [];"
                "  for (const name of await caches.keys()) {"
                "    for (const {url} of await (await caches.open(name)).keys()) {"
                "      urls.push(new URL(url).pathname.slice(1)); } }"
                "  return urls; })().then(done)"
            )
            assert all(name == "see" or (WEB / name).is_file() for name in kept), kept
            worker = (WEB / "see-worker.js").read_text()
            assert all(f'"{name}",' in worker for name in kept)
        page.open(url)
        assert page.text("h1") == "Omni: hear what the camera sees"
        page.press(ENTER)
        page.wait(lambda p: p.phase == "lost")
        assert page.text("#notice-text") == ("The connection to the server was lost. Trying again.")


def test_every_module_the_page_needs_is_kept_by_the_worker() -> None:
    worker = (WEB / "see-worker.js").read_text()
    needed = {"see.html"}
    seen: set[str] = set()
    while needed - seen:
        name = min(needed - seen)
        seen.add(name)
        if name.endswith((".html", ".js")):
            text = (WEB / name).read_text()
            found = set(re.findall(r'(?:from|addModule\(|src=|href=) ?"(?:\./)?([^"]+)"', text))
            needed |= found - {"index.html"}  # another page
    assert [name for name in sorted(needed) if f'"{name}",' not in worker] == []
    manifest = json.loads((WEB / "manifest.webmanifest").read_text())
    for icon in manifest["icons"]:
        picture = cv2.imread(str(WEB / icon["src"]))
        height, width = picture.shape[:2]
        assert f"{width}x{height}" == icon["sizes"]
        assert f'"{icon["src"]}",' in worker
        assert (picture == make_icons.draw(width)).all(), "python streaming/make_icons.py"


def test_key_in_the_address_opens_the_connection(tmp_path: Path) -> None:
    require_browser()
    config = Config(server=ServerConfig(api_key="secret"))
    with serving(scripted_server(Script(), config)) as url, watching(tmp_path) as page:
        page.open(f"{url}/see#key=secret")
        page.press(ENTER)
        page.wait(lambda p: p.phase == "listening")
        assert "secret" not in page.js("return location.href")


def test_page_is_public_but_its_connection_asks_for_the_key(tmp_path: Path) -> None:
    require_browser()
    config = Config(server=ServerConfig(api_key="secret"))
    with serving(scripted_server(Script(), config)) as url:
        answer = httpx.get(f"{url}/see")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/html")
        assert answer.headers["x-content-type-options"] == "nosniff"
        manifest = httpx.get(f"{url}/manifest.webmanifest")
        assert manifest.headers["content-type"] == "application/manifest+json"
        with watching(tmp_path) as page:
            open_page(page, f"{url}/see")
            page.press(ENTER)
            page.wait(lambda p: p.text("#key-title") == "This server asks for an API key")
            assert page.focused == "key"
            assert page.events("omni.frame.append", "out") == []
