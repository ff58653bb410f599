"""Clips: as cameras store them, large, turned, labelled in any encoding, damaged."""

from __future__ import annotations

import contextlib
import gc
import io
import struct

import av
import numpy as np
import omni_encoders.clip
import pytest
from numpy.typing import NDArray
from omni_encoders.clip import read_clip
from picture_samples import file_of
from PIL import Image

from omni.errors import InputError

ONE = 1 << 16  # in 16.16 fixed point
WIDTH, HEIGHT = 64, 32


def mp4(times_ms: list[int], **metadata: str) -> bytes:
    """A clip of one picture, whose quarters have four colours, shown at ``times_ms``."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        container.metadata.update(metadata)
        stream = container.add_stream("mpeg4", rate=1000)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for at_ms in times_ms:
            frame = av.VideoFrame.from_ndarray(quarters(), format="rgb24")
            frame.pts = at_ms
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def quarters() -> NDArray[np.uint8]:
    """[H, W, 3]: grey, red / green, blue."""
    colours = np.array([[[90] * 3, [200, 0, 0]], [[0, 200, 0], [0, 0, 200]]], np.uint8)
    return colours.repeat(HEIGHT // 2, axis=0).repeat(WIDTH // 2, axis=1)


def turned(data: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """The file with another matrix in its track header: x' = ax + cy, y' = bx + dy."""
    matrix = struct.pack(">9i", a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, 1 << 30)
    at = data.index(b"tkhd") + 44  # after version, times, track, duration, layer and volume
    return data[:at] + matrix + data[at + len(matrix) :]


@pytest.mark.parametrize(
    ("matrix", "upright"),
    [
        ((1, 0, 0, 1), quarters()),
        ((0, 1, -1, 0), np.rot90(quarters(), -1)),
        ((-1, 0, 0, -1), np.rot90(quarters(), 2)),
        ((0, -1, 1, 0), np.rot90(quarters(), 1)),
        ((-1, 0, 0, 1), quarters()[:, ::-1]),
        ((0, 1, 1, 0), quarters().swapaxes(0, 1)),
    ],
)
def test_a_clip_is_upright_however_the_camera_was_held(
    matrix: tuple[int, int, int, int], upright: NDArray[np.uint8]
) -> None:
    (frame,) = read_clip(turned(mp4([0]), *matrix))
    assert frame.pixels.shape == upright.shape
    centres = slice(8, None, 16)  # compression blurs the edges between colours
    seen, expected = (x[centres, centres].astype(int) for x in (frame.pixels, upright))
    assert np.abs(seen - expected).max() < 30


@pytest.mark.parametrize(("orientation", "quarters_left"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_a_clip_of_photos_is_upright(orientation: int, quarters_left: int) -> None:
    """Motion JPEG, whose frames carry what cameras note of photos: none of it is understood."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = file_of(Image.fromarray(quarters()), "JPEG", exif=exif, subsampling=0)
    frame, *_ = read_clip(photo * 3)
    expected = np.rot90(quarters(), quarters_left)
    assert frame.pixels.shape == expected.shape
    centres = np.s_[8::16, 8::16]
    assert np.abs(frame.pixels[centres].astype(int) - expected[centres]).max() < 20


def test_frames_of_a_large_clip_share_a_bound_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(omni_encoders.clip, "MAX_CLIP_PIXELS", 4 * 512)
    frames = read_clip(turned(mp4([0, 400, 800, 1200]), 0, 1, -1, 0))
    assert [frame.pixels.shape for frame in frames] == [(32, 16, 3)] * 4
    quarter = np.rot90(quarters(), -1)[8::16, 8::16].astype(int)
    assert np.abs(frames[0].pixels[4::8, 4::8].astype(int) - quarter).max() < 30


def test_decoded_frames_are_let_go_without_waiting_for_a_collection() -> None:
    data = turned(mp4([500 * i for i in range(20)]), 0, 1, -1, 0)
    gc.collect()
    gc.disable()
    try:
        frames = read_clip(data)
        num_alive = sum(type(thing) is av.VideoFrame for thing in gc.get_objects())
    finally:
        gc.enable()
    assert len(frames) > 10
    assert num_alive <= 2  # the first, which was asked how it was held, and the last


def test_a_huge_clip_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(omni_encoders.clip, "MAX_FRAME_PIXELS", 2000)
    with pytest.raises(InputError, match="has 64x32 pixels, expected at most 2,000; reduce it"):
        read_clip(mp4([0]))


def test_a_title_in_an_old_encoding_does_not_spoil_the_clip() -> None:
    data = mp4([0, 400], title="Ferien")
    assert read_clip(data.replace(b"Ferien", b"Caf\xe9! "))[-1].at_ms == 400


def test_random_damage_never_raises_anything_but_an_input_error() -> None:
    rng = np.random.default_rng(4)
    data = mp4([0, 400, 800, 1200], title="Ferien")
    for _ in range(150):
        spoilt = bytearray(data)
        for at in rng.integers(0, len(data), 6):
            spoilt[at] = rng.integers(0, 256)
        with contextlib.suppress(InputError):
            assert read_clip(bytes(spoilt))


def test_a_minute_is_seen_and_no_more() -> None:
    assert read_clip(mp4([0, 30_000, 60_000]))[-1].at_ms == 60_000
    with pytest.raises(InputError, match="is 61 s long, expected at most 60 s"):
        read_clip(mp4([0, 30_000, 60_040]))


def test_a_frame_long_after_the_others_is_seen_when_it_was_shown() -> None:
    frames = read_clip(mp4([5000, 5040, 5080, 59_000]))
    assert [round(frame.at_ms) for frame in frames] == [0, 40, 80, 54_000]
