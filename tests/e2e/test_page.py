"""The page in a real browser against a real server; the assistant answers by script."""

from __future__ import annotations

import dataclasses
import re
import threading
from pathlib import Path

import numpy as np
import omni_streaming.web
import pytest
from page_driver import (
    Page,
    Scripted,
    chromium,
    require_browser,
    scripted_server,
    serving,
    speak,
    type_message,
    write_microphone,
)

from omni.config import Config, ServerConfig
from omni.scripted import WORD_MS, Answer, Script
from omni.types import Edit, TextPart

WEB = Path(omni_streaming.web.__file__).parent
QUESTION = "What is the capital of Australia?"
ANSWER = "The capital of Australia is Canberra."
LONG_ANSWER = " ".join(f"word{number}" for number in range(60))
ENTER, ESCAPE, TAB, ALT = "\ue007", "\ue00c", "\ue004", "\ue00a"


@pytest.fixture(autouse=True)
def browser_or_skip() -> None:
    require_browser()


def test_spoken_question_is_shown_answered_and_heard_to_the_last_sample(tmp_path: Path) -> None:
    microphone = write_microphone(tmp_path / "q.wav", [1.0, speak(QUESTION, tmp_path), 60.0])
    script = Script(transcripts=(QUESTION,), answers=(Answer(text=ANSWER),))
    with serving(scripted_server(script)) as url, chromium(tmp_path / "p", microphone) as page:
        page.open(url)
        page.click("talk")
        page.wait(lambda p: p.phases[-4:] == ["hearing", "thinking", "speaking", "listening"])
        question, answer = page.wait(lambda p: len(p.turns) == 2 and p.turns)
        assert (question["role"], question["text"]) == ("user", QUESTION)
        assert (answer["role"], answer["text"]) == ("assistant", ANSWER)
        assert {question["busy"], answer["busy"]} == {"false"}

        (started, ended) = page.wait(lambda p: len(p.sound) == 2 and p.sound)
        duration_ms = WORD_MS * len(ANSWER.split())
        assert ended["at"] - started["at"] == pytest.approx(duration_ms, abs=120)
        reports = page.events("omni.output_audio.played", "out")
        played = [report["played_ms"] for report in reports]
        assert played[-1] == duration_ms
        assert played == sorted(played)
        assert all(step <= 210 for step in np.diff(played))

        # What the page calls the latency is what a bystander would measure.
        felt_ms = started["at"] - page.voice_at()[-1]
        assert float(page.js("return document.body.dataset.latencyMs")) == pytest.approx(
            felt_ms, abs=150
        )
        assert re.fullmatch(r"after \d\.\d\d s", answer["note"])

        sent = page.events("input_audio_buffer.append", "out")
        assert {chunk["num_samples"] for chunk in sent} == {480}  # 20 ms at 24 kHz
        assert page.js("return watched.errors") == []
        assert page.driver.get_log("browser") == []


