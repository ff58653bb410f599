"""``POST /v1/chat/completions``: text and pictures in, text and tool calls out, as OpenAI has it.

Mounted by :mod:`omni_streaming.server`. Every request is a session of its own on the worker: it is
opened, answered once and closed; a client that leaves ends it at once. What a request may hold is
:mod:`omni_streaming.chat_requests`' business.

A client is refused (key, origin, capacity) before its body is read. A streamed answer begins only
when the assistant has begun it: until then, whatever goes wrong is an HTTP status. A client that
reads too slowly pauses its answer: outputs are acknowledged once they are sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from omni.errors import InputError
from omni.types import (
    Cancel,
    Done,
    Failed,
    Open,
    Output,
    Progress,
    Respond,
    TextDelta,
    ToolCall,
    Usage,
)
from omni_streaming.access import Keys, ModelNames, key_of, origin_allowed
from omni_streaming.chat_reply import Fault, Finish, Reply, Shown, shown_call
from omni_streaming.chat_requests import Ask, StopStrings, parse
from omni_streaming.connection import GIVE_BACK_S, LONG_MESSAGE_BYTES, Service
from omni_streaming.items import ClientError
from omni_streaming.listener import ENVELOPE_BYTES
from omni_streaming.memory import give_back_memory
from omni_streaming.metrics import SessionMetrics

logger = logging.getLogger(__name__)

STATUS_OF = {"context_length_exceeded": 400, "rate_limit_exceeded": 429}
"""HTTP status of a failed answer by its code; 500 for any other."""

GOING_DOWN = "the server is going down"


@dataclass(frozen=True, slots=True)
class Begun:
    """An answer is being made: nothing was wrong with the question."""


@dataclass(frozen=True, slots=True)
class End:
    """An answer is whole."""

    reason: Finish
    usage: Usage


Piece = Begun | TextDelta | ToolCall | End


class _Left(Exception):
    """The client is gone."""


class Exchange:
    """One question and its answer: a session on the worker, from opening to closing."""

    def __init__(self, service: Service, ask: Ask) -> None:
        self._worker = service.worker
        self._metrics = service.metrics
        self._watch = SessionMetrics(service.metrics)
        self._ask = ask
        self._id = service.new_id("sess")
        self._response_id = service.new_id("resp")
        self._outputs: list[Output] = []
        self._came = asyncio.Event()
        self._usage = Usage()
        self._status = "cancelled"  # until it has ended otherwise

    async def pieces(self) -> AsyncGenerator[Piece]:
        """The answer: its beginning, its text and calls, its end.

        Raises:
            Fault: it failed.
        """
        self._worker.attach(self._id, self._deliver)
        self._worker.submit(
            self._id,
            [
                Open(self._id, self._ask.conversation),
                Respond(self._id, self._response_id, self._ask.config),
            ],
        )
        stops = StopStrings(self._ask.stop)
        has_begun = has_called = has_stopped = False
        while True:
            outputs = await self._next()
            failed = next((o for o in outputs if isinstance(o, Failed)), None)
            if failed is not None:  # text that came with it is an apology, meant for listeners
                self._status = "failed"
                raise Fault(STATUS_OF.get(failed.code, 500), failed.code, failed.message)
            if not has_begun:
                has_begun = True
                yield Begun()
            for output in outputs:
                match output:
                    case Progress():
                        self._usage = output.usage
                    case TextDelta() if not has_stopped:
                        if text := stops.push(output.text):
                            yield TextDelta(self._id, self._response_id, text)
                        has_stopped = stops.has_stopped
                        if has_stopped:
                            self._worker.submit(self._id, [Cancel(self._id, self._response_id)])
                    case ToolCall() if not has_stopped:
                        has_called = True
                        yield output
                    case Done():
                        self._usage = output.usage
                        if text := stops.flush():
                            yield TextDelta(self._id, self._response_id, text)
                        is_cut = output.reason == "max_output_tokens"
                        self._status = "incomplete" if is_cut else "completed"
                        reason: Finish = "length" if is_cut else "stop"
                        yield End("tool_calls" if has_called else reason, output.usage)
                        return
            self._worker.acknowledge(self._id, len(outputs))

    def close(self) -> None:
        """Free what it holds, wherever it is."""
        self._worker.detach(self._id)
        self._metrics.responses.labels(self._status).inc()
        self._watch.output(Done(self._id, self._response_id, "completed", self._usage))

    def abort(self) -> None:
        """End it soon, with a fault."""
        failed = Failed(self._id, self._response_id, "server_error", GOING_DOWN)
        self._deliver([failed])

    def _deliver(self, outputs: Sequence[Output]) -> None:
        """Called by the worker on this loop."""
        self._outputs.extend(outputs)
        self._came.set()

    async def _next(self) -> list[Output]:
        await self._came.wait()
        self._came.clear()
        outputs, self._outputs = self._outputs, []
        return outputs


class ChatCompletions:
    """The route, an ASGI app of its own.

    Args:
        is_full: whether the server has no place left; requests under way count as sessions.
    """

    def __init__(
        self,
        service: Service,
        keys: Keys,
        models: ModelNames,
        *,
        is_full: Callable[[], bool],
    ) -> None:
        self._service = service
        self._keys = keys
        self._models = models
        self._is_full = is_full
        self._is_draining = False
        self._exchanges: set[Exchange] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self.num_open = 0
        """Requests under way."""

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests; let answers finish, or end them after ``timeout_s``."""
        self._is_draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        for exchange in self._exchanges:
            exchange.abort()
        with contextlib.suppress(TimeoutError):  # of those who still send theirs
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = self._service.new_id("req")
        reply = Reply(send, request_id)
        try:
            if scope["method"] != "POST":
                raise Fault(405, "method_not_allowed", "questions are asked with POST")
            self._admit(Headers(scope=scope))
            self.num_open += 1
            self._idle.clear()
            try:
                await self._serve(receive, reply)
            finally:
                self.num_open -= 1
                if not self.num_open:
                    self._idle.set()
        except _Left:
            logger.info("request %s: the client left", request_id)
        except Fault as fault:
            self._service.metrics.refused.labels(fault.code).inc()
            await reply.fail(fault)
        except Exception:
            logger.exception("request %s failed", request_id)
            await reply.fail(Fault(500, "server_error", "the server's log has the details"))

    def _admit(self, headers: Headers) -> None:
        """Raises Fault for those who get nothing."""
        config = self._service.config.server
        if not self._keys.allows_full(key_of(headers)):
            raise Fault(401, "invalid_api_key", "the API key is missing or wrong")
        if not origin_allowed(config, headers.get("origin"), headers.get("host")):
            message = "pages of this origin may not ask: add it to server.allowed_origins"
            raise Fault(403, "origin_not_allowed", message)
        state = self._service.worker.state
        if self._is_draining:
            raise Fault(503, "server_error", GOING_DOWN)
        if state == "loading":
            message = "the models are still loading; try again in some seconds"
            raise Fault(503, "models_loading", message)
        if state != "ready":
            raise Fault(503, "server_error", "the assistant has failed; the server's log says why")
        if self._is_full():
            message = f"at capacity: {config.max_sessions} sessions are open; try again later"
            raise Fault(429, "rate_limit_exceeded", message)

    async def _serve(self, receive: Receive, reply: Reply) -> None:
        body = await self._body(receive)
        is_long = len(body) > LONG_MESSAGE_BYTES
        loop = asyncio.get_running_loop()
        try:
            if is_long:
                executor = self._service.long_messages
                ask = await loop.run_in_executor(executor, self._parse, body)
            else:
                ask = self._parse(body)
        except ClientError as error:
            raise Fault(400, error.code, error.message, error.param) from None
        finally:
            if is_long:
                executor = self._service.long_messages
                loop.call_later(GIVE_BACK_S, loop.run_in_executor, executor, give_back_memory)
        del body
        try:
            self._models.resolve(ask.model)
        except InputError as error:
            raise Fault(404, "model_not_found", str(error), "model") from None
        if self._is_draining:
            raise Fault(503, "server_error", GOING_DOWN)
        await self._converse(receive, reply, ask)

    def _parse(self, body: bytes) -> Ask:
        return parse(body, max_context_tokens=self._service.config.engine.max_context_tokens)

    async def _body(self, receive: Receive) -> bytes:
        limit = self._service.config.server.max_append_bytes + ENVELOPE_BYTES
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Left
            body += message.get("body", b"")
            if len(body) > limit:
                raise Fault(413, "request_too_large", f"the body is larger than {limit} bytes")
            if not message.get("more_body", False):
                return bytes(body)

    async def _converse(self, receive: Receive, reply: Reply, ask: Ask) -> None:
        """Answer, as long as there is somebody to answer."""
        exchange = Exchange(self._service, ask)
        self._exchanges.add(exchange)
        answering = asyncio.create_task(self._answer(exchange, reply, ask))
        leaving = asyncio.create_task(_left(receive))
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                raise _Left
            answering.result()
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)
            self._exchanges.discard(exchange)
            exchange.close()

    async def _answer(self, exchange: Exchange, reply: Reply, ask: Ask) -> None:
        shown = Shown(
            self._service.new_id("chatcmpl"),
            int(time.time()),
            self._service.model,
            has_usage=ask.has_usage,
        )
        async with contextlib.aclosing(exchange.pieces()) as pieces:
            if ask.is_streamed:
                await _stream(pieces, shown, reply)
            else:
                await _collect(pieces, shown, reply)


