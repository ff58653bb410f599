"""The ChatML chat template with tools: a conversation to token ids, message by message.

Called by :mod:`omni.assistant`, which renders, compares with what the engine has computed and
extends. Every method returns whole runs of tokens that concatenate to the rendered conversation, so
a user's words can be put in as they are heard and an answer by the very ids that were generated.
Only the template writes special tokens; whatever a person, a tool or instructions say stays text.

Source: the ``tokenizer.chat_template`` of Qwen2.5 and SmolLM2 (tests compare with both).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Protocol

from omni.errors import ModelError
from omni.models.tokenizer import Tokenizer
from omni.types import (
    EMBEDDING_ID,
    AudioPart,
    CallPart,
    Conversation,
    MediaPart,
    Message,
    Part,
    ResultPart,
    Span,
    TextPart,
    TextSpan,
    ToolSpec,
)


class Perceived(Protocol):
    """What became of the sound and the pictures in a conversation."""

    def heard(self, part: AudioPart) -> str:
        """What the user said in one spoken turn."""
        ...

    def seen(self, part: MediaPart) -> tuple[Span, ...]:
        """What there is to see in one picture or clip."""
        ...


_TOOLS_BEFORE = (
    "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_TOOLS_AFTER = (
    "\n</tools>\n\n"
    "For each function call, return a json object with function name and arguments within "
)

_ANSWER_NOW = "Now answer the user in one short sentence in plain words, using the tool response."


class ChatTemplate:
    """Renders conversations for one tokenizer.

    ``default_system`` is the system prompt of a conversation without instructions (the families'
    own templates do the same). ``stop_ids`` end an answer.

    Raises:
        ModelError: the tokenizer lacks ChatML's tokens.
    """

    def __init__(self, tokenizer: Tokenizer, *, default_system: str) -> None:
        self._tokenizer = tokenizer
        self._default_system = default_system
        special = tokenizer.special_ids
        try:
            self._start, self._end = special["<|im_start|>"], special["<|im_end|>"]
        except KeyError as error:
            raise ModelError(f"the tokenizer has no {error} token: not a ChatML model") from None
        ends = (self._end, special.get("<|endoftext|>", self._end))
        self.stop_ids: frozenset[int] = frozenset(ends)
        self._call = self._special("<tool_call>")
        self._call_end = self._special("</tool_call>")

    def system(self, conversation: Conversation) -> list[int]:
        """The system block: instructions (or the default) and the tools on offer."""
        text = conversation.instructions or self._default_system
        pieces: list[str | int] = [self._start, "system\n" + text]
        if conversation.tools:
            pieces.append(_TOOLS_BEFORE)
            pieces += ["\n" + json_text(tool_description(tool)) for tool in conversation.tools]
            pieces += [_TOOLS_AFTER, self._call, self._call_end, " XML tags:\n", self._call]
            pieces += ['\n{"name": <function-name>, "arguments": <args-json-object>}\n']
            pieces.append(self._call_end)
        return self._tokenizer.encode_pieces([*pieces, self._end, "\n"])

    def user_header(self) -> list[int]:
        """What stands before a user's words."""
        return self._header("user")

    def user_end(self) -> list[int]:
        """What stands after a user's words."""
        return self._tokenizer.encode_pieces([self._end, "\n"])

    def assistant_header(self) -> list[int]:
        """What stands before an answer: append it to have one generated."""
        return self._header("assistant")

    def answered_header(self) -> list[int]:
        """What stands before an answer that was given, or that begins with a call: no thought."""
        return self.assistant_header()

    def assistant_end(self) -> list[int]:
        """What stands after an answer (its own stop token not included)."""
        return self.user_end()

    def after_results(self) -> list[int]:
        """What may stand between tool results and the answer's header, to have them spoken about.

        Not in the families' own templates: the 0.5B repeats its call after every result without
        it and answers in plain words with it (docs/quality.md). No part of :meth:`render`.
        """
        return self._header("system") + self._tokenizer.encode(_ANSWER_NOW) + self.user_end()

    def call_opening(self, name: str | None) -> tuple[list[int], str]:
        """How an answer is made to begin with a call: tokens, and their text for the parser.

        ``name`` is the tool to call; None: whichever the model chooses.
        """
        # Without the tag: the small models that need it most never learnt to write it.
        text = '{"name": "'
        if name is not None:
            text = f'{{"name": {json.dumps(name)}, "arguments":'
        return self._tokenizer.encode(text), text

    def message(self, message: Message, perceived: Perceived) -> list[int]:
        """One message; a user's is ``user_header() + encode(words) + user_end()``.

        :data:`~omni.types.EMBEDDING_ID` stands for each row of its embedding spans, in order.
        """
        match message.role:
            case "user" | "system":
                body = self._tokenizer.encode_pieces(self._content(message, perceived))
                return self._header(message.role) + body + self.user_end()
            case "assistant":
                return self._assistant(message)
            case "tool":
                return self.results([message])

    def render(self, conversation: Conversation, perceived: Perceived) -> list[int]:
        """The whole conversation, without the header of an answer to come."""
        ids = self.system(conversation)
        for run in merge_results(conversation.messages):
            ids += self.results(run) if len(run) > 1 else self.message(run[0], perceived)
        return ids

    def marks(self) -> tuple[str | int, str | int]:
        """What stands before and after the embeddings of one picture.

        Raises:
            ModelError: the family sees no pictures.
        """
        raise ModelError("this model sees no pictures: take one with a vision tower")

    def _content(self, message: Message, perceived: Perceived) -> list[str | int]:
        """A user's words and pictures; texts and spoken turns have a line each."""
        pieces: list[str | int] = []
        for part in message.parts:
            if isinstance(part, MediaPart):
                for span in perceived.seen(part):
                    pieces += self._span(span)
                continue
            text = words_of(part, perceived)
            if text is not None:
                if pieces and isinstance(pieces[-1], str):
                    pieces.append("\n")
                pieces.append(text)
        return pieces

    def _span(self, span: Span) -> list[str | int]:
        if isinstance(span, TextSpan):
            return [span.text]
        before, after = self.marks()
        return [before, *[EMBEDDING_ID] * len(span.embeddings), after]

    def _special(self, token: str) -> str | int:
        """A special token's id, or its text for a tokenizer that has none."""
        return self._tokenizer.special_ids.get(token, token)

    def _header(self, role: str) -> list[int]:
        return self._tokenizer.encode_pieces([self._start, role + "\n"])

    def _assistant(self, message: Message) -> list[int]:
        calls = [part for part in message.parts if isinstance(part, CallPart)]
        text = written(message)
        if text or not calls:
            head, pieces = self._header("assistant"), [text] if text else []
        else:
            head, pieces = [self._start], ["assistant"]
        body: list[str | int] = [*pieces]
        for call in calls:
            name, arguments = json.dumps(call.name, ensure_ascii=False), _arguments(call)
            body += ["\n", self._call, f'\n{{"name": {name}, "arguments": {arguments}}}\n']
            body.append(self._call_end)
        return head + self._tokenizer.encode_pieces(body) + self.assistant_end()

    def results(self, messages: Iterable[Message]) -> list[int]:
        """Neighbouring tool results, which share one user turn."""
        pieces: list[str | int] = [self._start, "user"]
        for message in messages:
            for part in message.parts:
                if isinstance(part, ResultPart):
                    pieces.append(f"\n<tool_response>\n{part.output}\n</tool_response>")
        return self._tokenizer.encode_pieces([*pieces, self._end, "\n"])


