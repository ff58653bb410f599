"""Live description measured on clips of known truth: ``omni bench describe``.

Recall, false alarms, repetitions, silence and abstention come from here: the very describer, eyes
and rules over generated clips (:mod:`.describe_material`) on a virtual clock on which a look takes
:data:`LOOK_MS`, so that a busy machine gives the same figures. Latencies come from a real server in
real time (:mod:`.describe_live`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from omni_encoders import wording
from omni_streaming.describe_file import CountedVoice, Fast, Options, Run, Utterance
from omni_streaming.describe_settings import CommandName, DescribeSettings
from omni_streaming.describe_source import Frames, Picture

from omni.assistant.watching import Watcher
from omni.benchmarks import describe_material as material
from omni.benchmarks.conversation import percentile

LOOK_MS = 150
"""Of the embedded eyes on one core of a laptop, 110 ms on a still machine, and some."""

EARLY_MS = 4_000
"""A warning this long before the approach is dangerous still counts as one of it."""
IN_TIME_MS = 1_000
"""A warning helps when it begins this long before arm's length."""
MINUTE_MS = 60_000
AGAIN_MS = 60_000
"""The same words within it are a repetition."""

Log = Callable[[str], None]


@dataclass(slots=True)
class Told:
    """What was said over one clip."""

    name: str
    seconds: float
    said: list[Utterance] = field(default_factory=list)
    num_looks: int = 0

    def heard(self, *kinds: str) -> list[Utterance]:
        """What was heard, of these kinds."""
        return [u for u in self.said if u.kind in kinds and u.began_ms is not None]

    def share(self) -> float:
        """Of the time that is spoken, on average over its minutes."""
        shares = self.shares("hazard", "change", "framing")
        return sum(shares) / len(shares)

    def shares(self, *kinds: str) -> list[float]:
        """Of every minute (one begins every 5 s; all of a shorter clip) that is spoken."""
        times = [(u.began_ms or 0, u.ended_ms or 0) for u in self.heard(*kinds)]
        first = min(round(1000 * self.seconds), MINUTE_MS)
        return [
            sum(max(0, min(e, end) - max(b, end - MINUTE_MS)) for b, e in times) / MINUTE_MS
            for end in range(first, max(first, round(1000 * self.seconds)) + 1, 5_000)
        ]


def tell(
    name: str,
    pictures: Iterator[Picture],
    watcher: Watcher,
    commands: Sequence[tuple[int, CommandName]] = (),
) -> Told:
    """Describe a clip on the virtual clock."""
    told = Told(name, 0.0)
    options = Options(settings=DescribeSettings(), look_ms=LOOK_MS, commands=tuple(commands))
    run = Run(Frames(pictures), watcher, CountedVoice(), options, Fast(), on_end=told.said.append)
    for _ in run.run():
        pass
    told.seconds, told.num_looks = run.now_ms / 1000, run.num_looks
    return told


# --- Approaches ----------------------------------------------------------------------------------


def hazards(watcher: Watcher, count: int, log: Log) -> dict[str, Any]:
    """Who walks up to the camera among others: warned of in time?"""
    crowd = material.people(watcher, 160 if count < 10 else 260)
    found: list[dict[str, Any]] = []
    for approach in material.approaches(count):
        told = tell(str(approach.number), material.approach_clip(approach, crowd), watcher)
        warnings = told.heard("hazard")
        first = max(approach.waits_ms, approach.danger_ms - EARLY_MS)
        last = approach.contact_ms - IN_TIME_MS
        timely = [u for u in warnings if first <= (u.began_ms or 0) <= last]
        ours = [u for u in timely if is_towards(u.text, approach.x)]
        delay_s = ((ours[0].began_ms or 0) - approach.danger_ms) / 1000 if ours else None
        found.append(
            {
                **asdict(approach),
                "warned": bool(ours),
                "delay_s": delay_s,
                "left_s": (approach.contact_ms - (ours[0].began_ms or 0)) / 1000 if ours else None,
                "before": sum((u.began_ms or 0) < first for u in warnings),
                "warnings": [(u.began_ms, u.text) for u in warnings],
            }
        )
        left_s = found[-1]["left_s"]
        shown = f"{left_s:.1f} s before contact ({delay_s:+.2f} s)" if ours else "NOT WARNED"
        log(
            f"  {approach.speed_m_s} m/s at {approach.x:.2f}: {shown}, {found[-1]['before']} before"
        )
    left = [f["left_s"] for f in found if f["left_s"] is not None]
    delays = [f["delay_s"] for f in found if f["delay_s"] is not None]
    return {
        "count": count,
        "warned": sum(f["warned"] for f in found),
        "delay_p50_s": percentile(delays, 0.5),
        "delay_p95_s": percentile(delays, 0.95),
        "left_p50_s": percentile(left, 0.5),
        "left_p5_s": percentile(left, 0.05),
        "before": sum(f["before"] for f in found),
        "clips": found,
    }


