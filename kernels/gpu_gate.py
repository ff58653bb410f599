"""The gate before any GPU figure: every operator against its reference in fp64, on this very card.

Used by ``bench_gpu.py``, which also builds its cases from here. Equal bits are demanded where they
are promised: decoding, prefilling and replaying leave one state; copies are copies; attention says
the same each time. ``DEVICE`` is the card; the tests run this file in Triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from omni_kernels.attention import reference as attention_reference
from omni_kernels.attention import triton_reference as rotate_reference
from omni_kernels.attention.triton_paged import PagedRows, num_counters, paged_attention
from omni_kernels.attention.triton_rotate import norm_rotate_store
from omni_kernels.gated_delta import GatedDelta, triton_ops
from omni_kernels.gated_delta import reference as delta_reference
from omni_kernels.gated_delta.triton_state import DeltaRows, DeltaState, DeltaWeights, ReplayRows
from omni_kernels.linear import triton_reference as linear_reference
from omni_kernels.linear.triton_layout import CardWeight
from omni_kernels.linear.triton_linear import linear
from omni_kernels.state.triton_copy import copy_pages, copy_slots

DEVICE = "cuda"

Check = tuple[str, bool]


def ints(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, device=DEVICE).to(dtype)


def error(got: torch.Tensor, truth: torch.Tensor) -> float:
    return float((got.cpu().double() - truth).norm() / truth.norm())


def delta_case(
    heads: tuple[int, int], dtype: torch.dtype, width: int = 128
) -> tuple[GatedDelta, DeltaWeights, DeltaState]:
    """One layer's reference weights, its card's weights, and a state of four slots."""
    channels = (2 * heads[0] + heads[1]) * width
    op = GatedDelta(
        num_key_heads=heads[0],
        num_value_heads=heads[1],
        key_dim=width,
        value_dim=width,
        conv_weight=torch.randn(channels, 4) / 2,
        a_log=torch.randn(heads[1]),
        dt_bias=torch.randn(heads[1]),
        norm=1 + torch.randn(width) / 10,
        eps=1e-6,
    )
    weights = DeltaWeights(
        taps=op.taps.to(DEVICE),
        a_log=op.a_log.to(DEVICE),
        dt_bias=op.dt_bias.to(DEVICE),
        norm=op.norm.to(DEVICE),
        eps=op.eps,
    )
    state = DeltaState(
        recurrent=normal(4, 1, heads[1], width, width),
        conv=normal(4, 1, 3, channels, dtype=dtype),
        journal=torch.zeros(4, 1, 256, op.journal_width, dtype=dtype, device=DEVICE),
    )
    return op, weights, state


def check_delta(
    heads: tuple[int, int], dtype: torch.dtype, *, width: int = 128, tokens: int = 70
) -> Iterator[Check]:
    """Tokens against the reference; decode = prefill = replay in bits; chunks close."""
    name = f"delta {heads} {dtype}"
    op, weights, state = delta_case(heads, dtype, width)
    x = normal(tokens, op.input_width, dtype=dtype)
    counters = torch.zeros(64, dtype=torch.int32, device=DEVICE)

    def layer(of: DeltaState) -> DeltaState:
        assert of.journal is not None
        return DeltaState(
            recurrent=of.recurrent[:, 0], conv=of.conv[:, 0], journal=of.journal[:, 0]
        )

    def copy() -> DeltaState:
        assert state.journal is not None
        return DeltaState(
            recurrent=state.recurrent.clone(),
            conv=state.conv.clone(),
            journal=state.journal.clone(),
        )

    def rows(count: int, start: int) -> DeltaRows:
        return DeltaRows(
            slots=ints([2]),
            cu_seqlens=ints([0, count]),
            counters=counters,
            journal_starts=ints([start]),
        )

    recurrent, conv = state.recurrent[:, 0].cpu().double(), state.conv[:, 0].cpu().double()
    truth = delta_reference.gated_delta_net(x.cpu().double(), op, recurrent, conv, [2], [0, tokens])
    bound = 2e-5 if dtype == torch.float32 else 4e-3
    decoded, prefilled, replayed, chunked = copy(), copy(), copy(), copy()
    one_by_one = torch.cat(
        [
            triton_ops.decode(x[t : t + 1], weights, layer(decoded), rows(1, t))
            for t in range(tokens)
        ]
    )
    at_once = triton_ops.prefill(x, weights, layer(prefilled), rows(tokens, 0))
    yield f"{name}: decode is the reference", error(one_by_one, truth) < bound
    yield f"{name}: its state too", error(decoded.recurrent[2, 0], recurrent[2]) < 2e-5
    yield f"{name}: prefill has the outputs of decode, in bits", torch.equal(one_by_one, at_once)
    yield f"{name}: and its state", torch.equal(decoded.recurrent, prefilled.recurrent)
    yield f"{name}: and its window", torch.equal(decoded.conv, prefilled.conv)
    assert decoded.journal is not None
    assert prefilled.journal is not None
    yield f"{name}: and its journal", torch.equal(decoded.journal, prefilled.journal)
    stacked = DeltaWeights(
        taps=weights.taps[None],
        a_log=weights.a_log[None],
        dt_bias=weights.dt_bias[None],
        norm=weights.norm,
        eps=weights.eps,
    )
    source = DeltaState(recurrent=replayed.recurrent, conv=replayed.conv, journal=decoded.journal)
    which = ReplayRows(
        slots=ints([2]),
        journal_slots=ints([2]),
        firsts=ints([0]),
        lasts=ints([tokens]),
        counters=counters,
    )
    triton_ops.replay(stacked, source, which)
    yield (
        f"{name}: replay has the state of decode",
        torch.equal(replayed.recurrent, decoded.recurrent),
    )
    yield f"{name}: and its window", torch.equal(replayed.conv, decoded.conv)
    long = triton_ops.prefill_long(
        x, weights, layer(chunked), rows(tokens, 0), max_new_tokens=tokens
    )
    yield f"{name}: chunks are close", error(long, truth) < 1e-2
    yield f"{name}: and their state", error(chunked.recurrent[2, 0], recurrent[2]) < 3e-3
    yield f"{name}: all counters are zero again", not bool(counters.any())


def paged(
    heads: tuple[int, int], dim: int, sequences: list[tuple[int, int]], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, PagedRows]:
    """q, gate, pages and rows of sequences (computed, new)."""
    totals = [computed + new for computed, new in sequences]
    width = -(-max(totals) // 64)
    pages = torch.randperm(len(sequences) * width, device=DEVICE).to(torch.int32) + 1
    cu_seqlens = [0, *torch.tensor([new for _, new in sequences]).cumsum(0).tolist()]
    rows = PagedRows(
        cu_seqlens=ints(cu_seqlens),
        num_computed=ints([computed for computed, _ in sequences]),
        page_table=pages.view(len(sequences), width),
        counters=torch.zeros(
            num_counters(len(sequences), *heads), dtype=torch.int32, device=DEVICE
        ),
        max_new_tokens=max(new for _, new in sequences),
        max_tokens=max(totals),
    )
    both = normal(cu_seqlens[-1], heads[0], 2 * dim, dtype=dtype)
    kv = normal(2, len(pages) + 1, 64, heads[1], dim, dtype=dtype)
    return both[:, :, :dim], both[:, :, dim:], kv, rows


MIXES = {
    "decode": [(5, 1), (255, 1), (3000, 1)],
    "mixed": [(0, 300), (2000, 40), (70, 1)],
}


def check_attention(
    dim: int,
    heads: tuple[int, int],
    dtype: torch.dtype = torch.bfloat16,
    mixes: dict[str, list[tuple[int, int]]] = MIXES,
    repeats: int = 20,
) -> Iterator[Check]:
    """Against the reference, and the same bits each time: the merge waits for every segment."""
    for case, sequences in mixes.items():
        q, gate, kv, rows = paged(heads, dim, sequences, dtype)
        truth = attention_reference.paged_attention(
            q.cpu().double(),
            kv.cpu().double(),
            rows.cu_seqlens.tolist(),
            rows.num_computed.tolist(),
            rows.page_table.tolist(),
            dim**-0.5,
        ) * torch.sigmoid(gate.cpu().double())
        got = paged_attention(q, kv, rows, gate=gate)
        yield f"attention {dim} {case}", error(got, truth) < 1e-2
        again = all(
            torch.equal(got, paged_attention(q, kv, rows, gate=gate)) for _ in range(repeats)
        )
        yield f"attention {dim} {case}: the same bits each time", again
        yield f"attention {dim} {case}: counters are zero again", not bool(rows.counters.any())


def card_weight(n: int, k: int, bits: int) -> CardWeight:
    """A weight of random codes and scales."""
    dtype = torch.int8 if bits == 8 else torch.uint8
    low, high = (-127, 128) if bits == 8 else (0, 256)
    codes = torch.randint(low, high, (n, k * bits // 8), dtype=dtype, device=DEVICE)
    scales = (torch.rand(n, k // 32, device=DEVICE) / 100).half()
    return CardWeight(codes, scales, 8 if bits == 8 else 4)


def check_linear(
    bits: int,
    counts: tuple[int, ...] = (1, 4, 5, 16, 30, 100),
    n: int = 1000,
    k: int = 2048,
    low: torch.dtype = torch.bfloat16,
) -> Iterator[Check]:
    """Both kernels and every tile, both prologues, against the reference."""
    weight = card_weight(n, k, bits)
    host = CardWeight(weight.codes.cpu(), weight.scales.cpu(), weight.bits)
    for rows in counts:
        for dtype, bound in ((torch.float32, 1e-5), (low, 6e-3)):
            x, added = normal(rows, k, dtype=dtype), normal(rows, n, dtype=dtype)
            norm = normal(k)
            got = linear(x, weight, norm=norm, eps=1e-6, addend=added)
            truth = linear_reference.linear(
                x.cpu().double(), host, norm=norm.cpu(), eps=1e-6, addend=added.cpu().double()
            )
            yield f"linear {bits} bits, {rows} rows, norm, {dtype}", error(got, truth) < bound
            both = normal(rows, 2 * k, dtype=dtype)
            got = linear(both, weight, is_gated=True)
            truth = linear_reference.linear(both.cpu().double(), host, is_gated=True)
            yield f"linear {bits} bits, {rows} rows, gate, {dtype}", error(got, truth) < bound


def check_copies(dtype: torch.dtype = torch.bfloat16) -> Iterator[Check]:
    """Slots and pages: these bits, and no others."""
    pool = normal(5, 3, 2, 128, 128), normal(5, 3, 3, 768, dtype=dtype)
    kept = torch.zeros_like(pool[0]), torch.zeros_like(pool[1])
    copy_slots(*pool, *kept, ints([3, -1, 4]), ints([2, 1, 0]))
    yield "a slot is copied", all(map(torch.equal, (a[3] for a in pool), (b[2] for b in kept)))
    yield "and no other", not any(bool(b[[0, 1, 3, 4]].any()) for b in kept)
    kv = normal(6, 2, 9, 64, 2, 128, dtype=dtype)
    before = kv.clone()
    copy_pages(kv, ints([3]), ints([5]))
    before[:, :, 5] = before[:, :, 3]
    yield "pages are copied in all layers", torch.equal(kv, before)


def check_rotate() -> Iterator[Check]:
    """Norms, rotary positions and pages against the reference."""
    q, k, v = normal(7, 8, 256), normal(7, 2, 256), normal(7, 2, 256)
    kv, norms, angles = normal(2, 3, 64, 2, 256) * 0, (normal(256), normal(256)), normal(7, 32)
    places = torch.tensor([3, 70, -1, 5, 6, 7, 8], device=DEVICE)
    got = norm_rotate_store(q, k, v, kv, norms, 1e-6, angles.cos(), angles.sin(), places)
    host = torch.zeros(kv.shape, dtype=torch.float64)
    truth = rotate_reference.norm_rotate_store(
        q.cpu().double(),
        k.cpu().double(),
        v.cpu().double(),
        host,
        (norms[0].cpu().double(), norms[1].cpu().double()),
        1e-6,
        angles.cos().cpu().double(),
        angles.sin().cpu().double(),
        places.cpu(),
    )
    yield "norm, rotate, store", max(error(got, truth), error(kv, host)) < 1e-5


def all_checks() -> Iterator[Check]:
    """Every check at the sizes of the models."""
    for heads in ((2, 2), (2, 4), (1, 3)):
        for dtype in (torch.float32, torch.bfloat16):
            yield from check_delta(heads, dtype)
    yield from check_attention(256, (8, 2))
    yield from check_attention(128, (14, 2))
    yield from check_linear(8)
    yield from check_linear(4)
    yield from check_copies()
    yield from check_rotate()


def gate() -> bool:
    """Run every check; print what failed and return whether none did."""
    torch.manual_seed(0)
    results = list(all_checks())
    for name, is_right in results:
        if not is_right:
            print(f"FAILED  {name}")
    print(f"gate: {sum(right for _, right in results)} of {len(results)} checks passed")
    return all(right for _, right in results)
