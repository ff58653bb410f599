"""Reads a tool call written as tagged parameters, the form of Qwen3.5 and the larger coder models::

    <function=NAME>
    <parameter=CITY>
    Paris
    </parameter>
    </function>

Called by :mod:`omni.models.tool_calls`. A value is bare text, so what it means (the string "1" or
the number 1) is told by the tool's schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omni.types import ToolSpec

OPENER = "<function="
_NAME = re.compile(r"<function=([^<>]*)>\s*")
_PARAMETER = re.compile(r"<parameter=([^<>]*)>\n?")
_PARAMETER_MARK = "<parameter="
_CLOSERS = ("</function>", "</tool_call>")
# A value may hold anything but its own end, which is an end only where something may follow.
_VALUE_END = re.compile(
    r"\n?</parameter>\s*(?=<parameter=|</function>|</tool_call>|(?:<(?:/[a-z_]*)?)?\Z)"
)
_ANY_END = re.compile("|".join(_CLOSERS))
_WORDS = {"True": True, "False": False, "None": None}
"""How the chat template spells JSON's own words, and so perhaps the model."""


@dataclass(frozen=True, slots=True)
class Read:
    """The first ``length`` characters are a call; ``value`` is None where it is broken."""

    length: int
    value: dict[str, Any] | None


def read(text: str, tools: Mapping[str, ToolSpec], *, ended: bool) -> Read | None:
    """Read the call that ``text`` begins with, as far as it goes; None: more text is needed.

    When the text has ``ended``, a call may lack its last closing tags, but not the end of a value.
    """
    name = _NAME.match(text)
    if name is None:
        return _broken(text, 0, ended=ended)
    tool_name = name[1].strip().strip("\"'")
    tool = tools.get(tool_name)
    arguments: dict[str, Any] = {}
    at = name.end()
    while True:
        rest = text[at:]
        if rest.startswith("</function>"):
            return Read(at + len("</function>"), {"name": tool_name, "arguments": arguments})
        if rest.startswith("</tool_call>"):
            return Read(at, {"name": tool_name, "arguments": arguments})
        if any(mark.startswith(rest) for mark in _CLOSERS):  # an empty rest too
            call = {"name": tool_name, "arguments": arguments}
            return Read(len(text), call) if ended else None
        parameter = _PARAMETER.match(rest)
        if parameter is None:
            is_begun = _PARAMETER_MARK.startswith(rest[: len(_PARAMETER_MARK)]) and ">" not in rest
            return None if is_begun and not ended else _broken(text, at, ended=ended)
        end = _VALUE_END.search(text, at + parameter.end())
        if end is None:
            return Read(len(text), None) if ended else None
        if end.end() == len(text) and not ended:
            return None
        key = parameter[1].strip().strip("\"'")
        value = text[at + parameter.end() : end.start()]
        arguments[key] = _meant(value, _schema(tool, key))
        at = end.end()


def _broken(text: str, at: int, *, ended: bool) -> Read | None:
    """A call that cannot be read at ``at`` ends at the next closing tag, or with the text."""
    end = _ANY_END.search(text, at)
    if end is not None:
        return Read(end.start(), None)
    return Read(len(text), None) if ended else None


def _schema(tool: ToolSpec | None, key: str) -> Mapping[str, Any]:
    properties = tool.parameters.get("properties") if tool is not None else None
    schema = properties.get(key) if isinstance(properties, Mapping) else None
    return schema if isinstance(schema, Mapping) else {}


def _meant(text: str, schema: Mapping[str, Any]) -> Any:
    """The JSON value that a parameter's text means under its schema."""
    kinds = schema.get("type")
    kinds = [kinds] if isinstance(kinds, str) else kinds if isinstance(kinds, list) else []
    if kinds == ["string"]:
        return text
    try:
        value = _WORDS[text.strip()] if text.strip() in _WORDS else json.loads(text)
        json.dumps(value, allow_nan=False)  # Python reads NaN, JSON has none
    except (ValueError, RecursionError):
        return text
    is_other = not isinstance(value, str) and value is not None
    return text if "string" in kinds and is_other else value
