"""A small Realtime client: speaks recordings in real time, hears answers, times both.

Used by ``omni talk``, the tests and the benchmarks; any Realtime server will do. The microphone
runs from :meth:`Client.start_microphone` on and sends silence between clips, as a real one does: a
20 ms chunk leaves when its last sample would have been captured. Incoming audio is played on the
recording's time line; when the server hears the user begin, playback is cut and the server told how
much was heard, as the official SDKs do.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI

from omni.errors import OmniError
from omni.types import OUTPUT_RATE_HZ
from omni_streaming.access import is_loopback
from omni_streaming.recording import Recording

if TYPE_CHECKING:
    from numpy.typing import NDArray

Event = Mapping[str, Any]

CHUNK_S = 0.02
CHUNK_SAMPLES = round(CHUNK_S * OUTPUT_RATE_HZ)
MAX_FRAME_BYTES = 2**20  # what other clients accept, so that our tests notice larger ones

CLOSE_WORDS = {
    1000: "the conversation has ended",
    1001: "the conversation has ended",
    1006: "it broke off",
    1008: "it refused what was sent",
    1009: "a message was too large",
    1011: "it met an error of its own",
    1012: "it is stopping or starting again",
    1013: "it is at capacity, try again later",
}
"""What the codes of a WebSocket's end mean to a person."""


class ConnectionFailed(OmniError):
    """No server answers at the URL, or it refused us; the message says which."""


class ServerError(OmniError):
    """The server closed the connection or sent an error; the message is the server's.

    ``code`` is the error's own, ``server_error`` where there was none.
    """

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code: str = code or "server_error"


@dataclass(slots=True)
class Answer:
    """One response as it came in; times are seconds on the recording's time line."""

    response_id: str
    created_s: float
    text: str = ""
    pcm: bytearray = field(default_factory=bytearray)
    calls: list[dict[str, str]] = field(default_factory=list)
    first_text_s: float | None = None
    first_audio_s: float | None = None
    """When its first audio arrived."""
    heard_s: float | None = None
    """When its first audio began to sound."""
    done_s: float | None = None
    status: str = "in_progress"
    reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    last_audio: NDArray[np.int16] = field(default_factory=lambda: np.zeros(0, np.int16))
    """The newest piece of ``pcm``."""

    @property
    def audio(self) -> NDArray[np.int16]:
        return np.frombuffer(bytes(self.pcm), "<i2")


