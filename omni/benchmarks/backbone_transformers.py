"""transformers' side of the hybrid backbone's measurements: a worker that is timed.

As a program it answers one JSON line per JSON line. bf16 as the checkpoint has it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from omni.benchmarks.process import resident_mb


def serve(path: Path, num_threads: int, dtype: torch.dtype) -> None:
    """Answer ``{"ids": [...], "num_tokens": n}`` lines with what they took."""
    torch.set_num_threads(num_threads)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    model.requires_grad_(False)
    print(json.dumps({"kernels": f"torch {torch.__version__}"}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        with torch.inference_mode():
            start = time.perf_counter()
            out = model(torch.tensor([request["ids"]]), use_cache=True, logits_to_keep=1)
            middle = time.perf_counter()
            for _ in range(request["num_tokens"] - 1):
                token = out.logits[:, -1:].argmax(-1)
                out = model(token, past_key_values=out.past_key_values, use_cache=True)
            end = time.perf_counter()
        answer = {"prefill_s": middle - start, "decode_s": end - middle}
        print(json.dumps(answer | {"resident_mb": resident_mb()}), flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]), getattr(torch, sys.argv[3]))
