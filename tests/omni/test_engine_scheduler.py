"""Whose gap is closed first, and how much of a step others may take."""

from __future__ import annotations

import pytest
from tiny_backbone import Run, TinyBackbone, Watched, greedy, one_thread  # noqa: F401

from omni.config import EngineConfig
from omni.engine.engine import Engine, Priority, SamplingParams

PROMPT = [5, 17, 3, 42, 8, 8, 29, 11, 50, 2, 33]
FOREVER = SamplingParams(max_tokens=100)


def make(*, step_tokens: int = 16) -> Run:
    config = EngineConfig(max_sequences=8, num_pages=200, page_tokens=4, step_tokens=step_tokens)
    watched = Watched(TinyBackbone())
    return Run(Engine(watched, config, share_prefixes=False), watched)


def shares(run: Run, names: dict[int, str]) -> dict[str, int]:
    """Tokens that each sequence computes in the next step."""
    before = {seq: run.engine.num_computed(seq) for seq in names}
    run.step()
    after = {seq: run.engine.num_computed(seq) - before[seq] for seq in names}
    return {names[seq]: num for seq, num in after.items() if num}


def test_step_never_exceeds_its_budget_and_fills_it() -> None:
    run = make(step_tokens=16)
    for i in range(3):
        run.engine.add([i] * 20, priority=Priority.LISTENING)
    sizes = []
    while run.engine.has_work():
        run.step()
        sizes.append(run.engine.stats().last_step_tokens)
    assert sizes == [16, 16, 16, 9]


def test_more_urgent_classes_go_first() -> None:
    run = make(step_tokens=10)
    names = {
        run.engine.add([1] * 11, priority=priority): priority.name
        for priority in reversed(Priority)
    }
    order: list[str] = []
    while run.engine.has_work():
        order += [name for name in shares(run, names) if name not in order]
    assert order == ["SPEAKING", "RESPONDING", "LISTENING", "SPECULATING", "BACKGROUND"]


def test_set_priority_takes_effect_in_the_next_step() -> None:
    run = make(step_tokens=4)
    first = run.engine.add([1] * 30, priority=Priority.LISTENING)
    second = run.engine.add([2] * 30, priority=Priority.BACKGROUND)
    names = {first: "first", second: "second"}
    assert shares(run, names) == {"first": 4}
    run.engine.set_priority(second, Priority.RESPONDING)
    assert shares(run, names) == {"second": 4}


def test_an_answer_gets_a_token_in_every_step_whatever_prompt_comes_in() -> None:
    run = make(step_tokens=16)
    talking = run.engine.add(PROMPT, priority=Priority.RESPONDING)
    run.engine.generate(talking, FOREVER)
    run.step()
    prompt = run.engine.add([1] * 100, priority=Priority.RESPONDING)
    names = {talking: "talking", prompt: "prompt"}
    for _ in range(5):
        assert shares(run, names) == {"talking": 1, "prompt": 15}


def test_less_urgent_work_takes_a_quarter_of_a_step_while_someone_is_answered() -> None:
    run = make(step_tokens=16)
    talking = run.engine.add(PROMPT, priority=Priority.SPEAKING)
    run.engine.generate(talking, FOREVER)
    run.step()
    listening = run.engine.add([1] * 100, priority=Priority.LISTENING)
    background = run.engine.add([2] * 100, priority=Priority.BACKGROUND)
    names = {talking: "talking", listening: "listening", background: "background"}
    assert shares(run, names) == {"talking": 1, "listening": 4}
    run.engine.cancel(talking)
    assert shares(run, names) == {"listening": 16}


def test_speculation_does_not_slow_listening_down() -> None:
    run = make(step_tokens=16)
    guess = run.engine.add(PROMPT, priority=Priority.SPECULATING)
    run.engine.generate(guess, FOREVER)
    run.step()
    listening = run.engine.add([1] * 40, priority=Priority.LISTENING)
    names = {guess: "guess", listening: "listening"}
    assert shares(run, names) == {"listening": 16}
    run.drain()
    assert run.generated(guess) == greedy(run.watched.backbone, PROMPT, 100)


@pytest.mark.parametrize("step_tokens", [1, 2])
def test_answers_take_turns_when_the_budget_is_smaller_than_their_number(step_tokens: int) -> None:
    run = make(step_tokens=step_tokens)
    seqs = [run.engine.add([i], priority=Priority.RESPONDING) for i in range(4)]
    for seq in seqs:
        run.engine.generate(seq, FOREVER)
    for _ in range(20 // step_tokens):
        run.step()
    assert [len(run.generated(seq)) for seq in seqs] == [5, 5, 5, 5]


def test_sequences_of_one_step_share_one_batch() -> None:
    run = make(step_tokens=16)
    seqs = [run.engine.add(PROMPT[:n], priority=Priority.RESPONDING) for n in (3, 5, 2)]
    for seq in seqs:
        run.engine.generate(seq, SamplingParams(max_tokens=1))
    run.drain()
    [batch] = run.watched.batches
    assert batch.num_sequences == 3
    assert len(batch.token_ids) == 10
    assert batch.cu_seqlens == (0, 2, 5, 10)  # the smallest gap first
    assert batch.logits_rows.tolist() == [1, 4, 9]