def is_towards(text: str, x: float) -> bool:
    """Whether a warning names the direction of ``x``, or the one beside it."""
    places = ("on the left", "slightly left", "ahead", "slightly right", "on the right")
    named = next(n for n, place in enumerate(places) if place in text)
    truth = (x > 0.25) + (x > 0.4) + (x > 0.6) + (x > 0.75)
    return abs(named - truth) <= 1


# --- Nothing happens -----------------------------------------------------------------------------


def quiet(watcher: Watcher, log: Log, *, quick: bool) -> dict[str, Any]:
    """Clips in which nothing approaches: false alarms, repetitions, how much is spoken."""
    found: list[dict[str, Any]] = []
    for name, _, pictures in material.quiet_clips(quick=quick):
        told = tell(name, pictures(), watcher)
        changes = told.heard("change")
        alarms = told.heard("hazard")
        found.append(
            {
                "name": name,
                "seconds": told.seconds,
                "false_alarms": [(u.began_ms, u.text) for u in alarms],
                "changes": len(changes),
                "duplicates": duplicates(changes),
                "share": told.share(),
                "worst_share": max(told.shares("hazard", "change", "framing")),
                "words": [wording.num_words(u.text) for u in changes],
                "stale_s": [((u.began_ms or 0) - u.frame_at_ms) / 1000 for u in changes],
            }
        )
        log(
            f"  {name}: {len(alarms)} false alarms, {len(changes)} descriptions, "
            f"{found[-1]['duplicates']} again, speech {found[-1]['share']:.0%}"
        )
    seconds = sum(f["seconds"] for f in found)
    alarms_all = sum(len(f["false_alarms"]) for f in found)
    num_changes = sum(f["changes"] for f in found)
    stale = [value for f in found for value in f["stale_s"]]
    words = [value for f in found for value in f["words"]]
    return {
        "seconds": seconds,
        "false_alarms": alarms_all,
        "false_alarms_per_5_min": alarms_all / seconds * 300,
        "changes": num_changes,
        "duplicates": sum(f["duplicates"] for f in found),
        "share": sum(f["share"] * f["seconds"] for f in found) / seconds,
        "worst_share": max(f["worst_share"] for f in found),
        "words_p50": median(words or [0]),
        "words_most": max(words, default=0),
        "stale_p50_s": percentile(stale, 0.5),
        "stale_p95_s": percentile(stale, 0.95),
        "clips": found,
    }


def duplicates(said: Sequence[Utterance]) -> int:
    """How many say what was heard to its end less than :data:`AGAIN_MS` ago."""
    num = 0
    for number, one in enumerate(said):
        num += any(
            old.text == one.text
            and not old.cut_off
            and (one.began_ms or 0) - (old.ended_ms or 0) < AGAIN_MS
            for old in said[:number]
        )
    return num


def static(watcher: Watcher, log: Log, *, quick: bool) -> dict[str, Any]:
    """A minute of one scene, held in a hand: one description after the notice, then silence."""
    found: list[dict[str, Any]] = []
    for name, pixels in list(material.scenes().items())[: 2 if quick else None]:
        told = tell(name, material.still(pixels, 60.0), watcher)
        said = [u.text for u in told.heard("change", "framing", "hazard")]
        found.append({"name": name, "said": said, "num_after_notice": len(said) - 1})
        log(f"  {name}: {len(said) - 1} after the notice: {said[1:]}")
    return {
        "count": len(found),
        "silent": sum(f["num_after_notice"] <= 1 for f in found),
        "clips": found,
    }


# --- Nothing can be seen -------------------------------------------------------------------------


def abstention(watcher: Watcher, log: Log, *, quick: bool) -> dict[str, Any]:
    """Blank, blurred and covered pictures: "what is in front of me" is answered by "I cannot"."""
    pictures = {f"blank {name}": pixels for name, pixels in material.blank().items()}
    photos = ("chelsea", "astronaut") if quick else ("chelsea", "astronaut", "coffee", "camera")
    for name in photos:
        for how, pixels in material.spoilt(material.photo(name)).items():
            pictures[f"{name} {how}"] = pixels
    found: list[dict[str, Any]] = []
    for name, pixels in pictures.items():
        told = tell(name, material.still(pixels, 8.0), watcher, [(7_000, "front")])
        answer = told.heard("answer")[0].text
        claimed = [u.text for u in told.heard("change", "hazard")]
        abstains = answer in wording.ABSTENTIONS.values() and not claimed
        found.append({"name": name, "abstains": abstains, "answer": answer, "claimed": claimed})
        if not abstains:
            log(f"  {name}: CLAIMS {answer!r}, {claimed}")
    num = sum(f["abstains"] for f in found)
    log(f"  {num} of {len(found)} abstain")
    return {"count": len(found), "abstained": num, "clips": found}


def cost_ms(watcher: Watcher) -> float:
    """Of a look at a street on this machine as it is now, median."""
    import time

    times, state = [], None
    for number, frame in enumerate(material.street_frames(0, 40)):
        began_s = time.perf_counter()
        _, state = watcher.look(frame, 250 * number, state)
        times.append(1000 * (time.perf_counter() - began_s))
    return median(times[5:])
