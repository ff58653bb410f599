"""Pages of keys and values, and slots of recurrent state: who owns what, and what may be reused.

Called by :mod:`omni.engine.engine`; knows pages, slots and checkpoints, not sequences or tokens.

Pages are counted by reference, and every hold is charged to an account. A page that several hold
is complete and never written: before a holder writes, :meth:`StateCache.fit` gives it a page of
its own (copy-on-write). A full page is a function of the tokens up to its end, so it is registered
under a digest of that prefix and the next sequence that begins alike shares it. Registered pages
nobody holds stay until pages run out and are evicted least recently released first; a prefix
releases its last page first, so ends go before beginnings.

Recurrent state cannot be cut, so its history is kept as :class:`Checkpoint` values: immutable,
shared by Python reference, freed with the last of them. Between two checkpoints a slot's journal
holds what each token put into the state, from which :meth:`StateCache.replay` goes on to any of
them. Checkpoints at the end of prefixes that others will begin with are kept by the prefix's name
(:meth:`StateCache.keep_prefix`), the :data:`MAX_PREFIXES` used last.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from omni.engine.copies import Slots, copies_of
from omni.engine.shares import Account
from omni.errors import CapacityError
from omni.models.batch import StateSpec, StateView


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The recurrent layers' state after ``num_tokens`` tokens; never written."""

    num_tokens: int
    slots: Slots  # one


MAX_PREFIXES = 8
"""Prefixes whose recurrent state is kept for sequences to come; a checkpoint each."""

Replay = Callable[[StateView, int, slice], None]
""":meth:`omni.models.batch.Backbone.replay`."""


