"""Who may connect, and to what."""

from __future__ import annotations

import json
import logging
import tracemalloc

import pytest
from omni_streaming import access
from omni_streaming.access import (
    Keys,
    ModelNames,
    check_host,
    is_loopback,
    key_of,
    origin_allowed,
)

from omni.config import HOSTED_ALIASES, ServerConfig
from omni.errors import ConfigError, InputError


def test_without_a_key_everybody_is_let_in() -> None:
    keys = Keys("")
    assert keys.is_open
    assert keys.allows(None, 0.0)
    assert keys.allows_full(None)


@pytest.mark.parametrize("key", [None, "", "wrong", "sekret ", "SEKRET", "sékret"])
def test_with_a_key_only_the_key_opens(key: str | None) -> None:
    keys = Keys("sekret")
    assert keys.allows("sekret", 0.0)
    assert not keys.allows(key, 0.0)
    assert not keys.allows_full(key)


def test_a_client_secret_opens_sessions_until_it_expires_and_nothing_else() -> None:
    keys = Keys("sekret")
    secret = keys.issue({"type": "realtime", "instructions": "Hi"}, 60, now_s=1000.0)
    assert secret.value.startswith("ek_")
    assert secret.expires_at_s == 1060
    assert keys.allows(secret.value, 1059.9)
    assert keys.allows(secret.value, 1059.9), "it can be used again"
    assert not keys.allows_full(secret.value)
    assert not keys.allows(secret.value, 1060.0)
    found = keys.secret(secret.value, 1001.0)
    assert found is not None
    assert found.session["instructions"] == "Hi"


@pytest.mark.parametrize("seconds", [9, 7201, -1])
def test_a_client_secret_lives_ten_seconds_to_two_hours(seconds: int) -> None:
    with pytest.raises(InputError, match=r"expected 10\.\.7200"):
        Keys("k").issue({}, seconds, 0.0)


def test_secrets_are_bounded_and_the_one_that_expires_first_gives_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(access, "MAX_SECRETS", 2)
    keys = Keys("k")
    long, short, new = (keys.issue({}, seconds, 0.0) for seconds in (600, 60, 300))
    assert keys.secret(short.value, 1.0) is None
    assert keys.secret(long.value, 1.0) is not None
    assert keys.secret(new.value, 1.0) is not None


def test_a_secret_takes_no_more_memory_than_its_session_has_json() -> None:
    parameters = {f"p{n}": {"type": "string"} for n in range(60)}
    session = {"tools": [{"name": f"f{n}", "parameters": dict(parameters)} for n in range(100)]}
    body = json.dumps(session)
    keys = Keys("k")
    tracemalloc.start()
    issued = [keys.issue(json.loads(body), 600, 0.0).value for _ in range(10)]
    held_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held_bytes < 1.1 * 10 * len(body)
    found = keys.secret(issued[0], 0.0)
    assert found is not None
    assert found.session == session


def test_the_sessions_of_secrets_are_bounded_in_bytes() -> None:
    keys = Keys("k")
    quarter = {"instructions": "x" * (access.MAX_SECRETS_BYTES // 4)}
    large = [keys.issue(quarter, 600 + n, 0.0) for n in range(5)]
    small = keys.issue({}, 60, 0.0)
    alive = [keys.secret(secret.value, 1.0) is not None for secret in (*large, small)]
    assert alive == [False, False, True, True, True, True]
    assert [keys.secret(secret.value, 604.5) is not None for secret in large[2:]] == [0, 0, 0]
    again = [keys.issue(quarter, 60, 604.5) for _ in range(3)]
    assert all(keys.secret(secret.value, 605.0) for secret in again), "expired ones take no room"


def test_the_key_comes_from_the_header_or_the_browsers_subprotocol() -> None:
    protocols = ["realtime", "openai-insecure-api-key.abc", "openai-agents-sdk.0.1"]
    assert key_of({"authorization": "Bearer xyz"}) == "xyz"
    assert key_of({"authorization": "bearer  xyz "}) == "xyz"
    assert key_of({}, protocols) == "abc"
    assert key_of({"authorization": "Bearer xyz"}, protocols) == "xyz"
    assert key_of({"authorization": "Basic xyz"}) is None
    assert key_of({}, ["realtime"]) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.1.2.3"])
def test_loopback_hosts_need_no_key(host: str) -> None:
    assert is_loopback(host)
    check_host(ServerConfig(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", ""])
def test_other_hosts_need_a_key(host: str) -> None:
    with pytest.raises(ConfigError, match=r"set server\.api_key"):
        check_host(ServerConfig(host=host))
    check_host(ServerConfig(host=host, api_key="k"))


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        (None, "localhost:8000", True),  # not a browser
        ("http://localhost:8000", "localhost:8000", True),
        ("http://127.0.0.1:8000", "127.0.0.1:8000", True),
        ("http://192.168.1.5:8000", "192.168.1.5:8000", True),
        ("http://localhost:3000", "localhost:8000", False),
        ("https://evil.example", "localhost:8000", False),
        ("http://evil.example:8000", "evil.example:8000", False),  # DNS rebinding
        ("null", "localhost:8000", False),
        ("", "", False),
    ],
)
def test_origins_without_a_key(origin: str | None, host: str, allowed: bool) -> None:
    assert origin_allowed(ServerConfig(), origin, host) is allowed


def test_a_key_or_the_configuration_opens_other_origins() -> None:
    listed = ServerConfig(allowed_origins=("https://app.example",))
    assert origin_allowed(listed, "https://app.example", "localhost:8000")
    assert not origin_allowed(listed, "https://other.example", "localhost:8000")
    assert origin_allowed(ServerConfig(allowed_origins=("*",)), "https://x.example", "a:1")
    keyed = ServerConfig(api_key="k")
    assert origin_allowed(keyed, "https://omni.example", "omni.example")
    assert not origin_allowed(keyed, "https://evil.example", "omni.example")


@pytest.mark.parametrize(
    "name", [None, "", "default", "qwen", "gpt-realtime", "gpt-realtime-mini", "gpt-4o-realtime"]
)
def test_hosted_names_and_no_name_mean_the_model_that_is_served(name: str | None) -> None:
    assert ModelNames("qwen", HOSTED_ALIASES).resolve(name) == "qwen"


@pytest.mark.parametrize("name", ["gpt-5", "claude", "GPT-REALTIME", "qwen2", "x" * 10_000])
def test_other_names_are_refused_with_what_would_work(name: str) -> None:
    with pytest.raises(InputError, match="use 'qwen', 'default' or leave it out") as refused:
        ModelNames("qwen", HOSTED_ALIASES).resolve(name)
    assert len(str(refused.value)) < 250


def test_an_alias_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    names = ModelNames("qwen", HOSTED_ALIASES)
    for _ in range(3):
        names.resolve("gpt-realtime")
        names.resolve("default")
    assert [record.message for record in caplog.records] == [
        "model 'gpt-realtime' means 'qwen' here"
    ]


@pytest.mark.parametrize("origin", ["http://[abc", "http://[::1", "http://]", "://["])
def test_an_origin_that_is_no_url_is_refused(origin: str) -> None:
    assert not origin_allowed(ServerConfig(), origin, "[abc")
