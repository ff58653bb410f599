"""Finds tool calls in an answer while it is being generated.

Qwen2.5 is taught to write ``<tool_call>{"name": ..., "arguments": ...}</tool_call>``; the small
coder models write the same object bare or in a code fence instead (measured on the 0.5B: bare in
two of three calls, fenced in the rest, never tagged). Qwen3.5 writes tagged parameters
(:mod:`omni.models.tagged_calls`). All forms are recognised. Called by :mod:`omni.assistant`, which
speaks the visible text; so text that may become a call is held back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from omni.models import tagged_calls
from omni.types import ToolSpec

_TAGS = ("<tool_call>", "<tools>", "<function_call>")
_MARKS = (*_TAGS, tagged_calls.OPENER, "```")
_CLOSERS = ("</tool_call>", "</tools>", "</function_call>", "</function>", "```")
_OPENER = re.compile("|".join(map(re.escape, (*_MARKS, "{", "["))))
_FENCE = re.compile(r"```(?:json|xml|tool_call)?\s*(?=[{\[<])")
_FENCE_BEGINNING = re.compile(r"```(?:j|js|jso|json|x|xm|xml|t|to|too|tool|tool_\w{0,4})?\s*\Z")
_KEYS = ("name", "function", "type", "tool", "arguments", "parameters")
_OBJECT = re.compile(r'\[?\s*\{\s*"(?:' + "|".join(_KEYS) + r')"\s*:')
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """``arguments`` is the JSON text of an object."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class _Found:
    """What a candidate turned out to be: its first ``length`` characters; 0: mere text."""

    length: int
    value: Any = None
    is_meant: bool = False  # as a call, whatever the value is


class ToolCallParser:
    """Splits an answer into what is said and what is called.

    ``tools`` are those on offer; with none, everything is visible. ``refused`` collects what was
    meant as a call and cannot be one: an unknown tool or a broken form. It is never visible.
    """

    def __init__(self, tools: Iterable[ToolSpec]) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._pending = ""
        self._after_call = False
        self._called = False
        self.refused: list[str] = []

    def push(self, text: str) -> tuple[str, list[FunctionCall]]:
        """Take the next text of the answer; return what is now surely visible and surely called."""
        self._pending += text
        return self._drain(ended=False)

    def flush(self) -> tuple[str, list[FunctionCall]]:
        """The answer has ended: return the rest. A call that only lacks closing braces counts."""
        return self._drain(ended=True)

    def _drain(self, *, ended: bool) -> tuple[str, list[FunctionCall]]:
        visible: list[str] = []
        calls: list[FunctionCall] = []
        while self._pending:
            if not self._tools:
                visible.append(self._take(len(self._pending)))
                break
            if self._after_call and not self._skip_closers(ended=ended):
                break
            opener = _OPENER.search(self._pending)
            if opener is None:
                kept = 0 if ended else _beginning(self._pending, _MARKS)
                visible.append(self._take(len(self._pending) - kept))
                break
            visible.append(self._take(opener.start()))
            found = self._scan(ended=ended)
            if found is None:
                break
            if found.length == 0:
                visible.append(self._take(len(opener.group())))
            else:
                self._settle(found, visible, calls)
        return "".join(visible), calls

    def _settle(self, found: _Found, visible: list[str], calls: list[FunctionCall]) -> None:
        """Take a complete candidate: a call, a refused call, or mere text."""
        source = self._take(found.length)
        values = found.value if isinstance(found.value, list) else [found.value]
        made = [_call(value) for value in values]
        known = [call for call in made if call is not None and call.name in self._tools]
        if known and len(known) == len(made):
            calls += known
            self._called = self._after_call = True
        elif self._called or found.is_meant or any(made):
            self.refused.append(source)
            self._after_call = True
        else:
            visible.append(source)

    def _scan(self, *, ended: bool) -> _Found | None:
        """Judge the candidate that ``_pending`` begins with; None: more text is needed."""
        text, begin = self._pending, 0
        waiting = None if not ended else _Found(0)
        if text.startswith("```"):
            fence = _FENCE.match(text)
            if fence is None:
                return waiting if _FENCE_BEGINNING.match(text) else _Found(0)
            begin = fence.end()
        tag = next((tag for tag in _TAGS if text.startswith(tag, begin)), "")
        body = text[begin + len(tag) :].lstrip()
        marks = (tagged_calls.OPENER,) if tag else (*_TAGS, tagged_calls.OPENER)
        if _beginning(body, marks) == len(body):  # an empty one too
            # What only a call begins with is not said, even if nothing comes of it.
            return _Found(len(text), None, True) if ended and tag == "<tool_call>" else waiting
        if body.startswith(tagged_calls.OPENER):
            read = tagged_calls.read(body, self._tools, ended=ended)
            if read is None:
                return None
            return _Found(len(text) - len(body) + read.length, read.value, True)
        if not tag and body[0] == "<":
            return _Found(0)
        may_be_call = body[0] in "{[" if tag or self._called else _may_be_call(body)
        if not may_be_call:
            return _Found(0)
        try:
            value, length = _DECODER.raw_decode(body)
        except ValueError:
            length, is_closed = _extent(body, "</" if tag else "")
            if length == len(body) and not is_closed and not ended:
                return None
            value = None if is_closed else _close(body[:length])
        is_meant = bool(tag) or (value is None and _OBJECT.match(body) is not None)
        if value is None and not is_meant:
            return _Found(0)
        return _Found(len(text) - len(body) + length, value, is_meant)

    def _skip_closers(self, *, ended: bool) -> bool:
        """Drop what ends a call's wrapping; False: more text is needed to know."""
        while True:
            self._pending = self._pending.lstrip()
            closer = next((mark for mark in _CLOSERS if self._pending.startswith(mark)), None)
            if closer is None:
                break
            self._pending = self._pending[len(closer) :]
        if not self._pending:
            return False
        if not ended and _beginning(self._pending, _CLOSERS) == len(self._pending):
            return False
        self._after_call = False
        return True

    def _take(self, count: int) -> str:
        taken, self._pending = self._pending[:count], self._pending[count:]
        return taken