def merge_results(messages: Iterable[Message]) -> list[list[Message]]:
    """Messages as runs: neighbouring tool results share one user turn, all others stand alone."""
    runs: list[list[Message]] = []
    for message in messages:
        if message.role == "tool" and runs and runs[-1][-1].role == "tool":
            runs[-1].append(message)
        else:
            runs.append([message])
    return runs


def written(message: Message) -> str:
    """The texts of a message, a line each."""
    return "\n".join(part.text for part in message.parts if isinstance(part, TextPart))


def words_of(part: Part, perceived: Perceived) -> str | None:
    """What a text or a spoken turn says; None for other parts."""
    if isinstance(part, TextPart):
        return part.text
    if isinstance(part, AudioPart):
        return perceived.heard(part)
    return None


def tool_description(tool: ToolSpec) -> dict[str, object]:
    """A tool as the templates list it."""
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
    }
    return {"type": "function", "function": function}


def _arguments(call: CallPart) -> str:
    """Arguments in the template's spelling; text that is not JSON stays as it is.

    So does JSON that is nested too deeply to parse, or whose escapes are half a character.
    """
    try:
        text = json_text(json.loads(call.arguments))
        text.encode()
    except (ValueError, RecursionError):
        return call.arguments
    return text


def json_text(value: object) -> str:
    """JSON as transformers' templates write it: characters stay what they are."""
    return json.dumps(value, ensure_ascii=False)