@pytest.mark.slow
def test_speaking_over_the_answer_silences_it_and_the_context_keeps_what_was_heard(
    tmp_path: Path,
) -> None:
    microphone = write_microphone(
        tmp_path / "q.wav",
        [1.0, speak(QUESTION, tmp_path), 2.5, speak("Please stop talking now", tmp_path), 60.0],
    )
    script = Script(
        transcripts=(QUESTION, "no wait stop"),
        answer=lambda conversation: Answer(
            text=LONG_ANSWER if len(conversation.messages) == 1 else "As you like."
        ),
    )
    assistant = Scripted(script)
    server = scripted_server(script, assistant=assistant)
    with serving(server) as url, chromium(tmp_path / "p", microphone) as page:
        page.open(url)
        page.click("talk")
        page.wait(lambda p: len(p.sound) == 2, 30)
        page.wait(lambda p: len(p.turns) == 4 and p.phases[-1] == "listening", 30)
        started, stopped = page.sound[:2]
        interruption = page.events("input_audio_buffer.speech_started", "in")[1]
        assert stopped["at"] - interruption["at"] <= 100
        onset = min(at for at in page.voice_at() if at > started["at"])
        assert stopped["at"] - onset <= 400

        answer = page.turns[1]
        assert answer["note"].endswith("interrupted")
        item = page.events("response.output_item.added", "in")[0]["item"]["id"]
        played_ms = [
            report["played_ms"]
            for report in page.events("omni.output_audio.played", "out")
            if report["item_id"] == item
        ][-1]
        assert played_ms == pytest.approx(stopped["at"] - started["at"], abs=120)
        unheard = page.text(".unheard")
        heard = answer["text"].removesuffix(unheard).split()
        assert len(heard) == pytest.approx(played_ms / WORD_MS, abs=2)

        edits = [command for command in assistant.commands if isinstance(command, Edit)]
        told = {
            part.text
            for edit in edits
            for message in edit.conversation.messages
            for part in message.parts
            if message.role == "assistant" and isinstance(part, TextPart)
        }
        assert " ".join(LONG_ANSWER.split()[: played_ms // WORD_MS]) in told


def test_noise_without_words_is_not_shown_as_a_turn_of_the_user(tmp_path: Path) -> None:
    microphone = write_microphone(tmp_path / "q.wav", [0.5, speak("Hm? Ah!", tmp_path), 60.0])
    script = Script(transcripts=("",))
    with serving(scripted_server(script)) as url, chromium(tmp_path / "p", microphone) as page:
        page.open(url)
        page.click("talk")
        page.wait(lambda p: p.events("conversation.item.input_audio_transcription.completed"))
        page.wait(lambda p: p.phase == "listening")  # the noise may have been two turns
        assert not [turn for turn in page.turns if turn["role"] == "user"]


def test_stop_takes_back_what_was_not_heard(typing: tuple[Page, str]) -> None:
    page, url = typing
    page.open(url)
    type_message(page, LONG_ANSWER)
    page.wait(lambda p: p.phase == "speaking" and p.events("omni.output_audio.played"))
    page.press(ESCAPE)
    truncated = page.wait(lambda p: p.events("conversation.item.truncated", "in"))[0]
    page.wait(lambda p: p.phase == "ready")
    last_report = page.events("omni.output_audio.played", "out")[-1]
    assert truncated["audio_end_ms"] == last_report["played_ms"] > 0
    page.wait(lambda p: p.events("response.done", "in"))
    assert re.fullmatch(r"after \d+\.\d\d s · interrupted", page.turns[1]["note"])
    assert page.sound[-1]["isAudible"] is False
    assert page.text("#notice") == ""


def test_new_message_replaces_the_answer_under_way(typing: tuple[Page, str]) -> None:
    page, url = typing
    page.open(url)
    type_message(page, LONG_ANSWER)
    page.wait(lambda p: p.phase == "speaking")
    type_message(page, "short")
    page.wait(lambda p: len(p.turns) == 4 and p.turns[3]["text"] == "You said: short")
    page.wait(lambda p: p.phase == "ready")
    order = [
        event["type"]
        for event in page.js("return watched.wire")
        if event["direction"] == "out" and event["type"] != "omni.output_audio.played"
    ]
    assert order[-3:] == [
        "conversation.item.truncate",
        "conversation.item.create",
        "response.create",
    ]
    # The answer may end just before its cancellation arrives.
    assert {e["error"]["code"] for e in page.events("error")} <= {"response_cancel_not_active"}


def test_without_a_microphone_the_page_says_so_and_typing_works(typing: tuple[Page, str]) -> None:
    page, url = typing
    page.open(url)
    page.click("talk")
    page.wait(lambda p: "No microphone was found" in p.text("#notice"))
    page.wait(lambda p: p.phase == "ready")
    assert not page.driver.find_element("id", "mute").is_enabled()
    type_message(page, "hello")
    page.wait(lambda p: len(p.turns) == 2 and p.turns[1]["text"] == "You said: hello")
    page.wait(lambda p: any(change["isAudible"] for change in p.sound))


def test_refused_microphone_is_explained(tmp_path: Path) -> None:
    microphone = write_microphone(tmp_path / "q.wav", [1.0])
    with (
        serving(scripted_server(Script())) as url,
        chromium(tmp_path / "p", microphone, granted=False) as page,
    ):
        page.open(url)
        page.driver.execute_cdp_cmd(
            "Browser.setPermission",
            {"permission": {"name": "microphone"}, "setting": "denied", "origin": url},
        )
        page.click("talk")
        said = page.wait(lambda p: p.text("#notice-text"))
        assert "The microphone was refused. Allow it for this page" in said
        assert "You can type in the meantime." in said
        assert page.js("return document.getElementById('notice').getAttribute('role')") == "alert"


@pytest.mark.slow
def test_everything_works_from_the_keyboard(tmp_path: Path) -> None:
    microphone = write_microphone(tmp_path / "q.wav", [0.2, speak(QUESTION, tmp_path), 60.0])
    script = Script(answers=(Answer(text=LONG_ANSWER),))
    with serving(scripted_server(script)) as url, chromium(tmp_path / "p", microphone) as page:
        page.open(url)
        reached = []
        for _ in range(6):
            page.press(TAB)
            reached.append(page.focused)
        # "": the Send button
        assert reached == ["theme", "talk", "other-page", "log", "message", ""]
        page.js("document.getElementById('talk').focus()")
        page.press(ENTER)
        page.wait(lambda p: p.phase == "speaking")
        page.press(ESCAPE)
        page.wait(lambda p: p.phase == "listening")
        page.press(ALT, "m")
        page.wait(lambda p: p.phase == "muted")
        pressed = "return document.getElementById('mute').getAttribute('aria-pressed')"
        assert page.js(pressed) == "true"
        num_sent = len(page.events("input_audio_buffer.append"))
        later = page.wait(
            lambda p: (
                len(events := p.events("input_audio_buffer.append")) > num_sent + 10 and events
            )
        )
        assert all(chunk["peak"] == 0 for chunk in later[num_sent + 5 :])  # silence goes on
        page.press(ALT, "m")
        page.wait(lambda p: p.phase == "listening")


def test_lost_connection_can_be_taken_up_again(typing: tuple[Page, str]) -> None:
    page, _ = typing
    with serving(scripted_server(Script())) as url:
        page.open(url)
        type_message(page, "my name is Ada")
        page.wait(lambda p: len(p.turns) == 2 and p.phase == "ready")
    said = page.wait(lambda p: p.text("#notice-text"))
    assert said == "The server was stopped or is restarting."
    assert page.phase == "lost"
    page.click("reconnect")
    page.wait(lambda p: p.text("#notice-text") == "The connection to the server was lost.")
    with serving(scripted_server(Script()), port=int(url.rpartition(":")[2])):
        page.click("reconnect")
        page.wait(lambda p: p.phase == "ready")
        assert page.text("#notice") == ""
        retold = page.events("conversation.item.create", "out")[-2:]
        assert [item["item"]["content"][0]["text"] for item in retold] == [
            "my name is Ada",
            "You said: my name is Ada",
        ]
        type_message(page, "again")
        page.wait(lambda p: len(p.turns) == 4 and p.turns[3]["text"] == "You said: again")
        assert not page.events("error")


def test_key_is_asked_for_and_kept_in_memory_only(typing: tuple[Page, str]) -> None:
    page, _ = typing
    config = dataclasses.replace(Config(), server=ServerConfig(api_key="open-sesame"))
    with serving(scripted_server(Script(), config)) as url:
        page.open(url)
        type_message(page, "hello")
        page.wait(lambda p: p.text("#key-dialog"))
        assert page.focused == "key"
        page.driver.find_element("id", "key").send_keys("wrong", ENTER)
        page.wait(lambda p: p.text("#key-wrong") == "That key was not accepted.")
        page.wait(lambda p: p.focused == "key")
        page.driver.find_element("id", "key").send_keys("open-sesame", ENTER)
        page.wait(lambda p: p.phase == "ready")
        stored = "return JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])"
        assert page.js(stored) == '[{},{},""]'
        assert "open-sesame" not in page.js("return location.href + document.body.innerHTML")


@pytest.mark.slow
def test_page_waits_for_the_models_and_then_does_what_was_asked(
    typing: tuple[Page, str],
) -> None:
    page, _ = typing
    may_load = threading.Event()
    server = scripted_server(Script(), may_load=may_load)
    with serving(server, is_ready=False) as url:
        try:
            page.open(url)
            type_message(page, "hello")
            said = page.wait(lambda p: p.text("#notice-text"))
            assert said.startswith("The models are still loading.")
            page.wait(lambda p: len(p.events("error", "in")) == 2)  # it asked again by itself
            assert page.phase == "connecting"
            assert page.phases.count("connecting") == 1
            assert not page.driver.find_element("id", "reconnect").is_displayed()
        finally:
            may_load.set()
        page.wait(lambda p: len(p.turns) == 2 and p.turns[1]["text"] == "You said: hello")
        assert page.text("#notice") == ""
        assert page.driver.find_element("id", "message").get_property("value") == ""


def test_without_https_the_page_says_why_there_is_no_sound_and_answers_in_writing(
    tmp_path: Path,
) -> None:
    microphone = write_microphone(tmp_path / "q.wav", [60.0])
    elsewhere = "--host-resolver-rules=MAP omni.test 127.0.0.1"  # to the browser: another machine
    config = dataclasses.replace(Config(), server=ServerConfig(api_key="open-sesame"))
    with (
        serving(scripted_server(Script(), config)) as url,
        chromium(tmp_path / "p", microphone, elsewhere) as page,
    ):
        page.open(url.replace("127.0.0.1", "omni.test"))
        assert page.js("return window.isSecureContext") is False
        page.click("talk")
        page.wait(lambda p: p.text("#key-dialog"))
        page.driver.find_element("id", "key").send_keys("open-sesame", ENTER)
        page.wait(lambda p: p.phase == "ready")
        why = "Browsers give a page microphone and sound only over https or on localhost."
        page.wait(lambda p: p.text("#notice-text").startswith(why))
        for num_asked, question in enumerate(("hello", "hello again"), 1):
            page.click("dismiss")
            type_message(page, question)
            page.wait(lambda p, n=num_asked: len(p.turns) == 2 * n and p.phase == "ready")
            assert page.turns[-1]["text"] == f"You said: {question}"
            assert page.text("#notice-text").startswith(why)
        assert not page.events("response.output_audio.delta")  # nobody could hear it
        assert page.js("return watched.errors") == []
        assert [e["error"]["code"] for e in page.events("error")] == ["invalid_api_key"]  # at first


def test_loudspeaker_that_failed_once_is_opened_by_the_next_click(
    typing: tuple[Page, str],
) -> None:
    page, url = typing
    page.open(url)
    page.js(
        "const plain = Worklet.prototype.addModule;"
        "Worklet.prototype.addModule = async function () {"
        "  Worklet.prototype.addModule = plain;"
        "  throw new Error('it is busy');"
        "};"
    )
    type_message(page, "hello")
    page.wait(lambda p: len(p.turns) == 2 and p.turns[1]["text"] == "You said: hello")
    assert page.text("#notice-text").startswith("The loudspeaker cannot be opened (it is busy).")
    page.wait(lambda p: p.phase == "ready")
    type_message(page, "again")
    page.wait(lambda p: p.phase == "speaking")
    assert page.turns[-1]["role"] == "assistant"
    assert page.text("#notice") == ""
    assert page.js("return watched.errors") == []


def test_full_server_says_so_in_its_own_words(typing: tuple[Page, str]) -> None:
    page, _ = typing
    config = dataclasses.replace(Config(), server=ServerConfig(max_sessions=0))
    with serving(scripted_server(Script(), config)) as url:
        page.open(url)
        type_message(page, "hello")
        said = page.wait(lambda p: p.text("#notice-text"))
        assert said == "At capacity: 0 sessions are open; try again later."
        assert page.driver.find_element("id", "reconnect").is_displayed()


@pytest.mark.slow
def test_microphone_is_closed_with_the_connection_and_comes_back_as_it_was(tmp_path: Path) -> None:
    microphone = write_microphone(tmp_path / "q.wav", [60.0])
    with chromium(tmp_path / "p", microphone) as page:
        with serving(scripted_server(Script())) as url:
            page.open(url)
            page.click("talk")
            page.wait(lambda p: p.phase == "listening")
            page.click("mute")
            page.wait(lambda p: p.phase == "muted")
        page.wait(lambda p: p.phase == "lost")
        assert page.text("#talk") == "Start talking"
        assert not page.driver.find_element("id", "mute").is_enabled()
        with serving(scripted_server(Script()), port=int(url.rpartition(":")[2])):
            num_sent = len(page.events("input_audio_buffer.append"))
            page.click("reconnect")
            page.wait(lambda p: p.phase == "muted")
            assert page.text("#talk") == "End"
            sent = page.wait(
                lambda p: (
                    len(events := p.events("input_audio_buffer.append")) > num_sent + 10 and events
                )
            )
            assert all(chunk["peak"] == 0 for chunk in sent[num_sent + 5 :])


def test_end_of_the_transcript_stays_in_view_when_its_box_shrinks(typing: tuple[Page, str]) -> None:
    page, url = typing
    page.open(url)
    for number in range(6):
        type_message(page, f"number {number} " + "word " * 40)
        page.wait(lambda p, n=number: len(p.turns) == 2 * n + 2 and p.turns[-1]["text"])
        page.press(ESCAPE)
        page.wait(lambda p: p.phase == "ready")
    left = (
        "const log = document.getElementById('log');"
        "return log.scrollHeight - log.scrollTop - log.clientHeight"
    )
    height = "return document.getElementById('log').clientHeight"
    page.wait(lambda p: p.js(left) < 2)
    was = page.js(height)
    try:
        page.driver.set_window_size(1280, 520)
        page.wait(lambda p: p.js(height) < was - 48)  # more than counts as near the end
        page.wait(lambda p: p.js(left) < 2)
        page.js("document.getElementById('log').scrollTop = 0")
        page.wait(lambda p: p.js(left) > 100)
        page.driver.execute_async_script(  # the scroll event comes with a frame
            "requestAnimationFrame(() => requestAnimationFrame(arguments[0]))"
        )
    finally:
        page.driver.set_window_size(1280, 800)
    page.wait(lambda p: p.js(height) == was)
    assert page.js("return document.getElementById('log').scrollTop") == 0  # one was reading there


def test_failed_answer_is_said_aloud_or_shown(typing: tuple[Page, str]) -> None:
    page, _ = typing
    with serving(scripted_server(Script(answers=(Answer(failure="server_error"),)))) as url:
        page.open(url)
        type_message(page, "hello")
        failure = "The script says that this answer fails."
        page.wait(lambda p: failure in p.text("#notice-text"))
        page.wait(lambda p: p.phase == "ready")
        assert failure in page.text("#notice-text"), "it is not taken away when all is ready again"
        assert [turn["text"] for turn in page.turns if turn["role"] == "user"] == ["hello"]
        assert page.js("return watched.errors") == []


def test_page_needs_nothing_from_elsewhere() -> None:
    for file in WEB.iterdir():
        if file.suffix in {".html", ".js", ".css"}:
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"(https?:)?//[a-z0-9-]+\.[a-z]", text), file.name
    html = (WEB / "index.html").read_text(encoding="utf-8")
    for name in re.findall(r'(?:src|href)="([^"]+)"', html):
        assert (WEB / name).is_file(), name
    for module in WEB.glob("*.js"):
        for name in re.findall(r'(?:from|addModule\() ?"([^"]+)"', module.read_text()):
            assert (WEB / name).is_file(), name
    assert not re.search(r"<script(?![^>]*src=)|\son[a-z]+=|style=", html)
