"""Who may hold how much of the engine: a guarantee for every owner, and a pool they share.

Used by :mod:`omni.engine.engine` and :mod:`omni.engine.state_cache`; knows owners and counts.
An *owner* is whoever sequences work for; to the assistant, a session.

Every owner that there may be, here or still to come, is sure of as many pages and sequences as
everybody else; what an owner holds beyond that comes out of one pool. As nothing is ever taken
back from a sequence, this is what keeps one owner from starving another: within its guarantee an
owner is never refused, whatever the others did before it came or do now, and what nobody is sure
of is there for whoever asks first.

A page counts once for an owner, however many of its sequences hold it, and in full for each owner
that holds it. So the pages counted are never fewer than the pages in use, and what an owner may
hold never depends on whether another goes on sharing a prefix with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from omni.errors import CapacityError

SEQUENCES_PER_TURN = 4
"""The conversation, an answer that waits for its turn's end, the next guess at one, its probe."""


class Account:
    """What one owner holds: pages with the number of their holds, sequences and snapshots."""

    __slots__ = ("_shares", "holds", "num_sequences", "num_snapshots", "owner")

    def __init__(self, owner: str, shares: Shares) -> None:
        self.owner = owner
        self.holds: dict[int, int] = {}
        self.num_sequences = 0
        self.num_snapshots = 0
        self._shares = shares

    @property
    def num_pages(self) -> int:
        return len(self.holds)

    def hold(self, page: int) -> None:
        self.holds[page] = self.holds.get(page, 0) + 1

    def let_go(self, page: int) -> None:
        num_holds = self.holds.pop(page) - 1
        if num_holds:
            self.holds[page] = num_holds

    def check_pages(self, num_new: int, given_up: Iterable[int]) -> None:
        """See that the owner may hold ``num_new`` more pages, ``given_up`` (holds) let go.

        Raises:
            CapacityError: its guarantee and the pool do not cover them.
        """
        num_lost = sum(self.holds[page] == num for page, num in Counter(given_up).items())
        self._shares.check_pages(self, self.num_pages + num_new - num_lost)


class Shares:
    """The accounts of all owners. Pages and sequences are divided by the same rule.

    An owner is sure of a whole context. Where pages are too few for that, it is sure of what leaves
    one owner room for a whole context, and in any case of half an equal part.
    """

    def __init__(
        self, *, max_owners: int, num_pages: int, max_sequences: int, context_pages: int
    ) -> None:
        self.max_owners = max_owners
        if max_owners == 1:
            self.sure_pages, self.sure_sequences = num_pages, max_sequences
        else:
            beside_one = (num_pages - context_pages) // (max_owners - 1)
            self.sure_pages = min(context_pages, max(beside_one, num_pages // (2 * max_owners)))
            self.sure_sequences = min(SEQUENCES_PER_TURN, max_sequences // max_owners)
        self.pool_pages = num_pages - max_owners * self.sure_pages
        self.pool_sequences = max_sequences - max_owners * self.sure_sequences
        self._accounts: dict[str, Account] = {}

    @property
    def accounts(self) -> list[Account]:
        return list(self._accounts.values())

    def open(self, owner: str) -> Account:
        """The account of ``owner``, made if it has none; :meth:`settle` it when it holds less.

        Raises:
            CapacityError: as many other owners as there may be hold something.
        """
        account = self._accounts.get(owner)
        if account is None:
            if len(self._accounts) >= self.max_owners:
                raise CapacityError(
                    f"all {self.max_owners} shares of the engine are in use "
                    "(server.max_sessions); end a session or raise it"
                )
            account = self._accounts[owner] = Account(owner, self)
        return account

    def settle(self, account: Account) -> None:
        """Forget the account if it holds nothing."""
        if not account.num_sequences and not account.num_snapshots:
            self._accounts.pop(account.owner, None)

    def check_pages(self, account: Account, num_pages: int) -> None:
        """See that ``account`` may hold ``num_pages`` pages in all. Raises CapacityError."""
        sure = self.sure_pages
        borrowed = sum(max(0, a.num_pages - sure) for a in self.accounts if a is not account)
        if max(0, num_pages - sure) + borrowed > self.pool_pages:
            raise CapacityError(
                f"{num_pages} pages of state are needed for this session: it is sure of {sure}, "
                f"and of the {self.pool_pages} beyond that which all sessions share "
                f"{borrowed} are taken by others (engine.num_pages); drop items or responses"
            )

    def check_sequences(self, account: Account) -> None:
        """See that ``account`` may have one more sequence. Raises CapacityError."""
        sure, num_sequences = self.sure_sequences, account.num_sequences + 1
        others = (a for a in self.accounts if a is not account)
        borrowed = sum(max(0, a.num_sequences - sure) for a in others)
        if max(0, num_sequences - sure) + borrowed > self.pool_sequences:
            raise CapacityError(
                f"{num_sequences} sequences are needed for this session: it is sure of {sure}, "
                f"and of the {self.pool_sequences} beyond that which all sessions share "
                f"{borrowed} are taken by others (engine.max_sequences); wait for its responses"
            )
