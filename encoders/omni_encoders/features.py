"""What networks hear and see: log-mel spectrograms of audio, patches of pictures.

Log-mel as Whisper hears it serves the recogniser and the end-of-turn detector; sizes, resizing and
patches as Qwen's vision towers see them serve :mod:`omni_encoders.image` and
:mod:`omni_encoders.video`. Knows nothing of models or streams.

Letters: n samples at 16 kHz, T mel frames, F frequency bins; [H, W] pixels, P patch side.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from omni.errors import InputError

SAMPLE_RATE_HZ = 16_000
N_FFT = 400  # 25 ms analysis window
HOP_SAMPLES = 160  # 10 ms between mel frames
NUM_MELS = 80
DYNAMIC_RANGE_DECADES = 8.0  # what lies further below the clip's maximum is cut off

_POWER_FLOOR = 1e-10
# The Slaney mel scale: linear up to 1 kHz (15 mel), then 27 steps per factor of 6.4.
_LINEAR_HZ_PER_MEL = 200.0 / 3.0
_BREAK_HZ = 1000.0
_BREAK_MEL = _BREAK_HZ / _LINEAR_HZ_PER_MEL
_LOG_STEP = np.log(6.4) / 27.0

MAX_ASPECT_RATIO = 200  # longer strips were never trained on; the published processors refuse too
_MID_GREY = 255 / 2  # mean and deviation 0.5 of values in [0, 1], on the scale of a byte


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    logarithmic = _BREAK_HZ * np.exp(_LOG_STEP * (mel - _BREAK_MEL))
    return np.where(mel < _BREAK_MEL, mel * _LINEAR_HZ_PER_MEL, logarithmic)


@lru_cache(maxsize=4)
def mel_filters(num_mels: int = NUM_MELS) -> torch.Tensor:
    """Triangular mel filters of equal area (Slaney): [num_mels, F = N_FFT / 2 + 1], float32."""
    nyquist_hz = SAMPLE_RATE_HZ / 2
    top_mel = _BREAK_MEL + np.log(nyquist_hz / _BREAK_HZ) / _LOG_STEP
    edges_hz = _mel_to_hz(np.linspace(0.0, top_mel, num_mels + 2))
    bins_hz = np.linspace(0.0, nyquist_hz, N_FFT // 2 + 1)
    low, centre, high = edges_hz[:-2, None], edges_hz[1:-1, None], edges_hz[2:, None]
    rising = (bins_hz - low) / (centre - low)
    falling = (high - bins_hz) / (high - centre)
    triangles = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (high - low))
    return torch.from_numpy(triangles.astype(np.float32))


@lru_cache(maxsize=1)
def _window() -> torch.Tensor:
    return torch.hann_window(N_FFT)


def log_mel(audio: NDArray[np.float32], num_frames: int, num_mels: int = NUM_MELS) -> torch.Tensor:
    """Log-mel spectrogram of ``audio`` [n] as if zero-padded to ``num_frames`` x 10 ms.

    Equals transformers' WhisperFeatureExtractor on the padded audio; the frames that see only
    padding are filled in without a Fourier transform, so a short clip costs what it lasts.

    Returns:
        [num_mels, num_frames] float32, normalised as (max(log10, clip maximum - 8) + 4) / 4.

    Raises:
        ValueError: ``audio`` is longer than ``num_frames``.
    """
    num_samples = len(audio)
    if num_samples > num_frames * HOP_SAMPLES:
        raise ValueError(
            f"{num_samples} samples do not fit into {num_frames} frames of {HOP_SAMPLES} samples"
        )
    # Frame t is centred at t * HOP; both ends of the *padded* clip are mirrored (centred STFT).
    half = N_FFT // 2
    num_heard = min(num_frames, (num_samples + half) // HOP_SAMPLES + 1)
    signal = torch.zeros(max((num_heard - 1) * HOP_SAMPLES + half, half + 1))
    given = torch.from_numpy(np.ascontiguousarray(audio, dtype=np.float32))
    signal[:num_samples] = given[: len(signal)]
    left = signal[1 : half + 1].flip(0)
    frames = torch.cat([left, signal]).unfold(0, N_FFT, HOP_SAMPLES)[:num_heard]  # [T', N_FFT]
    if num_samples > num_frames * HOP_SAMPLES - half:  # the last frame reaches the right mirror
        padded = torch.zeros(num_frames * HOP_SAMPLES)
        padded[:num_samples] = given
        mirrored = torch.cat([left, padded, padded[-half - 1 : -1].flip(0)])
        frames = mirrored.unfold(0, N_FFT, HOP_SAMPLES)[:num_frames]
    spectrum = torch.fft.rfft(frames * _window())  # [T', F]
    power = spectrum.real.square() + spectrum.imag.square()
    log_power = (mel_filters(num_mels) @ power.T).clamp_(min=_POWER_FLOOR).log10_()
    maximum = float(log_power.max())
    floor = maximum - DYNAMIC_RANGE_DECADES
    padding = max(float(np.log10(_POWER_FLOOR)), floor)
    out = torch.full((num_mels, num_frames), (padding + 4.0) / 4.0)
    out[:, : len(frames)] = (log_power.clamp_(min=floor) + 4.0) / 4.0
    return out


def zero_mean_unit_variance(audio: NDArray[np.float32]) -> NDArray[np.float32]:
    """The waveform [n] shifted to mean 0 and scaled to variance 1 (1e-7 added, as wav2vec2 does).

    Divides as the published extractor does, to the last bit: smart-turn's int8 layers can move a
    middling score by 0.1 when an input moves by 1e-7.
    """
    return np.asarray((audio - audio.mean()) / np.sqrt(audio.var() + 1e-7), dtype=np.float32)


def fitted_size(
    height: int,
    width: int,
    *,
    multiple: int,
    min_pixels: int,
    max_pixels: int,
    num_frames: int = 1,
    counted_frames: int = 1,
) -> tuple[int, int]:
    """The size [H, W] at which a picture is seen: about its shape, each side a ``multiple``.

    Both limits hold for all frames together: ``num_frames`` of them, which count as
    ``counted_frames`` when a size is tested against the limits (video pairs them).

    Raises:
        InputError: one side is more than :data:`MAX_ASPECT_RATIO` times the other.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise InputError(
            f"a picture of {width}x{height} is too long, expected at most "
            f"{MAX_ASPECT_RATIO}:1; cut it"
        )
    # Python's round, like the published processors': a half goes to the even neighbour.
    rounded_height = round(height / multiple) * multiple
    rounded_width = round(width / multiple) * multiple
    num_pixels = counted_frames * rounded_height * rounded_width
    if num_pixels > max_pixels:
        shrink = math.sqrt(num_frames * height * width / max_pixels)
        rounded_height = max(multiple, math.floor(height / shrink / multiple) * multiple)
        rounded_width = max(multiple, math.floor(width / shrink / multiple) * multiple)
    elif num_pixels < min_pixels:
        grow = math.sqrt(min_pixels / (num_frames * height * width))
        rounded_height = math.ceil(height * grow / multiple) * multiple
        rounded_width = math.ceil(width * grow / multiple) * multiple
    return rounded_height, rounded_width


