"""Whether the engine's books balance: pages, slots, tokens, and what each owner holds.

Called by :meth:`omni.engine.engine.Engine.check_integrity`, which tests call after everything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from omni.engine.sequence import Sequence
from omni.engine.shares import Shares
from omni.engine.state import MAX_ANSWER_CHECKPOINTS, MAX_CHECKPOINTS, State
from omni.engine.state_cache import StateCache


def check(
    cache: StateCache,
    shares: Shares,
    sequences: Mapping[int, Sequence],
    snapshots: Collection[State],
) -> None:
    """Check every account of pages, slots and tokens.

    Raises:
        AssertionError: naming the first leak or broken invariant.
    """
    states = [*(s.state for s in sequences.values()), *snapshots]
    cache.check_integrity((s.pages for s in states), (s.slot for s in sequences.values()))
    held = Counter(page for state in states for page in state.pages)
    for seq_id, sequence in sequences.items():
        _check_sequence(f"sequence {seq_id}", sequence, cache.page_tokens, held)
    _check_shares(shares, sequences, states)


def _check_sequence(name: str, sequence: Sequence, page_tokens: int, held: Counter[int]) -> None:
    state = sequence.state
    assert 0 <= state.num_computed <= state.num_known, f"{name} computed unknown tokens"
    assert len(state.pages) == -(-state.num_known // page_tokens), f"{name} holds other pages"
    own = state.pages[state.num_computed // page_tokens :]
    assert all(held[page] == 1 for page in own), f"{name} would write a shared page"
    assert len(state.digests) <= state.num_computed // page_tokens, f"{name} names unknown pages"
    points = [c.num_tokens for c in state.checkpoints]
    assert points == sorted(set(points)), f"{name} has checkpoints out of order"
    limit = MAX_CHECKPOINTS + MAX_ANSWER_CHECKPOINTS
    assert len(points) <= limit, f"{name} keeps {len(points)} checkpoints"
    assert (points or [0])[-1] == sequence.journal_start, f"{name} has a journal of its own"
    assert sequence.journal_start <= state.num_computed, f"{name} has a late checkpoint"
    starts = [i for span in state.spans for i in range(span.start, span.end)]
    assert starts == [i for i, t in enumerate(state.token_ids) if t < 0], f"{name} spans"


def _check_shares(
    shares: Shares, sequences: Mapping[int, Sequence], states: Collection[State]
) -> None:
    for account in shares.accounts:
        holds = Counter(p for s in states if s.account is account for p in s.pages)
        assert holds == account.holds, f"owner {account.owner!r} is charged with other pages"
        num_states = sum(state.account is account for state in states)
        num_counted = account.num_sequences + account.num_snapshots
        assert num_states == num_counted, f"owner {account.owner!r} has {num_states} states"
    assert all(state.account in shares.accounts for state in states), "a state has no account"
    pages = sum(max(0, a.num_pages - shares.sure_pages) for a in shares.accounts)
    assert pages <= shares.pool_pages, f"{pages} pages come from a pool of {shares.pool_pages}"
    num = sum(max(0, a.num_sequences - shares.sure_sequences) for a in shares.accounts)
    assert num <= shares.pool_sequences, f"{num} sequences from a pool of {shares.pool_sequences}"
