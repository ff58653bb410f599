"""What the assistant answers when a turn was guessed at before it had ended."""

from __future__ import annotations

from tiny_assistant import Script, run, said, speak, spoken, tiny_assistant
from tiny_backbone import one_thread  # noqa: F401

from omni.types import (
    Cancel,
    Commit,
    Confirm,
    Conversation,
    Done,
    Edit,
    Message,
    Open,
    Output,
    Respond,
    ResponseConfig,
    Speculate,
    TextDelta,
    TextPart,
)

TEXT = ResponseConfig(modality="text", max_output_tokens=6)


def text_of(outputs: list[Output], response_id: str) -> str:
    deltas = [o for o in outputs if isinstance(o, TextDelta) and o.response_id == response_id]
    return "".join(delta.text for delta in deltas)


def test_after_a_dropped_guess_the_answer_is_to_all_that_was_heard() -> None:
    script = Script([("en", "what is a dog"), ("en", "what is a dog or a cat")])
    with tiny_assistant(script) as assistant:
        assistant.submit(Open("s", Conversation()))
        speak(assistant, "s", "t", 1.0)
        assistant.submit(Speculate("s", "t", "guess", TEXT))
        run(assistant)
        assistant.submit(Cancel("s", "guess"))
        speak(assistant, "s", "t", 0.4)
        assistant.submit(Commit("s", "t"))
        assistant.submit(Edit("s", spoken("t")))
        assistant.submit(Respond("s", "r", TEXT))
        while not text_of(assistant.step(), "r"):
            assert assistant.has_work(), "the response said nothing"
        assert "user\nWhat is a dog or a cat<|im_end|>" in assistant.context_text("s")


def test_a_turn_that_sounded_foreign_at_first_is_answered_once_it_is_english() -> None:
    script = Script([("es", "si no"), ("en", "see no evil")])
    with tiny_assistant(script) as assistant:
        assistant.submit(Open("s", Conversation()))
        speak(assistant, "s", "t", 1.0)
        assistant.submit(Speculate("s", "t", "guess", TEXT))
        refusal = "That sounded like Spanish. I only understand English."
        assert text_of(run(assistant), "guess") == refusal
        assistant.submit(Cancel("s", "guess"))
        speak(assistant, "s", "t", 0.4)
        assistant.submit(Commit("s", "t"))
        assistant.submit(Edit("s", spoken("t")))
        assistant.submit(Respond("s", "r", TEXT))
        outputs = run(assistant)
        assert [o.reason for o in outputs if isinstance(o, Done)] == ["max_output_tokens"]
        assert text_of(outputs, "r")
        assert refusal not in text_of(outputs, "r")


def test_an_edit_keeps_the_tokens_of_an_answer_that_waits_for_its_turns_end() -> None:
    first = said("Hello.")
    with tiny_assistant() as assistant:
        assistant.submit(Open("s", Conversation(messages=(first,))))
        speak(assistant, "s", "t", 1.0)
        assistant.submit(Speculate("s", "t", "r", TEXT))
        answer = text_of(run(assistant), "r")
        assert answer
        # Another item comes in before the turn has surely ended.
        assistant.submit(Edit("s", Conversation(messages=(first, said("Hurry.")))))
        assistant.submit(Confirm("s", "r"))
        messages = (*spoken("t").messages, Message("assistant", (TextPart(answer),), "r"))
        assistant.submit(Edit("s", Conversation(messages=(first, *messages))))
        run(assistant)
        # Only the very tokens that were generated are known to be computed already: text that is
        # tokenised anew may be cut differently.
        session = assistant._sessions["s"]
        assert session.context._generated["r"].text == answer
