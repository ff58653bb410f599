"""``docs/benchmarks.md``: targets and what was measured, made from the JSON files beside it;
and the CPU's tables of ``docs/kernels.md``.

python -m omni.benchmarks.table docs/benchmarks      # rewrites docs/benchmarks.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from omni.benchmarks import describe_report, hybrid_report, kernels_report
from omni.benchmarks.row import Row

HEAD = """# Benchmarks

Made by `python -m omni.benchmarks.table docs/benchmarks` from the JSON files that `omni bench`
writes; nothing here is typed by hand but the notes. Absolute times depend on the machine; what was
compared was measured side by side in one run. A "+" behind a commit: the code had changes that were
not committed.

| what | target | measured | | command | commit |
|---|---|---|---|---|---|
"""


def conversation(result: dict[str, Any]) -> list[Row]:
    """Rows of ``omni bench conversation``."""
    questions, crowd, pauses = result["questions"], result["crowd"], result["pauses"]
    barge, others, naive = result["barge_in"], result["bystanders"], result["questions"]["naive"]
    command = "omni bench conversation"
    cut_share = pauses["cut_off"] / pauses["count"]
    rows = [
        Row(
            f"right spoken answers, of {questions['count']} (naive pipeline: {naive['right']})",
            ">= 15 of 20",
            f"{questions['right']} of {questions['count']}",
            questions["right"] >= 0.75 * questions["count"],
            command,
        ),
        Row(
            "end of speech to start of the answer, p50",
            "<= 800 ms",
            _ms(questions["p50_s"]),
            questions["p50_s"] <= 0.8,
            command,
        ),
        Row("the same, p95", "", _ms(questions["p95_s"]), None, command),
        Row(
            f"naive serial pipeline p50 ({_ms(naive['p50_s'])}) over ours",
            ">= 1.7x",
            f"{naive['ratio_p50']:.2f}x",
            naive["ratio_p50"] >= 1.7,
            command,
        ),
        Row(
            f"{crowd['clients']} conversations at once, p95 (p50 {_ms(crowd['p50_s'])})",
            "<= 2.5 s",
            _ms(crowd["p95_s"]),
            crowd["p95_s"] <= 2.5,
            command,
        ),
        Row(
            "cut off in a pause of 0.3-1.0 s inside a question",
            "<= 10%",
            f"{pauses['cut_off']} of {pauses['count']}",
            cut_share <= 0.1,
            command,
        ),
        Row(
            "barge-in: onset to `speech_started` at the client, p95",
            "<= 300 ms",
            _ms(barge["speech_started_p95_s"]),
            barge["speech_started_p95_s"] <= 0.3,
            command,
        ),
        Row(
            f"deltas of a response after its barge-in, {barge['count']} interruptions",
            "0",
            str(barge["late_deltas"]),
            barge["late_deltas"] == 0,
            command,
        ),
    ]
    for kind, found in others.items():
        rows.append(
            Row(
                f"interrupted by {kind}",
                "<= 10%",
                f"{found['interrupted']} of {found['count']}",
                found["interrupted"] <= 0.1 * found["count"],
                command,
            )
        )
    return rows


def backbone(result: dict[str, Any]) -> list[Row]:
    """Rows of ``omni bench backbone``."""
    quality, speed = result["results"]
    command = "omni bench backbone"
    prefill, decode = speed["prefill_tokens_s"], speed["decode_tokens_s"]
    memory = speed["resident_mb"]
    return [
        Row(
            f"int8 path against fp32, mean KL over {quality['num_tokens']} tokens",
            "<= 0.005",
            f"{quality['mean_kl']:.5f}",
            quality["mean_kl"] <= 0.005,
            command,
        ),
        Row(
            "top-1 agreement with fp32",
            ">= 96%",
            f"{quality['top1_agreement']:.1%}",
            quality["top1_agreement"] >= 0.96,
            command,
        ),
        Row(
            f"prefill, {prefill['omni']:.0f} over llama.cpp's {prefill['llama']:.0f} tokens/s",
            ">= 2.5x",
            f"{speed['prefill_ratio']:.2f}x",
            speed["prefill_ratio"] >= 2.5,
            command,
        ),
        Row(
            f"decode, {decode['omni']:.0f} over llama.cpp's {decode['llama']:.0f} tokens/s",
            ">= 1.5x",
            f"{speed['decode_ratio']:.2f}x",
            speed["decode_ratio"] >= 1.5,
            command,
        ),
        Row(
            f"resident memory, {memory['omni']:.0f} over {memory['llama']:.0f} MB",
            "<= 1.3x",
            f"{speed['memory_ratio']:.2f}x",
            speed["memory_ratio"] <= 1.3,
            command,
        ),
        Row(
            f"share of the read bandwidth ({speed['bandwidth_gb_s']:.0f} GB/s) while decoding",
            "",
            f"{speed['bandwidth_share']:.0%}",
            None,
            command,
        ),
    ]


def hearing(result: dict[str, Any]) -> list[Row]:
    """Rows of ``omni bench hearing``."""
    (found,) = result["results"]
    command = "omni bench hearing"
    return [
        Row(
            f"word error rate less faster-whisper's ({found['wer']} - "
            f"{found['wer_faster_whisper']}), {found['clips']} clips, {found['words']} words",
            "<= 0.5 points",
            f"{found['wer_gap_points']:+.2f}",
            found["wer_gap_points"] <= 0.5,
            command,
        ),
        Row(
            "CPU time of one final pass over faster-whisper's",
            "<= 1.2x",
            f"{found['pass_cpu_ratio']:.2f}x",
            found["pass_cpu_ratio"] <= 1.2,
            command,
        ),
        Row(
            "the same with the pass before as a draft",
            "",
            f"{found['drafted_pass_cpu_ratio']:.2f}x",
            None,
            command,
        ),
        Row(
            "CPU-seconds per second of audio while listening",
            "",
            f"{found['streaming_cpu_s_per_audio_s']:.2f}",
            None,
            command,
        ),
    ]


PARTS = {
    "conversation": conversation,
    "backbone": backbone,
    "hybrid": hybrid_report.rows,
    "hearing": hearing,
    "kernels": kernels_report.rows,
    "describe": describe_report.rows,
}


def render(folder: Path) -> str:
    """The page made of every result in ``folder``."""
    text, machines = HEAD, []
    for name, rows_of in PARTS.items():
        path = folder / f"{name}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text(encoding="utf-8"))
        machine = result["machine"]
        for row in rows_of(result):
            mark = {True: "met", False: "**missed**", None: ""}[row.met]
            text += (
                f"| {row.what} | {row.target} | {row.measured} | {mark} | `{row.command}` "
                f"| {machine['commit']} |\n"
            )
        machines.append(
            f"- {name}: {machine['cores']} cores of {machine['cpu']}, kernels "
            f"{machine['kernels']}, {machine['date']}\n"
        )
    text += "\n## Hardware\n\n" + "".join(machines)
    if (folder / "conversation.png").exists():
        text += "\n## Latency of each question\n\n![latencies](benchmarks/conversation.png)\n"
    if (folder / "hybrid.png").exists():
        text += "\n## The hybrid backbone\n\n![growth and rollback](benchmarks/hybrid.png)\n"
    if (folder / "kernels.png").exists():
        text += "\n## The operations\n\n![shares and ratios](benchmarks/kernels.png)\n"
        text += "\nEvery figure: [kernels.md](kernels.md#on-the-cpu).\n"
    if (folder / "describe.png").exists():
        text += "\n## Live description\n\n![latencies, false alarms](benchmarks/describe.png)\n"
    notes = folder / "notes.md"
    if notes.exists():
        text += "\n" + notes.read_text(encoding="utf-8")
    return text


def with_cpu_kernels(page: str, result: dict[str, Any]) -> str:
    """``docs/kernels.md`` with the tables of the last ``omni bench kernels`` between its marks."""
    begin, end = (f"<!-- table.py: {name} -->\n" for name in ("begin", "end"))
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return before + begin + kernels_report.page(result) + end + after


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/benchmarks")
    page = folder.parent / "benchmarks.md"
    page.write_text(render(folder), encoding="utf-8")
    print(f"Written: {page}")
    kernels = folder / "kernels.json"
    if kernels.exists():
        page = folder.parent / "kernels.md"
        result = json.loads(kernels.read_text(encoding="utf-8"))
        page.write_text(with_cpu_kernels(page.read_text(encoding="utf-8"), result), "utf-8")
        print(f"Written: {page}")


if __name__ == "__main__":
    main()
