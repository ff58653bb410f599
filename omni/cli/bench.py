"""``omni bench``: measure this machine; tables on the screen, JSON and a picture in a folder."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omni.cli import COMMANDS, add_config_options, read_config
from omni.errors import OmniError

if TYPE_CHECKING:
    from omni.cli import Subparsers
    from omni.config import Config

DESCRIPTION = """\
conversation  latency, right answers, cut-offs, interruptions and four conversations at once, on a
              server of its own, beside a naive serial pipeline (about 10 minutes; --quick: 2)
backbone      quality against fp32, and speed beside llama.cpp
hearing       word error rate and CPU time beside faster-whisper
hybrid        the Gated DeltaNet backbone at Qwen3.5-0.8B's shapes with random weights: rollback,
              growth with context, listening as prefill, speed beside llama.cpp and transformers
kernels       the C++ operations beside torch, as a share of read bandwidth
describe      live description: warnings missed and false, repetitions, silence, abstention on clips
              of known truth; latencies of a server of its own (about 25 minutes; --quick: 5)

All need the extra `bench`, except kernels; hearing and kernels need a source checkout, too, and
describe scikit-image and the Debian package opencv-doc. Ratios are taken side by side in one run;
close other programs. The last line is JSON."""

BENCHMARKS = ("conversation", "backbone", "hybrid", "hearing", "kernels", "describe")
SCENARIOS = {
    "conversation": ("questions", "crowd", "pauses", "barge_in", "bystanders"),
    "describe": (
        *("hazards", "quiet", "static", "abstention"),  # generated clips, on a virtual clock
        *("warnings", "changes", "asking", "reading", "looks"),  # a server, in real time
    ),
}
"""Parts that can be measured alone."""
SCRIPTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "backbone": (
        ("-m", "omni.benchmarks.backbone", "--quality"),
        ("-m", "omni.benchmarks.backbone", "--speed"),
    ),
    "hybrid": (("-m", "omni.benchmarks.hybrid"),),
    "hearing": (("encoders/bench.py",),),
    "kernels": (("kernels/bench.py",),),
}
"""Benchmarks that run in a process of their own and end with one line of JSON."""
PACKAGES: dict[str, tuple[str, ...]] = {
    "conversation": ("matplotlib",),
    "backbone": ("transformers", "xllamacpp"),
    "hybrid": ("transformers", "xllamacpp", "matplotlib"),
    "hearing": ("faster_whisper", "jiwer", "transformers"),
    "kernels": (),
    "describe": ("matplotlib", "skimage"),
}
"""What each imports from the extra `bench`, some of it after minutes of measuring."""


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "bench",
        help=COMMANDS["bench"],
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)}; all")
    parser.add_argument("--quick", action="store_true", help="fewer repeats: a smoke test")
    parser.add_argument(
        "--only",
        choices=[part for parts in SCENARIOS.values() for part in parts],
        help="one part of `conversation` or `describe`; its result is printed only",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("docs/benchmarks"), help="folder of the results"
    )
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Measure; see ``omni bench --help``."""
    config = read_config(args)
    names = chosen(args.names)
    if args.only is not None and any(args.only not in SCENARIOS.get(name, ()) for name in names):
        owner = next(name for name, parts in SCENARIOS.items() if args.only in parts)
        raise OmniError(f"{args.only} is a part of {owner}: omni bench {owner} --only {args.only}")
    for name in names:
        _require(name, args.only)
    if args.only is None:
        try:
            args.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OmniError(f"cannot write to {args.out}: {error.strerror}") from error
        print(f"Results go to {args.out.resolve()}.", flush=True)
    for name in names:
        if name == "conversation":
            _conversation(config, args)
        elif name == "describe":
            _describe(config, args)
        else:
            _script(name, args.out)
    return 0


def chosen(names: Sequence[str]) -> tuple[str, ...]:
    """The benchmarks that ``names`` mean; none, or `all` among them, is every one.

    Raises:
        OmniError: there is no such benchmark.
    """
    if unknown := [name for name in names if name not in (*BENCHMARKS, "all")]:
        raise OmniError(f"no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}, all")
    return BENCHMARKS if not names or "all" in names else tuple(names)


def _require(name: str, only: str | None) -> None:
    """Refuse before anything is measured what could not be finished."""
    is_drawn = only is None
    needed = [package for package in PACKAGES[name] if is_drawn or package != "matplotlib"]
    if missing := [package for package in needed if not _is_installed(package)]:
        raise OmniError(
            f"{name} needs the extra: pip install -e '.[bench]' "
            f"({', '.join(missing)} is not installed)"
        )
    scripts = [arguments[0] for arguments in SCRIPTS.get(name, ())]
    if any(script.endswith(".py") and not Path(script).is_file() for script in scripts):
        raise OmniError(f"{name} needs a source checkout: run it in that folder")


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # imported already, without a spec, or blocked
        return sys.modules.get(package) is not None