def resize(pixels: NDArray[np.uint8], size: tuple[int, int]) -> torch.Tensor:
    """``pixels`` [H, W, 3] at ``size`` (height, width): uint8 [3, height, width].

    Bicubic with antialiasing in the bytes' own domain, which is what torchvision does on a CPU and
    what the vision towers were trained on; OpenCV's bicubic has no antialiasing.
    """
    given = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(2, 0, 1)
    if tuple(given.shape[1:]) == size:
        return given.clone()  # a camera may use its buffer again
    return torch.nn.functional.interpolate(
        given[None], size, mode="bicubic", antialias=True, align_corners=False
    )[0]


def patchify(frames: torch.Tensor, patch: int, temporal_patch: int, merge: int) -> torch.Tensor:
    """Cut ``frames`` uint8 [T, 3, H, W] into normalised patches, one per row.

    T is a multiple of ``temporal_patch``, H and W of ``patch`` x ``merge``. Rows go frame group by
    frame group, then by block of ``merge`` x ``merge`` patches that one token will hold.

    Returns:
        float32 [T / temporal_patch * H / patch * W / patch, 3 * temporal_patch * patch * patch]
        in [-1, 1]; within a row: channel, frame, row, column.
    """
    num_frames, channels, height, width = frames.shape
    cells = frames.to(torch.float32).sub_(_MID_GREY).div_(_MID_GREY)
    cells = cells.reshape(
        num_frames // temporal_patch,
        temporal_patch,
        channels,
        height // patch // merge,
        merge,
        patch,
        width // patch // merge,
        merge,
        patch,
    )
    cells = cells.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)  # [T', H', W', merge, merge, C, t, P, P]
    return cells.reshape(-1, channels * temporal_patch * patch * patch)
