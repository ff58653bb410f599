"""Which utterances are commands of live description: whole ones, however they are said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omni_streaming.describe_commands import match_command


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("What's in front of me?", "front"),
        ("what is in front of me", "front"),
        ("Okay, what do you see now?", "front"),
        ("Could you please describe the scene?", "front"),
        ("What’s around me?", "front"),
        ("Read this.", "read"),
        ("Please read the sign to me", "read"),
        ("What does it say?", "read"),
        ("Can you read it out loud, please?", "read"),
        ("Say that again", "repeat"),
        ("REPEAT!", "repeat"),
        ("Sorry, what did you say?", "repeat"),
        ("Tell me more.", "more"),
        ("Anything else?", "more"),
        ("Be quiet.", "quiet"),
        ("Hush", "quiet"),
        ("Shhh!", "quiet"),
        ("Please stop describing", "quiet"),
        ("Start describing again, please", "resume"),
        ("Resume", "resume"),
        ("Stop talking", "stop"),
        ("Stop. Stop. Stop!", "stop"),
        ("That's enough, thank you.", "stop"),
    ],
)
def test_commands_are_understood_as_people_say_them(text: str, name: str) -> None:
    assert match_command(text) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        "...",
        "please",
        "What is the capital of France?",
        "Stop at the shop on the way home",
        "How do I read this in French?",
        "What do you see in him?",
        "Tell me more about black holes",
        "Can you repeat the experiment with salt?",
        "Read the first chapter of Moby Dick",
        "Why is it so quiet here today?",
        "Is the room quiet?",
        "What did you say his name was?",
        "Describe the French revolution",
        "Who stood in front of me at the concert?",
        "More people live in Tokyo than in Paris",
        "Start describing how an engine works",
        "What else did Newton discover?",
        "stop " * 60,
    ],
)
def test_ordinary_questions_are_no_commands(text: str) -> None:
    assert match_command(text) is None


SPOKEN = {
    "repeat": "say that again",
    "more": "tell me more",
    "quiet": "be quiet",
    "resume": "start describing again",
    "front": "what's in front of me",
    "read": "read the sign",
    "stop": "stop talking",
}
before = st.sampled_from(["", "please", "Okay,", "um", "Hey Omni,", "could you please", "Well,"])
after = st.sampled_from(["", "please", "for me, please", "now", "thank you", "would you?"])
ends = st.sampled_from(["", ".", "!", "?", "...", " ."])


@given(
    name=st.sampled_from(sorted(SPOKEN)),
    before=before,
    after=after,
    end=ends,
    change=st.sampled_from([str.lower, str.upper, str.title]),
)
def test_fillers_case_and_punctuation_change_nothing(
    name: str, before: str, after: str, end: str, change: object
) -> None:
    said = f"{before} {SPOKEN[name]} {after}{end}"
    assert match_command(change(said)) == name  # type: ignore[operator]


words = st.lists(
    st.sampled_from(["yesterday", "my", "who", "Paris", "because", "engine", "seven", "blue"]),
    min_size=1,
    max_size=6,
).map(" ".join)


@given(name=st.sampled_from(sorted(SPOKEN)), first=words, last=words)
def test_a_command_inside_a_sentence_is_none(name: str, first: str, last: str) -> None:
    assert match_command(f"{first} {SPOKEN[name]}") is None
    assert match_command(f"{first} {SPOKEN[name]} {last}") is None


@given(text=st.text(max_size=400))
def test_any_text_is_looked_at(text: str) -> None:
    assert match_command(text) in {None, *SPOKEN}
