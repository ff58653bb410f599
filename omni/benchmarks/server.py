"""A server of its own for a benchmark: started as users start it, stopped at the end."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from omni.errors import OmniError

START_TIMEOUT_S = 180.0


@contextlib.contextmanager
def serving(arguments: Sequence[str] = ()) -> Iterator[str]:
    """Run ``omni serve`` on a free port of the loopback; yields its URL once it is ready.

    Raises:
        OmniError: it ended or was not ready in time; the message has its last lines.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "omni", "serve", "--port", str(port), *arguments]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            url = f"http://127.0.0.1:{port}"
            give_up_s = time.monotonic() + START_TIMEOUT_S
            while not _is_ready(url):
                if process.poll() is not None or time.monotonic() > give_up_s:
                    tail = " | ".join(log.read_text(errors="replace").splitlines()[-3:])
                    raise OmniError(f"the server did not start: {tail}")
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
