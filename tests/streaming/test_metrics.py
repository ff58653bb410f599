"""The engine's numbers at /metrics, through the whole server."""

from __future__ import annotations

import asyncio

import httpx
from prometheus_client.parser import text_string_to_metric_families
from tiny_assistant import build
from tiny_backbone import one_thread  # noqa: F401

from tests.streaming.serving import TIMEOUT_S, Running, serving, socket

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
