"""What ``omni bench hybrid`` found, as rows of the table and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omni.benchmarks.row import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COMMAND = "omni bench hybrid"
REPLAY_TARGET_MS, COPY_TARGET = 35.0, 0.8
LLAMA_TARGET, TRANSFORMERS_TARGET = 1.2, 5.0
FAR_LIMIT_GB = 12.0
COLOURS = ("#2563a8", "#0f9d58", "#b8541a")


def rows(result: dict[str, Any]) -> list[Row]:
    """Rows of one result; shapes are Qwen3.5-0.8B's with random weights in 8 bits."""
    (found,) = result["results"]
    return [
        *_rollback(found["rollback"]),
        *_speed(found["speed"]),
        *_busy(found["busy"]),
        *_context(found),
    ]


def _rollback(found: dict[str, Any]) -> list[Row]:
    longest = found["replay"][-1]
    made = [
        Row(
            f"going back {longest['tokens']} tokens by replay (computing them again: "
            f"{longest['compute_again_ms']:.0f} ms)",
            f"<= {REPLAY_TARGET_MS:.0f} ms",
            f"{longest['replay_ms']:.1f} ms",
            longest["replay_ms"] <= REPLAY_TARGET_MS,
            COMMAND,
        )
    ]
    for name in ("snapshot", "restore"):
        share = found[f"{name}_share_of_copy"]
        made.append(
            Row(
                f"{name} of a state of {found['state_mb']:.1f} MB "
                f"({found['copy_ms'][name]:.1f} ms), speed over a plain copy's",
                f">= {COPY_TARGET:.0%}",
                f"{share:.0%}",
                share >= COPY_TARGET,
                COMMAND,
            )
        )
    made.append(Row("fork of a sequence", "", f"{found['fork_ms']:.1f} ms", None, COMMAND))
    return made


def _speed(found: dict[str, Any]) -> list[Row]:
    llama, slow = found["llama"], found["transformers"]
    made = []
    for part in ("prefill", "decode"):
        speed = llama[f"{part}_tokens_s"]
        made += [
            Row(
                f"hybrid {part}, {speed['omni']:.0f} over llama.cpp's {speed['llama']:.0f} "
                "tokens/s, both Q8_0",
                f">= {LLAMA_TARGET}x",
                f"{llama[f'{part}_ratio']:.2f}x",
                llama[f"{part}_ratio"] >= LLAMA_TARGET,
                COMMAND,
            ),
            *(
                Row(
                    f"hybrid {part} over transformers' in {dtype}",
                    f">= {TRANSFORMERS_TARGET:.0f}x",
                    f"{ratio[part]:.1f}x",
                    ratio[part] >= TRANSFORMERS_TARGET,
                    COMMAND,
                )
                for dtype, ratio in slow.items()
            ),
        ]
    return made


def _busy(found: dict[str, Any]) -> list[Row]:
    made = []
    for part in ("prefill", "decode"):
        speed, ratio = found[f"{part}_tokens_s"], found[f"{part}_ratio"]
        made.append(
            Row(
                f"the same {part} with one other busy process, {speed['omni']:.0f} over "
                f"{speed['llama']:.0f} tokens/s",
                f">= {LLAMA_TARGET}x",
                f"{ratio:.2f}x",
                ratio >= LLAMA_TARGET,
                COMMAND,
            )
        )
    return made


def _context(found: dict[str, Any]) -> list[Row]:
    first, last = (found["growth"]["curves"]["Gated DeltaNet alone"][i] for i in (0, -1))
    growth = last["decode_ms"] / first["decode_ms"]
    waits, far = found["listening"]["first_token_ms"], found["far"]
    return [
        Row(
            f"decode time a token of Gated DeltaNet alone, {last['context']} over "
            f"{first['context']} tokens of context (tiny width)",
            "flat",
            f"{growth:.2f}x",
            growth <= 1.25,
            COMMAND,
        ),
        Row(
            f"memory of the process behind {far['context']} tokens (made-up state; 128 tokens of "
            f"prefill {far['prefill_128_ms'] / 1e3:.1f} s, {far['decode_ms']:.0f} ms a token)",
            f"<= {FAR_LIMIT_GB:.0f} GB",
            f"{far['process_gb']:.1f} GB",
            far["process_gb"] <= FAR_LIMIT_GB,
            COMMAND,
        ),
        Row(
            f"first token after 10 s of speech ({found['listening']['utterance_tokens']} tokens) "
            f"fed in pieces of 200 ms (fed at the end: {waits['fed at the end']:.0f} ms)",
            "",
            f"{waits['fed while speaking']:.0f} ms",
            None,
            COMMAND,
        ),
    ]


def draw(folder: Path, result: dict[str, Any]) -> Path:
    """Growth with context, rollback against computing again, and prefill by chunk."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    (found,) = result["results"]
    figure, axes = plt.subplots(1, 4, figsize=(16, 3.8), layout="constrained")
    _draw_growth(axes[0], found["growth"]["curves"], "decode_ms", "decode, ms a token")
    _draw_memory(axes[1], found["growth"]["curves"])
    _draw_replay(axes[2], found["rollback"]["replay"])
    _draw_chunks(axes[3], found["listening"]["chunks"])
    for part in axes:
        part.spines[["top", "right"]].set_visible(False)
    path = folder / "hybrid.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _draw_growth(axes: Axes, curves: dict[str, Any], key: str, label: str) -> None:
    for colour, (name, curve) in zip(COLOURS, curves.items(), strict=True):
        axes.plot(
            [c["context"] for c in curve], [c[key] for c in curve], "o-", c=colour, label=name
        )
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.set_title(f"{label} (tiny width)", fontsize=9)
    axes.set_xlabel("tokens of context")
    axes.legend(frameon=False, fontsize=8)


def _draw_memory(axes: Axes, curves: dict[str, Any]) -> None:
    for colour, (name, curve) in zip(COLOURS, curves.items(), strict=True):
        held = [c["kv_mb"] + c["recurrent_mb"] for c in curve]
        axes.plot([c["context"] for c in curve], held, "o-", c=colour, label=name)
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.set_title("state, MB (tiny width)", fontsize=9)
    axes.set_xlabel("tokens of context")


def _draw_replay(axes: Axes, replay: list[dict[str, Any]]) -> None:
    tokens = [row["tokens"] for row in replay]
    axes.plot(tokens, [r["replay_ms"] for r in replay], "o-", c=COLOURS[0], label="replay")
    again = [r["compute_again_ms"] for r in replay]
    axes.plot(tokens, again, "o-", c=COLOURS[2], label="computing again")
    axes.axhline(REPLAY_TARGET_MS, color="#1f2933", linewidth=0.8, linestyle=":", label="target")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_title("going back, ms (0.8B shapes)", fontsize=9)
    axes.set_xlabel("tokens after the checkpoint")
    axes.legend(frameon=False, fontsize=8)


def _draw_chunks(axes: Axes, chunks: list[dict[str, Any]]) -> None:
    axes.plot([c["chunk"] for c in chunks], [c["tokens_per_s"] for c in chunks], "o-", c=COLOURS[0])
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.set_title("incremental prefill, tokens/s (0.8B shapes)", fontsize=9)
    axes.set_xlabel("tokens of a chunk")
