"""A package index on localhost for the store's tests: wheels and npm tarballs, with faults.

The wheels and tarballs are built on the fly; pip and npm are the real ones.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from omni.store import File, Manifest, Model, Part


def wheel(name: str, version: str, members: Mapping[str, bytes]) -> tuple[str, bytes]:
    """A pure wheel's file name and bytes."""
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    files = {
        **members,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    return f"{stem}-py3-none-any.whl", out.getvalue()


def tarball(members: Mapping[str, bytes]) -> bytes:
    """An npm package's bytes."""
    out = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=out, mode="w", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as archive,
    ):
        for path, data in members.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


class PackageIndex:
    """Serves ``wheels`` (file name -> bytes) as a simple index and ``tarballs`` as npm's registry.

    ``requested`` lists the files that were asked for. A file named in ``stalled`` sends its first
    half, sets ``half_sent`` and waits for ``go_on``.
    """

    def __init__(self) -> None:
        self.wheels: dict[str, bytes] = {}
        self.tarballs: dict[str, bytes] = {}
        self.requested: list[str] = []
        self.stalled: set[str] = set()
        self.half_sent = threading.Event()
        self.go_on = threading.Event()
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.answer(self)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add_wheel(self, name: str, version: str, members: Mapping[str, bytes]) -> str:
        file, data = wheel(name, version, members)
        self.wheels[file] = data
        return file

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        kind, _, rest = request.path.strip("/").partition("/")
        data: bytes | None = None
        content_type = "application/octet-stream"
        if kind == "simple":
            prefix = rest.replace("-", "_") + "-"
            links = "".join(
                f'<a href="/files/{file}">{file}</a>'
                for file in self.wheels
                if file.startswith(prefix)
            )
            data, content_type = (links.encode() or None), "text/html"
        elif kind == "files":
            self.requested.append(rest)
            data = self.wheels.get(rest) or self.tarballs.get(rest)
        elif kind == "npm":
            content_type = "application/json"
            data = self._npm_document(rest)
        if data is None:
            request.send_error(404)
            return
        request.send_response(200)
        request.send_header("Content-Type", content_type)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        try:
            if rest in self.stalled:
                request.wfile.write(data[: len(data) // 2])
                request.wfile.flush()
                self.half_sent.set()
                self.go_on.wait(60)
                data = data[len(data) // 2 :]
            request.wfile.write(data)
        except ConnectionError:
            pass  # the client was killed, which is what some tests do

    def _npm_document(self, package: str) -> bytes | None:
        """npm asks for NAME, the registry's plain reader for NAME/VERSION."""
        name, _, version = package.partition("/")
        versions = {}
        for file, data in self.tarballs.items():
            stem, _, ver = file.removesuffix(".tgz").rpartition("-")
            if stem == name:
                dist = {
                    "tarball": f"{self.url}/files/{file}",
                    "shasum": hashlib.sha1(data).hexdigest(),
                }
                versions[ver] = {"name": name, "version": ver, "dist": dist}
        if version:
            return json.dumps(versions[version]).encode() if version in versions else None
        if not versions:
            return None
        latest = {"latest": max(versions)}
        return json.dumps({"name": name, "dist-tags": latest, "versions": versions}).encode()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def model_file(path: str, *parts: tuple[str, str, bytes]) -> File:
    """A manifest file made of ``(source, member, bytes)``."""
    whole = b"".join(data for _, _, data in parts)
    return File(
        path=path,
        size=len(whole),
        sha256=sha256(whole),
        parts=tuple(
            Part(source=source, member=member, size=len(data), sha256=sha256(data))
            for source, member, data in parts
        ),
    )


def manifest_of(name: str, *files: File, is_optional: bool = False) -> Manifest:
    """A manifest with one default model; every package counts as 1 kB to download."""
    model = Model(
        name=name,
        role="backbone",
        licence="Apache-2.0",
        about="a model for tests",
        without="the others work",
        is_default=True,
        is_optional=is_optional,
        files=files,
    )
    return Manifest({name: model}, dict.fromkeys(model.sources, 1000))
