from __future__ import annotations

import numpy as np
import pytest
from omni_encoders.features import HOP_SAMPLES, log_mel, mel_filters, zero_mean_unit_variance
from transformers import WhisperFeatureExtractor

REFERENCE = WhisperFeatureExtractor()


def chirp(num_samples: int) -> np.ndarray:
    t = np.arange(num_samples) / 16_000
    tone = 0.3 * np.sin(2 * np.pi * (200 + 900 * t) * t)
    hiss = np.random.default_rng(0).standard_normal(num_samples) * 0.003
    return np.asarray(tone + hiss, dtype=np.float32)


@pytest.mark.parametrize(
    ("num_samples", "num_frames"),
    [
        (113_600, 1000),  # a clip well inside its padding
        (159_799, 1000),  # up to, just at and just behind the last frame's mirrored end
        (159_800, 1000),
        (159_801, 1000),
        (160_000, 1000),
        (1, 100),
        (200, 3),
        (480, 3),
        (16_000, 3000),
    ],
)
def test_log_mel_equals_transformers(num_samples: int, num_frames: int) -> None:
    audio = chirp(num_samples)
    padded = np.pad(audio, (0, num_frames * HOP_SAMPLES - num_samples))
    expected = REFERENCE(padded, sampling_rate=16_000, padding="do_not_pad", return_tensors="np")
    np.testing.assert_allclose(
        log_mel(audio, num_frames).numpy(), expected["input_features"][0], atol=2e-6
    )


def test_log_mel_of_silence_is_constant() -> None:
    mel = log_mel(np.zeros(16_000, dtype=np.float32), 1000)
    assert float(mel.min()) == float(mel.max()) == pytest.approx((-10 + 4) / 4)


def test_log_mel_refuses_audio_longer_than_the_window() -> None:
    with pytest.raises(ValueError, match="161 samples do not fit into 1 frames"):
        log_mel(np.zeros(161, dtype=np.float32), 1)


def test_mel_filters_equal_transformers() -> None:
    np.testing.assert_allclose(mel_filters().numpy(), REFERENCE.mel_filters.T, atol=1e-7)


def test_normalised_mel_equals_what_smart_turn_was_trained_on() -> None:
    audio = np.concatenate([np.zeros(30_000, dtype=np.float32), chirp(98_000) + 0.01])
    expected = REFERENCE(
        audio,
        sampling_rate=16_000,
        padding="max_length",
        max_length=128_000,
        do_normalize=True,
        return_tensors="np",
    )["input_features"][0]
    got = log_mel(zero_mean_unit_variance(audio), 800)
    np.testing.assert_allclose(got.numpy(), expected, atol=2e-6)
