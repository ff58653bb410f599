"""The hybrid backbone's state: rollback, growth with context, and listening as prefill.

    python -m omni.benchmarks.hybrid                   all, about 10 minutes on two cores
    python -m omni.benchmarks.hybrid --only rollback

Shapes are those of Qwen3.5-0.8B with random weights in 8 bits, unless "tiny" is said. Every number
is a median of repeats on the engine that serves. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from omni import threads

threads.set_environment()  # before torch

import torch  # noqa: E402
from omni_kernels.library import use_threads  # noqa: E402
from omni_kernels.linear import backend  # noqa: E402

from omni.benchmarks import hybrid_report  # noqa: E402
from omni.benchmarks.backbone import PROMPT_TOKENS, measure_speed  # noqa: E402
from omni.benchmarks.process import Worker, resident_mb  # noqa: E402
from omni.benchmarks.random_model import (  # noqa: E402
    QWEN3_5_08B,
    tiny,
    write_folder,
    write_gguf,
)
from omni.config import Config, EngineConfig, home  # noqa: E402
from omni.engine.engine import Engine, Priority, SamplingParams  # noqa: E402
from omni.models.backbone import DecoderStack  # noqa: E402
from omni.models.batch import Batch, StateView  # noqa: E402
from omni.models.loading import load_backbone  # noqa: E402

PARTS = ("rollback", "listening", "speed", "busy", "growth", "far")
NAME = "qwen3.5-0.8b-random"
FAR_TOKENS = 262_144
PIECE_S, UTTERANCE_S = 0.2, 10.0
AUDIO_TOKENS_PER_S = 13  # of the open omni models with the densest audio still in use
GROWTH_TOKENS = (1024, 2048, 4096, 8192, 16384, 32768)


def timed_ms(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def median_ms(work: Callable[[], object], repeats: int, undo: Callable[[], object]) -> float:
    """Median time of ``work``, taken back by ``undo`` after each time."""
    times = []
    for _ in range(repeats + 1):
        times.append(timed_ms(work))
        undo()
    return median(times[1:])


def random_ids(count: int, vocabulary: int) -> list[int]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(vocabulary, (count,), generator=generator).tolist()


def new_engine(stack: DecoderStack, max_tokens: int) -> Engine:
    config = EngineConfig()
    pages = 4 * max_tokens // config.page_tokens
    return Engine(
        stack,
        replace(config, max_sequences=6, num_pages=pages, max_context_tokens=max_tokens),
        share_prefixes=False,
    )


def drain(engine: Engine) -> None:
    while engine.has_work():
        engine.step()


# --- Rollback --------------------------------------------------------------------------------


def rollback(stack: DecoderStack) -> dict[str, Any]:
    """Going back by replay, beside computing the same tokens again; copies beside plain ones."""
    engine = new_engine(stack, 4096)
    ids = random_ids(2048, stack.vocab_size)
    sequence = engine.add(ids[:512], priority=Priority.RESPONDING)
    drain(engine)
    held = engine._sequences[sequence]
    cache, slot = engine._cache, held.slot
    assert cache.view.recurrent is not None
    engine.release(engine.snapshot(sequence))  # a checkpoint: the journal begins here
    engine.extend(sequence, ids[512 : 512 + cache.journal_tokens])
    drain(engine)
    base = held.journal_start
    replays = []
    for num_tokens in (1, 4, 16, 32, 64):
        took = []
        for _ in range(15):
            cache.load(slot, held.state.checkpoints[-1])
            took.append(timed_ms(lambda n=num_tokens: cache.replay(slot, slice(0, n))))  # type: ignore[misc]
        again = engine.fork(sequence, priority=Priority.RESPONDING, num_tokens=base + 1)
        engine.extend(again, ids[1024 : 1024 + num_tokens])
        again_ms = timed_ms(lambda: drain(engine))
        engine.free(again)
        replays.append(
            {"tokens": num_tokens, "replay_ms": median(took), "compute_again_ms": again_ms}
        )
    state = cache.view.recurrent[slot]
    num_bytes = state.nbytes + (cache.view.conv[slot].nbytes if cache.view.conv is not None else 0)
    plain = torch.empty(num_bytes // 4)
    source = torch.ones(num_bytes // 4)
    copies: dict[str, list[float]] = {"plain": [], "snapshot": [], "restore": []}
    kept = cache.checkpoint(slot, base)
    for _ in range(40):
        copies["plain"].append(timed_ms(lambda: plain.copy_(source)))
        copies["snapshot"].append(timed_ms(lambda: cache.checkpoint(slot, base)))
        copies["restore"].append(timed_ms(lambda: cache.load(slot, kept)))
    forks = []
    for _ in range(15):
        start = time.perf_counter()
        child = engine.fork(sequence, priority=Priority.SPECULATING)
        forks.append((time.perf_counter() - start) * 1e3)
        engine.free(child)
    copy_ms = {name: median(times) for name, times in copies.items()}
    engine.check_integrity()
    return {
        "replay": replays,
        "state_mb": num_bytes / 1e6,
        "copy_ms": copy_ms,
        "snapshot_share_of_copy": copy_ms["plain"] / copy_ms["snapshot"],
        "restore_share_of_copy": copy_ms["plain"] / copy_ms["restore"],
        "fork_ms": median(forks),
    }


# --- Listening is prefill --------------------------------------------------------------------


def listening(stack: DecoderStack) -> dict[str, Any]:
    """Incremental prefill by chunk; the wait for the first token after ten seconds of speech."""
    ids = random_ids(4096, stack.vocab_size)
    chunks = []
    for size in (1, 2, 5, 10, 20, 50, 100, 128):
        engine = new_engine(stack, 4096)
        sequence = engine.add(ids[:256], priority=Priority.LISTENING)
        drain(engine)
        count = max(3, min(12, 400 // size))
        start = time.perf_counter()
        for number in range(count):
            at = 256 + number * size
            engine.extend(sequence, ids[at : at + size])
            drain(engine)
        spent = time.perf_counter() - start
        chunks.append({"chunk": size, "tokens_per_s": count * size / spent})
    num_tokens = round(UTTERANCE_S * AUDIO_TOKENS_PER_S)
    waits: dict[str, list[float]] = {"fed while speaking": [], "fed at the end": []}
    busy_s = []
    for _ in range(5):
        for how, times in waits.items():
            engine = new_engine(stack, 4096)
            sequence = engine.add(ids[:256], priority=Priority.LISTENING)
            drain(engine)
            said = ids[512 : 512 + num_tokens]
            if how == "fed while speaking":
                busy = 0.0
                num_pieces = round(UTTERANCE_S / PIECE_S)
                cuts = [num_tokens * i // num_pieces for i in range(num_pieces + 1)]
                for low, high in pairwise(cuts[:-1]):
                    engine.extend(sequence, said[low:high])
                    busy += timed_ms(lambda: drain(engine)) / 1e3  # noqa: B023
                busy_s.append(busy)
                said = said[cuts[-2] :]
            times.append(timed_ms(lambda: _first_token(engine, sequence, said)))  # noqa: B023
    return {
        "chunks": chunks,
        "utterance_tokens": num_tokens,
        "first_token_ms": {how: median(times) for how, times in waits.items()},
        "busy_share_while_speaking": median(busy_s) / UTTERANCE_S,
    }


def _first_token(engine: Engine, sequence: int, ids: list[int]) -> None:
    engine.extend(sequence, ids)
    engine.generate(sequence, SamplingParams(max_tokens=1))
    drain(engine)


# --- Speed -----------------------------------------------------------------------------------


def speed(file: Path, folder: Path, num_threads: int, num_rounds: int) -> dict[str, Any]:
    """Prefill and decoding beside llama.cpp (same 8-bit file) and transformers."""
    return {
        "llama": measure_speed(file, num_rounds, num_threads),
        "transformers": {
            dtype: beside_transformers(file, folder, dtype, num_threads, num_rounds)
            for dtype in ("bfloat16", "float32")
        },
    }


def beside_transformers(
    file: Path, folder: Path, dtype: str, num_threads: int, num_rounds: int
) -> dict[str, float]:
    """Times of transformers over ours, by part, taken in turn in one run."""
    request = {"ids": random_ids(PROMPT_TOKENS, 1000), "num_tokens": 16, "bandwidth": False}
    threads_, environment = str(num_threads), dict(os.environ)
    taken: dict[str, list[dict[str, Any]]] = {"omni": [], "transformers": []}
    with (
        Worker(
            "omni.benchmarks.backbone_omni", str(file), threads_, environment=environment
        ) as ours,
        Worker(
            "omni.benchmarks.backbone_transformers",
            *(str(folder), threads_, dtype),
            environment=environment,
        ) as theirs,
    ):
        for number in range(num_rounds + 1):  # the first warms up
            for side, worker in (("omni", ours), ("transformers", theirs)):
                answer = worker.ask(request)
                if number:
                    taken[side].append(answer)
    return {
        part: median(a[f"{part}_s"] for a in taken["transformers"])
        / median(a[f"{part}_s"] for a in taken["omni"])
        for part in ("prefill", "decode")
    }


def busy(file: Path, num_threads: int, num_rounds: int) -> dict[str, Any]:
    """Prefill and decoding beside llama.cpp while another process keeps one core busy."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            return measure_speed(file, num_rounds, num_threads)
        finally:
            other.kill()


