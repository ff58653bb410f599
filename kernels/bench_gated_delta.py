"""Measures the Gated DeltaNet: decoding, short prompts, replay and snapshots.

Ours is the whole of a layer between its projections: convolution, gates, rule, gated norm, and the
Python call. Against it run, in turn, torch.compile's CPU code for the same work (one token) and
ggml's operation for the rule alone. States rotate through copies beyond the last-level cache, as
when a model's weights pass between two tokens; "cached" means two copies only. No figure is printed
before the opponent has been found to compute the same.
"""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import bench_ggml
import numpy as np
import torch
from bench_clock import Clock, quantile
from omni_kernels import library, memory
from omni_kernels.gated_delta import GatedDelta, gated_delta_net, reference, replay
from torch.nn import functional

MODELS = {"0.8B/2B": (16, 16, 18), "4B/9B": (16, 32, 24)}
"""Name -> (key heads, value heads, layers); all heads are 128 wide."""
TOKENS = (1, 16, 64, 128)
CACHED_COPIES = 2
DIM = 128
REPLAYED_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaRow:
    """One line of the result; None: not measured."""

    kernel: str
    shape: str
    path: str
    us_p50: float
    us_p95: float
    times_inductor: float | None = None
    times_ggml: float | None = None
    share_of_memory: float | None = None
    """Time of plain traffic of the same bytes / ours: of one token, an in-place multiplication of
    the state; of a snapshot, the faster of torch's and NumPy's copy."""


def line(
    kernel: str,
    shape: str,
    ours: list[float],
    inductor: list[float] | None = None,
    ggml: list[float] | None = None,
    plain: list[float] | None = None,
) -> DeltaRow:
    """Make and print a line; ratios are medians of per-round ratios."""

    def ratio(other: list[float] | None) -> float | None:
        if other is None:
            return None
        rounds = zip(ours, other, strict=True)
        return round(statistics.median(them / us for us, them in rounds), 2)

    row = DeltaRow(
        kernel=kernel,
        shape=shape,
        path=library.backend(),
        us_p50=round(statistics.median(ours) * 1e6, 1),
        us_p95=round(quantile(ours, 0.95) * 1e6, 1),
        times_inductor=ratio(inductor),
        times_ggml=ratio(ggml),
        share_of_memory=ratio(plain),
    )
    ratios = (
        ("x inductor", row.times_inductor),
        ("x ggml", row.times_ggml),
        ("of memory", row.share_of_memory),
    )
    print(
        f"{kernel:12} {shape:22} {row.path:10} {row.us_p50:10.1f} us  p95 {row.us_p95:10.1f}  "
        + "  ".join(f"{value:6.2f} {name}" for name, value in ratios if value is not None),
        flush=True,
    )
    return row


def make_layer(heads: int, value_heads: int) -> GatedDelta:
    channels = (2 * heads + value_heads) * DIM
    return GatedDelta(
        num_key_heads=heads,
        num_value_heads=value_heads,
        key_dim=DIM,
        value_dim=DIM,
        conv_weight=torch.randn(channels, 4) * 0.5,
        a_log=torch.rand(value_heads),
        dt_bias=torch.randn(value_heads),
        norm=torch.ones(DIM),
        eps=1e-6,
    )


def bench_gated_delta(clock: Clock, cold_bytes: int) -> list[DeltaRow]:
    ggml = bench_ggml.load()
    if ggml is None:
        print("ggml's operation is not here: install the extra `bench`")
    rows = []
    for model, (heads, value_heads, _) in MODELS.items():
        op = make_layer(heads, value_heads)
        copies = 2 + cold_bytes // (value_heads * DIM * DIM * 4)
        recurrent = torch.randn(copies, *op.recurrent_shape) * 0.1
        conv = torch.randn(copies, *op.conv_shape)
        rows += race(
            clock,
            f"{model} T=1 cached",
            ggml,
            op,
            1,
            recurrent[:CACHED_COPIES],
            conv[:CACHED_COPIES],
        )
        for tokens in TOKENS:
            rows += race(clock, f"{model} T={tokens}", ggml, op, tokens, recurrent, conv)
    return rows


