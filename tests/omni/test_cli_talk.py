"""``omni talk`` and ``omni serve`` as a user meets them: words, files, one sentence."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import subprocess
import sys
import threading
import wave
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from omni_streaming.client import Client, ServerError
from omni_streaming.devices import Speakers
from omni_streaming.listener import bind

from omni.cli import main
from omni.cli.talk import ShownText, _answer, read_recording
from omni.config import ServerConfig
from omni.errors import ConfigError
from omni.parts import Parts
from omni.scripted import Answer, Script, ScriptedAssistant
from tests.streaming.serving import make_server, serving, serving_on_a_thread, settings
from tests.streaming.test_client import LONG, LoudIsSpeech, Slow, Stalling, tone

SCRIPT = Script(
    transcripts=("how are you", "what time is it"),
    answers=(Answer(text="Fine thank you"), Answer(text="Time for tea")),
)


def scripted(parts: Parts) -> ScriptedAssistant:
    return ScriptedAssistant(parts, SCRIPT)


@pytest.fixture
def url() -> Iterator[str]:
    """A scripted server on its own thread, for commands that run an event loop of their own."""
    with serving_on_a_thread(make_server(build=scripted, vad=LoudIsSpeech())) as url:
        yield url


def write(path: Path, audio: NDArray[np.int16], rate_hz: int = 24_000) -> Path:
    soundfile.write(path, audio, rate_hz)
    return path


def test_a_recording_is_played_answered_and_written(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    question = write(tmp_path / "question.wav", tone(0.6))
    answer, both = tmp_path / "answer.wav", tmp_path / "both.wav"
    code = main(["talk", str(question), "-o", str(answer), "--record", str(both), "--url", url])
    said = capsys.readouterr()
    assert (code, said.err) == (0, "")
    assert "You:  how are you\n" in said.out
    assert "Omni: Fine thank you\n" in said.out
    match = re.search(r"first sound (-?\d+) ms after your last word", said.out)
    assert match is not None
    assert 0 < int(match[1]) < 3000
    with wave.open(str(answer)) as file:
        assert (file.getnchannels(), file.getframerate()) == (1, 24_000)
        assert file.getnframes() == 3 * 5760
    with wave.open(str(both)) as file:
        assert file.getnchannels() == 2
        assert file.getnframes() > 24_000


def test_recordings_are_answered_one_after_the_other(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [write(tmp_path / f"{i}.wav", tone(0.5)) for i in range(2)]
    assert main(["talk", *map(str, files), "--url", url]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line[:4] != "    "]
    assert lines == [
        "You:  how are you",
        "Omni: Fine thank you",
        "You:  what time is it",
        "Omni: Time for tea",
    ]


def test_text_is_answered_in_writing(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["talk", "--text", "Hello", "--url", url]) == 0
    out = capsys.readouterr().out
    assert "Omni: Fine thank you" in out
    assert "speech" not in out


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)


@pytest.mark.parametrize("is_shown", [False, True])
def test_a_long_answer_is_not_thrown_away(
    is_shown: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omni.cli.talk.ANSWER_TIMEOUT_S", 1.0)
    if is_shown:
        on_a_terminal(monkeypatch)
    with serving_on_a_thread(make_server(build=lambda parts: Slow(parts, LONG))) as url:
        assert main(["talk", "--text", "Tell me", "--url", url]) == 0
    (words, _) = capsys.readouterr().out.splitlines()
    assert words.split() == ["Omni:", *["word"] * 40]


@pytest.mark.parametrize("is_shown", [False, True])
def test_what_arrived_of_an_answer_that_stalls_is_printed_once(
    is_shown: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omni.cli.talk.ANSWER_TIMEOUT_S", 0.5)
    if is_shown:
        on_a_terminal(monkeypatch)
    with serving_on_a_thread(make_server(build=lambda parts: Stalling(parts, LONG))) as url:
        assert main(["talk", "--text", "Tell me", "--url", url]) == 1
    said = capsys.readouterr()
    assert [line.split() for line in said.out.splitlines()] == [["Omni:", "word", "word", "word"]]
    assert said.err == "omni talk: the server sent nothing more of its answer for 0.5 s\n"


def test_an_answer_is_shown_to_a_person_as_it_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[str] = []
    monkeypatch.setattr("sys.stdout", Shown(pieces))
    with serving_on_a_thread(make_server(build=lambda parts: Slow(parts, LONG))) as url:
        assert main(["talk", "--text", "Tell me", "--url", url]) == 0
    assert sum("word" in piece for piece in pieces) > 20


class Shown(io.StringIO):
    """A terminal that remembers what was written between two flushes."""

    def __init__(self, pieces: list[str]) -> None:
        super().__init__()
        self.pieces = pieces

    def isatty(self) -> bool:
        return True

    def flush(self) -> None:
        self.pieces.append(self.getvalue())
        self.seek(0)
        self.truncate()


async def test_a_server_that_breaks_off_leaves_its_words_so_far(
    capsys: pytest.CaptureFixture[str],
) -> None:
    build = partial(Stalling, script=LONG)
    async with serving(build=build) as running, Client(running.url) as client:
        await client.write("Tell me")
        waiting = asyncio.create_task(_answer(client, 0, ShownText(is_live=False)))
        while client.unfinished is None or len(client.unfinished.text.split()) < 3:
            await asyncio.sleep(0.01)
        for connection in list(running.listener.server_state.connections):
            connection.transport.abort()
        with pytest.raises(ServerError, match="it broke off"):
            await waiting
    assert capsys.readouterr().out == "Omni: word word word\n"


def test_why_an_answer_failed_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    script = Script(answers=(Answer(text="Well", failure="context_length_exceeded"),))
    server = make_server(build=partial(ScriptedAssistant, script=script), vad=LoudIsSpeech())
    with serving_on_a_thread(server) as url:
        assert main(["talk", "--url", url, "--text", "hi"]) == 0
    assert "failed: The script says that this answer fails." in capsys.readouterr().out


def test_tool_calls_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    from omni_streaming.client import Answer as Heard

    from omni.cli.talk import print_answer

    call = {"call_id": "c", "name": "weather", "arguments": '{"city": "Rome"}'}
    print_answer(Heard("r", 0.0, calls=[call], status="incomplete", reason="max_tokens"), None)
    out = capsys.readouterr().out
    assert 'calls weather({"city": "Rome"})' in out
    assert "incomplete: max_tokens" in out


def one_sentence(capsys: pytest.CaptureFixture[str], command: str) -> str:
    said = capsys.readouterr()
    assert said.err.startswith(f"omni {command}: ")
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err
    return said.err


def test_no_server_is_one_sentence_that_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with bind("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
    question = write(tmp_path / "question.wav", tone(0.1))
    assert main(["talk", str(question), "--url", f"http://127.0.0.1:{port}"]) == 1
    sentence = one_sentence(capsys, "talk")
    assert "`omni serve`" in sentence
    assert "--start" in sentence


def test_a_recording_that_cannot_be_read_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "missing.wav"
    assert main(["talk", str(missing)]) == 1
    assert one_sentence(capsys, "talk") == f"omni talk: cannot read {missing}: no such file\n"
    assert main(["talk", __file__]) == 1
    assert __file__ in one_sentence(capsys, "talk")
    assert main(["talk", str(write(tmp_path / "empty.wav", tone(0.0)))]) == 1
    assert "holds no audio" in one_sentence(capsys, "talk")


def test_a_recording_without_speech_is_one_sentence(
    url: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("omni.cli.talk.NO_TURN_TIMEOUT_S", 0.5)
    silent = write(tmp_path / "silent.wav", np.zeros(4800, np.int16))
    assert main(["talk", str(silent), "--url", url]) == 1
    assert "heard no finished speech in" in one_sentence(capsys, "talk")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give recordings to play, or --text, or --mic"),
        (["--mic", "--text", "x"], "give only one of these"),
        (["q.wav", "--text", "x"], "give only one of these"),
        (["--text", ""], "--text is empty"),
        (["--text", " "], "--text is empty"),
        (["--text", "x", "--url", "http://127.0.0.1:99999"], "http://127.0.0.1:99999"),
    ],
)
def test_what_cannot_be_said_is_one_sentence(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["talk", *arguments]) == 1
    assert said in one_sentence(capsys, "talk")


@pytest.mark.parametrize("option", ["-o", "--record"])
def test_an_output_that_cannot_be_written_is_refused_before_the_conversation(
    option: str, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, why in (
        (tmp_path / "nowhere" / "x.wav", f"there is no folder {tmp_path / 'nowhere'}"),
        (tmp_path, "it is a folder"),
    ):
        assert main(["talk", "--text", "Hello", option, str(path), "--url", url]) == 1
        assert f"cannot write {path}: {why}" in one_sentence(capsys, "talk")
    assert main(["talk", "--text", "Hello", "--url", url]) == 0
    assert "Fine thank you" in capsys.readouterr().out, "the first answer had not been asked for"


@pytest.mark.parametrize("key", [[], ["--api-key", "wrong"]])
def test_a_key_that_is_missing_or_wrong_is_one_sentence_that_says_where_it_goes(
    key: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMNI_API_KEY", raising=False)
    with serving_on_a_thread(make_server(settings(api_key="right"), build=scripted)) as url:
        assert main(["talk", "--text", "Hello", "--url", url, *key]) == 1
        sentence = one_sentence(capsys, "talk")
        assert "invalid_api_key" in sentence
        assert "--api-key or in OMNI_API_KEY" in sentence
        assert main(["talk", "--text", "Hello", "--url", url, "--api-key", "right"]) == 0


def test_no_sound_library_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert main(["talk", "--mic"]) == 1
    assert f"`{sys.executable} -m pip install sounddevice`" in one_sentence(capsys, "talk")


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 24_000, 44_100, 48_000])
def test_recordings_of_any_rate_are_played_at_their_own_speed_and_pitch(
    tmp_path: Path, rate_hz: int
) -> None:
    at = np.arange(rate_hz) / rate_hz
    stereo = np.stack([np.sin(2 * np.pi * 440 * at), np.zeros(rate_hz)], axis=1) * 0.5
    soundfile.write(tmp_path / "tone.wav", stereo, rate_hz)
    pcm = read_recording(tmp_path / "tone.wav")
    assert len(pcm) == 24_000
    spectrum = np.abs(np.fft.rfft(pcm))
    assert int(np.argmax(spectrum)) == 440
    assert np.abs(pcm[2000:-2000]).max() == pytest.approx(0.25 * 32767, rel=0.02)


def test_the_sound_card_plays_in_order_and_knows_what_was_heard() -> None:
    speakers = Speakers()
    assert not speakers.is_sounding
    assert speakers.cut() is None
    speakers.add("a", np.full(1000, 1, np.int16))
    speakers.add("b", np.full(4800, 2, np.int16))
    out = np.zeros(480, np.int16)
    heard = []
    for _ in range(5):
        speakers.fill(out)
        heard.append(out.copy())
    assert np.concatenate(heard).tolist() == [1] * 1000 + [2] * 1400
    assert speakers.is_sounding
    assert speakers.cut() == ("b", 1400 * 1000 // 24_000)
    speakers.fill(out)
    assert not out.any()
    assert speakers.is_sounding, "the room still rings"
    for _ in range(20):
        speakers.fill(out)
    assert not speakers.is_sounding


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_says_where_to_talk_and_ends_cleanly_on_a_signal(
    number: signal.Signals, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "omni", "serve", "--scripted", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        ready = process.stdout.readline()
        match = re.search(r"Talk at (http://127\.0\.0\.1:\d+) \(model scripted", ready)
        assert match is not None, ready
        talked = subprocess.run(
            [sys.executable, "-m", "omni", "talk", "--text", "Hello", "--url", match[1]],
            capture_output=True,
            text=True,
            env=environment,
            check=True,
            timeout=60,
        )
        assert "Omni: You said: Hello" in talked.stdout
        process.send_signal(number)
        errors = process.stderr.read()
        assert process.wait(20) == 0
        assert process.stdout.read() == "Stopped.\n"
        assert "may finish" not in errors, "no answer was under way"
        assert "Traceback" not in errors
        assert "Hello" not in errors


def test_serve_on_a_port_in_use_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with bind("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        assert main(["serve", "--scripted", "--port", str(port)]) == 2
    assert f"port {port} on 127.0.0.1 is in use" in one_sentence(capsys, "serve")


def test_serve_beside_another_omni_is_one_sentence(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    port = url.rpartition(":")[2]
    assert main(["serve", "--scripted", "--port", port]) == 2
    assert f"Omni is being served on port {port}" in one_sentence(capsys, "serve")


@pytest.mark.parametrize("port", ["99999", "-1"])
def test_serve_on_what_is_not_a_port_is_one_sentence(
    port: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--scripted", "--port", port]) == 2
    sentence = one_sentence(capsys, "serve")
    assert port in sentence
    assert "65535" in sentence


def test_serve_for_others_without_a_key_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMNI_API_KEY", raising=False)
    assert main(["serve", "--scripted", "--host", "0.0.0.0"]) == 2
    assert "OMNI_API_KEY" in one_sentence(capsys, "serve")


def test_the_command_line_sets_the_key_before_the_environment_and_that_before_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "omni.toml"
    file.write_text('[server]\napi_key = "of the file"\n')
    in_file = ["--config", str(file)]
    for set_key, environment, expected in (
        (["--set", "server.api_key=set"], "environment", "set"),
        ([], "environment", "environment"),
        ([], "", "of the file"),
    ):
        monkeypatch.setenv("OMNI_API_KEY", environment)
        with serving_on_a_thread(make_server(settings(api_key=expected), build=scripted)) as url:
            assert main(["talk", "--text", "Hello", "--url", url, *in_file, *set_key]) == 0
        seen: list[str] = []

        def remember(config: ServerConfig, seen: list[str] = seen) -> None:
            seen.append(config.api_key)
            raise ConfigError("that is enough")

        monkeypatch.setattr("omni_streaming.access.check_host", remember)
        assert main(["serve", "--scripted", *in_file, *set_key]) == 2
        assert seen == [expected]
        monkeypatch.undo()


LOADING = """
import sys, time
from omni.cli import main, serve
from omni.scripted import ScriptedAssistant
from omni_streaming import assembly
whole = assembly.assemble_scripted
def slow(config):
    server = whole(config)
    build = server.worker._build
    def load(parts):
        print("loading", flush=True)
        time.sleep(SECONDS)
        return build(parts)
    server.worker._build = load
    return server
assembly.assemble_scripted = slow
sys.exit(main(["serve", "--scripted", "--port", "0"]))
"""


@pytest.mark.parametrize(("seconds", "num_signals"), [("5", 1), ("600", 2)])
def test_serve_that_loads_says_what_it_waits_for_and_a_second_signal_ends_it(
    seconds: str, num_signals: int
) -> None:
    command = [sys.executable, "-c", LOADING.replace("SECONDS", seconds)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        try:
            assert process.stdout.readline() == "loading\n"
            process.send_signal(signal.SIGINT)
            assert process.stderr.readline().endswith(": stopping\n")
            said = process.stderr.readline()
            assert said == "Stopping when the models are loaded; Ctrl-C again stops at once.\n"
            if num_signals == 2:
                process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
            assert "Traceback" not in process.stderr.read()
        finally:
            watchdog.cancel()
            process.kill()