# --- Growth ----------------------------------------------------------------------------------


def growth(folder: Path) -> dict[str, Any]:
    """Milliseconds and memory a token against context, computed for real at a tiny width."""
    kinds = {
        "hybrid 3:1": (["linear_attention"] * 3 + ["full_attention"]) * 2,
        "Gated DeltaNet alone": ["linear_attention"] * 8,
        "full attention alone": ["full_attention"] * 8,
    }
    curves: dict[str, list[dict[str, float]]] = {}
    for name, layers in kinds.items():
        config = tiny(8, layers, 2 * GROWTH_TOKENS[-1])
        path = write_folder(folder / name.replace(" ", "-").replace(":", ""), config)
        stack = load_backbone(path, home=folder)
        engine = new_engine(stack, GROWTH_TOKENS[-1] + 1024)
        ids = random_ids(GROWTH_TOKENS[-1] + 1024, stack.vocab_size)
        sequence = engine.add(priority=Priority.RESPONDING)
        curve = []
        done = 0
        for num_tokens in GROWTH_TOKENS:
            prefill_s = 0.0
            while done < num_tokens:
                engine.extend(sequence, ids[done : min(num_tokens, done + 1024)])
                last_s = timed_ms(lambda: drain(engine)) / 1e3  # noqa: B023
                prefill_s += last_s
                done = min(num_tokens, done + 1024)
            decode = []
            for _ in range(96):
                engine.generate(sequence, SamplingParams(max_tokens=1))
                decode.append(timed_ms(lambda: drain(engine)))  # noqa: B023
                engine.truncate(sequence, done)
                drain(engine)
            state = engine._sequences[sequence].state
            page_bytes = engine._cache.view.kv[:, :, 0].nbytes
            slot_bytes = 0
            if engine._cache.view.recurrent is not None:
                slot_bytes = engine._cache.view.recurrent[0].nbytes
            curve.append(
                {
                    "context": num_tokens,
                    "decode_ms": median(decode),
                    "prefill_ms_per_token": 1e3 * last_s / 1024,
                    "kv_mb": len(state.pages) * page_bytes / 1e6,
                    "recurrent_mb": slot_bytes / 1e6,
                }
            )
            print(f"  {name}: {curve[-1]}", file=sys.stderr, flush=True)
        curves[name] = curve
    return {"curves": curves}


