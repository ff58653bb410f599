"""The backbone's quality against dequantised fp32, and its speed beside llama.cpp.

    python -m omni.benchmarks.backbone --quality    # minutes; takes 3 GB more memory
    python -m omni.benchmarks.backbone --speed      # needs the bench extra (xllamacpp)

Speed is measured in one run, round about: the same prompt ids to one process of each side, with the
same number of threads. Other load on the machine hurts the side that spins while it waits
(llama.cpp) more, so the medians' ratio is fair on a quiet machine only; each side's best round is
shown too, and --threads 1 takes the waiting out.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from omni import threads
from omni.benchmarks.backbone_omni import Quality, measure_quality, real_text
from omni.benchmarks.process import Worker, resident_mb_of
from omni.config import Config, home
from omni.models.gguf_file import GGUFFile
from omni.models.tokenizer import Tokenizer

MODEL = "qwen2.5-coder-0.5b"
KL_LIMIT, AGREEMENT_LIMIT = 0.005, 0.96
PREFILL_TARGET, DECODE_TARGET, MEMORY_LIMIT = 1.5, 1.0, 1.3
PROMPT_TOKENS, ANSWER_TOKENS = 256, 64


def report_quality(quality: Quality) -> None:
    """Print the table and the closing line of JSON."""
    rows = [
        ("mean KL (nats)", f"{quality.mean_kl:.5f}", f"<= {KL_LIMIT}"),
        ("99th percentile KL", f"{quality.p99_kl:.5f}", ""),
        ("top-1 agreement", f"{quality.top1_agreement:.2%}", f">= {AGREEMENT_LIMIT:.0%}"),
        ("perplexity int8 / fp32", f"{quality.perplexity_int8 / quality.perplexity_fp32:.4f}", ""),
    ]
    print(f"int8 ({quality.kernels}) against fp32, {quality.num_tokens} tokens of real text")
    for name, value, target in rows:
        print(f"  {name:<24}{value:>10}  {target}")
    met = quality.mean_kl <= KL_LIMIT and quality.top1_agreement >= AGREEMENT_LIMIT
    print(json.dumps({"benchmark": "backbone-quality", "met": met, **asdict(quality)}))


def measure_speed(path: Path, num_rounds: int, num_threads: int) -> dict[str, Any]:
    """Run both sides in turn; figures of each and their ratios (ours over theirs)."""
    ids = real_text(Tokenizer.from_gguf(GGUFFile(path).metadata), PROMPT_TOKENS)
    request = {"ids": ids, "num_tokens": ANSWER_TOKENS, "bandwidth": False}
    taken: dict[str, list[dict[str, Any]]] = {"omni": [], "llama": []}
    # Each side waits as it does by itself: ours sleeps (omni.threads), llama.cpp's spins.
    theirs, arguments = dict(os.environ), (str(path), str(num_threads))
    threads.set_environment()
    ours = dict(os.environ)
    with (
        Worker("omni.benchmarks.backbone_omni", *arguments, environment=ours) as omni,
        Worker("omni.benchmarks.backbone_llama", *arguments, environment=theirs) as llama,
    ):
        for worker in (omni, llama):  # warm-up
            worker.ask(request)
        for _ in range(num_rounds):
            taken["omni"].append(omni.ask(request | {"bandwidth": True}))
            taken["llama"].append(llama.ask(request))
        kernels = omni.greeting["kernels"]

    def middle(side: str, field: str) -> float:
        return median(float(answer[field]) for answer in taken[side])

    def best(side: str, field: str) -> float:
        return min(float(answer[field]) for answer in taken[side])

    steps = ANSWER_TOKENS - 1
    bandwidth = max(answer["bandwidth_gb_s"] for answer in taken["omni"])
    read_gb_s = taken["omni"][0]["weight_bytes"] * steps / middle("omni", "decode_s") / 1e9
    ours_mb = max(a["resident_mb"] for a in taken["omni"]) - resident_mb_of("import torch")
    theirs_mb = max(a["resident_mb"] for a in taken["llama"]) - resident_mb_of("pass")
    return {
        "kernels": kernels,
        "num_threads": num_threads,
        "rounds": num_rounds,
        "prefill_tokens_s": {s: PROMPT_TOKENS / middle(s, "prefill_s") for s in taken},
        "decode_tokens_s": {s: steps / middle(s, "decode_s") for s in taken},
        "resident_mb": {"omni": ours_mb, "llama": theirs_mb},
        "prefill_ratio": middle("llama", "prefill_s") / middle("omni", "prefill_s"),
        "decode_ratio": middle("llama", "decode_s") / middle("omni", "decode_s"),
        "prefill_best_tokens_s": {s: PROMPT_TOKENS / best(s, "prefill_s") for s in taken},
        "decode_best_tokens_s": {s: steps / best(s, "decode_s") for s in taken},
        "prefill_best_ratio": best("llama", "prefill_s") / best("omni", "prefill_s"),
        "decode_best_ratio": best("llama", "decode_s") / best("omni", "decode_s"),
        "memory_ratio": ours_mb / theirs_mb,
        "bandwidth_gb_s": bandwidth,
        "bandwidth_share": read_gb_s / bandwidth,
    }


def report_speed(speed: dict[str, Any], name: str) -> None:
    """Print the table and the closing line of JSON."""
    print(
        f"{name}, {PROMPT_TOKENS} + {ANSWER_TOKENS} tokens, {speed['num_threads']} threads, "
        f"medians of {speed['rounds']} rounds, kernels {speed['kernels']}"
    )
    print(f"  {'':<22}{'omni':>9}{'llama.cpp':>11}{'ratio':>8}")
    for name, field, ratio, target in (
        ("prefill, tokens/s", "prefill_tokens_s", "prefill_ratio", f">= {PREFILL_TARGET}"),
        ("  best round", "prefill_best_tokens_s", "prefill_best_ratio", ""),
        ("decode, tokens/s", "decode_tokens_s", "decode_ratio", f">= {DECODE_TARGET}"),
        ("  best round", "decode_best_tokens_s", "decode_best_ratio", ""),
        ("resident memory, MB", "resident_mb", "memory_ratio", f"<= {MEMORY_LIMIT}"),
    ):
        ours, theirs = speed[field]["omni"], speed[field]["llama"]
        print(f"  {name:<22}{ours:>9.1f}{theirs:>11.1f}{speed[ratio]:>7.2f}x  {target}")
    print(
        f"  decode reads weights at {speed['bandwidth_share']:.0%} of the "
        f"{speed['bandwidth_gb_s']:.1f} GB/s that a sum over a large buffer reaches"
    )
    met = (
        min(speed["prefill_ratio"], speed["prefill_best_ratio"]) >= PREFILL_TARGET
        and min(speed["decode_ratio"], speed["decode_best_ratio"]) >= DECODE_TARGET
        and speed["memory_ratio"] <= MEMORY_LIMIT
    )
    print(json.dumps({"benchmark": "backbone-speed", "met": met, **speed}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quality", action="store_true", help="int8 against fp32")
    parser.add_argument("--speed", action="store_true", help="against llama.cpp")
    parser.add_argument("--model", type=Path, help="a GGUF file (default: the 0.5B of the store)")
    parser.add_argument("--tokens", type=int, default=3072, help="tokens for --quality")
    parser.add_argument("--rounds", type=int, default=5, help="rounds for --speed")
    parser.add_argument("--threads", type=int, default=0, help="for --speed (0: as the server)")
    arguments = parser.parse_args()
    path = arguments.model or home(Config()) / "models" / MODEL / "model.gguf"
    if not (arguments.quality or arguments.speed):
        parser.error("say --quality, --speed or both")
    if arguments.quality:
        report_quality(measure_quality(path, arguments.tokens))
    if arguments.speed:
        num_threads = threads.resolve(engine=arguments.threads).engine
        report_speed(measure_speed(path, arguments.rounds, num_threads), path.parent.name)


if __name__ == "__main__":
    main()
