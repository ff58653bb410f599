"""The conversation on a hybrid backbone: the same assistant, recurrent state behind it."""

from __future__ import annotations

import pytest
from tiny_assistant import model, run, said, tiny_assistant
from tiny_backbone import HYBRID

from omni.assistant import Assistant
from omni.types import (
    Cancel,
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
)

MODEL = model(HYBRID, 128)  # says characters, never a special token
QUESTION = Conversation(messages=(said("Tell me a long story."),))
CONFIG = ResponseConfig(modality="text", max_output_tokens=150)


def text_of(outputs: list[Output]) -> str:
    return "".join(o.text for o in outputs if isinstance(o, TextDelta))


def heard_then_asked(heard: str) -> Conversation:
    answer = Message("assistant", (TextPart(heard),), "r1")
    return Conversation(messages=(*QUESTION.messages, answer, said("And then?")))


def answer(assistant: Assistant, response_id: str) -> str:
    assistant.submit(Respond("s", response_id, CONFIG))
    outputs = run(assistant)
    assert [o.reason for o in outputs if isinstance(o, Done)]
    return text_of(outputs)


@pytest.mark.parametrize("num_heard", [1, 40, 64, 65, 110])
def test_an_interrupted_answer_leaves_nothing_but_what_was_heard(num_heard: int) -> None:
    with tiny_assistant(loaded=MODEL) as assistant:
        assistant.submit(Open("s", QUESTION))
        whole = answer(assistant, "r1")
        assistant.submit(Edit("s", heard_then_asked(whole[:num_heard])))
        after_interruption = answer(assistant, "r2")
    with tiny_assistant(loaded=MODEL) as never_went_further:
        never_went_further.submit(Open("s", heard_then_asked(whole[:num_heard])))
        assert answer(never_went_further, "r2") == after_interruption


def test_an_answer_is_cancelled_while_it_is_being_given() -> None:
    with tiny_assistant(loaded=MODEL) as assistant:
        assistant.submit(Open("s", QUESTION))
        run(assistant)
        assistant.submit(Respond("s", "r1", CONFIG))
        outputs: list[Output] = []
        while len(text_of(outputs)) < 20:
            outputs += assistant.step()
        assistant.submit(Cancel("s", "r1"))
        given = text_of(outputs + run(assistant))
        assistant.submit(Edit("s", heard_then_asked(given[:7])))
        after = answer(assistant, "r2")
        held = assistant.context_text("s")
    assert given[:7] in held
    assert given[:12] not in held
    with tiny_assistant(loaded=MODEL) as never_went_further:
        never_went_further.submit(Open("s", heard_then_asked(given[:7])))
        assert answer(never_went_further, "r2") == after


def test_sessions_that_are_set_up_alike_compute_their_instructions_once() -> None:
    instructions = "You answer at length, and never use a number. " * 4
    conversation = Conversation(instructions=instructions, messages=QUESTION.messages)
    with tiny_assistant(loaded=MODEL) as assistant:
        answers, cached = [], []
        for session in ("s", "t"):
            assistant.submit(Open(session, conversation))
            run(assistant)
            cached.append(assistant.stats().num_tokens_cached)
            assistant.submit(Respond(session, "r", CONFIG))
            answers.append(text_of(run(assistant)))
    assert answers[0] == answers[1]
    assert cached[0] == 0
    assert cached[1] > 160  # of about 190: whole pages
