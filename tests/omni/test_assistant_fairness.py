"""One session must not keep the others from an ordinary turn."""

from __future__ import annotations

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny_assistant import run, said, speak, spoken, tiny_assistant
from tiny_backbone import one_thread  # noqa: F401

from omni.assistant import Assistant
from omni.config import EngineConfig
from omni.types import (
    Cancel,
    Close,
    Confirm,
    Conversation,
    Done,
    Edit,
    Failed,
    Open,
    Output,
    Respond,
    ResponseConfig,
    Speculate,
    TurnScore,
)

CONFIG = EngineConfig(
    max_sequences=12, num_pages=60, page_tokens=16, max_context_tokens=256, step_tokens=256
)
"""Each of three sessions is sure of a whole context, 16 pages, and of four sequences."""

TEXT = ResponseConfig(modality="text", max_output_tokens=4)
ENDLESS = ResponseConfig(modality="text", max_output_tokens=4096)


def context(letter: str, num_chars: int) -> Conversation:
    return Conversation(messages=(said(letter * num_chars),))


def hold_a_turn(assistant: Assistant, session_id: str, number: int) -> None:
    """Speak, be guessed at, be answered: nothing of it may be refused."""
    turn_id, response_id = f"t{number}", f"r{number}"
    speak(assistant, session_id, turn_id, 1.0)
    assistant.submit(Speculate(session_id, turn_id, response_id, TEXT))
    outputs: list[Output] = []
    while not [o for o in outputs if isinstance(o, Done | Failed) and o.session_id == session_id]:
        outputs += assistant.step()
    assistant.submit(Confirm(session_id, response_id))
    assistant.submit(Edit(session_id, spoken(turn_id)))
    outputs += assistant.step()
    mine = [o for o in outputs if o.session_id == session_id]
    assert not [o for o in mine if isinstance(o, Failed)]
    assert [o.reason for o in mine if isinstance(o, Done)] == ["max_output_tokens"]
    assert [o for o in mine if isinstance(o, TurnScore)]  # even the probe had room


greedy_acts = st.lists(
    st.one_of(
        st.tuples(st.just("aside"), st.integers(1, 400), st.sampled_from("abc")),
        st.tuples(st.just("edit"), st.integers(1, 400), st.sampled_from("abc")),
        st.tuples(st.just("answer"), st.integers(1, 400), st.sampled_from("abc")),
        st.tuples(st.just("speak"), st.integers(1, 3), st.just("")),
        st.tuples(st.just("step"), st.integers(1, 6), st.just("")),
        st.tuples(st.just("cancel"), st.integers(0, 9), st.just("")),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(acts=[("aside", 1, "a")] * 12, is_first=False, comes_later=True)
@example(acts=[("aside", 200, "a"), ("aside", 200, "b")] * 2, is_first=True, comes_later=False)
@given(acts=greedy_acts, is_first=st.booleans(), comes_later=st.booleans())
def test_whatever_a_greedy_session_does_another_holds_its_turns(
    acts: list[tuple[str, int, str]], is_first: bool, comes_later: bool
) -> None:
    with tiny_assistant(config=CONFIG, max_sessions=3) as assistant:
        if not comes_later:
            assistant.submit(Open("modest", Conversation()))
        assistant.submit(Open("greedy", Conversation()))
        if is_first and not comes_later:
            hold_a_turn(assistant, "modest", 0)
        for number, (act, amount, letter) in enumerate(acts):
            name = f"g{number}"
            match act:
                case "aside":
                    long = context(letter, amount)
                    assistant.submit(Respond("greedy", name, ENDLESS, long, out_of_band=True))
                case "edit":
                    assistant.submit(Edit("greedy", context(letter, amount)))
                case "answer":
                    assistant.submit(Respond("greedy", name, ENDLESS, context(letter, amount)))
                case "speak":
                    speak(assistant, "greedy", name, amount / 2)
                    assistant.submit(Speculate("greedy", name, f"guess{name}", ENDLESS))
                case "step":
                    for _ in range(amount):
                        assistant.step()
                case _:
                    assistant.submit(Cancel("greedy", f"g{amount}"))
        if comes_later:
            assistant.submit(Open("modest", Conversation()))
        hold_a_turn(assistant, "modest", 1)
        hold_a_turn(assistant, "modest", 2)


def test_a_session_that_wants_too_much_is_told_which_budget_is_used_up() -> None:
    with tiny_assistant(config=CONFIG, max_sessions=3) as assistant:
        assistant.submit(Open("greedy", Conversation()))
        for number in range(12):
            long = context("xyz"[number % 3], 60)
            assistant.submit(Respond("greedy", f"r{number}", TEXT, long, out_of_band=True))
        failed = [o for o in run(assistant) if isinstance(o, Failed)]
        assert failed
        assert {o.code for o in failed} == {"rate_limit_exceeded"}
        assert all("it is sure of 4," in o.message for o in failed)
        assert all("engine.max_sequences" in o.message for o in failed)
        assistant.submit(Respond("greedy", "again", TEXT, context("x", 60), out_of_band=True))
        assert [o.reason for o in run(assistant) if isinstance(o, Done)] == ["max_output_tokens"]
        assistant.submit(Close("greedy"))
