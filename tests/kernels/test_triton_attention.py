"""Paged attention for cards against its reference, in Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import interpreted  # noqa: F401
import pytest
import torch
from omni_kernels.attention import reference
from omni_kernels.attention.triton_paged import (
    CUT_TOKENS,
    PagedRows,
    num_counters,
    paged_attention,
)

PAGE_TOKENS = 16
SEGMENT = 256  # keys of a decoding segment; of a prefilling one 1024


class Case(NamedTuple):
    q: torch.Tensor
    gate: torch.Tensor
    kv: torch.Tensor
    rows: PagedRows

    def truth(self) -> torch.Tensor:
        table = self.rows.page_table.tolist()
        out = reference.paged_attention(
            self.q.double(),
            self.kv.double(),
            self.rows.cu_seqlens.tolist(),
            self.rows.num_computed.tolist(),
            table,
            self.q.shape[2] ** -0.5,
        )
        return out * torch.sigmoid(self.gate.double())

    def run(self) -> torch.Tensor:
        got = paged_attention(self.q, self.kv, self.rows, gate=self.gate)
        assert not self.rows.counters.any()
        return got


def ints(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def make(
    sequences: list[tuple[int, int]],
    heads: tuple[int, int] = (4, 2),
    dim: int = 16,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """Sequences of (computed, new) tokens on shuffled pages; unused memory holds NaN."""
    random = torch.Generator().manual_seed(len(sequences) + dim)
    totals = [computed + new for computed, new in sequences]
    needed = [-(-total // PAGE_TOKENS) for total in totals]
    ids = (torch.randperm(sum(needed), generator=random) + 1).tolist()
    table = torch.zeros(len(sequences), max(needed), dtype=torch.int32)
    kv = torch.full((2, sum(needed) + 1, PAGE_TOKENS, heads[1], dim), torch.nan)
    for b, total in enumerate(totals):
        pages = [ids.pop() for _ in range(needed[b])]
        table[b, : needed[b]] = ints(pages)
        for token in range(total):
            kv[:, pages[token // PAGE_TOKENS], token % PAGE_TOKENS] = torch.randn(
                2, heads[1], dim, generator=random
            )
    cu_seqlens = [0, *torch.tensor([new for _, new in sequences]).cumsum(0).tolist()]
    both = torch.randn(cu_seqlens[-1], heads[0], 2 * dim, generator=random).to(dtype)
    rows = PagedRows(
        cu_seqlens=ints(cu_seqlens),
        num_computed=ints([computed for computed, _ in sequences]),
        page_table=table,
        counters=torch.zeros(num_counters(len(sequences), *heads), dtype=torch.int32),
        max_new_tokens=max(new for _, new in sequences),
        max_tokens=max(totals),
    )
    return Case(both[:, :, :dim], both[:, :, dim:], kv.to(dtype), rows)


def error(got: torch.Tensor, truth: torch.Tensor) -> float:
    return ((got.double() - truth).norm() / truth.norm()).item()


@pytest.mark.parametrize(
    ("heads", "dtype"),
    [((4, 2), torch.float16), ((2, 2), torch.float32), ((7, 1), torch.float32)],
    ids=["2:1-fp16", "1:1-fp32", "7:1-fp32"],
)
@pytest.mark.parametrize(
    "sequences",
    [
        [(0, 1), (15, 1), (40, 1)],
        [(SEGMENT - 1, 1), (SEGMENT, 1), (2 * SEGMENT + 70, 1)],
        [(0, 40), (30, 33), (3, 1)],
        [(1020, 33), (1030, 1)],
        [(0, CUT_TOKENS + 1), (7, CUT_TOKENS)],
    ],
    ids=["decode", "segments", "mixed", "cut prefill", "prompt"],
)
def test_attention_equals_the_reference(
    sequences: list[tuple[int, int]], heads: tuple[int, int], dtype: torch.dtype
) -> None:
    case = make(sequences, heads, dtype=dtype)
    got = case.run()
    assert got.dtype == dtype
    assert error(got, case.truth()) < (2e-3 if dtype == torch.float16 else 2e-6)


@pytest.mark.parametrize("dim", [128, 256])
def test_the_widths_of_the_models_equal_the_reference(dim: int) -> None:
    case = make([(SEGMENT + 3, 1), (20, 2)], (4, 1), dim)
    assert error(case.run(), case.truth()) < 2e-6


def test_without_a_gate_nothing_is_gated() -> None:
    case = make([(20, 2)])
    got = paged_attention(case.q, case.kv, case.rows)
    assert error(got, case._replace(gate=torch.full_like(case.gate, 100)).truth()) < 2e-6


def test_neighbours_and_bounds_do_not_change_a_bit() -> None:
    case = make([(5, 1), (SEGMENT + 20, 1), (300, 2)])
    expected = case.run()
    for b, (first, last) in enumerate([(0, 1), (1, 2), (2, 4)]):
        rows = PagedRows(
            cu_seqlens=ints([0, last - first]),
            num_computed=case.rows.num_computed[b : b + 1],
            page_table=case.rows.page_table[b : b + 1],
            counters=case.rows.counters,
            max_new_tokens=2,
            max_tokens=1000,
        )
        alone = paged_attention(case.q[first:last], case.kv, rows, gate=case.gate[first:last])
        assert torch.equal(alone, expected[first:last])


def test_scores_far_apart_neither_overflow_nor_vanish() -> None:
    case = make([(SEGMENT + 60, 1), (20, 12)])
    loud = case._replace(q=case.q * 1000)
    assert error(loud.run(), loud.truth()) < 1e-4


def test_a_sequence_without_new_tokens_costs_nothing() -> None:
    case = make([(5, 1), (7, 0), (4, 2)])
    assert error(case.run(), case.truth()) < 2e-6


def test_what_does_not_fit_is_refused() -> None:
    case = make([(5, 1)])
    with pytest.raises(ValueError, match="no multiple"):
        paged_attention(case.q[:, :3], case.kv, case.rows)
    with pytest.raises(ValueError, match="power of 2"):
        paged_attention(case.q[:, :, :15], case.kv, case.rows)
    short = replace(case.rows, counters=case.rows.counters[:1])
    with pytest.raises(ValueError, match="counters are too few"):
        paged_attention(case.q, case.kv, short)
    with pytest.raises(ValueError, match="dense last"):
        paged_attention(case.q, case.kv, case.rows, gate=case.gate[:, :, :8])


def test_the_operator_tells_torch_what_it_changes() -> None:
    case, rows = make([(5, 1), (7, 2)]), make([(5, 1), (7, 2)]).rows
    torch.library.opcheck(
        torch.ops.omni.paged_attention.default,
        (case.q, case.gate, torch.nan_to_num(case.kv), rows.cu_seqlens, rows.num_computed,
         rows.page_table, rows.counters, rows.max_new_tokens, rows.max_tokens, 0.25),
    )  # fmt: skip
