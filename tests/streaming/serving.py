"""A real server on a free port, around an assistant that says what the test tells it to.

For tests of the plumbing (socket, queues, faults): :class:`Chatter` talks as long and as loudly as
asked, so that clients can be overwhelmed. What is said is tested elsewhere.
"""

from __future__ import annotations

import asyncio
import functools
import json
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from omni_encoders.vad import VoiceActivity
from omni_streaming.listener import Listener, bind
from omni_streaming.server import Server
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from omni.config import Config, ServerConfig
from omni.parts import Parts
from omni.types import (
    AudioDelta,
    Cancel,
    Close,
    Command,
    Conversation,
    Done,
    Edit,
    Message,
    Open,
    Output,
    Pause,
    Respond,
    Resume,
    TextDelta,
    TextPart,
    Usage,
)
from omni.worker import Port, Worker

VOICES = ("heart", "alloy")
SECOND = bytes(2 * 24_000)
TIMEOUT_S = 20.0


@dataclass
class _Speech:
    seconds_left: int
    num_words: int = 0


@dataclass
class Chatter:
    """Answers the user's text ``talk N`` with N words, each a second of sound, one per step.

    ``crash`` raises when the response is asked for, ``crash later`` in the next step.
    """

    parts: Parts
    commands: list[Command] = field(default_factory=list)
    conversations: dict[str, Conversation] = field(default_factory=dict)
    speeches: dict[tuple[str, str], _Speech] = field(default_factory=dict)
    paused: set[str] = field(default_factory=set)
    outputs: list[Output] = field(default_factory=list)
    is_crashing: bool = False

    def submit(self, command: Command) -> None:
        self.commands.append(command)
        match command:
            case Open(session_id, conversation) | Edit(session_id, conversation):
                self.conversations[session_id] = conversation
            case Respond(session_id, response_id):
                self._respond(session_id, response_id)
            case Cancel(session_id, response_id):
                if self.speeches.pop((session_id, response_id), None) is not None:
                    self.outputs.append(Done(session_id, response_id, "cancelled", Usage()))
            case Pause(session_id):
                self.paused.add(session_id)
            case Resume(session_id):
                self.paused.discard(session_id)
            case Close(session_id):
                self.conversations.pop(session_id, None)
                self.paused.discard(session_id)
                for key in [key for key in self.speeches if key[0] == session_id]:
                    del self.speeches[key]

    def _respond(self, session_id: str, response_id: str) -> None:
        text = _last_text(self.conversations[session_id].messages)
        if text == "crash":
            raise RuntimeError("asked to crash")
        self.is_crashing = text == "crash later"
        num_words = int(text.removeprefix("talk ")) if text.startswith("talk ") else 1
        self.speeches[session_id, response_id] = _Speech(num_words)

    def step(self) -> list[Output]:
        if self.is_crashing:
            self.is_crashing = False
            raise RuntimeError("asked to crash later")
        outputs, self.outputs = self.outputs, []
        for (session_id, response_id), speech in list(self.speeches.items()):
            if session_id in self.paused:
                continue
            if speech.seconds_left:
                speech.seconds_left -= 1
                speech.num_words += 1
                outputs.append(TextDelta(session_id, response_id, f"{speech.num_words} "))
                outputs.append(AudioDelta(session_id, response_id, SECOND))
            else:
                del self.speeches[session_id, response_id]
                usage = Usage(input_text_tokens=7, output_text_tokens=speech.num_words)
                outputs.append(Done(session_id, response_id, "completed", usage))
        return outputs

    def stats(self) -> None:
        """There is no engine."""

    def has_work(self) -> bool:
        return bool(self.outputs) or any(key[0] not in self.paused for key in self.speeches)

    def close(self) -> None:
        pass


def _last_text(messages: tuple[Message, ...]) -> str:
    for message in reversed(messages):
        for part in message.parts:
            if message.role == "user" and isinstance(part, TextPart):
                return part.text
    return ""


@dataclass
class Running:
    """A server that is up."""

    server: Server
    listener: Listener
    built: list[Any]

    @property
    def url(self) -> str:
        return self.listener.url

    @property
    def chatter(self) -> Chatter:
        assistant = self.built[-1]
        assert isinstance(assistant, Chatter)
        return assistant

    def metric(self, name: str, **labels: str) -> float:
        return self.server.metrics.registry.get_sample_value(name, labels) or 0.0

    async def until_empty(self) -> None:
        """Wait until no session is left, here and in the assistant."""
        async with asyncio.timeout(TIMEOUT_S):
            while self.server.num_sessions or self.chatter.conversations:
                await asyncio.sleep(0.005)


