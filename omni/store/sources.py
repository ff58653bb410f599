"""Bringing a package here as a file: wheels through the user's own pip, tarballs through npm.

pip and npm keep the user's mirrors, proxies and certificates working; without npm the registry that
npm's own configuration names is asked directly. What arrives is data: it is never installed, and
``--only-binary`` keeps pip from running a package's build. Called by :mod:`omni.store.fetch`.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import IO

from omni.errors import FetchError

POLL_S = 0.1
"""How often a running download is looked at."""

TIMEOUT_S = 60
"""Silence after which a registry counts as unreachable (pip and npm have their own)."""

Watch = Callable[[int], None]
"""Receives the bytes that have arrived so far."""

DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, gzip.BadGzipFile, EOFError)
"""What reading a damaged wheel or tarball raises."""

_NO_NETWORK = re.compile(
    r"name resolution|NameResolutionError|NewConnectionError|network is unreachable|ENETUNREACH|"
    r"ConnectTimeout|ReadTimeout|timed out|ETIMEDOUT|connection refused|ECONNREFUSED|ECONNRESET|"
    r"ENOTFOUND|EAI_AGAIN|ProxyError|connection (aborted|reset|broken)|max retries exceeded",
    re.IGNORECASE,
)
_FULL_DISK = re.compile(r"no space left on device|ENOSPC|disk quota exceeded", re.IGNORECASE)
_UNTRUSTED = re.compile(
    r"certificate.verify.failed|confirming the ssl certificate|self.signed|UNABLE_TO_\w*CERT|"
    r"UNABLE_TO_VERIFY",
    re.IGNORECASE,
)
_NOT_OFFERED = re.compile(r"no matching distribution|E404|404 Not Found|ETARGET", re.IGNORECASE)


def require(source: str) -> None:
    """Check, before anything is downloaded, that there is a tool for ``source``.

    Raises:
        FetchError: the package comes from npm, and there is neither npm nor a known registry.
    """
    kind, _, package = source.partition(":")
    if kind == "npm" and not shutil.which("npm") and not npm_registry():
        raise FetchError(
            f"{package} comes from npm, and neither the npm command nor a registry in npm's "
            "configuration (.npmrc or npm_config_registry) is there: install npm or name a registry"
        )


def download(source: str, into: Path, watch: Watch) -> Path:
    """Bring the package ``source`` into the empty folder ``into`` and return its file.

    Raises:
        FetchError: it could not be brought; the message is one sentence.
    """
    kind, _, package = source.partition(":")
    if kind == "pypi":
        _run_pip(package, into, watch)
    elif npm := shutil.which("npm"):
        _run_npm(npm, package, into, watch)
    else:
        require(source)
        _ask_registry(npm_registry() or "", package, into, watch)
    arrived = [file for file in into.iterdir() if file.suffix in {".whl", ".tgz"}]
    if len(arrived) != 1:
        raise FetchError(f"{package} did not arrive: expected one file, got {len(arrived)}")
    return arrived[0]


def members(archive: Path, wanted: Collection[str]) -> Iterator[tuple[str, IO[bytes]]]:
    """The ``wanted`` members of a wheel or tarball; each stream is valid until the next one.

    Reading a damaged archive raises one of :data:`DAMAGED`, here or from a stream.

    Raises:
        FetchError: the archive has no such member.
    """
    missing = set(wanted)
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in missing.intersection(wheel.namelist()):
                with wheel.open(name) as stream:
                    yield name, stream
                missing.discard(name)
    else:
        with tarfile.open(archive, "r:gz") as tarball:
            for entry in tarball:
                if entry.name in missing and (content := tarball.extractfile(entry)):
                    yield entry.name, content
                    missing.discard(entry.name)
    if missing:
        raise FetchError(f"{archive.name} has no {min(missing)}: it is not the known package")


def npm_registry() -> str | None:
    """The registry that npm's environment or configuration files name, or None."""
    environment = {key.lower(): value for key, value in os.environ.items()}
    if registry := environment.get("npm_config_registry"):
        return registry
    user = environment.get("npm_config_userconfig") or str(Path.home() / ".npmrc")
    shared = environment.get("npm_config_globalconfig") or "/etc/npmrc"
    for file in (Path(user), Path(shared)):
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            continue
        for line in lines:
            key, _, value = line.partition("=")
            if key.strip() == "registry" and value.strip():
                return os.path.expandvars(value.strip().strip("\"'"))
    return None


