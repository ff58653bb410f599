"""What each GPU kernel occupies on five kinds of card, compiled here without any of them.

    python kernels/gpu_table.py --check            compile everything, compare with gpu_table.json
    python kernels/gpu_table.py --write            measure anew; writes gpu_table.json and the docs
    python kernels/gpu_table.py --check --targets sm_90 --only decode replay

The launches are those that the operators would make for Qwen3.5 in bf16. Nothing may spill; numbers
in the file are ceilings. Decoding, prefilling and replaying must also be one arithmetic: equal bits
on a card need equal orders of summation and equal contraction.
Exit codes: 0 fine, 1 not within the table, 3 a tool of Triton is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
import triton
from gpu_models import MODELS, Model
from omni_kernels.attention import triton_paged, triton_rotate
from omni_kernels.attention.triton_paged import PagedRows
from omni_kernels.gated_delta import triton_chunk, triton_recurrent
from omni_kernels.gated_delta.triton_state import DeltaRows, DeltaState, DeltaWeights, ReplayRows
from omni_kernels.linear import triton_linear
from omni_kernels.linear.triton_layout import CardWeight
from omni_kernels.state import triton_copy
from omni_kernels.triton_ahead import TARGETS, Usage, compile_ahead, usage
from omni_kernels.triton_core import Launch, Precision

TABLE = Path(__file__).with_name("gpu_table.json")
DOCS = Path(__file__).parents[1] / "docs" / "kernels.md"
BEGIN, END = "<!-- gpu_table.py: begin -->", "<!-- gpu_table.py: end -->"
MAX_SHARED = {  # bytes a program may have
    "sm_80": 163 << 10,
    "sm_90": 227 << 10,
    "sm_100": 227 << 10,
    "sm_120": 99 << 10,
    "gfx942": 64 << 10,
}
REGISTER_STEP = 8  # registers are given out in eights; the ceilings are rounded up to them


BF16 = torch.bfloat16


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor without memory: launches are planned by shapes and strides alone."""
    return torch.empty(*shape, dtype=dtype, device="meta")


def ints(count: int) -> torch.Tensor:
    return empty(count, dtype=torch.int32)


def delta_state(model: Model, layers: int | None) -> DeltaState:
    """State of 64 slots: all layers', or one layer's view of them."""
    heads, count = model.delta_heads[1], model.recurrent_layers
    recurrent = empty(64, count, heads, 128, 128)
    conv = empty(64, count, 3, model.channels, dtype=BF16)
    journal = empty(64, count, 128, model.channels + 2 * heads, dtype=BF16)
    if layers is None:
        recurrent, conv, journal = recurrent[:, 3], conv[:, 3], journal[:, 3]
    return DeltaState(recurrent=recurrent, conv=conv, journal=journal)


def delta_weights(model: Model, *layers: int) -> DeltaWeights:
    heads = model.delta_heads[1]
    return DeltaWeights(
        taps=empty(*layers, 4, model.channels),
        a_log=empty(*layers, heads),
        dt_bias=empty(*layers, heads),
        norm=empty(128),
        eps=1e-6,
    )


def delta(model: Model, num_tokens: int, how: str, precision: Precision) -> list[Launch]:
    """Decode, prefill (short) or long prefill of four sequences, or a replay."""
    rows = DeltaRows(slots=ints(4), cu_seqlens=ints(5), counters=ints(999), journal_starts=ints(4))
    state, weights = delta_state(model, None), delta_weights(model)
    x = empty(4 * num_tokens, model.delta_width, dtype=BF16)
    out = empty(len(x), model.delta_heads[1] * 128, dtype=BF16)
    if how == "long":
        return triton_chunk.plan(
            x, weights, state, rows, out, max_new_tokens=num_tokens, precision=precision
        )
    if how == "replay":
        layers = model.recurrent_layers
        which = ReplayRows(
            slots=ints(4), journal_slots=ints(4), firsts=ints(4), lasts=ints(4), counters=ints(9999)
        )
        weights, state = delta_weights(model, layers), delta_state(model, layers)
        return [triton_recurrent.plan_replay(weights, state, which)]
    one_token = how == "decode"
    return [triton_recurrent.plan(x, weights, state, rows, out, one_token=one_token)]


