"""The assistant without weights keeps the port's promises, deterministically."""

from __future__ import annotations

import gc
import weakref

import numpy as np

from omni.scripted import WORD_MS, Answer, Call, Script, ScriptedAssistant
from omni.types import (
    OUTPUT_RATE_HZ,
    AudioDelta,
    AudioPart,
    Cancel,
    Close,
    Commit,
    Confirm,
    Conversation,
    Discard,
    Done,
    Edit,
    Failed,
    Feed,
    Message,
    Open,
    Output,
    Pause,
    Respond,
    ResponseConfig,
    ResultPart,
    Resume,
    ScoreTurn,
    Speculate,
    TextDelta,
    TextPart,
    ToolCall,
    ToolSpec,
    TranscriptDelta,
    TranscriptDone,
    TurnScore,
)

TEXT = ResponseConfig(modality="text")
AUDIO = ResponseConfig()
LOUD = np.full(16_000, 0.1, np.float32)


def opened(
    script: Script | None = None, conversation: Conversation | None = None
) -> ScriptedAssistant:
    assistant = ScriptedAssistant(script=script)
    assistant.submit(Open("s", conversation or Conversation()))
    return assistant


def said(text: str) -> Conversation:
    return Conversation(messages=(Message("user", (TextPart(text),)),))


def run(assistant: ScriptedAssistant) -> list[Output]:
    outputs = []
    while assistant.has_work():
        outputs += assistant.step()
    return outputs


def text(outputs: list[Output], response_id: str = "r") -> str:
    return "".join(
        o.text for o in outputs if isinstance(o, TextDelta) and o.response_id == response_id
    )


def test_a_response_ends_with_exactly_one_done() -> None:
    assistant = opened(conversation=said("good day"))
    assistant.submit(Respond("s", "r", TEXT))
    outputs = run(assistant)
    assert text(outputs) == "You said: good day"
    assert [type(o) for o in outputs[-2:]] == [TextDelta, Done]
    assert sum(isinstance(o, Done) for o in outputs) == 1
    assert outputs[-1].usage.output_text_tokens == 4  # type: ignore[union-attr]


