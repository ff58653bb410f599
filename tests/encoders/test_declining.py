"""What no camera may answer is declined, and nothing else."""

from __future__ import annotations

import pytest
from omni_encoders.declining import APPEARANCE, COMING, NOT_A_GUIDE, UNSEEN, declined


@pytest.mark.parametrize(
    ("expected", "questions"),
    [
        (
            NOT_A_GUIDE,
            """Is it safe to cross? Can I cross now? Is the traffic light green? Is the light
            green? What colour is the traffic light? What colour is the light? Is it a red
            light? Which way should I go? Should I turn left? Is the road clear? Is the
            coast clear? Where should I walk? Is it okay to cross? Is it OK to go? Can you
            guide me home? Am I going to hit something? Is there room to pass? Is anything
            in my way? Has the light changed to green?""",
        ),
        (
            UNSEEN,
            """Are there stairs ahead? Are there stairs? Is there a step in front of me? Is
            there a kerb? Is there a hole? Is there a wall? Is there glass in front of me?
            Is there a door? Where is the door? Do you see an obstacle? How far is the edge?""",
        ),
        (
            COMING,
            """Is a car coming? Is anything coming? Are any cars coming? Is somebody behind me?
            Is there a car coming? Is the bus approaching?""",
        ),
        (
            APPEARANCE,
            """What am I wearing? Who is that? How old is she? How do I look? Is she pretty? What
            does he look like? Do I look like my sister? Does the man look like an actor?""",
        ),
    ],
)
def test_what_no_camera_may_answer_is_declined(expected: str, questions: str) -> None:
    for question in questions.replace("?", "?|").split("|"):
        plain = " ".join(question.split())
        if plain:
            assert declined(plain) == expected, plain


@pytest.mark.parametrize(
    "question",
    [
        "Is there a car?",
        "Read the sign.",
        "What colour is the cup?",
        "Tell me about green tea.",
        "What is the capital of Australia?",
        "How many people are there?",
        "Is there a dog here?",
        "What is on the table?",
        "Who wrote Hamlet?",
        "How old is the universe?",
        "Tell me a joke.",
        "What is a glass ceiling?",
        "Is there a wine glass?",
        "Is there a glass of water on the table?",
        "What does a zebra look like?",
    ],
)
def test_what_may_be_answered_is_not_declined(question: str) -> None:
    assert declined(question) is None


ELSEWHERE = """
    Is it ok to eat eggs? Is it okay to eat eggs every day? Is it all right to drink coffee at
    night? Is it safe to freeze bread? Is it dangerous to eat raw rice? Can I go to Paris by train?
    Can we go to Rome by plane? Should I go to Spain for a holiday? Is it better to go to Oslo by
    ferry? Should I go to Oslo next year? Can I go to the museum on Sunday? Is the museum free on
    Mondays? Should I go to the dentist tomorrow? Is it ok to book a table for two? Is it ok to ask
    for help? May I ask you something? Can I call my sister? Will I pass the exam? Can you guide me
    through a recipe? Should we go to university? When does the bakery open? How long should I boil
    an egg?"""

PERHAPS_THE_WAY = """
    Is it safe to go? Is it ok to go now? Can I go to the other side? Can I walk to the train? Can I
    cross to buy bread? Can I cross to call my sister? Is it safe to eat this? Is it ok to drink
    from that cup? Is it safe to cook with the stove? Is it safe to call while walking? Can I go to
    the bus? Should I step on the train? Can I go for lunch straight ahead? Is it okay to book a
    taxi here and cross? Is it all right to cross? Can I go by train now? Is the road clear
    tomorrow? Can I turn right to eat? Is it safe to run for the bus? Which way is the ticket
    office? Can you take me to dinner this way? Is the oven safe to bake bread? Is it dangerous to
    drink and drive? Will I fall for lunch? Is it safe to ask it?"""


def each(questions: str) -> list[str]:
    return [" ".join(question.split()) + "?" for question in questions.split("?")[:-1]]


@pytest.mark.parametrize("question", each(ELSEWHERE))
def test_a_question_about_something_else_is_left_to_the_model(question: str) -> None:
    assert declined(question) is None


@pytest.mark.parametrize("question", each(PERHAPS_THE_WAY))
def test_what_may_be_about_the_way_is_declined_whatever_else_it_names(question: str) -> None:
    assert declined(question) == NOT_A_GUIDE
