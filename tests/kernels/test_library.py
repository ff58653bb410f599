"""Loading, choosing a path, and the thread pool under concurrency, fork and exit."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading

import pytest
import torch
from omni_kernels import library
from omni_kernels import linear as lib

from omni.errors import ConfigError


def needs_library() -> None:
    if library.available() == ("torch",):
        pytest.skip("the C++ library is not built")


def test_environment_forces_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in library.available():
        monkeypatch.setenv(library.ENVIRONMENT, name)
        monkeypatch.setattr(library, "_state", library._State())
        assert lib.backend().startswith(name)
        assert (library.cpu() is None) == (name == "torch")
    monkeypatch.setenv(library.ENVIRONMENT, "sse9")
    monkeypatch.setattr(library, "_state", library._State())
    with pytest.raises(ConfigError, match="sse9"):
        lib.backend()


def test_a_missing_library_means_torch_and_one_logged_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(library.ENVIRONMENT, raising=False)
    monkeypatch.setattr(library, "_state", library._State())
    monkeypatch.setattr(library, "_load", lambda: None)
    weight = lib.pack(torch.eye(32))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            lib.linear(torch.ones(1, 32), weight)
    assert lib.backend() == "torch"
    assert [record.message for record in caplog.records] == [
        "compiled kernels are missing: linear layers use the slow torch path"
    ]
    with pytest.raises(ConfigError, match="missing"):
        library.select("avx2")


def test_several_threads_may_call_at_once() -> None:
    needs_library()
    generator = torch.Generator().manual_seed(0)
    jobs = []
    for i in range(6):
        weight = lib.pack(torch.randn(400 + 16 * i, 256, generator=generator))
        x = torch.randn(1 + 3 * i, 256, generator=generator)
        jobs.append((x, weight, lib.linear(x, weight)))
    threads = library.num_threads()
    library.set_num_threads(4)
    wrong = []

    def call(x: torch.Tensor, weight: lib.PackedWeight, expected: torch.Tensor) -> None:
        if not all(torch.equal(lib.linear(x, weight), expected) for _ in range(300)):
            wrong.append(x.shape)

    callers = [threading.Thread(target=call, args=job, daemon=True) for job in jobs]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
    library.set_num_threads(threads)
    assert not any(caller.is_alive() for caller in callers)
    assert wrong == []


def test_more_callers_than_loops_still_finish() -> None:
    needs_library()
    weight = lib.pack(torch.randn(320, 64))
    x = torch.randn(5, 64)
    expected = lib.linear(x, weight)
    right = []

    def call() -> None:
        right.extend(torch.equal(lib.linear(x, weight), expected) for _ in range(50))

    callers = [threading.Thread(target=call, daemon=True) for _ in range(40)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
    assert len(right) == 2000
    assert all(right)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_computes_the_same() -> None:
    needs_library()
    threads = library.num_threads()
    library.set_num_threads(3)
    weight, x = lib.pack(torch.randn(600, 320)), torch.randn(9, 320)
    before = lib.linear(x, weight)
    child = os.fork()
    if child == 0:
        os._exit(0 if all(torch.equal(lib.linear(x, weight), before) for _ in range(50)) else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert torch.equal(lib.linear(x, weight), before)
    library.set_num_threads(threads)


def test_the_process_exits_while_another_thread_computes() -> None:
    needs_library()
    done = subprocess.run(
        [sys.executable, "-c", EXIT], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.returncode) == ("bye\n", 0), done.stderr


EXIT = """
import threading
import torch
from omni_kernels import linear as lib
lib.set_num_threads(3)
weight, x = lib.pack(torch.randn(600, 320)), torch.randn(9, 320)
out = torch.empty(9, 600)  # made here: a daemon thread that exits inside torch aborts the process
started = threading.Event()
def forever():
    while True:
        lib.linear(x, weight, out=out)
        started.set()
threading.Thread(target=forever, daemon=True).start()
assert started.wait(30)
print("bye")
"""
