"""What each owner of sequences is sure of, whatever the others do."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tiny_backbone import TinyBackbone, one_thread  # noqa: F401

from omni.config import Config, EngineConfig
from omni.engine.engine import Engine, Priority, SamplingParams, Snapshot
from omni.engine.shares import SEQUENCES_PER_TURN, Shares
from omni.errors import CapacityError, InputError

LISTENING, RESPONDING = Priority.LISTENING, Priority.RESPONDING
PAGE_TOKENS = 4


def make(*, num_pages: int = 24, max_sequences: int = 12, max_owners: int = 2) -> Engine:
    config = EngineConfig(
        max_sequences=max_sequences,
        num_pages=num_pages,
        page_tokens=PAGE_TOKENS,
        max_context_tokens=32,
        step_tokens=16,
    )
    return Engine(TinyBackbone(), config, max_owners=max_owners)


def tokens(num_pages: int, first: int = 0) -> list[int]:
    """As many tokens as fill ``num_pages`` pages, no page like another sequence's."""
    return [(first + i) % 61 for i in range(num_pages * PAGE_TOKENS)]


@pytest.mark.parametrize(
    ("max_owners", "sure_pages", "pool_pages", "sure_sequences"),
    [(1, 4608, 0, 48), (2, 512, 3584, 4), (8, 512, 512, 4), (32, 132, 384, 1)],
)
def test_shares_of_the_default_engine(
    max_owners: int, sure_pages: int, pool_pages: int, sure_sequences: int
) -> None:
    engine = Config().engine
    context_pages = engine.max_context_tokens // engine.page_tokens
    shares = Shares(
        max_owners=max_owners,
        num_pages=engine.num_pages,
        max_sequences=engine.max_sequences,
        context_pages=context_pages,
    )
    assert (shares.sure_pages, shares.pool_pages) == (sure_pages, pool_pages)
    assert shares.sure_sequences == sure_sequences
    # A session alone can always have a whole context.
    assert shares.sure_pages + shares.pool_pages >= context_pages


def test_too_few_pages_for_a_context_are_divided_half_for_sure_and_half_in_common() -> None:
    shares = Shares(max_owners=4, num_pages=40, max_sequences=9, context_pages=128)
    assert (shares.sure_pages, shares.pool_pages) == (5, 20)
    assert (shares.sure_sequences, shares.pool_sequences) == (2, 1)


def test_an_owner_is_refused_when_the_pool_is_used_up_and_told_what_it_is_sure_of() -> None:
    engine = make()  # 8 pages for each of two, 8 in common
    engine.add(tokens(8), priority=RESPONDING, owner="greedy")
    engine.add(tokens(8, 9), priority=RESPONDING, owner="greedy")
    message = r"17 pages .* sure of 8, .* the 8 beyond .* 0 are taken .*engine\.num_pages"
    with pytest.raises(CapacityError, match=message):
        engine.add(tokens(1, 30), priority=RESPONDING, owner="greedy")
    assert engine.stats().num_pages_free == 8
    other = engine.add(tokens(8, 40), priority=RESPONDING, owner="other")
    with pytest.raises(CapacityError, match=r"1 more pages .* 0 of 24"):
        engine.extend(engine.add(priority=LISTENING, owner="other"), [1])
    engine.free(other)
    engine.check_integrity()


def test_sequences_beyond_the_pool_are_refused_and_forks_count() -> None:
    engine = make()  # 4 sequences for each of two, 4 in common
    first = engine.add([1, 2], priority=RESPONDING, owner="greedy")
    for _ in range(7):
        engine.fork(first, priority=RESPONDING)
    message = r"9 sequences .* sure of 4, .* the 4 beyond .* 0 are taken .*engine\.max_sequences"
    with pytest.raises(CapacityError, match=message):
        engine.fork(first, priority=RESPONDING)
    for _ in range(SEQUENCES_PER_TURN):
        engine.add([3], priority=LISTENING, owner="other")
    with pytest.raises(CapacityError, match="all 12 sequences"):
        engine.add(priority=LISTENING, owner="other")
    engine.check_integrity()


def test_pages_that_sequences_of_one_owner_share_count_once() -> None:
    engine = make()
    first = engine.add([*tokens(8)], priority=RESPONDING, owner="greedy")
    while engine.has_work():
        engine.step()
    for _ in range(5):  # 7 whole pages are shared, the last is copied
        engine.fork(first, priority=RESPONDING)
    assert engine.stats().num_pages_free == 24 - 8 - 5
    engine.check_integrity()


def test_what_an_owner_may_hold_does_not_depend_on_who_shares_a_prefix_with_it() -> None:
    engine = make()
    first = engine.add(tokens(8), priority=LISTENING, owner="first")
    while engine.has_work():
        engine.step()
    shared = engine.add(tokens(8), priority=LISTENING, owner="second")
    assert engine.usage(shared).num_cached == 28
    engine.add(tokens(8, 9), priority=LISTENING, owner="second")  # all of the pool
    engine.truncate(first, 0)  # lets go of what the second still holds
    engine.extend(first, tokens(8, 30))
    engine.check_integrity()


