"""Chat completions: what is asked, what comes back, and what becomes of those who leave.

The official client asks; what it cannot send goes through httpx.
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket as sockets
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omni_streaming.assembly import assemble
from omni_streaming.chat_requests import DEFAULT_INSTRUCTIONS, StopStrings, parse
from omni_streaming.items import ClientError
from openai import AsyncOpenAI, OpenAI

from omni.config import Config, EngineConfig, ModelConfig, home
from omni.parts import Parts
from omni.scripted import Answer, Call, Script, ScriptedAssistant
from omni.store import is_present
from omni.types import (
    CallPart,
    Conversation,
    MediaPart,
    Message,
    Pause,
    ResultPart,
    TextPart,
    ToolSpec,
)
from tests.omni.tiny_qwen3_5 import make, make_tokenizer
from tests.streaming.serving import (
    TIMEOUT_S,
    Chatter,
    Running,
    make_server,
    serving,
    serving_on_a_thread,
    settings,
    socket,
)

MODEL = "gpt-4o-mini"
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The current weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
ASKED: list[Conversation] = []
"""What the scripted assistant was asked, in order."""


def answer(conversation: Conversation) -> Answer:
    ASKED.append(conversation)
    last = conversation.messages[-1]
    text = getattr(last.parts[0], "text", "")
    if last.role == "tool":
        return Answer(text="It is sunny in Rome.")
    if "weather" in text:
        return Answer(calls=(Call("get_weather", '{"city": "Rome"}'),))
    if text.startswith("fail "):
        return Answer(text="Well " * 200, failure=text.removeprefix("fail "))
    return Answer(text=f"You said: {text}")


def user(content: Any) -> Any:
    return {"role": "user", "content": content}


def ask(url: str, **body: Any) -> httpx.Response:
    body.setdefault("messages", [user("hello there")])
    with httpx.Client(base_url=url, trust_env=False, timeout=TIMEOUT_S) as http:
        return http.post("/v1/chat/completions", json=body)


async def ask_of(running: Running, key: str = "", **body: Any) -> httpx.Response:
    body.setdefault("messages", [user("talk 1")])
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(base_url=running.url, trust_env=False) as http:
        return await http.post("/v1/chat/completions", json=body, headers=headers)


def photo(side: int = 64) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


def shown(data: bytes, **more: str) -> Any:
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url, **more}}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    def build(parts: Parts) -> ScriptedAssistant:
        return ScriptedAssistant(parts, Script(answer=answer))

    with serving_on_a_thread(make_server(build=build)) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(
        base_url=f"{url}/v1",
        api_key="none",
        max_retries=0,
        http_client=httpx.Client(trust_env=False),
    ) as client:
        yield client


# --- answers -------------------------------------------------------------------------------------


def test_an_answer_says_what_it_cost_and_why_it_ended(client: OpenAI) -> None:
    done = client.chat.completions.create(model=MODEL, messages=[user("hello there")])
    assert done.object == "chat.completion"
    assert done.model == "chatter"
    assert done.choices[0].message.content == "You said: hello there"
    assert done.choices[0].message.tool_calls is None
    assert done.choices[0].finish_reason == "stop"
    assert done.usage is not None
    num_instructions = len(DEFAULT_INSTRUCTIONS.split())
    assert done.usage.prompt_tokens == num_instructions + 2
    assert done.usage.completion_tokens == 4
    assert done.usage.total_tokens == num_instructions + 6
    assert done.usage.prompt_tokens_details is not None
    assert done.usage.prompt_tokens_details.cached_tokens == 0
    assert done._request_id is not None
    assert done._request_id.startswith("req_")


@pytest.mark.parametrize("includes_usage", [False, True])
def test_chunks_concatenate_to_the_answer(client: OpenAI, includes_usage: bool) -> None:
    with client.chat.completions.create(
        model=MODEL,
        messages=[user("hello there")],
        stream=True,
        stream_options={"include_usage": includes_usage},
    ) as stream:
        chunks = list(stream)
    assert len({chunk.id for chunk in chunks}) == 1
    told = [chunk for chunk in chunks if chunk.choices]
    assert told[0].choices[0].delta.role == "assistant"
    texts = [chunk.choices[0].delta.content or "" for chunk in told]
    assert "".join(texts) == "You said: hello there"
    assert len(list(filter(None, texts))) == 4  # a word each: it is really streamed
    assert [c.choices[0].finish_reason for c in told] == [None] * (len(told) - 1) + ["stop"]
    if includes_usage:
        assert not chunks[-1].choices
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 4
        assert all(chunk.usage is None for chunk in told)
    else:
        assert len(told) == len(chunks)
        assert all("usage" not in chunk.model_fields_set for chunk in chunks)


def test_a_limit_of_tokens_ends_an_answer_with_length(client: OpenAI) -> None:
    for limit in ({"max_tokens": 2}, {"max_completion_tokens": 2}):
        done = client.chat.completions.create(model=MODEL, messages=[user("hello")], **limit)  # type: ignore[call-overload]
        assert done.choices[0].message.content == "You said:"
        assert done.choices[0].finish_reason == "length"


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_tool_is_called_and_its_result_answered(client: OpenAI, is_streamed: bool) -> None:
    messages: list[Any] = [user("what is the weather in Rome")]
    if is_streamed:
        with client.chat.completions.stream(
            model=MODEL, messages=messages, tools=[WEATHER]
        ) as stream:
            choice: Any = stream.get_final_completion().choices[0]
    else:
        choice = client.chat.completions.create(
            model=MODEL, messages=messages, tools=[WEATHER]
        ).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "get_weather")
    assert json.loads(call.function.arguments) == {"city": "Rome"}
    messages += [
        choice.message,
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    done = client.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER])
    assert done.choices[0].message.content == "It is sunny in Rome."
    assert done.choices[0].finish_reason == "stop"
    assert ASKED[-1].messages[1:] == (
        Message("assistant", (CallPart(call.id, "get_weather", '{"city": "Rome"}'),)),
        Message("tool", (ResultPart(call.id, "sunny"),)),
    )


# --- what is asked -------------------------------------------------------------------------------


def test_every_role_reaches_the_assistant(url: str) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
        user([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]),
        {"role": "assistant", "content": "three"},
        {"role": "system", "content": "Now be long."},
        user("four"),
    ]
    assert ask(url, messages=messages, tools=[WEATHER]).status_code == 200
    function = WEATHER["function"]
    assert ASKED[-1] == Conversation(
        instructions="Be brief.\n\nBe kind.",
        tools=(ToolSpec("get_weather", function["description"], function["parameters"]),),
        messages=(
            Message("user", (TextPart("one"), TextPart("two"))),
            Message("assistant", (TextPart("three"),)),
            Message("system", (TextPart("Now be long."),)),
            Message("user", (TextPart("four"),)),
        ),
    )


def test_a_picture_reaches_the_assistant_with_its_level_of_detail(url: str) -> None:
    data = photo()
    content = [shown(data), shown(data, detail="low"), {"type": "text", "text": "compare"}]
    assert ask(url, messages=[user(content)]).status_code == 200
    one, two, text = ASKED[-1].messages[0].parts
    assert isinstance(one, MediaPart)
    assert isinstance(two, MediaPart)
    assert one.data == two.data == data
    assert (one.is_small, two.is_small) == (False, True)
    assert text == TextPart("compare")


def test_sampling_is_as_asked() -> None:
    def config(**more: Any) -> Any:
        body = json.dumps({"messages": [user("hello")], **more}).encode()
        return parse(body, max_context_tokens=100).config

    asked = config(temperature=1, top_p=0.5, seed=-1, tools=[WEATHER], tool_choice="required")
    assert (asked.temperature, asked.top_p, asked.seed) == (1.0, 0.5, 2**63 - 1)
    assert asked.tool_choice == "required"
    assert asked.modality == "text"
    assert asked.is_whole
    assert config().temperature == 0.0
    assert config().seed != config().seed  # unasked, draws differ
    assert 0 < config(top_p=0).top_p < 1e-5
    named = {"type": "function", "function": {"name": "get_weather"}}
    assert config(tools=[WEATHER], tool_choice=named).tool_choice == "function:get_weather"


def test_keys_that_only_concern_a_hosted_service_are_ignored(url: str) -> None:
    response = ask(
        url,
        user="u",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        safety_identifier="s",
        prompt_cache_key="p",
        parallel_tool_calls=True,
        reasoning_effort="low",
        verbosity="low",
        n=1,
        presence_penalty=0,
        frequency_penalty=0.0,
        logprobs=False,
        logit_bias={},
        response_format={"type": "text"},
        modalities=["text"],
        stop=None,
        tools=None,
    )
    assert response.status_code == 200


BAD: list[tuple[dict[str, Any], str, str | None]] = [
    ({"colour": "red"}, "unknown_parameter", "colour"),
    ({"messages": []}, "invalid_value", "messages"),
    ({"messages": "hello"}, "invalid_value", "messages"),
    ({"messages": [{"role": "user"}]}, "missing_required_parameter", "messages[0].content"),
    ({"messages": [user([])]}, "invalid_value", "messages[0].content"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "invalid_value", "messages[0].role"),
    (
        {"messages": [user([{"type": "text", "text": "a", "size": 1}])]},
        "unknown_parameter",
        "messages[0].content[0].size",
    ),
    (
        {"messages": [user([{"type": "input_audio", "input_audio": {}}])]},
        "invalid_value",
        "messages[0].content[0].type",
    ),
    (
        {"messages": [user([{"type": "image_url", "image_url": {"url": "https://a.b/c.png"}}])]},
        "invalid_value",
        "messages[0].content[0].image_url.url",
    ),
    (
        {"messages": [user("a"), {"role": "tool", "tool_call_id": "x", "content": "y"}]},
        "invalid_value",
        "messages[1].tool_call_id",
    ),
    ({"messages": [{"role": "assistant"}]}, "invalid_value", "messages[0].content"),
    ({"messages": [user("a," * 60_000)]}, "invalid_value", None),
    ({"messages": [user("long " * 14_000)]}, "context_length_exceeded", "messages"),
    ({"model": "gpt-5"}, "model_not_found", "model"),
    ({"n": 2}, "invalid_value", "n"),
    ({"temperature": 2.5}, "invalid_value", "temperature"),
    ({"temperature": "hot"}, "invalid_value", "temperature"),
    ({"top_p": -0.1}, "invalid_value", "top_p"),
    ({"max_tokens": 0}, "invalid_value", "max_tokens"),
    ({"stop": ["a"] * 5}, "invalid_value", "stop"),
    ({"stop": ""}, "invalid_value", "stop[0]"),
    ({"presence_penalty": 0.5}, "invalid_value", "presence_penalty"),
    ({"logprobs": True}, "invalid_value", "logprobs"),
    ({"response_format": {"type": "json_object"}}, "invalid_value", "response_format.type"),
    ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
    (
        {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}},
        "invalid_value",
        "tool_choice",
    ),
]


@pytest.mark.parametrize(("body", "code", "param"), BAD)
def test_a_bad_request_says_what_is_wrong_and_where(
    url: str, body: dict[str, Any], code: str, param: str | None
) -> None:
    response = ask(url, **body)
    assert response.status_code == (404 if code == "model_not_found" else 400)
    error = response.json()["error"]
    assert (error["code"], error["type"]) == (code, "invalid_request_error")
    assert error["param"] == param
    assert error["message"]
    assert response.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[1]",
        b"{",
        b'{"seed": NaN}',
        b'{"temperature": 1e999}',
        b'{"model": "\\ud800"}',
        b"[" * 40_000,
        b"\xff",
    ],
)
def test_a_body_that_is_no_json_object_is_refused(url: str, body: bytes) -> None:
    with httpx.Client(base_url=url, trust_env=False) as http:
        response = http.post("/v1/chat/completions", content=body)
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "invalid_json"


def test_only_post_is_allowed(url: str) -> None:
    with httpx.Client(base_url=url, trust_env=False) as http:
        response = http.get("/v1/chat/completions")
        assert (response.status_code, response.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("encoded", [b"\\ud800", b"\xed\xa0\x80"])
def test_lone_surrogates_in_a_text_are_refused_before_the_assistant_sees_them(
    encoded: bytes,
) -> None:
    body = b'{"messages": [{"role": "user", "content": "' + encoded + b'"}]}'
    with pytest.raises(ClientError, match="not valid JSON"):
        parse(body, max_context_tokens=100)


# --- stop strings --------------------------------------------------------------------------------


@given(
    st.text("abc", max_size=12),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=4),
    st.lists(st.integers(1, 3)),
)
def test_stop_strings_cut_at_the_same_place_however_the_text_comes(
    text: str, stops: list[str], sizes: list[int]
) -> None:
    def cut(pieces: list[str]) -> str:
        filtered = StopStrings(tuple(stops))
        return "".join(map(filtered.push, pieces)) + filtered.flush()

    pieces, at = [], 0
    for size in sizes:
        pieces.append(text[at : at + size])
        at += size
    kept = cut([*pieces, text[at:]])
    assert kept == cut([text]) == cut(list(text))
    assert text.startswith(kept)
    assert not any(stop in kept for stop in stops)
    if not any(stop in text for stop in stops):
        assert kept == text
    else:
        assert any(text[len(kept) :].startswith(stop) for stop in stops)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_an_answer_ends_exactly_before_a_stop_string_across_words(
    client: OpenAI, is_streamed: bool
) -> None:
    messages = [user("one two three four")]
    stop = ["nowhere", "wo thr"]
    if is_streamed:
        with client.chat.completions.create(
            model=MODEL, messages=messages, stop=stop, stream=True
        ) as stream:
            choices = [chunk.choices[0] for chunk in stream]
        text = "".join(choice.delta.content or "" for choice in choices)
        reason: str | None = choices[-1].finish_reason
    else:
        choice = client.chat.completions.create(model=MODEL, messages=messages, stop=stop).choices[
            0
        ]
        text, reason = choice.message.content or "", choice.finish_reason
    assert (text, reason) == ("You said: one t", "stop")


# --- faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status"),
    [("server_error", 500), ("context_length_exceeded", 400), ("rate_limit_exceeded", 429)],
)
def test_an_answer_that_fails_is_a_status_or_an_error_in_the_stream(
    client: OpenAI, code: str, status: int
) -> None:
    messages = [user(f"fail {code}")]
    with pytest.raises(openai.APIStatusError) as failed:
        client.chat.completions.create(model=MODEL, messages=messages)
    assert failed.value.status_code == status
    assert failed.value.code == code
    with (
        client.chat.completions.create(model=MODEL, messages=messages, stream=True) as stream,
        pytest.raises(openai.APIError, match="this answer fails"),
    ):
        list(stream)


async def test_a_crash_ends_one_request_and_no_other() -> None:
    async with serving() as running:
        other = asyncio.create_task(ask_of(running, messages=[user("talk 20")]))
        response = await ask_of(running, messages=[user("crash")])
        assert response.status_code == 500
        assert response.json()["error"]["type"] == "server_error"
        assert (await other).json()["choices"][0]["message"]["content"].startswith("1 2 3")
        await running.until_empty()


async def test_before_the_models_are_loaded_the_answer_is_503() -> None:
    go = threading.Event()

    def slow(parts: Parts) -> Chatter:
        assert go.wait(TIMEOUT_S)
        return Chatter(parts)

    async with serving(build=slow, is_ready=False) as running:
        response = await ask_of(running)
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "models_loading"
        assert int(response.headers["retry-after"]) > 0
        go.set()
        await asyncio.to_thread(running.server.worker.wait, TIMEOUT_S)
        assert (await ask_of(running)).status_code == 200


# --- who may ask, and how much -------------------------------------------------------------------


async def test_only_the_servers_own_key_gets_an_answer() -> None:
    async with serving(settings(api_key="sekret")) as running:
        for key in ("", "wrong"):
            response = await ask_of(running, key)
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
        assert (await ask_of(running, "sekret")).status_code == 200
        http = httpx.AsyncClient(base_url=running.url, trust_env=False)
        async with (
            http,
            AsyncOpenAI(base_url=f"{running.url}/v1", api_key="sekret", http_client=http) as client,
        ):
            done = await client.chat.completions.create(model="default", messages=[user("talk 3")])
            assert done.choices[0].message.content == "1 2 3 "


async def test_pages_of_other_origins_get_no_answer() -> None:
    async with (
        serving() as running,
        httpx.AsyncClient(base_url=running.url, trust_env=False) as http,
    ):
        body = {"messages": [user("talk 1")]}
        for origin, status in (("https://evil.example", 403), (running.url, 200)):
            headers = {"Origin": origin}
            response = await http.post("/v1/chat/completions", json=body, headers=headers)
            assert response.status_code == status


async def test_at_capacity_the_answer_is_429_until_a_place_is_free() -> None:
    async with serving(settings(max_sessions=1)) as running:
        async with socket(running):
            response = await ask_of(running)
            assert response.status_code == 429
            assert response.json()["error"]["code"] == "rate_limit_exceeded"
            assert int(response.headers["retry-after"]) > 0
        await running.until_empty()
        assert (await ask_of(running)).status_code == 200
        await running.until_empty()
        async with httpx.AsyncClient(base_url=running.url, trust_env=False) as http:
            body = {"messages": [user("talk 10000000")], "stream": True}
            async with http.stream("POST", "/v1/chat/completions", json=body) as response:
                assert response.status_code == 200
                async with socket(running, created=False) as client:
                    assert (await client.closed())[0] == 1013
        await running.until_empty()


async def test_a_body_may_hold_what_a_message_may_hold_and_no_more() -> None:
    async with serving(settings(max_append_bytes=300_000)) as running:
        data = photo(290)  # of 252 kB, which are 337 kB of base64
        small = [shown(photo(260)), {"type": "text", "text": "talk 2"}]
        assert (await ask_of(running, messages=[user(small)])).status_code == 200
        response = await ask_of(running, messages=[user([shown(data), shown(data)])])
        assert response.status_code == 413
        assert "larger than" in response.json()["error"]["message"]
        await running.until_empty()


# --- those who leave -----------------------------------------------------------------------------


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_client_that_leaves_ends_its_answer(is_streamed: bool) -> None:
    async with serving() as running:
        body = json.dumps({"messages": [user("talk 1000000000")], "stream": is_streamed})
        reader, writer = await asyncio.open_connection(*running.url[len("http://") :].split(":"))
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"{head}\r\n{body}".encode())
        async with asyncio.timeout(TIMEOUT_S):
            if is_streamed:
                await reader.readuntil(b"data: ")
            while not running.chatter.speeches:
                await asyncio.sleep(0.005)
        writer.transport.abort()
        await running.until_empty()
        assert not running.chatter.speeches
        assert running.metric("omni_responses_total", status="cancelled") == 1
        assert running.metric("omni_sessions") == 0


async def test_a_client_that_does_not_read_pauses_its_answer_and_is_dropped() -> None:
    async with serving(settings(request_timeout_s=1)) as running:
        body = json.dumps({"messages": [user("talk 1000000000")], "stream": True}).encode()
        place = running.url[len("http://") :].split(":")
        loop = asyncio.get_running_loop()
        with sockets.socket() as slow:
            slow.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
            slow.setblocking(False)
            await loop.sock_connect(slow, (place[0], int(place[1])))
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: "
            await loop.sock_sendall(slow, head + str(len(body)).encode() + b"\r\n\r\n" + body)
            async with asyncio.timeout(TIMEOUT_S):
                while not any(isinstance(c, Pause) for c in running.chatter.commands):
                    await asyncio.sleep(0.005)
            assert running.chatter.speeches, "it stands still; it has not ended"
            await running.until_empty()
        assert not running.chatter.speeches
        assert running.metric("omni_responses_total", status="cancelled") == 1


async def test_draining_lets_an_answer_finish_and_refuses_the_next() -> None:
    async with serving() as running:
        asking = asyncio.create_task(ask_of(running, messages=[user("talk 300")]))
        async with asyncio.timeout(TIMEOUT_S):
            while not running.chatter.speeches:
                await asyncio.sleep(0.001)
        ending = asyncio.create_task(running.server.drain())
        await asyncio.sleep(0)
        assert (await ask_of(running)).status_code == 503
        content = (await asking).json()["choices"][0]["message"]["content"]
        assert len(content.split()) == 300
        await ending
        assert running.server.num_sessions == 0


async def test_draining_ends_an_answer_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omni_streaming.server.DRAIN_S", 0.2)
    async with serving() as running:
        asking = asyncio.create_task(ask_of(running, messages=[user("talk 1000000000")]))
        async with asyncio.timeout(TIMEOUT_S):
            while not running.chatter.speeches:
                await asyncio.sleep(0.001)
        await running.server.drain()
        response = await asking
        assert response.status_code == 500
        assert "going down" in response.json()["error"]["message"]
        assert running.server.num_sessions == 0


# --- real models ---------------------------------------------------------------------------------


def needs(*names: str) -> None:
    if not all(is_present(name, home(Config())) for name in names):
        pytest.skip("the embedded weights are absent: run `omni fetch`")


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """A tiny random model with a vision tower, and a context of 512 tokens."""
    needs("whisper-base", "smart-turn-v3")
    folder: Path = tmp_path_factory.mktemp("qwen3_5")
    make("vision", 2, vocab_size=960, max_position_embeddings=2048).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    (folder / "store").mkdir()
    (folder / "store" / "models").symlink_to(home(Config()) / "models")
    config = Config(
        home=str(folder / "store"),
        model=ModelConfig(backbone=str(folder)),
        engine=EngineConfig(max_context_tokens=512, num_pages=1024),
    )
    with (
        serving_on_a_thread(assemble(config)) as place,
        httpx.Client(trust_env=False) as http,
        OpenAI(base_url=f"{place}/v1", api_key="x", max_retries=0, http_client=http) as client,
    ):
        yield client


@pytest.mark.weights
def test_a_picture_is_seen_as_large_as_its_detail_asks(seeing: OpenAI) -> None:
    def num_tokens(*parts: Any) -> int:
        messages = [user([*parts, {"type": "text", "text": "What is this?"}])]
        done = seeing.chat.completions.create(model=MODEL, messages=messages, max_tokens=4)
        assert done.usage is not None
        return done.usage.prompt_tokens

    none, low, high = num_tokens(), num_tokens(shown(photo(512), detail="low")), 0
    high = num_tokens(shown(photo(512), detail="high"))
    assert low - none == 64 + 2  # and what stands before and after it
    assert high - none == 256 + 2


@pytest.mark.weights
def test_what_does_not_fit_into_the_context_is_refused_not_cut(seeing: OpenAI) -> None:
    messages = [user("The function takes a value. " * 4)] * 30
    for is_streamed in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            seeing.chat.completions.create(model=MODEL, messages=messages, stream=is_streamed)  # type: ignore[call-overload]
        assert refused.value.code == "context_length_exceeded"
        assert "tokens, more than fit into a context of 512" in refused.value.message


@pytest.mark.weights
def test_a_seed_repeats_an_answer_and_no_seed_does_not(seeing: OpenAI) -> None:
    def say(**more: Any) -> str:
        done = seeing.chat.completions.create(
            model=MODEL, messages=[user("Hello")], max_tokens=24, temperature=1, **more
        )
        return done.choices[0].message.content or ""

    assert say(seed=7) == say(seed=7)
    assert len({say(), say(), say(seed=7)}) == 3


@pytest.mark.weights
def test_a_limit_before_the_first_word_is_an_empty_answer(seeing: OpenAI) -> None:
    for seed in range(8):
        done = seeing.chat.completions.create(
            model=MODEL, messages=[user("Hi")], max_tokens=1, temperature=2, seed=seed
        )
        assert done.choices[0].finish_reason in ("length", "stop")


@pytest.fixture(scope="module")
def embedded() -> Iterator[OpenAI]:
    needs("qwen2.5-coder-0.5b", "whisper-base", "smart-turn-v3")
    with (
        serving_on_a_thread(assemble(replace(Config(), log_level="info"))) as place,
        httpx.Client(trust_env=False) as http,
        OpenAI(base_url=f"{place}/v1", api_key="x", max_retries=0, http_client=http) as client,
    ):
        yield client


@pytest.mark.weights
def test_the_embedded_model_answers_and_knows_the_system_prompt_again(embedded: OpenAI) -> None:
    system: Any = {"role": "system", "content": "You answer in one short sentence. " * 8}
    question = user("What is the capital of France?")
    for is_second in (False, True):
        done = embedded.chat.completions.create(model=MODEL, messages=[system, question])
        assert "Paris" in (done.choices[0].message.content or "")
        assert done.usage is not None
        assert done.usage.prompt_tokens_details is not None
        cached = done.usage.prompt_tokens_details.cached_tokens or 0
        assert cached > 40 if is_second else cached >= 0


@pytest.mark.weights
def test_the_embedded_model_calls_a_tool_and_stops_where_asked(embedded: OpenAI) -> None:
    done = embedded.chat.completions.create(
        model=MODEL,
        messages=[user("What is the weather in Rome?")],
        tools=[WEATHER],
        tool_choice="required",
    )
    (call,) = done.choices[0].message.tool_calls or ()
    assert call.type == "function"
    assert "Rome" in json.loads(call.function.arguments)["city"]
    with embedded.chat.completions.create(
        model=MODEL,
        messages=[user("Count from 1 to 10 in digits, separated by commas.")],
        stop=["5"],
        stream=True,
    ) as stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert "4" in text
    assert "5" not in text
