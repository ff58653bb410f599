"""uvicorn as we need it: our own socket, connections that can be dropped, and an orderly end.

Called by :mod:`omni.cli.serve` and the tests. Knows HTTP and WebSocket plumbing, not the protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from omni.config import PORTS, ServerConfig
from omni.errors import ConfigError
from omni_streaming.protocols import Clients, HttpProtocol, WebSocketProtocol

logger = logging.getLogger(__name__)

PING_S = 20.0  # below the 30 s after which proxies drop silent connections
ENVELOPE_BYTES = 64 * 1024  # of an append event around its base64
SHUTDOWN_S = 5  # for connections to end once they have been told to
TLS_SHUTDOWN_S = 2.0  # for a client to confirm the end of a connection over TLS


class Listener(uvicorn.Server):
    """Serves one app on one bound socket until told to stop.

    Args:
        drain: awaited after the socket has stopped accepting and before connections are closed.
        tls: https and wss instead of http and ws.
        takes_signals: whether SIGINT and SIGTERM end it (in the main thread).

    Runs in the background as an async context manager, else by :meth:`run_until_stopped`.
    """

    def __init__(
        self,
        app: ASGIApp,
        config: ServerConfig,
        listening: socket.socket,
        drain: Callable[[], Awaitable[None]],
        *,
        tls: ssl.SSLContext | None = None,
        takes_signals: bool = False,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=HttpProtocol,
                ws=WebSocketProtocol,
                ws_max_size=config.max_append_bytes + ENVELOPE_BYTES,
                ws_ping_interval=PING_S,
                ws_ping_timeout=PING_S,
                ws_per_message_deflate=False,
                timeout_graceful_shutdown=SHUTDOWN_S,
                lifespan="off",
                access_log=False,
                log_config=None,
                log_level=logging.WARNING,
                server_header=False,
                proxy_headers=False,
            )
        )
        self._clients = Clients(config)
        self.server_state = self._clients
        self._listening = listening
        self._tls = tls
        self._handshake_s = config.request_timeout_s
        self._drain = drain
        self._takes_signals = takes_signals
        self._stopping = asyncio.Event()
        self._forced = asyncio.Event()  # by a second signal
        self._running: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """``http://HOST:PORT`` or ``https://`` as a browser on this machine reaches it."""
        host = self._listening.getsockname()[0]
        return self.url_at("127.0.0.1" if host in ("0.0.0.0", "::") else host)

    def url_at(self, host: str) -> str:
        """The URL for those who reach this machine as ``host``."""
        scheme = "http" if self._tls is None else "https"
        port = self._listening.getsockname()[1]
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    async def run_until_stopped(self) -> None:
        """Serve until SIGINT, SIGTERM or :meth:`stop`; then drain and return."""
        await self.serve(sockets=[self._listening])

    def stop(self) -> None:
        """End :meth:`run_until_stopped` soon. Call on the loop's thread."""
        self.should_exit = True
        self._stopping.set()

    async def __aenter__(self) -> Listener:
        self._running = asyncio.create_task(self.run_until_stopped())
        while not self.started and not self._running.done():
            await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop()
        assert self._running is not None
        await self._running

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # uvicorn's own version leaves a TLS handshake a minute, and who shakes hands is no client
        # yet that could be dropped.
        await self.lifespan.startup()
        is_secure = self._tls is not None
        server = await asyncio.get_running_loop().create_server(
            lambda: HttpProtocol(self.config, self.server_state, self.lifespan.state),
            sock=self._listening,
            ssl=self._tls,
            ssl_handshake_timeout=self._handshake_s if is_secure else None,
            ssl_shutdown_timeout=TLS_SHUTDOWN_S if is_secure else None,
            backlog=self.config.backlog,
        )
        self.servers = [server]
        self.started = True

    async def main_loop(self) -> None:
        # uvicorn looks every 100 ms; waiting for the event stops at once.
        loop = asyncio.get_running_loop()
        counter = 0
        while not await self.on_tick(counter):
            counter += 10  # on_tick renews the Date header every tenth count
            self._clients.drop_overdue(loop.time())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), timeout=1.0)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        draining = asyncio.ensure_future(self._drain())
        forced = asyncio.create_task(self._forced.wait())
        await asyncio.wait((draining, forced), return_when=asyncio.FIRST_COMPLETED)
        for task in (draining, forced):
            task.cancel()
        await asyncio.gather(forced, return_exceptions=True)
        with contextlib.suppress(asyncio.CancelledError):
            await draining
        await super().shutdown(sockets=sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the server in order; a second one ends it at once.

        uvicorn's own version raises the signal again at the end, which turns every orderly stop
        into a death by signal.
        """
        if not self._takes_signals or threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        for number in signals:
            loop.add_signal_handler(number, self._on_signal)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        if self.should_exit:
            self.force_exit = True
            self._forced.set()
        else:
            logger.info("stopping")
        self.stop()


def bind(host: str, port: int) -> socket.socket:
    """Take the address before anything slow happens; port 0 takes any free one.

    Raises:
        ConfigError: the port is in use or no port at all, or the host is not one of this machine.
    """
    if port not in PORTS:
        raise ConfigError(
            f"port {port} does not exist: choose one from 1 to {PORTS[-1]}, or 0 for any free one"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} on {host} is in use: stop what listens there, or choose another "
                f"with --port"
            ) from error
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
