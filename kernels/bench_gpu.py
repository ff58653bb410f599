"""Measures the GPU kernels: ``python kernels/bench_gpu.py --json FILE``, about five minutes.

First the gate (``gpu_gate.py``): every operator against its reference, on this very card. If it is
red, nothing is timed. Then the times (``gpu_times.py``) of calls captured in one CUDA graph, each
call on other memory, together beyond the last-level cache, as a decoder meets its weights and
states. The roofline is the copy bandwidth measured in the same run. The last line is JSON.
Exit codes: 0 fine, 1 the gate is red, 2 no card.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch


def missing() -> str | None:
    """Say in one sentence why nothing can be measured here, or None."""
    if not torch.cuda.is_available():
        return "This machine has no CUDA or ROCm card that PyTorch can use: nothing was measured."
    try:
        import triton  # noqa: F401
    except ImportError:
        return "Triton is not installed here: nothing was measured."
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the result here")
    parser.add_argument("--gate-only", action="store_true", help="check, time nothing")
    parser.add_argument("--models", nargs="+", choices=("0.8B", "4B"), default=("0.8B", "4B"))
    arguments = parser.parse_args()
    reason = missing()
    if reason is not None:
        print(reason)
        return 2
    import gpu_gate  # both need Triton
    import gpu_times

    result: dict[str, object] = {
        "gate": "green" if gpu_gate.gate() else "red",
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
    }
    if result["gate"] == "green" and not arguments.gate_only:
        report = gpu_times.measure(arguments.models)
        result |= {
            "copy_gb_per_s": round(report.bandwidth / 1e9, 1),
            "repeats": gpu_times.REPEATS,
            "rows": [asdict(row) for row in report.rows],
        }
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0 if result["gate"] == "green" else 1


if __name__ == "__main__":
    sys.exit(main())
