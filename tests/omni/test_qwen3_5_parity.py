"""Qwen3.5 and Qwen3-Next against transformers: every layout, ratio of heads, length and cut."""

from __future__ import annotations

import copy
import random
import re
from pathlib import Path

import pytest
import torch
from tiny_models import Driver, relative_rms
from tiny_qwen3_5 import VOCABULARY, Kind, change_tensors, make, reference
from transformers import PreTrainedModel, Qwen3_5ForCausalLM

from omni.errors import ModelError
from omni.models import load_backbone, registry
from omni.models.backbone import DecoderStack
from omni.models.batch import Batch

TOKENS = random.Random(3).choices(range(VOCABULARY), k=200)
KINDS: list[Kind] = ["dense", "moe", "next", "vision", "moe-vision"]
LIMIT = 1e-5
"""Of the relative RMS: fp32 in another order of the same sums. Where a query is almost orthogonal
to its key, the norm after it magnifies rounding, in transformers too."""


def saved(model: PreTrainedModel, folder: Path) -> DecoderStack:
    model.save_pretrained(folder)
    return load_backbone(folder, home=folder, precision="fp32")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ratio", [1, 2, 3])
def test_logits_equal_transformers_at_every_length(kind: Kind, ratio: int, tmp_path: Path) -> None:
    model = make(kind, ratio, tied=ratio == 2)
    precise = copy.deepcopy(model).double()
    backbone = saved(model, tmp_path)
    for length in (1, 3, 4, 5, 63, 64, 65, 129):
        logits = Driver(backbone).step([TOKENS[:length]])
        theirs = reference(model, TOKENS[:length])
        assert relative_rms(logits, theirs) <= LIMIT
        exact = reference(precise, TOKENS[:length]).float()
        assert relative_rms(logits, exact) <= max(2e-6, 2 * relative_rms(theirs, exact))


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_logits_do_not_depend_on_where_prefill_is_cut(kind: Kind, tmp_path: Path) -> None:
    model = make(kind)
    backbone = saved(model, tmp_path)
    tokens = TOKENS[:80]
    expected = reference(model, tokens)
    for cut in (1, 2, 3, 4, 5, 31, 63, 64, 65, 79):
        driver = Driver(backbone)
        parts = [driver.step([tokens[:cut]]), driver.step([tokens[cut:]])]
        assert relative_rms(torch.cat(parts), expected) <= LIMIT
    for chunk in (1, 3, 7):
        driver = Driver(backbone)
        parts = [driver.step([tokens[at : at + chunk]]) for at in range(0, 80, chunk)]
        assert relative_rms(torch.cat(parts), expected) <= LIMIT


@pytest.mark.parametrize(("kind", "ratio"), [("dense", 1), ("next", 2), ("moe", 3)])
def test_prefill_may_be_cut_at_every_place(kind: Kind, ratio: int, tmp_path: Path) -> None:
    model = make(kind, ratio)
    backbone = saved(model, tmp_path)
    tokens = TOKENS[:70]
    expected = reference(model, tokens)
    for cut in range(1, 70):
        driver = Driver(backbone)
        parts = [driver.step([tokens[:cut]]), driver.step([tokens[cut:]])]
        assert relative_rms(torch.cat(parts), expected) <= LIMIT, cut


