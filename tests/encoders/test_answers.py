"""Plain questions about the picture are answered from what was found, and no others."""

from __future__ import annotations

from dataclasses import replace

import pytest
from omni_encoders.answers import UNKNOWN, UNREAD, about_picture, answer, cannot_tell
from omni_encoders.declining import APPEARANCE, NOT_A_GUIDE, declined
from omni_encoders.nouns import coco_labels
from omni_encoders.wording import ABSTENTIONS, WordingOptions

from omni.scene import Lettering, Scene, Thing


def thing(label: str, x: float, confidence: float = 0.9, distance_m: float | None = None) -> Thing:
    box = (x - 0.1, 0.3, x + 0.1, 0.9)
    return Thing(label=label, confidence=confidence, box=box, distance_m=distance_m)


STREET = Scene(
    at_ms=0,
    things=(
        thing("person", 0.5, distance_m=5.0),
        thing("person", 0.48, distance_m=6.0),
        thing("car", 0.9, distance_m=8.0),
        thing("dog", 0.1, confidence=0.45),
        thing("cup", 0.5, confidence=0.2),
    ),
)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Is there a car?", "Yes: a car on the right, about 8 metres."),
        ("And is there anyone here?", "Yes: two people ahead, the nearest about 5 metres."),
        ("Do you see any people?", "Yes: two people ahead, the nearest about 5 metres."),
        ("Are there any bikes around?", "I do not see a bicycle. I may have missed it."),
        ("Is there a cup on the table?", "I do not see a cup. I may have missed it."),
        ("Can you see a dog?", "I am not sure. Perhaps a dog on the left."),
        (
            "How many people are there?",
            "I see two people: two people ahead, the nearest about 5 metres.",
        ),
        ("How many cars?", "One: a car on the right, about 8 metres."),
        ("Where is the car?", "A car on the right, about 8 metres."),
        ("How far away is the car?", "About 8 metres, on the right. That is a rough guess."),
        (
            "What is on the table?",
            "I see: a car on the right, about 8 metres; two people ahead, the nearest about "
            "5 metres. I am not sure, perhaps a dog on the left.",
        ),
    ],
)
def test_a_question_about_what_was_looked_for_is_answered(question: str, expected: str) -> None:
    assert answer(question, STREET) == expected


@pytest.mark.parametrize(
    "question",
    [
        "What is the capital of Australia?",
        "Tell me a joke.",
        "Is there a dog breed called Akita?",
        "How many people live in France?",
        "Where is Paris?",
        "What are the people wearing?",
        "How many cars were sold last year?",
        "",
    ],
)
def test_other_questions_are_left_to_the_model(question: str) -> None:
    assert answer(question, STREET) is None


@pytest.mark.parametrize("condition", ["dark", "blurred", "covered", "bright"])
def test_a_picture_that_cannot_be_judged_answers_nothing(condition: str) -> None:
    scene = Scene(at_ms=0, condition=condition)  # type: ignore[arg-type]
    assert answer("Is anybody there?", scene) == ABSTENTIONS[condition]
    assert answer("Where is Paris?", scene) is None, "it is no question about the picture"


def test_more_than_can_be_listed_is_said_to_be_more() -> None:
    crowd = tuple(thing("person", 0.05 + n * 0.15, distance_m=5.0 + n) for n in range(7))
    said = answer("How many people are there?", Scene(at_ms=0, things=crowd))
    assert said is not None
    assert said.startswith("I see seven people, among them ")


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is on my left?", "I am not sure, perhaps a dog on the left."),
        ("Anything to my right?", "I see: a car on the right, about 8 metres."),
        ("Is there anything in front of me?", "I see: a car on the right, about 8 metres; two"),
        ("What is ahead?", "I see: a car on the right, about 8 metres; two people ahead"),
    ],
)
def test_a_side_or_all_of_it_can_be_asked_for(question: str, expected: str) -> None:
    said = answer(question, STREET)
    assert said is not None
    assert said.startswith(expected)
    empty = Scene(at_ms=0)
    assert "I recognise nothing" in (answer(question, empty) or "")


