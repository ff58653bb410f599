"""Measures the CPU kernels: ``python kernels/bench.py --json FILE``.

Every figure of a shape comes from one interleaved run: read bandwidth, our kernel and torch's fp32
take turns, so that a noisy machine hurts all alike; ratios are medians of per-round ratios.
Weights rotate through copies beyond the last-level cache, as a decoder meets them. Times include
the Python call. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from bench_clock import Clock, Reader, quantile
from bench_gated_delta import bench_gated_delta, bench_replay, bench_snapshot
from bench_linear import bench_linear
from omni_kernels import library
from omni_kernels.attention import Places, paged_attention
from torch.nn import functional

ATTENTION = {
    (14, 2, 64): ((1, 500), (1, 2000), (1, 8000), (64, 0), (512, 0), (64, 2000)),  # Qwen2.5-0.5B
    (8, 2, 256): ((1, 500), (1, 2000), (1, 8000), (1, 32000)),  # Qwen3.5-0.8B
}
"""Query heads, key heads, width: (new, computed) tokens of one sequence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the result."""

    kernel: str
    shape: str
    us_p50: float
    us_p95: float
    gb_per_s: float
    share_of_read: float
    times_torch_fp32: float


def summary(kernel: str, shape: str, nbytes: int, read_bytes: int, times: list[list[float]]) -> Row:
    """Make a line of [read, ours, torch] times."""
    reads, ours, torches = times
    shares = [(nbytes / own) / (read_bytes / read) for read, own in zip(reads, ours, strict=True)]
    ratios = [other / own for own, other in zip(ours, torches, strict=True)]
    row = Row(
        kernel=kernel,
        shape=shape,
        us_p50=round(statistics.median(ours) * 1e6, 1),
        us_p95=round(quantile(ours, 0.95) * 1e6, 1),
        gb_per_s=round(nbytes / statistics.median(ours) / 1e9, 1),
        share_of_read=round(statistics.median(shares), 3),
        times_torch_fp32=round(statistics.median(ratios), 2),
    )
    print(
        f"{kernel:10} {shape:28} {row.us_p50:10.1f} us  p95 {row.us_p95:10.1f}  "
        f"{row.gb_per_s:6.1f} GB/s  {row.share_of_read:6.1%} of read  "
        f"{row.times_torch_fp32:6.2f}x torch fp32",
        flush=True,
    )
    return row


def bench_attention(clock: Clock, reader: Reader, cold_bytes: int) -> list[Row]:
    page_tokens = 32
    rows = []
    shapes = [(*heads, *tokens) for heads, contexts in ATTENTION.items() for tokens in contexts]
    for heads, kv_heads, dim, new, computed in shapes:
        total = new + computed
        pages = -(-total // page_tokens)
        layers = 2 + cold_bytes // (2 * pages * page_tokens * kv_heads * dim * 4)
        kv = torch.randn(layers, 2, pages + 1, page_tokens, kv_heads, dim)
        q = torch.randn(new, heads, dim)
        times = clock.race(
            reader,
            paged(q, kv, new, computed, tuple(range(1, pages + 1))),
            contiguous(q, kv[:, :, 1:].flatten(2, 3)[:, :, :total], computed),
        )
        nbytes = 2 * total * kv_heads * dim * 4 + 2 * q.nbytes
        shape = f"{heads}/{kv_heads} x {dim} N={new} past={computed}"
        rows.append(summary("attention", shape, nbytes, reader.memory.nbytes, times))
    return rows


def paged(
    q: torch.Tensor, kv: torch.Tensor, new: int, computed: int, pages: tuple[int, ...]
) -> Callable[[int], torch.Tensor]:
    """Return our attention over ``kv`` [layers, 2, P, T, Hkv, D], places made once for all."""
    where = (0, new), (computed,), (pages,)
    places = Places.of(*where, rows=new, num_pages=kv.shape[2], page_tokens=kv.shape[3])
    return lambda i: paged_attention(q, kv[i % len(kv)], *where, places=places)


def contiguous(q: torch.Tensor, kv: torch.Tensor, computed: int) -> Callable[[int], torch.Tensor]:
    """Return torch's attention over ``kv`` [layers, 2, C, Hkv, D], gathered beforehand."""
    query = q.transpose(0, 1)[None].contiguous()
    past = kv.transpose(2, 3)[:, :, None].contiguous()  # [layers, 2, 1, Hkv, C, D]
    total = kv.shape[2]
    mask = torch.arange(total) <= torch.arange(computed, total)[:, None]
    return lambda i: functional.scaled_dot_product_attention(
        query, past[i % len(past), 0], past[i % len(past), 1], attn_mask=mask, enable_gqa=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.5, help="per shape and M")
    parser.add_argument("--cold-mb", type=int, default=192, help="size of the rotated copies")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="one thread and the time it ran, not what passed: for a machine others use",
    )
    parser.add_argument("--kernel", default="", choices=("linear", "attention", "gated-delta"))
    parser.add_argument("--only", default="", help="linear shapes whose name contains this")
    arguments = parser.parse_args()
    if arguments.cpu_time and arguments.threads > 1:
        parser.error("--cpu-time measures one thread")
    if arguments.threads or arguments.cpu_time:
        library.set_num_threads(arguments.threads or 1)
    if library.cpu() is None:
        parser.error("the compiled kernels are missing: nothing to measure")
    torch.set_num_threads(library.num_threads())
    chosen = "linear" if arguments.only else arguments.kernel
    timer = time.thread_time if arguments.cpu_time else time.perf_counter
    clock = Clock(arguments.rounds, arguments.seconds, timer)
    cold_bytes = arguments.cold_mb * 2**20
    reader = Reader(cold_bytes)
    with torch.inference_mode():
        rows: list[Any] = []
        if chosen in ("", "linear"):
            rows += bench_linear(clock, reader, cold_bytes, arguments.only)
        if chosen in ("", "attention"):
            rows += bench_attention(clock, reader, cold_bytes)
        if chosen in ("", "gated-delta"):
            rows += bench_gated_delta(clock, cold_bytes)
            rows += bench_replay(clock)
            rows += bench_snapshot(clock)
    read = statistics.median(clock.race(reader)[0])
    result = {
        "backend": library.backend(),
        "threads": library.num_threads(),
        "clock": timer.__name__,
        "cpu": cpu_name(),
        "torch": torch.__version__,
        "rounds": arguments.rounds,
        "cold_mb": arguments.cold_mb,
        "load_average": os.getloadavg()[0],
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "not set"),
        "read_gb_per_s": round(reader.memory.nbytes / read / 1e9, 1),
        "rows": [asdict(row) for row in rows],
    }
    text = json.dumps(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    print(text)


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if os.name == "posix" else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
