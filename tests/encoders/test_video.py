"""Video: clips against transformers' processor, streams against the same frames in one piece."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from omni_encoders.image import PixelLimits
from omni_encoders.video import (
    MAX_FRAMES,
    Frame,
    VideoEncoder,
    VideoState,
    clip_size,
    sampled_frames,
)
from omni_encoders.vision import VisionTower
from picture_samples import Pixels, picture
from tiny_vision import make_reference, make_tower, relative_rms
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.video_utils import VideoMetadata

from omni.errors import CancelledError
from omni.types import EmbeddingSpan, Span, TextSpan

LIMITS = PixelLimits(min_pixels=64 * 64, max_pixels=96 * 96)


@pytest.fixture(scope="module")
def tower() -> VisionTower:
    return make_tower(make_reference())


@pytest.fixture(scope="module")
def encoder(tower: VisionTower) -> VideoEncoder:
    return VideoEncoder(tower, LIMITS)


def processor(max_pixels: int) -> Qwen3VLVideoProcessor:
    """As the video_preprocessor_config.json of Qwen3.5 sets it up, with a smaller budget."""
    return Qwen3VLVideoProcessor(
        size={"shortest_edge": 4096, "longest_edge": max_pixels},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        cap_pixels_per_frame=False,
    )


def clip(num_frames: int, height: int = 50, width: int = 70) -> list[Pixels]:
    return [picture(height, width, seed) for seed in range(num_frames)]


def at_rate(pixels: list[Pixels], frames_per_s: float, start_ms: float = 0) -> list[Frame]:
    return [Frame(p, start_ms + 1000 * i / frames_per_s) for i, p in enumerate(pixels)]


def texts(spans: list[Span]) -> list[str]:
    """The times, checked to alternate with what was seen."""
    kinds = [TextSpan, EmbeddingSpan] * (len(spans) // 2)
    assert [type(span) for span in spans] == kinds
    return [span.text for span in spans if isinstance(span, TextSpan)]


def embeddings(spans: list[Span]) -> list[torch.Tensor]:
    return [span.embeddings for span in spans if isinstance(span, EmbeddingSpan)]


@pytest.mark.parametrize("frames_per_s", [24, 29.97, 30, 60, 2, 1.5, 10])
@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 5, 17, 60, 61, 300, 9000, 90_000])
def test_frames_are_sampled_as_transformers_does(num_frames: int, frames_per_s: float) -> None:
    metadata = VideoMetadata(total_num_frames=num_frames, fps=frames_per_s)
    expected = processor(2**20).sample_frames(metadata).tolist()
    assert sampled_frames(num_frames, frames_per_s) == expected
    assert len(expected) <= MAX_FRAMES


@pytest.mark.parametrize(
    ("num_frames", "frames_per_s", "size", "max_pixels"),
    [
        (12, 24, (50, 70), 60_000),  # four frames at least, reduced
        (60, 30, (50, 70), 24 * 2**20),  # not reduced
        (61, 12, (33, 97), 24 * 2**20),
        (75, 30, (20, 150), 24 * 2**20),  # lower than a token
        (25, 10, (120, 90), 30_000),  # an odd number of frames
    ],
)
def test_clip_equals_transformers(
    num_frames: int, frames_per_s: float, size: tuple[int, int], max_pixels: int
) -> None:
    reference, pixels = make_reference(), clip(num_frames, *size)
    metadata = VideoMetadata(total_num_frames=num_frames, fps=frames_per_s)
    inputs = processor(max_pixels)(
        videos=[np.stack(pixels)],
        video_metadata=[metadata],
        do_sample_frames=True,
        return_tensors="pt",
        return_metadata=True,
    )
    with torch.inference_mode():
        expected = reference(inputs["pixel_values_videos"], grid_thw=inputs["video_grid_thw"])
    chosen = sampled_frames(num_frames, frames_per_s)
    times = Qwen3VLProcessor._calculate_timestamps(None, list(chosen), frames_per_s)  # type: ignore[arg-type]

    encoder = VideoEncoder(make_tower(reference))
    frames = at_rate(pixels, frames_per_s)
    fitted = clip_size(len(chosen), *size, multiple=32, max_pixels=max_pixels)
    state = encoder.open(every_ms=None, size=fitted)
    spans, state = encoder.encode([frames[i] for i in chosen], state)
    spans += encoder.tail(state)

    grid = [len(times), fitted[0] // 16, fitted[1] // 16]
    assert inputs["video_grid_thw"].tolist() == [grid]
    # Half a tenth either way: which way it is rounded hangs on the last bit of fps arithmetic.
    told = [float(text.removeprefix("<").removesuffix(" seconds>")) for text in texts(spans)]
    assert told == pytest.approx(times, abs=0.05 + 1e-9)
    assert relative_rms(torch.cat(embeddings(spans)), expected.pooler_output) <= 1e-5


def spans_of(encoder: VideoEncoder, frames: list[Frame], cuts: list[int]) -> list[Span]:
    state, spans = encoder.open(), []
    for start, end in pairwise([0, *cuts, len(frames)]):
        more, state = encoder.encode(frames[start:end], state)
        spans += more
    return spans + encoder.tail(state)


def assert_same(got: list[Span], expected: list[Span]) -> None:
    assert texts(got) == texts(expected)
    for a, b in zip(got, expected, strict=True):
        assert (a.start_ms, a.end_ms) == (b.start_ms, b.end_ms)
    for one, other in zip(embeddings(got), embeddings(expected), strict=True):
        assert torch.equal(one, other)


def test_a_stream_in_pieces_equals_the_stream_in_one(encoder: VideoEncoder) -> None:
    rng = random.Random(0)
    frames = at_rate(clip(23), 7.0, start_ms=130)
    frames[15:] = at_rate(clip(8, 90, 40), 5.0, start_ms=4000)  # the camera is turned
    expected = spans_of(encoder, frames, [])
    assert len(expected) >= 8
    for num_cuts in (1, 5, 22):
        assert_same(spans_of(encoder, frames, sorted(rng.sample(range(1, 23), num_cuts))), expected)


def test_a_state_is_a_value(encoder: VideoEncoder) -> None:
    frames = at_rate(clip(6), 2.0)
    _, state = encoder.encode(frames[:3], encoder.open())
    before = repr(state)
    first, _ = encoder.encode(frames[3:], state)
    encoder.tail(state)
    again, _ = encoder.encode(frames[3:], state)
    assert_same(again, first)
    assert repr(state) == before


def test_a_camera_may_reuse_its_buffer(encoder: VideoEncoder) -> None:
    pixels = clip(2, 64, 64)
    expected, _ = encoder.encode(at_rate(pixels, 2.0), encoder.open())
    buffer = pixels[0].copy()
    _, state = encoder.encode([Frame(buffer, 0)], encoder.open())
    buffer[:] = 0
    got, _ = encoder.encode([Frame(pixels[1], 500)], state)
    assert_same(got, expected)


def taken(encoder: VideoEncoder, times_ms: list[float]) -> list[float]:
    """Which of the frames at ``times_ms`` are taken."""
    state: VideoState = encoder.open()
    kept = []
    for at_ms in times_ms:
        before = state.num_frames
        _, state = encoder.encode([Frame(np.zeros((64, 64, 3), np.uint8), at_ms)], state)
        kept += [at_ms] * (state.num_frames - before)
    return kept


def test_two_frames_per_second_are_taken_of_a_fast_camera(encoder: VideoEncoder) -> None:
    assert taken(encoder, [i * 125.0 for i in range(17)]) == [0, 500, 1000, 1500, 2000]


def test_a_late_frame_does_not_delay_the_rest(encoder: VideoEncoder) -> None:
    assert taken(encoder, [90, 580, 720, 1080, 1110, 1600]) == [90, 720, 1110, 1600]


def test_every_frame_of_a_slow_camera_is_taken(encoder: VideoEncoder) -> None:
    assert taken(encoder, [0, 1300, 2600, 3900]) == [0, 1300, 2600, 3900]


def test_times_count_from_the_videos_origin(encoder: VideoEncoder) -> None:
    frames = at_rate(clip(4), 2.0, start_ms=61_000)
    spans, _ = encoder.encode(frames, encoder.open(origin_ms=60_000))
    assert texts(spans) == ["<1.2 seconds>", "<2.2 seconds>"]
    assert [(s.start_ms, s.end_ms) for s in spans[::2]] == [(61_000, 61_500), (62_000, 62_500)]


def test_an_open_moment_is_seen_with_the_frame_it_has(encoder: VideoEncoder) -> None:
    frame = clip(1)[0]
    _, state = encoder.encode([Frame(frame, 0)], encoder.open())
    _, twice = encoder.encode([Frame(frame, 0)], encoder.open(every_ms=None))
    both, _ = encoder.encode([Frame(frame, 1)], twice)
    tail = encoder.tail(state)
    assert texts(tail) == ["<0.0 seconds>"]
    assert torch.equal(embeddings(tail)[0], embeddings(both)[0])
    assert encoder.tail(encoder.open()) == []


def test_a_turned_camera_ends_the_moment(encoder: VideoEncoder) -> None:
    frames = [Frame(picture(50, 90), 0), Frame(picture(90, 50), 500), Frame(picture(90, 50), 1000)]
    spans, state = encoder.encode(frames, encoder.open())
    assert texts(spans) == ["<0.0 seconds>", "<0.8 seconds>"]
    wide, high = (span.positions for span in spans if isinstance(span, EmbeddingSpan))
    assert wide[1:].amax(1).tolist() == high[1:].amax(1).tolist()[::-1]
    assert state.pending is None


@pytest.mark.parametrize("at_ms", [500, 499])
def test_a_frame_out_of_order_is_refused(encoder: VideoEncoder, at_ms: int) -> None:
    _, state = encoder.encode(at_rate(clip(2), 2.0), encoder.open())
    with pytest.raises(ValueError, match=f"frame at {at_ms} ms came after one at 500 ms"):
        encoder.encode([Frame(clip(1)[0], at_ms)], state)


@pytest.mark.parametrize("size", [(64, 50), (0, 64), (16, 64)])
def test_a_size_between_tokens_is_refused(encoder: VideoEncoder, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="expected multiples of 32"):
        encoder.open(size=size)


def test_a_stopped_pass_leaves_the_state_to_go_on_from(encoder: VideoEncoder) -> None:
    frames = at_rate(clip(4), 2.0)
    _, state = encoder.encode(frames[:1], encoder.open())
    with pytest.raises(CancelledError):
        encoder.encode(frames[1:], state, lambda: True)
    spans, _ = encoder.encode(frames[1:], state)
    assert_same(spans, spans_of(encoder, frames, []))
