"""How long one image takes to be seen, in fp32 and with 8-bit linears.

    python encoders/bench_vision.py [--side 448] [--repeats 9] [--threads 2]

The tower has the shapes of Qwen3.5-0.8B and random weights, so its error in 8 bits is that of
random weights too. Both kinds run in turns in one process. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

from omni.threads import resolve, set_environment

set_environment()  # before anything that loads an OpenMP library

import numpy as np  # noqa: E402
import torch  # noqa: E402
from omni_encoders.image import ImageEncoder, PixelLimits  # noqa: E402
from omni_encoders.vision import Precision, VisionConfig, VisionTower  # noqa: E402
from omni_kernels import linear  # noqa: E402

SHAPES = VisionConfig(
    depth=12, hidden_size=768, intermediate_size=3072, num_heads=12, out_hidden_size=1024
)
KINDS: tuple[Precision, ...] = ("fp32", "int8")


def random_weights(config: VisionConfig) -> dict[str, torch.Tensor]:
    """Weights of unit gain, small biases, norms around one."""
    generator = torch.Generator().manual_seed(0)
    width, merged = config.hidden_size, config.hidden_size * config.spatial_merge_size**2
    inner = config.intermediate_size
    kernel = (width, config.in_channels, config.temporal_patch_size, *[config.patch_size] * 2)
    linears = {"patch_embed.proj": kernel}
    norms = {"merger.norm": width}
    for i in range(config.depth):
        linears |= {
            f"blocks.{i}.attn.qkv": (3 * width, width),
            f"blocks.{i}.attn.proj": (width, width),
            f"blocks.{i}.mlp.linear_fc1": (inner, width),
            f"blocks.{i}.mlp.linear_fc2": (width, inner),
        }
        norms |= {f"blocks.{i}.norm1": width, f"blocks.{i}.norm2": width}
    linears["merger.linear_fc1"] = (merged, merged)
    linears["merger.linear_fc2"] = (config.out_hidden_size, merged)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    weights = {"pos_embed.weight": draw(config.num_position_embeddings, width)}
    for name, shape in linears.items():
        weights[f"{name}.weight"] = draw(*shape) / weights_per_output(shape) ** 0.5
        weights[f"{name}.bias"] = draw(shape[0]) * 0.1
    for name, size in norms.items():
        weights[f"{name}.weight"] = 1 + draw(size) * 0.1
        weights[f"{name}.bias"] = draw(size) * 0.1
    return weights


def weights_per_output(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--side", type=int, default=448, help="pixels (default 448)")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=resolve().parts)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    linear.set_num_threads(options.threads)

    limits = PixelLimits(min_pixels=options.side**2, max_pixels=options.side**2)
    pixels = np.random.default_rng(0).integers(0, 256, (720, 720, 3), dtype=np.uint8)
    weights = random_weights(SHAPES)
    encoders = {
        kind: ImageEncoder(VisionTower(SHAPES, weights, precision=kind), limits) for kind in KINDS
    }
    seen = {kind: encoder.encode(pixels).embeddings for kind, encoder in encoders.items()}
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    cpu_seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(options.repeats):
        for kind, encoder in encoders.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            encoder.encode(pixels)
            seconds[kind].append(time.perf_counter() - start)
            cpu_seconds[kind].append(time.process_time() - cpu_start)
    error = float((seen["int8"] - seen["fp32"]).norm() / seen["fp32"].norm())

    result: dict[str, object] = {
        "side_pixels": options.side,
        "tokens": len(seen["fp32"]),
        "threads": options.threads,
        "repeats": options.repeats,
        "kernel": linear.backend(),
        "int8_relative_rms_error": round(error, 5),
    }
    for kind in KINDS:
        times = sorted(seconds[kind])
        figures = {
            "best": times[0],  # what a machine that others use too takes when left alone
            "p50": statistics.median(times),
            "p95": times[round(0.95 * (len(times) - 1))],
            "cpu": statistics.median(cpu_seconds[kind]),  # of all threads
        }
        print(kind, *(f"{name} {1000 * value:.0f} ms" for name, value in figures.items()))
        result |= {f"{kind}_{name}_ms": round(1000 * v, 1) for name, v in figures.items()}
    ratios = [a / b for a, b in zip(seconds["int8"], seconds["fp32"], strict=True)]
    result["int8_to_fp32"] = round(statistics.median(ratios), 3)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
