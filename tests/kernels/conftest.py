"""Fixtures of the kernel tests: a test that takes ``path`` runs on every path of this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from omni_kernels import library


@pytest.fixture(params=("torch", "scalar", "avx2", "avx512"))
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Select one path for the test, then the best one again."""
    if request.param not in library.available():
        pytest.skip(f"{request.param} cannot run on this machine or is not built")
    library.select(request.param)
    threads = library.num_threads()
    yield request.param
    library.set_num_threads(threads)
    library.select("")
