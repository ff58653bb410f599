"""Admission, REST companions, health and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import socket as sockets
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from omni_streaming import server
from omni_streaming.listener import PING_S, bind
from omni_streaming.session import Session
from websockets.asyncio.client import connect

from omni.config import HOSTED_ALIASES, Config
from omni.errors import ConfigError, ModelError
from omni.parts import Parts
from omni.types import Cancel
from tests.streaming.serving import (
    Chatter,
    Running,
    Socket,
    make_server,
    serving,
    serving_on_a_thread,
    settings,
    socket,
)

KEY = "sekret-key"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving_on_a_thread(make_server()) as url:
        yield url


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def get(running: Running, path: str, key: str | None = None) -> httpx.Response:
    async with httpx.AsyncClient(base_url=running.url, trust_env=False) as http:
        return await http.get(path, headers=bearer(key) if key else {})


async def post(running: Running, path: str, key: str | None = None, **body: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=running.url, trust_env=False) as http:
        return await http.post(path, headers=bearer(key) if key else {}, **body)


async def refused(client: Socket, code: str, close_code: int) -> str:
    """The client gets one error with ``code``, then the close; returns the message."""
    assert (await client.closed())[0] == close_code
    (event,) = client.events
    assert event["type"] == "error"
    assert event["error"]["code"] == code
    return str(event["error"]["message"])


# --- health --------------------------------------------------------------------------------------


async def test_readyz_says_503_until_the_models_are_loaded_then_what_they_are() -> None:
    go = threading.Event()

    def slow(parts: Parts) -> Chatter:
        assert go.wait(20)
        return Chatter(parts)

    async with serving(build=slow, is_ready=False) as running:
        assert (await get(running, "/healthz")).json() == {"status": "ok"}
        response = await get(running, "/readyz")
        assert response.status_code == 503
        assert response.json()["state"] == "loading"
        async with socket(running, created=False) as client:
            assert "still loading" in await refused(client, "models_loading", 1013)
        go.set()
        await asyncio.to_thread(running.server.worker.wait, 20)
        response = await get(running, "/readyz")
        assert response.status_code == 200
        assert response.json() == {
            "ready": True,
            "state": "ready",
            "sessions": {"open": 0, "max": 8},
            "model": "chatter",
            "models": {"assistant": "chatter"},
        }


async def test_readyz_says_why_the_models_could_not_be_loaded() -> None:
    def broken(parts: Parts) -> Chatter:
        raise ModelError("model.gguf is cut short: run `omni fetch`")

    async with serving(build=broken, is_ready=False) as running:
        await asyncio.to_thread(running.server.worker.wait, 20)
        response = await get(running, "/readyz")
        assert response.status_code == 503
        assert "run `omni fetch`" in response.json()["reason"]
        async with socket(running, created=False) as client:
            await refused(client, "server_error", 1013)


async def test_metrics_count_sessions_responses_tokens_and_sound() -> None:
    async with serving() as running:
        async with socket(running) as client:
            await client.answer("talk 3")
            await client.connection.send("nonsense")
            await client.until("error")
            text = (await get(running, "/metrics")).text
        await running.until_empty()
        assert "omni_sessions 1.0" in text
        assert 'omni_responses_total{status="completed"} 1.0' in text
        assert 'omni_tokens_total{kind="input_text"} 7.0' in text
        assert 'omni_tokens_total{kind="output_text"} 3.0' in text
        assert 'omni_audio_seconds_total{direction="out"} 3.0' in text
        assert 'omni_errors_total{code="invalid_json"} 1.0' in text
        assert "omni_ready 1.0" in text
        assert running.metric("omni_sessions") == 0
        assert running.metric("omni_sessions_ended_total", code="1000") == 1


# --- models --------------------------------------------------------------------------------------


async def test_models_are_listed_and_found_by_alias() -> None:
    async with serving() as running:
        listed = (await get(running, "/v1/models")).json()
        assert [model["id"] for model in listed["data"]] == ["chatter", "default"]
        assert (await get(running, "/v1/models/gpt-realtime")).json()["object"] == "model"
        missing = await get(running, "/v1/models/gpt-5")
        assert missing.status_code == 404
        assert missing.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("query", ["", "?model=", "?model=default", "?model=gpt-realtime-2025"])
async def test_a_model_that_means_ours_is_served_under_its_own_name(url: str, query: str) -> None:
    async with socket(url, query) as client:
        assert client.events[0]["session"]["model"] == "chatter"


async def test_an_unknown_model_is_refused_with_4000() -> None:
    async with serving() as running, socket(running, "?model=gpt-5", created=False) as client:
        assert "use 'chatter'" in await refused(client, "model_not_found", 4000)
        assert running.metric("omni_refused_total", code="model_not_found") == 1


async def test_intent_transcription_opens_a_transcription_session() -> None:
    async with serving() as running, socket(running, "?intent=transcription") as client:
        assert client.events[0]["session"]["type"] == "transcription"


@pytest.mark.parametrize("query", ["?intent=realtime", "?intent=", ""])
async def test_without_an_intent_or_with_the_ordinary_one_a_conversation_is_opened(
    url: str, query: str
) -> None:
    async with socket(url, query) as client:
        assert client.events[0]["session"]["type"] == "realtime"


@pytest.mark.parametrize("intent", ["xx", "Transcription", "x" * 2000, "\N{GRINNING FACE}" * 100])
async def test_an_unknown_intent_is_refused_with_4000(intent: str) -> None:
    async with serving() as running:
        async with socket(running, f"?intent={quote(intent)}", created=False) as client:
            assert await refused(client, "invalid_value", 4000) == (
                f"intent is {intent[:100]!r}, expected 'transcription' or 'realtime' "
                "(a conversation, which is also what is meant without it)"
            )
            assert client.events[0]["error"]["param"] == "intent"
        assert running.server.num_sessions == 0


# --- keys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, bearer("wrong"), {"Authorization": KEY}])
async def test_a_bad_key_is_refused_with_3000_before_anything_is_allocated(
    headers: dict[str, str],
) -> None:
    async with serving(settings(api_key=KEY)) as running:
        async with socket(running, created=False, additional_headers=headers) as client:
            await refused(client, "invalid_api_key", 3000)
        assert running.chatter.commands == []
        assert running.server.num_sessions == 0


async def test_the_key_opens_a_session_from_header_and_from_a_browsers_subprotocol() -> None:
    async with serving(settings(api_key=KEY)) as running:
        async with socket(running, additional_headers=bearer(KEY)) as client:
            assert client.connection.subprotocol is None
            await client.answer("talk 1")
        offered = ["realtime", f"openai-insecure-api-key.{KEY}", "openai-agents-sdk.0.1"]
        async with socket(running, subprotocols=offered) as client:
            assert client.connection.subprotocol == "realtime"
            await client.answer("talk 1")


async def test_the_key_protocol_is_never_selected_nor_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "omni_streaming")
    caplog.set_level(logging.INFO, "uvicorn")
    async with serving(settings(api_key=KEY)) as running:
        offered = [f"openai-insecure-api-key.{KEY}"]
        async with socket(running, subprotocols=offered) as client:
            assert client.connection.subprotocol is None
        async with socket(running, additional_headers=bearer(KEY)) as client:
            await client.answer("talk 1")
    assert KEY not in caplog.text


async def test_with_a_key_only_health_metrics_and_the_page_are_public() -> None:
    async with serving(settings(api_key=KEY)) as running:
        for path in ("/v1/models", "/v1/models/default"):
            response = await get(running, path)
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert (await get(running, path, KEY)).status_code == 200
        assert (await post(running, "/v1/realtime/client_secrets")).status_code == 401
        assert (await get(running, "/healthz")).status_code == 200
        assert (await get(running, "/metrics")).status_code == 200
        assert (await get(running, "/readyz")).json() == {"ready": True}
        assert "models" in (await get(running, "/readyz", KEY)).json()


async def test_a_client_secret_opens_sessions_with_its_settings_and_nothing_else() -> None:
    async with serving(settings(api_key=KEY)) as running:
        session = {"type": "realtime", "instructions": "Be brief.", "model": "gpt-realtime"}
        asked = {"expires_after": {"anchor": "created_at", "seconds": 60}, "session": session}
        response = await post(running, "/v1/realtime/client_secrets", KEY, json=asked)
        assert response.status_code == 200
        secret = response.json()
        assert secret["value"].startswith("ek_")
        assert secret["session"]["instructions"] == "Be brief."
        assert secret["session"]["model"] == "chatter"
        for _ in range(2):
            async with socket(running, additional_headers=bearer(secret["value"])) as client:
                assert client.events[0]["session"]["instructions"] == "Be brief."
        assert (await get(running, "/v1/models", secret["value"])).status_code == 401


async def test_a_session_for_a_secret_is_judged_beside_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads = []

    class Recorded(Session):
        def receive(self, message: str | bytes, now_ms: int) -> None:
            threads.append(threading.current_thread())
            super().receive(message, now_ms)

    monkeypatch.setattr(server, "Session", Recorded)
    async with serving() as running:
        session = {"type": "realtime", "instructions": "x" * 200_000}
        response = await post(running, "/v1/realtime/client_secrets", json={"session": session})
        assert response.status_code == 200
        assert len(threads) == 1
        assert threads[0] is not threading.current_thread()


async def test_a_client_secret_of_a_transcription_session_opens_one() -> None:
    async with serving(settings(api_key=KEY)) as running:
        session = {
            "type": "transcription",
            "audio": {"input": {"transcription": {"model": "whisper-1", "language": "en"}}},
        }
        response = await post(
            running, "/v1/realtime/client_secrets", KEY, json={"session": session}
        )
        assert response.status_code == 200, response.text
        secret = response.json()
        assert secret["session"]["type"] == "transcription"
        async with socket(running, additional_headers=bearer(secret["value"])) as client:
            created = client.events[0]["session"]
            assert created["type"] == "transcription"
            assert created["audio"]["input"]["transcription"]["language"] == "en"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"content": "not json"}, "not JSON"),
        ({"content": "[" * 100_000}, "not JSON"),
        ({"json": [1]}, "not a JSON object"),
        ({"json": {"session": "x"}}, "session is not an object"),
        ({"json": {"session": {"model": 5}}}, "model is not a string"),
        ({"content": '{"session": {"type": "realtime", "x": 1e999}}'}, "not valid JSON"),
        ({"json": {"session": {"type": "realtime", "no_such_key": 1}}}, "no_such_key"),
        ({"json": {"session": {"type": "realtime", "model": "gpt-5"}}}, "not served"),
        ({"json": {"expires_after": {"seconds": 5}}}, "expected 10..7200"),
        ({"json": {"expires_after": {"seconds": "60"}}}, "expires_after is"),
        ({"json": {"expires_after": 60}}, "expires_after is"),
        ({"content": "x" * 300_000}, "larger than"),
    ],
)
async def test_a_bad_request_for_a_secret_gets_400_and_says_why(
    url: str, body: dict[str, Any], says: str
) -> None:
    async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
        response = await http.post("/v1/realtime/client_secrets", **body)
        assert response.status_code == 400
        assert says in response.json()["error"]["message"]


# --- origins and limits --------------------------------------------------------------------------


async def test_pages_of_other_origins_may_not_connect() -> None:
    async with serving() as running:
        async with socket(running, created=False, origin="https://evil.example") as client:
            await refused(client, "origin_not_allowed", 1008)
        async with socket(running, origin=running.url) as client:
            await client.answer("talk 1")
        async with httpx.AsyncClient(base_url=running.url, trust_env=False) as http:
            response = await http.post(
                "/v1/realtime/client_secrets", headers={"Origin": "https://evil.example"}
            )
            assert response.status_code == 403


async def test_at_capacity_a_client_is_told_so_and_a_place_that_is_left_is_given_away() -> None:
    async with serving(settings(max_sessions=2)) as running, socket(running) as one:
        async with socket(running):
            async with socket(running, created=False) as third:
                message = await refused(third, "rate_limit_exceeded", 1013)
                assert "2 sessions are open" in message
            await one.answer("talk 1")
        async with asyncio.timeout(10):
            while running.server.num_sessions > 1:
                await asyncio.sleep(0.005)
        async with socket(running) as third:
            await third.answer("talk 1")


async def test_compression_is_never_negotiated() -> None:
    async with serving() as running:
        url = running.url.replace("http", "ws") + "/v1/realtime"
        async with connect(url, compression="deflate", proxy=None) as connection:
            assert connection.response is not None
            assert "Sec-WebSocket-Extensions" not in connection.response.headers
    assert PING_S <= 20


async def test_an_expired_session_is_closed_with_1001() -> None:
    async with serving(settings(max_session_age_s=1)) as running, socket(running) as client:
        assert (await client.closed())[0] == 1001
        assert client.events[-1]["error"]["code"] == "session_expired"


async def test_a_session_that_cannot_be_opened_is_refused_with_1011(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving() as running, socket(running) as other:

        def broken(**_: object) -> None:
            raise KeyError("a bug")

        monkeypatch.setattr("omni_streaming.connection.Session", broken)
        async with socket(running, created=False) as client:
            await refused(client, "server_error", 1011)
        await other.answer("talk 1")
        assert running.server.num_sessions == 1


# --- the page ------------------------------------------------------------------------------------


async def test_the_page_is_served_and_python_is_not() -> None:
    async with serving() as running:
        page = await get(running, "/")
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        assert page.headers["content-security-policy"] == "frame-ancestors 'none'"
        assert (await get(running, "/__init__.py")).status_code == 404
        assert (await get(running, "/../server.py")).status_code == 404
        assert (await get(running, "/no-such-file")).status_code == 404


# --- beginning and end ---------------------------------------------------------------------------


def test_a_port_in_use_is_one_sentence() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 is in use"):
            bind("127.0.0.1", port)


@pytest.mark.parametrize("port", [-1, 65_536])
def test_a_port_that_does_not_exist_is_one_sentence(port: int) -> None:
    with pytest.raises(ConfigError, match=rf"port {port} does not exist: choose one from 1 to"):
        bind("127.0.0.1", port)


def test_a_host_that_is_not_ours_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1:8000"):
        bind("192.0.2.1", 8000)


async def test_draining_lets_an_answer_finish_then_closes_with_1012(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "omni_streaming.server")
    async with serving() as running, socket(running) as idle, socket(running) as client:
        await client.ask("talk 500")
        await client.until("response.created")
        ending = asyncio.create_task(running.server.drain())
        assert (await idle.closed())[0] == 1012
        async with socket(running, created=False) as late:
            await refused(late, "server_error", 1012)
        code, _ = await client.closed()
        assert code == 1012
        done = [e for e in client.events if e["type"] == "response.done"]
        assert [e["response"]["status"] for e in done] == ["completed"]
        await ending
        assert running.server.num_sessions == 0
        assert "answers under way may finish: 1" in caplog.messages


async def test_draining_cancels_an_answer_that_takes_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("omni_streaming.server.DRAIN_S", 0.2)
    async with serving() as running, socket(running) as client:
        await client.ask("talk 10000000")
        await client.until("response.created")
        await running.server.drain()
        assert (await client.closed())[0] == 1012
        done = [e for e in client.events if e["type"] == "response.done"]
        assert [e["response"]["status"] for e in done] == ["cancelled"]
        assert any(isinstance(c, Cancel) for c in running.chatter.commands)


async def test_stopping_the_listener_frees_the_port_and_the_sessions() -> None:
    async with serving() as running, socket(running):
        port = int(running.url.rpartition(":")[2])
    with sockets.create_server(("127.0.0.1", port)) as again:
        assert again.getsockname()[1] == port
    assert running.chatter.conversations == {}


def test_the_default_aliases_are_the_hosted_names() -> None:
    assert Config().model.aliases == HOSTED_ALIASES
