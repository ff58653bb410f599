"""What ``omni bench describe`` found, as rows of the table and as a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omni_streaming.describe_settings import STILL_WORDS

from omni.benchmarks.report import ACCENT, INK, MUTED
from omni.benchmarks.row import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COMMAND = "omni bench describe"
RECALL, ALARMS_PER_5_MIN = 0.9, 1.0
WARNING_S, CHANGE_S, QUESTION_S = 2.0, 3.0, 1.5
ACKNOWLEDGED_S, TEXT_S = 1.5, 4.0
DUPLICATES, SPEECH, ABSTAINED, STALE_S = 0.05, 0.4, 0.8, 4.0


def rows(result: dict[str, Any]) -> list[Row]:
    """Rows of one result; parts that were not measured have none."""
    made: list[Row] = []
    for part, rows_of in PARTS.items():
        if part in result:
            made += rows_of(result[part])
    return made


def _row(what: str, target: str, measured: str, met: bool | None) -> Row:
    return Row(what, target, measured, met, COMMAND)


def _hazards(found: dict[str, Any]) -> list[Row]:
    share = found["warned"] / found["count"]
    return [
        _row(
            f"people who walk up to the camera and are warned of in time, of {found['count']} "
            "(generated clips, virtual clock)",
            f">= {RECALL:.0%}",
            f"{found['warned']}",
            share >= RECALL,
        ),
        _row(
            "time left from the warning's begin to arm's length, p50 (shortest 5% "
            f"{found['left_p5_s']:.1f} s; walkers, runners and cyclists at 1 to 3 m/s)",
            "",
            f"{found['left_p50_s']:.1f} s",
            None,
        ),
    ]


def _quiet(found: dict[str, Any]) -> list[Row]:
    changes = max(found["changes"], 1)
    return [
        _row(
            f"false alarms in 5 minutes in which nothing approaches ({found['false_alarms']} in "
            f"{found['seconds'] / 60:.0f} minutes)",
            f"<= {ALARMS_PER_5_MIN:.0f}",
            f"{found['false_alarms_per_5_min']:.1f}",
            found["false_alarms_per_5_min"] <= ALARMS_PER_5_MIN,
        ),
        _row(
            f"descriptions that repeat one of the last minute, of {found['changes']}",
            f"<= {DUPLICATES:.0%}",
            f"{found['duplicates'] / changes:.1%}",
            found["duplicates"] / changes <= DUPLICATES,
        ),
        _row(
            "words of the longest description, to somebody who stands still "
            f"(p50 {found['words_p50']:.0f})",
            f"<= {STILL_WORDS}",
            f"{found['words_most']}",
            found["words_most"] <= STILL_WORDS,
        ),
        _row(
            f"largest share of a minute that is spoken, all kinds (average {found['share']:.0%})",
            f"<= {SPEECH:.0%}",
            f"{found['worst_share']:.0%}",
            found["worst_share"] <= SPEECH,
        ),
        _row(
            "age of the picture when its description begins, p95 (looks of 150 ms)",
            f"<= {STALE_S:.0f} s",
            f"{found['stale_p95_s']:.2f} s",
            found["stale_p95_s"] <= STALE_S,
        ),
    ]


def _static(found: dict[str, Any]) -> list[Row]:
    return [
        _row(
            f"static scenes of a minute with one description after the notice, of {found['count']}",
            "all",
            f"{found['silent']}",
            found["silent"] == found["count"],
        )
    ]


def _abstention(found: dict[str, Any]) -> list[Row]:
    share = found["abstained"] / found["count"]
    return [
        _row(
            f"blank, blurred, dark and covered pictures of which nothing is claimed, of "
            f"{found['count']}",
            f">= {ABSTAINED:.0%}",
            f"{found['abstained']}",
            share >= ABSTAINED,
        )
    ]


def _warnings(found: dict[str, Any]) -> list[Row]:
    all_warned = found["warned"] == found["count"]
    return [
        _row(
            f"first dangerous picture to first sound of the warning, p95, {found['warned']} of "
            f"{found['count']} warned of, the assistant talking in {found['talking']} "
            f"(p50 {found['p50_s']:.1f} s; server, real time)",
            f"<= {WARNING_S:.1f} s",
            f"{found['p95_s']:.2f} s",
            all_warned and found["p95_s"] <= WARNING_S,
        )
    ]


def _changes(found: dict[str, Any]) -> list[Row]:
    return [
        _row(
            f"another scene to first sound about it, p95, {found['told']} of {found['count']} told "
            f"(p50 {found['p50_s']:.1f} s)",
            f"<= {CHANGE_S:.1f} s",
            f"{found['p95_s']:.2f} s",
            found["told"] == found["count"] and found["p95_s"] <= CHANGE_S,
        )
    ]


def _asking(found: dict[str, Any]) -> list[Row]:
    return [
        _row(
            f"end of a question about the picture to first sound, p95, {found['answered']} of "
            f"{found['count']} answered (p50 {found['p50_s']:.1f} s)",
            f"<= {QUESTION_S:.1f} s",
            f"{found['p95_s']:.2f} s",
            found["answered"] == found["count"] and found["p95_s"] <= QUESTION_S,
        ),
        _row(
            f"right answers about the picture, of {found['count']}", "", f"{found['right']}", None
        ),
    ]


def _reading(found: dict[str, Any]) -> list[Row]:
    is_all = found["read"] == found["count"]
    return [
        _row(
            '"read it to me" to the first sound of any kind, p95',
            f"<= {ACKNOWLEDGED_S:.1f} s",
            f"{found['first_sound_p95_s']:.2f} s",
            is_all and found["first_sound_p95_s"] <= ACKNOWLEDGED_S,
        ),
        _row(
            f"the same to the text, p95, {found['read']} of {found['count']} signs, "
            f"{found['right_words']} of {found['words']} words right "
            f"(p50 {found['text_p50_s']:.1f} s)",
            f"<= {TEXT_S:.0f} s",
            f"{found['text_p95_s']:.2f} s",
            is_all and found["text_p95_s"] <= TEXT_S,
        ),
    ]


def _looks(found: dict[str, Any]) -> list[Row]:
    return [
        _row(
            "pictures a second looked at on one core beside a conversation (alone: "
            f"{found['alone_fps']:.1f}; answers then begin after {found['answer_p50_s']:.1f} s)",
            "",
            f"{found['fps']:.1f}",
            None,
        )
    ]


PARTS: dict[str, Callable[[dict[str, Any]], list[Row]]] = {
    "hazards": _hazards,
    "quiet": _quiet,
    "static": _static,
    "abstention": _abstention,
    "warnings": _warnings,
    "changes": _changes,
    "asking": _asking,
    "reading": _reading,
    "looks": _looks,
}
"""In the order in which they are measured."""


def draw(folder: Path, result: dict[str, Any]) -> Path:
    """Latencies beside their targets, and false alarms by clip."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 4.0), gridspec_kw={"width_ratios": [3, 2]}, layout="constrained"
    )
    _draw_latencies(left, result)
    _draw_alarms(right, result["quiet"]["clips"])
    path = folder / "describe.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _draw_latencies(axes: Axes, result: dict[str, Any]) -> None:
    groups: list[tuple[str, Sequence[float | None], float]] = [
        ("warning", [c["delay_s"] for c in result["warnings"]["clips"]], WARNING_S),
        ("change", [c["delay_s"] for c in result["changes"]["clips"]], CHANGE_S),
        ("question", [c["delay_s"] for c in result["asking"]["turns"]], QUESTION_S),
        ("text", [c["text_s"] for c in result["reading"]["signs"]], TEXT_S),
    ]
    for row, (_, delays, target) in enumerate(groups):
        times = [delay for delay in delays if delay is not None]
        axes.plot(times, [row] * len(times), "o", color=ACCENT, alpha=0.6)
        axes.plot([target, target], [row - 0.3, row + 0.3], color=INK, linewidth=1.2)
    axes.set_yticks(range(len(groups)), [name for name, _, _ in groups])
    axes.invert_yaxis()
    axes.set_xlabel("s to the first sound (line: target for p95)")
    axes.set_title("latency, real server", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_alarms(axes: Axes, clips: Sequence[dict[str, Any]]) -> None:
    names = [clip["name"] for clip in clips]
    axes.barh(names, [len(clip["false_alarms"]) for clip in clips], color=ACCENT, height=0.6)
    axes.barh(names, [-clip["changes"] for clip in clips], color=MUTED, height=0.6)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel("descriptions | false alarms")
    axes.set_title("nothing approaches", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
