"""Runs the parts of ``omni bench describe``: first those on a virtual clock, then the server's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from omni.assistant.embedded import open_eyes
from omni.assistant.watching import Watcher
from omni.benchmarks import describe, describe_live
from omni.benchmarks.server import serving
from omni.config import Config

Log = Callable[[str], None]

TITLES = {
    "hazards": "People who walk up to the camera:",
    "quiet": "Nothing approaches:",
    "static": "A minute of one scene:",
    "abstention": "Nothing can be seen:",
    "warnings": "Warnings while the assistant talks, real time:",
    "changes": "Another scene, real time:",
    "asking": "Questions about the picture, real time:",
    "reading": "Signs, real time:",
    "looks": "Looks on one core beside a conversation:",
}
LIVE = ("warnings", "changes", "asking", "reading", "looks")


def measure(
    config: Config, parts: Sequence[str], settings: Sequence[str], log: Log, *, quick: bool
) -> dict[str, Any]:
    """Measure ``parts``; ``settings`` are options of the server.

    Raises:
        OmniError: material or weights are missing; the message says what to do.
    """
    watcher = open_eyes(config)
    result: dict[str, Any] = {}
    for part in parts:
        if part not in LIVE:
            log(TITLES[part])
            result[part] = _on_clips(part, watcher, log, quick=quick)
    live = [part for part in parts if part in LIVE]
    if not live:
        return result

    async def in_turn(url: str) -> None:
        for part in live:
            log(TITLES[part])
            result[part] = await _live(part, url, watcher, log, quick=quick)

    with serving(settings) as url:
        asyncio.run(in_turn(url))
    return result


def _on_clips(part: str, watcher: Watcher, log: Log, *, quick: bool) -> dict[str, Any]:
    if part == "hazards":
        return describe.hazards(watcher, 4 if quick else 20, log)
    run = {
        "quiet": describe.quiet,
        "static": describe.static,
        "abstention": describe.abstention,
    }[part]
    return run(watcher, log, quick=quick)


async def _live(part: str, url: str, watcher: Watcher, log: Log, *, quick: bool) -> dict[str, Any]:
    match part:
        case "warnings":
            return await describe_live.warnings(url, watcher, 3 if quick else 12, log)
        case "changes":
            return await describe_live.changes(url, 2 if quick else 8, log)
        case "asking":
            return await describe_live.asking(url, 2 if quick else 6, log)
        case "reading":
            return await describe_live.reading(url, 1 if quick else 4, log)
        case _:
            return await describe_live.looks(url, 2 if quick else 6, log)
