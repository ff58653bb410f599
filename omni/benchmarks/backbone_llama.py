"""llama.cpp's side of the backbone's measurements: a worker that is timed; imports no torch.

As a program it answers one JSON line per JSON line, with llama.cpp's own timings.
"""

from __future__ import annotations

import json
import sys

import xllamacpp

from omni.benchmarks.process import resident_mb

CONTEXT_TOKENS = 1024


def serve(path: str, num_threads: int) -> None:
    """Answer ``{"ids": [...], "num_tokens": n}`` lines with what they took."""
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx = CONTEXT_TOKENS
    params.n_parallel = 1
    params.cpuparams.n_threads = num_threads
    params.cpuparams_batch.n_threads = num_threads
    params.verbosity = 0
    params.cache_ram_mib = 0
    server = xllamacpp.Server(params)
    print(json.dumps({"kernels": xllamacpp.get_system_info()}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = server.handle_completions(
            {
                "prompt": request["ids"],
                "n_predict": request["num_tokens"],
                "cache_prompt": False,
                "temperature": 0.0,
                "ignore_eos": True,
            }
        )
        timings = answer["timings"]
        assert timings["prompt_n"] == len(request["ids"])
        # The first token comes out of the prompt's pass, so n tokens are n - 1 steps.
        steps = request["num_tokens"] - 1
        taken = {
            "prefill_s": timings["prompt_ms"] / 1e3,
            "decode_s": timings["predicted_ms"] / 1e3 * steps / (timings["predicted_n"] - 1),
            "resident_mb": resident_mb(),
        }
        print(json.dumps(taken), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
