"""The client against a real server with a scripted assistant."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray
from omni_encoders.vad import VoiceActivity
from omni_streaming.client import CHUNK_S, Client, ConnectionFailed, ServerError
from omni_streaming.listener import bind

from omni.parts import Parts
from omni.scripted import Answer, Script, ScriptedAssistant
from omni.types import Output, TextDelta
from tests.streaming.serving import serving, settings

Build = Callable[[Parts], ScriptedAssistant]
TONES_HZ = (300, 600, 900, 1500, 2400)


class LoudIsSpeech(VoiceActivity):
    """Takes any sound for speech, so that tests may speak in tones."""

    def probability(self, frame: NDArray[np.float32], state: object) -> float:
        return 0.95 if np.sqrt(np.mean(np.square(frame))) > 0.01 else 0.02


def tone(seconds: float) -> NDArray[np.int16]:
    at = np.arange(round(24_000 * seconds)) / 24_000
    wave = sum(np.sin(2 * np.pi * hz * at) for hz in TONES_HZ) / len(TONES_HZ)
    return np.asarray(wave * 8000).astype(np.int16)


def babble(seconds: float) -> NDArray[np.int16]:
    """ "ah" and "ee" in turn, 0.12 s each: what interrupts must move as words do."""
    at = np.arange(round(24_000 * seconds)) / 24_000
    is_ah = (at // 0.12) % 2 == 0
    wave = np.zeros(len(at))
    for hz in range(120, 4000, 120):
        ah, ee = (
            sum(np.exp(-(((hz - formant) / 150) ** 2)) for formant in formants)
            for formants in ((730, 1090, 2440), (270, 2290, 3010))
        )
        wave += np.where(is_ah, ah, ee) * np.sin(2 * np.pi * hz * at)
    return np.asarray(wave / np.abs(wave).max() * 12_000).astype(np.int16)


def scripted(*answers: str, transcripts: tuple[str, ...] = ("hello there",)) -> Build:
    script = Script(transcripts=transcripts, answers=tuple(Answer(text=text) for text in answers))
    return lambda parts: ScriptedAssistant(parts, script)


async def test_a_written_message_is_answered_in_words_and_sound() -> None:
    async with serving(build=scripted("Good day to you")) as running, Client(running.url) as client:
        await client.write("Hello")
        answer = await client.answer()
        assert answer.text == "Good day to you"
        assert answer.status == "completed"
        assert len(answer.audio) == pytest.approx(4 * 0.24 * 24_000)
        assert answer.first_audio_s is not None
        assert answer.done_s is not None
        assert answer.created_s <= answer.first_audio_s <= answer.done_s
        assert answer.usage["output_tokens"] == 4


async def test_a_spoken_question_is_heard_and_answered_and_both_sides_are_recorded() -> None:
    build = scripted("Fine thank you", transcripts=("how are you",))
    async with (
        serving(build=build, vad=LoudIsSpeech()) as running,
        Client(running.url) as client,
    ):
        await client.update(audio={"input": {"transcription": {"model": "whisper-1"}}})
        client.start_microphone()
        begins_s = client.say(tone(0.6))
        assert begins_s < 3 * CHUNK_S
        answer = await client.answer()
        assert answer.text == "Fine thank you"
        assert answer.heard_s is not None
        assert begins_s + 0.6 < answer.heard_s < begins_s + 3.0
        await client.heard()
        user, assistant = client.recording.tracks()
        at = round(answer.heard_s * 24_000)
        assert np.count_nonzero(assistant[:at]) == 0
        length = round(3 * 0.24 * 24_000)
        np.testing.assert_array_equal(assistant[at : at + length], answer.audio)
        assert np.count_nonzero(user[: round(0.6 * 24_000) + 960]) > 0.5 * 24_000
        assert np.count_nonzero(user[round(0.7 * 24_000) :]) == 0


async def test_the_microphone_keeps_real_time() -> None:
    async with serving() as running, Client(running.url) as client:
        client.start_microphone()
        began_s = time.monotonic()
        client.say(tone(0.3))
        await client.said()
        took_s = time.monotonic() - began_s
        assert took_s >= 0.3 - CHUNK_S, "never faster than the clip lasts"
        assert client.recording.user_s <= client.now_s + CHUNK_S


async def test_speaking_over_an_answer_cuts_it_and_tells_the_server_what_was_heard() -> None:
    build = scripted(" ".join(["word"] * 200))
    async with (
        serving(build=build, vad=LoudIsSpeech()) as running,
        Client(running.url) as client,
    ):
        client.start_microphone()
        client.say(tone(0.4))
        await client.until("response.output_audio.delta")
        after = len(client.events)
        client.say(babble(0.8))
        await client.until("conversation.item.truncated", after=after)
        done = (await client.until("response.done"))["response"]
        events = client.events[after:]
        started = next(i for i, (_, e) in enumerate(events) if e["type"].endswith("speech_started"))
        late = [e for _, e in events[started:] if e.get("response_id") == done["id"]]
        assert not [e for e in late if e["type"].endswith("audio.delta")]
        (cut,) = [e for _, e in events if e["type"] == "conversation.item.truncated"]
        answer = client.answers[done["id"]]
        _, assistant = client.recording.tracks()
        heard_ms = np.count_nonzero(assistant) / 24
        assert cut["audio_end_ms"] < len(answer.audio) / 24
        assert cut["audio_end_ms"] <= heard_ms + 100


async def test_an_error_from_the_server_is_raised_where_it_is_waited_for() -> None:
    async with serving() as running, Client(running.url) as client:
        await client.send("no.such.event")
        with pytest.raises(ServerError, match=r"no\.such\.event"):
            await client.answer()


async def test_a_refusal_is_raised_on_entering() -> None:
    async with serving(settings(api_key="k")) as running:
        with pytest.raises(ServerError, match="invalid_api_key"):
            async with Client(running.url, api_key="wrong"):
                pass
        async with Client(running.url, api_key="k") as client:
            assert client.events
        with pytest.raises(ServerError, match="model_not_found"):
            async with Client(running.url, api_key="k", model="gpt-5"):
                pass


async def test_nobody_there_is_one_sentence() -> None:
    with bind("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(ConnectionFailed, match=f"no Realtime server answers at .*:{port}"):
        async with Client(f"http://127.0.0.1:{port}"):
            pass


async def test_a_server_that_goes_away_is_noticed() -> None:
    async with serving() as running, Client(running.url) as client:
        await client.write("talk 100000")
        await client.until("response.created")
        waiting = asyncio.create_task(client.until("never", timeout_s=10))
        for connection in list(running.listener.server_state.connections):
            connection.transport.abort()
        with pytest.raises(ServerError, match="the server closed the connection"):
            await waiting
        with pytest.raises(ServerError, match="the server closed the connection: it broke off"):
            await client.write("hello?")


async def test_the_reason_of_a_closing_is_said_in_words() -> None:
    async with serving() as running, Client(running.url) as client:
        waiting = asyncio.create_task(client.until("never", timeout_s=10))
        await asyncio.sleep(0)
        running.listener.stop()
        with pytest.raises(ServerError, match=r"it is stopping or starting again \(1012"):
            await waiting


class Slow(ScriptedAssistant):
    """Takes 50 ms for every word, and stops talking after ``num_words`` of them."""

    num_words = 1000

    def step(self) -> list[Output]:
        time.sleep(0.05)
        if self.num_words == 0:
            return []
        outputs = super().step()
        self.num_words -= any(isinstance(output, TextDelta) for output in outputs)
        return outputs


class Stalling(Slow):
    num_words = 3


LONG = Script(answers=(Answer(text="word " * 40),))


async def test_a_long_answer_is_waited_for_as_long_as_it_goes_on() -> None:
    build = partial(Slow, script=LONG)
    async with serving(build=build) as running, Client(running.url) as client:
        await client.write("Tell me")
        answer = await client.answer(timeout_s=1.0)  # 2 s in all
    assert answer.text.split() == ["word"] * 40


async def test_an_answer_that_stalls_is_given_up_and_keeps_what_arrived() -> None:
    build = partial(Stalling, script=LONG)
    async with serving(build=build) as running, Client(running.url) as client:
        await client.write("Tell me")
        with pytest.raises(TimeoutError):
            await client.answer(timeout_s=0.5)
        assert client.unfinished is not None
        assert client.unfinished.text.split() == ["word"] * 3


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://localhost:8000", "ws://localhost:8000/v1/realtime?model=m+x"),
        ("https://omni.example/", "wss://omni.example/v1/realtime?model=m+x"),
        ("ws://[::1]:80", "ws://[::1]:80/v1/realtime?model=m+x"),
        ("localhost:8000", "ws://localhost:8000/v1/realtime?model=m+x"),
        ("http://localhost:8000/v1", "ws://localhost:8000/v1/realtime?model=m+x"),
        ("http://localhost:8000/v1/", "ws://localhost:8000/v1/realtime?model=m+x"),
        ("ws://localhost:8000/v1/realtime", "ws://localhost:8000/v1/realtime?model=m+x"),
        ("ws://localhost/v1/realtime?model=y", "ws://localhost/v1/realtime?model=y"),
        ("https://omni.example/a/v1", "wss://omni.example/a/v1/realtime?model=m+x"),
    ],
)
def test_any_way_to_write_the_address_will_do(url: str, expected: str) -> None:
    assert Client(url, model="m x")._socket_url == expected
