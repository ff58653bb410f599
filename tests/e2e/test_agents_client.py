"""The openai-agents package, unchanged, runs an agent with a tool against the server.

It is the strictest of the clients people use: it validates every event, runs tools only when items
arrive complete and in order, and interrupts by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from agents import function_tool, set_tracing_disabled
from agents.realtime import RealtimeAgent, RealtimeRunner, RealtimeSession

from omni.scripted import Answer, Call, Script, ScriptedAssistant
from omni.types import Conversation
from tests.streaming.serving import make_server, serving_on_a_thread
from tests.streaming.test_client import LoudIsSpeech, tone

TIMEOUT_S = 30.0


def answer(conversation: Conversation) -> Answer:
    last = conversation.messages[-1]
    if last.role == "tool":
        return Answer(text=f"It is {getattr(last.parts[-1], 'output', '')}.")
    if "weather" in str(getattr(last.parts[-1], "text", "")):
        return Answer(calls=(Call("get_weather", '{"city": "Rome"}'),))
    return Answer(text="Good day")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    script = Script(transcripts=("what is the weather",), answer=answer)
    server = make_server(build=lambda parts: ScriptedAssistant(parts, script), vad=LoudIsSpeech())
    with serving_on_a_thread(server) as url:
        yield url.replace("http", "ws") + "/v1/realtime?model=gpt-realtime"


class Agent:
    """An agent with one tool, and what its session told us."""

    def __init__(self) -> None:
        set_tracing_disabled(True)
        self.cities: list[str] = []

        @function_tool
        async def get_weather(city: str) -> str:
            """The weather in a city."""
            self.cities.append(city)
            return "sunny"

        agent = RealtimeAgent(name="Host", instructions="Be kind.", tools=[get_weather])
        self.runner = RealtimeRunner(
            starting_agent=agent,
            config={"model_settings": {"model_name": "gpt-realtime", "modalities": ["audio"]}},
        )
        self.audio = bytearray()
        self.kinds: list[str] = []

    async def open(self, url: str) -> RealtimeSession:
        return await self.runner.run(model_config={"url": url, "api_key": "unused"})

    async def until_said(self, session: RealtimeSession, text: str) -> None:
        """Take events until the assistant has said ``text``."""
        async with asyncio.timeout(TIMEOUT_S):
            async for event in session:
                self.kinds.append(event.type)
                assert event.type != "error", event
                if event.type == "audio":
                    self.audio += event.audio.data
                if event.type == "agent_end" and _last_said(session) == text:
                    return


def _last_said(session: RealtimeSession) -> str:
    for item in reversed(session._history):
        if item.type == "message" and item.role == "assistant":
            part: Any = item.content[-1]
            return str(getattr(part, "transcript", None) or getattr(part, "text", ""))
    return ""


async def test_a_written_message_is_answered_aloud(url: str) -> None:
    agent = Agent()
    async with await agent.open(url) as session:
        await session.send_message("Hello")
        await agent.until_said(session, "Good day")
        assert len(agent.audio) == 2 * 2 * 5760
        assert "audio_end" in agent.kinds


async def test_a_tool_is_run_and_its_result_spoken(url: str) -> None:
    agent = Agent()
    async with await agent.open(url) as session:
        await session.send_message("How is the weather?")
        await agent.until_said(session, "It is sunny.")
    assert agent.cities == ["Rome"]
    assert agent.kinds.index("tool_start") < agent.kinds.index("tool_end")


async def test_a_spoken_question_runs_the_tool_too(url: str) -> None:
    agent = Agent()
    async with await agent.open(url) as session:
        speech = np.concatenate([tone(0.6), np.zeros(24_000, np.int16)])
        for start in range(0, len(speech), 480):
            await session.send_audio(speech[start : start + 480].tobytes())
        await agent.until_said(session, "It is sunny.")
    assert agent.cities == ["Rome"]