def race(
    clock: Clock,
    shape: str,
    ggml: ctypes.CDLL | None,
    op: GatedDelta,
    tokens: int,
    recurrent: torch.Tensor,
    conv: torch.Tensor,
) -> list[DeltaRow]:
    """Measure one shape on each path."""
    x = torch.randn(tokens, op.input_width)
    calls = {"ours": ours(x, op, recurrent, conv)}
    if tokens == 1:
        calls["inductor"] = compiled(x, op, recurrent, conv)
        calls["plain"] = lambda i: recurrent[i % len(recurrent)].mul_(1.0)
    rule = None
    if ggml is not None:
        sizes = (tokens, op.num_key_heads, op.num_value_heads, DIM)
        rule = bench_ggml.Rule(ggml, sizes, len(recurrent), library.num_threads())
        feed(rule, op, x, recurrent, conv)
        calls["ggml"] = rule.call()
    rows = []
    for path in paths():
        library.select(path)
        times = dict(zip(calls, clock.race(*calls.values()), strict=True))
        rows.append(line("gated delta", shape, **times))
    library.select("")
    if rule is not None:
        rule.close()
    return rows


def paths() -> tuple[str, ...]:
    """Return the best path, and AVX2 beside a better one: what ggml's wheel is compiled for."""
    library.select("")
    return ("", "avx2") if library.backend() == "avx512vnni" else ("",)


def ours(
    x: torch.Tensor, op: GatedDelta, recurrent: torch.Tensor, conv: torch.Tensor
) -> Callable[[int], object]:
    """Return a call on one slot after the other."""
    offsets = (0, len(x))
    return lambda i: gated_delta_net(
        x,
        op,
        recurrent=recurrent,
        conv=conv,
        slots=(i % len(recurrent),),
        cu_seqlens=offsets,
    )