def test_speech_is_aligned_to_its_text() -> None:
    assistant = opened(conversation=said("good day"))
    assistant.submit(Respond("s", "r", AUDIO))
    outputs = run(assistant)
    spoken = [o for o in outputs if isinstance(o, AudioDelta)]
    num_samples = sum(len(o.pcm) // 2 for o in spoken)
    assert num_samples == 4 * OUTPUT_RATE_HZ * WORD_MS // 1000
    assert spoken[-1].marks[-1].sample == num_samples
    assert spoken[-1].marks[-1].num_chars == len(text(outputs))


def test_the_same_commands_give_the_same_outputs() -> None:
    def outputs() -> list[Output]:
        assistant = opened()
        assistant.submit(Feed("s", "t", LOUD, 0))
        assistant.submit(Speculate("s", "t", "r", AUDIO))
        assistant.submit(Confirm("s", "r"))
        return run(assistant)

    assert outputs() == outputs()


def test_a_turn_is_transcribed_word_by_word_and_whole_at_its_end() -> None:
    assistant = opened(Script(transcripts=("one two three four",)))
    assistant.submit(Feed("s", "t", LOUD, 0))
    assistant.submit(Feed("s", "t", LOUD[:8000], 1000))
    deltas = [o.text for o in run(assistant) if isinstance(o, TranscriptDelta)]
    assert deltas == ["one", " two", " three"]
    assistant.submit(Commit("s", "t"))
    assert run(assistant) == [TranscriptDone("s", "t", "one two three four", 1500)]


def test_a_silent_turn_has_no_words() -> None:
    assistant = opened()
    assistant.submit(Feed("s", "t", np.zeros(16_000, np.float32), 0))
    assistant.submit(Commit("s", "t"))
    assert run(assistant) == [TranscriptDone("s", "t", "", 1000)]


def test_scores_come_from_the_script_in_order() -> None:
    assistant = opened(Script(scores=(0.1, 0.9)))
    assistant.submit(Feed("s", "t", LOUD, 0))
    for _ in range(3):
        assistant.submit(ScoreTurn("s", "t"))
    scores = [o.probability for o in run(assistant) if isinstance(o, TurnScore)]
    assert scores == [0.1, 0.9, 0.1]


def test_a_speculation_answers_the_turn_and_confirming_it_ends_the_turn() -> None:
    assistant = opened(Script(transcripts=("what now",)))
    assistant.submit(Feed("s", "t", LOUD, 0))
    assistant.submit(Speculate("s", "t", "r", TEXT))
    outputs = run(assistant)
    assert text(outputs) == "You said: what now"
    assert not [o for o in outputs if isinstance(o, TranscriptDone)]
    # It had finished before it was confirmed; the turn ends all the same.
    assistant.submit(Confirm("s", "r"))
    assert run(assistant) == [TranscriptDone("s", "t", "what now", 1000)]


def test_a_cancelled_response_says_nothing_more() -> None:
    assistant = opened(conversation=said("a b c d e f"))
    assistant.submit(Respond("s", "r", TEXT))
    assistant.step()
    assistant.submit(Cancel("s", "r"))
    outputs = run(assistant)
    assert [type(o) for o in outputs] == [Done]
    assert outputs[0].reason == "cancelled"  # type: ignore[union-attr]


def test_tools_are_called_only_when_offered_and_allowed() -> None:
    script = Script(answers=(Answer(text="Well.", calls=(Call("look", "{}"),)),))
    tools = Conversation(tools=(ToolSpec("look", "looks"),))
    assistant = opened(script, tools)
    assistant.submit(Respond("s", "r", TEXT))
    calls = [o for o in run(assistant) if isinstance(o, ToolCall)]
    assert [(c.name, c.arguments) for c in calls] == [("look", "{}")]
    assert len(calls[0].call_id) <= 32
    assistant.submit(Respond("s", "r2", ResponseConfig(modality="text", tool_choice="none")))
    assistant.submit(Respond("s", "r3", TEXT, Conversation()))
    assert not [o for o in run(assistant) if isinstance(o, ToolCall)]


def test_the_default_script_speaks_about_a_tools_result() -> None:
    conversation = Conversation(messages=(Message("tool", (ResultPart("c", "blue"),)),))
    assistant = opened(conversation=conversation)
    assistant.submit(Respond("s", "r", TEXT))
    assert text(run(assistant)) == "The tool says blue."


def test_the_token_limit_cuts_an_answer() -> None:
    assistant = opened(conversation=said("a b c d e f"))
    assistant.submit(Respond("s", "r", ResponseConfig(modality="text", max_output_tokens=3)))
    outputs = run(assistant)
    assert text(outputs) == "You said: a"
    assert outputs[-1].reason == "max_output_tokens"  # type: ignore[union-attr]


def test_a_scripted_failure_ends_the_response() -> None:
    assistant = opened(Script(answers=(Answer(text="I am", failure="server_error"),)))
    assistant.submit(Respond("s", "r", TEXT))
    outputs = run(assistant)
    assert isinstance(outputs[-1], Failed)
    assert outputs[-1].code == "server_error"
    assert not assistant.has_work()


def test_an_edit_changes_what_is_answered_and_turns_are_known_by_id() -> None:
    assistant = opened(Script(transcripts=("from the turn",)))
    assistant.submit(Feed("s", "t", LOUD, 0))
    assistant.submit(Commit("s", "t"))
    heard = Conversation(messages=(Message("user", (AudioPart("t"),)),))
    assistant.submit(Edit("s", heard))
    assistant.submit(Respond("s", "r", TEXT))
    assert text(run(assistant)) == "You said: from the turn"


def test_a_paused_session_waits_and_others_go_on() -> None:
    assistant = opened(conversation=said("x"))
    assistant.submit(Open("s2", said("y")))
    assistant.submit(Respond("s", "r", TEXT))
    assistant.submit(Respond("s2", "r2", TEXT))
    assistant.submit(Pause("s"))
    outputs = run(assistant)
    assert {o.session_id for o in outputs} == {"s2"}
    assistant.submit(Resume("s"))
    assert text(run(assistant)) == "You said: x"


def test_a_closed_session_and_unknown_ids_are_ignored() -> None:
    assistant = opened(conversation=said("x"))
    assistant.submit(Respond("s", "r", TEXT))
    assistant.submit(Close("s"))
    assert not assistant.has_work()
    for command in (
        Feed("s", "t", LOUD, 0),
        Commit("s", "t"),
        Discard("s", "t"),
        Cancel("s", "r"),
        Confirm("s", "r"),
        Close("s"),
    ):
        assistant.submit(command)
    assert run(assistant) == []


def test_audio_is_not_kept_beyond_its_turn() -> None:
    assistant = opened()
    samples = LOUD.copy()
    is_there = weakref.ref(samples)
    assistant.submit(Feed("s", "t", samples, 0))
    del samples
    assistant.submit(Close("s"))
    gc.collect()
    assert is_there() is None
