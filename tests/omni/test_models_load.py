"""Loading real weights: they answer, a second start maps, damage is one clear sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from omni.config import Config, home
from omni.models import LoadedModel, load
from omni.models.batch import Batch, StateView
from omni.types import Conversation, Message, TextPart

SMALL = home(Config()) / "models" / "smollm2-135m" / "model.gguf"
DEFAULT = home(Config()) / "models" / "qwen2.5-coder-0.5b" / "model.gguf"


def greedy(model: LoadedModel, question: str, num_tokens: int) -> str:
    conversation = Conversation(messages=(Message("user", (TextPart(question),)),))
    ids = model.template.render(conversation, lambda part: "") + model.template.assistant_header()
    spec, num_pages = model.backbone.state_spec, 16
    state = StateView(
        kv=torch.zeros(
            spec.num_attention,
            2,
            num_pages,
            16,
            spec.num_kv_heads,
            spec.head_dim,
            dtype=spec.kv_dtype,
        )
    )
    answer: list[int] = []
    computed = 0
    while len(answer) < num_tokens:
        batch = Batch(
            token_ids=torch.tensor(ids),
            positions=torch.arange(computed, computed + len(ids)),
            cu_seqlens=(0, len(ids)),
            num_computed=(computed,),
            page_table=(tuple(range(1, num_pages)),),
            slots=(0,),
            logits_rows=torch.tensor([len(ids) - 1]),
        )
        computed += len(ids)
        ids = [int(model.backbone.forward(batch, state)[0].argmax())]
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
