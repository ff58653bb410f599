"""What goes back to a client of ``POST /v1/chat/completions``: objects, chunks and errors.

Used by :mod:`omni_streaming.chat_completions`. Shapes are those of the OpenAI API; the official
client reads them in our tests.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from starlette.responses import JSONResponse
from starlette.types import Message, Send

from omni.types import ToolCall, Usage

RETRY_AFTER_S = 2
"""Told to those who come when all places are taken, or too early."""

Finish = Literal["stop", "length", "tool_calls"]


class Fault(Exception):
    """A request that gets no answer."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param

    def body(self) -> dict[str, Any]:
        """The error object."""
        if self.status == 429:
            kind = "rate_limit_error"
        else:
            kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    @property
    def headers(self) -> dict[str, str]:
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        if self.status == 405:
            return {"Allow": "POST"}
        return {"Retry-After": str(RETRY_AFTER_S)} if self.status in (429, 503) else {}


@dataclass(frozen=True, slots=True)
class Shown:
    """An answer as objects of the protocol."""

    id: str
    created_s: int
    model: str
    has_usage: bool  # a last chunk says what it cost

    def whole(
        self, text: str, calls: Sequence[ToolCall], reason: Finish, usage: Usage
    ) -> dict[str, Any]:
        """The answer in one piece."""
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if calls and not text else text,
            "refusal": None,
        }
        if calls:
            message["tool_calls"] = [shown_call(call) for call in calls]
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": reason,
        }
        return self._object("chat.completion", [choice]) | {"usage": _usage(usage)}

    def chunk(self, delta: dict[str, Any], reason: Finish | None = None) -> dict[str, Any]:
        """A piece of the answer."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        chunk = self._object("chat.completion.chunk", [choice])
        return chunk | {"usage": None} if self.has_usage else chunk

    def last_chunk(self, usage: Usage) -> dict[str, Any]:
        """What follows the answer, if that was asked for."""
        return self._object("chat.completion.chunk", []) | {"usage": _usage(usage)}

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created_s,
            "model": self.model,
            "choices": choices,
        }


def shown_call(call: ToolCall) -> dict[str, Any]:
    """A tool call as the protocol has it."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.call_id, "type": "function", "function": function}


def _usage(usage: Usage) -> dict[str, Any]:
    num_prompt = usage.input_text_tokens + usage.input_audio_tokens + usage.input_image_tokens
    num_completion = usage.output_text_tokens + usage.output_audio_tokens
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_completion,
        "total_tokens": num_prompt + num_completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


class Reply:
    """What goes back to the client; every way of it carries the request's id."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._headers = {"X-Request-Id": request_id}
        self._has_begun = False

    async def json(
        self, body: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        """The whole reply."""
        response = JSONResponse(body, status, headers=self._headers | (headers or {}))
        self._has_begun = True
        await response({"type": "http"}, _nothing, self._send)

    async def fail(self, fault: Fault) -> None:
        """Say what is wrong: as a status, or in the stream if that has begun."""
        if not self._has_begun:
            await self.json(fault.body(), fault.status, fault.headers)
            return
        await self.event(fault.body())
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def begin_stream(self) -> None:
        """Server-sent events follow."""
        self._has_begun = True
        headers = self._headers | {
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-cache",
            "X-Accel-Buffering": "no",  # nginx would hold the answer back
        }
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": 200, "headers": raw})

    async def event(self, data: dict[str, Any]) -> None:
        """One event; returns once the client has taken enough of those before."""
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        body = f"data: {text}\n\n".encode()
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end_stream(self) -> None:
        """Nothing follows."""
        body = b"data: [DONE]\n\n"
        await self._send({"type": "http.response.body", "body": body, "more_body": False})


async def _nothing() -> Message:
    return {"type": "http.disconnect"}