def _call(value: Any) -> FunctionCall | None:
    """The call that a JSON value means, or None if it is something else."""
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("function"), dict):
        value = value["function"]
    name = value.get("name")
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    return FunctionCall(name, json.dumps(arguments, ensure_ascii=False))


def _may_be_call(body: str) -> bool:
    """Whether ``body`` begins, or may yet begin, like ``{"name": ``."""
    if _OBJECT.match(body):
        return True
    squeezed = re.sub(r"\s+", "", body[:64])
    forms = (f'{bracket}{{"{key}":' for bracket in ("", "[") for key in _KEYS)
    return any(form.startswith(squeezed) for form in forms)


def _extent(body: str, stop: str) -> tuple[int, bool]:
    """How far the first bracketed value of ``body`` goes, and whether its last bracket is there.

    It also ends before ``stop`` (outside of a string), or else with ``body``.
    """
    depth, in_string, escaped = 0, False, False
    for at, char in enumerate(body):
        if in_string:
            in_string = escaped or char != '"'
            escaped = char == "\\" and not escaped
        elif char == '"':
            in_string = True
        elif char in "{[":
            depth += 1
        elif char in "}]":
            depth -= 1
            if depth <= 0:
                return at + 1, True
        elif stop and body.startswith(stop, at):
            return at, False
    return len(body), False


def _close(body: str) -> Any:
    """The JSON value of ``body`` with up to three closing brackets added, or None."""
    for closing in ("}", "}}", "}]", "}}]"):
        try:
            return json.loads(body + closing)
        except ValueError:
            continue
    return None


def _beginning(text: str, marks: Iterable[str]) -> int:
    """Length of the longest end of ``text`` that is a proper beginning of a mark."""
    lengths = (
        length for mark in marks for length in range(1, len(mark)) if text.endswith(mark[:length])
    )
    return max(lengths, default=0)
