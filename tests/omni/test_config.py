"""Settings are refused in one sentence that names the key, its value and what it may be."""

from __future__ import annotations

import dataclasses
from typing import get_type_hints

import pytest

from omni.config import RANGES, Config, load
from omni.errors import ConfigError


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("server.port", 65536, "server.port is 65536, expected 0..65535"),
        ("server.port", -1, "server.port is -1, expected 0..65535"),
        ("server.max_sessions", 0, "server.max_sessions is 0, expected at least 1"),
        ("engine.page_tokens", 0, "engine.page_tokens is 0, expected at least 1"),
        ("engine.step_tokens", -5, "engine.step_tokens is -5, expected at least 1"),
        ("engine_threads", -1, "engine_threads is -1, expected at least 0"),
        ("turns.threshold", 1.5, "turns.threshold is 1.5, expected 0..1"),
        ("turns.threshold", float("nan"), "turns.threshold is nan, expected 0..1"),
        ("log_level", "loud", "log_level is 'loud', expected one of debug, info, warning, error"),
    ],
)
def test_a_value_out_of_range_is_refused(key: str, value: object, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, {key: value})
    assert str(caught.value) == says


def test_the_ends_of_a_range_are_in_it() -> None:
    config = load(None, {"server.port": 65535, "turns.threshold": 1, "engine_threads": 0})
    assert (config.server.port, config.turns.threshold, config.engine_threads) == (65535, 1.0, 0)


def test_a_parent_that_is_no_table_is_refused() -> None:
    with pytest.raises(ConfigError, match="server is 5, expected a table"):
        load(None, {"server": 5, "server.port": 8001})


def test_every_number_has_a_range_and_its_default_is_in_it() -> None:
    found: dict[str, object] = {}
    for name, kind in get_type_hints(Config).items():
        value = getattr(Config(), name)
        if dataclasses.is_dataclass(kind):
            found |= {f"{name}.{k}": v for k, v in dataclasses.asdict(value).items()}
        else:
            found[name] = value
    numbers = {k: v for k, v in found.items() if type(v) in (int, float)}
    assert numbers.keys() == RANGES.keys()
    assert all(RANGES[k][0] <= v <= RANGES[k][1] for k, v in numbers.items())


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("server.port", "x", "server.port is 'x', expected a whole number"),
        ("server.port", True, "server.port is True, expected a whole number"),
        ("turns.threshold", "x", "turns.threshold is 'x', expected a number"),
        (
            "model.voice",
            7,
            "model.voice is 7, expected a text in quotes, for example --set 'model.voice=\"7\"'",
        ),
        (
            "server.api_key",
            98765,
            "server.api_key is not a text, expected a text in quotes, "
            "for example --set 'server.api_key=\"12345\"'",
        ),
    ],
)
def test_a_value_of_another_type_is_refused_in_words(key: str, value: object, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, {key: value})
    assert str(caught.value) == says
