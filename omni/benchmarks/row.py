"""One line of the table of targets; made by every benchmark's report, printed by ``table``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One target; ``met`` None where there is none."""

    what: str
    target: str
    measured: str
    met: bool | None
    command: str