def test_an_owner_too_many_is_refused_and_one_that_has_gone_makes_room() -> None:
    engine = make()
    seq = engine.add(priority=LISTENING, owner="a")
    engine.add(priority=LISTENING, owner="b")
    with pytest.raises(CapacityError, match=r"all 2 shares .*server\.max_sessions"):
        engine.add(priority=LISTENING, owner="c")
    snapshot = engine.snapshot(seq)
    engine.free(seq)
    with pytest.raises(CapacityError, match="all 2 shares"):  # a snapshot holds something too
        engine.add(priority=LISTENING, owner="c")
    engine.release(snapshot)
    engine.add(priority=LISTENING, owner="c")
    engine.check_integrity()


def test_a_snapshot_is_not_restored_into_another_owners_sequence() -> None:
    engine = make()
    snapshot = engine.snapshot(engine.add([1, 2, 3], priority=LISTENING, owner="a"))
    other = engine.add([4], priority=LISTENING, owner="b")
    with pytest.raises(InputError, match="different owners"):
        engine.restore(other, snapshot)
    assert engine.tokens(other) == [4]


class _Starving(RuleBasedStateMachine):
    """Greedy owners do whatever they can; the modest one is never refused what it is sure of.

    There are three owners. The modest one comes and goes and keeps within its guarantee: a
    conversation that grows, is cut and is answered, with forks of it.
    """

    @initialize(num_pages=st.integers(9, 40), max_sequences=st.integers(6, 20))
    def begin(self, num_pages: int, max_sequences: int) -> None:
        self.engine = make(num_pages=num_pages, max_sequences=max_sequences, max_owners=3)
        self.greedy: list[int] = []
        self.snapshots: list[Snapshot] = []
        self.modest: list[int] = []

    few = st.lists(st.integers(0, 2), max_size=20)  # few ids, so that prefixes meet
    owners = st.sampled_from(("greedy", "greedier"))

    @rule(tokens=few, owner=owners, generates=st.booleans())
    def grab(self, tokens: list[int], owner: str, generates: bool) -> None:
        try:
            self.greedy.append(self.engine.add(tokens, priority=RESPONDING, owner=owner))
            if generates:
                self.engine.generate(self.greedy[-1], SamplingParams(max_tokens=30))
        except (CapacityError, InputError):
            return

    @rule(tokens=few, data=st.data(), is_fork=st.booleans())
    def grow(self, tokens: list[int], data: st.DataObject, is_fork: bool) -> None:
        if self.greedy:
            seq = data.draw(st.sampled_from(self.greedy))
            try:
                if is_fork:
                    seq = self.engine.fork(seq, priority=RESPONDING)
                    self.greedy.append(seq)
                self.engine.sync(seq, tokens)
            except CapacityError:
                return

    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        if self.greedy:
            try:
                snapshot = self.engine.snapshot(data.draw(st.sampled_from(self.greedy)))
            except CapacityError:
                return
            self.snapshots.append(snapshot)

    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        if self.greedy:
            seq = self.greedy.pop(data.draw(st.integers(0, len(self.greedy) - 1)))
            self.engine.free(seq)
        elif self.snapshots:
            self.engine.release(self.snapshots.pop())

    @rule(tokens=few, num_new=st.integers(0, 8))
    def take_a_turn(self, tokens: list[int], num_new: int) -> None:
        """Within its guarantee nothing may be refused: no exception is caught here."""
        room = self.engine._shares.sure_pages * PAGE_TOKENS
        if not self.modest:
            self.modest.append(self.engine.add(priority=LISTENING, owner="modest"))
        for fork in self.modest[1:]:
            self.engine.free(fork)
        del self.modest[1:]
        (seq,) = self.modest
        self.engine.sync(seq, tokens[:room])
        num_new = min(num_new, room - len(tokens[:room]), 32 - len(tokens[:room]))
        if tokens and num_new > 0:
            self.engine.generate(seq, SamplingParams(max_tokens=num_new))

    @rule()
    def guess(self) -> None:
        """Forks, as many as there may be; each is worth a page of its own at most."""
        shares = self.engine._shares
        if self.modest:
            held = -(-self.engine.num_tokens(self.modest[0]) // PAGE_TOKENS)
            is_idle = self.engine.is_idle(self.modest[0])
            num_forks = min(shares.sure_sequences, shares.sure_pages - held + 1) - len(self.modest)
            if is_idle:
                for _ in range(num_forks):
                    self.modest.append(self.engine.fork(self.modest[0], priority=RESPONDING))

    @rule()
    def leave(self) -> None:
        for seq in self.modest:
            self.engine.free(seq)
        self.modest.clear()

    @rule(num_steps=st.integers(1, 4))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            for output in self.engine.step():
                if output.seq_id in self.modest:
                    assert output.finish_reason in (None, "length", "cancelled"), output

    @invariant()
    def books_balance(self) -> None:
        if hasattr(self, "engine"):
            self.engine.check_integrity()


TestStarving = _Starving.TestCase
TestStarving.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
