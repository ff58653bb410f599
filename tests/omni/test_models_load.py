"""Loading real weights: they answer, a second start maps, damage is one clear sentence."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from tiny_models import Driver

from omni.config import Config, home
from omni.models import LoadedModel, load
from omni.types import Conversation, Message, TextPart

SMALL = home(Config()) / "models" / "smollm2-135m" / "model.gguf"
DEFAULT = home(Config()) / "models" / "qwen2.5-coder-0.5b" / "model.gguf"


def greedy(model: LoadedModel, question: str, num_tokens: int) -> str:
    conversation = Conversation(messages=(Message("user", (TextPart(question),)),))
    ids = model.template.render(conversation, lambda part: "") + model.template.assistant_header()
    driver = Driver(model.backbone)
    answer: list[int] = []
    while len(answer) < num_tokens:
        ids = [int(driver.step([ids], all_rows=False)[0].argmax())]
        if ids[0] in model.template.stop_ids:
            break
        answer += ids
    return model.tokenizer.decode(answer)


@pytest.mark.weights
@pytest.mark.parametrize("path", [SMALL, DEFAULT], ids=["smollm2", "qwen2.5"])
def test_real_weights_know_the_capital_of_australia(path: Path) -> None:
    model = load(path, home=home(Config()))
    assert "Canberra" in greedy(model, "What is the capital of Australia?", 10)


@pytest.mark.weights
def test_a_second_start_maps_what_the_first_one_repacked(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    first = load(SMALL, home=tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert calls[0][0] == 0
    assert calls[-1][0] == calls[-1][1]
    calls.clear()
    second = load(SMALL, home=tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert calls == []
    assert greedy(first, "Hi", 3) == greedy(second, "Hi", 3)
    (folder,) = (tmp_path / "repacked").iterdir()
    assert sorted(file.name for file in folder.iterdir()) == ["index.json", "weights.bin"]


@pytest.mark.weights
def test_int8_logits_do_not_depend_on_chunks_or_neighbours() -> None:
    model = load(SMALL, home=home(Config()))
    ids = model.tokenizer.encode("The quick brown fox jumps over the lazy dog. " * 4)
    whole = Driver(model.backbone).step([ids], all_rows=False)
    other = model.tokenizer.encode("Something else entirely, in another session. " * 4)
    for chunk in (1, 5, 16):
        pair = Driver(model.backbone, num_sequences=2)
        for at in range(0, len(ids), chunk):
            logits = pair.step([ids[at : at + chunk], other[at : at + 3]], all_rows=False)
        assert torch.equal(logits[0], whole[0])


@pytest.mark.weights
def test_a_second_start_of_the_default_takes_less_than_three_seconds() -> None:
    load(DEFAULT, home=home(Config()))
    start = time.process_time()  # the processor's seconds: a busy machine does not count
    load(DEFAULT, home=home(Config()))
    assert time.process_time() - start < 3.0
