"""A model that thinks before it answers: what it thinks is never said, called, heard or kept."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import tiny_qwen3_5
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_assistant import MAX_POSITIONS, run, said, tiny_assistant
from tiny_assistant import tokenizer as ascii_tokenizer
from tiny_backbone import HYBRID, TinyBackbone

from omni.assistant.response import APOLOGY
from omni.assistant.text_chat import TextChat, open_chat
from omni.assistant.thoughts import Thought, is_opened_by
from omni.cli import EXIT_FAILED, EXIT_MISUSED, main
from omni.config import EngineConfig
from omni.engine.engine import SamplingParams
from omni.errors import ModelError
from omni.models import LoadedModel
from omni.models.batch import Batch, StateView
from omni.models.llama import Llama
from omni.models.qwen2 import Qwen2
from omni.models.qwen3_5_template import Qwen3_5Template
from omni.models.tokenizer import Tokenizer
from omni.types import (
    AudioDelta,
    Conversation,
    Done,
    Edit,
    Message,
    Open,
    Output,
    Respond,
    ResponseConfig,
    TextDelta,
    TextPart,
    ToolCall,
    ToolSpec,
)

CALL = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
THOUGHT = ("Let me see. ", CALL, "\n")
ANSWER = ("It is Rome", ", I am sure", ".")
TIME = ToolSpec("get_time", "", {"type": "object", "properties": {}})
HIDDEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SHOWN = ("<think>", "</think>", "\n\n", *THOUGHT[:2], *ANSWER, "It calls. ")


@cache
def tokenizer() -> Tokenizer:
    """One token for each ASCII character, and some whole phrases."""
    letters = ascii_tokenizer()
    tokens = [letters._tokens[index] for index in range(128)]
    return Tokenizer.from_gguf(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "qwen2",
            "tokenizer.ggml.tokens": [*tokens, *HIDDEN, *SHOWN],
            "tokenizer.ggml.merges": [],
            "tokenizer.ggml.token_type": [1] * 128 + [3] * len(HIDDEN) + [4] * len(SHOWN),
        }
    )


def ids_of(*phrases: str) -> list[int]:
    special = tokenizer().special_ids
    return [special[text] if text in special else tokenizer().encode(text)[0] for text in phrases]


class Parrot(TinyBackbone):
    """A hybrid stack whose every token settles the next: ``script``, from the header on."""

    def __init__(self, *script: str) -> None:
        super().__init__(HYBRID, vocab_size=tokenizer().vocab_size, max_positions=MAX_POSITIONS)
        # The header ends in a line break, so that is where the script begins.
        whole = ids_of("\n", *script, "<|im_end|>")
        assert len(set(whole)) == len(whole), "a token twice has no one successor"
        self._next = dict(pairwise(whole))

    def forward(self, batch: Batch, state: StateView) -> torch.Tensor:
        logits = super().forward(batch, state)
        for row, index in enumerate(batch.logits_rows.tolist()):
            token = self._next.get(int(batch.token_ids[index]), ids_of("<|im_end|>")[0])
            logits[row, token] = logits[row].max() + 9
        return logits


def thinker(*script: str) -> LoadedModel:
    return LoadedModel(
        backbone=Parrot(*script),  # type: ignore[arg-type]  # a Backbone, not a DecoderStack
        tokenizer=tokenizer(),
        template=Qwen3_5Template(tokenizer(), thinking=True),
        name="tiny",
        context_tokens=MAX_POSITIONS,
    )


def script(*answer: str) -> tuple[str, ...]:
    return (*THOUGHT[:2], "</think>", "\n\n", *answer)


QUESTION = Conversation(messages=(said("What is the capital of Italy?"),), tools=(TIME,))
TEXT = ResponseConfig(modality="text")
AUDIO = ResponseConfig(modality="audio")


def of_kind(outputs: list[Output], kind: type) -> list[Output]:
    return [output for output in outputs if isinstance(output, kind)]


def text_of(outputs: list[Output]) -> str:
    return "".join(output.text for output in outputs if isinstance(output, TextDelta))


def answered(
    model: LoadedModel, config: ResponseConfig, *, then: Conversation | None = None
) -> tuple[list[Output], str]:
    """What the first response gave out, and the context as it is computed afterwards."""
    with tiny_assistant(loaded=model) as assistant:
        assistant.submit(Open("s", QUESTION))
        run(assistant)
        assistant.submit(Respond("s", "r1", config))
        outputs = run(assistant)
        if then is not None:
            assistant.submit(Edit("s", then))
            run(assistant)
        return outputs, assistant.context_text("s")


@pytest.mark.parametrize("config", [TEXT, AUDIO])
def test_a_thought_is_neither_said_nor_heard_and_its_calls_are_not_made(
    config: ResponseConfig,
) -> None:
    outputs, _ = answered(thinker(*script(*ANSWER)), config)
    assert text_of(outputs) == "".join(ANSWER)
    assert not of_kind(outputs, ToolCall)
    (done,) = of_kind(outputs, Done)
    assert done.reason == "completed"
    assert done.usage.output_text_tokens == len(script(*ANSWER))  # thinking is work all the same
    sounds = [output for output in outputs if isinstance(output, AudioDelta)]
    assert bool(sounds) == (config is AUDIO)
    marks = [mark.num_chars for sound in sounds for mark in sound.marks]
    assert max(marks, default=0) <= len("".join(ANSWER))


def test_a_call_after_the_thought_is_made() -> None:
    model = thinker("Let me see. ", "</think>", "\n\n", "It calls. ", CALL)
    outputs, _ = answered(model, TEXT)
    (call,) = of_kind(outputs, ToolCall)
    assert call.name == "get_time"
    assert text_of(outputs).strip() == "It calls."


def test_an_answer_made_to_begin_with_a_call_has_no_thought_before_it() -> None:
    required = replace(TEXT, tool_choice="required", max_output_tokens=2)
    with tiny_assistant(loaded=thinker(*script(*ANSWER))) as assistant:
        assistant.submit(Open("s", QUESTION))
        assistant.submit(Respond("s", "r1", required))
        while "<function=" not in assistant.context_text("s").partition("capital of Italy")[2]:
            assistant.step()
        asked = assistant.context_text("s").partition("capital of Italy")[2]
        run(assistant)
    assert "<think>\n\n</think>\n\n<tool_call>\n<function=" in asked


@pytest.mark.parametrize("config", [TEXT, AUDIO])
@pytest.mark.parametrize("limit", [1, 2])
def test_a_thought_that_is_cut_short_ends_in_words_and_with_its_reason(
    config: ResponseConfig, limit: int
) -> None:
    outputs, _ = answered(thinker(*script(*ANSWER)), replace(config, max_output_tokens=limit))
    assert text_of(outputs) == APOLOGY  # never silence
    (done,) = of_kind(outputs, Done)
    assert done.reason == "max_output_tokens"
    assert done.is_thinking
    assert done.usage.output_text_tokens == limit
    assert not of_kind(outputs, ToolCall)
    assert bool(of_kind(outputs, AudioDelta)) == (config is AUDIO)


def test_an_answer_is_remembered_without_its_thought() -> None:
    answer = Message("assistant", (TextPart("".join(ANSWER)),), "r1")
    then = replace(QUESTION, messages=(*QUESTION.messages, answer, said("And of France?")))
    _, context = answered(thinker(*script(*ANSWER)), TEXT, then=then)
    assert "<think>\n\n</think>\n\nIt is Rome, I am sure.<|im_end|>" in context
    assert "Let me see" not in context


def test_only_what_was_heard_of_an_answer_is_remembered() -> None:
    heard = Message("assistant", (TextPart("It is Rome"),), "r1")
    then = replace(QUESTION, messages=(*QUESTION.messages, heard, said("Thank you.")))
    _, context = answered(thinker(*script(*ANSWER)), TEXT, then=then)
    assert "</think>\n\nIt is Rome<|im_end|>" in context
    assert "I am sure" not in context


def test_a_thought_the_model_begins_unasked_is_not_said_either() -> None:
    model = thinker("<think>", *script(*ANSWER))
    model = replace(model, template=Qwen2().template(tokenizer()))  # its header opens none
    outputs, _ = answered(model, TEXT)
    assert text_of(outputs) == "".join(ANSWER)
    assert not of_kind(outputs, ToolCall)


def chat(model: LoadedModel, **params: int) -> TextChat:
    return open_chat(
        model,
        EngineConfig(max_sequences=2, num_pages=64),
        instructions="Be brief.",
        params=SamplingParams(**({"max_tokens": 24} | params)),
    )


def test_in_writing_a_thought_goes_only_to_whoever_asked_for_it() -> None:
    talk, thoughts = chat(thinker(*script(*ANSWER))), []
    talk.on_thought = thoughts.append
    assert "".join(talk.ask("Where?")) == "".join(ANSWER)
    assert "".join(thoughts) == "".join(script())
    assert not talk.stats.is_thinking
    talk.on_thought = None
    first = talk.conversation.messages[1]
    assert first.parts == (TextPart("".join(ANSWER)),)
    assert "".join(talk.ask("And then?")) == "".join(ANSWER)
    talk.engine.check_integrity()


def test_in_writing_a_thought_that_is_cut_short_says_so() -> None:
    talk = chat(thinker(*script(*ANSWER)), max_tokens=2)
    assert "".join(talk.ask("Where?")) == ""
    assert talk.stats.is_thinking
    assert talk.stats.end == "length"
    assert "".join(talk.ask("Where?")) == ""  # the chat goes on
    talk.engine.check_integrity()


@pytest.mark.parametrize("family", [Qwen2(), Llama()])
def test_a_model_that_was_not_made_to_think_is_not_asked_to(family: Qwen2 | Llama) -> None:
    assert not is_opened_by(family.template(tokenizer()).assistant_header(), tokenizer())
    with pytest.raises(ModelError, match=r"model\.thinking to false"):
        family.template(tokenizer(), True)


@pytest.mark.parametrize("thinking", [False, True])
def test_the_header_tells_whether_a_thought_is_open(thinking: bool) -> None:
    template = Qwen3_5Template(tokenizer(), thinking=thinking)
    assert is_opened_by(template.assistant_header(), tokenizer()) == thinking
    assert not is_opened_by(template.answered_header(), tokenizer())


@given(
    thought=st.text(st.sampled_from("ab<>/think \n"), max_size=20),
    answer=st.text(st.sampled_from("ab<>/think \n"), max_size=20),
    cuts=st.sets(st.integers(0, 60)),
)
def test_without_a_token_of_its_own_the_end_is_found_however_it_is_cut(
    thought: str, answer: str, cuts: set[int]
) -> None:
    whole = f"{thought}</think>\n\n{answer}"
    bounds = [0, *sorted(cut for cut in cuts if 0 < cut < len(whole)), len(whole)]
    reader = Thought(ascii_tokenizer(), is_open=True)
    pieces = [reader.push(97, whole[a:b]) for a, b in pairwise(bounds)]
    expected = whole.partition("</think>")[2].lstrip()
    assert "".join(piece for piece in pieces if piece is not None) == expected
    assert not reader.is_open


def test_a_closing_mark_that_is_only_spelt_out_ends_no_thought() -> None:
    reader = Thought(tokenizer(), is_open=True)
    spelt = [reader.push(index, chr(index)) for index in tokenizer().encode("</think> x")]
    assert spelt == [None] * len("</think> x")
    assert reader.is_open
    assert reader.push(ids_of("</think>")[0], "</think>") is None
    assert not reader.is_open


@given(pieces=st.lists(st.text(max_size=4)))
def test_an_answer_without_a_thought_is_left_alone(pieces: list[str]) -> None:
    reader = Thought(tokenizer(), is_open=False)
    assert [reader.push(97, piece) for piece in pieces] == pieces


def test_the_command_line_turns_thoughts_on_and_keeps_them_off_a_pipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMNI_HOME", str(tmp_path / "home"))
    tiny_qwen3_5.make("dense", vocab_size=960).save_pretrained(tmp_path / "base")
    tiny_qwen3_5.make_tokenizer().save_pretrained(tmp_path / "base")
    asked = ["chat", "--model", str(tmp_path / "base"), "--max-tokens", "6", "What can it do?"]
    assert main(asked) == 0
    assert capsys.readouterr().out.strip()
    for switch in (["--think"], ["--set", "model.thinking=true"]):
        assert main([*asked, *switch]) == 0
        printed = capsys.readouterr()
        assert printed.out == "\n"  # random weights do not come to an end
        assert "allows no more; it was still thinking" in printed.err
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert main([*asked, "--think"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "\n"
    assert "\x1b[2m" in printed.err
    assert main([*asked, "--set", "model.thinking=maybe"]) == EXIT_MISUSED
    assert "model.thinking is 'maybe', expected true or false" in capsys.readouterr().err


@pytest.mark.weights
def test_a_model_without_thoughts_is_refused_in_one_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["chat", "--model", "smollm2-135m", "--think", "Hi"]) == EXIT_FAILED
    (line,) = capsys.readouterr().err.splitlines()
    assert "set model.thinking to false" in line
