"""What a session is told when there is no room: in the context, or in the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from tiny_assistant import run, said, speak, spoken, tiny_assistant
from tiny_backbone import one_thread  # noqa: F401

from omni.assistant import Assistant
from omni.config import EngineConfig
from omni.errors import OmniError
from omni.types import (
    AudioDelta,
    Cancel,
    Commit,
    Conversation,
    Done,
    Edit,
    Failed,
    Open,
    Output,
    Pause,
    Progress,
    Respond,
    ResponseConfig,
    Resume,
    Speculate,
    TextDelta,
    ToolSpec,
)

APOLOGY = "Sorry, I could not answer that."
TEXT = ResponseConfig(modality="text", max_output_tokens=4000)
ALOUD = ResponseConfig(modality="audio", max_output_tokens=4000)
ROOMY = EngineConfig(num_pages=64, page_tokens=16, max_context_tokens=256)
CRAMPED = EngineConfig(num_pages=8, page_tokens=16, max_context_tokens=256)
"""Eight pages, 128 tokens, for a context of 256."""
QUESTION = Conversation(messages=(said("Why?"),))


def text_of(outputs: list[Output]) -> str:
    return "".join(o.text for o in outputs if isinstance(o, TextDelta))


def failed_of(outputs: list[Output]) -> Failed:
    (failed,) = [o for o in outputs if isinstance(o, Failed)]
    assert not [o for o in outputs if isinstance(o, Done)]
    return failed


def answer(
    assistant: Assistant, conversation: Conversation, config: ResponseConfig
) -> list[Output]:
    assistant.submit(Open("s", conversation))
    assistant.submit(Respond("s", "r", config))
    return run(assistant)


def test_an_answer_that_reaches_the_end_of_the_context_is_incomplete() -> None:
    with tiny_assistant(config=ROOMY) as assistant:
        outputs = answer(assistant, QUESTION, TEXT)
        (done,) = [o for o in outputs if isinstance(o, Done | Failed)]
        assert isinstance(done, Done)
        assert done.reason == "max_output_tokens"
        assert done.usage.input_text_tokens + done.usage.output_text_tokens == 256


def test_an_answer_that_finds_no_page_fails_and_says_so_after_what_it_said() -> None:
    with tiny_assistant(config=CRAMPED, max_sessions=1) as assistant:
        outputs = answer(assistant, QUESTION, ALOUD)
        failed = failed_of(outputs)
        assert failed.code == "rate_limit_exceeded"
        assert "0 of 8 are free (engine.num_pages)" in failed.message
        assert outputs[-1] is failed
        text = text_of(outputs)
        assert text.endswith(" " + APOLOGY)
        assert len(text) > len(APOLOGY) + 1, "it failed before it had begun"
        sounds = [o for o in outputs if isinstance(o, AudioDelta)]
        num_samples = sum(len(o.pcm) for o in sounds) // 2
        marks = [mark for o in sounds for mark in o.marks]
        assert marks == sorted(marks, key=lambda mark: (mark.sample, mark.num_chars))
        assert marks[-1].num_chars == len(text)
        assert marks[-1].sample <= num_samples
        apology = [m for m in marks if m.num_chars > len(text) - len(APOLOGY)]
        assert len(apology) >= 5  # its words are aligned with its sound
        assert num_samples - apology[0].sample > 12_000  # half a second of speech at least


def test_a_written_answer_that_finds_no_page_fails_with_what_it_wrote() -> None:
    with tiny_assistant(config=CRAMPED, max_sessions=1) as assistant:
        outputs = answer(assistant, QUESTION, TEXT)
        assert failed_of(outputs).code == "rate_limit_exceeded"
        assert text_of(outputs)
        assert APOLOGY not in text_of(outputs)


@pytest.mark.parametrize(
    "conversation",
    [
        Conversation(instructions="Never speak of it. " * 20, messages=(said("Why?"),)),
        Conversation(tools=(ToolSpec("f", "Do this. " * 40),), messages=(said("Why?"),)),
        Conversation(messages=(said("Why? " * 80),)),
    ],
    ids=["instructions", "tools", "item"],
)
def test_what_no_context_holds_is_refused_with_the_tokens_needed_and_the_limit(
    conversation: Conversation,
) -> None:
    with tiny_assistant(config=ROOMY) as assistant:
        failed = failed_of(answer(assistant, conversation, TEXT))
        assert failed.code == "context_length_exceeded"
        num_needed = int(failed.message.split(" tokens are needed")[0])
        assert num_needed > 256
        assert f"{num_needed} tokens are needed and the context holds 256" in failed.message


def test_many_items_are_no_reason_to_fail_the_oldest_are_left_out() -> None:
    with tiny_assistant(config=ROOMY) as assistant:
        many = Conversation(messages=tuple(said(f"Number {i}.") for i in range(40)))
        config = ResponseConfig(modality="text", max_output_tokens=3)
        outputs = answer(assistant, many, config)
        assert [o.reason for o in outputs if isinstance(o, Done)] == ["max_output_tokens"]
        assert "Number 39." in assistant.context_text("s")
        assert "Number 2." not in assistant.context_text("s")


def test_an_apology_can_be_cut_short() -> None:
    with tiny_assistant(config=ROOMY) as assistant:
        long = Conversation(messages=(said("Why? " * 80),))
        assistant.submit(Open("s", long))
        assistant.submit(Respond("s", "r", ALOUD))
        assistant.submit(Cancel("s", "r"))
        outputs = run(assistant)
        assert [o.reason for o in outputs if isinstance(o, Done)] == ["cancelled"]
        assert not [o for o in outputs if isinstance(o, AudioDelta | Failed)]


def test_an_apology_waits_while_the_client_reads_too_slowly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Broken:
        def __init__(self) -> None:
            self.ready: Callable[[str], bool] = bool

        def push(self, text: str) -> Iterator[object]:
            raise OmniError("the voice broke")

        flush = push

    with tiny_assistant(config=ROOMY) as assistant:
        real_open, streams = assistant.speech.open, [Broken()]
        monkeypatch.setattr(
            assistant.speech,
            "open",
            lambda **how: streams.pop() if streams else real_open(**how),
        )
        assistant.submit(Open("s", QUESTION))
        assistant.submit(Respond("s", "r", ALOUD))
        outputs: list[Output] = []
        while not text_of(outputs):
            outputs += assistant.step()
        assistant.submit(Pause("s"))  # while the first clause is about to be spoken
        outputs += run(assistant)
        assert text_of(outputs).endswith(APOLOGY)
        assert not [o for o in outputs if isinstance(o, AudioDelta | Failed)]
        assistant.submit(Resume("s"))
        outputs += run(assistant)
        assert failed_of(outputs).message == "the voice broke"
        assert [o for o in outputs if isinstance(o, AudioDelta)]


def test_progress_tells_what_a_response_has_used_up_to_its_end() -> None:
    with tiny_assistant(config=ROOMY) as assistant:
        config = ResponseConfig(modality="text", max_output_tokens=5)
        outputs = answer(assistant, QUESTION, config)
        (done,) = [o for o in outputs if isinstance(o, Done)]
        told = [o.usage for o in outputs if isinstance(o, Progress)]
        assert [usage.output_text_tokens for usage in told] == [0, 1, 2, 3, 4, 5]
        assert told[-1] == done.usage
        assert done.usage.input_text_tokens == told[0].input_text_tokens > 40


def test_a_cancelled_answer_is_done_with_what_it_has_used() -> None:
    with tiny_assistant(config=ROOMY) as assistant:
        assistant.submit(Open("s", QUESTION))
        run(assistant)
        assistant.submit(Respond("s", "r", TEXT))
        outputs: list[Output] = []
        while len([o for o in outputs if isinstance(o, Progress)]) < 4:
            outputs += assistant.step()
        told = [o.usage for o in outputs if isinstance(o, Progress)]
        assistant.submit(Cancel("s", "r"))
        (done,) = [o for o in run(assistant) if isinstance(o, Done)]
        assert done.usage == told[-1]
        assert done.usage.output_text_tokens == 3
        assert 0 < done.usage.cached_tokens < done.usage.input_text_tokens


def test_a_guess_without_room_fails_in_silence_and_its_turn_is_answered() -> None:
    with tiny_assistant(config=CRAMPED, max_sessions=1) as assistant:
        assistant.submit(Open("s", Conversation()))
        speak(assistant, "s", "t", 1.0)
        assistant.submit(Speculate("s", "t", "guess", ALOUD))
        outputs = run(assistant)
        assert failed_of(outputs).code == "rate_limit_exceeded"
        assert APOLOGY not in text_of(outputs)
        assistant.submit(Cancel("s", "guess"))
        assistant.submit(Commit("s", "t"))
        assistant.submit(Edit("s", spoken("t")))
        config = ResponseConfig(modality="text", max_output_tokens=3)
        assistant.submit(Respond("s", "r", config))
        outputs = run(assistant)
        assert [o.reason for o in outputs if isinstance(o, Done)] == ["max_output_tokens"]
