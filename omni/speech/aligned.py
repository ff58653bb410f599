"""A text being rewritten that remembers which original characters it stands for."""

from __future__ import annotations

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

        What the match and its rewriting share at both ends stays aligned letter by letter; a
        rewritten middle counts as done only when it has been said to its end. Characters that
        vanish behind a word (a closing ``**``) are done with that word.
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
        old = self.text[begin:end]
        if not new:
            if ends and end > begin and not self.text[begin - 1].isspace() and begin:
                ends[-1] = self.ends[end - 1]
            return
        head = _num_common(old, new)
        tail = _num_common(old[head:][::-1], new[head:][::-1])
        before = ends[-1] if ends else 0
        ends.extend(self.ends[begin : begin + head])
        done = ends[-1] if ends else before
        num_middle = len(new) - head - tail
        if num_middle:
            ends.extend([done] * (num_middle - 1))
            ends.append(self.ends[end - tail - 1] if end - tail > begin + head else done)
        elif end - tail > begin + head and ends and not tail:
            ends[-1] = self.ends[end - 1]
        ends.extend(self.ends[end - tail : end])


def _num_common(a: str, b: str) -> int:
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count
