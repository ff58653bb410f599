"""Out of slots or pages on a hybrid stack: refused by name, and who is running does not notice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_backbone import (
    HYBRID,
    Run,
    TinyBackbone,
    Watched,
    decoder_stack,
    greedy,
    one_thread,  # noqa: F401
)

from omni.config import EngineConfig
from omni.engine.engine import Engine, Priority, SamplingParams
from omni.errors import CapacityError
from omni.models.batch import Backbone

PROMPT = [5, 17, 3, 42, 8, 8, 29, 11, 50, 2, 33]
LISTENING, RESPONDING = Priority.LISTENING, Priority.RESPONDING
ROOMY = EngineConfig(
    max_sequences=6, num_pages=64, page_tokens=4, max_context_tokens=128, step_tokens=16
)
STACKS = {"tiny": lambda: TinyBackbone(HYBRID), "product": lambda: decoder_stack(mixers=HYBRID)}
stacks = pytest.mark.parametrize("kind", sorted(STACKS))


def make(backbone: Backbone, **limits: int) -> Run:
    watched = Watched(backbone)
    config = replace(ROOMY, **limits)  # type: ignore[arg-type]  # whole numbers all
    return Run(Engine(watched, config, share_prefixes=False), watched)


def say(run: Run, seq: int, num_tokens: int) -> None:
    run.engine.generate(seq, SamplingParams(max_tokens=num_tokens))


def begin(run: Run) -> tuple[int, int]:
    """An answer of twelve tokens under way, and a sequence that listens."""
    seq = run.engine.add(PROMPT, priority=RESPONDING)  # 3 pages, 6 with its answer
    idle = run.engine.add([1, 2, 3], priority=LISTENING)
    run.drain()
    say(run, seq, 12)
    return seq, idle


def undisturbed(kind: str) -> tuple[list[int], torch.Tensor]:
    """The same with room for all and nothing refused."""
    run = make(STACKS[kind]())
    seq, _ = begin(run)
    run.drain()
    return run.generated(seq), torch.stack(run.logits[seq])


@stacks
def test_a_sequence_without_a_slot_is_refused_and_the_running_one_does_not_notice(
    kind: str,
) -> None:
    run = make(STACKS[kind](), max_sequences=2)
    engine = run.engine
    seq, idle = begin(run)
    while run.step() or engine.has_work():
        for refused in (
            lambda: engine.add([7], priority=LISTENING),
            lambda: engine.fork(seq, priority=RESPONDING),
            lambda: engine.fork(idle, priority=LISTENING),
        ):
            with pytest.raises(CapacityError, match=r"all 2 sequences .*max_sequences"):
                refused()
        engine.check_integrity()
    tokens, logits = undisturbed(kind)
    assert run.generated(seq) == tokens
    assert torch.equal(torch.stack(run.logits[seq]), logits)
    engine.free(idle)
    again = engine.add(PROMPT, priority=RESPONDING)  # in the slot of the one that has gone
    say(run, again, 12)
    run.drain()
    assert run.generated(again) == tokens


@stacks
def test_a_sequence_without_a_page_is_refused_and_the_running_one_does_not_notice(
    kind: str,
) -> None:
    run = make(STACKS[kind](), num_pages=8)
    engine = run.engine
    seq, idle = begin(run)
    while run.step() or engine.has_work():
        with pytest.raises(CapacityError, match=r"more pages .* of 8 .*num_pages"):
            engine.extend(idle, [4] * 24)
        with pytest.raises(CapacityError, match=r"more pages .* of 8 .*num_pages"):
            engine.add([4] * 30, priority=LISTENING)
        assert engine.tokens(idle) == [1, 2, 3]
        assert engine.stats().num_sequences == 2
        engine.check_integrity()
    tokens, logits = undisturbed(kind)
    assert run.generated(seq) == tokens
    assert torch.equal(torch.stack(run.logits[seq]), logits)


@stacks
def test_an_answer_that_starves_goes_on_from_its_state_once_there_is_room(kind: str) -> None:
    run = make(STACKS[kind](), num_pages=6)
    engine = run.engine
    seqs = [engine.add(PROMPT[:n], priority=RESPONDING) for n in (8, 6)]  # 2 + 2 pages
    for seq in seqs:
        say(run, seq, 12)
    run.drain()
    ends = {seq: run.outputs[seq][-1] for seq in seqs}
    starved = next(seq for seq in seqs if ends[seq].finish_reason == "capacity")
    assert "0 of 6 are free" in ends[starved].message
    backbone = run.watched.backbone
    for seq, n in zip(seqs, (8, 6), strict=True):
        tokens = run.generated(seq)
        assert tokens == greedy(backbone, PROMPT[:n], len(tokens))
    engine.check_integrity()
    engine.free(next(seq for seq in seqs if seq != starved))
    num_before = len(run.generated(starved))
    say(run, starved, 5)
    run.drain()
    n = {seqs[0]: 8, seqs[1]: 6}[starved]
    assert run.generated(starved) == greedy(backbone, PROMPT[:n], num_before + 5)
    engine.check_integrity()
