"""One ASGI app: the Realtime WebSocket, its REST companions, health, metrics and the page.

Built by :mod:`omni.cli.serve`. Admits or refuses clients (key, origin, model, capacity) before
anything is allocated for them; :mod:`omni_streaming.connection` serves those admitted.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omni_encoders.vad import VoiceActivity
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import Scope
from starlette.websockets import WebSocket, WebSocketDisconnect

from omni.config import Config
from omni.errors import InputError
from omni.worker import Worker
from omni_streaming.access import (
    DEFAULT_SECRET_S,
    Keys,
    ModelNames,
    key_of,
    origin_allowed,
)
from omni_streaming.chat_completions import ChatCompletions
from omni_streaming.connection import Connection, Intent, Service
from omni_streaming.metrics import Metrics
from omni_streaming.session import Session

logger = logging.getLogger(__name__)

DRAIN_S = 8.0  # for the answers under way when the server is told to stop
MAX_REASON_BYTES = 123  # RFC 6455, 5.5: what a close frame has room for
MAX_REST_BODY_BYTES = 256 * 1024
PROTOCOL = "realtime"
INTENTS = ("realtime", "transcription")
WEB = Path(__file__).parent / "web"
PAGES = {"see": "see.html"}
"""Addresses without an ending, to be said and remembered; ``/`` is index.html."""

LOADING = "models_loading"
"""Error code for those who come too early: the page tries again by itself."""


def new_id(prefix: str) -> str:
    """A fresh id such as ``item_5f0c...``: at most 32 characters for prefixes up to 7."""
    return f"{prefix}_{secrets.token_hex(12)}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a client may not connect: what it is told, and the close code."""

    close_code: int
    type: str
    code: str
    message: str
    param: str | None = None

    def error(self) -> dict[str, Any]:
        return {
            "type": self.type,
            "code": self.code,
            "message": self.message,
            "param": self.param,
        }


