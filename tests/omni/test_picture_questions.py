"""Plain questions about a picture, answered from what was found in it for models without eyes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omni_encoders.declining import APPEARANCE, NOT_A_GUIDE
from tiny_assistant import model as tiny_model
from tiny_assistant import run, tiny_assistant

from omni.assistant.seeing import Blind, Sight, WordsSight
from omni.assistant.text_chat import open_chat
from omni.config import EngineConfig
from omni.engine.engine import SamplingParams
from omni.scene import Scene, Thing
from omni.types import (
    AudioDelta,
    Conversation,
    Done,
    Edit,
    MediaPart,
    Message,
    Open,
    Respond,
    ResponseConfig,
    TextDelta,
    TextPart,
    ToolSpec,
)

TEXT = ResponseConfig(modality="text", max_output_tokens=6)
PICTURE = MediaPart("picture", "image", b"looked at by a test's eyes")


class Finds:
    """Sees a dog in every picture."""

    def look(
        self, picture: bytes | NDArray[np.uint8], at_ms: int, state: object | None, **_: object
    ) -> tuple[Scene, object]:
        dog = Thing(label="dog", confidence=0.9, box=(0.4, 0.4, 0.6, 0.6))
        return Scene(at_ms=0, things=(dog,), lettering=()), state


def asks(question: str, *pictures: MediaPart) -> Message:
    return Message("user", (*pictures, TextPart(question)))


def answered(*messages: Message, sight: Sight | None = None, **given: Any) -> str:
    """What is written to the last of ``messages``, by the model only if it is asked."""
    with tiny_assistant(sight=sight or WordsSight(Finds())) as assistant:
        assistant.submit(Open("s", Conversation(messages=messages, **given)))
        assistant.submit(Respond("s", "r", TEXT))
        outputs = run(assistant)
        assert next(o.reason for o in outputs if isinstance(o, Done)) != "cancelled"
        return "".join(o.text for o in outputs if isinstance(o, TextDelta))


def test_a_plain_question_is_answered_from_what_was_found_in_its_picture() -> None:
    assert answered(asks("Is there a dog?", PICTURE)) == "Yes: a dog ahead."
    shown = Message("user", (PICTURE,))
    assert answered(shown, asks("What do you see?")) == "I see: a dog ahead."
    assert answered(asks("Hello."), asks("Read it.", PICTURE)) == "I see no text."


def test_any_other_question_is_left_to_the_model() -> None:
    own = "Yes: a dog ahead."
    told = Message("assistant", (TextPart("Nice."),))
    tool = ToolSpec("find", "Finds dogs.", {})
    assert answered(asks("Is there a dog in your life?", PICTURE)) != own
    assert answered(asks("Is there a dog?", PICTURE, replace(PICTURE, media_id="other"))) != own
    assert answered(asks("Look.", PICTURE), told, asks("Is there a dog?")) != own
    assert answered(asks("Is there a dog?", PICTURE), tools=(tool,)) != own
    assert answered(asks("Is there a dog?", PICTURE), sight=Blind()) != own


def test_what_no_camera_may_answer_is_declined_wherever_the_picture_stands() -> None:
    """A small model said yes to each of these."""
    told = Message("assistant", (TextPart("Nice."),))
    system = Message("system", (TextPart("Be brief."),))
    other = replace(PICTURE, media_id="other")
    crossing = asks("Is it save to cross?")
    assert answered(asks("Look.", PICTURE), told, crossing) == NOT_A_GUIDE
    assert answered(asks("Can I cross now?", PICTURE, other)) == NOT_A_GUIDE
    assert answered(asks("Who is this?", PICTURE)) == APPEARANCE
    assert answered(asks("Can I cross", PICTURE), asks("now?"), system) == NOT_A_GUIDE
    tool = ToolSpec("find", "Finds dogs.", {})
    assert answered(asks("Can I cross now?", PICTURE), tools=(tool,)) == NOT_A_GUIDE
    assert answered(asks("Can I cross now?", PICTURE), sight=Blind()) == NOT_A_GUIDE
    refused = Message("assistant", (TextPart(NOT_A_GUIDE),))
    shown = asks("Can I cross now?", PICTURE)
    assert answered(shown, refused, asks("Just yes or no.")) == NOT_A_GUIDE
    assert answered(shown, refused, asks("Who wrote Hamlet?")) != NOT_A_GUIDE
    assert answered(asks("Can I cross now?")) != NOT_A_GUIDE  # who shows nothing asks in general


def test_an_answer_from_what_was_found_is_spoken_and_remembered() -> None:
    question = asks("Is there a dog?", PICTURE)
    with tiny_assistant(sight=WordsSight(Finds())) as assistant:
        assistant.submit(Open("s", Conversation(messages=(question,))))
        assistant.submit(Respond("s", "r", ResponseConfig()))
        outputs = run(assistant)
        assert any(isinstance(o, AudioDelta) for o in outputs)
        (done,) = [o for o in outputs if isinstance(o, Done)]
        assert (done.reason, done.usage.output_text_tokens) == ("completed", 0)
        text = "".join(o.text for o in outputs if isinstance(o, TextDelta))
        answer = Message("assistant", (TextPart(text),), "r")
        assistant.submit(Edit("s", Conversation(messages=(question, answer))))
        run(assistant)
        assert "Yes: a dog ahead." in assistant.context_text("s")


def test_a_written_chat_answers_from_what_was_found() -> None:
    chat = open_chat(
        tiny_model(),
        EngineConfig(),
        instructions="",
        params=SamplingParams(max_tokens=4),
        watcher=Finds(),
    )
    shown = PICTURE
    chat.look(shown)
    assert list(chat.ask("Is there a dog?", [shown])) == ["Yes: a dog ahead."]
    assert chat.conversation.messages[-1] == Message("assistant", (TextPart("Yes: a dog ahead."),))
    assert chat.stats.end == "stop"
    assert list(chat.ask("And what is its name?"))
    assert chat.stats.output_tokens