def compiled(
    x: torch.Tensor, op: GatedDelta, recurrent: torch.Tensor, conv: torch.Tensor
) -> Callable[[int], object]:
    """Return torch.compile's code for one token, found equal to ours."""
    heads, value_heads = op.num_key_heads, op.num_value_heads
    keys, values, group = heads * DIM, value_heads * DIM, value_heads // heads
    taps, rate, dt_bias, norm, eps = op.taps, op.rate, op.dt_bias, op.norm, op.eps

    def step(row: torch.Tensor, state: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
        qkv, b, a, z = torch.split(row, [op.channels, value_heads, value_heads, values])
        inputs = torch.cat([window, qkv[None]])
        mixed = functional.silu((inputs * taps).sum(0))
        window.copy_(inputs[1:])
        q, k, v = torch.split(mixed, [keys, keys, values])
        q, k = q.view(heads, DIM), k.view(heads, DIM)
        q = q * torch.rsqrt(q.square().sum(1, keepdim=True) + 1e-6) * DIM**-0.5
        k = k * torch.rsqrt(k.square().sum(1, keepdim=True) + 1e-6)
        q, k = q.repeat_interleave(group, 0), k.repeat_interleave(group, 0)
        decay = torch.exp(-rate * functional.softplus(a + dt_bias))
        kept = state * decay[:, None, None]
        delta = torch.sigmoid(b)[:, None] * (v.view(-1, DIM) - (kept * k[:, None]).sum(2))
        new = kept + delta[:, :, None] * k[:, None]
        state.copy_(new)
        o = (new * q[:, None]).sum(2)
        scale = torch.rsqrt(o.square().mean(1, keepdim=True) + eps)
        gated: torch.Tensor = (o * scale * norm).flatten() * functional.silu(z)
        return gated

    fast = torch.compile(step, fullgraph=True, dynamic=False)
    state, window = recurrent[0].clone(), conv[0].clone()
    expected = reference.gated_delta_net(
        x, op, state[None].clone(), window[None].clone(), (0,), (0, 1)
    )
    torch.testing.assert_close(fast(x[0], state, window)[None], expected, atol=1e-4, rtol=1e-4)
    states, windows, row = recurrent.unbind(), conv.unbind(), x[0]
    return lambda i: fast(row, states[i % len(states)], windows[i % len(windows)])


def feed(
    rule: bench_ggml.Rule,
    op: GatedDelta,
    x: torch.Tensor,
    recurrent: torch.Tensor,
    conv: torch.Tensor,
) -> None:
    """Give ggml the same problem and compare the state it makes of the first copy with ours."""
    heads, value_heads = op.num_key_heads, op.num_value_heads
    # Our value head hv reads key head hv // group, ggml's hv % H.
    order = torch.arange(value_heads).view(heads, -1).t().flatten()
    inputs = torch.cat([conv[0], x[:, : op.channels]])
    window = inputs.unfold(0, op.conv_shape[0] + 1, 1)  # [T, C, W]
    mixed = functional.silu((window * op.conv_weight).sum(2))
    q, k, v = torch.split(mixed, [heads * DIM, heads * DIM, value_heads * DIM], dim=1)
    for to, values in ((rule.q, q), (rule.k, k)):
        head = values.reshape(len(x), heads, DIM)
        to.copy_(head * torch.rsqrt(head.square().sum(2, keepdim=True) + 1e-6))
    rule.v.copy_(v.reshape(len(x), value_heads, DIM)[:, order])
    b, a = x[:, op.channels : op.journal_width].chunk(2, dim=1)
    beta, g = reference.gates(op, b, a)
    rule.beta.copy_(beta[:, order, None])
    rule.g.copy_(g[:, order, None])
    for state in rule.states:
        state.copy_(recurrent[0][order])
    rule.call()(0)
    state, window = recurrent[0].clone(), conv[0].clone()
    replay(op, x[:, : op.journal_width].contiguous(), recurrent=state, conv=window)
    torch.testing.assert_close(rule.new_states[0], state[order], atol=1e-5, rtol=1e-4)


def bench_replay(clock: Clock) -> list[DeltaRow]:
    """Measure going back: all layers of a slot advance by journalled tokens."""
    rows = []
    for model, (heads, value_heads, layers) in MODELS.items():
        op = make_layer(heads, value_heads)
        recurrent = torch.randn(layers, *op.recurrent_shape) * 0.1
        conv = torch.randn(layers, *op.conv_shape)
        journal = torch.randn(layers, REPLAYED_TOKENS, op.journal_width)

        def back(
            _: int,
            op: GatedDelta = op,
            recurrent: torch.Tensor = recurrent,
            conv: torch.Tensor = conv,
            journal: torch.Tensor = journal,
        ) -> None:
            for row, state, window in zip(journal, recurrent, conv, strict=True):
                replay(op, row, recurrent=state, conv=window)

        for path in paths():
            library.select(path)
            shape = f"{model} {layers} x {REPLAYED_TOKENS}"
            rows.append(line("replay", shape, clock.race(back)[0]))
        library.select("")
    return rows


def bench_snapshot(clock: Clock) -> list[DeltaRow]:
    """Measure copying a slot, against the faster of torch's and NumPy's copy in each round."""
    rows = []
    for model, (_, value_heads, layers) in MODELS.items():
        slots = torch.zeros(8, layers, value_heads, DIM, DIM)
        arrays = slots.numpy()

        def pair(i: int) -> tuple[int, int]:
            return i % 8, (i + 3) % 8

        def own(i: int, slots: torch.Tensor = slots) -> object:
            source, target = pair(i)
            return memory.copy(slots[source], slots[target])

        def by_torch(i: int, slots: torch.Tensor = slots) -> object:
            source, target = pair(i)
            return slots[target].copy_(slots[source])

        def by_numpy(i: int, arrays: np.ndarray = arrays) -> None:
            source, target = pair(i)
            np.copyto(arrays[target], arrays[source])

        times = clock.race(own, by_torch, by_numpy)
        fastest = [min(others) for others in zip(times[1], times[2], strict=True)]
        rows.append(
            line("snapshot", f"{model} {slots[0].nbytes >> 20} MiB", times[0], plain=fastest)
        )
    return rows
