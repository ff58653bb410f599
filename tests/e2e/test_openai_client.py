"""The official openai client holds whole conversations with the server.

Every event that arrives is judged by both schema oracles. The same conversations run with the
scripted assistant, where the words are known, and with the embedded weights, where they must make
sense.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from omni_streaming.assembly import assemble
from openai import AsyncOpenAI
from openai.resources.realtime.realtime import AsyncRealtimeConnection

from omni.cli.talk import read_recording
from omni.config import Config, home
from omni.scripted import Answer, Call, Script, ScriptedAssistant
from omni.store import is_present
from omni.types import Conversation, Output
from tests.streaming.oracles import Oracles
from tests.streaming.serving import make_server, serving_on_a_thread

CHUNK_S = 0.02
TIMEOUT_S = 60.0
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The current weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
STORY = "Tell me a long story about a ship, in at least ten sentences."

pytestmark = pytest.mark.skipif(
    shutil.which("espeak-ng") is None,
    reason="espeak-ng is not installed (docker/test-packages.sh installs it)",
)


@dataclass(frozen=True)
class Place:
    """A server to talk to, and how sure one can be of what it says."""

    url: str
    is_scripted: bool

    def expect(self, text: str, *, scripted: str, embedded: str) -> None:
        """``text`` is exactly ``scripted``, or matches the pattern ``embedded``."""
        if self.is_scripted:
            assert text == scripted
        else:
            assert re.search(embedded, text, re.IGNORECASE), text


def answer(conversation: Conversation) -> Answer:
    """The script: a story, a tool call and its result, else what was said."""
    last = conversation.messages[-1]
    text = getattr(last.parts[-1], "text", "")
    if last.role == "tool":
        return Answer(text="It is sunny in Rome, 21 degrees.")
    if "weather" in text.lower():
        return Answer(calls=(Call("get_weather", '{"city": "Rome"}'),))
    if text == STORY:
        return Answer(text=" ".join(["once upon a time"] * 50))
    return Answer(text=f"You said: {text}")


class Thoughtful(ScriptedAssistant):
    """Takes as long for a word as a small model does, so that there is time to interrupt."""

    def step(self) -> list[Output]:
        time.sleep(0.05)
        return super().step()


@pytest.fixture(
    scope="module",
    params=[
        "scripted",
        pytest.param(
            "embedded",
            marks=[
                pytest.mark.weights,
                pytest.mark.skipif(
                    not all(
                        is_present(name, home(Config()))
                        for name in ("qwen2.5-coder-0.5b", "whisper-base", "smart-turn-v3")
                    ),
                    reason="the embedded weights are absent: run `omni fetch`",
                ),
            ],
        ),
    ],
)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    is_scripted = request.param == "scripted"
    script = Script(transcripts=("What is the capital of France?",), answer=answer)
    server = (
        make_server(build=lambda parts: Thoughtful(parts, script))
        if is_scripted
        else assemble(Config())
    )
    with serving_on_a_thread(server) as url:
        yield Place(url, is_scripted)


class Caller:
    """One conversation through the official client."""

    def __init__(self, connection: AsyncRealtimeConnection) -> None:
        self.connection = connection
        self.oracles = Oracles()
        self.events: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        raw = await self.connection.recv_bytes()
        assert len(raw) <= 2**20
        event: dict[str, Any] = json.loads(raw)
        self.oracles.check(event)
        parsed = self.connection.parse_event(raw)
        assert parsed.type == event["type"]
        self.events.append(event)
        return event

    async def until(self, kind: str) -> dict[str, Any]:
        async with asyncio.timeout(TIMEOUT_S):
            while (event := await self.receive())["type"] != kind:
                assert event["type"] != "error", event
        return event

    async def write(self, text: str) -> None:
        content = [{"type": "input_text", "text": text}]
        await self.connection.conversation.item.create(
            item={"type": "message", "role": "user", "content": content}  # type: ignore[misc, list-item]
        )

    async def speak(self, pcm: NDArray[np.int16], *, silence_s: float = 0.0) -> None:
        """Send ``pcm`` [n] at 24 kHz in real time, and silence after it."""
        pcm = np.concatenate([pcm, np.zeros(round(24_000 * silence_s), np.int16)])
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        size = round(24_000 * CHUNK_S)
        for index, start in enumerate(range(0, len(pcm), size)):
            await asyncio.sleep(max(0.0, began_s + (index + 1) * CHUNK_S - loop.time()))
            audio = base64.b64encode(pcm[start : start + size].tobytes()).decode()
            await self.connection.input_audio_buffer.append(audio=audio)

    @asynccontextmanager
    async def microphone(self, *clips: NDArray[np.int16] | float) -> AsyncIterator[None]:
        """Speak ``clips`` (numbers are seconds of silence), then silence until the block ends."""
        pcm = np.concatenate(
            [
                c if isinstance(c, np.ndarray) else np.zeros(round(24_000 * c), np.int16)
                for c in clips
            ]
        )
        task = asyncio.create_task(self.speak(pcm, silence_s=TIMEOUT_S))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def of(self, *kinds: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] in kinds]

    def transcript(self, response_id: str) -> str:
        kinds = ("response.output_audio_transcript.delta", "response.output_text.delta")
        return "".join(e["delta"] for e in self.of(*kinds) if e["response_id"] == response_id)

    def seconds_of_audio(self, response_id: str) -> float:
        deltas = self.of("response.output_audio.delta")
        audio = [e["delta"] for e in deltas if e["response_id"] == response_id]
        return sum(len(base64.b64decode(delta)) for delta in audio) / 48_000


@asynccontextmanager
async def calling(place: Place, **session: Any) -> AsyncIterator[Caller]:
    async with (
        AsyncOpenAI(api_key="unused", base_url=f"{place.url}/v1") as client,
        client.realtime.connect(model="gpt-realtime") as connection,
    ):
        caller = Caller(connection)
        assert (await caller.receive())["type"] == "session.created"
        await connection.session.update(session={"type": "realtime", **session})  # type: ignore[misc]
        await caller.until("session.updated")
        yield caller


@pytest.fixture(scope="module")
def say(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], NDArray[np.int16]]:
    """Text -> speech by espeak-ng, 24 kHz."""
    folder = tmp_path_factory.mktemp("speech")

    def speak(text: str) -> NDArray[np.int16]:
        path = Path(folder) / f"{abs(hash(text))}.wav"
        subprocess.run(["espeak-ng", "-v", "en-us", "-s", "150", "-w", path, text], check=True)
        return read_recording(path)

    return speak


def order(events: list[dict[str, Any]], *kinds: str) -> list[str]:
    """The first places of ``kinds``, as a list of types in the order they came."""
    firsts: dict[str, None] = {}
    for event in events:
        if event["type"] in kinds:
            firsts.setdefault(event["type"])
    return list(firsts)


async def test_a_text_turn(place: Place) -> None:
    async with calling(place, output_modalities=["text"]) as caller:
        await caller.write("What is the capital of France?")
        await caller.connection.response.create()
        done = await caller.until("response.done")
        response = done["response"]
        assert response["status"] == "completed"
        text = caller.transcript(response["id"])
        place.expect(
            text, scripted="You said: What is the capital of France?", embedded=r"\bparis\b"
        )
        (item,) = response["output"]
        assert item["content"] == [{"type": "output_text", "text": text}]
        assert caller.of("response.output_text.done")[0]["text"] == text
        usage = response["usage"]
        assert usage["input_tokens"] > 0
        assert usage["output_tokens"] > 0
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
        assert not caller.of("response.output_audio.delta")


@pytest.mark.parametrize("detection", ["server_vad", "semantic_vad"])
async def test_a_voice_turn(
    place: Place, say: Callable[[str], NDArray[np.int16]], detection: str
) -> None:
    audio_in = {"transcription": {"model": "whisper-1"}, "turn_detection": {"type": detection}}
    async with calling(place, audio={"input": audio_in}) as caller:
        async with caller.microphone(0.3, say("What is the capital of France?")):
            done = await caller.until("response.done")
            heard = "conversation.item.input_audio_transcription.completed"
            if not caller.of(heard):
                await caller.until(heard)
        response = done["response"]
        assert response["status"] == "completed"
        text = caller.transcript(response["id"])
        place.expect(
            text, scripted="You said: What is the capital of France?", embedded=r"\bparis\b"
        )
        (transcription,) = caller.of(heard)
        assert re.search(r"what is the capital .* france", transcription["transcript"].lower())
        assert transcription["item_id"] == caller.of("input_audio_buffer.committed")[0]["item_id"]
        assert caller.seconds_of_audio(response["id"]) > 0.5
        in_order = (
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed",
            "conversation.item.added",
            "conversation.item.done",
            "response.created",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_audio.delta",
            "response.output_audio.done",
            "response.output_audio_transcript.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.done",
        )
        assert order(caller.events, *in_order) == list(in_order)


async def test_a_manual_turn(place: Place, say: Callable[[str], NDArray[np.int16]]) -> None:
    async with calling(place, audio={"input": {"turn_detection": None}}) as caller:
        pcm = say("What is the capital of France?")
        for start in range(0, len(pcm), 4800):
            audio = base64.b64encode(pcm[start : start + 4800].tobytes()).decode()
            await caller.connection.input_audio_buffer.append(audio=audio)
        await caller.connection.input_audio_buffer.commit()
        await caller.until("conversation.item.done")
        assert not caller.of("response.created"), "a commit alone asks for no answer"
        await caller.connection.response.create()
        response = (await caller.until("response.done"))["response"]
        text = caller.transcript(response["id"])
        place.expect(
            text, scripted="You said: What is the capital of France?", embedded=r"\bparis\b"
        )
        assert not caller.of("input_audio_buffer.speech_started")


async def test_a_tool_is_offered_called_answered_and_spoken_about(place: Place) -> None:
    async with calling(place, tools=[WEATHER], tool_choice="auto") as caller:
        await caller.write("What is the weather in Rome?")
        await caller.connection.response.create()
        first = (await caller.until("response.done"))["response"]
        calls = [item for item in first["output"] if item["type"] == "function_call"]
        assert [call["name"] for call in calls] == ["get_weather"]
        assert json.loads(calls[0]["arguments"]) == {"city": "Rome"}
        (arguments,) = caller.of("response.function_call_arguments.done")
        assert arguments["call_id"] == calls[0]["call_id"]
        assert (
            "".join(e["delta"] for e in caller.of("response.function_call_arguments.delta"))
            == calls[0]["arguments"]
        )

        result = {"city": "Rome", "sky": "sunny", "degrees_celsius": 21}
        await caller.connection.conversation.item.create(
            item={
                "type": "function_call_output",
                "call_id": calls[0]["call_id"],
                "output": json.dumps(result),
            }
        )
        await caller.connection.response.create()
        second = (await caller.until("response.done"))["response"]
        assert second["status"] == "completed"
        place.expect(
            caller.transcript(second["id"]),
            scripted="It is sunny in Rome, 21 degrees.",
            embedded=r"sunny|21|twenty",
        )
        assert caller.seconds_of_audio(second["id"]) > 0.5


async def test_speaking_over_an_answer_stops_it_and_the_next_one_follows(
    place: Place, say: Callable[[str], NDArray[np.int16]]
) -> None:
    async with calling(place) as caller:
        await caller.write(STORY)
        await caller.connection.response.create()
        delta = await caller.until("response.output_audio.delta")
        interrupted = delta["response_id"]
        async with caller.microphone(0.5, say("What is the capital of France?")):
            await caller.until("input_audio_buffer.speech_started")
            num_before = len(caller.events)
            await caller.until("response.created")
            answered = await caller.until("response.done")
        (done,) = (
            event["response"]
            for event in caller.of("response.done")
            if event["response"]["id"] == interrupted
        )
        assert done["status"] == "cancelled"
        assert done["status_details"]["reason"] == "turn_detected"
        late = [e for e in caller.events[num_before:] if e.get("response_id") == interrupted]
        assert not [e for e in late if e["type"].endswith(".delta")]
        text = caller.transcript(answered["response"]["id"])
        place.expect(
            text, scripted="You said: What is the capital of France?", embedded=r"\bparis\b"
        )


async def test_an_error_names_the_event_and_the_conversation_goes_on(place: Place) -> None:
    async with calling(place, output_modalities=["text"]) as caller:
        await caller.connection.response.cancel(event_id="mine")
        event = await caller.receive()
        assert event["type"] == "error"
        assert event["error"]["code"] == "response_cancel_not_active"
        assert event["error"]["event_id"] == "mine"
        await caller.write("Say hello.")
        await caller.connection.response.create()
        assert (await caller.until("response.done"))["response"]["status"] == "completed"


async def test_the_model_list_is_readable_by_the_client(place: Place) -> None:
    async with AsyncOpenAI(api_key="unused", base_url=f"{place.url}/v1") as client:
        names = [model.id async for model in client.models.list()]
        assert "default" in names
        assert (await client.models.retrieve("gpt-realtime")).object == "model"
        secret = await client.realtime.client_secrets.create(session={"type": "realtime"})
        assert secret.value.startswith("ek_")
        assert secret.session.type == "realtime"
