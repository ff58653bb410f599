"""What ``omni bench kernels`` found, as rows of the table, as a page's tables and as a picture."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omni.benchmarks.row import Row

COMMAND = "omni bench kernels"
LINEAR_TARGETS = {8: 0.65, 5: 0.55, 4: 0.55}  # of the read bandwidth, by bits
ATTENTION_TARGET = 0.7
INDUCTOR_TARGET, GGML_TARGET, GGML_MANY_TARGET = 2.0, 1.5, 2.0
REPLAY_TARGET_MS, SNAPSHOT_TARGET = 35.0, 0.8
COLOURS = ("#2563a8", "#0f9d58", "#b8541a", "#7a4ba0")


def rows(result: dict[str, Any]) -> list[Row]:
    """A row for each kind of figure that has a target: the worst shape decides."""
    (found,) = result["results"]
    made = []
    for bits, target in LINEAR_TARGETS.items():
        one_row = _of(found, "linear", "M=1", bits=bits)
        made.append(_worst(f"linear, {bits} bits, one row: share of read", one_row, target))
    attention = _of(found, "attention", "N=1 ")
    made.append(_worst("paged attention, one token: share of read", attention, ATTENTION_TARGET))
    delta = [r for r in _of(found, "gated delta") if r["path"] == found["backend"]]
    for label, key, chosen, target in (
        ("one token, over inductor", "times_inductor", _single(delta), INDUCTOR_TARGET),
        ("one token, over ggml", "times_ggml", _single(delta), GGML_TARGET),
        ("16 tokens and more, over ggml", "times_ggml", _several(delta), GGML_MANY_TARGET),
    ):
        made.append(_worst(f"Gated DeltaNet, {label}", chosen, target, key=key))
    for row in _of(found, "replay"):
        if row["path"] == found["backend"] and row["shape"].startswith("0.8B"):
            spent_ms = row["us_p50"] / 1e3
            made.append(
                Row(
                    f"replay, {row['shape']} (layers x tokens)",
                    f"<= {REPLAY_TARGET_MS:.0f} ms",
                    f"{spent_ms:.1f} ms",
                    spent_ms <= REPLAY_TARGET_MS,
                    COMMAND,
                )
            )
    snapshots = _of(found, "snapshot")
    made.append(
        _worst("snapshot, share of a copy", snapshots, SNAPSHOT_TARGET, key="share_of_memory")
    )
    return made


def _of(found: dict[str, Any], kernel: str, part: str = "", **equal: object) -> list[Any]:
    return [
        row
        for row in found["rows"]
        if row["kernel"] == kernel
        and part in row["shape"] + " "
        and all(row[name] == value for name, value in equal.items())
    ]


def _single(delta: list[Any]) -> list[Any]:
    return [row for row in delta if "T=1" in row["shape"].split()]


def _several(delta: list[Any]) -> list[Any]:
    return [row for row in delta if "T=1" not in row["shape"].split()]


def _worst(what: str, chosen: list[Any], target: float, *, key: str = "share_of_read") -> Row:
    """The row of the worst of several shapes, which is named."""
    worst = min(chosen, key=lambda row: row[key])
    is_share = key.startswith("share")
    met = worst[key] >= target
    num_met = sum(row[key] >= target for row in chosen)
    return Row(
        f"{what}; worst of {len(chosen)} shapes ({worst['shape']}; {num_met} meet it)",
        f">= {target:.0%}" if is_share else f">= {target:g}x",
        f"{worst[key]:.0%}" if is_share else f"{worst[key]:.1f}x",
        met,
        COMMAND,
    )


def page(result: dict[str, Any]) -> str:
    """Every figure, as the tables of ``docs/kernels.md``."""
    (found,), machine = result["results"], result["machine"]
    text = (
        f"{machine['cores']} cores of {machine['cpu']}, {found['threads']} threads, kernels "
        f"{found['backend']}, read bandwidth {found['read_gb_per_s']:.0f} GB/s, commit "
        f"{machine['commit']}, {machine['date']}. Medians; weights and state come from memory, not "
        'from a cache, except where "cached" is said.\n\n'
        "| linear | bits | us | share of read | over torch fp32 |\n|---|---|---|---|---|\n"
    )
    for row in _of(found, "linear"):
        bits = f"{row['bits']}{', offsets' if row['offsets'] else ''}"
        text += _line(row, bits, _share(row["share_of_read"]), _times(row["times_torch_fp32"]))
    text += "\n| attention over pages | us | share of read | over torch fp32 |\n|---|---|---|---|\n"
    for row in _of(found, "attention"):
        text += _line(row, None, _share(row["share_of_read"]), _times(row["times_torch_fp32"]))
    text += (
        "\n| Gated DeltaNet and state | path | us | over inductor | over ggml | share of a copy |\n"
        "|---|---|---|---|---|---|\n"
    )
    for row in found["rows"]:
        if row["kernel"] in ("gated delta", "replay", "snapshot"):
            named = row | {"shape": f"{row['kernel']} {row['shape']}"}
            ratios = _times(row["times_inductor"]), _times(row["times_ggml"])
            text += _line(named, row["path"], *ratios, _share(row["share_of_memory"]))
    return text


def _line(row: dict[str, Any], detail: str | None, *figures: str) -> str:
    cells = [row["shape"], *([] if detail is None else [detail]), f"{row['us_p50']:.0f}", *figures]
    return f"| {' | '.join(cells)} |\n"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}x"


def draw(folder: Path, result: dict[str, Any]) -> Path:
    """Shares of read bandwidth at one row, and Gated DeltaNet beside inductor and ggml."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    (found,) = result["results"]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
    shapes = [row["shape"] for row in _of(found, "linear", "M=1", bits=8, offsets=False)]
    for index, (bits, colour) in enumerate(zip(LINEAR_TARGETS, COLOURS, strict=False)):
        chosen = _of(found, "linear", "M=1", bits=bits, offsets=False)
        at = [i + 0.27 * (index - 1) for i in range(len(shapes))]
        shares = [row["share_of_read"] for row in chosen]
        left.barh(at, shares, 0.25, color=colour, label=f"{bits} bits")
    left.set_yticks(range(len(shapes)), [shape.removesuffix(" M=1") for shape in shapes])
    left.invert_yaxis()
    _targets(left, LINEAR_TARGETS.values())
    left.set_title("linear at one row, share of read bandwidth", fontsize=9)
    left.legend(frameon=False, fontsize=8)
    attention = _of(found, "attention", "N=1 ")
    middle.barh(
        [row["shape"] for row in attention],
        [row["share_of_read"] for row in attention],
        color=COLOURS[0],
    )
    middle.invert_yaxis()
    _targets(middle, (ATTENTION_TARGET,))
    middle.set_title("paged attention, one token, share of read bandwidth", fontsize=9)
    delta = [row for row in _of(found, "gated delta") if row["path"] == found["backend"]]
    places = range(len(delta))
    for offset, key, colour in (
        (-0.2, "times_inductor", COLOURS[2]),
        (0.2, "times_ggml", COLOURS[3]),
    ):
        right.barh(
            [i + offset for i in places],
            [row[key] or 0 for row in delta],
            0.36,
            color=colour,
            label=f"over {key.removeprefix('times_')}",
        )
    right.set_yticks(list(places), [row["shape"] for row in delta])
    right.invert_yaxis()
    right.set_xscale("log")
    right.minorticks_off()
    right.set_xticks([1, 2, 5, 10, 20, 40], ["1", "2", "5", "10", "20", "40"])
    _targets(right, (GGML_TARGET, INDUCTOR_TARGET))
    right.set_title("Gated DeltaNet, times as fast", fontsize=9)
    right.legend(frameon=False, fontsize=8)
    for part in (left, middle, right):
        part.spines[["top", "right"]].set_visible(False)
        part.tick_params(labelsize=7)
    path = folder / "kernels.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _targets(axes: Any, targets: Iterable[float]) -> None:
    for target in set(targets):
        axes.axvline(target, color="#1f2933", linewidth=0.8, linestyle=":")
