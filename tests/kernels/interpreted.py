"""Import this before any Triton kernel: it makes sure that they run interpreted, on the CPU.

Triton decides at its first import in a process, so ``tests/conftest.py`` asks for its interpreter
before any test is collected. Tests that compile kernels instead start processes of their own.
"""

from __future__ import annotations

import os

import pytest

assert os.environ.get("TRITON_INTERPRET") == "1", "tests/conftest.py asks for the interpreter"
triton = pytest.importorskip("triton", reason="Triton has no build for this platform")
