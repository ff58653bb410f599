"""Progress bars of a fetch; plain lines when the output is not a terminal."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column

WIDE = 104
"""Characters of a terminal that has room for the speed and a longer bar."""


class Bars:
    """A :class:`omni.store.Progress` that draws one bar per model on standard error."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stderr)
        self._tasks: dict[str, TaskID] = {}
        self._last_line: dict[str, str] = {}
        self._rich = Progress(
            *_columns(is_wide=self._console.width >= WIDE),
            console=self._console,
            disable=not self._console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._rich.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._rich.stop()

    def begin(self, name: str, total_bytes: int) -> None:
        self._tasks[name] = self._rich.add_task(name, total=total_bytes, doing="")
        self._say(name, f"{total_bytes / 1e6:,.0f} MB to download")

    def update(self, name: str, done_bytes: int, doing: str) -> None:
        self._rich.update(self._tasks[name], completed=done_bytes, doing=doing)
        self._say(name, doing)

    def end(self, name: str) -> None:
        task = self._rich.tasks[self._tasks[name]]
        self._rich.update(task.id, completed=task.total, doing="verified")
        self._say(name, "verified")

    def _say(self, name: str, what: str) -> None:
        """One line per change of what is being done, where bars cannot be drawn."""
        if not self._console.is_terminal and self._last_line.get(name) != what:
            self._last_line[name] = what
            print(f"{name}: {what}", file=sys.stderr, flush=True)


def _columns(*, is_wide: bool) -> list[ProgressColumn]:
    """What a row shows: at most 80 characters unless ``is_wide``; a cell is cut, never wrapped."""

    def cell() -> Column:
        return Column(no_wrap=True)

    return [
        TextColumn("{task.description}", table_column=cell()),
        BarColumn(bar_width=24 if is_wide else 10, table_column=cell()),
        DownloadColumn(table_column=cell()),
        *([TransferSpeedColumn(table_column=cell())] if is_wide else []),
        TimeRemainingColumn(table_column=cell()),
        TextColumn("[dim]{task.fields[doing]}", table_column=cell()),
    ]
