"""``omni serve``: the page, the Realtime WebSocket and their companions on one port."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import quote

from omni.cli import COMMANDS, EXIT_INTERRUPTED, add_config_options, read_config
from omni.config import CHOICES, PORTS, Config, home
from omni.errors import ConfigError, OmniError

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Iterator

    from omni_streaming.listener import Listener
    from omni_streaming.server import Server

    from omni.cli import Subparsers
    from omni.worker import State

DESCRIPTION = """\
Talk to Omni in the browser, or from any OpenAI Realtime client (base URL http://HOST:PORT/v1).

Listens on 127.0.0.1 unless a key is set: by --set server.api_key, else by OMNI_API_KEY in the
environment, else in the settings file. Browsers give a page microphone and camera on this machine
or over https.
SIGTERM and Ctrl-C let the answers under way finish; a second one stops at once. While the models
load, the first waits until that ends, and a second ends the process as it stands."""

EXAMPLES = """\
examples:
  omni serve                                     on this machine: http://127.0.0.1:8000
  OMNI_API_KEY=SECRET omni serve --host 0.0.0.0 --tls self-signed
                                                 for a phone in the same network
  omni serve --tls-cert fullchain.pem --tls-key privkey.pem
                                                 with a certificate that browsers know"""

KEY_VARIABLE = "OMNI_API_KEY"

CONTAINER_MARKS = ("/.dockerenv", "/run/.containerenv")
"""Files that Docker and Podman put into every container."""

WARNING = (
    "Browsers warn that the connection is not private, because no authority vouches for this "
    "certificate: open the certificate from the warning, compare its SHA-256 fingerprint with the "
    "one above, and go on."
)


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "serve",
        help=COMMANDS["serve"],
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", help="address to listen on (server.host)")
    parser.add_argument("--port", type=int, help="port to listen on (server.port)")
    parser.add_argument(
        "--tls",
        choices=CHOICES["server.tls"],
        help="https with a certificate of our own, made on first use (server.tls)",
    )
    parser.add_argument("--tls-cert", metavar="FILE", help="certificate, PEM (server.tls_cert)")
    parser.add_argument("--tls-key", metavar="FILE", help="its key, PEM (server.tls_key)")
    parser.add_argument("--model", metavar="NAME", help="backbone (model.backbone)")
    parser.add_argument(
        "--record",
        metavar="FOLDER",
        help="keep every picture that a camera shows in FOLDER; without it none is kept (record)",
    )
    parser.add_argument(
        "--scripted",
        action="store_true",
        help="answer by script, without weights: to try the protocol and the page",
    )
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until stopped; see ``omni serve --help``."""
    config = read_config(
        args,
        {
            "server.host": args.host,
            "server.port": args.port,
            "server.tls": args.tls,
            "server.tls_cert": args.tls_cert,
            "server.tls_key": args.tls_key,
            "model.backbone": args.model,
            "record": args.record,
        },
        environment={"server.api_key": os.environ.get(KEY_VARIABLE) or None},
    )
    from omni_streaming.access import check_host
    from omni_streaming.listener import bind
    from omni_streaming.tls import certificate_files, server_context

    check_host(config.server)
    files = certificate_files(config.server, home(config) / "tls")
    tls = server_context(*files) if files else None
    try:
        listening = bind(config.server.host, config.server.port)  # before anything slow
    except ConfigError as error:
        from omni.cli.doctor import is_omni

        host, port = config.server.host, config.server.port
        if port not in PORTS or not is_omni(host, port):
            raise
        raise ConfigError(
            f"Omni is being served on port {port} of {host} already: talk to it there, or choose "
            "another port with --port"
        ) from error
    start_logging(config.log_level)
    server = make_server(config, scripted=args.scripted)
    try:
        code = asyncio.run(serve(server, listening, tls))
    finally:
        listening.close()
    print("Stopped.", flush=True)
    return code


def make_server(config: Config, *, scripted: bool) -> Server:
    """The embedded default's server, or the scripted one; loads nothing yet."""
    from omni_streaming.assembly import assemble, assemble_scripted

    return assemble_scripted(config) if scripted else assemble(config, show_progress)


async def serve(server: Server, listening: socket.socket, tls: ssl.SSLContext | None = None) -> int:
    """Serve on ``listening`` (over https with ``tls``) until a signal; returns the exit code.

    Raises:
        OmniError: the models cannot be loaded.
    """
    from omni_streaming.listener import Listener

    listener = Listener(
        server.app(), server.config.server, listening, server.drain, tls=tls, takes_signals=True
    )
    began_s = time.monotonic()
    serving = asyncio.create_task(listener.run_until_stopped())
    while not listener.started and not serving.done():  # from then on it takes the signals
        await asyncio.sleep(0)
    server.worker.start()
    loading = asyncio.create_task(asyncio.to_thread(server.worker.wait))
    try:
        await asyncio.wait((serving, loading), return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            await _stop_loading(loading)
            return EXIT_INTERRUPTED
        if (failure := server.worker.failure) is not None:
            listener.stop()
            await serving
            if isinstance(failure, OmniError):
                raise failure
            raise OmniError(f"the assistant could not be built: {failure!r}") from failure
        print(
            f"Ready after {time.monotonic() - began_s:.1f} s. Talk at {listener.url} "
            f"(model {server.model}; {listener.url}/see describes what a camera shows; "
            "Ctrl-C stops).",
            flush=True,
        )
        for line in how_to_reach(server.config, listener):
            print(line, flush=True)
        await serving
        return 0
    finally:
        server.worker.stop()
        await loading


def how_to_reach(config: Config, listener: Listener) -> Iterator[str]:
    """What those who open the page elsewhere need to know; nothing for a plain local server."""
    from omni_streaming.access import is_loopback
    from omni_streaming.tls import certificate_files, fingerprint, local_addresses

    if not is_loopback(config.server.host):
        is_any = config.server.host in ("0.0.0.0", "::")
        # Nobody outside reaches a container at the addresses that it has inside.
        is_inside = any(map(os.path.exists, CONTAINER_MARKS))
        hosts = ([] if is_inside else local_addresses()) if is_any else [config.server.host]
        if config.server.host == "0.0.0.0":
            hosts = [host for host in hosts if ":" not in host]
        if hosts:
            # The page takes the key from the address, of which the part after # stays in the
            # browser. A log that keeps what is printed here must not get it.
            key = f"/#key={quote(config.server.api_key, safe='')}" if sys.stdout.isatty() else ""
            told = "" if key else " (it asks for the key)"
            yield f"From another machine, or a phone: {listener.url_at(hosts[0])}{key}{told}"
    if config.server.tls == "self-signed":
        files = certificate_files(config.server, home(config) / "tls")
        assert files is not None
        yield f"Fingerprint of the certificate (SHA-256): {fingerprint(files[0])}"
        yield WARNING
    elif not (config.server.tls_cert or is_loopback(config.server.host)):
        yield "Without https it can write but not talk there: see omni serve --help, --tls."


async def _stop_loading(loading: asyncio.Task[State]) -> None:
    """Wait until the models are loaded, which nothing can break off in order; a signal ends it."""
    if loading.done():
        return
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _exit_at_once)
    print(
        "Stopping when the models are loaded; Ctrl-C again stops at once.",
        file=sys.stderr,
        flush=True,
    )
    try:
        await loading
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _exit_at_once() -> NoReturn:
    # The loading thread cannot be stopped and an orderly exit would wait for it. Nothing is lost:
    # no conversation has begun, and files of the store are renamed into place when they are whole.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_INTERRUPTED)


def start_logging(level: str) -> None:
    """Log to standard error. Messages name sessions, never what was said in them."""
    logging.basicConfig(
        level=level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
    )


def show_progress(num_done: int, num_all: int) -> None:
    """Show how far the repacking of weights is, which only a first start does."""
    end = "\n" if num_done >= num_all else "\r"
    if sys.stderr.isatty() or end == "\n":
        text = f"Preparing the weights, the first time only: {num_done / num_all:4.0%}"
        print(text, file=sys.stderr, end=end, flush=True)