@dataclass(kw_only=True)
class Server:
    """The app and what it holds while it runs.

    Args:
        voices: names clients may ask for, the first is the default; asked once the worker is ready.
        about: what ``/readyz`` says of the parts that are loaded (names, no paths); as ``voices``.
        sees_natively: whether the model looks at pictures itself; as ``voices``.
    """

    config: Config
    worker: Worker
    vad: VoiceActivity
    model: str
    voices: Callable[[], tuple[str, ...]]
    about: Callable[[], Mapping[str, object]] = dict
    sees_natively: Callable[[], bool] = lambda: False
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        self._keys = Keys(self.config.server.api_key)
        self._models = ModelNames(self.model, self.config.model.aliases)
        self._connections: dict[Connection, asyncio.Task[None]] = {}
        self._is_draining = False
        self._started_s = int(time.time())
        self._service = Service(
            config=self.config,
            worker=self.worker,
            vad=self.vad,
            model=self.model,
            voices=self.voices,
            sees_natively=self.sees_natively,
            metrics=self.metrics,
            new_id=new_id,
            long_messages=ThreadPoolExecutor(1, "long-messages"),
        )
        self._chat = ChatCompletions(
            self._service,
            self._keys,
            self._models,
            is_full=lambda: self.num_sessions >= self.config.server.max_sessions,
        )
        parts = self.worker.parts
        gauge = self.metrics.gauge
        gauge("omni_ready", "1 when the models are loaded.", lambda: float(self._is_ready))
        gauge("omni_parts_waiting", "Parts that wait.", lambda: parts.num_waiting)
        gauge("omni_parts_refused", "Parts refused, queue full.", lambda: parts.num_refused)
        self.metrics.watch_engine(lambda: self.worker.stats)

    def app(self) -> Starlette:
        """The ASGI app."""
        return Starlette(
            routes=[
                WebSocketRoute("/v1/realtime", self._realtime),
                Route("/v1/realtime/client_secrets", self._client_secrets, methods=["POST"]),
                Route("/v1/chat/completions", self._chat),
                Route("/v1/models", self._list_models),
                Route("/v1/models/{name:path}", self._get_model),
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
                Route("/metrics", self._metrics),
                Mount("/", Pages(directory=WEB, html=True)),
            ]
        )

    async def drain(self) -> None:
        """Refuse new clients; let answers under way finish; close every connection with 1012."""
        self._is_draining = True
        chat = asyncio.create_task(self._chat.drain(DRAIN_S))
        connections = dict(self._connections)
        if connections:
            logger.info("closing %d sessions", len(connections))
            if num_answering := sum(connection.is_answering for connection in connections):
                logger.info("answers under way may finish: %d", num_answering)
            await asyncio.gather(*(connection.drain(DRAIN_S) for connection in connections))
            await asyncio.wait(connections.values(), timeout=DRAIN_S)
        await chat

    @property
    def num_sessions(self) -> int:
        """Connections, and requests for chat completions under way."""
        return len(self._connections) + self._chat.num_open

    @property
    def _is_ready(self) -> bool:
        return self.worker.state == "ready" and not self._is_draining

    # --- the WebSocket ---------------------------------------------------------------------------

    async def _realtime(self, websocket: WebSocket) -> None:
        # Refusals come after accepting, as in the hosted service: a browser shows scripts nothing
        # of a failed handshake, but it does deliver an error event and a close code.
        offered = websocket.scope.get("subprotocols", [])
        key = key_of(websocket.headers, offered)
        try:
            await websocket.accept(PROTOCOL if PROTOCOL in offered else None)
            refusal = self._refusal(websocket, key)
            if refusal is not None:
                await self._refuse(websocket, refusal)
                return
        except WebSocketDisconnect:
            return
        secret = self._keys.secret(key, time.time())
        initial = secret.session if secret else None
        asked = (initial or {}).get("type") or websocket.query_params.get("intent")
        try:
            connection = Connection(
                websocket, self._service, intent=_intent(asked), initial=initial
            )
        except Exception:
            logger.exception("a session could not be opened")
            await self._refuse(
                websocket, Refusal(1011, "server_error", "server_error", "no session was opened")
            )
            return
        task = asyncio.create_task(connection.run())
        self._connections[connection] = task
        try:
            await task
        finally:
            del self._connections[connection]

    def _refusal(self, websocket: WebSocket, key: str | None) -> Refusal | None:
        limits = self.config.server
        headers = websocket.headers
        if not origin_allowed(limits, headers.get("origin"), headers.get("host")):
            return Refusal(
                1008,
                "invalid_request_error",
                "origin_not_allowed",
                "pages of this origin may not connect: add it to server.allowed_origins",
            )
        if not self._keys.allows(key, time.time()):
            return Refusal(
                3000, "invalid_request_error", "invalid_api_key", "the API key is missing or wrong"
            )
        try:
            self._models.resolve(websocket.query_params.get("model"))
        except InputError as error:
            return Refusal(4000, "invalid_request_error", "model_not_found", str(error), "model")
        intent = websocket.query_params.get("intent")
        if intent and intent not in INTENTS:
            message = (
                f"intent is {intent[:100]!r}, expected 'transcription' or 'realtime' "
                "(a conversation, which is also what is meant without it)"
            )
            return Refusal(4000, "invalid_request_error", "invalid_value", message, "intent")
        if self._is_draining:
            return Refusal(1012, "server_error", "server_error", "the server is going down")
        if self.worker.state != "ready":
            if self.worker.state == "loading":
                message = "the models are still loading; try again in some seconds"
                return Refusal(1013, "server_error", LOADING, message)
            message = "the assistant has failed; the server's log says why"
            return Refusal(1013, "server_error", "server_error", message)
        if self.num_sessions >= limits.max_sessions:
            return Refusal(
                1013,
                "server_error",
                "rate_limit_exceeded",
                f"at capacity: {limits.max_sessions} sessions are open; try again later",
            )
        return None

    async def _refuse(self, websocket: WebSocket, refusal: Refusal) -> None:
        self.metrics.refused.labels(refusal.code).inc()
        error = {**refusal.error(), "event_id": None}
        await websocket.send_text(
            json.dumps({"type": "error", "event_id": new_id("event"), "error": error})
        )
        reason = refusal.message.encode()[:MAX_REASON_BYTES].decode(errors="ignore")
        await websocket.close(refusal.close_code, reason)

    # --- REST ------------------------------------------------------------------------------------

    def _unauthorised(self, request: Request) -> JSONResponse | None:
        if self._keys.allows_full(key_of(request.headers)):
            return None
        refusal = Refusal(
            0, "invalid_request_error", "invalid_api_key", "the API key is missing or wrong"
        )
        return JSONResponse({"error": refusal.error()}, 401, headers={"WWW-Authenticate": "Bearer"})

    async def _client_secrets(self, request: Request) -> Response:
        if (unauthorised := self._unauthorised(request)) is not None:
            return unauthorised
        headers = request.headers
        if not origin_allowed(self.config.server, headers.get("origin"), headers.get("host")):
            return _bad_request("pages of this origin may not ask for secrets", status=403)
        if not self._is_ready:
            return _bad_request("the models are not loaded", status=503, code="server_error")
        try:
            body = await _json_object(request)
            seconds = _seconds(body.get("expires_after") or {})
            session = body.get("session") or {"type": "realtime"}
            effective = await asyncio.get_running_loop().run_in_executor(
                self._service.long_messages, self._effective_session, session
            )
            secret = self._keys.issue(session, seconds, time.time())
        except InputError as error:
            return _bad_request(str(error))
        return JSONResponse(
            {"value": secret.value, "expires_at": secret.expires_at_s, "session": effective}
        )

    def _effective_session(self, session: Mapping[str, Any]) -> dict[str, Any]:
        """What a session would be that starts from ``session``; judged by a real one.

        Raises:
            InputError: the session object is not valid.
        """
        if not isinstance(session, dict):
            raise InputError("session is not an object")
        model = session.get("model")
        if not isinstance(model, str | None):
            raise InputError("session.model is not a string")
        self._models.resolve(model)
        trial = Session(
            session_id=new_id("sess"),
            config=self.config,
            model=self.model,
            voices=self.voices(),
            new_id=new_id,
            now_ms=0,
            expires_at_s=int(time.time()) + self.config.server.max_session_age_s,
            intent=_intent(session.get("type")),
        )
        settings = {key: value for key, value in session.items() if key != "model"}
        trial.receive(json.dumps({"type": "session.update", "session": settings}), 0)
        last = trial.events_to_send()[-1]
        trial.close()
        if last["type"] == "error":
            raise InputError(last["error"]["message"])
        effective: dict[str, Any] = last["session"]
        return effective

    async def _list_models(self, request: Request) -> Response:
        if (unauthorised := self._unauthorised(request)) is not None:
            return unauthorised
        models = [self._describe_model(name) for name in dict.fromkeys((self.model, "default"))]
        return JSONResponse({"object": "list", "data": models})

    async def _get_model(self, request: Request) -> Response:
        if (unauthorised := self._unauthorised(request)) is not None:
            return unauthorised
        name = request.path_params["name"]
        try:
            self._models.resolve(name)
        except InputError as error:
            return _bad_request(str(error), status=404, code="model_not_found")
        return JSONResponse(self._describe_model(name))

    def _describe_model(self, name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": self._started_s, "owned_by": "omni"}

    # --- health ----------------------------------------------------------------------------------

    async def _healthz(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _readyz(self, request: Request) -> Response:
        """200 or 503 for probes, which carry no key; the details only for those who do."""
        body: dict[str, object] = {"ready": self._is_ready}
        if self._keys.allows_full(key_of(request.headers)):
            body["state"] = "draining" if self._is_draining else self.worker.state
            body["sessions"] = {
                "open": self.num_sessions,
                "max": self.config.server.max_sessions,
            }
            body["model"] = self.model
            if self.worker.failure is not None:
                body["reason"] = str(self.worker.failure)
            if self.worker.state == "ready":
                body |= self.about()
        return JSONResponse(body, 200 if self._is_ready else 503)

    async def _metrics(self, request: Request) -> Response:
        return Response(self.metrics.render(), media_type=CONTENT_TYPE_LATEST)


class Pages(StaticFiles):
    """The pages' files, all public; Python's own are not among them."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        path = PAGES.get(path, path)
        if path.endswith((".py", ".pyc")) or "__pycache__" in path:
            return Response("not found", 404)
        response = await super().get_response(path, scope)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "no-cache"
        # A page that frames ours could lead a visitor to grant it the microphone or the camera.
        response.headers["Content-Security-Policy"] = "frame-ancestors 'none'"
        return response


async def _json_object(request: Request) -> dict[str, Any]:
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_REST_BODY_BYTES:
                raise InputError(f"the body is larger than {MAX_REST_BODY_BYTES} bytes")
    except ClientDisconnect as error:  # nobody will read the answer
        raise InputError("the client left before its body was whole") from error
    try:
        parsed = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body is not JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise InputError("the body is not a JSON object")
    return parsed


def _intent(name: object) -> Intent:
    return "transcription" if name == "transcription" else "realtime"


def _seconds(expires_after: object) -> int:
    match expires_after:
        case {"anchor": str(anchor)} if anchor != "created_at":
            pass
        case {"seconds": int(seconds)} if not isinstance(seconds, bool):
            return seconds
        case dict() if "seconds" not in expires_after:
            return DEFAULT_SECRET_S
    raise InputError("expires_after is {anchor: 'created_at', seconds: 10..7200}")


def _bad_request(message: str, *, status: int = 400, code: str = "invalid_value") -> JSONResponse:
    refusal = Refusal(0, "invalid_request_error", code, message)
    return JSONResponse({"error": refusal.error()}, status)