def settings(config: Config | None = None, **server: Any) -> Config:
    """``config`` with other server settings."""
    return replace(config or Config(), server=ServerConfig(**server))


@functools.cache
def shared_vad() -> VoiceActivity:
    """The real network, loaded once: it keeps its state outside."""
    return VoiceActivity()


def make_server(
    config: Config | None = None,
    *,
    build: Callable[[Parts], Port] = Chatter,
    vad: VoiceActivity | None = None,
) -> Server:
    """A server around the assistant that ``build`` makes; not started."""
    return Server(
        config=config or Config(),
        worker=Worker(build),
        vad=vad or shared_vad(),
        model="chatter",
        voices=lambda: VOICES,
        about=lambda: {"models": {"assistant": "chatter"}},
    )


@asynccontextmanager
async def serving(
    config: Config | None = None,
    *,
    build: Callable[[Parts], Port] = Chatter,
    vad: VoiceActivity | None = None,
    is_ready: bool = True,
) -> AsyncIterator[Running]:
    """Serve on a free port until the block ends."""
    config = config or Config()
    built: list[Any] = []

    def keep(parts: Parts) -> Port:
        built.append(build(parts))
        port: Port = built[-1]
        return port

    server = make_server(config, build=keep, vad=vad)
    with bind("127.0.0.1", 0) as listening:
        server.worker.start()
        try:
            if is_ready:
                assert await asyncio.to_thread(server.worker.wait, TIMEOUT_S) == "ready"
            async with Listener(server.app(), config.server, listening, server.drain) as listener:
                yield Running(server, listener, built)
        finally:
            server.worker.stop()


@contextmanager
def serving_on_a_thread(server: Server, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve ``server`` beside the caller, who has an event loop of its own; yields the URL."""
    started = threading.Event()
    box: dict[str, Any] = {}

    async def run() -> None:
        box.update(loop=asyncio.get_running_loop(), stop=asyncio.Event())
        with bind("127.0.0.1", 0) as listening:
            async with Listener(
                server.app(), server.config.server, listening, server.drain, tls=tls
            ) as listener:
                box["url"] = listener.url
                started.set()
                await box["stop"].wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()), name="test-server")
    server.worker.start()
    thread.start()
    try:
        assert server.worker.wait(120) == "ready", server.worker.failure
        assert started.wait(TIMEOUT_S)
        yield box["url"]
    finally:
        box["loop"].call_soon_threadsafe(box["stop"].set)
        thread.join()
        server.worker.stop()


class Socket:
    """A bare WebSocket client: sends anything, checks nothing."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.events: list[dict[str, Any]] = []

    async def send(self, kind: str, **fields: Any) -> None:
        await self.connection.send(json.dumps({"type": kind, **fields}))

    async def ask(self, text: str) -> None:
        """Write ``text`` and ask for an answer."""
        content = [{"type": "input_text", "text": text}]
        item = {"type": "message", "role": "user", "content": content}
        await self.send("conversation.item.create", item=item)
        await self.send("response.create")

    async def receive(self) -> dict[str, Any]:
        async with asyncio.timeout(TIMEOUT_S):
            self.events.append(json.loads(await self.connection.recv()))
        return self.events[-1]

    async def until(self, kind: str) -> dict[str, Any]:
        """The next event of type ``kind``."""
        while (event := await self.receive())["type"] != kind:
            pass
        return event

    async def answer(self, text: str) -> str:
        """What is answered to ``text``; the response must complete."""
        await self.ask(text)
        num_seen = len(self.events)
        done = await self.until("response.done")
        assert done["response"]["status"] == "completed", done
        kind = "response.output_audio_transcript.delta"
        return "".join(e["delta"] for e in self.events[num_seen:] if e["type"] == kind)

    async def closed(self) -> tuple[int, str]:
        """Wait for the end; (close code, reason)."""
        async with asyncio.timeout(TIMEOUT_S):
            with suppress(ConnectionClosed):
                async for message in self.connection:
                    self.events.append(json.loads(message))
            await self.connection.wait_closed()
        return self.connection.close_code or 0, self.connection.close_reason or ""


@asynccontextmanager
async def socket(
    at: Running | str, query: str = "?model=default", *, created: bool = True, **options: Any
) -> AsyncIterator[Socket]:
    """Connect to a server (or its URL); with ``created``, wait for ``session.created``."""
    url = at if isinstance(at, str) else at.url
    url = url.replace("http", "ws") + "/v1/realtime" + query
    async with connect(url, max_size=2**20, proxy=None, **options) as connection:
        client = Socket(connection)
        if created:
            assert (await client.receive())["type"] == "session.created"
        yield client