def _run_pip(requirement: str, into: Path, watch: Watch) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    # The files are data, so the Python a package asks for does not matter; a copy in pip's cache
    # would only double the disk space.
    command += ["--ignore-requires-python", "--no-cache-dir", "--no-input", "--progress-bar=off"]
    # Very verbose: below that, pip does not say that it could not reach an index.
    command += ["--disable-pip-version-check", "-vv", "--dest", str(into), requirement]
    code, log = _run(command, into, watch)
    if code and "No module named pip" in log:
        raise FetchError(
            f"pip is missing from {sys.executable}: run `{sys.executable} -m ensurepip` first"
        )
    if code:
        raise FetchError(_explain("pip", requirement, log))


def _run_npm(npm: str, package: str, into: Path, watch: Watch) -> None:
    command = [npm, "pack", package, "--pack-destination", str(into), "--ignore-scripts"]
    code, log = _run(command, into, watch)
    if code:
        raise FetchError(_explain("npm", package, log))


def _run(command: list[str], into: Path, watch: Watch) -> tuple[int, str]:
    """Run a download to its end, reporting the growth of ``into``; return exit code and output."""
    # Both tools put unfinished downloads below TMPDIR, where their growth can be seen.
    environment = os.environ | {"TMPDIR": str(into), "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=into
        )
        try:
            while process.poll() is None:
                watch(_size(into))
                try:
                    process.wait(POLL_S)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            if process.poll() is None:  # interrupted
                process.terminate()
                process.wait()
        log.seek(0)
        return process.returncode, log.read().decode("utf-8", "replace")


def _size(folder: Path) -> int:
    """Bytes of the largest file below ``folder``: the download (pip copies it at its end)."""
    largest = 0
    for base, _, files in os.walk(folder):
        for name in files:
            try:
                largest = max(largest, os.stat(os.path.join(base, name)).st_size)
            except FileNotFoundError:
                continue  # it has just been renamed
    return largest


def _explain(tool: str, package: str, log: str) -> str:
    """One sentence on why ``tool`` could not bring ``package``."""
    if _FULL_DISK.search(log):
        return f"the disk is full: {tool} had no room for {package}"
    if _UNTRUSTED.search(log):
        return f"{tool} does not trust its package index's certificate; set the right one in {tool}"
    if _NO_NETWORK.search(log):
        return (
            f"no network: {tool} could not reach its package index for {package}; check the "
            "connection or proxy"
        )
    if _NOT_OFFERED.search(log):
        return f"the package index that {tool} uses does not offer {package}"
    errors = [
        line for line in log.splitlines() if re.match(r"(npm )?ERR(OR|!)", line, re.IGNORECASE)
    ]
    reason = (errors or log.splitlines() or ["it gave no reason"])[-1].strip()
    return f"{tool} could not bring {package}: {reason}"


def _ask_registry(registry: str, package: str, into: Path, watch: Watch) -> None:
    """Download an npm tarball from ``registry`` without npm."""
    name, _, version = package.rpartition("@")
    base = registry.rstrip("/")
    if urllib.parse.urlsplit(base).scheme not in {"http", "https"}:
        raise FetchError(f"npm's registry is {registry!r}, expected an http or https address")
    try:
        url = f"{base}/{urllib.parse.quote(name, safe='@')}/{version}"
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            tarball = urllib.parse.urljoin(url, json.load(answer)["dist"]["tarball"])
        if urllib.parse.urlsplit(tarball).scheme not in {"http", "https"}:
            raise FetchError(f"npm's registry names {tarball!r} for {package}, expected http(s)")
        with (
            urllib.request.urlopen(tarball, timeout=TIMEOUT_S) as answer,
            (into / "package.tgz").open("wb") as file,
        ):
            while chunk := answer.read(2**18):
                file.write(chunk)
                watch(file.tell())
    except urllib.error.HTTPError as error:
        raise FetchError(f"npm's registry does not offer {package} ({error.code})") from error
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise FetchError(f"npm's registry gave no tarball for {package}") from error
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise FetchError(f"no network: npm's registry could not be reached ({error})") from error
