"""Audio on the wire: exact whatever the pieces, and true to the standards."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from omni_streaming.audio import (
    AudioFormat,
    Decoder,
    Encoder,
    Resampler,
    Ring,
    float_to_pcm16,
    g711_decode,
    g711_encode,
    pcm16_to_float,
)

from omni.errors import InputError

RATES = [(24_000, 16_000), (8_000, 16_000), (24_000, 8_000), (16_000, 24_000), (16_000, 8_000)]
LAWS: list[AudioFormat] = ["audio/pcmu", "audio/pcma"]
SUBTYPES = {"audio/pcmu": "ULAW", "audio/pcma": "ALAW"}


def sine(rate_hz: int, hz: float, num_samples: int) -> NDArray[np.float32]:
    return np.sin(2 * np.pi * hz * np.arange(num_samples) / rate_hz).astype(np.float32)


def pieces(data: NDArray[np.float32], sizes: list[int]) -> list[NDArray[np.float32]]:
    return np.split(data, np.minimum(np.cumsum(sizes), len(data)))


@pytest.mark.parametrize(("in_hz", "out_hz"), RATES)
@given(sizes=st.lists(st.integers(0, 700), max_size=12), num_samples=st.integers(0, 3000))
@settings(max_examples=40, deadline=None)
def test_resampling_does_not_depend_on_the_pieces(
    in_hz: int, out_hz: int, sizes: list[int], num_samples: int
) -> None:
    signal = np.random.default_rng(num_samples).standard_normal(num_samples).astype(np.float32)
    whole, parts = Resampler(in_hz, out_hz), Resampler(in_hz, out_hz)
    at_once = np.concatenate([whole.push(signal), whole.flush()])
    chunked = np.concatenate([*(parts.push(p) for p in pieces(signal, sizes)), parts.flush()])
    assert np.array_equal(at_once, chunked)
    assert len(at_once) == -(-num_samples * out_hz // in_hz)


@pytest.mark.parametrize(("in_hz", "out_hz"), RATES)
def test_resampling_keeps_time_and_level_in_the_passband(in_hz: int, out_hz: int) -> None:
    for hz in (100.0, 1000.0, 0.4 * min(in_hz, out_hz)):
        resampler = Resampler(in_hz, out_hz)
        out = np.concatenate([resampler.push(sine(in_hz, hz, in_hz // 2)), resampler.flush()])
        expected = sine(out_hz, hz, len(out))
        assert np.abs(out - expected)[200:-200].max() < 0.02


@pytest.mark.parametrize(("in_hz", "out_hz"), [r for r in RATES if r[0] > r[1]])
def test_resampling_removes_what_would_alias(in_hz: int, out_hz: int) -> None:
    resampler = Resampler(in_hz, out_hz)
    out = resampler.push(sine(in_hz, 0.5 * out_hz * 1.15, in_hz // 2))
    assert np.abs(out[200:]).max() < 1e-3  # -60 dB


def test_a_resampler_is_as_new_after_flush() -> None:
    resampler = Resampler(24_000, 16_000)
    signal = sine(24_000, 440.0, 1234)
    first = np.concatenate([resampler.push(signal), resampler.flush()])
    second = np.concatenate([resampler.push(signal), resampler.flush()])
    assert np.array_equal(first, second)


@pytest.mark.parametrize("law", LAWS)
def test_g711_decodes_as_libsndfile_does(law: AudioFormat) -> None:
    codes = bytes(range(256))
    expected, _ = soundfile.read(
        io.BytesIO(codes),
        format="RAW",
        subtype=SUBTYPES[law],
        channels=1,
        samplerate=8000,
        dtype="int16",
    )
    assert np.array_equal(np.frombuffer(float_to_pcm16(g711_decode(codes, law)), "<i2"), expected)


@pytest.mark.parametrize("law", LAWS)
def test_g711_encodes_every_sample_as_the_nearest_code(law: AudioFormat) -> None:
    samples = np.arange(-32768, 32768, 37).astype("<i2")
    encoded = g711_encode(pcm16_to_float(samples.tobytes()), law)
    decoded = g711_decode(encoded, law) * 32768
    levels = g711_decode(bytes(range(256)), law) * 32768
    nearest = np.abs(samples[:, None].astype(np.float64) - levels[None]).min(axis=1)
    assert np.array_equal(np.abs(samples - decoded), nearest)


@pytest.mark.parametrize("law", LAWS)
def test_g711_survives_a_round_trip(law: AudioFormat) -> None:
    codes = bytes(range(256))
    again = g711_encode(g711_decode(codes, law), law)
    assert np.array_equal(g711_decode(again, law), g711_decode(codes, law))


def test_pcm16_survives_a_round_trip_and_clips() -> None:
    samples = np.arange(-32768, 32768, 11).astype("<i2").tobytes()
    assert float_to_pcm16(pcm16_to_float(samples)) == samples
    assert float_to_pcm16(np.array([2.0, -2.0], np.float32)) == b"\xff\x7f\x00\x80"


def test_an_odd_number_of_bytes_is_refused_and_changes_nothing() -> None:
    decoder, other = Decoder("audio/pcm"), Decoder("audio/pcm")
    with pytest.raises(InputError, match="3 bytes"):
        decoder.push(b"abc")
    data = bytes(range(200)) * 10
    assert np.array_equal(decoder.push(data), other.push(data))


@pytest.mark.parametrize("wire", ["audio/pcm", *LAWS])
def test_speech_reaches_the_client_in_its_format(wire: AudioFormat) -> None:
    encoder = Encoder(wire)
    pcm = float_to_pcm16(0.5 * sine(24_000, 440.0, 24_000))
    data = b"".join(encoder.push(pcm[at : at + 960]) for at in range(0, len(pcm), 960))
    data += encoder.flush()
    heard = Decoder(wire).push(data)
    expected = 0.5 * sine(16_000, 440.0, len(heard))
    assert len(data) == (48_000 if wire == "audio/pcm" else 8_000)
    assert np.sqrt(np.mean(np.square(heard - expected)[500:-500])) < 0.01


@given(sizes=st.lists(st.integers(0, 250), max_size=20), dropped=st.integers(0, 3000))
@settings(deadline=None)
def test_a_ring_holds_the_newest_samples_by_position(sizes: list[int], dropped: int) -> None:
    ring = Ring(100)
    stream = np.arange(sum(sizes), dtype=np.float32)
    for piece in pieces(stream, sizes):
        ring.push(piece)
    ring.drop_before(dropped)
    assert ring.end == len(stream)
    assert np.array_equal(ring.read(0, ring.end), stream[ring.start :])
    assert ring.start == min(max(len(stream) - 100, dropped, 0), len(stream))


def test_minutes_resampled_at_once_take_little_memory_beside_themselves() -> None:
    samples = np.zeros(4 * 60 * 24_000, np.float32)
    tracemalloc.start()
    resampled = Resampler(24_000, 16_000).push(samples)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes <= 3 * resampled.nbytes
