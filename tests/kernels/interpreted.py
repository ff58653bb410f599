"""Import this before any Triton kernel: the kernels then run in Triton's interpreter, on the CPU.

The choice is made when ``triton`` is first imported, for the whole process; processes that compile
kernels instead are started by the tests that need one.
"""

from __future__ import annotations

import os
import sys

import pytest

if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
    raise RuntimeError("something imported triton before its interpreter was asked for")
os.environ["TRITON_INTERPRET"] = "1"
triton = pytest.importorskip("triton", reason="Triton has no build for this platform")
