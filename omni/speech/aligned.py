"""A text being rewritten that remembers which original characters it stands for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass

Rewrite = str | Callable[[re.Match[str]], str | None]


@dataclass(frozen=True, slots=True)
class Aligned:
    """``text`` as it is said; ``ends[i]`` original characters are done once ``text[: i + 1]`` is.

    ``ends`` never decreases and has one entry per character of ``text``.
    """

    text: str
    ends: tuple[int, ...]

    @staticmethod
    def of(text: str) -> Aligned:
        """The unchanged text."""
        return Aligned(text, tuple(range(1, len(text) + 1)))

    def num_chars(self, num_said: int) -> int:
        """Original characters done when ``num_said`` characters of ``text`` have been said."""
        return self.ends[num_said - 1] if num_said else 0

    def sub(self, pattern: re.Pattern[str], rewrite: Rewrite) -> Aligned:
        """``pattern.sub`` with alignment; a callable may return None to leave its match alone.

        What the match and its rewriting share stays aligned letter by letter; what is rewritten is
        done when it has been said to its end. Characters that vanish behind a word (a closing
        ``**``) are done with that word.
        """
        pieces: list[str] = []
        ends: list[int] = []
        position = 0
        for match in pattern.finditer(self.text):
            new = match.expand(rewrite) if isinstance(rewrite, str) else rewrite(match)
            if new is None or new == match[0]:
                continue
            begin, end = match.span()
            pieces.append(self.text[position:begin])
            ends.extend(self.ends[position:begin])
            self._rewritten(begin, end, new, ends)
            pieces.append(new)
            position = end
        if not position:
            return self
        pieces.append(self.text[position:])
        ends.extend(self.ends[position:])
        return Aligned("".join(pieces), tuple(ends))

    def _rewritten(self, begin: int, end: int, new: str, ends: list[int]) -> None:
        """Append the ends of ``new``, which replaces ``text[begin:end]``, to ``ends``."""
        if not new:
            if ends and not self.text[begin - 1].isspace():
                ends[-1] = self.ends[end - 1]
            return
        old = self.text[begin:end]
        done = [0] * len(new)
        blocks = difflib.SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks()
        for i, j, size in blocks:
            at_edge = i == j == 0 or (i + size == len(old) and j + size == len(new))
            if size >= _SHARED_CHARS or at_edge:
                done[j : j + size] = self.ends[begin + i : begin + i + size]
        done[-1] = self.ends[end - 1]
        latest = ends[-1] if ends else 0
        for value in done:
            latest = max(latest, value)
            ends.append(latest)


_SHARED_CHARS = 3
"""A shorter run that old and new share is chance, unless it stands at the same edge of both."""