async def _stream(pieces: AsyncIterator[Piece], shown: Shown, reply: Reply) -> None:
    is_first = True
    num_calls = 0
    async for piece in pieces:
        if isinstance(piece, Begun):
            await reply.begin_stream()
            continue
        if is_first:
            is_first = False
            content = None if isinstance(piece, ToolCall) else ""
            await reply.event(shown.chunk({"role": "assistant", "content": content}))
        match piece:
            case TextDelta():
                await reply.event(shown.chunk({"content": piece.text}))
            case ToolCall():
                call = {"index": num_calls, **shown_call(piece)}
                num_calls += 1
                await reply.event(shown.chunk({"tool_calls": [call]}))
            case End():
                await reply.event(shown.chunk({}, piece.reason))
                if shown.has_usage:
                    await reply.event(shown.last_chunk(piece.usage))
                await reply.end_stream()


async def _collect(pieces: AsyncIterator[Piece], shown: Shown, reply: Reply) -> None:
    text = ""
    calls: list[ToolCall] = []
    async for piece in pieces:
        match piece:
            case TextDelta():
                text += piece.text
            case ToolCall():
                calls.append(piece)
            case End():
                await reply.json(shown.whole(text, calls, piece.reason, piece.usage))


async def _left(receive: Receive) -> None:
    """Returns when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
