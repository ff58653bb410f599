"""What every benchmark writes: a JSON file with the machine and the commit, and a picture."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, ACCENT, MUTED = "#1f2933", "#2563a8", "#b8c1cc"


def machine() -> dict[str, str]:
    """Hardware, kernel path and commit of this run."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    from omni_kernels import library

    return {
        "cpu": model,
        "cores": str(len(os.sched_getaffinity(0))),
        "kernels": library.backend(),
        "commit": _git("rev-parse", "--short", "HEAD")
        + ("+" if _git("status", "-s", "-uno", "--", ".", ":!docs") else ""),  # "+": changed code
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def write(folder: Path, name: str, result: dict[str, Any]) -> Path:
    """Write ``result`` with the machine as ``folder/name.json``; returns the path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    text = json.dumps({"machine": machine(), **result}, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def draw_conversation(folder: Path, result: dict[str, Any]) -> Path:
    """Latency of each question, ours beside the naive pipeline's, and where the time goes."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 4.2), gridspec_kw={"width_ratios": [3, 2]}, layout="constrained"
    )
    questions = result["questions"]
    _draw_questions(left, questions)
    _draw_parts(right, questions)
    figure.suptitle(
        f"End of the user's speech to start of the answer, {questions['count']} spoken questions, "
        "by voice activity on the recording",
        fontsize=10,
        color=INK,
    )
    path = folder / "conversation.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _draw_questions(axes: Axes, questions: dict[str, Any]) -> None:
    turns = questions["turns"]
    ours = [(t["latency_s"] or float("nan")) * 1000 for t in turns]
    axes.plot(ours, "o", color=ACCENT, label=f"Omni, p50 {questions['p50_s'] * 1000:.0f} ms")
    if naive := questions.get("naive"):
        theirs = [t["naive"]["latency_s"] * 1000 for t in turns]
        label = f"naive serial pipeline, p50 {naive['p50_s'] * 1000:.0f} ms"
        axes.plot(theirs, "o", color=MUTED, label=label)
    axes.axhline(800, color=INK, linewidth=0.8, linestyle=":", label="target for p50")
    axes.set_ylim(bottom=0)
    axes.set_xticks(range(0, len(turns), 2), [str(n + 1) for n in range(0, len(turns), 2)])
    axes.set_xlabel("question")
    axes.set_ylabel("ms")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_parts(axes: Axes, questions: dict[str, Any]) -> None:
    names = {
        "turn_end_s": "turn end decided",
        "first_text_s": "first text",
        "first_audio_s": "first audio arrives",
    }
    parts = [(label, questions["parts_p50_s"][key] * 1000) for key, label in names.items()]
    parts.append(("answer starts (recording)", questions["p50_s"] * 1000))
    axes.barh([p[0] for p in parts][::-1], [p[1] for p in parts][::-1], color=ACCENT, height=0.5)
    for row, (_, value) in enumerate(parts[::-1]):
        axes.text(value, row, f" {value:.0f} ms", va="center", fontsize=8, color=INK)
    axes.set_xlim(0, max(p[1] for p in parts) * 1.25)
    axes.set_xlabel("ms after the end of speech, median")
    axes.spines[["top", "right"]].set_visible(False)
