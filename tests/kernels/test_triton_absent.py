"""Where Triton is not installed, everything that runs on CPUs runs."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
sys.modules["triton"] = None  # importing it raises ImportError, as where it is not installed
import torch
import omni.engine.engine, omni.models.qwen3_5, omni.models.llama
import omni_kernels.attention, omni_kernels.gated_delta, omni_kernels.rowwise, omni_kernels.state
from omni_kernels.linear import linear, pack
from omni_kernels.triton_graph import nobody
x = torch.randn(2, 64)
print(tuple(linear(x, pack(torch.randn(8, 64))).shape), len(nobody(3, 1, "cpu").slots))
"""


def test_cpu_paths_import_and_run_without_triton() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "(2, 8) 3"