def _script(name: str, out: Path) -> None:
    from omni.benchmarks import report

    results: list[dict[str, Any]] = []
    for arguments in SCRIPTS[name]:
        lines: list[str] = []
        # In a session of its own, so that a terminal's Ctrl-C comes to us alone.
        with subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            start_new_session=True,
        ) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    print(line, end="", flush=True)
                    lines.append(line)
            except BaseException:
                os.killpg(process.pid, signal.SIGTERM)  # and what it started
                raise
        if not lines or not lines[-1].startswith("{"):  # 1 with a result: a target was missed
            raise OmniError(f"the benchmark {' '.join(arguments)} ended with {process.returncode}")
        results.append(json.loads(lines[-1]))
    written = [report.write(out, name, {"results": results})]
    if name in ("hybrid", "kernels"):
        from omni.benchmarks import hybrid_report, kernels_report

        drawn_by = {"hybrid": hybrid_report.draw, "kernels": kernels_report.draw}
        try:
            written.append(drawn_by[name](out, {"results": results}))
        except ImportError:
            print("No picture: matplotlib is not installed (pip install -e '.[bench]').")
    print(f"Written: {', '.join(map(str, written))}")


def _conversation(config: Config, args: argparse.Namespace) -> None:
    from omni.benchmarks import conversation, report
    from omni.benchmarks.naive import NaivePipeline
    from omni.benchmarks.server import serving

    quick: bool = args.quick
    only: str | None = args.only

    async def measure(url: str) -> dict[str, Any]:
        result: dict[str, Any] = {}
        if only in (None, "questions"):
            print("Questions, each beside the naive pipeline:", flush=True)
            naive = NaivePipeline(config)
            count = 5 if quick else 20
            result["questions"] = await conversation.questions(url, count, naive, _log)
            del naive
        if only in (None, "crowd"):
            print("Four conversations at once:", flush=True)
            result["crowd"] = await conversation.crowd(url, 4, 1 if quick else 5, _log)
        if only in (None, "pauses"):
            print("Pauses inside a question:", flush=True)
            result["pauses"] = await conversation.pauses(url, 4 if quick else 20, _log)
        if only in (None, "barge_in"):
            print("Interruptions:", flush=True)
            result["barge_in"] = await conversation.barge_in(url, 2 if quick else 20, _log)
        if only in (None, "bystanders"):
            print("Sounds that must not interrupt:", flush=True)
            result["bystanders"] = await conversation.bystanders(url, 2 if quick else 10, _log)
        return result

    with serving(_settings(args)) as url:
        result = asyncio.run(measure(url))
    if only is not None:
        print(json.dumps(result))
        return
    path = report.write(args.out, "conversation", result)
    picture = report.draw_conversation(args.out, result)
    questions = result["questions"]
    summary = {
        "right": f"{questions['right']}/{questions['count']}",
        "p50_s": round(questions["p50_s"], 3),
        "p95_s": round(questions["p95_s"], 3),
        "ratio_to_naive_p50": round(questions["naive"]["ratio_p50"], 2),
        "crowd_p95_s": round(result["crowd"]["p95_s"], 3),
        "cut_off": f"{result['pauses']['cut_off']}/{result['pauses']['count']}",
        "speech_started_p95_s": round(result["barge_in"]["speech_started_p95_s"], 3),
        "late_deltas": result["barge_in"]["late_deltas"],
        "interrupted_by": {k: v["interrupted"] for k, v in result["bystanders"].items()},
    }
    print(f"Written: {path}, {picture}")
    print(json.dumps(summary))


def _describe(config: Config, args: argparse.Namespace) -> None:
    from omni.benchmarks import describe_report, report
    from omni.benchmarks.describe_parts import measure

    parts = SCENARIOS["describe"] if args.only is None else (args.only,)
    result = measure(config, parts, _settings(args), _log, quick=args.quick)
    if args.only is not None:
        print(json.dumps(result))
        return
    path = report.write(args.out, "describe", result)
    picture = describe_report.draw(args.out, result)
    rows = describe_report.rows(result)
    for row in rows:
        mark = {True: "met", False: "MISSED", None: ""}[row.met]
        _log(f"{row.what}: {row.measured} {row.target and f'({row.target}) '}{mark}")
    print(f"Written: {path}, {picture}")
    print(
        json.dumps(
            {
                "met": sum(r.met is True for r in rows),
                "targets": sum(r.met is not None for r in rows),
            }
        )
    )


def _settings(args: argparse.Namespace) -> list[str]:
    """The settings as options of the server to be started."""
    config = ["--config", str(args.config)] if args.config else []
    return [*(f"--set={setting}" for setting in args.set), *config]


def _log(line: str) -> None:
    print(line, flush=True)
