"""What the server counts and times, in Prometheus' text format at ``GET /metrics``.

One :class:`Metrics` per server, with its own registry; :class:`SessionMetrics` watches one
session's events, commands and outputs, so that nothing else has to remember to count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from omni.engine.outputs import EngineStats
from omni.types import (
    OUTPUT_RATE_HZ,
    AudioDelta,
    Cancel,
    Command,
    Confirm,
    Done,
    Output,
    Seen,
    Speculate,
    Usage,
)
from omni_streaming.describe_settings import FRAME_KEY, KIND_KEY, Kind

REPEAT_S = 60.0
"""The same description within it is a repetition."""

LATENCY_BUCKETS_S = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)


class Metrics:
    """The instruments of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.sessions = Gauge("omni_sessions", "Open sessions.", registry=self.registry)
        self.ended = Counter(
            "omni_sessions_ended", "Sessions by close code.", ["code"], registry=self.registry
        )
        self.refused = Counter(
            "omni_refused", "Connections refused, by error code.", ["code"], registry=self.registry
        )
        self.errors = Counter(
            "omni_errors", "Error events sent, by code.", ["code"], registry=self.registry
        )
        self.turns = Counter("omni_turns", "User turns committed.", registry=self.registry)
        self.barge_ins = Counter(
            "omni_barge_ins", "Responses the user interrupted.", registry=self.registry
        )
        self.responses = Counter(
            "omni_responses", "Responses by final status.", ["status"], registry=self.registry
        )
        self.speculations = Counter(
            "omni_speculations",
            "Speculative answers: confirmed is a hit.",
            ["outcome"],
            registry=self.registry,
        )
        self.tokens = Counter(
            "omni_tokens",
            "Tokens the engine processed; cached ones were already computed.",
            ["kind"],
            registry=self.registry,
        )
        self.audio = Counter(
            "omni_audio_seconds", "Audio heard and spoken.", ["direction"], registry=self.registry
        )
        self.first_audio = Histogram(
            "omni_first_audio_seconds",
            "From the last frame of the user's speech to the first audio delta queued for it.",
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.first_delta = Histogram(
            "omni_first_delta_seconds",
            "From response.created to the first text or audio delta.",
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.looks = Counter(
            "omni_looks",
            "Pictures of cameras, by what came of a look.",
            ["outcome"],
            registry=self.registry,
        )
        self.descriptions = Histogram(
            "omni_description_seconds",
            "From a picture to the first sound or word that tells of it, by kind: hazard, change, "
            "answer, text, framing. Its count is how many were given.",
            ["kind"],
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.described_words = Counter(
            "omni_description_words",
            "Words of descriptions, by kind.",
            ["kind"],
            registry=self.registry,
        )
        self.repeats = Counter(
            "omni_description_repeats",
            f"Descriptions of changes in the words of one of the last {REPEAT_S:.0f} s.",
            registry=self.registry,
        )
        self.pauses = Counter(
            "omni_send_pauses", "Times generation paused for a slow client.", registry=self.registry
        )
        self.dropped = Counter(
            "omni_send_dropped",
            "Audio deltas dropped unsent because their response was cancelled.",
            registry=self.registry,
        )

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Add a gauge that is read when asked for."""
        Gauge(name, text, registry=self.registry).set_function(read)

    def watch_engine(self, read: Callable[[], EngineStats | None]) -> None:
        """Show the engine's numbers, all of one moment, as long as there is an engine."""
        self.registry.register(_EngineNumbers(read))

    def render(self) -> bytes:
        return generate_latest(self.registry)


class _EngineNumbers(Collector):
    """Reads the engine's stats when asked; counters begin anew with a rebuilt assistant."""

    def __init__(self, read: Callable[[], EngineStats | None]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        stats = self._read()
        if stats is None:
            return
        pages = GaugeMetricFamily(
            "omni_engine_pages",
            "KV pages: in use, cached for the next prefix alike, and free.",
            labels=["state"],
        )
        pages.add_metric(["in_use"], stats.num_pages - stats.num_pages_free)
        pages.add_metric(["cached"], stats.num_pages_cached)
        pages.add_metric(["free"], stats.num_pages_free - stats.num_pages_cached)
        yield pages
        for name, text, value in (
            ("sequences", "Sequences with state, forks included.", stats.num_sequences),
            ("sequences_held", "Sequences on hold for slow clients.", stats.num_held),
            ("last_step_tokens", "Tokens that the latest step computed.", stats.last_step_tokens),
        ):
            yield GaugeMetricFamily(f"omni_engine_{name}", text, value)
        for name, text, value in (
            ("steps", "Steps taken.", stats.num_steps),
            ("tokens", "Tokens computed.", stats.num_tokens),
            ("tokens_cached", "Tokens of shared prefixes, not computed.", stats.num_tokens_cached),
            ("tokens_sampled", "Tokens sampled.", stats.num_tokens_sampled),
        ):
            yield CounterMetricFamily(f"omni_engine_{name}", text, value)


class SessionMetrics:
    """Watches one session. Times are monotonic seconds, passed in."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._speculations: set[str] = set()
        self._created_s: dict[str, float] = {}
        self._voice_s: float | None = None
        self._turn_ended_s: float | None = None
        self._pictures: dict[str, tuple[str, float]] = {}  # kind and time by response, to be timed
        self._told: dict[str, float] = {}  # descriptions of changes, and when

    def voice(self, now_s: float) -> None:
        """A frame that is speech has just come in."""
        self._voice_s = now_s

    def heard(self, seconds: float) -> None:
        """Audio has come in."""
        self._metrics.audio.labels("in").inc(seconds)

    def command(self, command: Command) -> None:
        match command:
            case Speculate():
                self._speculations.add(command.response_id)
            case Confirm() if command.response_id in self._speculations:
                self._speculations.discard(command.response_id)
                self._metrics.speculations.labels("confirmed").inc()
            case Cancel() if command.response_id in self._speculations:
                self._speculations.discard(command.response_id)
                self._metrics.speculations.labels("dropped").inc()

    def output(self, output: Output) -> None:
        match output:
            case Done():
                self._tokens(output.usage)
            case Seen():
                self._metrics.looks.labels(output.fault or "seen").inc()
            case AudioDelta():
                self._metrics.audio.labels("out").inc(len(output.pcm) / 2 / OUTPUT_RATE_HZ)

    def event(self, event: Mapping[str, Any], now_s: float) -> None:
        """An event is about to be queued for the client."""
        kind: str = event["type"]
        if kind == "error":
            self._metrics.errors.labels(event["error"].get("code") or "none").inc()
        elif kind == "input_audio_buffer.speech_stopped":
            self._turn_ended_s = self._voice_s
        elif kind == "input_audio_buffer.committed":
            self._metrics.turns.inc()
        elif kind == "response.created":
            self._created_s[event["response"]["id"]] = now_s
            if (picture := _picture_of(event["response"])) is not None:
                self._pictures[event["response"]["id"]] = picture
        elif kind == "response.done":
            self._done(event["response"], now_s)
        elif kind.endswith(".delta") and "response_id" in event:
            created_s = self._created_s.get(event["response_id"])
            if created_s is not None and created_s >= 0:
                self._metrics.first_delta.observe(now_s - created_s)
                self._created_s[event["response_id"]] = -1  # counted
                if (picture := self._pictures.pop(event["response_id"], None)) is not None:
                    self._metrics.descriptions.labels(picture[0]).observe(now_s - picture[1])
            if kind == "response.output_audio.delta" and self._turn_ended_s is not None:
                self._metrics.first_audio.observe(now_s - self._turn_ended_s)
                self._turn_ended_s = None

    @property
    def active_responses(self) -> int:
        return len(self._created_s)

    def _done(self, response: Mapping[str, Any], now_s: float) -> None:
        self._created_s.pop(response["id"], None)
        self._pictures.pop(response["id"], None)
        self._described(response, now_s)
        self._metrics.responses.labels(response["status"]).inc()
        details = response.get("status_details") or {}
        if details.get("reason") == "turn_detected":
            self._metrics.barge_ins.inc()

    def _tokens(self, usage: Usage) -> None:
        for kind in ("input_text", "input_audio", "cached", "output_text", "output_audio"):
            self._metrics.tokens.labels(kind).inc(getattr(usage, f"{kind}_tokens"))

    def _described(self, response: Mapping[str, Any], now_s: float) -> None:
        """Count the words of a description, and whether they are news."""
        if (picture := _picture_of(response)) is None:
            return
        parts = [part for item in response["output"] for part in item.get("content", ())]
        text = " ".join(part.get("transcript") or part.get("text") or "" for part in parts)
        self._metrics.described_words.labels(picture[0]).inc(len(text.split()))
        if picture[0] != "change" or not text:
            return
        self._told = {old: at_s for old, at_s in self._told.items() if now_s - at_s < REPEAT_S}
        if text in self._told:
            self._metrics.repeats.inc()
        self._told[text] = now_s


def _picture_of(response: Mapping[str, Any]) -> tuple[str, float] | None:
    """Kind of a description and when its picture was taken, in monotonic seconds.

    None: it is none; clients may give responses any metadata.
    """
    metadata: Mapping[str, str] = response.get("metadata") or {}
    kind, taken_ms = metadata.get(KIND_KEY, ""), metadata.get(FRAME_KEY, "")
    if kind not in get_args(Kind) or not (taken_ms.isdecimal() and len(taken_ms) < 16):
        return None
    return kind, int(taken_ms) / 1000
