"""Who may connect, and to which model: keys, client secrets, origins, model names.

Called by :mod:`omni_streaming.server` before anything is allocated for a client. Sans-I/O; the
clock is passed in. Keys are compared in constant time and never logged.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urlsplit

from omni.config import ServerConfig
from omni.errors import ConfigError, InputError

logger = logging.getLogger(__name__)

KEY_PROTOCOL = "openai-insecure-api-key."
"""WebSocket subprotocol that carries a browser's key; never selected, never logged."""

SECRET_PREFIX = "ek_"
MIN_SECRET_S, DEFAULT_SECRET_S, MAX_SECRET_S = 10, 600, 7200
MAX_SECRETS = 10_000
"""Client secrets kept at once; the one that expires first gives way."""
MAX_SECRETS_BYTES = 32 * 2**20
"""JSON of the sessions that all secrets carry; one may have 256 KiB."""


@dataclass(frozen=True, slots=True)
class Secret:
    value: str
    expires_at_s: int
    session_json: str  # as objects it would be ten times as large

    @property
    def session(self) -> dict[str, Any]:
        """The session object that a connection with this secret starts from."""
        session: dict[str, Any] = json.loads(self.session_json)
        return session


class Keys:
    """The server's key, if it has one, and the client secrets it has given out."""

    def __init__(self, api_key: str) -> None:
        self._api_key = api_key
        self._secrets: dict[str, Secret] = {}

    @property
    def is_open(self) -> bool:
        """Whether no key is needed."""
        return not self._api_key

    def allows(self, key: str | None, now_s: float) -> bool:
        """Whether ``key`` is the server's or a client secret that has not expired."""
        if self.is_open:
            return True
        return key is not None and (
            hmac.compare_digest(key.encode(), self._api_key.encode())
            or self.secret(key, now_s) is not None
        )

    def allows_full(self, key: str | None) -> bool:
        """Whether ``key`` is the server's own: client secrets open sessions and nothing else."""
        return self.is_open or (
            key is not None and hmac.compare_digest(key.encode(), self._api_key.encode())
        )

    def secret(self, key: str | None, now_s: float) -> Secret | None:
        """The client secret ``key``, unless unknown or expired."""
        # 128 random bits: looking them up in a dict tells a listener nothing useful.
        secret = self._secrets.get(key or "")
        return secret if secret is not None and now_s < secret.expires_at_s else None

    def issue(self, session: Mapping[str, Any], seconds: int, now_s: float) -> Secret:
        """Make a client secret that is good for ``seconds`` (10..7200).

        Raises:
            InputError: ``seconds`` is out of range.
        """
        if not MIN_SECRET_S <= seconds <= MAX_SECRET_S:
            raise InputError(
                f"expires_after.seconds is {seconds}, expected {MIN_SECRET_S}..{MAX_SECRET_S}"
            )
        value = SECRET_PREFIX + secrets.token_hex(16)
        secret = Secret(value, int(now_s) + seconds, json.dumps(session))
        kept = [s for s in self._secrets.values() if now_s < s.expires_at_s]
        kept.sort(key=lambda s: s.expires_at_s, reverse=True)
        total_bytes = len(secret.session_json) + sum(len(s.session_json) for s in kept)
        while kept and (len(kept) >= MAX_SECRETS or total_bytes > MAX_SECRETS_BYTES):
            total_bytes -= len(kept.pop().session_json)
        self._secrets = {s.value: s for s in (*kept, secret)}
        return secret


def key_of(headers: Mapping[str, str], subprotocols: Sequence[str] = ()) -> str | None:
    """The key a client shows: ``Authorization: Bearer KEY`` or the browser's subprotocol."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    for name in subprotocols:
        if name.startswith(KEY_PROTOCOL):
            return name.removeprefix(KEY_PROTOCOL)
    return None


def is_loopback(host: str) -> bool:
    """Whether ``host`` (a name or an address) can only be reached from this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_host(config: ServerConfig) -> None:
    """Refuse to listen beyond this machine without a key.

    Raises:
        ConfigError: the host is not a loopback one and there is no key.
    """
    if not config.api_key and not is_loopback(config.host):
        raise ConfigError(
            f"server.host is {config.host!r}, which others can reach: set server.api_key "
            "(or OMNI_API_KEY), or listen on 127.0.0.1"
        )


def origin_allowed(config: ServerConfig, origin: str | None, host: str | None) -> bool:
    """Whether a page from ``origin`` may connect to the server it calls ``host``.

    No Origin header: not a browser. Same origin is allowed, but without a key only under a name
    that no DNS answer can change (rebinding); other origins are allowed by the configuration.
    """
    if origin is None or "*" in config.allowed_origins or origin in config.allowed_origins:
        return True
    try:
        parts = urlsplit(origin)
    except ValueError:  # such as "http://[abc"
        return False
    if not host or parts.netloc.lower() != host.lower() or not parts.hostname:
        return False
    return bool(config.api_key) or is_loopback(parts.hostname) or _is_address(parts.hostname)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class ModelNames:
    """Which model names mean the model that is served."""

    def __init__(self, model: str, aliases: Sequence[str]) -> None:
        self.model = model
        self._aliases = tuple(aliases)
        self._logged: set[str] = set()

    def resolve(self, name: str | None) -> str:
        """The served model's name for ``name``; an alias is logged the first time.

        Raises:
            InputError: the name is neither the model's, ``default`` nor an alias.
        """
        if not name or name in ("default", self.model):
            return self.model
        if not any(fnmatchcase(name, pattern) for pattern in self._aliases):
            raise InputError(
                f"model {name[:100]!r} is not served; use {self.model!r}, 'default' or leave it out"
            )
        if name not in self._logged and len(self._logged) < 100:
            self._logged.add(name)
            logger.info("model %r means %r here", name, self.model)
        return self.model
