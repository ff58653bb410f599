"""The times of ``bench_gpu.py``: cases of the models' sizes, captured in graphs, on cold memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import gpu_gate
import torch
from gpu_gate import card_weight, delta_case, ints, normal, paged
from gpu_models import MODELS
from omni_kernels.attention.triton_paged import PagedRows, paged_attention
from omni_kernels.gated_delta import triton_ops
from omni_kernels.gated_delta.triton_state import DeltaRows, DeltaState, DeltaWeights, ReplayRows
from omni_kernels.linear.triton_layout import CardWeight
from omni_kernels.linear.triton_linear import linear
from omni_kernels.state.triton_copy import fork_slots
from omni_kernels.triton_graph import capture_cuda

Call = Callable[[int], object]  # call(i) uses copy i of its memory
Paged = tuple[torch.Tensor, torch.Tensor, torch.Tensor, PagedRows]
COLD_BYTES = 512 << 20  # a multiple of every card's last-level cache
MAX_COPIES = 256
DTYPE = torch.bfloat16
REPEATS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the result."""

    kernel: str
    case: str
    us_p50: float
    us_p95: float
    gb_per_s: float
    share_of_copy: float


def times_us(call: Call, copies: int) -> list[float]:
    """Microseconds per call of a graph of ``copies`` calls, REPEATS times."""

    def all_copies() -> torch.Tensor:
        for i in range(copies):
            call(i)
        return torch.empty(0)

    replay, _ = capture_cuda(all_copies)
    replay()
    found = []
    for _ in range(REPEATS):
        begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        begin.record()
        replay()
        end.record()
        torch.cuda.synchronize()
        found.append(begin.elapsed_time(end) * 1000 / copies)
    return found