@pytest.mark.parametrize("kind", ["dense", "moe", "next"])
def test_a_row_that_transformers_pads_on_the_left_is_ours_without_padding(
    kind: Kind, tmp_path: Path
) -> None:
    model = make(kind)
    backbone = saved(model, tmp_path)
    rows = [TOKENS[:41], TOKENS[50:53], TOKENS[60:100]]
    tokens = torch.tensor([[9] * (41 - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (41 - len(row)) + [1] * len(row) for row in rows])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        padded = model(tokens, attention_mask=mask, position_ids=positions).logits
    for row, theirs in zip(rows, padded, strict=True):
        assert relative_rms(Driver(backbone).step([row]), theirs[41 - len(row) :]) <= LIMIT
    together = Driver(backbone, num_sequences=3).step(rows).split([len(row) for row in rows])
    for ours, theirs, row in zip(together, padded, rows, strict=True):
        assert relative_rms(ours, theirs[41 - len(row) :]) <= LIMIT


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_any_share_of_a_head_may_be_rotated(share: float, tmp_path: Path) -> None:
    pairs = int(16 * share)
    sections = [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3]
    rope = {"rope_theta": 1e4, "partial_rotary_factor": share, "mrope_section": sections}
    model = make("dense", rope_parameters=rope | {"rope_type": "default"})
    expected = reference(model, TOKENS[:66])
    assert relative_rms(Driver(saved(model, tmp_path)).step([TOKENS[:66]]), expected) <= LIMIT


@pytest.mark.parametrize("kind", ["dense", "moe", "next"])
def test_greedy_answers_are_the_same_tokens(kind: Kind, tmp_path: Path) -> None:
    model = make(kind, 2, seed=1)
    backbone = saved(model, tmp_path)
    with torch.inference_mode():
        known = model.generate(
            torch.tensor([TOKENS[:20]]), max_new_tokens=80, do_sample=False, pad_token_id=0
        )[0].tolist()
    driver = Driver(backbone)
    answer = [int(driver.step([TOKENS[:20]], all_rows=False)[0].argmax())]
    while len(answer) < 80:
        answer.append(int(driver.step([answer[-1:]], all_rows=False)[0].argmax()))
    assert answer == known[20:]
    assert len(set(answer)) > 8  # not one token for ever


def test_neighbours_leave_no_trace(tmp_path: Path) -> None:
    backbone = saved(make("moe"), tmp_path)
    alone = Driver(backbone).step([TOKENS[:40]], all_rows=False)
    together = Driver(backbone, num_sequences=3)
    rng = random.Random(5)
    left = [list(TOKENS[:40]), rng.choices(range(160), k=61), rng.choices(range(160), k=17)]
    last = torch.empty(0)
    while left[0]:
        new = []
        for tokens in left:
            count = rng.randint(0, 9)
            new.append(tokens[:count])
            del tokens[:count]
        if not any(new):
            continue
        logits = together.step(new, all_rows=False)
        if new[0]:
            last = logits[:1]
    assert relative_rms(last, alone) <= LIMIT


def test_positions_on_three_axes_equal_transformers(tmp_path: Path) -> None:
    model = make("dense")
    backbone = saved(model, tmp_path)
    rng = random.Random(6)
    positions = torch.tensor([sorted(rng.choices(range(90), k=50)) for _ in range(3)])  # [3, N]
    expected = reference(model, TOKENS[:50], position_ids=positions[:, None])
    assert relative_rms(expected, reference(model, TOKENS[:50])) > 0.01  # they do matter
    driver = Driver(backbone)
    batch = Batch(
        token_ids=torch.tensor(TOKENS[:50]),
        positions=positions,
        cu_seqlens=(0, 50),
        num_computed=(0,),
        page_table=(tuple(range(1, 14)),),
        slots=(1,),
        logits_rows=torch.arange(50),
    )
    assert relative_rms(backbone.forward(batch, driver.state), expected) <= LIMIT


def published(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The layout of the published mixtures: all experts of a layer in two tensors; and a head for
    multi-token prediction."""
    made = {name: value for name, value in tensors.items() if ".experts." not in name}
    stems = {name.split(".experts.")[0] for name in tensors.keys() - made.keys()}
    for stem in stems:
        each = re.compile(re.escape(stem) + r"\.experts\.(\d+)\.gate_proj")
        count = sum(bool(each.match(name)) for name in tensors)
        parts = [f"{stem}.experts.{expert}." for expert in range(count)]
        made[stem + ".experts.gate_up_proj"] = torch.stack(
            [
                torch.cat([tensors[part + "gate_proj.weight"], tensors[part + "up_proj.weight"]])
                for part in parts
            ]
        )
        made[stem + ".experts.down_proj"] = torch.stack(
            [tensors[part + "down_proj.weight"] for part in parts]
        )
    return made | {"mtp.fc.weight": torch.zeros(96, 192)}


def test_the_published_layout_of_experts_is_the_same_model(tmp_path: Path) -> None:
    model = make("moe-vision")
    model.save_pretrained(tmp_path)
    change_tensors(tmp_path, published)
    expected = reference(model, TOKENS[:40])
    dense = load_backbone(tmp_path, home=tmp_path, precision="fp32")
    assert relative_rms(Driver(dense).step([TOKENS[:40]]), expected) <= LIMIT


@pytest.mark.parametrize("kind", ["dense", "moe", "next"])
def test_int8_groups_are_near_fp32(kind: Kind, tmp_path: Path) -> None:
    model = make(kind)
    dense = saved(model, tmp_path)
    packed = load_backbone(tmp_path, home=tmp_path)
    assert packed.weight_bytes < dense.weight_bytes * 0.5
    got, expected = (Driver(stack).step([TOKENS[:60]]) for stack in (packed, dense))
    # Rounded activations, amplified by random weights; rows in a wrong order give 1.
    assert relative_rms(got, expected) <= 0.25


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_checkpoints_are_read_as_they_are(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    make("dense").to(dtype).save_pretrained(tmp_path)
    model = Qwen3_5ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    backbone = load_backbone(tmp_path, home=tmp_path, precision="fp32")
    expected = reference(model, TOKENS[:90])
    assert relative_rms(Driver(backbone).step([TOKENS[:90]]), expected) <= LIMIT


def test_half_precision_weights_leave_the_state_in_fp32(tmp_path: Path) -> None:
    backbone = saved(make("dense").to(torch.bfloat16), tmp_path)
    read = Qwen3_5ForCausalLM.from_pretrained
    exact = reference(read(tmp_path, dtype=torch.float32).double(), TOKENS[:129]).float()
    rounding = read(tmp_path, dtype=torch.bfloat16)
    driver = Driver(backbone)
    ours = torch.cat([driver.step([TOKENS[at : at + 43]]) for at in (0, 43, 86)])
    assert driver.state.recurrent is not None
    assert driver.state.conv is not None
    assert {driver.state.recurrent.dtype, driver.state.conv.dtype} == {torch.float32}
    assert relative_rms(ours, exact) <= LIMIT
    assert relative_rms(reference(rounding, TOKENS[:129]).float(), exact) > 100 * LIMIT


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_names_and_shapes_are_the_models_own_both_ways(kind: Kind, tied: bool) -> None:
    model = make(kind, tied=tied)
    config = model.config.to_dict()
    family = registry.family_of(config["model_type"])
    theirs = {
        name: tuple(value.shape)
        for name, value in model.state_dict().items()
        if ".visual." not in name and not (tied and name == "lm_head.weight")
    }
    plan = family.plan(family.config_from_hf(config), "hf", theirs)
    ours = {piece.name: piece.shape for entry in plan for piece in entry.pieces}
    assert ours == theirs


def test_only_prediction_and_vision_may_lie_beside_the_text_stack(tmp_path: Path) -> None:
    model = make("vision")
    model.save_pretrained(tmp_path)
    expected = Driver(load_backbone(tmp_path, home=tmp_path, precision="fp32")).step([TOKENS[:9]])
    beside = {"mtp.layers.0.mlp.up_proj.weight": torch.ones(2, 2), "mtp.norm.weight": torch.ones(3)}
    change_tensors(tmp_path, lambda tensors: tensors | beside)
    backbone = load_backbone(tmp_path, home=tmp_path, precision="fp32")
    assert torch.equal(Driver(backbone).step([TOKENS[:9]]), expected)
    for name in (
        "model.language_model.layers.0.linear_attn.gate.weight",
        "mtpx.weight",
        "visual.w",
    ):
        change_tensors(tmp_path, lambda tensors, name=name: tensors | {name: torch.ones(2)})  # type: ignore[misc]
        with pytest.raises(ModelError, match=re.escape(name)):
            load_backbone(tmp_path, home=tmp_path, precision="fp32")
        change_tensors(
            tmp_path,
            lambda tensors, name=name: {k: v for k, v in tensors.items() if k != name},  # type: ignore[misc]
        )


def test_every_tensor_of_the_text_stack_is_used_and_no_other(tmp_path: Path) -> None:
    model = make("vision")
    backbone = saved(model, tmp_path)
    for name, parameter in model.named_parameters():
        if "visual" in name:
            continue
        with torch.no_grad():
            kept = parameter.clone()
            parameter.mul_(1.5).add_(0.01)
        changed = saved(model, tmp_path / name)
        got = Driver(changed).step([TOKENS[:12]])
        assert relative_rms(got, reference(model, TOKENS[:12])) <= LIMIT
        assert relative_rms(got, Driver(backbone).step([TOKENS[:12]])) > 1e-5, name
        with torch.no_grad():
            parameter.copy_(kept)
