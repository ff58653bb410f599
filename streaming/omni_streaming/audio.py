"""Audio on the wire: PCM16, G.711, streaming resampling and a ring buffer (numpy only).

Called by :mod:`omni_streaming.hearing` (client to 16 kHz) and :mod:`omni_streaming.response`
(24 kHz to client). Everything is exact with respect to chunking: feeding a signal in any pieces
gives the very samples that feeding it at once gives.

G.711: ITU-T Rec. G.711 (11/88). 8 bits a sample, 8 kHz; mu-law covers +-32124, A-law +-32256 on
the 16-bit scale used here.
"""

from __future__ import annotations

from functools import cache
from math import gcd
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from omni.errors import InputError
from omni.types import INPUT_RATE_HZ, OUTPUT_RATE_HZ

AudioFormat = Literal["audio/pcm", "audio/pcmu", "audio/pcma"]

FORMAT_RATE_HZ: dict[str, int] = {"audio/pcm": 24_000, "audio/pcmu": 8_000, "audio/pcma": 8_000}
FORMAT_SAMPLE_BYTES: dict[str, int] = {"audio/pcm": 2, "audio/pcmu": 1, "audio/pcma": 1}

INT16_SCALE = 32768.0

_ZERO_CROSSINGS = 16  # half length of the filter in periods of its cutoff
_PASSBAND = 0.92  # cutoff as a share of the lower Nyquist frequency
_KAISER_BETA = 8.0  # about 80 dB of stop-band attenuation
_PIECE_SAMPLES = 2**16  # resampled at once: the intermediates are ten times as large


def pcm16_to_float(pcm: bytes) -> NDArray[np.float32]:
    """Little-endian int16 bytes -> [n] float32 in [-1, 1).

    Raises:
        InputError: an odd number of bytes.
    """
    if len(pcm) % 2:
        raise InputError(f"{len(pcm)} bytes of PCM16 is odd; a sample is 2 bytes")
    scaled: NDArray[np.float32] = np.frombuffer(pcm, "<i2").astype(np.float32)
    scaled /= np.float32(INT16_SCALE)
    return scaled


def float_to_pcm16(samples: NDArray[np.float32]) -> bytes:
    """[n] float32 -> little-endian int16 bytes, rounded and clipped."""
    scaled = np.clip(np.rint(samples * INT16_SCALE), -32768, 32767)
    return bytes(scaled.astype("<i2").tobytes())


@cache
def _decode_table(law: str) -> NDArray[np.int16]:
    """[256] int16: what each G.711 code stands for."""
    code = np.arange(256, dtype=np.int32)
    if law == "audio/pcmu":
        inverted = ~code & 0xFF
        exponent = (inverted >> 4) & 7
        magnitude = ((((inverted & 15) << 3) + 0x84) << exponent) - 0x84
        sign = np.where(inverted & 0x80, -1, 1)
    else:
        toggled = code ^ 0x55  # even bits are inverted on the line
        exponent = (toggled >> 4) & 7
        mantissa = ((toggled & 15) << 4) + 8
        magnitude = np.where(
            exponent == 0, mantissa, (mantissa + 0x100) << np.maximum(exponent - 1, 0)
        )
        sign = np.where(toggled & 0x80, 1, -1)
    table: NDArray[np.int16] = (sign * magnitude).astype(np.int16)
    return table


@cache
def _encode_table(law: str) -> NDArray[np.uint8]:
    """[65536] uint8 indexed by the int16's bits: the code nearest to each sample."""
    table = _decode_table(law).astype(np.int32)
    order = np.argsort(table, kind="stable")
    values = table[order]
    boundaries = (values[1:] + values[:-1] + 1) // 2  # a tie goes up
    samples = np.arange(65536, dtype=np.uint16).view(np.int16).astype(np.int32)
    return order[np.searchsorted(boundaries, samples, side="right")].astype(np.uint8)


def g711_decode(data: bytes, law: AudioFormat) -> NDArray[np.float32]:
    """G.711 bytes -> [n] float32 at 8 kHz."""
    samples: NDArray[np.float32] = _decode_table(law)[np.frombuffer(data, np.uint8)].astype(
        np.float32
    )
    samples /= np.float32(INT16_SCALE)
    return samples


def g711_encode(samples: NDArray[np.float32], law: AudioFormat) -> bytes:
    """[n] float32 at 8 kHz -> G.711 bytes, each the nearest code."""
    bits = np.frombuffer(float_to_pcm16(samples), "<u2")
    return bytes(_encode_table(law)[bits].tobytes())


@cache
def _polyphase(up: int, down: int) -> NDArray[np.float32]:
    """[up, num_taps] taps of a Kaiser-windowed sinc; row p makes the outputs of phase p."""
    widest = max(up, down)
    half = _ZERO_CROSSINGS * widest // up * up  # in samples at rate * up; a multiple of up
    n = np.arange(-half, half + up)  # length is a multiple of up; the tail is past the window
    cutoff = _PASSBAND / widest
    window = np.where(
        np.abs(n) <= half,
        np.kaiser(2 * half + 1, _KAISER_BETA)[np.clip(n + half, 0, 2 * half)],
        0.0,
    )
    taps = up * cutoff * np.sinc(cutoff * n) * window
    rows = taps.reshape(-1, up).T  # [up, num_taps]
    unit: NDArray[np.float64] = rows / rows.sum(axis=1, keepdims=True)  # each phase passes DC
    return unit.astype(np.float32)


