"""uvicorn's HTTP and WebSocket protocols, with the holes closed through which clients hold on.

Used by :mod:`omni_streaming.listener`. A connection costs a file descriptor, and uvicorn keeps it
for as long as its client likes: one that never finishes its request, does not read its answer, or
vanished with bytes unread (for which ``transport.close()`` waits). So every protocol here can say
since when it has been *waiting for its client*; :class:`Clients` bounds how long and how many.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import Frame
from websockets.http11 import Request

from omni.config import ServerConfig
from omni_streaming.connection import ABORT
from omni_streaming.loop_share import LoopShare

MAX_FRAGMENTS = 2**14
"""Of one message: the longest append in pieces of 1 KiB. Each costs us 40 bytes or more."""

MAX_UNREAD_BYTES = 2 * 2**20
"""Of what was written to a client. Events stop long before; answers to pings do not."""

READ_BYTES = 2**14
"""At once: 3,000 of the smallest frames, or 30 ms; asyncio's own choice is 16 times that."""

if TYPE_CHECKING:
    from uvicorn._types import ASGIReceiveEvent, ASGISendEvent

BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Clients(ServerState):
    """uvicorn's record of the connections, with bounds on those that wait for their client."""

    def __init__(self, config: ServerConfig) -> None:
        super().__init__()
        self._timeout_s = config.request_timeout_s
        self._max_waiting = config.max_waiting

    def make_room(self, now_s: float) -> None:
        """Drop those that have waited longest, down to the bound; whoever is new gets in."""
        waiting = self._waiting(now_s)
        for _, connection in waiting[: max(len(waiting) - self._max_waiting, 0)]:
            connection.abort()

    def drop_overdue(self, now_s: float) -> None:
        """Drop those that have waited too long."""
        for since_s, connection in self._waiting(now_s):
            if now_s - since_s > self._timeout_s:
                connection.give_up()

    def _waiting(self, now_s: float) -> list[tuple[float, HttpProtocol | WebSocketProtocol]]:
        """Since when, and which; the longest first."""
        waiting = []
        for connection in self.connections:
            assert isinstance(connection, HttpProtocol | WebSocketProtocol)
            since_s = connection.waiting_since_s(now_s)
            # An aborted one is taken off the record when it is told so, a little later.
            if since_s is not None and not connection.is_aborted:
                waiting.append((since_s, connection))
        return sorted(waiting, key=lambda pair: pair[0])


class _Droppable:
    """What both protocols can do beside uvicorn's own."""

    transport: asyncio.Transport
    is_aborted = False

    def abort(self) -> None:
        """Drop the TCP connection and whatever was not read."""
        self.is_aborted = True
        self.transport.abort()

    def give_up(self) -> None:
        """End the connection, in order if the client has at least read what it was sent."""
        if self.transport.get_write_buffer_size():
            self.abort()
        else:
            self.transport.close()


class HttpProtocol(_Droppable, H11Protocol):
    """uvicorn's protocol, which waits for its client under the bounds of :class:`Clients`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since_s = self.loop.time()  # when the request could begin that is due now
        self._stalled_since_s: float | None = None
        assert isinstance(self.server_state, Clients)
        self.server_state.make_room(self._since_s)

    def waiting_since_s(self, now_s: float) -> float | None:
        """Since when it has been the client's turn to send or to read; None while it is ours."""
        if self._stalled_since_s is not None:
            return self._stalled_since_s
        is_ours = self._is_answering and not self.cycle.more_body
        return None if is_ours else self._since_s

    def give_up(self) -> None:
        is_unanswered = (
            not self.cycle.response_started
            if self._is_answering
            else self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
        )
        if is_unanswered and not self.transport.is_closing():
            self.transport.write(TIMED_OUT)
        super().give_up()

    def on_response_complete(self) -> None:
        self._since_s = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        self._stalled_since_s = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._stalled_since_s = None
        super().resume_writing()

    @property
    def _is_answering(self) -> bool:
        """Whether the app has a request's headers and has not answered it in full."""
        return self.cycle is not None and not self.cycle.response_complete


class WebSocketProtocol(_Droppable, WebSocketsSansIOProtocol):
    """uvicorn's protocol, whose connections also end when the client does not cooperate."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._since_s: float | None = self.loop.time()  # it waited, or has begun to wait again
        self._taken_s = 0.0  # when the app last took a message
        self._share = LoopShare(self.loop.time())
        self._rest: asyncio.TimerHandle | None = None  # no more is read until it ends
        self.transport.max_size = READ_BYTES  # type: ignore[attr-defined]

    def waiting_since_s(self, now_s: float) -> float | None:
        """Since when the handshake or the closing one has lacked its other half."""
        if self.handshake_complete and not (self.close_sent or self.transport.is_closing()):
            self._since_s = None
        elif self._since_s is None:
            self._since_s = now_s
        return self._since_s

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if hasattr(self, "scope"):  # the handshake was valid
            extensions: dict[str, Any] = self.scope["extensions"]
            extensions[ABORT] = {"abort": self.abort}

    def connection_lost(self, exc: Exception | None) -> None:
        if self._rest is not None:
            self._rest.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        began_s = time.thread_time()
        super().data_received(data)
        rest_s = self._share.rest_s(time.thread_time() - began_s, self.loop.time())
        if rest_s and self._rest is None:
            self._rest = self.loop.call_later(rest_s, self._go_on_reading)
            self.transport.pause_reading()
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            # websockets reads less than h11 does: long lines, many headers, other methods.
            self.transport.write(BAD_REQUEST)
            self.transport.close()

    async def send(self, message: ASGISendEvent) -> None:
        try:
            await super().send(message)
        except RuntimeError as error:
            if not self.close_sent:
                raise
            # uvicorn has closed it for a fault of the client's, which the app is yet to hear of.
            raise ClientDisconnected from error

    async def receive(self) -> ASGIReceiveEvent:
        message = await super().receive()
        self._taken_s = self.loop.time()
        if self._rest is not None:
            self.transport.pause_reading()  # what uvicorn has just resumed
        return message

    def _go_on_reading(self) -> None:
        self._rest = None
        if not self.read_paused:
            self.transport.resume_reading()

    def handle_ping(self) -> None:
        super().handle_ping()
        if self.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            self.abort()

    def handle_cont(self, event: Frame) -> None:
        if self.close_sent:
            return
        if len(self.frames) >= MAX_FRAGMENTS:
            self.frames = []
            self.conn.fail(1008, f"a message has at most {MAX_FRAGMENTS} fragments")
            self.handle_parser_exception()  # as for any frame against the rules
            return
        super().handle_cont(event)

    def keepalive_timeout(self) -> None:
        # uvicorn reads no further than the message that the app has not taken yet: the pong may
        # lie behind it. Load must not end a session, so the time begins again.
        if self.read_paused or self._taken_s > self.ping_sent_at:
            assert self.ping_timeout is not None
            self.pong_timer = self.loop.call_later(self.ping_timeout, self.keepalive_timeout)
            return
        super().keepalive_timeout()
        self.abort()
