"""The engine's loop and its calls, on small real backbones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tiny_backbone import (
    ATTENTION,
    HYBRID,
    WIDTH,
    Mixers,
    Run,
    TinyBackbone,
    Watched,
    decoder_stack,
    forward_whole,
    greedy,
    one_thread,  # noqa: F401
)

from omni.config import EngineConfig
from omni.engine.engine import Engine, Priority, SamplingParams, TokenOutput
from omni.errors import CapacityError, ContextLengthError, InputError
from omni.models.batch import Backbone
from omni.types import EmbeddingSpan

PROMPT = [5, 17, 3, 42, 8, 8, 29, 11, 50, 2, 33]
LISTENING, RESPONDING = Priority.LISTENING, Priority.RESPONDING


def make(
    backbone: Backbone | None = None,
    *,
    max_sequences: int = 6,
    num_pages: int = 64,
    page_tokens: int = 4,
    max_context_tokens: int = 256,
    step_tokens: int = 16,
    share_prefixes: bool = True,
) -> Run:
    config = EngineConfig(
        max_sequences=max_sequences,
        num_pages=num_pages,
        page_tokens=page_tokens,
        max_context_tokens=max_context_tokens,
        step_tokens=step_tokens,
    )
    watched = Watched(backbone or TinyBackbone())
    return Run(Engine(watched, config, share_prefixes=share_prefixes), watched)


def answer(run: Run, seq_id: int, num_tokens: int, **params: object) -> list[int]:
    """Generate and drain; returns the new tokens."""
    before = len(run.generated(seq_id))
    run.engine.generate(seq_id, SamplingParams(max_tokens=num_tokens, **params))  # type: ignore[arg-type]
    run.drain()
    return run.generated(seq_id)[before:]


def span(
    run: Run, token_ids: Sequence[int], positions: torch.Tensor | None = None
) -> EmbeddingSpan:
    """Embeddings of ``token_ids``, as an encoder would emit them."""
    backbone = run.watched.backbone
    assert isinstance(backbone, TinyBackbone)
    return EmbeddingSpan(
        embeddings=backbone.embed[list(token_ids)],
        positions=torch.arange(len(token_ids)) if positions is None else positions,
        start_ms=0,
        end_ms=80 * len(token_ids),
        final=True,
    )


# --- Generating ------------------------------------------------------------------------------


@pytest.mark.parametrize("mixers", [ATTENTION, HYBRID])
def test_greedy_tokens_equal_those_of_whole_forwards_bit_by_bit(mixers: Mixers) -> None:
    backbone = TinyBackbone(mixers)
    run = make(backbone)
    seq = run.engine.add(PROMPT, priority=RESPONDING)
    tokens = answer(run, seq, 12)
    assert tokens == greedy(backbone, PROMPT, 12)
    whole = forward_whole(backbone, PROMPT + tokens)
    assert torch.equal(torch.stack(run.logits[seq]), whole[len(PROMPT) - 1 : -1])
    assert run.engine.tokens(seq) == PROMPT + tokens


def test_greedy_tokens_of_the_product_stack_equal_those_of_whole_forwards() -> None:
    backbone = decoder_stack()
    run = make(backbone)
    seq = run.engine.add(PROMPT, priority=RESPONDING)
    assert answer(run, seq, 12) == greedy(backbone, PROMPT, 12)


def test_last_known_token_waits_for_its_logits_or_a_successor() -> None:
    run = make()
    seq = run.engine.add(PROMPT, priority=LISTENING)
    assert not run.engine.is_idle(seq)
    run.drain()
    assert run.engine.is_idle(seq)
    assert run.engine.num_computed(seq) == len(PROMPT) - 1
    run.engine.extend(seq, [1])
    run.drain()
    assert run.engine.num_computed(seq) == len(PROMPT)
    run.engine.generate(seq, SamplingParams(max_tokens=1))
    [output] = run.step()
    assert output.finish_reason == "length"
    assert run.engine.usage(seq).num_processed == len(PROMPT) + 1  # no token twice


def test_stop_token_is_given_out_and_not_appended() -> None:
    run = make()
    expected = greedy(run.watched.backbone, PROMPT, 6)
    stop = expected[3]
    seq = run.engine.add(PROMPT, priority=RESPONDING)
    tokens = answer(run, seq, 6, stop_ids=frozenset({stop}))
    assert tokens == expected[: expected.index(stop) + 1]
    assert run.outputs[seq][-1] == TokenOutput(seq, stop, "stop")
    assert run.engine.tokens(seq) == PROMPT + tokens[:-1]


@pytest.mark.parametrize("mixers", [ATTENTION, HYBRID])
def test_generating_again_after_a_stop_gives_the_same_token(mixers: Mixers) -> None:
    run = make(TinyBackbone(mixers))
    seq = run.engine.add(PROMPT, priority=RESPONDING)
    stop = greedy(run.watched.backbone, PROMPT, 3)[2]
    answer(run, seq, 9, stop_ids=frozenset({stop}))
    assert answer(run, seq, 1) == [stop]
    run.engine.check_integrity()


def test_a_sequence_of_one_token_generates() -> None:
    run = make()
    seq = run.engine.add([7], priority=RESPONDING)
    assert answer(run, seq, 4) == greedy(run.watched.backbone, [7], 4)


def test_cancel_stops_at_once_and_keeps_a_usable_state() -> None:
    run = make()
    seq = run.engine.add(PROMPT, priority=RESPONDING)
    run.engine.generate(seq, SamplingParams())
    while len(run.generated(seq)) < 4:
        run.step()
    run.engine.cancel(seq)
    assert run.engine.is_idle(seq)
    assert run.step() == [TokenOutput(seq, None, "cancelled")]
    assert not run.engine.has_work()
    run.engine.cancel(seq)  # not generating: nothing to report
    assert not run.engine.has_work()
    assert run.engine.tokens(seq) == PROMPT + run.generated(seq)
    assert answer(run, seq, 3) == greedy(run.watched.backbone, PROMPT, 7)[4:]


def test_freed_sequence_reports_nothing_more() -> None:
    run = make()
    seq = run.engine.add(PROMPT, priority=RESPONDING)
    run.engine.generate(seq, SamplingParams())
    run.step()
    run.engine.cancel(seq)
    run.engine.free(seq)
    assert not run.engine.has_work()
    assert run.engine.stats().num_pages_free == 64
    with pytest.raises(InputError, match="no sequence 1"):
        run.engine.extend(seq, [1])


def test_tokens_known_while_generating_are_computed_and_gone_on_from() -> None:
    run = make()
    seq = run.engine.add(PROMPT, priority=RESPONDING)
    run.engine.generate(seq, SamplingParams(max_tokens=4))
    run.step()
    run.engine.extend(seq, [9, 9])
    run.drain()
    first = greedy(run.watched.backbone, PROMPT, 1)
    rest = greedy(run.watched.backbone, [*PROMPT, *first, 9, 9], 3)
    assert run.generated(seq) == first + rest


def test_logits_that_are_not_numbers_end_only_their_own_sequence() -> None:
    run = make(share_prefixes=False)
    first = run.engine.add(PROMPT, priority=RESPONDING)
    second = run.engine.add(PROMPT[:5], priority=RESPONDING)
    for seq in (first, second):
        run.engine.generate(seq, SamplingParams(max_tokens=5))
    while len(run.generated(second)) < 2:
        run.step()
    row = [output.seq_id for output in run.step()].index(second)
    run.watched.spoiled_row = row
    run.drain()
    assert run.outputs[second][-1] == TokenOutput(second, None, "error")
    assert run.generated(first) == greedy(run.watched.backbone, PROMPT, 5)
    run.engine.check_integrity()


@pytest.mark.parametrize("mixers", [ATTENTION, HYBRID])
def test_step_that_raises_counts_as_not_taken(mixers: Mixers) -> None:
    run = make(TinyBackbone(mixers), step_tokens=5)
    seq = run.engine.add(PROMPT, priority=RESPONDING)
    run.engine.generate(seq, SamplingParams(max_tokens=4))
    for num_steps in range(5):
        run.watched.fault = RuntimeError("injected")
        with pytest.raises(RuntimeError, match="injected"):
            run.engine.step()
        run.engine.check_integrity()
        if num_steps < 4:
            run.step()
    run.drain()
    assert run.generated(seq) == greedy(run.watched.backbone, PROMPT, 4)


def test_ends_reported_by_a_step_that_raises_are_reported_by_the_next() -> None:
    run = make()
    first = run.engine.add(PROMPT, priority=RESPONDING)
    run.engine.generate(first, SamplingParams())
    run.step()
    run.engine.cancel(first)
    run.engine.add(PROMPT[:3], priority=LISTENING)
    run.watched.fault = RuntimeError("injected")
    with pytest.raises(RuntimeError, match="injected"):
        run.engine.step()
    assert run.step() == [TokenOutput(first, None, "cancelled")]


def test_misuse_is_refused_in_words() -> None:
    run = make()
    seq = run.engine.add(priority=RESPONDING)
    with pytest.raises(InputError, match="no token to generate from"):
        run.engine.generate(seq, SamplingParams())
    with pytest.raises(InputError, match="token ids are 3 to 61, expected 0 to 60"):
        run.engine.extend(seq, [3, 61])
    with pytest.raises(InputError, match="token ids are -1"):
        run.engine.add([-1], priority=RESPONDING)
    run.engine.extend(seq, [3])
    run.engine.generate(seq, SamplingParams())
    with pytest.raises(InputError, match="generates already"):
        run.engine.generate(seq, SamplingParams())
    with pytest.raises(InputError, match="num_tokens is 2, expected 0 to 1"):
        run.engine.truncate(seq, 2)
    with pytest.raises(InputError, match="num_tokens is -1"):
        run.engine.fork(seq, priority=RESPONDING, num_tokens=-1)
    assert run.engine.stats().num_sequences == 1
    run.engine.check_integrity()


# --- Limits ----------------------------------------------------------------------------------


def test_each_limit_is_refused_by_name_and_changes_nothing() -> None:
    run = make(max_sequences=2, num_pages=8, max_context_tokens=24)
    engine = run.engine
    first = engine.add(PROMPT, priority=LISTENING)  # 3 pages
    with pytest.raises(CapacityError, match=r"25 tokens .* holds 24 .*max_context_tokens"):
        engine.add([1] * 25, priority=LISTENING)
    second = engine.add([1] * 12, priority=LISTENING)  # 3 pages
    with pytest.raises(CapacityError, match=r"all 2 sequences .*max_sequences"):
        engine.add([1], priority=LISTENING)
    with pytest.raises(CapacityError, match="all 2 sequences"):
        engine.fork(first, priority=LISTENING)
    with pytest.raises(CapacityError, match=r"3 more pages .* 2 of 8 .*num_pages"):
        engine.extend(second, [2] * 12)
    engine.free(first)
    engine.extend(second, [2] * 12)
    run.drain()
    assert engine.tokens(second) == [1] * 12 + [2] * 12
    with pytest.raises(CapacityError, match="25 tokens"):
        engine.generate(second, SamplingParams())
    with pytest.raises(CapacityError, match="25 tokens"):
        engine.extend(second, [2])
    engine.check_integrity()


def test_model_limit_holds_where_it_is_lower_than_the_setting() -> None:
    run = make(TinyBackbone(max_positions=16))
    with pytest.raises(ContextLengthError, match="17 tokens are needed and the context holds 16"):
        run.engine.add([1] * 17, priority=LISTENING)


def test_generation_ends_where_the_context_does() -> None:
    run = make(max_context_tokens=16)
    seq = run.engine.add(PROMPT, priority=RESPONDING)
    tokens = answer(run, seq, 100)
    assert tokens == greedy(run.watched.backbone, PROMPT, 5)
    assert run.outputs[seq][-1].finish_reason == "context"
    assert len(run.engine.tokens(seq)) == 16


def test_sequence_that_cannot_grow_ends_and_its_neighbours_do_not_notice() -> None:
    run = make(num_pages=6, share_prefixes=False)
    seqs = [run.engine.add(PROMPT[:n], priority=RESPONDING) for n in (8, 6)]  # 2 + 2 pages
    for seq in seqs:
        run.engine.generate(seq, SamplingParams(max_tokens=12))
    run.drain()
    reasons = {seq: run.outputs[seq][-1].finish_reason for seq in seqs}
    starved = next(seq for seq in seqs if reasons[seq] == "capacity")
    assert run.outputs[starved][-1].token_id is None
    assert (
        "1 more pages of state are needed and 0 of 6 are free" in run.outputs[starved][-1].message
    )
    for seq, n in zip(seqs, (8, 6), strict=True):
        tokens = run.generated(seq)
        assert tokens == greedy(run.watched.backbone, PROMPT[:n], len(tokens))
        assert run.engine.tokens(seq) == PROMPT[:n] + tokens
    run.engine.check_integrity()
    [other] = [seq for seq in seqs if seq != starved]
    run.engine.free(other)
    num_before = len(run.generated(starved))
    more = answer(run, starved, 3)  # with pages back it goes on where it was
    n = {seqs[0]: 8, seqs[1]: 6}[starved]
    assert more == greedy(run.watched.backbone, PROMPT[:n], num_before + 3)[num_before:]


# --- Conversations are edited ----------------------------------------------------------------


def test_sync_keeps_the_longest_common_prefix() -> None:
    run = make()
    engine = run.engine
    seq = engine.add(PROMPT, priority=LISTENING)
    run.drain()
    assert engine.common_prefix(seq, PROMPT[:4]) == 4
    assert engine.common_prefix(seq, [9, *PROMPT]) == 0
    revised = [*PROMPT[:7], 1, 2, 3]
    assert engine.sync(seq, revised) == 7
    assert engine.tokens(seq) == revised
    run.drain()
    assert engine.usage(seq).num_processed == len(PROMPT) - 1 + 3  # tokens 6, 7 and 8
    assert answer(run, seq, 4) == greedy(run.watched.backbone, revised, 4)
    assert engine.sync(seq, revised) == len(revised)
    assert engine.sync(seq, []) == 0
    assert engine.tokens(seq) == []
    assert engine.stats().num_pages_free == 64


def test_truncate_while_generating_cancels() -> None:
    run = make()
    seq = run.engine.add(PROMPT, priority=RESPONDING)
    run.engine.generate(seq, SamplingParams())
    while len(run.generated(seq)) < 6:
        run.step()
    run.engine.truncate(seq, len(PROMPT) + 2)
    assert run.step() == [TokenOutput(seq, None, "cancelled")]
    assert run.engine.tokens(seq) == PROMPT + run.generated(seq)[:2]


# --- Spans in --------------------------------------------------------------------------------


@pytest.mark.parametrize("mixers", [ATTENTION, HYBRID])
def test_embeddings_of_tokens_are_as_good_as_the_tokens(mixers: Mixers) -> None:
    run = make(TinyBackbone(mixers), step_tokens=3)
    engine = run.engine
    seq = engine.add(PROMPT[:2], priority=LISTENING)
    engine.extend(seq, span(run, PROMPT[2:7]))
    other = engine.add(PROMPT, priority=LISTENING)
    engine.extend(seq, PROMPT[7:9])
    engine.extend(seq, span(run, PROMPT[9:10]))
    engine.extend(seq, PROMPT[10:])
    assert engine.tokens(seq) == [*PROMPT[:2], *[-1] * 5, *PROMPT[7:9], -1, PROMPT[10]]
    assert engine.common_prefix(seq, PROMPT) == 2
    answer(run, other, 5)
    assert answer(run, seq, 5) == greedy(run.watched.backbone, PROMPT, 5)
    assert all(torch.equal(a, b) for a, b in zip(run.logits[seq], run.logits[other], strict=True))
    engine.check_integrity()


def test_truncate_inside_a_span_keeps_its_beginning() -> None:
    run = make()
    seq = run.engine.add(PROMPT[:2], priority=LISTENING)
    run.engine.extend(seq, span(run, PROMPT[2:8]))
    run.drain()
    run.engine.truncate(seq, 5)
    run.engine.check_integrity()
    run.engine.extend(seq, PROMPT[5:])
    assert answer(run, seq, 3) == greedy(run.watched.backbone, PROMPT, 3)


def test_positions_of_three_axes_go_on_after_the_largest() -> None:
    run = make()
    seq = run.engine.add([1, 2], priority=LISTENING)
    image = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1]])  # 2 x 2 patches
    run.engine.extend(seq, span(run, [3, 4, 5, 6], image))
    run.engine.extend(seq, [7, 8])
    run.drain()
    [batch] = run.watched.batches
    expected = [[0, 1, 2, 2, 2, 2, 4], [0, 1, 2, 2, 3, 3, 4], [0, 1, 2, 3, 2, 3, 4]]
    assert batch.positions.tolist() == expected
    assert batch.token_ids.tolist() == [1, 2, -1, -1, -1, -1, 7]


def test_spans_of_wrong_shape_are_refused() -> None:
    run = make()
    seq = run.engine.add([1, 2], priority=LISTENING)
    for embeddings, positions in (
        (torch.zeros(0, WIDTH), torch.arange(0)),
        (torch.zeros(2, WIDTH), torch.arange(3)),
        (torch.zeros(WIDTH), torch.arange(1)),
    ):
        bad = EmbeddingSpan(
            embeddings=embeddings, positions=positions, start_ms=0, end_ms=0, final=True
        )
        with pytest.raises(InputError, match=r"expected \[T, D\]"):
            run.engine.extend(seq, bad)
    assert run.engine.tokens(seq) == [1, 2]


# --- Prefixes shared -------------------------------------------------------------------------


def test_a_common_beginning_is_computed_once_even_after_its_sequence_is_gone() -> None:
    run = make()
    engine = run.engine
    first = engine.add(PROMPT, priority=LISTENING)
    run.drain()
    engine.free(first)
    second = engine.add([*PROMPT[:9], 1, 1], priority=RESPONDING)
    assert engine.usage(second).num_cached == 8  # two pages of four
    assert answer(run, second, 4) == greedy(run.watched.backbone, [*PROMPT[:9], 1, 1], 4)
    third = engine.add(PROMPT[:8], priority=RESPONDING)
    assert engine.usage(third).num_cached == 4  # the last token is left for its logits
    assert engine.stats().num_tokens_cached == 12
    engine.check_integrity()


def test_cached_prefixes_give_way_the_longest_unused_end_first() -> None:
    run = make(num_pages=4)
    engine = run.engine
    first = engine.add([*range(13)], priority=LISTENING)
    run.drain()
    engine.free(first)
    assert engine.stats().num_pages_cached == 3
    assert engine.stats().num_pages_free == 4
    second = engine.add([50] * 8, priority=LISTENING)  # takes the free page and the oldest cached
    engine.free(second)
    third = engine.add([*range(13)], priority=LISTENING)
    assert engine.usage(third).num_cached == 8  # the beginning outlived the end
    engine.check_integrity()


def test_pages_after_an_embedding_are_never_shared() -> None:
    run = make()
    first = run.engine.add(PROMPT[:5], priority=LISTENING)
    run.engine.extend(first, span(run, PROMPT[5:6]))
    run.engine.extend(first, PROMPT[6:] + PROMPT)
    run.drain()
    second = run.engine.add(PROMPT[:5] + PROMPT, priority=LISTENING)
    assert run.engine.usage(second).num_cached == 4


def test_different_embeddings_in_the_same_place_are_never_taken_for_each_other() -> None:
    run = make()
    seqs = [run.engine.add(priority=RESPONDING) for _ in range(2)]
    for seq, heard in zip(seqs, (PROMPT[:9], PROMPT[2:]), strict=True):
        run.engine.extend(seq, span(run, heard))
        run.drain()
    assert answer(run, seqs[0], 3) == greedy(run.watched.backbone, PROMPT[:9], 3)
    assert answer(run, seqs[1], 3) == greedy(run.watched.backbone, PROMPT[2:], 3)
    assert run.engine.stats().num_tokens_cached == 0


def test_rewriting_a_shared_page_leaves_the_others_alone() -> None:
    run = make()
    engine = run.engine
    first = engine.add(PROMPT, priority=LISTENING)
    run.drain()
    second = engine.add(PROMPT, priority=LISTENING)
    engine.truncate(second, 6)
    engine.extend(second, [1, 1, 1, 1])
    run.drain()
    assert answer(run, second, 3) == greedy(run.watched.backbone, [*PROMPT[:6], 1, 1, 1, 1], 3)
    assert answer(run, first, 3) == greedy(run.watched.backbone, PROMPT, 3)
    third = engine.add([*PROMPT[:6], 1, 1, 1, 1], priority=LISTENING)
    assert engine.usage(third).num_cached == 8
    assert answer(run, third, 3) == run.generated(second)
    engine.check_integrity()


# --- Accounts --------------------------------------------------------------------------------


def test_stats_count_what_happened() -> None:
    run = make()
    seq = run.engine.add(PROMPT, priority=RESPONDING)
    answer(run, seq, 3)
    stats = run.engine.stats()
    assert (stats.num_sequences, stats.max_sequences) == (1, 6)
    assert (stats.num_steps, stats.num_tokens, stats.last_step_tokens) == (3, 13, 1)
    assert stats.num_tokens_sampled == 3
    assert (stats.num_pages, stats.num_pages_free) == (64, 60)
    usage = run.engine.usage(seq)
    assert (usage.num_processed, usage.num_cached, usage.num_generated) == (13, 0, 3)


def test_check_integrity_names_a_leak() -> None:
    run = make()
    seq = run.engine.add(PROMPT, priority=RESPONDING)
    state = run.engine._sequences[seq].state
    page = state.pages[0]
    run.engine._cache.share([page], state.account)
    with pytest.raises(AssertionError, match=f"page {page} leaks: counted 2 times, held 1"):
        run.engine.check_integrity()


def test_check_integrity_names_a_slot_that_leaks() -> None:
    run = make(TinyBackbone(HYBRID))
    run.engine.add(PROMPT, priority=RESPONDING)
    run.engine._cache.take_slot()
    with pytest.raises(AssertionError, match="slots leak"):
        run.engine.check_integrity()


def test_measuring_gives_the_odds_of_the_next_token_and_changes_nothing() -> None:
    run = make()
    seq_id = run.engine.add(PROMPT, priority=LISTENING)
    run.engine.measure(seq_id, np.array([3, 7, 11]))
    outputs: list[TokenOutput] = []
    while run.engine.has_work():
        outputs += run.engine.step()
    (output,) = outputs
    logits = forward_whole(TinyBackbone(), PROMPT)[-1].double()
    expected = torch.softmax(logits, dim=-1)[[3, 7, 11]].sum().item()
    assert output == TokenOutput(seq_id, None, "measured", pytest.approx(expected, rel=1e-6))
    assert run.engine.tokens(seq_id) == PROMPT
    assert run.engine.is_idle(seq_id)
    assert answer(run, seq_id, 4) == greedy(TinyBackbone(), PROMPT, 4)


def test_a_sequence_on_hold_waits_and_then_goes_on_as_if_nothing_was() -> None:
    run = make()
    held, free = (run.engine.add(PROMPT, priority=RESPONDING) for _ in range(2))
    for seq_id in (held, free):
        run.engine.generate(seq_id, SamplingParams(max_tokens=5))
    run.engine.hold(held, True)
    assert run.engine.stats().num_held == 1
    run.drain()
    assert len(run.generated(free)) == 5
    assert run.generated(held) == []
    run.engine.hold(held, False)
    assert run.engine.stats().num_held == 0
    run.drain()
    assert run.generated(held) == run.generated(free)
