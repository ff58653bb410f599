"""Fixtures of the kernel tests: a test that takes ``path`` runs on every path of this machine."""

from __future__ import annotations

import platform
from collections.abc import Iterator

import pytest
import torch
from omni_kernels import library


@pytest.fixture(scope="package", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Keep torch's own pool out: its regions are tiny here and slow on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


ARM = platform.machine().lower() in ("aarch64", "arm64")
PATHS = ("torch", "scalar", *(("neon",) if ARM else ("avx2", "avx512")))


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Select one path for the test, then the best one again."""
    if request.param not in library.available():
        pytest.skip(f"{request.param} cannot run on this machine or is not built")
    library.select(request.param)
    threads = library.num_threads()
    yield request.param
    library.set_num_threads(threads)
    library.select("")
