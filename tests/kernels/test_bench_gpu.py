"""The script for people with a card: its sentence without one; gate and cases, interpreted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import interpreted  # noqa: F401
import pytest
import torch

# isort: split
import gpu_gate
import gpu_times
from gpu_models import Model

KERNELS = Path(__file__).parents[2] / "kernels"


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_gate, "DEVICE", "cpu")
    torch.manual_seed(1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")
def test_without_a_card_it_says_so_in_one_sentence() -> None:
    script = [sys.executable, str(KERNELS / "bench_gpu.py")]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout.count("\n") == 1
    assert "no CUDA or ROCm card" in done.stdout
    assert not done.stderr


def test_every_check_of_the_gate_holds_in_the_interpreter() -> None:
    mixes = {"decode": [(5, 1), (255, 1)], "mixed": [(0, 20), (70, 1)]}
    checks = [
        *gpu_gate.check_delta((1, 2), torch.float16, width=16, tokens=5),
        *gpu_gate.check_attention(16, (4, 2), torch.float16, mixes, repeats=2),
        *gpu_gate.check_linear(8, (1, 5), 24, 64, torch.float16),
        *gpu_gate.check_linear(4, (1, 5), 24, 64, torch.float16),
        *gpu_gate.check_copies(torch.float16),
        *gpu_gate.check_rotate(),
    ]
    assert [name for name, is_right in checks if not is_right] == []
    assert len(checks) > 25


def test_a_wrong_kernel_turns_the_gate_red(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_gate, "copy_pages", lambda *_: None)
    monkeypatch.setattr(gpu_gate, "all_checks", lambda: gpu_gate.check_copies(torch.float16))
    assert not gpu_gate.gate()
    assert capsys.readouterr().out.splitlines() == [
        "FAILED  pages are copied in all layers",
        "gate: 2 of 3 checks passed",
    ]


@pytest.mark.slow
def test_every_case_runs_and_counts_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each timed call once, interpreted; only a clock and a card are missing."""
    model = Model(
        hidden=64,
        intermediate=64,
        recurrent_layers=2,
        attention_layers=1,
        heads=(2, 1),
        head_dim=16,
        delta_heads=(1, 1),
    )

    def once(call: gpu_times.Call, copies: int) -> list[float]:
        for i in {0, copies - 1}:
            call(i)
        return [1.0] * gpu_times.REPEATS

    monkeypatch.setattr(gpu_times, "MODELS", {"tiny": model})
    monkeypatch.setattr(gpu_times, "COLD_BYTES", 1 << 20)
    monkeypatch.setattr(gpu_times, "DTYPE", torch.float16)
    monkeypatch.setattr(gpu_times, "times_us", once)
    report = gpu_times.measure(["tiny"])
    assert report.bandwidth == 2 * (1 << 20) * 1e6
    assert (
        len({(row.kernel, row.case) for row in report.rows}) == len(report.rows) == 12 + 1 + 6 + 16
    )
    assert all(row.gb_per_s > 0 for row in report.rows)
