"""Our side of the backbone's measurements: quality against fp32, and a worker that is timed.

Called by :mod:`omni.benchmarks.backbone`; as a program it answers one JSON line per JSON line.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import torch
from omni_kernels.library import use_threads
from omni_kernels.linear import backend

from omni.benchmarks.process import resident_mb
from omni.config import Config, EngineConfig, home
from omni.models import load
from omni.models.batch import Backbone, Batch, StateView
from omni.models.tokenizer import Tokenizer

STEP_TOKENS = EngineConfig().step_tokens
PAGE_TOKENS = EngineConfig().page_tokens
TOPICS = ("objects", "types", "naming", "class", "function", "exceptions", "with", "import")
"""Chapters of Python's language reference that every CPython carries: English technical prose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """int8 against dequantised fp32 over ``num_tokens`` predictions; divergences in nats."""

    num_tokens: int
    mean_kl: float
    p99_kl: float
    top1_agreement: float
    perplexity_int8: float
    perplexity_fp32: float
    kernels: str


class Sequence:
    """One sequence on a backbone, in steps of the engine's budget, without an engine."""

    def __init__(self, backbone: Backbone, max_tokens: int) -> None:
        spec = backbone.state_spec
        num_pages = -(-max_tokens // PAGE_TOKENS)
        self._backbone = backbone
        self._pages = tuple(range(1, num_pages + 1))
        self._computed = 0
        shape = (
            spec.num_attention,
            2,
            num_pages + 1,
            PAGE_TOKENS,
            spec.num_kv_heads,
            spec.head_dim,
        )
        slots = (2, spec.num_recurrent)
        self._state = StateView(
            kv=torch.zeros(shape, dtype=spec.kv_dtype),
            recurrent=torch.zeros(*slots, *spec.recurrent_shape) if spec.num_recurrent else None,
            conv=torch.zeros(*slots, *spec.conv_shape) if spec.num_recurrent else None,
        )

    def step(self, ids: list[int], *, all_rows: bool) -> torch.Tensor:
        """Compute ``ids`` too; logits of every one of them, or of the last alone."""
        count = len(ids)
        batch = Batch(
            token_ids=torch.tensor(ids),
            positions=torch.arange(self._computed, self._computed + count),
            cu_seqlens=(0, count),
            num_computed=(self._computed,),
            page_table=(self._pages,),
            slots=(1,),
            logits_rows=torch.arange(0 if all_rows else count - 1, count),
        )
        self._computed += count
        return self._backbone.forward(batch, self._state)

    def prefill(self, ids: list[int]) -> int:
        """Compute a prompt; the greedy next token."""
        for chunk in _chunks(ids):
            logits = self.step(chunk, all_rows=False)
        return int(logits[0].argmax())


def real_text(tokenizer: Tokenizer, num_tokens: int) -> list[int]:
    """``num_tokens`` ids of the language reference.

    Raises:
        ValueError: it is shorter than that.
    """
    ids = tokenizer.encode("\n\n".join(topics[name].strip() for name in TOPICS))
    if len(ids) < num_tokens:
        raise ValueError(f"{num_tokens} tokens wanted, the text has {len(ids)}")
    return ids[:num_tokens]


def measure_quality(path: Path, num_tokens: int, segment_tokens: int = 512) -> Quality:
    """Predict real text with both precisions and compare every next-token distribution."""
    int8 = load(path, home=home(Config()))
    fp32 = load(path, home=home(Config()), precision="fp32")
    ids = real_text(int8.tokenizer, num_tokens)
    divergences, agreements, losses = [], [], []
    for start in range(0, len(ids), segment_tokens):
        segment = ids[start : start + segment_tokens]
        ours_run, true_run = (Sequence(m.backbone, segment_tokens) for m in (int8, fp32))
        for at in range(0, len(segment), STEP_TOKENS):
            chunk = segment[at : at + STEP_TOKENS]
            ours = torch.log_softmax(ours_run.step(chunk, all_rows=True), dim=-1)
            true = torch.log_softmax(true_run.step(chunk, all_rows=True), dim=-1)
            divergences.append((true.exp() * (true - ours)).sum(-1))
            agreements.append((true.argmax(-1) == ours.argmax(-1)).float())
            following = torch.tensor(segment[at + 1 : at + 1 + len(chunk)])
            rows = torch.arange(len(following))
            losses.append(torch.stack([ours[rows, following], true[rows, following]]))
        print(f"{start + len(segment)} of {len(ids)} tokens", file=sys.stderr)
    divergence = torch.cat(divergences)
    perplexity = (-torch.cat(losses, dim=1).mean(1)).exp()
    return Quality(
        num_tokens=len(divergence),
        mean_kl=float(divergence.mean()),
        p99_kl=float(divergence.quantile(0.99)),
        top1_agreement=float(torch.cat(agreements).mean()),
        perplexity_int8=float(perplexity[0]),
        perplexity_fp32=float(perplexity[1]),
        kernels=backend(),
    )


def read_bandwidth_gb_s(num_bytes: int = 1 << 28) -> float:
    """Bytes per second of summing a buffer far larger than the caches, on torch's threads."""
    buffer = torch.ones(num_bytes // 4)
    best = 0.0
    for _ in range(3):
        start = time.perf_counter()
        buffer.sum()
        best = max(best, num_bytes / (time.perf_counter() - start))
    return best / 1e9


def serve(path: Path, num_threads: int) -> None:
    """Answer ``{"ids": [...], "num_tokens": n}`` lines with what they took."""
    use_threads(num_threads)
    model = load(path, home=home(Config()))
    print(json.dumps({"kernels": backend()}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        ids, num_tokens = request["ids"], request["num_tokens"]
        run = Sequence(model.backbone, len(ids) + num_tokens)
        start = time.perf_counter()
        token = run.prefill(ids)
        middle = time.perf_counter()
        for _ in range(num_tokens - 1):
            token = int(run.step([token], all_rows=False)[0].argmax())
        end = time.perf_counter()
        answer = {
            "prefill_s": middle - start,
            "decode_s": end - middle,
            "resident_mb": resident_mb(),
            "weight_bytes": model.backbone.weight_bytes,
        }
        if request["bandwidth"]:
            answer["bandwidth_gb_s"] = read_bandwidth_gb_s()
        print(json.dumps(answer), flush=True)


def _chunks(ids: list[int]) -> Iterator[list[int]]:
    for at in range(0, len(ids), STEP_TOKENS):
        yield ids[at : at + STEP_TOKENS]


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