def test_what_the_findings_do_not_answer_is_admitted_with_the_findings() -> None:
    assert cannot_tell(STREET).startswith("I cannot tell. I see: a car on the right")
    assert cannot_tell(Scene(at_ms=0)) == "I cannot tell. I recognise nothing here."
    assert cannot_tell(replace(STREET, condition="dark")) == ABSTENTIONS["dark"]


@pytest.mark.parametrize(
    "question",
    ["What colour is it?", "What color is this shirt?", "Which colours are these?"],
)
def test_colours_are_those_of_the_whole_picture_and_said_to_be(question: str) -> None:
    room = Scene(at_ms=0, things=(thing("cup", 0.5),), colours=("red", "white"))
    assert answer(question, room) == (
        "I can only tell the colours of the whole picture: mostly red and white."
    )
    assert answer(question, replace(room, colours=())) == "I cannot tell the colours here."
    # In a street "green" might be taken for a light's.
    assert answer(question, replace(STREET, colours=("green", "white"))) == NOT_A_GUIDE
    dark = answer(question, replace(room, condition="dark", colours=("black",)))
    assert dark == ABSTENTIONS["dark"]


def test_the_colours_of_lights_and_of_people_are_not_told() -> None:
    assert declined("What colour is the light?") == NOT_A_GUIDE
    assert declined("What colour is her skin?") == APPEARANCE


def test_every_kind_of_thing_can_be_asked_for_in_singular_and_plural() -> None:
    for label in coco_labels():
        scene = Scene(at_ms=0, things=(thing(label, 0.5),))
        for question in (f"Is there a {label}?", f"Where is the {label}?", f"How many {label}s?"):
            found = answer(question, scene)
            assert found is not None, question
            assert "do not see" not in found, question


def test_directions_follow_the_options() -> None:
    options = WordingOptions(directions="clock", units="steps")
    assert answer("Where is the car?", STREET, options) == "A car at 1 o'clock, about 10 steps."


def test_a_thing_that_no_detector_knows_is_not_guessed_at() -> None:
    for question in ("Is there a key on the table?", "Where is my wallet?", "Do you see a lamp?"):
        assert answer(question, STREET) == UNKNOWN, question


SIGN = Lettering(
    text="Push bar to open", confidence=0.99, box=(0.2, 0.4, 1.0, 0.5), is_cut_off=True
)
DOOR = Scene(at_ms=0, things=(thing("person", 0.5),), lettering=(SIGN,))
BLANK = Scene(at_ms=0, condition="covered", lettering=())
PLAIN = "The picture shows nothing: it seems covered, or faces a plain surface."


@pytest.mark.parametrize(
    ("question", "scene", "expected"),
    [
        ("What does the sign say?", DOOR, "It says: Push bar to open. The text is cut off."),
        ("Can you read this to me?", STREET, UNREAD),
        ("Read the text.", Scene(at_ms=0, lettering=()), "I see no text."),
        ("Is there any text?", BLANK, PLAIN),
        (
            "Describe the picture.",
            DOOR,
            "I see: a person ahead. It says: Push bar to open. The text is cut off.",
        ),
        (
            "What is this?",
            Scene(at_ms=0, main="mug", main_confidence=0.9),
            "This looks like a mug.",
        ),
        ("Tell me what you see.", BLANK, PLAIN),
        ("Is there a dog?", BLANK, PLAIN),
        ("Is there a cat?", DOOR, "I do not see a cat. I may have missed it."),
        ("Where is my wallet?", DOOR, UNKNOWN),
    ],
)
def test_a_plain_question_about_a_picture_needs_no_model(
    question: str, scene: Scene, expected: str
) -> None:
    assert about_picture(question, scene) == expected


@pytest.mark.parametrize(
    "question",
    [
        "Describe the picture as a poem.",
        "What is this used for?",
        "Read this and summarise it.",
        "What does this word mean?",
        "What is the capital of Australia?",
        "Translate the sign.",
        "",
    ],
)
def test_more_than_a_plain_question_about_a_picture_is_left_to_the_model(question: str) -> None:
    assert about_picture(question, DOOR) is None
