"""The real engine on the stack of card kernels, decoding as graphs, against the CPU's engine.

In Triton's interpreter; "capturing" runs the step again each time, on the same fixed memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import interpreted  # noqa: F401
import pytest
import torch
from omni_kernels.triton_graph import Step
from tiny_backbone import ATTENTION, Mixers, one_thread, poison, relative_rms, stack_parts

from omni.config import EngineConfig
from omni.engine.engine import Engine, Priority, SamplingParams
from omni.engine.runner import Runner
from omni.engine.scheduler import Chunk
from omni.models.backbone import DecoderStack
from omni.models.batch import Backbone, Batch, StateView
from omni.models.card import CardStack

__all__ = ["one_thread"]

HYBRID: Mixers = ("recurrent", "attention")
CONFIG = EngineConfig(
    max_sequences=4, page_tokens=4, num_pages=40, max_context_tokens=64, journal_tokens=6,
    step_tokens=5,
)  # fmt: skip
PROMPT, SECOND = [5, 9, 2, 6, 5, 3, 5, 8], [7, 1, 4]


class Captures:
    """A capture that replays by running the step again into the same output."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, step: Step) -> tuple[Callable[[], None], torch.Tensor]:
        out = step().clone()
        self.sizes.append(len(out))

        def replay() -> None:
            out.copy_(step())

        return replay, out


class EagerSteps(CardStack):
    """Counts the steps that are no graphs."""

    num_eager = 0

    def forward(self, batch: Batch, state: StateView) -> torch.Tensor:
        self.num_eager += 1
        return super().forward(batch, state)


class Recorded:
    """A runner whose logits are kept; state that nothing may read is NaN before each step."""

    def __init__(self, engine: Engine, runner: Runner) -> None:
        self.engine, self.runner = engine, runner
        self.logits: list[torch.Tensor] = []
        self.warm_up = runner.warm_up

    def run(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        poison(self.engine)
        logits = self.runner.run(chunks)
        self.logits.append(logits.clone())
        return logits


class Talk:
    """An engine, what it says, and the logits behind it."""

    def __init__(self, backbone: Backbone) -> None:
        self.engine = Engine(backbone, CONFIG)
        self.recorded = Recorded(self.engine, self.engine._runner)
        self.engine._runner = self.recorded  # type: ignore[assignment]

    def add(self, tokens: Sequence[int]) -> int:
        return self.engine.add(tokens, priority=Priority.LISTENING)

    def say(self, *seq_ids: int, num_tokens: int) -> list[list[int]]:
        """Greedy tokens of each sequence, all at once."""
        said: dict[int, list[int]] = {seq_id: [] for seq_id in seq_ids}
        for seq_id in seq_ids:
            self.engine.generate(seq_id, SamplingParams(temperature=0.0, max_tokens=num_tokens))
        self.drain(said)
        return list(said.values())

    def drain(self, said: dict[int, list[int]] | None = None) -> None:
        while self.engine.has_work():
            for output in self.engine.step():
                if said is not None and output.token_id is not None:
                    said[output.seq_id].append(output.token_id)
        self.engine.check_integrity()


def stacks(mixers: Mixers) -> tuple[DecoderStack, EagerSteps, Captures]:
    config, values = stack_parts(mixers=mixers, seed=4)
    captures = Captures()
    card = EagerSteps(
        config, values, device=torch.device("cpu"), capture=captures, page_dtype=torch.float32
    )
    return DecoderStack(config, values), card, captures


def a_conversation(talk: Talk) -> list[list[int]]:
    """Prefill in pieces, two at once, roll back, fork, snapshot and restore; what was said."""
    said = []
    first, second = talk.add(PROMPT), talk.add(SECOND)
    said += talk.say(first, num_tokens=16)  # the journal fills and begins anew
    talk.engine.truncate(first, len(PROMPT) + 15)  # by replay
    talk.engine.extend(first, [3])
    said += talk.say(first, second, num_tokens=3)
    snapshot = talk.engine.snapshot(first)
    fork = talk.engine.fork(first, priority=Priority.SPECULATING)
    talk.engine.extend(fork, [1, 2])
    said += talk.say(fork, first, num_tokens=2)
    talk.engine.restore(first, snapshot)
    talk.engine.truncate(second, 2)  # back to before the checkpoint: computed again
    talk.engine.extend(second, [4])
    said += talk.say(first, second, num_tokens=2)
    talk.engine.release(snapshot)
    talk.engine.free(fork)
    talk.drain()
    return said


@pytest.mark.parametrize("mixers", [ATTENTION, HYBRID], ids=["attention", "hybrid"])
def test_a_conversation_with_its_turns_back_is_that_of_the_cpu(mixers: Mixers) -> None:
    host, card, captures = stacks(mixers)
    expected, got = Talk(host), Talk(card)
    assert a_conversation(got) == a_conversation(expected)
    steps = zip(got.recorded.logits, expected.recorded.logits, strict=True)
    for actual, wanted in steps:
        assert actual.shape == wanted.shape
        if len(wanted):
            assert relative_rms(actual, wanted) < 1e-4
    assert captures.sizes == [1, 2]  # each once, whatever comes between
    assert 0 < card.num_eager < len(got.recorded.logits) / 3


def test_going_back_and_on_has_the_bits_of_never_having_gone_further() -> None:
    _, card, _ = stacks(HYBRID)
    talk = Talk(card)
    seq_id = talk.add(PROMPT)
    (first,) = talk.say(seq_id, num_tokens=3)
    straight = talk.recorded.logits[-2:]
    talk.engine.truncate(seq_id, len(PROMPT) + 1)  # within the journal: replayed, not computed
    num_steps = len(talk.recorded.logits)
    (again,) = talk.say(seq_id, num_tokens=2)
    assert again == first[1:]
    assert len(talk.recorded.logits) == num_steps + 2
    assert all(map(torch.equal, talk.recorded.logits[-2:], straight))


def test_warming_up_captures_all_that_decoding_needs_and_no_sequence_notices() -> None:
    host, card, captures = stacks(HYBRID)
    expected, got = Talk(host), Talk(card)
    first = [(talk, talk.add(PROMPT[:3])) for talk in (expected, got)]
    for talk, _ in first:
        talk.drain()
        talk.engine.warm_up()
    assert captures.sizes == [1, 2, 4]
    assert card.num_eager == 2  # a prompt's step and a row
    said = [talk.say(seq_id, talk.add([8]), num_tokens=2) for talk, seq_id in first]
    assert said[0] == said[1]
    assert captures.sizes == [1, 2, 4]


def test_a_long_context_has_graphs_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omni.engine.decoding.FIRST_PAGES", 2)  # 8 tokens, then 32
    host, card, captures = stacks(("attention",))
    expected, got = Talk(host), Talk(card)
    said = [talk.say(talk.add(PROMPT[:6]), num_tokens=5) for talk in (expected, got)]
    assert said[0] == said[1]
    assert captures.sizes == [1, 1]
