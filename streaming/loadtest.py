"""How many conversations at once? Plays spoken questions in real time over N sockets.

    python streaming/loadtest.py --start --sessions 1 4 --turns 3

Prints, for each number of sessions: the time from the end of speech to the first sound of the
answer as the user hears it (p50, p95), how long the socket takes to answer a ping while the models
work (the event loop's lag), and what went wrong. The last line is JSON. The client runs in its own
process, on the same machine unless ``--url`` says otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from omni_streaming.client import Client
from omni_streaming.recording import speech_end_s

from omni.benchmarks.material import speak
from omni.benchmarks.questions import QUESTIONS
from omni.cli.talk import read_recording
from omni.errors import OmniError

if TYPE_CHECKING:
    from numpy.typing import NDArray

ANSWER_TIMEOUT_S = 60.0
STAGGER_S = 0.7
"""Sessions begin this far apart: people do not ask in chorus."""
PING_EVERY_S = 0.25
PAUSE_S = 0.5
"""Between hearing an answer and asking the next question."""


@dataclass
class Result:
    """What all sessions of one round saw. Times in seconds."""

    latencies: list[float] = field(default_factory=list)
    pings: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def summary(self, num_sessions: int) -> dict[str, object]:
        return {
            "sessions": num_sessions,
            "answers": len(self.latencies),
            "failures": len(self.failures),
            "first_sound_p50_ms": _percentile(self.latencies, 50),
            "first_sound_p95_ms": _percentile(self.latencies, 95),
            "ping_p50_ms": _percentile(self.pings, 50),
            "ping_p95_ms": _percentile(self.pings, 95),
        }


def _percentile(values: Sequence[float], percent: float) -> float | None:
    return round(1000 * float(np.percentile(values, percent)), 1) if values else None


async def converse(
    url: str, clips: Sequence[NDArray[np.int16]], num_turns: int, delay_s: float, result: Result
) -> None:
    """Hold one conversation: each question waits until the answer before it has been heard."""
    await asyncio.sleep(delay_s)
    try:
        async with Client(url, api_key=os.environ.get("OMNI_API_KEY")) as client:
            pinging = asyncio.create_task(_ping(client, result))
            client.start_microphone()
            try:
                for turn in range(num_turns):
                    clip = clips[turn % len(clips)]
                    after = len(client.events)
                    begins_s = client.say(clip)
                    answer = await client.answer(after=after, timeout_s=ANSWER_TIMEOUT_S)
                    if answer.heard_s is None or answer.status != "completed":
                        result.failures.append(f"{answer.status}: {answer.reason}")
                        continue
                    result.latencies.append(answer.heard_s - begins_s - speech_end_s(clip))
                    await client.heard()
                    await asyncio.sleep(PAUSE_S)
            finally:
                pinging.cancel()
                await asyncio.gather(pinging, return_exceptions=True)
    except (OmniError, TimeoutError) as error:
        result.failures.append(str(error) or "no answer in time")


async def _ping(client: Client, result: Result) -> None:
    while True:
        result.pings.append(await client.ping())
        await asyncio.sleep(PING_EVERY_S)


async def measure(
    url: str, clips: Sequence[NDArray[np.int16]], num_sessions: int, num_turns: int
) -> Result:
    """One round of ``num_sessions`` conversations, each beginning with another question."""
    result = Result()
    await asyncio.gather(
        *(
            converse(url, [*clips[i:], *clips[:i]], num_turns, i * STAGGER_S, result)
            for i in (index % len(clips) for index in range(num_sessions))
        )
    )
    return result


def load_clips(paths: Sequence[Path]) -> list[NDArray[np.int16]]:
    """The given recordings, or the benchmark's questions by espeak-ng."""
    if paths:
        return [read_recording(path) for path in paths]
    spoken = (speak(question.text, "espeak", variant=i % 4) for i, question in enumerate(QUESTIONS))
    return [(audio * 32767).astype(np.int16) for audio in spoken]


@contextlib.contextmanager
def own_server(arguments: Sequence[str]) -> Iterator[str]:
    """``omni serve`` on a free port, for as long as the block lasts."""
    command = [sys.executable, "-m", "omni", "serve", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        match = re.search(r"Talk at (\S+)", process.stdout.readline())
        if match is None:
            raise SystemExit("the server did not start; its message is above")
        try:
            yield match[1]
        finally:
            process.terminate()


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recordings", nargs="*", type=Path, help="questions (default: espeak-ng)")
    parser.add_argument("--sessions", nargs="+", type=int, default=[1, 4], metavar="N")
    parser.add_argument("--turns", type=int, default=3, help="questions per session and round")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--start", action="store_true", help="start a server for the test")
    parser.add_argument("--scripted", action="store_true", help="with --start: without models")
    args = parser.parse_args()
    clips = load_clips(args.recordings)
    with contextlib.ExitStack() as stack:
        url = args.url
        if args.start:
            url = stack.enter_context(own_server(["--scripted"] if args.scripted else []))
        asyncio.run(measure(url, clips, 1, 1))  # warm-up
        cores = len(os.sched_getaffinity(0))
        print(f"{platform.machine()}, {cores} cores, {args.turns} turns per session, {url}")
        print("sessions  answers  failures  first sound p50    p95   ping p50    p95  (ms)")
        rounds = []
        for num_sessions in args.sessions:
            result = asyncio.run(measure(url, clips, num_sessions, args.turns))
            row = result.summary(num_sessions)
            rounds.append(row)
            print(
                "{sessions:8}  {answers:7}  {failures:8}  {first_sound_p50_ms!s:>15} "
                "{first_sound_p95_ms!s:>6} {ping_p50_ms!s:>10} {ping_p95_ms!s:>6}".format(**row)
            )
            for failure in result.failures:
                print(f"          {failure}")
    print(json.dumps({"benchmark": "loadtest", "cores": cores, "rounds": rounds}))


if __name__ == "__main__":
    main()
