"""Log-mel spectrograms as Whisper hears them; used by the recogniser and the end-of-turn detector.

Knows nothing of models or streams. Letters: n samples at 16 kHz, T mel frames, F frequency bins.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

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
