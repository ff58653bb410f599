"""The engine on real weights: a worked turn of ARCHITECTURE.md, in tokens."""

from __future__ import annotations

import pytest

from omni.config import Config, EngineConfig, home
from omni.engine.engine import Engine, Priority, SamplingParams
from omni.models.loading import LoadedModel, load

pytestmark = pytest.mark.weights

TEXT = (
    "Questions of a traveller, and the answers of a geographer.\n\n"
    "Question: What is the capital of Australia?\nAnswer: The capital of Australia is"
)
GREEDY = SamplingParams(max_tokens=12)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    store = home(Config())
    return load(store / "models" / "smollm2-135m", home=store)


def make(model: LoadedModel, step_tokens: int = 128) -> Engine:
    return Engine(model.backbone, EngineConfig(step_tokens=step_tokens, num_pages=64))


def drain(engine: Engine) -> dict[int, list[int]]:
    tokens: dict[int, list[int]] = {}
    while engine.has_work():
        for output in engine.step():
            if output.token_id is not None:
                tokens.setdefault(output.seq_id, []).append(output.token_id)
    engine.check_integrity()
    return tokens


@pytest.fixture(scope="module")
def expected(model: LoadedModel) -> list[int]:
    """What is answered when everything is known at once and nobody else is there."""
    engine = make(model)
    seq = engine.add(model.tokenizer.encode(TEXT), priority=Priority.RESPONDING)
    engine.generate(seq, GREEDY)
    tokens = drain(engine)[seq]
    assert "Canberra" in model.tokenizer.decode(tokens)
    return tokens


@pytest.mark.parametrize("step_tokens", [5, 64])
def test_neighbours_and_chunks_do_not_change_an_answer(
    model: LoadedModel, expected: list[int], step_tokens: int
) -> None:
    engine = make(model, step_tokens)
    for text in ("Once upon a time", "def double(x):\n", TEXT[:75]):
        other = engine.add(model.tokenizer.encode(text), priority=Priority.SPEAKING)
        engine.generate(other, SamplingParams(max_tokens=20, temperature=0.8))
    seq = engine.add(priority=Priority.LISTENING)
    for token in model.tokenizer.encode(TEXT):
        engine.extend(seq, [token])
        engine.step()
    engine.generate(seq, GREEDY)
    assert drain(engine)[seq] == expected


def test_a_turn_listened_to_guessed_cut_off_and_asked_again(
    model: LoadedModel, expected: list[int]
) -> None:
    token_ids = model.tokenizer.encode(TEXT)
    system, question, header = token_ids[:13], token_ids[13:24], token_ids[24:]
    engine = make(model, step_tokens=16)
    session = engine.add(system, priority=Priority.LISTENING)
    drain(engine)
    engine.extend(session, question)  # listening is prefill
    drain(engine)
    wrong = engine.fork(session, priority=Priority.SPECULATING)
    engine.extend(wrong, header[:4])
    engine.generate(wrong, GREEDY)
    engine.step()
    engine.free(wrong)  # the user went on
    guess = engine.fork(session, priority=Priority.SPECULATING)
    engine.extend(guess, header)
    before = engine.usage(guess).num_processed
    engine.generate(guess, GREEDY)
    answer = drain(engine)[guess]
    assert answer == expected
    # All that was left to compute: the header, one listening token, and the answer itself.
    assert engine.usage(guess).num_processed - before == len(header) + len(answer)
    engine.free(session)  # confirmed: the fork becomes the session without a copy
    known = engine.tokens(guess)
    engine.truncate(guess, len(known) - 5)  # heard up to here
    assert engine.sync(guess, known) == len(known) - 5
    engine.truncate(guess, len(known) - len(answer))
    engine.generate(guess, GREEDY)
    assert drain(engine)[guess] == expected
