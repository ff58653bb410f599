"""State is a value: fork, truncate, snapshot and restore, bit by bit, and under random use."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)
from tiny_backbone import (
    ATTENTION,
    HYBRID,
    Mixers,
    Run,
    TinyBackbone,
    Watched,
    decoder_stack,
    forward_whole,
    greedy,
    one_thread,  # noqa: F401
    relative_rms,
)

from omni.config import EngineConfig
from omni.engine.engine import Engine, Priority, SamplingParams, Snapshot
from omni.engine.state import MAX_ANSWER_CHECKPOINTS, MAX_CHECKPOINTS
from omni.errors import CapacityError, InputError
from omni.models.batch import Backbone
from omni.types import EmbeddingSpan

PROMPT = [5, 17, 3, 42, 8, 8, 29, 11, 50, 2, 33]
LISTENING, RESPONDING = Priority.LISTENING, Priority.RESPONDING

# The tiny backbones round alike in any chunk; the product's stack does not, so it shows that
# going back restores the very chunks too, with recurrent layers by replay of their journals.
BITWISE = {
    "tiny": lambda: TinyBackbone(ATTENTION),
    "hybrid": lambda: TinyBackbone(HYBRID),
    "stack": decoder_stack,
    "hybrid stack": lambda: decoder_stack(mixers=HYBRID),
}
bitwise = pytest.mark.parametrize("kind", sorted(BITWISE))


def make(
    backbone: Backbone,
    *,
    num_pages: int = 64,
    page_tokens: int = 4,
    step_tokens: int = 16,
    journal_tokens: int = 32,
    share_prefixes: bool = False,
) -> Run:
    config = EngineConfig(
        max_sequences=6,
        num_pages=num_pages,
        page_tokens=page_tokens,
        max_context_tokens=512,
        step_tokens=step_tokens,
        journal_tokens=journal_tokens,
    )
    watched = Watched(backbone)
    return Run(Engine(watched, config, share_prefixes=share_prefixes), watched)


def answer(run: Run, seq_id: int, num_tokens: int) -> tuple[list[int], torch.Tensor]:
    """Generate and drain; returns the new tokens and their logits."""
    before = len(run.logits.get(seq_id, []))
    run.engine.generate(seq_id, SamplingParams(max_tokens=num_tokens))
    run.drain()
    return run.generated(seq_id)[before:], torch.stack(run.logits[seq_id][before:])


def expect(kind: str, *parts: list[int]) -> tuple[list[int], torch.Tensor]:
    """An answer of six tokens after extending by each of ``parts`` in turn, nothing else done."""
    run = make(BITWISE[kind]())
    seq = run.engine.add(priority=LISTENING)
    for part in parts:
        run.engine.extend(seq, part)
        run.drain()
    return answer(run, seq, 6)


# --- Bit by bit ------------------------------------------------------------------------------


@bitwise
@pytest.mark.parametrize("num_kept", [0, 1, 7, 8, 9, 11])
def test_truncate_then_continue_is_never_having_gone_further(kind: str, num_kept: int) -> None:
    run = make(BITWISE[kind]())
    seq = run.engine.add(PROMPT[:num_kept], priority=LISTENING)
    run.drain()
    run.engine.extend(seq, [*range(20, 31)])
    run.drain()
    answer(run, seq, 3)
    run.engine.truncate(seq, num_kept)
    run.engine.check_integrity()
    run.drain()
    run.engine.extend(seq, [1, 2, 3])
    run.drain()
    tokens, logits = answer(run, seq, 6)
    expected, expected_logits = expect(kind, PROMPT[:num_kept], [1, 2, 3])
    assert tokens == expected
    assert torch.equal(logits, expected_logits)


@bitwise
def test_barge_in_goes_back_to_any_token_of_the_answer(kind: str) -> None:
    run = make(BITWISE[kind]())
    seq = run.engine.add(PROMPT, priority=RESPONDING)
    said, _ = answer(run, seq, 12)
    for num_heard in (9, 5, 1):
        run.engine.truncate(seq, len(PROMPT) + num_heard)
        run.drain()
        other = run.engine.fork(seq, priority=RESPONDING)
        run.engine.extend(other, [1, 2])
        tokens, _ = answer(run, other, 4)
        backbone = run.watched.backbone
        assert tokens == greedy(backbone, [*PROMPT, *said[:num_heard], 1, 2], 4)
        run.engine.free(other)
        run.engine.check_integrity()


@bitwise
@pytest.mark.parametrize("num_tokens", [8, 11])
def test_restore_is_bitwise_and_the_snapshot_stays_valid(kind: str, num_tokens: int) -> None:
    run = make(BITWISE[kind]())
    engine = run.engine
    seq = engine.add(PROMPT[:num_tokens], priority=LISTENING)
    run.drain()
    snapshot = engine.snapshot(seq)
    assert snapshot.num_tokens == num_tokens
    expected, expected_logits = answer(run, seq, 6)
    engine.truncate(seq, 2)
    engine.extend(seq, [9] * 20)
    other = engine.add([30, 31], priority=LISTENING)
    run.drain()
    for target in (seq, other, seq):
        engine.restore(target, snapshot)
        engine.check_integrity()
        tokens, logits = answer(run, target, 6)
        assert tokens == expected
        assert torch.equal(logits, expected_logits)
    engine.release(snapshot)
    engine.check_integrity()
    with pytest.raises(InputError, match="released"):
        engine.restore(seq, snapshot)
    for target in (seq, other):
        engine.free(target)
    assert engine.stats().num_pages_free == 64
    assert engine.stats().num_snapshots == 0


@bitwise
@pytest.mark.parametrize("num_tokens", [8, 11])
def test_fork_that_diverges_leaves_the_parent_bit_exact(kind: str, num_tokens: int) -> None:
    run = make(BITWISE[kind]())
    parent = run.engine.add(PROMPT[:num_tokens], priority=LISTENING)
    run.drain()
    child = run.engine.fork(parent, priority=Priority.SPECULATING)
    run.engine.extend(child, [9, 9, 9])
    answer(run, child, 5)
    run.engine.free(child)
    tokens, logits = answer(run, parent, 6)
    expected, expected_logits = expect(kind, PROMPT[:num_tokens])
    assert tokens == expected
    assert torch.equal(logits, expected_logits)


@bitwise
@pytest.mark.parametrize("num_kept", [0, 3, 8, 11])
def test_fork_cut_short_continues_as_the_shorter_sequence(kind: str, num_kept: int) -> None:
    run = make(BITWISE[kind]())
    parent = run.engine.add(PROMPT[:num_kept], priority=LISTENING)
    run.drain()
    run.engine.extend(parent, [40, 41, 42])
    run.drain()
    child = run.engine.fork(parent, priority=RESPONDING, num_tokens=num_kept)
    assert run.engine.tokens(child) == PROMPT[:num_kept]
    run.drain()
    run.engine.extend(child, [1, 2, 3])
    run.drain()
    tokens, logits = answer(run, child, 6)
    expected, expected_logits = expect(kind, PROMPT[:num_kept], [1, 2, 3])
    assert tokens == expected
    assert torch.equal(logits, expected_logits)
    assert run.engine.tokens(parent) == [*PROMPT[:num_kept], 40, 41, 42]


def test_fork_shares_full_pages_and_copies_only_the_partial_one() -> None:
    run = make(TinyBackbone())
    parent = run.engine.add(PROMPT + PROMPT, priority=LISTENING)
    run.drain()
    free = run.engine.stats().num_pages_free
    child = run.engine.fork(parent, priority=Priority.SPECULATING)
    assert run.engine.stats().num_pages_free == free - 1
    assert run.engine.usage(child).num_cached == 21
    run.drain()
    assert run.engine.usage(child).num_processed == 0


def test_child_outlives_its_parent() -> None:
    run = make(TinyBackbone())
    parent = run.engine.add(PROMPT, priority=LISTENING)
    run.drain()
    child = run.engine.fork(parent, priority=RESPONDING)
    run.engine.free(parent)
    tokens, _ = answer(run, child, 6)
    assert tokens == greedy(run.watched.backbone, PROMPT, 6)


def test_fork_without_a_page_left_is_refused_and_changes_nothing() -> None:
    run = make(TinyBackbone(HYBRID), num_pages=3)
    parent = run.engine.add(PROMPT, priority=LISTENING)
    run.drain()
    with pytest.raises(CapacityError, match="1 more pages"):
        run.engine.fork(parent, priority=RESPONDING)
    with pytest.raises(CapacityError, match="1 more pages"):
        run.engine.snapshot(parent)
    run.engine.check_integrity()
    assert run.engine.stats().num_sequences == 1
    tokens, _ = answer(run, parent, 1)
    assert tokens == greedy(run.watched.backbone, PROMPT, 1)


def test_restore_finds_room_in_the_pages_it_replaces() -> None:
    run = make(TinyBackbone(), num_pages=6)
    seq = run.engine.add(PROMPT, priority=LISTENING)
    run.drain()
    snapshot = run.engine.snapshot(seq)
    run.engine.extend(seq, [1] * 7)
    run.drain()
    assert run.engine.stats().num_pages_free == 0
    run.engine.restore(seq, snapshot)
    tokens, _ = answer(run, seq, 3)
    assert tokens == greedy(run.watched.backbone, PROMPT, 3)


# --- Recurrent state -------------------------------------------------------------------------


def test_truncation_within_the_journal_computes_nothing_again() -> None:
    run = make(TinyBackbone(HYBRID))
    seq = run.engine.add(PROMPT, priority=RESPONDING)
    said, _ = answer(run, seq, 12)
    before = run.engine.usage(seq).num_processed
    run.engine.truncate(seq, len(PROMPT) + 5)
    run.drain()
    assert run.engine.num_computed(seq) == len(PROMPT) + 4
    assert run.engine.usage(seq).num_processed == before
    assert run.watched.num_replayed == len(PROMPT) + 4
    tokens, _ = answer(run, seq, 7)
    assert tokens == said[5:]


def test_truncation_before_the_journal_computes_again_from_the_nearest_checkpoint() -> None:
    run = make(TinyBackbone(HYBRID), num_pages=200, step_tokens=32, journal_tokens=16)
    tokens = [(7 * i) % 61 for i in range(32 * 12 + 20)]
    seq = run.engine.add(tokens, priority=LISTENING)
    run.drain()
    points = [c.num_tokens for c in run.engine._sequences[seq].state.checkpoints]
    num_kept = points[1] + 9
    before = run.engine.usage(seq).num_processed
    run.engine.truncate(seq, num_kept)
    assert run.engine.num_computed(seq) == points[1]
    run.drain()
    assert run.engine.usage(seq).num_processed - before == 8
    new, logits = answer(run, seq, 2)
    whole = forward_whole(run.watched.backbone, tokens[:num_kept] + new)
    assert torch.equal(logits, whole[num_kept - 1 : -1])


@pytest.mark.parametrize("num_heard", [1, 15, 16, 17, 40, 63, 99])
def test_any_token_of_a_long_answer_can_turn_out_to_be_the_last_one_heard(num_heard: int) -> None:
    run = make(TinyBackbone(HYBRID), num_pages=100, journal_tokens=16)
    seq = run.engine.add(PROMPT, priority=RESPONDING)
    said, _ = answer(run, seq, 100)
    before = run.engine.usage(seq).num_processed
    run.engine.truncate(seq, len(PROMPT) + num_heard)
    run.drain()
    assert run.engine.usage(seq).num_processed - before < 16  # a checkpoint is near any token
    tokens, _ = answer(run, seq, min(5, 100 - num_heard))
    assert tokens == said[num_heard : num_heard + 5]
    run.engine.check_integrity()


def test_checkpoints_of_a_very_long_answer_are_bounded() -> None:
    run = make(TinyBackbone(HYBRID), num_pages=128, journal_tokens=4)
    seq = run.engine.add(PROMPT, priority=RESPONDING)
    answer(run, seq, 300)
    kept = run.engine._sequences[seq].state.checkpoints
    assert MAX_ANSWER_CHECKPOINTS <= len(kept) <= MAX_CHECKPOINTS + MAX_ANSWER_CHECKPOINTS


@pytest.mark.parametrize("num_tokens", [1, 5, 16, 17, 33])
def test_a_fork_goes_back_by_the_journal_of_its_parent(num_tokens: int) -> None:
    run = make(TinyBackbone(HYBRID), journal_tokens=16)
    parent = run.engine.add(PROMPT, priority=RESPONDING)
    said, _ = answer(run, parent, 34)
    child = run.engine.fork(parent, priority=RESPONDING)
    run.engine.truncate(child, len(PROMPT) + num_tokens)
    run.drain()
    tokens, _ = answer(run, child, 34 - num_tokens)
    assert tokens == said[num_tokens:]
    assert run.engine.tokens(parent) == [*PROMPT, *said]
    tokens, _ = answer(run, parent, 3)
    assert tokens == greedy(run.watched.backbone, [*PROMPT, *said], 3)


def test_a_fault_in_a_step_leaves_recurrent_state_as_it_was_before() -> None:
    run = make(TinyBackbone(HYBRID), journal_tokens=6)
    seq = run.engine.add(PROMPT, priority=RESPONDING)
    expected = greedy(run.watched.backbone, PROMPT, 12)
    said: list[int] = []
    for num_tokens in (1, 2, 3, 6):
        new, _ = answer(run, seq, num_tokens)
        said += new
        run.engine.generate(seq, SamplingParams(max_tokens=1))
        run.watched.fault = RuntimeError("out of order")
        with pytest.raises(RuntimeError, match="out of order"):
            run.step()
        run.engine.cancel(seq)
        run.drain()
    assert said == expected


def test_a_system_prompt_that_was_kept_is_computed_once_for_all_sessions() -> None:
    run = make(TinyBackbone(HYBRID), share_prefixes=True)
    engine = run.engine
    first = engine.add(priority=LISTENING)
    engine.keep(first, 9)
    engine.extend(first, [*PROMPT, 1, 2, 3])
    run.drain()
    second = engine.add([*PROMPT, 30, 31], priority=RESPONDING)
    assert engine.num_computed(second) == 8  # whole pages of four
    tokens, _ = answer(run, second, 5)
    assert tokens == greedy(run.watched.backbone, [*PROMPT, 30, 31], 5)
    assert engine.usage(second).num_cached == 8
    other = engine.add([*PROMPT[:7], 60, 30, 31], priority=RESPONDING)
    assert engine.num_computed(other) == 0  # pages alone are no use without the state
    engine.check_integrity()
    tokens, _ = answer(run, other, 3)
    assert tokens == greedy(run.watched.backbone, [*PROMPT[:7], 60, 30, 31], 3)
    for seq in (first, second, other):
        engine.free(seq)
    engine.check_integrity()
    late = engine.add([*PROMPT, 7], priority=RESPONDING)
    assert engine.num_computed(late) == 8


@pytest.mark.parametrize("num_kept", [0, 1, 2, 5])
def test_a_checkpoint_after_the_last_token_kept_is_not_gone_back_to(num_kept: int) -> None:
    run = make(TinyBackbone(HYBRID))
    seq = run.engine.add(priority=LISTENING)
    for token in PROMPT[:6]:
        run.engine.extend(seq, [token])
        run.drain()
        run.engine.release(run.engine.snapshot(seq))
    run.engine.truncate(seq, num_kept)
    assert run.engine.num_computed(seq) <= max(0, num_kept - 1)
    run.engine.extend(seq, [9])
    tokens, _ = answer(run, seq, 3)
    assert tokens == greedy(run.watched.backbone, [*PROMPT[:num_kept], 9], 3)


def test_checkpoints_are_bounded_and_denser_near_the_end() -> None:
    run = make(TinyBackbone(HYBRID), num_pages=130, page_tokens=4, step_tokens=64)
    seq = run.engine.add([1] * 8, priority=LISTENING)
    for _ in range(60):
        run.engine.extend(seq, [2] * 8)
        run.drain()
        run.engine.release(run.engine.snapshot(seq))
        run.engine.check_integrity()
    points = [c.num_tokens for c in run.engine._sequences[seq].state.checkpoints]
    assert len(points) == MAX_CHECKPOINTS
    assert points[-1] == 8 + 60 * 8 - 1
    gaps = [b - a for a, b in pairwise([0, *points])]
    assert gaps == sorted(gaps, reverse=True)


# --- Any chunking, any neighbours ------------------------------------------------------------

_STACK = decoder_stack()
_TINY = {mixers: TinyBackbone(mixers) for mixers in (ATTENTION, HYBRID)}
_NEIGHBOUR = st.lists(st.integers(0, 60), min_size=1, max_size=20)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    tokens=st.lists(st.integers(0, 96), min_size=1, max_size=40),
    splits=st.lists(st.integers(0, 40), max_size=4),
    neighbours=st.lists(_NEIGHBOUR, max_size=4),
    step_tokens=st.integers(1, 24),
    page_tokens=st.integers(1, 9),
    priority=st.sampled_from(Priority),
    drains=st.booleans(),
)
def test_any_chunking_and_neighbours_give_the_same_logits(
    tokens: list[int],
    splits: list[int],
    neighbours: list[list[int]],
    step_tokens: int,
    page_tokens: int,
    priority: Priority,
    drains: bool,
) -> None:
    run = make(_STACK, num_pages=300, page_tokens=page_tokens, step_tokens=step_tokens)
    for neighbour in neighbours:
        other = run.engine.add(neighbour, priority=RESPONDING)
        run.engine.generate(other, SamplingParams(max_tokens=12))
    seq = run.engine.add(priority=priority)
    cuts = sorted({0, *(s for s in splits if s < len(tokens)), len(tokens)})
    for start, end in pairwise(cuts):
        run.engine.extend(seq, tokens[start:end])
        if drains:
            run.step()
    new, logits = answer(run, seq, 6)
    whole = forward_whole(_STACK, tokens + new)[len(tokens) - 1 : -1]
    assert relative_rms(logits, whole) <= 1e-5
    margin = whole.max(dim=-1).values - whole.gather(1, torch.tensor(new)[:, None])[:, 0]
    assert float(margin.max()) == 0.0, "another token than the whole forward's"


# --- Random use ------------------------------------------------------------------------------


@cache
def _oracle(mixers: Mixers, token_ids: tuple[int, ...]) -> torch.Tensor:
    return forward_whole(_TINY[mixers], token_ids)[-1]


class _RandomUse(RuleBasedStateMachine):
    """Any order of calls: tokens are as modelled, logits bit-equal, accounts in order.

    The model of a sequence is a list of token ids, where -(id + 1) is one that came as an
    embedding. Pages are few, so refusals are met; a refused call must have changed nothing, which
    the comparison of all tokens after every call shows.
    """

    mixers: Mixers
    sequences = Bundle("sequences")
    snapshots = Bundle("snapshots")

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[int, list[int]] = {}
        self.kept: dict[Snapshot, list[int]] = {}

    @initialize(
        page_tokens=st.integers(1, 5),
        num_pages=st.integers(6, 24),
        step_tokens=st.integers(1, 12),
    )
    def begin(self, page_tokens: int, num_pages: int, step_tokens: int) -> None:
        config = EngineConfig(
            max_sequences=4,
            num_pages=num_pages,
            page_tokens=page_tokens,
            max_context_tokens=30,
            step_tokens=step_tokens,
        )
        watched = Watched(_TINY[self.mixers])
        self.run_ = Run(Engine(watched, config), watched)
        self.engine = self.run_.engine

    tokens = st.lists(st.integers(0, 3), max_size=9)  # few ids, so that prefixes meet

    @rule(target=sequences, tokens=tokens, priority=st.sampled_from(Priority))
    def add(self, tokens: list[int], priority: Priority) -> object:
        try:
            seq = self.engine.add(tokens, priority=priority)
        except CapacityError:
            return multiple()
        self.known[seq] = list(tokens)
        return seq

    @rule(seq=sequences, tokens=tokens)
    def extend(self, seq: int, tokens: list[int]) -> None:
        try:
            self.engine.extend(seq, tokens)
        except CapacityError:
            return
        self.known[seq] += tokens

    @rule(seq=sequences, tokens=tokens.filter(bool))
    def hear(self, seq: int, tokens: list[int]) -> None:
        span = EmbeddingSpan(
            embeddings=_TINY[self.mixers].embed[tokens],
            positions=torch.arange(len(tokens)),
            start_ms=0,
            end_ms=0,
            final=True,
        )
        try:
            self.engine.extend(seq, span)
        except CapacityError:
            return
        self.known[seq] += [-(token + 1) for token in tokens]

    @rule(seq=sequences, num_tokens=st.integers(1, 6), stops=st.booleans())
    def generate(self, seq: int, num_tokens: int, stops: bool) -> None:
        stop_ids = frozenset(range(0, 61, 5)) if stops else frozenset()
        params = SamplingParams(max_tokens=num_tokens, stop_ids=stop_ids)
        try:
            self.engine.generate(seq, params)
        except (CapacityError, InputError):
            return

    @rule(seq=sequences)
    def cancel(self, seq: int) -> None:
        self.engine.cancel(seq)

    @rule(target=sequences, seq=sequences, data=st.data())
    def fork(self, seq: int, data: st.DataObject) -> object:
        size = len(self.known[seq])
        num_tokens = data.draw(st.none() | st.integers(0, size))
        try:
            child = self.engine.fork(seq, priority=RESPONDING, num_tokens=num_tokens)
        except CapacityError:
            return multiple()
        self.known[child] = self.known[seq][:num_tokens]
        return child

    @rule(seq=sequences, data=st.data())
    def truncate(self, seq: int, data: st.DataObject) -> None:
        num_tokens = data.draw(st.integers(0, len(self.known[seq])))
        try:
            self.engine.truncate(seq, num_tokens)
        except CapacityError:
            return
        del self.known[seq][num_tokens:]

    @rule(seq=sequences, tokens=tokens)
    def sync(self, seq: int, tokens: list[int]) -> None:
        try:
            num_kept = self.engine.sync(seq, tokens)
        except CapacityError:
            self.known[seq] = self.engine.tokens(seq)
            assert self.known[seq] == tokens[: len(self.known[seq])]
            return
        assert self.known[seq][:num_kept] == tokens[:num_kept]
        self.known[seq] = list(tokens)

    @rule(target=snapshots, seq=sequences)
    def snapshot(self, seq: int) -> object:
        try:
            snapshot = self.engine.snapshot(seq)
        except CapacityError:
            return multiple()
        self.kept[snapshot] = list(self.known[seq])
        return snapshot

    @rule(seq=sequences, snapshot=snapshots)
    def restore(self, seq: int, snapshot: Snapshot) -> None:
        try:
            self.engine.restore(seq, snapshot)
        except CapacityError:
            return
        self.known[seq] = list(self.kept[snapshot])

    @rule(snapshot=consumes(snapshots))
    def release(self, snapshot: Snapshot) -> None:
        self.engine.release(snapshot)
        del self.kept[snapshot]

    @rule(seq=consumes(sequences))
    def free(self, seq: int) -> None:
        self.engine.free(seq)
        del self.known[seq]

    @rule(num_steps=st.integers(1, 4))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            for output in self.run_.step():
                known = self.known[output.seq_id]
                if output.finish_reason == "cancelled":
                    continue
                assert output.finish_reason != "error", "NaN: state was read that nobody wrote"
                logits = self.run_.logits[output.seq_id][-1]
                token_ids = tuple(max(token, -token - 1) for token in known)
                assert torch.equal(logits, _oracle(self.mixers, token_ids))
                if output.finish_reason != "stop" and output.token_id is not None:
                    known.append(output.token_id)

    @invariant()
    def accounts_are_in_order(self) -> None:
        if hasattr(self, "engine"):
            self.engine.check_integrity()
            assert self.engine.stats().num_sequences == len(self.known)
            for seq, known in self.known.items():
                assert self.engine.tokens(seq) == [max(token, -1) for token in known]

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            for seq in self.known:
                self.engine.free(seq)
            for snapshot in self.kept:
                self.engine.release(snapshot)
            self.engine.check_integrity()
            assert self.engine.stats().num_pages_free == self.engine.stats().num_pages


class _RandomUseOfAttention(_RandomUse):
    mixers = ATTENTION


class _RandomUseOfHybrid(_RandomUse):
    mixers = HYBRID


_SETTINGS = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestRandomUseOfAttention = _RandomUseOfAttention.TestCase
TestRandomUseOfAttention.settings = _SETTINGS
TestRandomUseOfHybrid = _RandomUseOfHybrid.TestCase
TestRandomUseOfHybrid.settings = _SETTINGS
