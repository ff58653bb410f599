"""Random conversations, and the same for a jinja template; shared by the templates' tests."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import strategies as st

from omni.types import (
    AudioPart,
    CallPart,
    Conversation,
    MediaPart,
    Message,
    ResultPart,
    Span,
    TextPart,
    ToolSpec,
)

WEATHER = ToolSpec(
    "get_weather",
    "Wetter für eine Stadt \u2014 <b>now</b>",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
TIME = ToolSpec("get_time", "", {})

# Text that begins with white space merges with the header's line break in the models' own
# tokenisation and not in ours, where header and words are separate runs; the text is the same.
# Text that spells a special token differs too, and on purpose: see the injection tests.
texts = (
    st.text(st.one_of(st.sampled_from("ab \n'.,7é中🙂"), st.characters(codec="utf-8")), max_size=20)
    .map(str.strip)
    .filter(lambda text: not re.search(r"<[|/a-z]", text))
)
filled = texts.filter(bool)
arguments = st.dictionaries(st.sampled_from(["city", "n"]), st.one_of(texts, st.integers()))
calls = st.builds(
    CallPart, st.just("c"), st.sampled_from(["get_weather", "get_time"]), arguments.map(json.dumps)
)
said = st.one_of(
    st.builds(lambda text: Message("user", (TextPart(text),)), texts),
    st.builds(lambda text: Message("assistant", (TextPart(text),)), texts),
)
plain = st.one_of(said, st.builds(lambda text: Message("system", (TextPart(text),)), texts))


def with_tools(
    others: st.SearchStrategy[Message], calls: st.SearchStrategy[CallPart]
) -> st.SearchStrategy[Message]:
    """Messages, calls of tools and their results."""
    return st.one_of(
        others,
        st.builds(lambda made: Message("assistant", tuple(made)), st.lists(calls, min_size=1)),
        st.builds(lambda text, call: Message("assistant", (TextPart(text), call)), filled, calls),
        st.builds(lambda text: Message("tool", (ResultPart("c", text),)), texts),
        st.builds(
            lambda one, two: Message("tool", (ResultPart("c", one), ResultPart("d", two))),
            texts,
            texts,
        ),
    )


def conversations(messages: st.SearchStrategy[Message]) -> st.SearchStrategy[Conversation]:
    """Conversations that a user begins, with and without tools."""
    first = st.builds(lambda text: Message("user", (TextPart(text),)), texts)
    rest = st.lists(messages, max_size=6)
    return st.builds(
        lambda instructions, tools, head, tail: Conversation(
            instructions=instructions, tools=tools, messages=(head, *tail)
        ),
        texts,
        st.sampled_from([(), (WEATHER,), (WEATHER, TIME)]),
        first,
        rest,
    )


class Perceives:
    """Spoken turns say what ``says`` makes of them, pictures show what ``shows`` has of them."""

    def __init__(
        self,
        says: Callable[[AudioPart], str],
        shows: Mapping[str, tuple[Span, ...]] | None = None,
    ) -> None:
        self.heard = says
        self._shows = shows or {}

    def seen(self, part: MediaPart) -> tuple[Span, ...]:
        return self._shows[part.media_id]


def _never(part: AudioPart) -> str:
    raise AssertionError("nobody spoke")


NOTHING = Perceives(_never)


def for_jinja(conversation: Conversation) -> dict[str, Any]:
    """``messages`` and ``tools`` as transformers gives them to a chat template."""
    messages: list[dict[str, Any]] = []
    if conversation.instructions:
        messages.append({"role": "system", "content": conversation.instructions})
    for message in conversation.messages:
        for part in message.parts:
            if isinstance(part, ResultPart):
                messages.append({"role": "tool", "content": part.output})
        if message.role != "tool":
            parts = [part.text for part in message.parts if isinstance(part, TextPart)]
            made = [
                {"function": {"name": part.name, "arguments": json.loads(part.arguments)}}
                for part in message.parts
                if isinstance(part, CallPart)
            ]
            messages.append({"role": message.role, "content": "\n".join(parts)})
            if made:
                messages[-1]["tool_calls"] = made
    tools = [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
            },
        }
        for tool in conversation.tools
    ]
    return {"messages": messages, "tools": tools or None}
