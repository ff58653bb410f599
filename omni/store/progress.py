"""What a fetch reports while it runs; the command line draws it, tests record it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the course of one fetch; called from the fetching thread, often."""

    def begin(self, name: str, total_bytes: int) -> None:
        """A model's download of ``total_bytes`` begins."""

    def update(self, name: str, done_bytes: int, doing: str) -> None:
        """``done_bytes`` of the total are here; ``doing`` says what is going on in a few words."""

    def end(self, name: str) -> None:
        """The model is whole and verified."""


class Silent:
    """Reports nothing."""

    def begin(self, name: str, total_bytes: int) -> None:
        pass

    def update(self, name: str, done_bytes: int, doing: str) -> None:
        pass

    def end(self, name: str) -> None:
        pass