class Client:
    """One conversation. Use as an async context manager.

    Args:
        url: of the server, ``http://...`` or ``ws://...``, with or without ``/v1`` or
            ``/v1/realtime``; a model in its query goes before ``model``.
        api_key: sent as a bearer token.
        on_event: called with every server event as it arrives.

    Raises (on entering):
        ConnectionFailed: nothing listens there or the handshake failed.
        ServerError: the server refused the session.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        model: str = "default",
        api_key: str | None = None,
        on_event: Callable[[Event], None] = lambda _: None,
    ) -> None:
        self.url = url
        self._socket_url = _socket_url(url, model)
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.on_event = on_event
        self.events: list[tuple[float, Event]] = []
        self.answers: dict[str, Answer] = {}
        self.transcripts: dict[str, str] = {}
        """What the server heard, by item id."""
        self.recording = Recording()
        self.cuts_answers = True
        """Whether playback is cut when the server hears the user begin."""
        self._origin_s = time.monotonic()
        self._changed = asyncio.Condition()
        self._to_say: list[NDArray[np.int16]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._closed: str | None = None
        self.close_code: int | None = None

    async def __aenter__(self) -> Client:
        try:
            self._socket: ClientConnection = await connect(
                self._socket_url,
                additional_headers=self._headers,
                max_size=MAX_FRAME_BYTES,
                compression=None,
                proxy=None if is_loopback(urlsplit(self._socket_url).hostname or "") else True,
            )
        except (OSError, InvalidHandshake, InvalidURI, TimeoutError, ValueError) as error:
            # ValueError: the URL's port or address is not one
            raise ConnectionFailed(f"no Realtime server answers at {self.url}: {error}") from error
        self._origin_s = time.monotonic()
        self._tasks.append(asyncio.create_task(self._receive()))
        try:
            await self.until("session.created")
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._socket.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def now_s(self) -> float:
        """Seconds on the recording's time line."""
        return time.monotonic() - self._origin_s

    # --- saying ----------------------------------------------------------------------------------

    async def send(self, kind: str, **fields: Any) -> None:
        """Send one client event.

        Raises:
            ServerError: the connection is closed.
        """
        try:
            await self._socket.send(json.dumps({"type": kind, **fields}))
        except ConnectionClosed as error:
            raise ServerError(self._closing()) from error

    async def update(self, **session: Any) -> Event:
        """Change the session and return its effective settings."""
        num_seen = len(self.events)
        await self.send("session.update", session={"type": "realtime", **session})
        updated: Event = (await self.until("session.updated", after=num_seen))["session"]
        return updated

    async def write(self, text: str, *, respond: bool = True) -> None:
        """Say ``text`` as a written user message and ask for an answer."""
        content = [{"type": "input_text", "text": text}]
        await self.send(
            "conversation.item.create",
            item={"type": "message", "role": "user", "content": content},
        )
        if respond:
            await self.send("response.create")

    def start_microphone(self) -> None:
        """Start the time line anew and capture from now on: silence until :meth:`say`."""
        self._origin_s = time.monotonic()
        self._tasks.append(asyncio.create_task(self._run_microphone()))

    def say(self, pcm: NDArray[np.int16]) -> float:
        """Put ``pcm`` [n] at 24 kHz before the microphone; returns when it begins to sound."""
        begins_s = self.recording.user_s + sum(map(len, self._to_say)) / OUTPUT_RATE_HZ
        self._to_say.append(pcm)
        return begins_s

    async def said(self) -> None:
        """Wait until everything given to :meth:`say` has been sent."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._to_say or self._closed is not None)
        self._raise_if_closed()

    async def append(self, pcm: NDArray[np.int16]) -> None:
        """Send ``pcm`` [n] at 24 kHz as one chunk, at once (a microphone of one's own)."""
        audio = base64.b64encode(pcm.astype("<i2").tobytes()).decode()
        await self.send("input_audio_buffer.append", audio=audio)

    async def ping(self) -> float:
        """Seconds that a WebSocket ping takes there and back: the server's event loop answers it.

        Raises:
            ServerError: the connection is closed.
        """
        began_s = time.monotonic()
        try:
            await (await self._socket.ping())
        except ConnectionClosed as error:
            raise ServerError(self._closing()) from error
        return time.monotonic() - began_s

    # --- hearing ---------------------------------------------------------------------------------

    async def until(self, kind: str, *, after: int = 0, timeout_s: float = 30.0) -> Event:
        """The first event of type ``kind`` from index ``after`` of :attr:`events` on.

        Raises:
            ServerError: an ``error`` event came first, or the connection was closed.
            TimeoutError: none came in time.
        """
        return await self._until(kind, after, timeout_s, renewed_by=None)

    async def _until(
        self, kind: str, after: int, timeout_s: float, *, renewed_by: str | None
    ) -> Event:
        """:meth:`until`; events whose type begins with ``renewed_by`` start the time anew."""
        seen = after
        async with asyncio.timeout(timeout_s) as limit, self._changed:
            while True:
                for _, event in self.events[seen:]:
                    if event["type"] == kind:
                        return event
                    if event["type"] == "error":
                        raise ServerError(_words(event), event["error"].get("code"))
                    if renewed_by is not None and event["type"].startswith(renewed_by):
                        limit.reschedule(asyncio.get_running_loop().time() + timeout_s)
                seen = len(self.events)
                self._raise_if_closed()
                await self._changed.wait()

    async def answer(self, *, after: int = 0, timeout_s: float = 60.0) -> Answer:
        """The first response that is done, counted from index ``after`` of :attr:`events`.

        Args:
            timeout_s: longest time without any event of a response; an answer that goes on is
                waited for as long as it takes.

        Raises:
            ServerError: as :meth:`until`; :attr:`unfinished` has what arrived.
            TimeoutError: nothing of a response came for ``timeout_s``; likewise.
        """
        done = await self._until("response.done", after, timeout_s, renewed_by="response.")
        return self.answers[done["response"]["id"]]

    @property
    def unfinished(self) -> Answer | None:
        """The newest answer if it is still under way, or was when the connection ended."""
        newest = next(reversed(self.answers.values()), None)
        return newest if newest is not None and newest.done_s is None else None

    async def heard(self) -> None:
        """Wait until everything that has arrived has been played."""
        while (left_s := self.recording.play_end_s - self.now_s) > 0:
            await asyncio.sleep(left_s)

    # --- the tasks -------------------------------------------------------------------------------

    async def _run_microphone(self) -> None:
        num_sent = 0
        with contextlib.suppress(ServerError):  # _receive reports it
            while self._closed is None:
                num_sent += 1
                due_s = self._origin_s + num_sent * CHUNK_S
                if (wait_s := due_s - time.monotonic()) > 0:
                    await asyncio.sleep(wait_s)
                chunk = self._next_chunk()
                self.recording.capture(chunk)
                await self.append(chunk)
                if not self._to_say:
                    await self._notify()

    def _next_chunk(self) -> NDArray[np.int16]:
        chunk = np.zeros(CHUNK_SAMPLES, np.int16)
        filled = 0
        while self._to_say and filled < CHUNK_SAMPLES:
            piece = self._to_say[0][: CHUNK_SAMPLES - filled]
            chunk[filled : filled + len(piece)] = piece
            filled += len(piece)
            self._to_say[0] = self._to_say[0][len(piece) :]
            if not len(self._to_say[0]):
                self._to_say.pop(0)
        return chunk

    async def _receive(self) -> None:
        try:
            async for message in self._socket:
                event = json.loads(message)
                self.events.append((self.now_s, event))
                await self._take(event)
                self.on_event(event)
                await self._notify()
        except ConnectionClosed:
            pass
        finally:
            self.close_code = self._socket.close_code
            self._closed = self._closing()
            await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _take(self, event: Event) -> None:
        now_s = self.now_s
        answer = self.answers.get(event.get("response_id", ""))
        match event["type"]:
            case "response.created":
                response_id = event["response"]["id"]
                self.answers[response_id] = Answer(response_id, now_s)
            case "response.output_audio_transcript.delta" | "response.output_text.delta" if answer:
                answer.text += event["delta"]
                answer.first_text_s = answer.first_text_s or now_s
            case "response.output_audio.delta" if answer:
                pcm = base64.b64decode(event["delta"])
                answer.pcm += pcm
                answer.last_audio = np.frombuffer(pcm, "<i2")
                starts_s = self.recording.play(event["item_id"], answer.last_audio, now_s)
                answer.first_audio_s = answer.first_audio_s or now_s
                answer.heard_s = answer.heard_s or starts_s
            case "response.output_item.done" if answer:
                item = event["item"]
                if item["type"] == "function_call":
                    answer.calls.append({k: item[k] for k in ("call_id", "name", "arguments")})
            case "response.done":
                response = event["response"]
                answer = self.answers[response["id"]]
                answer.done_s = now_s
                answer.status = response["status"]
                details = response.get("status_details") or {}
                answer.reason = (details.get("error") or {}).get("message") or details.get("reason")
                answer.usage = response.get("usage") or {}
            case "conversation.item.input_audio_transcription.completed":
                self.transcripts[event["item_id"]] = event["transcript"]
            case "input_audio_buffer.speech_started" if self.cuts_answers:
                await self._cut(now_s)

    async def _cut(self, now_s: float) -> None:
        cut = self.recording.cut(now_s)
        if cut is None:
            return
        item_id, played_ms = cut
        with contextlib.suppress(ServerError):
            await self.send(
                "conversation.item.truncate",
                item_id=item_id,
                content_index=0,
                audio_end_ms=played_ms,
            )

    def _raise_if_closed(self) -> None:
        if self._closed is not None:
            raise ServerError(self._closed)

    def _closing(self) -> str:
        code, reason = self._socket.close_code, self._socket.close_reason
        words = CLOSE_WORDS.get(code or 1006, "it gave no reason")
        return f"the server closed the connection: {words} ({code}{reason and f': {reason}'})"


def _words(event: Event) -> str:
    error = event["error"]
    return f"{error.get('code') or error['type']}: {error['message']}"


def _socket_url(url: str, model: str) -> str:
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "http", url
    scheme = {"http": "ws", "https": "wss"}.get(scheme, scheme)
    base, _, query = rest.partition("?")
    base = base.rstrip("/").removesuffix("/realtime").removesuffix("/v1")
    query = urlencode({"model": model} | dict(parse_qsl(query)))
    return f"{scheme}://{base}/v1/realtime?{query}"