def prefix_digest(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Name of a page: a digest of its tokens and, through ``parent``, of all before them.

    128 bits of BLAKE2: sessions share pages by this name, so it must not collide by design.
    """
    return hashlib.blake2b(parent + array("q", token_ids).tobytes(), digest_size=16).digest()


class StateCache:
    """All state tensors of the engine and the account of who holds them.

    ``num_pages`` and ``num_slots`` can be held; page 0 and slot 0 (null) come on top. The tensors
    are allocated uninitialised, so that memory becomes resident as pages are first written; freed
    pages are reused last in, first out for the same reason. Conv windows are fp32 like the
    recurrent state: they are small.
    """

    def __init__(
        self,
        spec: StateSpec,
        *,
        num_pages: int,
        page_tokens: int,
        num_slots: int,
        journal_tokens: int = 0,
        replay: Replay | None = None,
    ) -> None:
        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device=spec.device)

        kv_shape = (2, num_pages + 1, page_tokens, spec.num_kv_heads, spec.head_dim)
        recurrent = conv = journal = None
        if spec.num_recurrent:
            slots = (num_slots + 1, spec.num_recurrent)
            recurrent = empty(*slots, *spec.recurrent_shape)
            if spec.conv_shape:
                conv = empty(*slots, *spec.conv_shape)
            assert min(spec.journal_width, journal_tokens) > 0, "recurrent layers need a journal"
            journal = empty(*slots, journal_tokens, spec.journal_width)
        self.view = StateView(
            kv=empty(spec.num_attention, *kv_shape, dtype=spec.kv_dtype),
            recurrent=recurrent,
            conv=conv,
            journal=journal,
        )
        self._slots = None if recurrent is None else Slots(recurrent, conv)
        self._copies = copies_of(spec)
        self._replay = replay
        self.journal_tokens = journal_tokens
        self.num_pages = num_pages
        self.num_slots = num_slots if spec.num_recurrent else 0
        self.page_tokens = page_tokens
        self._refs = [0] * (num_pages + 1)
        self._free = list(range(num_pages, 0, -1))
        self._page_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}
        self._unheld: OrderedDict[int, None] = OrderedDict()  # registered, next to evict first
        self._free_slots = list(range(self.num_slots, 0, -1))
        self._prefixes: OrderedDict[bytes, Checkpoint] = OrderedDict()  # used last at the end

    @property
    def is_recurrent(self) -> bool:
        """Whether part of the state is recurrent, which cannot be cut at any token."""
        return self.view.recurrent is not None

    # --- Pages -------------------------------------------------------------------------------

    @property
    def num_available(self) -> int:
        """Pages that can be had now, evicting what nobody holds."""
        return len(self._free) + len(self._unheld)

    @property
    def num_cached(self) -> int:
        """Pages kept for the next sequence that begins alike, held by nobody."""
        return len(self._unheld)

    def share(self, pages: Iterable[int], account: Account) -> None:
        """Hold ``pages`` once more."""
        for page in pages:
            assert self._refs[page] > 0, f"page {page} is shared but nobody holds it"
            self._refs[page] += 1
            account.hold(page)

    def release(self, pages: Sequence[int], account: Account) -> None:
        """Give up one hold of each of ``pages``, the last first."""
        for page in reversed(pages):
            self._refs[page] -= 1
            assert self._refs[page] >= 0, f"page {page} is released but nobody holds it"
            account.let_go(page)
            if self._refs[page] == 0:
                if page in self._digest_of:
                    self._unheld[page] = None
                else:
                    self._free.append(page)

    def fit(
        self,
        pages: array[int],
        written_from: int,
        num_tokens: int,
        account: Account,
        freeing: Sequence[int] = (),
    ) -> None:
        """Make ``pages`` cover ``num_tokens`` tokens and writable from token ``written_from`` on.

        Pages past the end are released, as are ``freeing`` (pages that this table replaces);
        shared pages in the written part are replaced, keeping the tokens before ``written_from``;
        registered ones lose their name, for their content is about to change.

        Raises:
            CapacityError: too few pages, or too few for ``account``; nothing was changed.
        """
        first = written_from // self.page_tokens
        last = -(-num_tokens // self.page_tokens)
        shared = [i for i in range(first, min(len(pages), last)) if self._refs[pages[i]] > 1]
        num_needed = len(shared) + max(0, last - len(pages))
        if num_needed or freeing or len(pages) > last:
            dropped = [*freeing, *pages[last:]]
            num_gained = sum(self._refs[page] == 1 for page in dropped)
            if num_needed > self.num_available + num_gained:
                raise CapacityError(
                    f"{num_needed} more pages of state are needed and {self.num_available} of "
                    f"{self.num_pages} are free (engine.num_pages); end a session or raise it"
                )
            if num_needed:
                account.check_pages(num_needed, [*dropped, *(pages[i] for i in shared)])
            self.release(dropped, account)
            del pages[last:]
            for i in shared:
                num_kept = max(0, written_from - i * self.page_tokens)
                pages[i] = self._replace(pages[i], num_kept, account)
            pages.extend(self._take(account) for _ in range(last - len(pages)))
        if self._digest_of:
            for i in range(first, last):
                self._forget(pages[i])

    def _take(self, account: Account) -> int:
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._unheld.popitem(last=False)
            self._forget(page)
        self._refs[page] = 1
        account.hold(page)
        return page

    def _replace(self, page: int, num_kept: int, account: Account) -> int:
        fresh = self._take(account)
        self._copies.page(self.view.kv, page, fresh, min(num_kept, self.page_tokens))
        self.release([page], account)
        return fresh

    # --- Prefixes ----------------------------------------------------------------------------

    def register(self, page: int, digest: bytes) -> None:
        """Name a full, computed page; the first page of a name keeps it."""
        if digest not in self._page_of and page not in self._digest_of:
            self._page_of[digest] = page
            self._digest_of[page] = digest

    def find(self, digest: bytes, account: Account) -> int | None:
        """Hold the page of that name and return it, if there is one."""
        page = self._page_of.get(digest)
        if page is not None:
            self._unheld.pop(page, None)
            self._refs[page] += 1
            account.hold(page)
        return page

    def keep_prefix(self, digest: bytes, checkpoint: Checkpoint) -> None:
        """Keep the recurrent state at the end of the page that ``digest`` names."""
        self._prefixes[digest] = checkpoint
        self._prefixes.move_to_end(digest)
        while len(self._prefixes) > MAX_PREFIXES:
            self._prefixes.popitem(last=False)

    def find_prefix(self, digest: bytes) -> Checkpoint | None:
        """What :meth:`keep_prefix` kept under that name."""
        if digest in self._prefixes:
            self._prefixes.move_to_end(digest)
        return self._prefixes.get(digest)

    def _forget(self, page: int) -> None:
        if digest := self._digest_of.pop(page, None):
            del self._page_of[digest]

    # --- Slots -------------------------------------------------------------------------------

    def take_slot(self) -> int:
        """A slot whose content is undefined until :meth:`load`; 0 without recurrent layers."""
        return self._free_slots.pop() if self.num_slots else 0

    def release_slot(self, slot: int) -> None:
        if slot:
            self._free_slots.append(slot)

    def checkpoint(self, slot: int, num_tokens: int) -> Checkpoint:
        """Copy a slot, which holds the state after ``num_tokens`` tokens."""
        assert self._slots is not None, "a checkpoint needs recurrent layers"
        recurrent, conv = self._slots.recurrent, self._slots.conv
        copy = Slots(
            torch.empty_like(recurrent[:1]), None if conv is None else torch.empty_like(conv[:1])
        )
        self._copies.slot(self._slots, slot, copy, 0)
        return Checkpoint(num_tokens=num_tokens, slots=copy)

    def load(self, slot: int, checkpoint: Checkpoint | None) -> None:
        """Write a checkpoint (None: the state before the first token, zero) into a slot."""
        assert self._slots is not None, "a slot needs recurrent layers"
        if checkpoint is not None:
            self._copies.slot(checkpoint.slots, 0, self._slots, slot)
            return
        self._slots.recurrent[slot].zero_()
        if self._slots.conv is not None:
            self._slots.conv[slot].zero_()

    def copy_slot(self, source: int, target: int, num_rows: int) -> None:
        """Copy a slot with the first ``num_rows`` rows of its journal."""
        assert self._slots is not None, "a slot needs recurrent layers"
        self._copies.slot(self._slots, source, self._slots, target)
        self.copy_journal(source, target, num_rows)

    def copy_journal(self, source: int, target: int, num_rows: int) -> None:
        """Copy the first ``num_rows`` rows of a slot's journal."""
        assert self.view.journal is not None, "recurrent layers have a journal"
        rows = self.view.journal[:, :, :num_rows]
        rows[target].copy_(rows[source])

    def replay(self, slot: int, rows: slice) -> None:
        """Advance a slot by ``rows`` of its journal."""
        assert self._replay is not None, "a journal comes with its replay"
        self._replay(self.view, slot, rows)

    # --- Account -----------------------------------------------------------------------------

    def check_integrity(self, tables: Iterable[Sequence[int]], slots: Iterable[int]) -> None:
        """Compare the books with ``tables`` and ``slots``, all that are held.

        Raises:
            AssertionError: naming the first page or slot whose account is wrong.
        """
        held = Counter(page for table in tables for page in table)
        free = Counter(self._free)
        assert not held[0] + free[0], "the null page is in use"
        for page in range(1, self.num_pages + 1):
            assert self._refs[page] == held[page], (
                f"page {page} leaks: counted {self._refs[page]} times, held {held[page]} times"
            )
            places = (held[page] > 0) + free[page] + (page in self._unheld)
            assert places == 1, f"page {page} is in {places} places, expected 1"
        assert all(page in self._digest_of for page in self._unheld), "an unheld page has no name"
        assert {p: d for d, p in self._page_of.items()} == self._digest_of, "names disagree"
        assert not any(free[page] for page in self._digest_of), "a free page has a name"
        slots_seen = sorted([*self._free_slots, *(slot for slot in slots if slot)])
        assert slots_seen == list(range(1, self.num_slots + 1)), f"slots leak: {slots_seen}"
