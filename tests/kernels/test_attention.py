"""Paged attention against its reference, on every path, and its promises."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from omni_kernels import library
from omni_kernels.attention import Places, paged_attention, reference


class Case(NamedTuple):
    q: torch.Tensor
    kv: torch.Tensor
    cu_seqlens: tuple[int, ...]
    num_computed: tuple[int, ...]
    page_table: tuple[tuple[int, ...], ...]


def make(
    sequences: list[tuple[int, int]],
    heads: tuple[int, int] = (6, 2),
    dim: int = 32,
    page_tokens: int = 16,
) -> Case:
    """Build sequences of (computed, new) tokens on shuffled pages; unused memory holds NaN."""
    generator = torch.Generator().manual_seed(len(sequences) + dim)
    needed = [-(-(computed + new) // page_tokens) for computed, new in sequences]
    ids = (torch.randperm(sum(needed), generator=generator) + 1).tolist()
    table = tuple(tuple(ids[sum(needed[:b]) : sum(needed[: b + 1])]) for b in range(len(sequences)))
    kv = torch.full((2, sum(needed) + 1, page_tokens, heads[1], dim), torch.nan)
    for (computed, new), pages in zip(sequences, table, strict=True):
        for token in range(computed + new):
            kv[:, pages[token // page_tokens], token % page_tokens] = torch.randn(
                2, heads[1], dim, generator=generator
            )
    cu_seqlens = [0]
    for _, new in sequences:
        cu_seqlens.append(cu_seqlens[-1] + new)
    q = 2 * torch.randn(cu_seqlens[-1], heads[0], dim, generator=generator)
    return Case(q, kv, tuple(cu_seqlens), tuple(c for c, _ in sequences), table)


def error(got: torch.Tensor, case: Case, scale: float) -> float:
    truth = reference.paged_attention(case.q.double(), case.kv.double(), *case[2:], scale)
    return ((got.double() - truth).norm() / truth.norm()).item()


@pytest.mark.parametrize(
    "sequences",
    [[(0, 1)], [(0, 40)], [(63, 1), (64, 1), (10, 70), (0, 5)], [(511, 3), (530, 1)]],
    ids=["first", "prompt", "ragged", "segments"],
)
@pytest.mark.parametrize("dim", [6, 8, 64, 80])
def test_attention_equals_the_reference(
    path: str, sequences: list[tuple[int, int]], dim: int
) -> None:
    for heads in ((6, 2), (3, 3), (7, 1)):
        case = make(sequences, heads, dim)
        assert error(paged_attention(*case), case, dim**-0.5) < 2e-6
    assert error(paged_attention(*case, scale=0.5), case, 0.5) < 2e-6


def test_page_size_may_be_any(path: str) -> None:
    for page_tokens in (1, 7, 64, 100):
        case = make([(70, 30), (5, 1)], page_tokens=page_tokens)
        assert error(paged_attention(*case), case, 32**-0.5) < 2e-6


@pytest.mark.parametrize(
    ("heads", "dim"), [((4, 2), 16), ((14, 2), 64), ((8, 2), 256), ((3, 3), 80)]
)
def test_any_cut_into_chunks_gives_the_same_bits(
    path: str, heads: tuple[int, int], dim: int
) -> None:
    if path == "torch":
        pytest.skip("the torch path promises closeness only")
    whole = make([(0, 600)], heads, dim)
    expected = paged_attention(*whole)
    for chunk in (1, 2, 3, 7, 37, 64, 511):
        edges = (0, 63, 64, 253, 255, 256, 510, 511, 512, 599)
        starts = range(0, 600, chunk) if chunk > 7 else edges
        for first in starts:
            last = min(first + chunk, 600)
            got = paged_attention(
                whole.q[first:last], whole.kv, (0, last - first), (first,), whole.page_table
            )
            assert torch.equal(got, expected[first:last])


def test_neighbours_and_threads_do_not_change_a_bit(path: str) -> None:
    if path == "torch":
        pytest.skip("the torch path promises closeness only")
    case = make([(1200, 2), (3, 40), (0, 100), (700, 1)], (4, 2), 64)
    expected = paged_attention(*case)
    for threads in (1, 2, 5):
        library.set_num_threads(threads)
        assert torch.equal(paged_attention(*case), expected)
        for b, computed in enumerate(case.num_computed):
            rows = slice(case.cu_seqlens[b], case.cu_seqlens[b + 1])
            q = case.q[rows]
            alone = paged_attention(q, case.kv, (0, len(q)), (computed,), (case.page_table[b],))
            assert torch.equal(alone, expected[rows])


def test_scores_far_apart_neither_overflow_nor_vanish(path: str) -> None:
    case = make([(130, 2)])
    loud = case._replace(q=case.q * 1000)
    assert error(paged_attention(*loud), loud, 32**-0.5) < 1e-4
    equal = case._replace(q=torch.zeros_like(case.q))
    assert error(paged_attention(*equal), equal, 32**-0.5) < 2e-6


def test_a_query_that_is_not_finite_stays_its_own_trouble(path: str) -> None:
    case = make([(20, 3)])
    clean = paged_attention(*case)
    case.q[1, 2, 5] = torch.nan
    got = paged_attention(*case)
    assert got[1, 2].isnan().all()
    assert torch.equal(got[[0, 2]], clean[[0, 2]])
    assert torch.equal(got[1, [0, 1, 3, 4, 5]], clean[1, [0, 1, 3, 4, 5]])


def test_out_is_written_in_place(path: str) -> None:
    case = make([(20, 3)])
    out = torch.full_like(case.q, torch.nan)
    assert paged_attention(*case, out=out) is out
    assert torch.equal(out, paged_attention(*case))
    empty = paged_attention(case.q[:0], case.kv, (0,), (), ())
    assert empty.shape == (0, 6, 32)


def test_places_made_once_serve_every_layer_of_their_shape(path: str) -> None:
    case = make([(20, 3), (70, 1)])
    places = Places.of(*case[2:], rows=4, num_pages=case.kv.shape[1], page_tokens=16)
    assert torch.equal(paged_attention(*case, places=places), paged_attention(*case))
    with pytest.raises(ValueError, match="places are of 4 rows"):
        paged_attention(case.q, case.kv[:, :-1].contiguous(), *case[2:], places=places)


def test_wrong_input_is_refused_with_the_expectation(path: str) -> None:
    q, kv, cu_seqlens, num_computed, table = make([(20, 3)])
    with pytest.raises(ValueError, match="cannot hold 41 tokens"):
        paged_attention(q, kv, cu_seqlens, (38,), table)
    with pytest.raises(ValueError, match="page ids run from"):
        paged_attention(q, kv, cu_seqlens, num_computed, ((1, 99),))
    with pytest.raises(ValueError, match="from 0 to 3"):
        paged_attention(q, kv, (0, 2), num_computed, table)
    with pytest.raises(ValueError, match="sequences"):
        paged_attention(q, kv, cu_seqlens, (20, 4), table)
    with pytest.raises(ValueError, match="no multiple"):
        paged_attention(q[:, :5].contiguous(), kv, cu_seqlens, num_computed, table)
    with pytest.raises(ValueError, match="kv: expected float32"):
        paged_attention(q, kv.half(), cu_seqlens, num_computed, table)
