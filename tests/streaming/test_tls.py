"""https and wss over real sockets; certificates of our own; what is said of bad ones."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import os
import re
import signal
import socket as sockets
import ssl
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from omni_streaming.listener import Listener, bind
from omni_streaming.tls import (
    FILE_NAME,
    certificate_files,
    fingerprint,
    local_addresses,
    names_of_this_machine,
    self_signed,
    server_context,
)
from websockets.asyncio.client import connect

from omni.cli import main
from omni.cli.serve import how_to_reach
from omni.config import Config, ServerConfig
from omni.errors import ConfigError
from tests.streaming.serving import TIMEOUT_S, Socket, make_server, settings

NOW = datetime(2030, 6, 1, tzinfo=UTC)
NAMES = ["localhost", "127.0.0.1", "::1", "192.168.1.5"]


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


# --- the certificate -----------------------------------------------------------------------------


def test_a_certificate_is_valid_for_a_year_and_all_names_and_its_key_is_private(
    tmp_path: Path,
) -> None:
    path = self_signed(tmp_path / "tls", NAMES, NOW)
    made = certificate(path)
    assert made.not_valid_before_utc <= NOW
    assert made.not_valid_after_utc == NOW + timedelta(days=365)
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == NAMES[1:]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == [FILE_NAME]


def test_a_certificate_that_browsers_know_is_kept(tmp_path: Path) -> None:
    first = self_signed(tmp_path, NAMES, NOW).read_bytes()
    later = NOW + timedelta(days=360)
    assert self_signed(tmp_path, NAMES[:2], later).read_bytes() == first


@pytest.mark.parametrize(
    ("names", "now"),
    [
        (NAMES, NOW + timedelta(days=366)),
        (NAMES, NOW - timedelta(days=400)),  # the clock was wrong when it was made
        ([*NAMES, "192.168.7.7"], NOW),
    ],
)
def test_a_certificate_is_renewed_when_it_expired_or_addresses_changed(
    tmp_path: Path, names: list[str], now: datetime
) -> None:
    first = self_signed(tmp_path, NAMES, NOW).read_bytes()
    path = self_signed(tmp_path, names, now)
    assert path.read_bytes() != first
    assert certificate(path).not_valid_after_utc == now + timedelta(days=365)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("keep", [0, 100, 300])
def test_a_damaged_file_is_made_anew(tmp_path: Path, keep: int) -> None:
    path = self_signed(tmp_path, NAMES, NOW)
    whole = path.read_bytes()
    path.write_bytes(whole[:keep])
    assert self_signed(tmp_path, NAMES, NOW) == path
    assert path.read_bytes() not in (whole, whole[:keep])
    server_context(path, path)  # raises where key and certificate do not fit


def test_names_are_those_that_others_may_use() -> None:
    names = names_of_this_machine("0.0.0.0")
    assert names[:3] == ["localhost", "127.0.0.1", "::1"]
    assert set(local_addresses()) <= set(names)
    assert "0.0.0.0" not in names
    assert "192.0.2.9" in names_of_this_machine("192.0.2.9")


# --- serving -------------------------------------------------------------------------------------


@asynccontextmanager
async def secure(config: Config, certificate: Path, key: Path) -> AsyncIterator[Listener]:
    server = make_server(config)
    with bind("127.0.0.1", 0) as listening:
        server.worker.start()
        try:
            assert await asyncio.to_thread(server.worker.wait, TIMEOUT_S) == "ready"
            tls = server_context(certificate, key)
            async with Listener(
                server.app(), config.server, listening, server.drain, tls=tls
            ) as listener:
                yield listener
        finally:
            server.worker.stop()


async def test_the_page_and_the_protocol_work_over_tls(tmp_path: Path) -> None:
    path = self_signed(tmp_path, NAMES, datetime.now(UTC))
    trusting = ssl.create_default_context(cafile=path)
    async with secure(Config(), path, path) as listener:
        assert listener.url.startswith("https://127.0.0.1:")
        async with httpx.AsyncClient(
            base_url=listener.url, trust_env=False, verify=trusting
        ) as http:
            assert (await http.get("/healthz")).json() == {"status": "ok"}
            assert (await http.get("/")).status_code == 200
            body = {"messages": [{"role": "user", "content": "talk 200"}], "stream": True}
            async with http.stream("POST", "/v1/chat/completions", json=body) as response:
                lines = [line async for line in response.aiter_lines()]
            assert lines[-2] == "data: [DONE]"
        address = listener.url.replace("https", "wss") + "/v1/realtime"
        # As a page that was served there sends it.
        async with connect(address, proxy=None, ssl=trusting, origin=listener.url) as connection:  # type: ignore[arg-type]
            client = Socket(connection)
            assert (await client.receive())["type"] == "session.created"
            assert len((await client.answer("talk 20")).split()) == 20
            shown = connection.transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
    assert fingerprint(path).replace(":", "") == hashlib.sha256(shown).hexdigest().upper()


async def test_a_client_that_does_not_know_the_certificate_is_warned(tmp_path: Path) -> None:
    path = self_signed(tmp_path, NAMES, datetime.now(UTC))
    async with (
        secure(Config(), path, path) as listener,
        httpx.AsyncClient(base_url=listener.url, trust_env=False) as http,
    ):
        with pytest.raises(httpx.ConnectError, match="self-signed certificate"):
            await http.get("/healthz")


async def test_a_handshake_that_never_ends_is_given_up(tmp_path: Path) -> None:
    path = self_signed(tmp_path, NAMES, datetime.now(UTC))
    async with secure(settings(request_timeout_s=1), path, path) as listener:
        port = int(listener.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(TIMEOUT_S):
            assert await reader.read() == b""
        writer.close()


async def test_plain_http_on_a_secure_port_ends_and_harms_nobody(tmp_path: Path) -> None:
    path = self_signed(tmp_path, NAMES, datetime.now(UTC))
    async with secure(Config(), path, path) as listener:
        plain = listener.url.replace("https", "http")
        async with httpx.AsyncClient(base_url=plain, trust_env=False) as http:
            with pytest.raises(httpx.TransportError):
                await http.get("/healthz")
        trusting = ssl.create_default_context(cafile=path)
        async with httpx.AsyncClient(
            base_url=listener.url, trust_env=False, verify=trusting
        ) as http:
            assert (await http.get("/healthz")).status_code == 200


# --- bad input -----------------------------------------------------------------------------------


def split(folder: Path) -> tuple[Path, Path]:
    """A certificate and its key in files of their own."""
    whole = self_signed(folder, NAMES, NOW)
    cert, key = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(certificate(whole).public_bytes(serialization.Encoding.PEM))
    key.write_bytes(whole.read_bytes().partition(b"-----BEGIN CERT")[0])
    return cert, key


def other_key(key: Path) -> None:
    key.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def locked_key(key: Path) -> None:
    known = serialization.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        known.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda cert, key: cert.unlink(), "cannot read .*cert.pem: No such file"),
        (lambda cert, key: key.unlink(), "cannot read .*key.pem: No such file"),
        (lambda cert, key: (key.unlink(), key.mkdir()), "cannot read .*key.pem: Is a directory"),
        (lambda cert, key: other_key(key), "key.pem does not fit the certificate .*cert.pem"),
        (lambda cert, key: locked_key(key), "key.pem has a password"),
        (lambda cert, key: cert.write_text("hello"), "cert.pem is not a certificate in PEM"),
        (lambda cert, key: key.write_text("hello"), "key.pem not its key"),
    ],
)
def test_a_bad_file_is_one_sentence(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path, Path], Any],
    says: str,
) -> None:
    cert, key = split(tmp_path)
    server_context(cert, key)
    spoil(cert, key)
    options = ["--tls-cert", str(cert), "--tls-key", str(key), "--port", "0", "--scripted"]
    assert main(["serve", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(says, line)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_key_that_may_not_be_read_is_one_sentence(tmp_path: Path) -> None:
    cert, key = split(tmp_path)
    key.chmod(0)
    with pytest.raises(ConfigError, match=r"cannot read .*key\.pem: Permission denied"):
        server_context(cert, key)


@pytest.mark.parametrize(
    ("server", "says"),
    [
        (ServerConfig(tls_cert="c.pem"), "--tls-cert needs --tls-key"),
        (ServerConfig(tls_key="k.pem"), "--tls-key needs --tls-cert"),
        (ServerConfig(tls="self-signed", tls_cert="c", tls_key="k"), "choose one of them"),
    ],
)
def test_options_that_make_no_sense_are_one_sentence(
    tmp_path: Path, server: ServerConfig, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        certificate_files(server, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "tls").write_text("a file")
    with pytest.raises(ConfigError, match="cannot write a certificate to"):
        self_signed(tmp_path / "tls", NAMES, NOW)


def test_without_tls_there_are_no_files(tmp_path: Path) -> None:
    assert certificate_files(ServerConfig(), tmp_path) is None
    assert not list(tmp_path.iterdir())


# --- the command ---------------------------------------------------------------------------------


def lines_of(config: Config, is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr("sys.stdout.isatty", lambda: is_terminal)
    with bind("127.0.0.1", 0) as listening:
        server = make_server(config)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if config.server.tls != "off" else None
        listener = Listener(server.app(), config.server, listening, server.drain, tls=tls)
        return list(how_to_reach(config, listener))


def test_the_key_is_shown_on_a_terminal_and_never_written_to_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(
        home=str(tmp_path),
        server=ServerConfig(host="192.0.2.7", api_key="a b#c", tls="self-signed"),
    )
    shown, print_, warning = lines_of(config, True, monkeypatch)
    assert re.search(r"phone: https://192\.0\.2\.7:\d+/#key=a%20b%23c$", shown)
    assert fingerprint(tmp_path / "tls" / FILE_NAME) in print_
    assert "Browsers warn" in warning
    logged = lines_of(config, False, monkeypatch)
    assert "a%20b" not in "".join(logged)
    assert "asks for the key" in logged[0]
    plain = dataclasses.replace(config, server=ServerConfig(host="192.0.2.7", api_key="k"))
    assert "Without https" in lines_of(plain, True, monkeypatch)[-1]
    assert lines_of(Config(), True, monkeypatch) == []


def test_an_address_of_this_machine_is_named_unless_it_is_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(home=str(tmp_path), server=ServerConfig(host="0.0.0.0", api_key="k"))
    mark = tmp_path / "mark"
    monkeypatch.setattr("omni.cli.serve.CONTAINER_MARKS", (str(mark),))
    monkeypatch.setattr("omni_streaming.tls.local_addresses", lambda: ["2001:db8::5", "192.0.2.5"])
    assert "http://192.0.2.5:" in lines_of(config, True, monkeypatch)[0]
    mark.touch()
    assert len(lines_of(config, True, monkeypatch)) == 1  # about https alone


def test_omni_serves_over_https_with_a_certificate_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "omni", "serve", "--scripted", "--port", "0"]
    command += ["--tls", "self-signed", "--set", f"home={tmp_path}"]
    path = tmp_path / "tls" / FILE_NAME
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            ready = process.stdout.readline()
            url = re.search(r"https://127\.0\.0\.1:\d+", ready)
            assert url, ready
            assert fingerprint(path) in process.stdout.readline()
            assert "Browsers warn" in process.stdout.readline()
            trusting = ssl.create_default_context(cafile=path)
            with httpx.Client(base_url=url.group(), trust_env=False, verify=trusting) as http:
                assert http.get("/readyz").json()["ready"] is True
            port = int(url.group().rpartition(":")[2])
            second = subprocess.run(
                [*command[:5], "--port", str(port)], capture_output=True, text=True, check=False
            )
            assert "Omni is being served on port" in second.stderr
            with sockets.create_connection(("127.0.0.1", port)):
                process.send_signal(signal.SIGTERM)  # somebody who shakes no hands is no obstacle
                assert process.wait(TIMEOUT_S) == 0
        finally:
            process.kill()
