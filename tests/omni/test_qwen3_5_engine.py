"""A whole folder of Qwen3.5 in the engine: its answers, and going back in them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_qwen3_5 import TEMPLATE, Kind, make, make_tokenizer

from omni.config import EngineConfig
from omni.engine.engine import Engine, Priority, SamplingParams
from omni.models import LoadedModel, load
from omni.models.loading import Precision
from omni.types import Conversation, Message, TextPart

QUESTION = Conversation(
    instructions="You choose a function or answer in natural language.",
    messages=(Message("user", (TextPart("What can the function do with a value?"),)),),
)
NEVER = frozenset[int]()


def saved(folder: Path, kind: Kind, precision: Precision) -> LoadedModel:
    make(kind, 2, vocab_size=960).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return load(folder, home=folder, precision=precision)


def rendered(model: LoadedModel) -> list[int]:
    template = model.template
    return template.render(QUESTION, lambda part: "") + template.assistant_header()


def make_engine(model: LoadedModel, step_tokens: int = 32) -> Engine:
    config = EngineConfig(
        num_pages=64, page_tokens=8, step_tokens=step_tokens, max_context_tokens=400
    )
    return Engine(model.backbone, config)


def answer(engine: Engine, seq_id: int, num_tokens: int) -> list[int]:
    engine.generate(seq_id, SamplingParams(max_tokens=num_tokens))
    tokens = []
    while engine.has_work():
        tokens += [
            output.token_id
            for output in engine.step()
            if output.seq_id == seq_id and output.token_id is not None
        ]
    engine.check_integrity()
    return tokens


@pytest.mark.parametrize("kind", ["dense", "moe", "vision"])
@pytest.mark.parametrize("step_tokens", [5, 64])
def test_a_question_is_answered_with_transformers_tokens(
    kind: Kind, step_tokens: int, tmp_path: Path
) -> None:
    model = saved(tmp_path, kind, "fp32")
    theirs, tokenizer = make(kind, 2, vocab_size=960), make_tokenizer()
    prompt = tokenizer.apply_chat_template(
        [
            {"role": "system", "content": QUESTION.instructions},
            {"role": "user", "content": "What can the function do with a value?"},
        ],
        chat_template=TEMPLATE,
        add_generation_prompt=True,
        enable_thinking=False,
        return_tensors="pt",
        return_dict=False,
    )
    with torch.inference_mode():
        known = theirs.generate(prompt, max_new_tokens=64, do_sample=False, pad_token_id=0)[0]
    engine = make_engine(model, step_tokens)
    seq = engine.add(rendered(model), priority=Priority.RESPONDING)
    assert answer(engine, seq, 64) == known[prompt.shape[1] :].tolist()


@pytest.mark.parametrize("kind", ["dense", "moe"])
@pytest.mark.parametrize("num_heard", [1, 7, 20])
def test_going_back_in_an_answer_is_never_having_gone_further(
    kind: Kind, num_heard: int, tmp_path: Path
) -> None:
    model = saved(tmp_path, kind, "int8")  # whose rows do not depend on how many there are
    prompt, after = rendered(model), [5, 6, 7]
    engine = make_engine(model)
    seq = engine.add(prompt, priority=Priority.RESPONDING)
    said = answer(engine, seq, 30)
    engine.truncate(seq, len(prompt) + num_heard)
    engine.extend(seq, after)
    again = answer(engine, seq, 20)
    fresh = make_engine(model, step_tokens=11)
    other = fresh.add([*prompt, *said[:num_heard], *after], priority=Priority.RESPONDING)
    assert answer(fresh, other, 20) == again
    assert len(set(again)) > 3