def copies_for(nbytes: int) -> int:
    return min(MAX_COPIES, max(2, -(-COLD_BYTES // nbytes)))


def copy_bandwidth() -> float:
    """Bytes per second that copying moves, reads and writes together."""
    source = torch.empty(COLD_BYTES, dtype=torch.uint8, device=gpu_gate.DEVICE)
    target = torch.empty_like(source)
    microseconds = statistics.median(times_us(lambda _: target.copy_(source), 2))
    return 2 * source.nbytes / microseconds * 1e6


class Report:
    """Times cases against one bandwidth and keeps their rows."""

    def __init__(self, bandwidth: float) -> None:
        self.bandwidth = bandwidth
        self.rows: list[Row] = []

    def add(self, kernel: str, case: str, nbytes: int, call: Call, copies: int) -> None:
        """Time ``call``, which must move ``nbytes``, on ``copies`` memories in turn."""
        found = sorted(times_us(call, copies))
        p50 = statistics.median(found)
        per_second = nbytes / p50 * 1e6
        row = Row(
            kernel=kernel,
            case=case,
            us_p50=round(p50, 2),
            us_p95=round(found[int(0.95 * len(found))], 2),
            gb_per_s=round(per_second / 1e9, 1),
            share_of_copy=round(per_second / self.bandwidth, 3),
        )
        self.rows.append(row)
        print(
            f"{kernel:10} {case:36} {row.us_p50:9.2f} us  p95 {row.us_p95:9.2f}  "
            f"{row.gb_per_s:7.1f} GB/s  {row.share_of_copy:6.1%} of copy",
            flush=True,
        )


def time_delta(report: Report, name: str, heads: tuple[int, int], layers: int) -> None:
    """Decode, short prefill, long prefill and replay of one layer (replay: of all)."""
    op, weights, _ = delta_case(heads, DTYPE)
    per_state = heads[1] * 128 * 128 * 4
    num_slots = 1 + max(33, -(-COLD_BYTES // (per_state * layers)))
    recurrent = normal(num_slots, layers, heads[1], 128, 128) / 10
    conv = normal(num_slots, layers, 3, op.channels, dtype=DTYPE)
    journal = torch.zeros(
        num_slots, layers, 128, op.journal_width, dtype=DTYPE, device=gpu_gate.DEVICE
    )
    counters = torch.zeros(layers * 64 * heads[0], dtype=torch.int32, device=gpu_gate.DEVICE)

    def layer(i: int) -> DeltaState:
        i %= layers
        return DeltaState(recurrent=recurrent[:, i], conv=conv[:, i], journal=journal[:, i])

    def time(case: str, batch: int, tokens: int, how: str) -> None:
        groups = (num_slots - 1) // batch
        slots = [ints(list(range(1 + g * batch, 1 + (g + 1) * batch))) for g in range(groups)]
        x = normal(batch * tokens, op.input_width, dtype=DTYPE)
        cu_seqlens = ints(list(range(0, batch * tokens + 1, tokens)))
        starts = ints([0] * batch) if how != "long" else None

        def call(i: int) -> None:
            rows = DeltaRows(
                slots=slots[i // layers % groups],
                cu_seqlens=cu_seqlens,
                counters=counters,
                journal_starts=starts,
            )
            if how == "decode":
                triton_ops.decode(x, weights, layer(i), rows)
            elif how == "prefill":
                triton_ops.prefill(x, weights, layer(i), rows)
            else:
                triton_ops.prefill_long(x, weights, layer(i), rows, max_new_tokens=tokens)

        nbytes = batch * 2 * (per_state + conv[0, 0].nbytes) + x.nbytes
        nbytes += batch * tokens * 2 * (heads[1] * 128 + op.journal_width)
        copies = min(copies_for(nbytes), groups * layers)
        report.add(f"delta {name}", case, nbytes, call, copies)

    for batch in (1, 4, 32):
        time(f"decode, {batch} sequences", batch, 1, "decode")
    for tokens in (10, 32, 64, 128):
        time(f"prefill, {tokens} tokens", 1, tokens, "prefill")
    for tokens in (64, 128, 1024):
        time(f"long prefill, {tokens} tokens", 1, tokens, "long")

    stacked = DeltaWeights(
        taps=weights.taps.expand(layers, -1, -1).contiguous(),
        a_log=weights.a_log.expand(layers, -1).contiguous(),
        dt_bias=weights.dt_bias.expand(layers, -1).contiguous(),
        norm=weights.norm,
        eps=weights.eps,
    )
    everything = DeltaState(recurrent=recurrent, conv=conv, journal=journal)
    one = [ints([slot]) for slot in range(num_slots)]
    for tokens in (16, 64):
        first, last = ints([0]), ints([tokens])

        def fold(i: int, first: torch.Tensor = first, last: torch.Tensor = last) -> None:
            slot = one[1 + i % (num_slots - 1)]
            rows = ReplayRows(
                slots=slot, journal_slots=slot, firsts=first, lasts=last, counters=counters
            )
            triton_ops.replay(stacked, everything, rows)

        nbytes = layers * (2 * per_state + tokens * op.journal_width * 2)
        report.add(f"delta {name}", f"replay, {tokens} tokens, all layers", nbytes, fold, 16)


def time_copies(report: Report, name: str, heads: tuple[int, int], layers: int) -> None:
    """A fork: one slot of all layers."""
    channels = 2 * heads[0] * 128 + heads[1] * 128
    slot_bytes = layers * (heads[1] * 128 * 128 * 4 + 3 * channels * 2)
    num_slots = 2 * copies_for(2 * slot_bytes) + 2
    recurrent = torch.zeros(num_slots, layers, heads[1], 128, 128, device=gpu_gate.DEVICE)
    conv = torch.zeros(num_slots, layers, 3, channels, dtype=DTYPE, device=gpu_gate.DEVICE)
    pairs = [(ints([1 + 2 * i]), ints([2 + 2 * i])) for i in range((num_slots - 1) // 2)]

    def call(i: int) -> None:
        fork_slots(recurrent, conv, *pairs[i % len(pairs)])

    report.add(f"state {name}", "copy of one slot, all layers", 2 * slot_bytes, call, len(pairs))


def time_attention(report: Report, name: str, heads: tuple[int, int], dim: int) -> None:
    """Decoding and prefilling over one layer's pages."""
    for batch, computed, new in (
        (1, 1023, 1),
        (1, 4095, 1),
        (1, 32767, 1),
        (32, 4095, 1),
        (1, 4096, 64),
        (1, 0, 2048),
    ):
        nbytes = batch * (computed + new) * 2 * heads[1] * dim * 2
        nbytes += batch * new * heads[0] * dim * 2 * 3
        sequences = [(computed, new)] * batch
        cases = [paged(heads, dim, sequences, DTYPE) for _ in range(copies_for(nbytes))]

        def call(i: int, cases: list[Paged] = cases) -> None:
            q, gate, kv, rows = cases[i % len(cases)]
            paged_attention(q, kv, rows, gate=gate)

        case = f"{batch} x {new} new, {computed} before"
        report.add(f"attn {name}", case, nbytes, call, len(cases))


def time_linear(report: Report, name: str, hidden: int, intermediate: int) -> None:
    """The two products of a feed-forward layer with what is fused to them."""
    for bits in (8, 4):
        for rows in (1, 4, 8, 32):
            for n, k, is_gated in (
                (2 * intermediate, hidden, False),
                (hidden, intermediate, True),
            ):
                x = normal(rows, 2 * k if is_gated else k, dtype=DTYPE)
                norm = None if is_gated else normal(k)
                residual = normal(rows, n, dtype=DTYPE) if is_gated else None
                nbytes = n * k * bits // 8 + n * k // 16 + x.nbytes + 2 * rows * n
                weights = [card_weight(n, k, bits) for _ in range(copies_for(nbytes))]

                def call(
                    i: int,
                    weights: list[CardWeight] = weights,
                    x: torch.Tensor = x,
                    norm: torch.Tensor | None = norm,
                    residual: torch.Tensor | None = residual,
                ) -> None:
                    linear(
                        x,
                        weights[i % len(weights)],
                        norm=norm,
                        eps=1e-6,
                        is_gated=norm is None,
                        addend=residual,
                    )

                what = "gate+down+residual" if is_gated else "norm+gate_up"
                case = f"{what}, {bits} bits, {rows} rows"
                report.add(f"linear {name}", case, nbytes, call, len(weights))


def measure(models: Iterable[str]) -> Report:
    """Time every case of ``models``, printing as it goes."""
    report = Report(copy_bandwidth())
    print(f"copies at {report.bandwidth / 1e9:.0f} GB/s")
    for name in models:
        model = MODELS[name]
        time_delta(report, name, model.delta_heads, model.recurrent_layers)
        time_copies(report, name, model.delta_heads, model.recurrent_layers)
        time_attention(report, name, model.heads, model.head_dim)
        time_linear(report, name, model.hidden, model.intermediate)
    return report
