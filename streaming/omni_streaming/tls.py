"""https and wss: the server's certificate, and one that it makes for itself.

Called by :mod:`omni.cli.serve`. Phones give a page camera and microphone over https only, and a
machine at home has no name that an authority would vouch for; so the server can make a certificate
of its own, which a browser accepts once its owner says so.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from omni.config import ServerConfig
from omni.errors import ConfigError

VALID = timedelta(days=365)
"""Apple's systems trust nothing that is valid for more than 398 days."""

RENEW_BEFORE = timedelta(days=1)
CLOCK_SKEW = timedelta(days=1)
"""A certificate begins this long before it is made: a phone's clock may be behind."""

FILE_NAME = "self-signed.pem"
"""Key and certificate in one file, so that they always fit."""

PROBES = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
"""Addresses for documentation (RFC 5737, 3849): asking for the way there sends nothing."""


def certificate_files(config: ServerConfig, folder: Path) -> tuple[Path, Path] | None:
    """(certificate, key) that the settings name, or the one made here, in ``folder``; None: none.

    Raises:
        ConfigError: settings that contradict each other, or ``folder`` cannot be written.
    """
    if bool(config.tls_cert) != bool(config.tls_key):
        given, lacking = ("cert", "key") if config.tls_cert else ("key", "cert")
        raise ConfigError(
            f"--tls-{given} needs --tls-{lacking} (server.tls_{lacking}): https takes both"
        )
    if config.tls == "off":
        if config.tls_cert:
            return Path(config.tls_cert).expanduser(), Path(config.tls_key).expanduser()
        return None
    if config.tls_cert:
        raise ConfigError(
            "--tls self-signed makes a certificate, and --tls-cert names one: choose one of them"
        )
    path = self_signed(folder, names_of_this_machine(config.host), datetime.now(UTC))
    return path, path


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """What a server needs to speak TLS (1.2 or later) with ``certificate``, a PEM file.

    Raises:
        ConfigError: a file cannot be read or is of another kind, or they do not fit.
    """
    for path in (certificate, key):
        try:
            path.read_bytes()
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    is_encrypted = False

    def refuse() -> str:  # else OpenSSL would ask on the terminal
        nonlocal is_encrypted
        is_encrypted = True
        return ""

    try:
        context.load_cert_chain(certificate, key, password=refuse)
    except ssl.SSLError as error:
        if is_encrypted:
            message = f"the key {key} has a password: give one without (`openssl pkey -in {key}`)"
        elif error.reason == "KEY_VALUES_MISMATCH":
            message = f"the key {key} does not fit the certificate {certificate}"
        else:
            message = (
                f"{certificate} is not a certificate in PEM, or {key} not its key "
                f"({error.reason or error})"
            )
        raise ConfigError(message) from error
    return context


def fingerprint(certificate: Path) -> str:
    """SHA-256 of the first certificate in a PEM file, as browsers show it: ``AB:CD:...``."""
    digest = _read(certificate).fingerprint(hashes.SHA256())
    return digest.hex(":").upper()


def self_signed(folder: Path, names: Sequence[str], now: datetime) -> Path:
    """The PEM file in ``folder`` with a key (for its owner's eyes only) and its certificate.

    Made anew when there is none that is valid for a day and for all of ``names`` (host names and
    addresses); else the one that is there, which browsers may know already.

    Raises:
        ConfigError: the folder cannot be written.
    """
    path = folder / FILE_NAME
    with suppress(OSError, ValueError, x509.ExtensionNotFound):
        old = _read(path)
        is_valid = old.not_valid_before_utc <= now < old.not_valid_after_utc - RENEW_BEFORE
        if is_valid and set(names) <= _names(old):
            server_context(path, path)  # as whole as it looks
            return path
    key = ec.generate_private_key(ec.SECP256R1())
    data = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    data += _certificate(key, names, now).public_bytes(serialization.Encoding.PEM)
    unfinished = folder / f".{FILE_NAME}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        unfinished.unlink(missing_ok=True)
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
            f.write(data)
        unfinished.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write a certificate to {folder}: {error.strerror}") from error
    return path


def names_of_this_machine(host: str) -> list[str]:
    """What clients may call a server that listens on ``host``: names and addresses."""
    names = ["localhost", "127.0.0.1", "::1"]
    machine = socket.gethostname().lower()
    if _is_name(machine):
        names += [machine]
        if "." not in machine:
            names += [f"{machine}.local"]  # as multicast DNS has it
    if host and host not in ("0.0.0.0", "::"):
        names += [host]
    return list(dict.fromkeys([*names, *local_addresses()]))


def local_addresses() -> list[str]:
    """Addresses under which others reach this machine; the one towards the internet first."""
    found: list[str] = []
    for family, probe in PROBES:
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as way:
            way.connect((probe, 9))
            found.append(way.getsockname()[0])
    with suppress(OSError):
        found += [str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None)]
    addresses = (ipaddress.ip_address(text.partition("%")[0]) for text in found)
    usable = (a for a in addresses if not (a.is_loopback or a.is_link_local or a.is_unspecified))
    return list(dict.fromkeys(map(str, usable)))


def _certificate(
    key: ec.EllipticCurvePrivateKey, names: Iterable[str], now: datetime
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Omni on this machine")])
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + VALID)
        .add_extension(x509.SubjectAlternativeName(list(map(_general_name, names))), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _is_name(text: str) -> bool:
    """Whether ``text`` can stand in a certificate: machines have been called anything."""
    return text.isascii() and text.replace("-", "").replace(".", "").isalnum() and len(text) < 254


def _read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificates(path.read_bytes())[0]


def _names(certificate: x509.Certificate) -> set[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = names.get_values_for_type(x509.IPAddress)
    return {*names.get_values_for_type(x509.DNSName), *map(str, addresses)}
