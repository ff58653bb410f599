"""What a process holds in memory, and a worker process that is asked line by line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from omni.errors import OmniError


def resident_mb() -> float:
    """Resident memory of this process (mapped files that were touched included), 10^6 bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OmniError("this system does not say how much memory a process holds")


def resident_mb_of(statement: str) -> float:
    """Resident memory of a fresh Python after ``statement``."""
    code = f"{statement}\nfrom omni.benchmarks.process import resident_mb\nprint(resident_mb())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


class Worker:
    """A module run as a program: JSON lines in, JSON lines out; ``greeting`` is its first line.

    ``environment`` replaces this process's own.
    """

    def __init__(self, module: str, *arguments: str, environment: Mapping[str, str]) -> None:
        self._module = module
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.greeting = self._answer()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send one request and wait for its answer.

        Raises:
            OmniError: the worker has ended.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # llama.cpp prints other things too
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise OmniError(f"{self._module} ended with status {self._process.wait()}")

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.wait()