def attention(
    heads: tuple[int, int],
    dim: int,
    num_tokens: int,
    precision: Precision,
    dtype: torch.dtype = BF16,
) -> list[Launch]:
    """Rows of ``dtype`` over pages of bf16."""
    both = empty(4 * num_tokens, heads[0], 2 * dim, dtype=dtype)
    kv = empty(2, 999, 64, heads[1], dim, dtype=BF16)
    rows = PagedRows(
        cu_seqlens=ints(5),
        num_computed=ints(4),
        page_table=empty(4, 64, dtype=torch.int32),
        counters=ints(9999),
        max_new_tokens=num_tokens,
        max_tokens=4096,
    )
    q, gate = both[:, :, :dim], both[:, :, dim:]
    out = empty(*q.shape, dtype=dtype)
    return [triton_paged.plan(q, gate, kv, rows, dim**-0.5, out, precision)]


def rotate(model: Model) -> list[Launch]:
    (heads, kv_heads), dim = model.heads, model.head_dim
    q = empty(4, heads, 2 * dim, dtype=BF16)[:, :, :dim]
    both = empty(4, 2 * kv_heads, dim, dtype=BF16)
    kv = empty(2, 999, 64, kv_heads, dim, dtype=BF16)
    norms = empty(dim), empty(dim)
    places, out = empty(4, dtype=torch.int64), empty(*q.shape, dtype=BF16)
    k, v = both[:, :kv_heads], both[:, kv_heads:]
    angles = empty(4, dim // 8)
    return [triton_rotate.plan(q, k, v, kv, norms, 1e-6, angles, angles, places, out)]


def linear(
    rows: int, n: int, k: int, bits: int, prologue: str, precision: Precision
) -> list[Launch]:
    codes = empty(n, k * bits // 8, dtype=torch.int8 if bits == 8 else torch.uint8)
    weight = CardWeight(codes, empty(n, k // 32, dtype=torch.float16), 8 if bits == 8 else 4)
    is_gated = prologue == "gate"
    x, out = empty(rows, k * (2 if is_gated else 1), dtype=BF16), empty(rows, n, dtype=BF16)
    norm = None if is_gated else empty(k)
    addend = out if is_gated else None
    return [triton_linear.plan(x, weight, norm, 1e-6, is_gated, addend, out, precision)]


def copies(model: Model) -> Iterator[tuple[str, list[Launch]]]:
    state = delta_state(model, model.recurrent_layers)
    pools = state.recurrent, state.conv, state.recurrent, state.conv
    yield "copy slots", [triton_copy.plan_slots(*pools, ints(4), ints(4))]
    kv_heads, dim = model.heads[1], model.head_dim
    kv = empty(model.attention_layers, 2, 999, 64, kv_heads, dim, dtype=BF16)
    yield "copy pages", [triton_copy.plan_pages(kv, ints(4), ints(4))]


def launches(target: str) -> dict[str, list[Launch]]:
    """Name every chosen configuration's launches, as they would be on ``target``."""
    exact: Precision = "ieee" if target.startswith("gfx") else "tf32x3"
    fast: Precision = "ieee" if target.startswith("gfx") else "tf32"
    found: dict[str, list[Launch]] = {}
    for name, model in MODELS.items():
        for how, num_tokens in (("decode", 1), ("prefill", 32), ("replay", 1), ("long", 999)):
            found[f"delta {how} {name}"] = delta(model, num_tokens, how, fast)
        for how, num_tokens in (("decode", 1), ("prefill", 64)):
            found[f"attention {how} {name}"] = attention(
                model.heads, model.head_dim, num_tokens, exact
            )
    for name, counts in (("0.8B", (1, 8)), ("4B", (1, 8, 32, 64))):
        h, i = MODELS[name].hidden, MODELS[name].intermediate
        for bits in (8, 4):
            for rows in counts:
                which = f"{name}, {bits} bits, {rows} rows"
                found[f"linear norm {which}"] = linear(rows, 2 * i, h, bits, "norm", exact)
                found[f"linear gate {which}"] = linear(rows, h, i, bits, "gate", exact)
    found["rotate"] = rotate(MODELS["4B"])
    found |= dict(copies(MODELS["4B"]))
    for how, num_tokens in (("decode", 1), ("prefill", 64)):  # the omni models' thinkers
        found[f"attention {how} 128 wide"] = attention((28, 4), 128, num_tokens, exact)
    return found


def measure(
    targets: list[str], is_wanted: Callable[[str], bool], say: Callable[[str], None]
) -> dict[str, dict[str, Usage]]:
    """Compile and read every wanted kernel: name -> target -> usage.

    Raises:
        FileNotFoundError: a tool is missing.
    """
    measured: dict[str, dict[str, Usage]] = {}
    for target in targets:
        for name, plans in launches(target).items():
            if not is_wanted(name):
                continue
            for launch in plans:
                full = name if len(plans) == 1 else f"{name}: {launch.kernel.__name__}"
                found = usage(compile_ahead(launch, target))
                measured.setdefault(full, {})[target] = found
                say(f"{target:7} {full:44} {asdict(found)}")
    return measured


def ceiling(found: Usage) -> dict[str, int]:
    return {
        "registers": -(-found.registers // REGISTER_STEP) * REGISTER_STEP,
        "shared": found.shared,
    }


def complaints(
    measured: dict[str, dict[str, Usage]], table: dict[str, dict[str, dict[str, int]]]
) -> Iterator[str]:
    """Say what spills, does not fit its card, is above its ceiling, or has none."""
    for name, by_target in measured.items():
        for target, found in by_target.items():
            which = f"{name} on {target}"
            if found.spilled:
                yield f"{which}: {found.spilled} bytes spilled"
            if found.shared > MAX_SHARED[target]:
                yield f"{which}: {found.shared} bytes shared, a program has {MAX_SHARED[target]}"
            limit = table.get(name, {}).get(target)
            if limit is None:
                yield f"{which}: not in {TABLE.name}"
            elif found.registers > limit["registers"] or found.shared > limit["shared"]:
                yield f"{which}: {asdict(found)} is above {limit}"


def arithmetic(target: str) -> Iterator[str]:
    """Say where decode, prefill and replay of one model do not sum or contract alike."""
    sums: dict[str, set[tuple[str, str]]] = {}
    fused: dict[str, int] = {}
    for how, num_tokens in (("decode", 1), ("prefill", 32), ("replay", 1)):
        compiled = compile_ahead(delta(MODELS["0.8B"], num_tokens, how, "ieee")[0], target)
        text = compiled.asm["ttgir"]
        layouts = dict(re.findall(r"^(#blocked\d*) = (#ttg.blocked<.*>)$", text, re.MULTILINE))
        summed = r"^ *}\) : \(tensor<([\dx]+)xf32, (#blocked\d*)>\) -> "
        sums[how] = {
            (shape, layouts[name]) for shape, name in re.findall(summed, text, re.MULTILINE)
        }
        fused[how] = len(re.findall(r"\bfma\.rn\S*f32", compiled.asm.get("ptx", "")))
    if {shape for shape, _ in sums["replay"]} != {"128", "16x128"}:
        yield f"replay on {target} sums {sums['replay']}, expected a key and 16 rows of state"
    for how in ("decode", "prefill"):
        if not sums["replay"] <= sums[how]:
            yield f"{how} on {target} sums in another order than replay: {sums}"
    if len(set(fused.values())) != 1:  # those inside the logarithm are in all three
        yield f"multiply-adds on {target} differ: {fused}"


def render(table: dict[str, dict[str, dict[str, int]]], version: str) -> str:
    """The part of docs/kernels.md between the markers."""
    lines = [
        BEGIN,
        f"Registers of a thread (rounded up to {REGISTER_STEP}) / KiB of shared memory of a "
        f"program; Triton {version}, bf16. No kernel spills or has a stack on any of them.",
        "",
        "| kernel | " + " | ".join(TARGETS) + " |",
        "|---|" + "---|" * len(TARGETS),
    ]
    for name, by_target in table.items():
        cells = [
            f"{limit['registers']} / {limit['shared'] / 1024:.1f}".removesuffix(".0")
            for limit in (by_target[target] for target in TARGETS)
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, END])


def with_table(text: str, rendered: str) -> str:
    """Put ``rendered`` between the markers of ``text``, or at its end."""
    if BEGIN not in text:
        return f"{text.rstrip()}\n\n{rendered}\n"
    before, rest = text.split(BEGIN, 1)
    return before + rendered + rest.split(END, 1)[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true")
    action.add_argument("--write", action="store_true")
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names")
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET is set: interpreted kernels cannot be compiled")
    try:
        measured = measure(
            arguments.targets,
            lambda name: any(part in name for part in arguments.only),
            lambda line: print(line, flush=True),
        )
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 3
    if arguments.write:
        ceilings = {
            name: {target: ceiling(found) for target, found in by_target.items()}
            for name, by_target in measured.items()
        }
        document = {"triton": triton.__version__, "kernels": ceilings}
        TABLE.write_text(json.dumps(document, indent=1) + "\n")
        text = DOCS.read_text() if DOCS.exists() else ""
        DOCS.write_text(with_table(text, render(ceilings, triton.__version__)))
    table = json.loads(TABLE.read_text())["kernels"] if TABLE.exists() else {}
    found = list(complaints(measured, table))
    if any("delta" in name for name in measured):
        found += [line for target in arguments.targets for line in arithmetic(target)]
    print("\n".join(found) or f"{sum(map(len, measured.values()))} kernels are within the table")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
