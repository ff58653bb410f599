"""Every setting of Omni with its unit and default: defaults < TOML file < command line.

Called by :mod:`omni.cli`, which prints the resolved values; no other module reads files or the
environment for settings. Unknown keys are errors that name the nearest valid one.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from omni.errors import ConfigError

PORTS = range(2**16)
"""What a port can be; 0 takes any free one."""

HOSTED_ALIASES = ("gpt-realtime*", "gpt-4o-*", "gpt-audio*", "whisper-1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    backbone: str = "qwen2.5-coder-0.5b"  # a name of `omni fetch --list` or the hub, or a path
    adapter: str = ""  # folder of a LoRA adapter, or its name on the hub, merged into the backbone
    thinking: bool = False  # the backbone thinks before it answers; no thought is ever spoken
    recogniser: str = "whisper-base"  # a name of `omni fetch --list`, or a folder
    end_of_turn: str = "smart-turn-v3"
    detector: str = "nanodet-416"  # finds things in pictures; a name, or a folder
    classifier: str = "efficientnet-lite0"  # names what a picture is of; a name, or a folder
    speech: str = "hibari"  # hibari or kokoro-82m
    voice: str = "heart"  # default voice of the speech decoder
    instructions: str = (  # stands in when a session has none: answers are heard, not read
        "You are Omni, a voice assistant who knows many facts. "
        "Give the correct answer in one or two short sentences."
    )
    aliases: tuple[str, ...] = HOSTED_ALIASES  # model names that mean the embedded default


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    max_sequences: int = 48  # sequences with state at once, forks included
    page_tokens: int = 16  # tokens per KV page
    num_pages: int = 4608  # KV pages shared by all sequences: 8 full contexts and some forks
    max_context_tokens: int = 8192  # longest sequence; the family's own limit may be lower
    journal_tokens: int = 64  # recurrent layers: rollback by replay this far, then a checkpoint
    step_tokens: int = 128  # token budget of one step: bounds how long a step can take
    device: str = "cpu"  # where the backbone runs: cpu, cuda (a card), auto: cuda if it is there


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnConfig:
    threshold: float = 0.5  # speech probability that counts as speech
    prefix_padding_ms: int = 300  # audio kept from before the detected start
    silence_duration_ms: int = 400  # silence that ends a turn (server_vad)
    speculate_after_ms: int = 64  # silence after which a speculative answer begins
    min_speech_ms: int = 96  # speech needed before a turn starts
    barge_in_speech_ms: int = 96  # of words needed while the assistant is speaking


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str = ""  # empty: no key, allowed on loopback hosts only
    tls: str = "off"  # self-signed: https with a certificate that Omni makes for itself
    tls_cert: str = ""  # PEM file with a certificate (and its chain): https, with tls_key
    tls_key: str = ""  # PEM file with its key, without a password
    allowed_origins: tuple[str, ...] = ()  # beside same-origin; "*" allows all
    max_sessions: int = 8
    max_session_age_s: int = 3600  # then session_expired and close 1001
    max_idle_s: int = 600  # no client event for this long: close 1001
    max_append_bytes: int = 15 * 2**20  # base64 of one input_audio_buffer.append
    max_buffer_s: int = 600  # audio in one turn
    max_items: int = 1000  # conversation items per session
    max_tool_calls: int = 32  # tool calls waiting for an answer
    max_send_queue_bytes: int = 8 * 2**20  # unsent events per session before generation pauses
    send_stall_s: int = 30  # a full queue for this long: close 1013
    request_timeout_s: int = 10  # for a whole HTTP request or handshake to come in, and to leave
    max_waiting: int = 256  # connections without a whole request yet; then the oldest is dropped


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    home: str = ""  # model store; empty: $OMNI_HOME, else the user's cache folder
    engine_threads: int = 0  # 0: chosen from the number of cores
    parts_threads: int = 0  # 0: chosen from the number of cores
    log_level: str = "info"
    record: str = ""  # folder in which every picture of a camera is kept; empty: nowhere
    model: ModelConfig = field(default_factory=ModelConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    turns: TurnConfig = field(default_factory=TurnConfig)
    server: ServerConfig = field(default_factory=ServerConfig)


LOG_LEVELS = ("debug", "info", "warning", "error")

CHOICES = {
    "log_level": LOG_LEVELS,
    "engine.device": ("auto", "cpu", "cuda"),
    "server.tls": ("off", "self-signed"),
}
"""What a setting can be that is one of a few words."""

RANGES: dict[str, tuple[float, float]] = {
    "engine_threads": (0, math.inf),
    "parts_threads": (0, math.inf),
    "engine.max_sequences": (1, math.inf),
    "engine.page_tokens": (1, math.inf),
    "engine.num_pages": (1, math.inf),
    "engine.max_context_tokens": (1, math.inf),
    "engine.journal_tokens": (1, math.inf),
    "engine.step_tokens": (1, math.inf),
    "turns.threshold": (0, 1),
    "turns.prefix_padding_ms": (0, math.inf),
    "turns.silence_duration_ms": (0, math.inf),
    "turns.speculate_after_ms": (0, math.inf),
    "turns.min_speech_ms": (0, math.inf),
    "turns.barge_in_speech_ms": (0, math.inf),
    "server.port": (PORTS[0], PORTS[-1]),
    "server.max_sessions": (1, math.inf),
    "server.max_session_age_s": (1, math.inf),
    "server.max_idle_s": (1, math.inf),
    "server.max_append_bytes": (1, math.inf),
    "server.max_buffer_s": (1, math.inf),
    "server.max_items": (1, math.inf),
    "server.max_tool_calls": (1, math.inf),
    "server.max_send_queue_bytes": (1, math.inf),
    "server.send_stall_s": (1, math.inf),
    "server.request_timeout_s": (1, math.inf),
    "server.max_waiting": (1, math.inf),
}
"""Least and greatest value of every number among the settings."""


def home(config: Config) -> Path:
    """Folder of the model store: the setting, else ``$OMNI_HOME``, else the user's cache folder."""
    if config.home:
        return Path(config.home).expanduser()
    if env := os.environ.get("OMNI_HOME"):
        return Path(env).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "omni"


