"""Pages, slots and names: the state cache by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from omni.engine.shares import Account, Shares
from omni.engine.state_cache import MAX_PREFIXES, StateCache, prefix_digest
from omni.errors import CapacityError
from omni.models.batch import StateSpec, StateView

SPEC = StateSpec(mixers=("attention", "attention"), num_kv_heads=2, head_dim=4)
HYBRID = StateSpec(
    mixers=("recurrent", "attention", "recurrent"),
    num_kv_heads=1,
    head_dim=4,
    recurrent_shape=(2, 3),
    conv_shape=(5, 3),
    journal_width=7,
)


def add_rows(view: StateView, slot: int, rows: slice) -> None:
    """A replay that shows which rows it was given."""
    assert view.recurrent is not None
    assert view.journal is not None
    view.recurrent[slot] += view.journal[slot, :, rows].sum((1, 2))[:, None, None]


def make(
    spec: StateSpec = SPEC, *, num_pages: int = 6, num_slots: int = 2, page_tokens: int = 4
) -> tuple[StateCache, Account]:
    cache = StateCache(
        spec,
        num_pages=num_pages,
        page_tokens=page_tokens,
        num_slots=num_slots,
        journal_tokens=6,
        replay=add_rows,
    )
    shares = Shares(max_owners=1, num_pages=num_pages, max_sequences=9, context_pages=num_pages)
    return cache, shares.open("")


def test_layout_is_the_contract_of_the_batch() -> None:
    view = make()[0].view
    assert view.kv.shape == (2, 2, 7, 4, 2, 4)  # [L, 2, P, page_tokens, Hkv, D]
    assert view.page_tokens == 4
    assert view.recurrent is None
    assert view.conv is None
    view = make(HYBRID)[0].view
    assert view.kv.shape == (1, 2, 7, 4, 1, 4)
    assert view.recurrent is not None
    assert view.recurrent.shape == (3, 2, 2, 3)  # [S, L, *recurrent_shape]
    assert view.conv is not None
    assert view.conv.shape == (3, 2, 5, 3)
    assert view.journal is not None
    assert view.journal.shape == (3, 2, 6, 7)  # [S, L, capacity, journal_width]


def test_fit_grows_and_shrinks_a_table() -> None:
    cache, account = make()
    pages: list[int] = []
    cache.fit(pages, 0, 9, account)
    assert len(set(pages)) == 3
    assert 0 not in pages
    cache.check_integrity([pages], [])
    first = pages[0]
    cache.fit(pages, 1, 4, account)
    assert pages == [first]
    assert cache.num_available == 5
    cache.fit(pages, 0, 0, account)
    assert pages == []
    cache.check_integrity([], [])


def test_fit_that_is_refused_changes_nothing() -> None:
    cache, account = make()
    pages: list[int] = []
    cache.fit(pages, 0, 16, account)
    other = pages[:2]
    cache.share(other, account)
    before = pages.copy()
    # Two shared pages to replace and one more: three, and two are free.
    with pytest.raises(CapacityError, match=r"3 more pages .* 2 of 6 .*engine\.num_pages"):
        cache.fit(pages, 2, 17, account)
    assert pages == before
    cache.check_integrity([pages, other], [])


def test_written_pages_are_copied_up_to_the_first_token_written() -> None:
    cache, account = make()
    pages: list[int] = []
    cache.fit(pages, 0, 8, account)
    cache.view.kv.copy_(torch.arange(cache.view.kv.numel()).view_as(cache.view.kv))
    other = pages.copy()
    cache.share(other, account)
    kept = cache.view.kv.clone()
    cache.fit(pages, 6, 8, account)
    assert pages[0] == other[0]  # before the first written token: still shared
    assert pages[1] != other[1]
    copied = cache.view.kv[:, :, pages[1], :2]
    assert torch.equal(copied, kept[:, :, other[1], :2])
    assert torch.equal(cache.view.kv[:, :, other], kept[:, :, other])
    cache.check_integrity([pages, other], [])


def test_pages_being_freed_count_as_available() -> None:
    cache, account = make(num_pages=4)
    old: list[int] = []
    cache.fit(old, 0, 16, account)
    new: list[int] = []
    cache.fit(new, 0, 13, account, freeing=old)
    assert len(new) == 4
    cache.check_integrity([new], [])


def test_named_pages_are_found_until_evicted_oldest_first() -> None:
    cache, account = make(num_pages=3)
    names = [prefix_digest(b"", [i] * 4) for i in range(3)]
    tables: list[list[int]] = []
    for name in names:
        table: list[int] = []
        cache.fit(table, 0, 4, account)
        cache.register(table[0], name)
        tables.append(table)
    for table in (tables[1], tables[0], tables[2]):
        cache.release(table, account)
    assert (cache.num_available, cache.num_cached) == (3, 3)
    found = cache.find(names[1], account)  # used again: no longer the oldest
    assert found == tables[1][0]
    cache.release([found], account)
    table = []
    cache.fit(table, 0, 4, account)
    assert cache.find(names[0], account) is None
    cache.check_integrity([table], [])
    assert cache.find(names[1], account) == tables[1][0]
    assert cache.find(names[2], account) == tables[2][0]


def test_writing_a_named_page_takes_its_name() -> None:
    cache, account = make()
    pages: list[int] = []
    cache.fit(pages, 0, 4, account)
    cache.register(pages[0], b"name")
    cache.fit(pages, 4, 8, account)  # writes only after it
    held = cache.find(b"name", account)
    assert held == pages[0]
    cache.release([held], account)
    cache.fit(pages, 3, 8, account)
    assert cache.find(b"name", account) is None
    cache.check_integrity([pages], [])


def test_first_page_of_a_name_keeps_it() -> None:
    cache, account = make()
    pages: list[int] = []
    cache.fit(pages, 0, 8, account)
    cache.register(pages[0], b"name")
    cache.register(pages[1], b"name")
    assert cache.find(b"name", account) == pages[0]
    cache.check_integrity([pages, pages[:1]], [])


def test_a_digest_depends_on_every_token_before() -> None:
    first = prefix_digest(b"", [1, 2, 3, 4])
    assert prefix_digest(b"", [1, 2, 3, 4]) == first
    assert prefix_digest(b"", [1, 2, 3, 5]) != first
    assert prefix_digest(first, [5, 6]) != prefix_digest(b"", [5, 6])
    assert prefix_digest(b"", [1, 256]) != prefix_digest(b"", [257, 0])


def test_checkpoint_and_load_are_bitwise_and_independent_of_the_slot() -> None:
    cache, _ = make(HYBRID)
    view = cache.view
    assert view.recurrent is not None
    assert view.conv is not None
    a, b = cache.take_slot(), cache.take_slot()
    assert {a, b} == {1, 2}
    for slot in (a, b):
        cache.load(slot, None)
        assert not view.recurrent[slot].any()
        assert not view.conv[slot].any()
    view.recurrent[a] = torch.randn(2, 2, 3)
    view.conv[a] = torch.randn(2, 5, 3)
    recurrent, conv = view.recurrent[a].clone(), view.conv[a].clone()
    checkpoint = cache.checkpoint(a, 17)
    view.recurrent[a] += 1
    view.conv[a] += 1
    for slot in (b, a):
        cache.load(slot, checkpoint)
        assert torch.equal(view.recurrent[slot], recurrent)
        assert torch.equal(view.conv[slot], conv)
    view.recurrent[a] += 1  # a checkpoint is a value: the slot's life does not reach it
    assert torch.equal(checkpoint.slots.recurrent[0], recurrent)
    cache.release_slot(a)
    cache.check_integrity([], [b])


def test_a_slot_is_copied_with_the_rows_of_its_journal_that_count() -> None:
    cache, _ = make(HYBRID)
    view = cache.view
    a, b = cache.take_slot(), cache.take_slot()
    assert view.recurrent is not None
    assert view.journal is not None
    for slot in (a, b):
        cache.load(slot, None)
    view.recurrent[a] = torch.randn(2, 2, 3)
    view.journal[a] = torch.randn(2, 6, 7)
    view.journal[b] = -1
    cache.copy_slot(a, b, 4)
    assert torch.equal(view.recurrent[b], view.recurrent[a])
    assert torch.equal(view.journal[b, :, :4], view.journal[a, :, :4])
    assert bool((view.journal[b, :, 4:] == -1).all())
    before = view.recurrent[a].clone()
    cache.replay(b, slice(1, 3))
    assert torch.equal(view.recurrent[a], before)
    added = view.journal[b, :, 1:3].sum((1, 2))[:, None, None]
    assert torch.equal(view.recurrent[b], before + added)


def test_prefixes_that_were_used_least_recently_are_forgotten() -> None:
    cache, _ = make(HYBRID)
    slot = cache.take_slot()
    cache.load(slot, None)
    names = [bytes([i]) for i in range(MAX_PREFIXES + 1)]
    for i, name in enumerate(names[:-1]):
        cache.keep_prefix(name, cache.checkpoint(slot, 4 * (i + 1)))
    assert cache.find_prefix(names[0]) is not None
    cache.keep_prefix(names[-1], cache.checkpoint(slot, 4))
    assert cache.find_prefix(names[1]) is None
    kept = cache.find_prefix(names[0])
    assert kept is not None
    assert kept.num_tokens == 4


def test_attention_alone_needs_no_slots() -> None:
    cache, _ = make()
    assert cache.take_slot() == 0
    cache.release_slot(0)
    cache.check_integrity([], [0, 0])


def test_integrity_names_a_page_in_two_places() -> None:
    cache, account = make()
    pages: list[int] = []
    cache.fit(pages, 0, 4, account)
    cache._free.append(pages[0])
    with pytest.raises(AssertionError, match=f"page {pages[0]} is in 2 places"):
        cache.check_integrity([pages], [])


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_memory_becomes_resident_with_use() -> None:
    spec = StateSpec(mixers=("attention",) * 4, num_kv_heads=2, head_dim=64)
    before = _resident_bytes()
    cache, account = make(spec, num_pages=8192, page_tokens=16)
    total = cache.view.kv.numel() * 4
    assert total == 4 * 2 * 8193 * 16 * 2 * 64 * 4  # 512 MiB
    assert _resident_bytes() - before < total // 20
    pages: list[int] = []
    cache.fit(pages, 0, 1024 * 16, account)
    cache.view.kv[:, :, pages] = 1.0
    grown = _resident_bytes() - before
    assert total // 16 < grown < total // 4  # an eighth is in use; huge pages round up
