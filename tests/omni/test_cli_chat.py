"""`omni chat` on real small weights: answers, takes back, stops, refuses."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from omni import store
from omni.assistant.text_chat import TextChat, open_chat
from omni.cli import EXIT_FAILED, chat, main
from omni.config import Config, EngineConfig, ModelConfig, home
from omni.engine.engine import SamplingParams
from omni.errors import CapacityError
from omni.models import LoadedModel, load
from omni.types import MediaPart

pytestmark = pytest.mark.weights
MODEL = "smollm2-135m"


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    root = home(Config())
    return load(store.find(MODEL, root, role="backbone"), home=root)


def new_chat(model: LoadedModel, **limits: int) -> TextChat:
    params = SamplingParams(max_tokens=24)
    config = EngineConfig(max_sequences=2, **limits)
    return open_chat(model, config, instructions=ModelConfig().instructions, params=params)


def test_an_answer_comes_in_pieces_and_is_remembered(model: LoadedModel) -> None:
    talk = new_chat(model)
    pieces = list(talk.ask("What is the capital of France?"))
    assert "Paris" in "".join(pieces)
    assert len(pieces) > 1
    assert talk.stats.output_tokens >= len(pieces) - 1
    assert 0 < talk.stats.first_token_s <= talk.stats.total_s
    again = "".join(talk.ask("Which country is it in?"))
    assert again
    assert talk.stats.cached_tokens > talk.stats.input_tokens / 2
    assert [m.role for m in talk.conversation.messages] == ["user", "assistant"] * 2


def test_what_is_taken_back_leaves_no_trace(model: LoadedModel) -> None:
    talk, fresh = new_chat(model), new_chat(model)
    "".join(talk.ask("My name is Ada. Remember it."))
    assert talk.undo()
    question = "What is two plus three?"
    assert "".join(talk.ask(question)) == "".join(fresh.ask(question))
    assert talk.undo()
    assert not talk.undo()


def test_a_stopped_answer_stays_as_far_as_it_was_given(model: LoadedModel) -> None:
    talk = new_chat(model)
    answer = talk.ask("Count from one to twenty.")
    given = next(answer) + next(answer) + next(answer)
    answer.close()  # type: ignore[attr-defined]
    assert talk.stats.end == "cancelled"
    (part,) = talk.conversation.messages[-1].parts
    assert part.text == given  # type: ignore[union-attr]
    assert "".join(talk.ask("Go on."))
    talk.engine.check_integrity()


def test_a_question_that_does_not_fit_leaves_the_conversation_as_it_was(
    model: LoadedModel,
) -> None:
    talk = new_chat(model, num_pages=8)
    with pytest.raises(CapacityError):
        list(talk.ask("word " * 400))
    assert talk.conversation.messages == ()
    assert "".join(talk.ask("Hello."))


def test_a_question_on_the_command_line_is_answered(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--model", MODEL, "--stats", "What", "is", "the capital of France?"]) == 0
    printed = capsys.readouterr()
    assert "Paris" in printed.out
    assert "tokens in" in printed.err


def test_lines_of_a_pipe_are_a_conversation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "What is the capital of France?\n/undo\n/undo\n/what\n/stats\n/quit\nnot read\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    assert main(["chat", "--model", MODEL, "--max-tokens", "12"]) == 0
    printed = capsys.readouterr().out
    assert "Paris" in printed
    assert "Taken back." in printed
    assert "nothing to take back" in printed
    assert "/what is not a command" in printed
    assert "not read" not in printed


def test_a_picture_is_named_with_spaces_and_quotes_or_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my photo.png").write_bytes(b"seen by nobody here")
    looked: list[MediaPart] = []
    monkeypatch.setattr(TextChat, "look", lambda self, part: looked.append(part))
    lines = ["/image", "/video  ", "/image   my photo.png ", "/image 'my photo.png'", "/image '"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([*lines, "/quit\n"])))
    assert main(["chat", "--model", MODEL]) == 0
    printed = capsys.readouterr()
    assert printed.out == "my photo.png will be shown with the next question.\n" * 2
    assert len(looked) == 2
    asked, asked_video, bad = printed.err.splitlines()
    assert asked == "name a file: /image FILE"
    assert asked_video == "name a file: /video FILE"
    assert bad.startswith("cannot read the image '")


def test_a_question_that_is_too_long_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("word " * 400 + "\n/quit\n"))
    assert main(["chat", "--model", MODEL, "--set", "engine.max_context_tokens=256"]) == 0
    assert "; shorten the question or start over with /new" in capsys.readouterr().err


def test_ctrl_c_stops_the_answer_and_not_the_chat(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = new_chat(model)
    step, calls = talk.engine.step, []

    def interrupted() -> object:
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(talk.engine, "step", interrupted)
    assert not chat._print_answer(talk, "Count from one to twenty.", [], False)
    assert "[stopped]" in capsys.readouterr().out
    assert "".join(talk.ask("And now?"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--temperature", "9"], "--temperature is 9.0, expected 0 to 2"),
        (["--max-tokens", "0"], "--max-tokens is 0, expected 1 to 1048576"),
        (["--model", "/no/such/folder"], "there is no file or folder"),
    ],
)
def test_bad_options_are_one_sentence(
    options: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", *options, "Hi"]) == EXIT_FAILED
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line


def test_a_folder_without_a_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", "--model", str(tmp_path), "Hi"]) == EXIT_FAILED
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path} holds no model" in line
    assert "config.json with *.safetensors, or one *.gguf" in line


def test_an_empty_question_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", " "]) == EXIT_FAILED
    assert "the question is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("end", "says"),
    [
        ("length", "cut after 5 tokens: --max-tokens 24"),
        ("context", "longest that the model follows"),
        ("capacity", "engine.num_pages"),
    ],
)
def test_a_cut_answer_says_what_cut_it(end: str, says: str) -> None:
    assert says in chat.why_cut(end, 5, 24)


def test_the_number_of_a_cut_answer_is_said_and_loading_is_shown_to_a_person(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert main(["chat", "--model", MODEL, "--max-tokens", "3", "Count to ten"]) == 0
    said = capsys.readouterr().err
    assert said.startswith(f"Loading {MODEL}...")
    assert "[cut after 3 tokens: --max-tokens 3 allows no more]" in said