class Resampler:
    """Streaming rational resampler, linear phase, aligned: output n is input n * in / out.

    State is the tail of the input; ``push`` in any pieces then ``flush`` gives
    ``ceil(num_in * out_hz / in_hz)`` samples, bitwise independent of the pieces. It lags by half
    its filter (about 1 ms at 24 kHz), which ``flush`` pays back.
    """

    def __init__(self, in_hz: int, out_hz: int) -> None:
        divisor = gcd(in_hz, out_hz)
        self._up, self._down = out_hz // divisor, in_hz // divisor
        self.reset()

    def reset(self) -> None:
        """Forget everything pushed."""
        self._taps = _polyphase(self._up, self._down)
        self._half = (self._taps.shape[1] - 1) // 2 if self._up * self._down > 1 else 0
        self._tail: NDArray[np.float32] = np.zeros(self._half, np.float32)
        self._tail_start = -self._half  # input index of tail[0]
        self._num_in = 0
        self._num_out = 0

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take [n] float32, give the outputs that are now determined, [m] float32."""
        if self._up == self._down:
            self._num_in += len(samples)
            self._num_out = self._num_in
            return samples
        pieces = []
        for start in range(0, len(samples), _PIECE_SAMPLES):
            piece = samples[start : start + _PIECE_SAMPLES]
            self._num_in += len(piece)
            pieces.append(self._run(piece, self._num_in - self._half))
        return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)

    def flush(self) -> NDArray[np.float32]:
        """The rest, as if silence followed; the resampler is as new afterwards."""
        if self._up == self._down:
            return np.zeros(0, np.float32)
        rest = self._run(np.zeros(self._half + 1, np.float32), self._num_in)
        self.reset()
        return rest

    def _run(self, samples: NDArray[np.float32], end: int) -> NDArray[np.float32]:
        """Outputs whose centre lies before input index ``end``."""
        up, down, half = self._up, self._down, self._half
        x = np.concatenate([self._tail, samples.astype(np.float32, copy=False)])
        first = self._num_out
        last = max(first, -(-max(end, 0) * up // down))
        out = np.zeros(last - first, np.float32)
        for phase in range(up):
            # Outputs n with n * down = phase (mod up); their centre is input (n * down) // up.
            n = np.arange(first, last)
            n = n[(n * down) % up == phase]
            if not len(n):
                continue
            centre = (n * down) // up - self._tail_start
            start, step = int(centre[0]), int(centre[1] - centre[0]) if len(n) > 1 else 1
            accumulated = np.zeros(len(n), np.float32)
            # One tap at a time: sums in a fixed order, so pieces cannot change a bit of it.
            for k, tap in enumerate(self._taps[phase]):
                begin = start + half - k
                accumulated += tap * x[begin : begin + step * (len(n) - 1) + 1 : step]
            out[n - first] = accumulated
        self._num_out = last
        keep_from = max((last * down) // up - half - self._tail_start, 0)
        self._tail = x[keep_from:].copy()  # not a view: a large push must not live on
        self._tail_start += keep_from
        return out


class Decoder:
    """Client audio of one format -> float32 mono 16 kHz, streaming."""

    def __init__(self, audio_format: AudioFormat) -> None:
        self.format: AudioFormat = audio_format
        self._resampler = Resampler(FORMAT_RATE_HZ[audio_format], INPUT_RATE_HZ)

    def push(self, data: bytes) -> NDArray[np.float32]:
        """Bytes of whole samples -> the samples that are now determined.

        Raises:
            InputError: an odd number of bytes of PCM16; the state is unchanged.
        """
        if self.format == "audio/pcm":
            return self._resampler.push(pcm16_to_float(data))
        return self._resampler.push(g711_decode(data, self.format))

    def flush(self) -> NDArray[np.float32]:
        """The last samples, about 1 ms."""
        return self._resampler.flush()


class Encoder:
    """int16 mono 24 kHz speech -> client audio of one format, streaming."""

    def __init__(self, audio_format: AudioFormat, in_hz: int = OUTPUT_RATE_HZ) -> None:
        self.format: AudioFormat = audio_format
        self._resampler = Resampler(in_hz, FORMAT_RATE_HZ[audio_format])
        self._is_copy = audio_format == "audio/pcm" and in_hz == OUTPUT_RATE_HZ

    def push(self, pcm: bytes) -> bytes:
        """int16 bytes at the input rate -> bytes in the client's format."""
        if self._is_copy:
            return pcm
        return self._encode(self._resampler.push(pcm16_to_float(pcm)))

    def flush(self) -> bytes:
        """The last samples."""
        return b"" if self._is_copy else self._encode(self._resampler.flush())

    def _encode(self, samples: NDArray[np.float32]) -> bytes:
        if self.format == "audio/pcm":
            return float_to_pcm16(samples)
        return g711_encode(samples, self.format)


class Ring:
    """The last ``capacity`` samples of a stream, addressed by their index in the stream."""

    def __init__(self, capacity: int) -> None:
        self._data: NDArray[np.float32] = np.zeros(capacity, np.float32)
        self.start = 0
        """Index of the oldest sample held."""
        self.end = 0
        """Index after the newest sample held."""

    def push(self, samples: NDArray[np.float32]) -> None:
        """Append [n] float32; the oldest samples give way."""
        capacity = len(self._data)
        kept = samples[-capacity:]
        at = (self.end + len(samples) - len(kept)) % capacity
        head = min(len(kept), capacity - at)
        self._data[at : at + head] = kept[:head]
        self._data[: len(kept) - head] = kept[head:]
        self.end += len(samples)
        self.start = max(self.start, self.end - capacity)

    def read(self, start: int, end: int) -> NDArray[np.float32]:
        """A copy of samples ``start`` to ``end``, clipped to what is held."""
        start, end = max(start, self.start), min(end, self.end)
        if start >= end:
            return np.zeros(0, np.float32)
        return self._data[np.arange(start, end) % len(self._data)]

    def drop_before(self, index: int) -> None:
        """Forget samples before ``index``."""
        self.start = min(max(self.start, index), self.end)
