"""One token per row: greedy and seeded, never depending on other rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from omni.engine.sampler import SampleRow, SamplingParams, _index_at, mass, sample
from omni.errors import InputError


def draw(
    logits: torch.Tensor, params: SamplingParams, num_draws: int, *, tokens: tuple[int, ...] = ()
) -> list[int]:
    """Tokens drawn at ``num_draws`` successive positions from the same logits [V]."""
    drawn = []
    for position in range(num_draws):
        row = SampleRow(params, [-1] * position + list(tokens))
        [token] = sample(logits[None], [row])
        assert token is not None
        drawn.append(token)
    return drawn


def frequencies(drawn: list[int], vocab_size: int) -> torch.Tensor:
    return torch.bincount(torch.tensor(drawn), minlength=vocab_size) / len(drawn)


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 3.0], [2.0, 2.0, 2.0, 2.0]])
    row = SampleRow(SamplingParams(), [])
    assert sample(logits, [row, row]) == [1, 0]


def test_temperature_gives_the_softmax_of_the_scaled_logits() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5])
    for temperature in (0.7, 1.5):
        drawn = draw(logits, SamplingParams(temperature=temperature), 4000)
        expected = (logits / temperature).softmax(-1)
        # Five standard deviations of a frequency over 4000 draws are at most 0.04.
        assert (frequencies(drawn, 5) - expected).abs().max() < 0.04


def test_top_k_keeps_the_likeliest_and_their_proportions() -> None:
    logits = torch.tensor([1.0, 3.0, 2.5, -4.0, 2.0])
    drawn = draw(logits, SamplingParams(temperature=1.0, top_k=2), 3000)
    expected = torch.zeros(5)
    expected[[1, 2]] = logits[[1, 2]].softmax(-1)
    assert (frequencies(drawn, 5) - expected).abs().max() < 0.05
    assert set(drawn) == {1, 2}


def test_top_p_keeps_the_smallest_set_that_is_enough() -> None:
    logits = torch.tensor([0.05, 0.5, 0.15, 0.3]).log()
    assert set(draw(logits, SamplingParams(temperature=1.0, top_p=0.5), 200)) == {1}
    assert set(draw(logits, SamplingParams(temperature=1.0, top_p=0.51), 400)) == {1, 3}
    assert set(draw(logits, SamplingParams(temperature=1.0, top_p=0.81), 400)) == {1, 2, 3}
    assert set(draw(logits, SamplingParams(temperature=1.0, top_p=1e-9), 50)) == {1}


def test_top_p_applies_to_what_top_k_left() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    # Of the two likeliest the first has 4/7: enough for 0.5, not for 0.6.
    assert set(draw(logits, SamplingParams(temperature=1.0, top_k=2, top_p=0.5), 100)) == {0}
    assert set(draw(logits, SamplingParams(temperature=1.0, top_k=2, top_p=0.6), 100)) == {0, 1}


def test_top_p_of_a_flat_large_vocabulary_looks_past_the_first_candidates() -> None:
    logits = torch.zeros(5000)
    drawn = draw(logits, SamplingParams(temperature=1.0, top_p=0.5), 300)
    assert max(drawn) < 2500  # equals are cut in order of id
    assert max(drawn) > 2300
    assert min(drawn) < 200


def test_a_draw_is_a_function_of_seed_and_position() -> None:
    logits = torch.randn(100, generator=torch.Generator().manual_seed(1))
    params = SamplingParams(temperature=1.0, seed=-7)
    first = draw(logits, params, 50)
    assert draw(logits, params, 50) == first
    assert draw(logits, SamplingParams(temperature=1.0, seed=8), 50) != first
    assert len(set(first)) > 20


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(6, 300, generator=generator) * 3
    rows = [
        SampleRow(SamplingParams(temperature=0.5 * i, top_p=0.9, seed=i), [1] * i) for i in range(6)
    ]
    together = sample(logits, rows)
    assert together == [sample(logits[i : i + 1], [rows[i]])[0] for i in range(6)]
    assert sample(logits.flip(0), rows[::-1]) == together[::-1]


def test_repetition_penalty_lowers_seen_tokens_of_either_sign() -> None:
    logits = torch.tensor([[2.0, 1.5, -1.0, -1.1]])
    params = SamplingParams(repetition_penalty=1.5)
    assert sample(logits, [SampleRow(params, [])]) == [0]
    assert sample(logits, [SampleRow(params, [0])]) == [1]
    negative = torch.tensor([[-9.0, -9.0, -1.0, -1.1]])
    assert sample(negative, [SampleRow(params, [2, -1])]) == [3]
    assert torch.equal(negative, torch.tensor([[-9.0, -9.0, -1.0, -1.1]]))  # not changed


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_numbers_give_no_token_and_spare_the_others(
    bad: float, temperature: float
) -> None:
    logits = torch.zeros(3, 10)
    logits[1, 4] = bad
    row = SampleRow(SamplingParams(temperature=temperature), [])
    tokens = sample(logits, [row] * 3)
    assert tokens[1] is None
    assert tokens[0] is not None
    assert tokens[2] is not None


def test_tokens_ruled_out_by_minus_infinity_are_never_drawn() -> None:
    logits = torch.full((50,), -math.inf)
    logits[[3, 9]] = 0.0
    for params in (
        SamplingParams(temperature=2.0),
        SamplingParams(temperature=2.0, top_p=0.999),
        SamplingParams(temperature=2.0, top_k=20),
    ):
        assert set(draw(logits, params, 60)) == {3, 9}
    everything = torch.full((1, 50), -math.inf)
    assert sample(everything, [SampleRow(SamplingParams(), [])]) == [None]


def test_large_vocabulary_is_drawn_from_in_proportion_across_blocks() -> None:
    logits = torch.full((5000,), -math.inf)
    ids = torch.tensor([0, 511, 512, 1700, 4999])
    logits[ids] = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25]).log()
    drawn = draw(logits, SamplingParams(temperature=1.0), 3000)
    assert set(drawn) == set(ids.tolist())
    found = frequencies(drawn, 5000)[ids]
    assert (found - torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25])).abs().max() < 0.05


@pytest.mark.parametrize("share", [0.0, 0.3, 1 - 2**-53, 1.0])
def test_no_share_leads_to_a_token_without_probability(share: float) -> None:
    probs = np.zeros(2000, dtype=np.float32)
    probs[[3, 700, 701]] = [0.1, 0.7, 0.2]
    assert _index_at(probs, share) in (3, 700, 701)


def test_mass_is_the_probability_of_a_set_of_tokens() -> None:
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log() + 50
    assert mass(logits, np.array([1, 3])) == pytest.approx(0.6, rel=1e-6)
    for bad in (math.nan, math.inf):
        logits[0] = bad
        assert mass(logits, np.array([1, 3])) == 0.0


def test_tiny_temperature_is_greedy_and_does_not_overflow() -> None:
    logits = torch.from_numpy(np.linspace(-1e4, 1e4, 64, dtype=np.float32))
    assert set(draw(logits, SamplingParams(temperature=1e-30), 20)) == {63}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("repetition_penalty", 0.0),
        ("max_tokens", 0),
    ],
)
def test_parameters_out_of_range_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{field} is {value}, expected"):
        SamplingParams(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("top_k", [0, 3])
def test_the_hottest_temperature_draws_nothing_that_is_impossible(top_k: int) -> None:
    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf, 0.0, -torch.inf]])
    for seed in range(20):
        params = SamplingParams(temperature=1e300, top_k=top_k, seed=seed)
        assert sample(logits, [SampleRow(params, [])])[0] in (1, 3)