def far(stack: DecoderStack) -> dict[str, Any]:
    """128 tokens of prefill and 32 of decoding behind 262,144 tokens of made-up state.

    Keys, values and recurrent state are filled with random numbers: computing them would take
    hours of attention on a CPU and cost the same memory.
    """
    spec, page_tokens = stack.state_spec, EngineConfig().page_tokens
    num_pages = (FAR_TOKENS + 256) // page_tokens
    before_mb = resident_mb()
    kv = torch.empty(
        spec.num_attention, 2, num_pages + 1, page_tokens, spec.num_kv_heads, spec.head_dim
    )
    block = torch.randn(2**20 + 3)
    flat = kv.view(-1)
    for at in range(0, len(flat), len(block)):
        part = flat[at : at + len(block)]
        part.copy_(block[: len(part)])
    state = StateView(
        kv=kv,
        recurrent=torch.randn(2, spec.num_recurrent, *spec.recurrent_shape) * 0.1,
        conv=torch.randn(2, spec.num_recurrent, *spec.conv_shape),
    )
    pages = tuple(range(1, num_pages + 1))
    ids = random_ids(128, stack.vocab_size)
    computed = FAR_TOKENS - 256

    def step(tokens: list[int]) -> torch.Tensor:
        nonlocal computed
        batch = Batch(
            token_ids=torch.tensor(tokens),
            positions=torch.arange(computed, computed + len(tokens)),
            cu_seqlens=(0, len(tokens)),
            num_computed=(computed,),
            page_table=(pages,),
            slots=(1,),
            logits_rows=torch.tensor([len(tokens) - 1]),
        )
        computed += len(tokens)
        return stack.forward(batch, state)

    prefill_ms = timed_ms(lambda: step(ids))
    decode = []
    for token in ids[:32]:
        start = time.perf_counter()
        logits = step([token])
        decode.append((time.perf_counter() - start) * 1e3)
    assert bool(logits.isfinite().all())
    return {
        "context": computed,
        "is_synthetic": True,
        "prefill_128_ms": prefill_ms,
        "decode_ms": median(decode),
        "state_gb": (resident_mb() - before_mb) / 1e3,
        "process_gb": resident_mb() / 1e3,
    }


