"""The send queue: order, bounds, and what may be dropped."""

from __future__ import annotations

import base64
import itertools
import json
from typing import Any

import pytest
from omni_streaming.send_queue import MAX_AUDIO_CHARS, MAX_FRAME_BYTES, SendQueue


@pytest.fixture
def queue() -> SendQueue:
    numbers = itertools.count()
    return SendQueue(10_000, lambda prefix: f"{prefix}_{next(numbers)}")


def audio(response_id: str, pcm: bytes, event_id: str = "event_a") -> dict[str, Any]:
    return {
        "type": "response.output_audio.delta",
        "event_id": event_id,
        "response_id": response_id,
        "item_id": "item_1",
        "output_index": 0,
        "content_index": 0,
        "delta": base64.b64encode(pcm).decode(),
    }


def done(response_id: str, status: str) -> dict[str, Any]:
    return {
        "type": "response.done",
        "event_id": "event_d",
        "response": {"id": response_id, "status": status},
    }


def drain(queue: SendQueue) -> list[dict[str, Any]]:
    events = []
    while (frame := queue.get()) is not None:
        assert len(frame.encode()) <= MAX_FRAME_BYTES
        events.append(json.loads(frame))
    return events


def test_events_come_out_as_they_went_in(queue: SendQueue) -> None:
    events = [audio("r", bytes(100)), done("r", "completed"), {"type": "x", "event_id": "é"}]
    for event in events:
        queue.put(event)
    assert drain(queue) == events
    assert queue.num_bytes == 0
    assert not queue


def test_long_audio_is_split_without_losing_or_moving_a_sample(queue: SendQueue) -> None:
    pcm = bytes(i % 251 for i in range(2 * 500_001))
    queue.put(audio("r", pcm))
    parts = drain(queue)
    assert len(parts) > 5
    assert all(len(part["delta"]) <= MAX_AUDIO_CHARS for part in parts)
    pieces = [base64.b64decode(part["delta"], validate=True) for part in parts]
    assert all(len(piece) % 2 == 0 for piece in pieces), "every delta holds whole samples"
    assert b"".join(pieces) == pcm
    assert len({part["event_id"] for part in parts}) == len(parts)
    same = [{k: v for k, v in part.items() if k not in ("delta", "event_id")} for part in parts]
    assert all(other == same[0] for other in same)


def test_a_cancelled_response_loses_its_unsent_audio_and_nothing_else(queue: SendQueue) -> None:
    text = {
        "type": "response.output_audio_transcript.delta",
        "event_id": "event_t",
        "response_id": "gone",
        "delta": "Hello",
    }
    other = audio("other", bytes(10))
    for event in (audio("gone", bytes(400_000)), text, other, done("gone", "cancelled")):
        queue.put(event)
    assert drain(queue) == [text, other, done("gone", "cancelled")]
    assert queue.num_dropped == 5
    assert queue.num_bytes == 0


@pytest.mark.parametrize("status", ["completed", "incomplete", "failed"])
def test_audio_of_a_response_that_was_not_cancelled_is_kept(queue: SendQueue, status: str) -> None:
    queue.put(audio("r", bytes(100)))
    queue.put(done("r", status))
    assert drain(queue)[0]["type"] == "response.output_audio.delta"


def test_a_full_queue_still_takes_control_events(queue: SendQueue) -> None:
    queue.put(audio("r", bytes(9_000)))
    assert queue.is_full
    assert not queue.has_room
    queue.put(done("r", "completed"))
    queue.get()
    assert queue.has_room
    assert not queue.is_full
    assert drain(queue) == [done("r", "completed")]


def test_an_event_no_client_would_take_goes_out_as_an_error(queue: SendQueue) -> None:
    queue.put(
        {
            "type": "conversation.item.retrieved",
            "event_id": "event_1",
            "item": "x" * MAX_FRAME_BYTES,
        }
    )
    (event,) = drain(queue)
    assert event["type"] == "error"
    assert event["event_id"] == "event_1"
    assert "conversation.item.retrieved" in event["error"]["message"]


def test_text_is_not_escaped_and_its_bytes_are_counted(queue: SendQueue) -> None:
    event = {"type": "x", "event_id": "e", "text": "\U0001f600" * 125_000}
    queue.put(event)
    assert 500_000 < queue.num_bytes < 500_100
    assert drain(queue) == [event]
    assert queue.num_bytes == 0


def test_half_of_a_surrogate_pair_still_makes_a_frame(queue: SendQueue) -> None:
    event = {"type": "x", "event_id": "e", "arguments": "\ud83d é"}
    queue.put(event)
    assert drain(queue) == [event]


def test_a_number_that_is_not_finite_is_never_sent(queue: SendQueue) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        queue.put({"type": "x", "event_id": "e", "speed": float("inf")})
