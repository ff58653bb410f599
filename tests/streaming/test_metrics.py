"""Numbers at /metrics: the engine's, through the whole server, and those of descriptions."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import httpx
import pytest
from omni_streaming.metrics import REPEAT_S, Metrics, SessionMetrics
from prometheus_client.parser import text_string_to_metric_families
from tiny_assistant import build
from tiny_backbone import one_thread  # noqa: F401

from omni.types import Seen
from tests.streaming.driver import of_type
from tests.streaming.serving import TIMEOUT_S, Running, serving, socket
from tests.streaming.test_describing import CAR, ROOM, Camera

NUM_PAGES = 1024


async def numbers(running: Running) -> dict[str, float]:
    """The engine's samples by name, pages by state."""
    async with httpx.AsyncClient(base_url=running.url, trust_env=False) as http:
        text = (await http.get("/metrics")).text
    return {
        sample.labels.get("state", sample.name.removeprefix("omni_engine_")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("omni_engine_")
    }


async def until_engine_has(running: Running, num_sequences: int) -> dict[str, float]:
    async with asyncio.timeout(TIMEOUT_S):
        while (now := await numbers(running))["sequences"] != num_sequences:
            await asyncio.sleep(0.005)
    return now


async def test_metrics_show_what_the_engine_holds_and_has_done() -> None:
    async with serving(build=build) as running:
        before = await numbers(running)
        assert before["sequences"] == before["steps_total"] == before["in_use"] == 0
        assert before["free"] == NUM_PAGES
        async with socket(running) as client:
            session = {
                "type": "realtime",
                "output_modalities": ["text"],
                "max_output_tokens": 5,
            }
            await client.send("session.update", session=session)
            await client.ask("How are you?")
            done = await client.until("response.done")
            num_tokens = done["response"]["usage"]["total_tokens"]
            during = await until_engine_has(running, 1)
            assert during["tokens_sampled_total"] == 5
            assert during["steps_total"] >= 5
            assert during["tokens_total"] >= num_tokens - 1
            assert during["last_step_tokens"] >= 1
            assert during["in_use"] >= num_tokens // 16
            assert during["in_use"] + during["cached"] + during["free"] == NUM_PAGES
            assert during["sequences_held"] == 0
        after = await until_engine_has(running, 0)
        assert after["in_use"] == 0
        # What was sampled last may be cut, or not computed yet, when the client leaves.
        assert after["cached"] >= num_tokens // 16 - 1
        assert after["steps_total"] >= during["steps_total"]


async def test_without_an_engine_there_are_no_numbers_of_one() -> None:
    async with serving() as running:
        assert await numbers(running) == {}


def described(metrics: Metrics) -> dict[str, float]:
    """Samples of descriptions and looks, kind or outcome behind the name."""
    found = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for one in family.samples:
            label = one.labels.get("kind", one.labels.get("outcome", ""))
            found[f"{one.name.removeprefix('omni_')} {label}".strip()] = one.value
    return found


def test_descriptions_are_counted_timed_and_their_repetitions_found() -> None:
    metrics = Metrics()
    watched = SessionMetrics(metrics)
    camera = Camera(*[ROOM] * 40, replace(ROOM, things=(CAR,)))
    events = []
    for _ in range(60):
        for event in camera.watch(250):
            watched.event(event, camera.now_ms / 1000)
            events.append((event, camera.now_ms / 1000))
    kinds = camera.kinds()
    assert {"framing", "change", "hazard"} <= set(kinds)
    now = described(metrics)
    for kind in set(kinds):
        assert now[f"description_seconds_count {kind}"] == kinds.count(kind)
        assert 0 <= now[f"description_seconds_sum {kind}"] <= 0.5 * kinds.count(kind)
    whole = of_type(camera.events, "response.output_audio_transcript.done")
    words = sum(len(event["transcript"].split()) for event in whole)
    assert sum(now[f"description_words_total {kind}"] for kind in set(kinds)) == words > 10
    assert now["description_repeats_total"] == 0
    for event, at_s in events:  # all of it once more
        watched.event(event, at_s + 20)
    assert described(metrics)["description_repeats_total"] == kinds.count("change")
    for event, at_s in events:
        watched.event(event, at_s + 20 + 2 * REPEAT_S)
    assert described(metrics)["description_repeats_total"] == kinds.count("change")


@pytest.mark.parametrize(
    "metadata",
    [
        {"omni_kind": "anything", "omni_frame_ms": "5"},
        {"omni_kind": "change"},
        {"omni_kind": "change", "omni_frame_ms": "soon"},
        {"omni_kind": "change", "omni_frame_ms": "9" * 400},
    ],
)
def test_metadata_of_clients_makes_no_descriptions(metadata: dict[str, str]) -> None:
    metrics = Metrics()
    watched = SessionMetrics(metrics)
    camera = Camera()
    camera.send("response.create", response={"metadata": metadata})
    camera.finish()
    done = of_type(camera.events, "response.done")
    assert done[0]["response"]["metadata"] == metadata | {"omni_kind": "answer"}
    for event in camera.events:
        watched.event({**event, "response": {**event.get("response", {}), "metadata": metadata}}, 9)
    assert not any(name.startswith("description_seconds") for name in described(metrics))


def test_looks_are_counted_by_what_came_of_them() -> None:
    metrics = Metrics()
    watched = SessionMetrics(metrics)
    for seen in (Seen("s", "1", ROOM), Seen("s", "2", ROOM), Seen("s", "3", None, "skipped")):
        watched.output(seen)
    now = described(metrics)
    assert (now["looks_total seen"], now["looks_total skipped"]) == (2, 1)
