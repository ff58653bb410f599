"""Cuts a growing text into clauses to speak: the first one early, later ones at natural ends.

Every decision depends only on the text before the cut and a bounded look ahead, and is postponed
until that look ahead is there; so any chunking of a text gives the very same clauses, and the
clauses concatenate to the text. White space leads the clause that follows it, as in the backbone's
tokens. Called by :mod:`omni.speech.stream`; knows nothing of sound.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["prose", "fence", "code"]
Verdict = Literal["wait", "no", "clause", "sentence"]


@dataclass(frozen=True, slots=True)
class Clause:
    """A run of the text that is synthesised at once.

    ``fence`` is the line that opens a code block, ``code`` a line inside one (or its closing line).
    """

    text: str
    kind: Kind = "prose"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClausePolicy:
    """Clause sizes in words; a decoder that synthesises slowly wants smaller ones."""

    first_min_words: int = 3  # the first clause may end at a comma after this many words
    first_max_words: int = 6  # and is cut at a word boundary after this many
    min_words: int = 10  # later clauses: the same
    max_words: int = 28
    max_chars: int = 320  # bounds text without spaces; also how long an open bracket is awaited


@dataclass(frozen=True, slots=True)
class Splitter:
    """The text not yet cut off, and where in the answer it stands: a value.

    ``num_words`` counts the words of prose already cut off; ``fence`` is the mark of the open code
    block (three or more backticks or tildes), empty outside one.
    """

    policy: ClausePolicy
    pending: str = ""
    at_start: bool = True
    num_words: int = 0
    fence: str = ""

    def push(self, text: str) -> Splitter:
        """The same place with more text pending."""
        return replace(self, pending=self.pending + text)

    def cut(self, *, final: bool = False) -> tuple[Clause, Splitter] | None:
        """Cut one clause off, or None while the pending text may still grow into more of it.

        ``final`` says that no text follows; then only an empty pending text gives None.
        """
        if not self.pending:
            return None
        clause, fence = self._next(final)
        if clause is None:
            return None
        words = _num_words(clause.text) if clause.kind == "prose" else 0
        rest = replace(
            self,
            pending=self.pending[len(clause.text) :],
            at_start=False,
            num_words=self.num_words + words,
            fence=fence,
        )
        return clause, rest

    def cuts(self, *, final: bool = False) -> Iterator[Clause]:
        """All clauses that can be cut off now, in order (does not change this value)."""
        state = self
        while (found := state.cut(final=final)) is not None:
            clause, state = found
            yield clause

    def _next(self, final: bool) -> tuple[Clause | None, str]:
        """The next clause and the fence that is open behind it."""
        text, limit = self.pending, self.policy.max_chars
        start = len(text) - len(text.lstrip())
        if start == len(text):
            return (Clause(text) if final else None), self.fence
        at_line_start = self.at_start or "\n" in text[:start]
        opening = _FENCE.match(text, start) if at_line_start else None
        if self.fence or opening:
            end = text.find("\n", start, start + limit)
            if end < 0:
                if not final and len(text) - start < limit:
                    return None, self.fence
                end = min(len(text), start + limit)
            if self.fence:
                closes = at_line_start and text[start:end].rstrip() == self.fence
                return Clause(text[:end], "code"), "" if closes else self.fence
            assert opening is not None
            return Clause(text[:end], "fence"), opening[0]
        if at_line_start and not final and _FENCE_BEGUN.fullmatch(text, start):
            return None, ""
        end_or_none = self._prose_end(text, start, final)
        return (None if end_or_none is None else Clause(text[:end_or_none])), ""

    def _prose_end(self, text: str, start: int, final: bool) -> int | None:
        """Where the prose clause ends that begins at ``start``; None: not known yet."""
        policy = self.policy
        is_first = self.num_words < policy.first_min_words
        least = policy.first_min_words if is_first else policy.min_words
        most = policy.first_max_words if is_first else policy.max_words
        search_end, cut_end = _limits(text, start, most, policy.max_chars)
        position, fallback = start, 0
        while (found := _CANDIDATE.search(text, position, search_end)) is not None:
            mark, position = found[0], found.end()
            if mark in _CLOSERS:
                close = _protected_end(text, found.start(), mark, policy.max_chars)
                if close == _UNKNOWN and not final:
                    return None
                if close > search_end:  # the limit falls inside: cut before the span, or after it
                    before = len(text[: found.start()].rstrip())
                    return fallback or (before if before > start else close)
                position = max(position, close)
                continue
            verdict = _judge(text, start, found, final)
            if verdict == "wait":
                return None
            if verdict == "sentence":
                return _sentence_end(text, found)
            if verdict == "clause":
                num_words = _num_words(text[start:position])
                if num_words >= least:
                    return position
                if num_words >= max(2, least // 2):
                    fallback = position
        if cut_end is not None:
            return fallback or _best_break(text, start, cut_end, least)
        return len(text) if final else None


_FENCE = re.compile(r"`{3,}|~{3,}")
_FENCE_BEGUN = re.compile(r"`{1,2}|~{1,2}")
_CLOSERS = {"`": "`", "[": "]", "$$": "$$", "\\(": "\\)", "\\[": "\\]"}
_UNKNOWN = -1
_CANDIDATE = re.compile(
    r"`|\[|\$\$|\\[(\[]|[.!?…]+|[。！？,;，；、:—]|[ \t][-–][ \t]|[ \t]*\n[ \t]*"
)
_CLOSING = re.compile(r"[\"'”’»)\]*_]*")

# A full stop after these never ends a sentence: a name or a number follows.
_BEFORE_NAMES = re.compile(
    r"(?:mr|mrs|ms|dr|prof|st|mt|ft|gen|gov|sen|rep|capt|lt|col|sgt|cmdr|rev|hon|pres|fr|msgr"
    r"|nos?|vol|figs?|eq|sec|ch|pp?|vs|cf|al|e\.?g|i\.?e|approx|est|ca|viz)",
    re.IGNORECASE,
)
_BREAK_BEFORE = re.compile(
    r"(?:and|or|but|because|so|that|which|who|where|when|while|if|as|to|of|in|on|at|for|with|from"
    r"|by|is|are|was|were|has|have|can|will|than|then|about|into|over|under|through)",
    re.IGNORECASE,
)


def _num_words(text: str) -> int:
    return sum(any(c.isalnum() for c in word) for word in text.split())


def _limits(text: str, start: int, most: int, max_chars: int) -> tuple[int, int | None]:
    """Where punctuation may be looked for, and where to cut without any (None: no need yet).

    A clause spans at most ``most`` words and ``max_chars`` characters; both limits are known only
    when the text is seen to go on behind them.
    """
    end = start
    for count, word in enumerate(re.finditer(r"\S+", text[start : start + max_chars + 1])):
        if count == most:
            return start + word.start(), end
        end = start + word.end()
    search_end = start + max_chars
    if len(text) <= search_end:
        return len(text), None
    last_space = max(text.rfind(space, start + 1, search_end) for space in " \t\n")
    return search_end, last_space if last_space > start else search_end


def _protected_end(text: str, start: int, mark: str, max_chars: int) -> int:
    """End of a span that must not be cut (inline code, link text, maths).

    0: the line or paragraph ends, or ``max_chars`` pass, before it closes, so it is no such span.
    """
    limit = start + max_chars
    gap = "\n\n" if mark in ("$$", "\\[") else "\n"
    broken = text.find(gap, start, limit)
    close = text.find(_CLOSERS[mark], start + len(mark), broken if broken >= 0 else limit)
    if close >= 0:
        return close + len(_CLOSERS[mark])
    return 0 if broken >= 0 or len(text) >= limit else _UNKNOWN


def _judge(text: str, start: int, found: re.Match[str], final: bool) -> Verdict:
    """Whether the punctuation ``found`` ends a sentence, a clause, or nothing."""
    mark, begin, end = found[0], found.start(), found.end()
    if "\n" in mark:
        return _judge_newline(text, start, begin, end, final)
    if mark in "。！？":
        return "sentence"
    if mark in "—，；、":
        return "clause"
    if mark in ",;:":
        word = re.split(r"\s", text[start:begin])[-1].lstrip("\"'“‘(*_")
        if mark != ":" and word and word.replace("-", "").replace("'", "").isalpha():
            return "clause"  # no need to see what follows: this is no number, URL or code
        if end == len(text):
            return "no" if final else "wait"
        return "clause" if text[end].isspace() else "no"
    if mark.strip() in ("-", "–"):
        line = text[text.rfind("\n", 0, begin + 1) + 1 : begin]
        return "clause" if line.strip() else "no"  # at a line's start it marks a list item
    closing = _CLOSING.match(text, end)
    assert closing is not None
    gap = re.compile(r"\s*").match(text, closing.end())
    assert gap is not None
    if gap.end() == len(text) and gap[0].count("\n") < 2:
        return "sentence" if final else "wait"
    if not gap[0]:
        return "no"
    if gap[0].count("\n") >= 2 or _ends_sentence(text, start, begin, mark, text[gap.end()]):
        return "sentence"
    return "no"


def _judge_newline(text: str, start: int, begin: int, end: int, final: bool) -> Verdict:
    """A line's end is a sentence's unless the next line goes on in small letters (wrapped)."""
    if end == len(text):
        return "sentence" if final else "wait"
    if not text[end].islower():
        return "sentence"
    line = text[max(start, text.rfind("\n", 0, begin) + 1) : begin].lstrip()
    return "sentence" if line.startswith(("#", "|", "- ", "* ", "+ ", ">")) else "no"


def _ends_sentence(text: str, start: int, begin: int, mark: str, following: str) -> bool:
    """Whether the stop at ``begin`` ends a sentence, given the first letter that follows."""
    if "!" in mark or "?" in mark:
        return True
    if following.islower():
        return False
    if mark != ".":
        return True
    word = re.split(r"\s", text[start:begin])[-1].lstrip("(\"'“‘[*_")
    if _BEFORE_NAMES.fullmatch(word):
        return not following.isalnum() and following not in "\"“'("
    if word.isdigit() and not text[start : begin - len(word)].strip():
        return False  # "1." opens a list item
    is_initial = len(word) == 1 and word.isupper() and word != "I"
    is_acronym = "." in word and word.replace(".", "").isupper()
    return not (is_initial or is_acronym)


def _sentence_end(text: str, found: re.Match[str]) -> int:
    """Quotes and brackets that close behind a stop belong to its clause; a newline to the next."""
    if "\n" in found[0]:
        return found.start()
    if found[0] in "。！？":
        return found.end()
    closing = _CLOSING.match(text, found.end())
    assert closing is not None
    return closing.end()


def _best_break(text: str, start: int, limit: int, least: int) -> int:
    """The word boundary up to ``limit``, in its last third, where a speaker would best breathe."""
    words = list(re.finditer(r"\S+", text[start:limit]))
    for index in range(len(words) - 1, max(least, len(words) * 2 // 3) - 1, -1):
        if _BREAK_BEFORE.fullmatch(words[index][0]):
            return start + words[index - 1].end()
    return limit
