"""A model hub on localhost for the store's tests, as far as the hub's own client asks it."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE_BYTES = 1000
"""Files from this size on are stored as large ones, whose sha256 the hub states."""


class ModelHub:
    """Serves ``files`` (``org/name`` -> file name -> bytes).

    ``gated`` repositories are refused with the hub's own code; ``lying`` files come with other
    bytes than stated; ``broken`` ones end the connection halfway, once. ``requested`` lists what
    was downloaded.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.lying: set[str] = set()
        self.broken: set[str] = set()
        self.requested: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self, with_body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, with_body=False)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler, *, with_body: bool) -> None:
        path = unquote(urlsplit(request.path).path).strip("/").split("/")
        if path[:2] == ["api", "models"]:
            repository, revision = "/".join(path[2:4]), path[5] if len(path) > 5 else "main"
        else:
            repository, revision = "/".join(path[:2]), path[3]
        if repository not in self.files:
            _send(request, 404, b"{}", with_body, {"X-Error-Code": "RepoNotFound"})
        elif repository in self.gated:
            _send(request, 403, b"{}", with_body, {"X-Error-Code": "GatedRepo"})
        elif revision not in ("main", "v2", COMMIT):
            _send(request, 404, b"{}", with_body, {"X-Error-Code": "RevisionNotFound"})
        elif path[0] == "api":
            _send(request, 200, json.dumps(self._described(repository)).encode(), with_body, {})
        else:
            self._file(request, repository, path[4], with_body)

    def _described(self, repository: str) -> dict[str, object]:
        siblings: list[dict[str, object]] = []
        for name, data in self.files[repository].items():
            siblings.append({"rfilename": name, "size": len(data), "blobId": "0" * 40})
            if len(data) >= LARGE_BYTES:
                digest = hashlib.sha256(data).hexdigest()
                siblings[-1]["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 100}
        return {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings}

    def _file(
        self, request: BaseHTTPRequestHandler, repository: str, name: str, with_body: bool
    ) -> None:
        data = self.files[repository][name]
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        if name in self.lying:
            data = bytes(len(data))
        if not with_body:
            _send(request, 200, data, False, headers)
            return
        self.requested.append(name)
        if name in self.broken:
            self.broken.remove(name)
            request.send_response(200)
            for key, value in (headers | {"Content-Length": str(len(data))}).items():
                request.send_header(key, value)
            request.end_headers()
            request.wfile.write(data[: len(data) // 2])
            request.close_connection = True
            return
        start = 0
        if wanted := request.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        _send(request, 206 if start else 200, data[start:], True, headers)


def _send(
    request: BaseHTTPRequestHandler,
    status: int,
    data: bytes,
    with_body: bool,
    headers: dict[str, str],
) -> None:
    request.send_response(status)
    for key, value in (headers | {"Content-Length": str(len(data))}).items():
        request.send_header(key, value)
    request.end_headers()
    if with_body:
        request.wfile.write(data)
