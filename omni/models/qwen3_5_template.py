"""Qwen3.5's chat template: ChatML with thoughts, calls as tagged parameters, pictures in line.

Made by :mod:`omni.models.qwen3_5`; the contract is :class:`omni.models.template.ChatTemplate`'s.
Source: ``chat_template.jinja`` of Qwen3.5 (tests compare with it).

One thing differs on purpose. The published template drops the thought, even the empty one, of every
answer before the last question; so each new question changes what stands before it, and the state
computed from it with it. Here an answer keeps its empty thought, as the published template itself
renders it until the next question comes. A thought that was thought is dropped as soon as its
answer is given, in every case the same: also between a call and what comes of it, where the
published template would keep it until the next question.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from omni.models.template import ChatTemplate, Perceived, json_text, tool_description, written
from omni.models.tokenizer import Tokenizer
from omni.types import CallPart, Conversation, Message, ResultPart

_TOOLS_BEFORE = "# Tools\n\nYou have access to the following functions:\n\n<tools>"
_TOOLS_AFTER = (
    "\n</tools>\n\n"
    "If you choose to call a function ONLY reply in the following format with NO suffix:\n\n"
)
_EXAMPLE = (
    "\n<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n</parameter>\n"
    "<parameter=example_parameter_2>\nThis is the value for the second parameter\nthat can span\n"
    "multiple lines\n</parameter>\n</function>\n"
)
_REMINDER = (
    "\n\n<IMPORTANT>\nReminder:\n- Function calls MUST follow the specified format: an inner "
    "<function=...></function> block must be nested within "
)
_REMINDER_END = (
    " XML tags\n- Required parameters MUST be specified\n- You may provide optional reasoning for "
    "your function call in natural language BEFORE the function call, but NOT after\n- If there "
    "is no function call available, answer the question like normal with your current knowledge "
    "and do not tell the user about function calls\n</IMPORTANT>"
)


class Qwen3_5Template(ChatTemplate):
    """Renders conversations; with ``thinking`` an answer begins with a thought of the model's.

    Raises:
        ModelError: the tokenizer lacks ChatML's tokens.
    """

    def __init__(self, tokenizer: Tokenizer, *, thinking: bool = False) -> None:
        super().__init__(tokenizer, default_system="")
        self._thinking = thinking
        self._think = self._special("<think>")
        self._think_end = self._special("</think>")
        self._response = self._special("<tool_response>")
        self._response_end = self._special("</tool_response>")

    def system(self, conversation: Conversation) -> list[int]:
        """The system block: the tools on offer, then the instructions; nothing without both."""
        text = conversation.instructions.strip()
        if not conversation.tools:
            return self._block("system", [text]) if text else []
        pieces: list[str | int] = [self._start, "system\n" + _TOOLS_BEFORE]
        pieces += ["\n" + json_text(tool_description(tool)) for tool in conversation.tools]
        pieces += [_TOOLS_AFTER, self._call, _EXAMPLE, self._call_end, _REMINDER]
        pieces += [self._call, self._call_end, _REMINDER_END]
        if text:
            pieces.append("\n\n" + text)
        return self._tokenizer.encode_pieces([*pieces, self._end, "\n"])

    def assistant_header(self) -> list[int]:
        """What stands before an answer: with an empty thought, unless it is to think."""
        if self._thinking:
            return self._header("assistant") + self._tokenizer.encode_pieces([self._think, "\n"])
        return self._unthinking_header()

    def answered_header(self) -> list[int]:
        """What stands before an answer that was given: its thought is dropped, as published."""
        return self._unthinking_header()

    def after_results(self) -> list[int]:
        """Nothing: this family answers from tool results unasked."""
        return []

    def call_opening(self, name: str | None) -> tuple[list[int], str]:
        """How an answer is made to begin with a call: tokens, and their text for the parser."""
        text = "\n<function=" + ("" if name is None else f"{name}>\n")
        return self._tokenizer.encode_pieces([self._call, text]), "<tool_call>" + text

    def message(self, message: Message, perceived: Perceived) -> list[int]:
        """One message; a user's is ``user_header() + encode(words) + user_end()``."""
        match message.role:
            case "user" | "system":
                return self._block(message.role, self._content(message, perceived))
            case "assistant":
                return self._answer(message)
            case "tool":
                return self.results([message])

    def results(self, messages: Iterable[Message]) -> list[int]:
        """Neighbouring tool results, which share one user turn."""
        pieces: list[str | int] = [self._start, "user"]
        for message in messages:
            for part in message.parts:
                if isinstance(part, ResultPart):
                    pieces += ["\n", self._response, f"\n{part.output.strip()}\n"]
                    pieces.append(self._response_end)
        return self._tokenizer.encode_pieces([*pieces, self._end, "\n"])

    def marks(self) -> tuple[str | int, str | int]:
        return self._special("<|vision_start|>"), self._special("<|vision_end|>")

    def _block(self, role: str, pieces: list[str | int]) -> list[int]:
        body = self._tokenizer.encode_pieces(_stripped(pieces))
        return self._header(role) + body + self.user_end()

    def _unthinking_header(self) -> list[int]:
        thought = [self._think, "\n\n", self._think_end, "\n\n"]
        return self._tokenizer.encode_pieces([self._start, "assistant\n", *thought])

    def _answer(self, message: Message) -> list[int]:
        text = written(message).strip()
        pieces: list[str | int] = [text] if text else []
        calls = [part for part in message.parts if isinstance(part, CallPart)]
        for number, call in enumerate(calls):
            if number or text:
                pieces.append("\n" if number else "\n\n")
            pieces += [self._call, function_text(call), self._call_end]
        body = self._tokenizer.encode_pieces(pieces) if pieces else []
        return self._unthinking_header() + body + self.assistant_end()


def _stripped(pieces: list[str | int]) -> list[str | int]:
    """``pieces`` without space at their beginning and end."""
    if pieces and isinstance(pieces[0], str):
        pieces = [pieces[0].lstrip(), *pieces[1:]]
    if pieces and isinstance(pieces[-1], str):
        pieces = [*pieces[:-1], pieces[-1].rstrip()]
    return pieces


def function_text(call: CallPart) -> str:
    """A call's inside; arguments that are no JSON object stand as they are."""
    lines = [f"\n<function={call.name}>\n"]
    try:
        arguments = json.loads(call.arguments)
        json_text(arguments).encode()  # half a character stays an escape
    except (ValueError, RecursionError):
        arguments = None
    if isinstance(arguments, dict):
        lines += [
            f"<parameter={name}>\n{_value(value)}\n</parameter>\n"
            for name, value in arguments.items()
        ]
    else:
        lines.append(call.arguments + "\n")
    return "".join(lines) + "</function>\n"


def _value(value: object) -> str:
    """A parameter as the jinja template writes it: Python's spelling but for lists and objects."""
    return json_text(value) if isinstance(value, dict | list) else str(value)
