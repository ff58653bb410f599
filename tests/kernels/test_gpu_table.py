"""The kernels compiled for cards that are not here: no spills, ceilings, and one arithmetic."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import interpreted  # noqa: F401
import pytest

# isort: split
from gpu_table import complaints
from omni_kernels.triton_ahead import Usage

KERNELS = Path(__file__).parents[2] / "kernels"
TABLE = KERNELS / "gpu_table.json"
DOCS = KERNELS.parent / "docs" / "kernels.md"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, whose Triton compiles instead of interpreting."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(KERNELS)
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode == 3:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    return done


def check(*arguments: str) -> None:
    done = run(str(KERNELS / "gpu_table.py"), "--check", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def test_decoding_fits_its_ceilings_and_is_the_arithmetic_of_replaying() -> None:
    names = ("delta decode 0.8B", "attention decode 0.8B", "linear norm 0.8B, 4 bits, 1 rows")
    check("--targets", "sm_90", "gfx942", "--only", *names)


IN_THE_PRODUCT = """
import torch
from gpu_table import MAX_SHARED, MODELS, attention, compile_ahead, usage
model = MODELS["0.8B"]
for target in ("sm_80", "sm_120", "gfx942"):
    exact = "ieee" if target.startswith("gfx") else "tf32x3"
    for num_tokens in (1, 64):
        heads, dim = model.heads, model.head_dim
        (launch,) = attention(heads, dim, num_tokens, exact, torch.float32)
        found = usage(compile_ahead(launch, target))
        assert found.shared <= MAX_SHARED[target], (target, num_tokens, found)
        assert found.spilled < 128, (target, num_tokens, found)
"""


def test_attention_fits_the_cards_in_the_types_of_the_product() -> None:
    # Rows of fp32 over pages of bf16: with pages of fp32 it would not start on any of them.
    done = run("-c", IN_THE_PRODUCT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_every_kernel_fits_its_ceilings_on_every_card() -> None:
    check()


def test_the_documentation_shows_the_table() -> None:
    table = json.loads(TABLE.read_text())
    rows = dict(re.findall(r"^\| ([a-z][^|]*) \| (.*) \|$", DOCS.read_text(), re.MULTILINE))
    for name, by_target in table["kernels"].items():
        cells = [
            f"{limit['registers']} / {limit['shared'] / 1024:.1f}".removesuffix(".0")
            for limit in by_target.values()
        ]
        assert rows[name].split(" | ") == cells
    assert f"Triton {table['triton']}" in DOCS.read_text()


def test_a_spill_a_new_kernel_and_a_broken_ceiling_are_told() -> None:
    table = {"a": {"sm_120": {"registers": 64, "shared": 1024}}}

    def told(name: str, found: Usage) -> list[str]:
        return list(complaints({name: {"sm_120": found}}, table))

    assert told("a", Usage(64, 0, 1024)) == []
    assert "above" in told("a", Usage(65, 0, 1024))[0]
    assert told("a", Usage(64, 8, 0)) == ["a on sm_120: 8 bytes spilled"]
    assert len(told("a", Usage(64, 0, 200 << 10))) == 2
    assert told("b", Usage(1, 0, 0)) == ["b on sm_120: not in gpu_table.json"]
