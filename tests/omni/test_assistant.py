"""The assistant on the real embedded weights, its parts run inline."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from omni_encoders.declining import NOT_A_GUIDE
from scipy.signal import resample_poly

from omni.assistant import Assistant
from omni.assistant.embedded import build
from omni.config import Config, EngineConfig, ServerConfig, home
from omni.errors import OmniError
from omni.parts import InlineParts
from omni.speech.contract import SpeechStream
from omni.store import is_present
from omni.types import (
    INPUT_RATE_HZ,
    OUTPUT_RATE_HZ,
    AudioDelta,
    AudioPart,
    CallPart,
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
    MediaPart,
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

NAMES = ("qwen2.5-coder-0.5b", "whisper-base", "smart-turn-v3")
pytestmark = [
    pytest.mark.weights,
    pytest.mark.skipif(
        not all(is_present(name, home(Config())) for name in NAMES),
        reason="the embedded weights are absent: run `omni fetch`",
    ),
]
TEXT = ResponseConfig(modality="text", max_output_tokens=40)


@pytest.fixture(scope="module")
def assistant() -> Iterator[Assistant]:
    assistant = build(Config(), InlineParts())
    yield assistant
    assistant.close()


@pytest.fixture(autouse=True)
def nothing_leaks(assistant: Assistant) -> Iterator[None]:
    yield
    assistant.close()
    run(assistant)
    stats = assistant.stats()
    assert stats.num_sequences == 0
    assert stats.num_pages_free == stats.num_pages
    assistant.check_integrity()


@pytest.fixture(scope="module")
def question() -> NDArray[np.float32]:
    """ "What is the capital of France?" and 0.4 s of silence, 16 kHz."""
    return spoken("What is the capital of France?")


def spoken(text: str) -> NDArray[np.float32]:
    """``text`` and 0.4 s of silence, 16 kHz."""
    from hibari import Hibari

    audio = resample_poly(Hibari()(text, seed=0), INPUT_RATE_HZ, OUTPUT_RATE_HZ)
    return np.concatenate([audio, np.zeros(6400)]).astype(np.float32)


def run(assistant: Assistant) -> list[Output]:
    outputs: list[Output] = []
    while assistant.has_work():
        outputs += assistant.step()
    return outputs


def feed(assistant: Assistant, session: str, turn: str, audio: NDArray[np.float32]) -> list[Output]:
    outputs: list[Output] = []
    for start in range(0, len(audio), 640):
        assistant.submit(Feed(session, turn, audio[start : start + 640], start // 16))
        outputs += run(assistant)
    return outputs


def text_of(outputs: list[Output]) -> str:
    return "".join(o.text for o in outputs if isinstance(o, TextDelta))


def user(text: str) -> Message:
    return Message("user", (TextPart(text),))


def done_of(outputs: list[Output]) -> Done:
    (done,) = [o for o in outputs if isinstance(o, Done)]
    return done


@pytest.mark.parametrize("asked", ["Are there any cars?", "Can I cross the road now?"])
def test_a_whole_question_about_a_picture_ends_its_turn_and_needs_no_model(
    assistant: Assistant, asked: str
) -> None:
    grey = cv2.imencode(".png", np.full((64, 64, 3), 128, np.uint8))[1].tobytes()
    seen = MediaPart("p", "image", grey, is_small=True)
    assistant.submit(Open("s", Conversation()))
    feed(assistant, "s", "t", spoken(asked))
    assistant.submit(ScoreTurn("s", "t"))
    assistant.submit(Speculate("s", "t", "r", ResponseConfig(), shown=(seen,)))
    outputs = run(assistant)
    assert [o for o in outputs if isinstance(o, TurnScore)][-1].probability > 0.6
    assistant.submit(Confirm("s", "r"))
    outputs += run(assistant)
    assert text_of(outputs) in (
        NOT_A_GUIDE,
        "The picture shows nothing: it seems covered, or faces a plain surface.",
    )
    assert done_of(outputs).usage.output_text_tokens == 0
    assert any(isinstance(o, AudioDelta) for o in outputs)


def test_a_spoken_question_is_answered_aloud(
    assistant: Assistant, question: NDArray[np.float32]
) -> None:
    assistant.submit(Open("s", Conversation()))
    heard = feed(assistant, "s", "t", question)
    assistant.submit(ScoreTurn("s", "t"))
    assistant.submit(Speculate("s", "t", "r", ResponseConfig()))
    assistant.submit(Confirm("s", "r"))
    outputs = run(assistant)

    assert next(o for o in outputs if isinstance(o, TurnScore)).probability > 0.5
    (transcript,) = [o for o in outputs if isinstance(o, TranscriptDone)]
    assert transcript.text == "What is the capital of France?"
    assert transcript.duration_ms == len(question) // 16
    assert "Paris" in text_of(outputs)
    done = done_of(outputs)
    assert done.reason == "completed"
    audio = [o for o in outputs if isinstance(o, AudioDelta)]
    num_samples = sum(len(o.pcm) for o in audio) // 2
    assert num_samples > OUTPUT_RATE_HZ // 2
    marks = [mark for o in audio for mark in o.marks]
    assert [m.sample for m in marks] == sorted(m.sample for m in marks)
    assert marks[-1].num_chars == len(text_of(outputs))
    # Listening is prefill: words were stable, and computed, before the turn ended.
    stable = "".join(o.text for o in heard if isinstance(o, TranscriptDelta))
    assert stable
    assert transcript.text.startswith(stable)
    assert done.usage.cached_tokens > 0.6 * done.usage.input_text_tokens


def test_a_dropped_speculation_changes_nothing(
    assistant: Assistant, question: NDArray[np.float32]
) -> None:
    answers = []
    for session, drops in (("plain", 0), ("dropped", 2)):
        assistant.submit(Open(session, Conversation()))
        feed(assistant, session, "t", question)
        for number in range(drops):
            assistant.submit(Speculate(session, "t", f"guess{number}", ResponseConfig()))
            for _ in range(4):
                assistant.step()
            assistant.submit(Cancel(session, f"guess{number}"))
            assert done_of(run(assistant)).reason == "cancelled"
        assistant.submit(Speculate(session, "t", "r", ResponseConfig()))
        assistant.submit(Confirm(session, "r"))
        answers.append(text_of(run(assistant)))
    assert answers[0] == answers[1]
    assert assistant.stats().num_sequences == 2


def test_an_answer_that_was_ready_before_the_turn_ended_is_kept(
    assistant: Assistant, question: NDArray[np.float32]
) -> None:
    assistant.submit(Open("s", Conversation()))
    feed(assistant, "s", "t", question)
    assistant.submit(Speculate("s", "t", "r", ResponseConfig()))
    outputs = run(assistant)
    assert done_of(outputs).reason == "completed"
    assert not [o for o in outputs if isinstance(o, TranscriptDone)]
    answer = text_of(outputs)
    assistant.submit(Confirm("s", "r"))
    messages = (
        Message("user", (AudioPart("t"),)),
        Message("assistant", (TextPart(answer),), "r"),
    )
    assistant.submit(Edit("s", Conversation(messages=messages)))
    before = assistant.stats().num_tokens
    outputs = run(assistant)
    (transcript,) = [o for o in outputs if isinstance(o, TranscriptDone)]
    assert transcript.text == "What is the capital of France?"
    assert assistant.stats().num_sequences == 1
    assert assistant.context_text("s").endswith(f"assistant\n{answer}<|im_end|>\n")
    assert assistant.stats().num_tokens - before <= 3  # only the end of the answer was missing


def test_an_answer_that_was_ready_is_forgotten_when_the_user_goes_on(
    assistant: Assistant, question: NDArray[np.float32]
) -> None:
    assistant.submit(Open("s", Conversation()))
    feed(assistant, "s", "t", question)
    assistant.submit(Speculate("s", "t", "r", ResponseConfig()))
    run(assistant)
    assistant.submit(Cancel("s", "r"))
    assert not [o for o in run(assistant) if isinstance(o, Done)]
    assert assistant.stats().num_sequences == 1


def test_after_an_interruption_the_context_holds_what_was_heard(assistant: Assistant) -> None:
    messages = (user("Tell me about the moon."),)
    assistant.submit(Open("s", Conversation(messages=messages)))
    assistant.submit(Respond("s", "r", ResponseConfig(max_output_tokens=60)))
    spoken = ""
    while len(spoken) < 40:
        spoken += text_of(assistant.step())
    assistant.submit(Cancel("s", "r"))
    heard = spoken[: spoken.rindex(" ", 0, 30)]
    messages = (*messages, Message("assistant", (TextPart(heard),), "r"))
    assistant.submit(Edit("s", Conversation(messages=messages)))
    outputs = run(assistant)

    assert done_of(outputs).reason == "cancelled"
    assert not [o for o in outputs if isinstance(o, AudioDelta | TextDelta)]
    context = assistant.context_text("s")
    assert context.endswith(f"assistant\n{heard}<|im_end|>\n")
    assert spoken not in context


def test_the_next_turn_finds_the_answer_computed(assistant: Assistant) -> None:
    first = (user("What is the capital of Japan?"),)
    assistant.submit(Open("s", Conversation(messages=first)))
    assistant.submit(Respond("s", "r1", TEXT))
    outputs = run(assistant)
    answer = Message("assistant", (TextPart(text_of(outputs)),), "r1")
    used = done_of(outputs).usage
    messages = (*first, answer, user("And of Italy?"))
    assistant.submit(Edit("s", Conversation(messages=messages)))
    assistant.submit(Respond("s", "r2", TEXT))
    outputs = run(assistant)
    assert "Rome" in text_of(outputs)
    computed = used.input_text_tokens + used.output_text_tokens
    assert done_of(outputs).usage.cached_tokens >= computed


def test_an_out_of_band_response_leaves_no_trace(assistant: Assistant) -> None:
    assistant.submit(Open("s", Conversation(messages=(user("My name is Ada."),))))
    run(assistant)
    before = assistant.context_text("s")
    aside = Conversation(instructions="Answer with one word.", messages=(user("Say yes."),))
    assistant.submit(Respond("s", "r", TEXT, aside, out_of_band=True))
    outputs = run(assistant)
    assert text_of(outputs)
    assert assistant.context_text("s") == before
    assert assistant.stats().num_sequences == 1


def test_noise_without_words_is_not_answered(assistant: Assistant) -> None:
    assistant.submit(Open("s", Conversation()))
    noise = 0.02 * np.random.default_rng(0).standard_normal(32000).astype(np.float32)
    feed(assistant, "s", "t", noise)
    assistant.submit(Speculate("s", "t", "r", ResponseConfig()))
    assistant.submit(Confirm("s", "r"))
    outputs = run(assistant)
    assert [o.text for o in outputs if isinstance(o, TranscriptDone)] == [""]
    assert done_of(outputs).reason == "completed"
    assert not [o for o in outputs if isinstance(o, TextDelta | AudioDelta)]


def test_a_committed_turn_is_answered_without_speculation(
    assistant: Assistant, question: NDArray[np.float32]
) -> None:
    assistant.submit(Open("s", Conversation()))
    feed(assistant, "s", "t", question)
    assistant.submit(Commit("s", "t"))
    assistant.submit(Edit("s", Conversation(messages=(Message("user", (AudioPart("t"),)),))))
    assistant.submit(Respond("s", "r", TEXT))
    outputs = run(assistant)
    assert "Paris" in text_of(outputs)
    assert [type(o) for o in outputs if isinstance(o, TranscriptDone | Done)] == [
        TranscriptDone,
        Done,
    ]


def test_a_discarded_turn_is_forgotten(assistant: Assistant, question: NDArray[np.float32]) -> None:
    assistant.submit(Open("s", Conversation()))
    run(assistant)
    before = assistant.context_text("s")
    feed(assistant, "s", "t", question)
    assert assistant.context_text("s") != before
    assistant.submit(Discard("s", "t"))
    outputs = run(assistant)
    assert not outputs
    assert assistant.context_text("s") == before


def test_a_tool_is_called_and_spoken_about(assistant: Assistant) -> None:
    weather = ToolSpec(
        "get_weather",
        "Get the current weather of a city.",
        {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    )
    messages: tuple[Message, ...] = (user("What is the weather in Paris right now?"),)
    conversation = Conversation(tools=(weather,), messages=messages)
    assistant.submit(Open("s", conversation))
    assistant.submit(Respond("s", "r", TEXT))
    outputs = run(assistant)
    (call,) = [o for o in outputs if isinstance(o, ToolCall)]
    assert call.name == "get_weather"
    assert "Paris" in call.arguments
    assert "{" not in text_of(outputs)


@pytest.mark.parametrize("choice", ["required", "function:set_timer"])
def test_a_tool_that_is_required_is_called(assistant: Assistant, choice: str) -> None:
    timer = ToolSpec(
        "set_timer",
        "Set a timer.",
        {"type": "object", "properties": {"minutes": {"type": "integer"}}, "required": ["minutes"]},
    )
    conversation = Conversation(tools=(timer,), messages=(user("Hello, wake me in 5 minutes."),))
    assistant.submit(Open("s", conversation))
    config = ResponseConfig(modality="text", max_output_tokens=60, tool_choice=choice)
    assistant.submit(Respond("s", "r", config))
    outputs = run(assistant)
    (call,) = [o for o in outputs if isinstance(o, ToolCall)]
    assert call.name == "set_timer"
    assert "5" in call.arguments
    assert not text_of(outputs)


def test_a_voice_that_fails_ends_one_response_with_a_word(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def __init__(self, stream: SpeechStream) -> None:
            self.ready: Callable[[str], bool] = stream.ready

        def push(self, text: str) -> Iterator[object]:
            raise OmniError("the voice broke")

        flush = push

    for session in ("a", "b"):
        assistant.submit(Open(session, Conversation(messages=(user("Say hello."),))))
    real_open = assistant.speech.open
    opened: list[str] = []

    def open_once(**kwargs: object) -> object:
        stream = real_open(**kwargs)  # type: ignore[arg-type]
        opened.append("x")
        return Broken(stream) if len(opened) == 1 else stream

    monkeypatch.setattr(assistant.speech, "open", open_once)
    assistant.submit(Respond("a", "ra", ResponseConfig(max_output_tokens=20)))
    assistant.submit(Respond("b", "rb", ResponseConfig(max_output_tokens=20)))
    outputs = run(assistant)
    (failed,) = [o for o in outputs if isinstance(o, Failed)]
    assert (failed.session_id, failed.response_id) == ("a", "ra")
    assert "the voice broke" in failed.message
    assert [o for o in outputs if isinstance(o, AudioDelta) and o.response_id == "ra"]
    assert done_of(outputs).response_id == "rb"


def test_a_session_beyond_the_limit_is_refused_by_name(assistant: Assistant) -> None:
    limit = Config().server.max_sessions
    for number in range(limit):
        assistant.submit(Open(f"s{number}", Conversation()))
    assistant.submit(Open("late", Conversation()))
    (failed,) = [o for o in run(assistant) if isinstance(o, Failed)]
    assert failed.session_id == "late"
    assert str(limit) in failed.message


def test_a_session_without_room_does_not_disturb_the_others() -> None:
    engine = EngineConfig(max_sequences=8, num_pages=40, page_tokens=16, max_context_tokens=2048)
    server = ServerConfig(max_sessions=2)
    small = build(Config(engine=engine, server=server), InlineParts())
    long = "river mountain " * 600
    small.submit(Open("greedy", Conversation()))
    small.submit(Open("modest", Conversation()))
    small.submit(Edit("greedy", Conversation(messages=(user(long),))))
    small.submit(Respond("greedy", "g", TEXT))
    small.submit(Edit("modest", Conversation(messages=(user("What is the capital of Japan?"),))))
    small.submit(Respond("modest", "m", TEXT))
    outputs = run(small)
    (failed,) = [o for o in outputs if isinstance(o, Failed)]
    assert (failed.session_id, failed.code) == ("greedy", "rate_limit_exceeded")
    assert "Tokyo" in text_of([o for o in outputs if o.session_id == "modest"])
    small.close()
    small.check_integrity()


@pytest.mark.parametrize("arguments", ["[" * 100_000, '{"a": "\\ud800"}', "no JSON"])
def test_strange_arguments_of_a_call_are_only_text(assistant: Assistant, arguments: str) -> None:
    call = Message("assistant", (CallPart("c", "f", arguments[:2000]),))
    result = Message("tool", (ResultPart("c", "done"),))
    messages = (user("Do it."), call, result)
    assistant.submit(Open("s", Conversation(messages=messages)))
    assistant.submit(Respond("s", "r", TEXT))
    assert done_of(run(assistant)).session_id == "s"


def test_closing_amid_an_answer_frees_everything(
    assistant: Assistant, question: NDArray[np.float32]
) -> None:
    assistant.submit(Open("s", Conversation()))
    feed(assistant, "s", "t", question)
    assistant.submit(Speculate("s", "t", "r", ResponseConfig()))
    for _ in range(5):
        assistant.step()
    assistant.submit(Close("s"))
    assert not run(assistant)


def test_a_paused_session_stands_still_and_says_the_same_afterwards(assistant: Assistant) -> None:
    messages = (user("Tell me about the moon."),)
    for session in ("slow", "quick"):
        assistant.submit(Open(session, Conversation(messages=messages)))
        assistant.submit(Respond(session, "r", ResponseConfig(max_output_tokens=40)))
    outputs: list[Output] = []
    while len(text_of([o for o in outputs if o.session_id == "slow"])) < 20:
        outputs += assistant.step()
    assistant.submit(Pause("slow"))
    outputs += run(assistant)
    waiting = [o for o in outputs if o.session_id == "slow"]
    assert not [o for o in waiting if isinstance(o, Done)]
    assert [o for o in outputs if o.session_id == "quick" and isinstance(o, Done)]
    assistant.submit(Resume("slow"))
    outputs += run(assistant)

    def said(session: str) -> tuple[str, bytes]:
        mine = [o for o in outputs if o.session_id == session]
        return text_of(mine), b"".join(o.pcm for o in mine if isinstance(o, AudioDelta))

    assert said("slow") == said("quick")
    assert said("slow")[1]


def test_another_language_is_detected_and_said(assistant: Assistant) -> None:
    program = shutil.which("espeak-ng")
    if program is None:
        pytest.skip("espeak-ng is not installed (docker/test-packages.sh installs it)")
    spanish = "Buenos días. ¿Puede decirme qué hora es, por favor? Me gustaría ir a la playa."
    wav = subprocess.run(
        [program, "-v", "es", "-s", "130", "--stdout", spanish], capture_output=True, check=True
    ).stdout
    audio, rate = soundfile.read(io.BytesIO(wav), dtype="float32")
    audio = resample_poly(audio, INPUT_RATE_HZ, rate).astype(np.float32)
    assistant.submit(Open("s", Conversation()))
    feed(assistant, "s", "t", np.concatenate([audio, np.zeros(6400, np.float32)]))
    assistant.submit(Speculate("s", "t", "r", ResponseConfig()))
    assistant.submit(Confirm("s", "r"))
    outputs = run(assistant)
    (transcript,) = [o for o in outputs if isinstance(o, TranscriptDone)]
    assert transcript.language == "es"
    assert text_of(outputs) == "That sounded like Spanish. I only understand English."
    assert [o for o in outputs if isinstance(o, AudioDelta)]
    assert done_of(outputs).reason == "completed"