# --- The program -----------------------------------------------------------------------------


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PARTS, action="append", help="may be repeated")
    parser.add_argument("--threads", type=int, default=0, help="0: as the server")
    parser.add_argument("--rounds", type=int, default=4, help="of speed (%(default)s)")
    arguments = parser.parse_args()
    num_threads = threads.resolve(engine=arguments.threads).engine
    use_threads(num_threads)
    chosen = arguments.only or PARTS
    root = home(Config())
    result: dict[str, Any] = {"benchmark": "hybrid", "threads": num_threads, "kernels": backend()}
    folder, file = (root / "bench" / name for name in (NAME, f"{NAME}.gguf"))
    if "speed" in chosen:
        write_gguf(file, QWEN3_5_08B)
        write_folder(folder, QWEN3_5_08B)
        result["speed"] = speed(file, folder, num_threads, arguments.rounds)
    if "busy" in chosen:
        write_gguf(file, QWEN3_5_08B)
        result["busy"] = busy(file, num_threads, arguments.rounds)
    if set(chosen) - {"growth", "speed", "busy"}:
        write_folder(folder, QWEN3_5_08B)
        stack = load_backbone(folder, home=root)
        for name, work in (("rollback", rollback), ("listening", listening), ("far", far)):
            if name in chosen:
                result[name] = work(stack)
    if "growth" in chosen:
        with tempfile.TemporaryDirectory() as scratch:
            result["growth"] = growth(Path(scratch))
    if set(chosen) == set(PARTS):
        for row in hybrid_report.rows({"results": [result]}):
            print(f"  {row.what}: {row.measured} {row.target and f'(target {row.target})'}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
