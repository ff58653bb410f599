"""The page that describes against the real server: real frames, scripted sight and words."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from page_driver import (
    Page,
    chromium,
    require_browser,
    scripted_server,
    serving,
    speak,
    write_microphone,
)
from see_driver import ENTER, ESCAPE, open_page, watching, write_camera

from omni.config import Config, ServerConfig
from omni.scene import Lettering, Scene, Thing
from omni.scripted import Answer, Script

CHAIR = Thing(label="chair", confidence=0.9, box=(0.4, 0.4, 0.6, 0.9), distance_m=2.0, track_id=1)
CAR = Thing(
    label="car",
    confidence=0.9,
    box=(0.3, 0.2, 0.7, 0.9),
    distance_m=2.0,
    track_id=3,
    approach_per_s=0.8,
    num_frames=4,
)
EXIT = Lettering(text="EXIT", confidence=0.98, box=(0.3, 0.3, 0.7, 0.5))
ROOM = Scene(at_ms=0, things=(CHAIR,), lettering=(EXIT,))
STREET = Scene(at_ms=0, things=(CHAIR, CAR))
QUESTION = "What is the capital of Australia?"


@pytest.fixture(autouse=True)
def browser_or_skip() -> None:
    require_browser()


def begin(page: Page, url: str, **settings: object) -> None:
    open_page(page, f"{url}/see", settings=settings)
    page.press(ENTER)


def said(page: Page, kind: str) -> list[str]:
    """Texts in the log of one kind, once they are whole."""
    found: list[str] = page.js(
        "return [...document.querySelectorAll(`.turn[data-kind=${arguments[0]}]`)]"
        ".filter((turn) => turn.ariaBusy === 'false')"
        ".map((turn) => turn.querySelector('.text').textContent)",
        kind,
    )
    return found


@pytest.mark.slow
def test_page_and_server_describe_answer_keys_and_warn(tmp_path: Path) -> None:
    script = Script(scenes=(ROOM,) * 90 + (STREET,))
    with serving(scripted_server(script)) as url, watching(tmp_path) as page:
        begin(page, url)
        first = page.wait(lambda p: said(p, "change"), 20)[0]
        assert "chair" in first.lower()
        assert page.events("response.created", "in")[0]["response"]["metadata"]["omni_kind"]
        page.wait(lambda p: p.phase == "listening", 20)

        page.press("f")
        answer = page.wait(lambda p: said(p, "answer"), 20)[0]
        assert "chair" in answer.lower()
        page.press("t")
        assert "EXIT" in page.wait(lambda p: said(p, "text"), 20)[0]
        page.press("q")
        page.wait(lambda p: p.text("#quiet-label") == "Resume")
        updated = page.wait(lambda p: p.events("session.updated", "in")[1:])
        assert updated[-1]["session"]["omni"]["describe"]["quiet"] is True
        page.press("q")
        page.wait(lambda p: p.text("#quiet-label") == "Quiet")

        warning = page.wait(lambda p: p.text("#hazard"), 60)
        assert "car" in warning.lower()
        assert said(page, "hazard")[0] == warning
        assert page.text("#notice") == ""
        assert page.events("error", "in") == []
        assert page.js("return watched.errors") == []


def test_stop_key_ends_the_answer_at_the_server_without_an_error(tmp_path: Path) -> None:
    chairs = tuple(
        Thing(label=name, confidence=0.9, box=(0.1 * k, 0.4, 0.1 * k + 0.1, 0.9), track_id=k)
        for k, name in enumerate(("chair", "dining table", "laptop", "cup", "book", "bottle"))
    )
    script = Script(scenes=(Scene(at_ms=0, things=chairs),))
    with serving(scripted_server(script)) as url, watching(tmp_path) as page:
        begin(page, url, verbosity="detailed")
        page.wait(lambda p: p.phase == "speaking", 20)
        page.press(ESCAPE)
        page.wait(lambda p: p.phase == "listening")
        page.wait(lambda p: p.events("response.done", "in"))
        page.press("r")
        page.wait(lambda p: len(p.events("response.created", "in")) == 2)
        page.wait(lambda p: p.phase == "speaking")
        assert page.events("error", "in") == []
        assert page.text("#notice") == ""


@pytest.mark.slow
def test_screen_reader_gets_the_servers_words_in_writing(tmp_path: Path) -> None:
    script = Script(scenes=(ROOM,) * 40 + (STREET,))
    with serving(scripted_server(script)) as url, watching(tmp_path) as page:
        begin(page, url, spokenBy="reader", earcons=False)
        page.wait(lambda p: "Not a mobility aid" in p.text("#announcer"), 20)
        page.wait(lambda p: "chair" in p.text("#announcer").lower(), 20)
        warning = page.wait(lambda p: p.text("#hazard"), 40)
        assert "car" in warning.lower()
        assert page.js("return document.getElementById('hazard').ariaLive") == "assertive"
        assert page.events("response.output_audio.delta", "in") == []
        assert page.sound == []


def test_settings_changed_while_omni_speaks_are_accepted(tmp_path: Path) -> None:
    script = Script(scenes=(ROOM,))
    with serving(scripted_server(script)) as url, watching(tmp_path) as page:
        begin(page, url)
        page.wait(lambda p: p.phase == "speaking", 20)
        page.js(
            "const element = document.querySelector('[name=speed]');"
            "element.value = '1.5'; element.dispatchEvent(new Event('change'))"
        )
        updated = page.wait(lambda p: p.events("session.updated", "in")[1:])
        assert updated[0]["session"]["audio"]["output"]["speed"] == 1.5
        assert page.events("error", "in") == []


@pytest.mark.slow
def test_spoken_question_is_answered_while_the_camera_runs(tmp_path: Path) -> None:
    microphone = write_microphone(tmp_path / "q.wav", [9.0, speak(QUESTION, tmp_path), 60.0])
    camera = write_camera(tmp_path / "camera.mjpeg")
    file = f"--use-file-for-fake-video-capture={camera}"
    script = Script(
        transcripts=(QUESTION,), answers=(Answer(text="It is Canberra."),), scenes=(ROOM,)
    )
    with (
        serving(scripted_server(script)) as url,
        chromium(tmp_path / "p", microphone, file) as page,
    ):
        begin(page, url)
        page.wait(lambda p: "It is Canberra." in said(p, "answer"), 40)
        assert QUESTION in [turn["text"] for turn in page.turns if turn["role"] == "user"]


def test_camera_lost_switches_describing_off_until_it_is_back(tmp_path: Path) -> None:
    script = Script(scenes=(ROOM,))
    with serving(scripted_server(script)) as url, watching(tmp_path) as page:
        begin(page, url)
        page.wait(lambda p: len(p.events("omni.frame.append", "out")) > 3)
        page.js(
            "const [track] = document.getElementById('preview').srcObject.getTracks();"
            "track.stop(); track.dispatchEvent(new Event('ended'))"
        )
        page.wait(
            lambda p: p.events("session.updated", "in")[-1]["session"]["omni"]["describe"] is None
        )
        page.press("c")
        page.wait(
            lambda p: (
                p.events("session.updated", "in")[-1]["session"]["omni"]["describe"] is not None
            )
        )
        num = len(page.events("omni.frame.append", "out"))
        page.wait(lambda p: len(p.events("omni.frame.append", "out")) > num + 2)
        assert page.events("error", "in") == []


def test_page_begins_by_itself_when_the_models_are_loaded(tmp_path: Path) -> None:
    may_load = threading.Event()
    server = scripted_server(Script(scenes=(ROOM,)), may_load=may_load)
    try:
        with serving(server, is_ready=False) as url, watching(tmp_path) as page:
            begin(page, url)
            page.wait(lambda p: "models are still loading" in p.text("#notice-text"))
            may_load.set()
            page.wait(lambda p: p.phase in ("listening", "speaking"), 20)
            assert page.text("#notice") == ""
    finally:
        may_load.set()


def test_key_is_asked_for_and_opens_the_connection(tmp_path: Path) -> None:
    config = Config(server=ServerConfig(api_key="secret"))
    with (
        serving(scripted_server(Script(scenes=(ROOM,)), config)) as url,
        watching(tmp_path) as page,
    ):
        begin(page, url)
        page.wait(lambda p: p.focused == "key")
        page.driver.find_element("id", "key").send_keys("wrong", ENTER)
        page.wait(lambda p: p.text("#key-wrong") == "That key was not accepted.")
        page.driver.find_element("id", "key").send_keys("secret", ENTER)
        page.wait(lambda p: p.phase in ("listening", "speaking"))
        assert page.text("#notice") == ""
