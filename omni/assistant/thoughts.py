"""Where an answer's thought ends: what comes before is neither said, nor heard, nor kept.

Used by :mod:`omni.assistant.response` and :mod:`omni.assistant.text_chat`, a token at a time. A
thought is open from the beginning where the answer's header opened it (``model.thinking``), or the
model opens one itself with its first token. Tool calls inside a thought are thought, not made.
"""

from __future__ import annotations

from omni.models.tokenizer import Tokenizer

OPENING, CLOSING = "<think>", "</think>"


def is_opened_by(header: list[int], tokenizer: Tokenizer) -> bool:
    """Whether the answer's ``header`` ends in a thought that it leaves to the model."""
    return tokenizer.decode(header, special=True).rstrip().endswith(OPENING)


class Thought:
    """The thought at the beginning of one answer, which may be none.

    ``is_open``: the model is thinking.
    """

    def __init__(self, tokenizer: Tokenizer, *, is_open: bool) -> None:
        self.is_open = is_open
        self._opening = tokenizer.special_ids.get(OPENING)
        self._closing = tokenizer.special_ids.get(CLOSING)
        self._may_open = not is_open
        self._may_be_blank = is_open  # line breaks after the thought are not the answer's
        self._tail = ""

    def push(self, token_id: int, text: str) -> str | None:
        """What of a token's ``text`` belongs to the answer; None if the token does not at all."""
        if self._may_open and token_id == self._opening:
            self.is_open = self._may_be_blank = True
            self._may_open = False
            return None
        if self._may_open and text.strip():
            self._may_open = False
        if self.is_open:
            rest = self._after_closing(token_id, text)
            if rest is None:
                return None
            self.is_open = False
            text = rest
        if not self._may_be_blank:
            return text
        text = text.lstrip()
        self._may_be_blank = not text
        return text or None

    def _after_closing(self, token_id: int, text: str) -> str | None:
        """Text after the end of the thought; None while it goes on."""
        if token_id == self._closing:
            return ""
        if self._closing is not None:
            return None  # spelt out, it is only talked about
        self._tail += text
        _, closing, rest = self._tail.partition(CLOSING)
        self._tail = self._tail[-len(CLOSING) :]
        return rest if closing else None