def load(path: Path | None = None, overrides: Mapping[str, object] | None = None) -> Config:
    """Read ``path`` (TOML) over the defaults, then ``overrides`` ({"server.port": 8001}) over both.

    Raises:
        ConfigError: unreadable file, unknown key (the nearest valid one is named), wrong type or a
            value out of range.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"cannot read the config file {path}: {error}") from error
    for dotted, value in (overrides or {}).items():
        table = values
        *parents, leaf = dotted.split(".")
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{parent} is {table!r}, expected a table: it has {dotted}")
        table[leaf] = value
    return _build(Config, values, "")


_T = TypeVar("_T")


def _build(cls: type[_T], values: Mapping[str, Any], prefix: str) -> _T:
    hints = get_type_hints(cls)
    kwargs: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else f"; known: {', '.join(hints)}"
            raise ConfigError(f"unknown setting {prefix}{key}{hint}")
        kwargs[key] = _checked(_convert(hints[key], value, prefix + key), prefix + key)
    return cls(**kwargs)


def _checked(value: Any, name: str) -> Any:
    if name in CHOICES and value not in CHOICES[name]:
        raise ConfigError(f"{name} is {value!r}, expected one of {', '.join(CHOICES[name])}")
    if name in RANGES:
        low, high = RANGES[name]
        if not low <= value <= high:
            wanted = f"at least {low:g}" if math.isinf(high) else f"{low:g}..{high:g}"
            raise ConfigError(f"{name} is {value!r}, expected {wanted}")
    return value


def _convert(kind: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name} is {value!r}, expected a table of settings")
        return _build(kind, value, name + ".")  # type: ignore[arg-type]
    if get_args(kind):  # tuple[str, ...]
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise ConfigError(f"{name} is {value!r}, expected a list of strings")
        return tuple(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        is_secret = name == "server.api_key"
        shown = "not a text" if is_secret else repr(value)
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}.get(kind)
        if wanted is None:
            sample = value if isinstance(value, int | float) and not is_secret else 12345
            wanted = f"a text in quotes, for example --set '{name}=\"{sample}\"'"
        raise ConfigError(f"{name} is {shown}, expected {wanted}")
    return value
