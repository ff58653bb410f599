from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from audio_samples import Audio, Say, noise, silence
from omni_encoders.vad import FRAME_SAMPLES, VoiceActivity

from omni.errors import ModelError


def probabilities(voice: VoiceActivity, audio: Audio) -> np.ndarray:
    state = voice.open()
    whole = len(audio) // FRAME_SAMPLES * FRAME_SAMPLES
    return np.array([voice.probability(f, state) for f in audio[:whole].reshape(-1, FRAME_SAMPLES)])


def test_speech_is_told_from_silence_and_noise(voice: VoiceActivity, say: Say) -> None:
    speech = say("The weather in the mountains was very cold this morning.")
    spoken = np.flatnonzero(np.abs(speech) > 0.02)
    assert np.mean(probabilities(voice, speech[spoken[0] : spoken[-1]]) > 0.5) > 0.9
    assert probabilities(voice, silence(3)).max() < 0.2
    assert probabilities(voice, noise(3, 0.1)).max() < 0.3


def test_streams_that_share_a_network_do_not_hear_each_other(
    voice: VoiceActivity, say: Say
) -> None:
    audio = say("Two people are talking at once.")[: 40 * FRAME_SAMPLES]
    other = noise(2, 0.2)
    alone = probabilities(voice, audio)
    state, other_state = voice.open(), voice.open()
    together = []
    for i in range(40):
        part = slice(i * FRAME_SAMPLES, (i + 1) * FRAME_SAMPLES)
        together.append(voice.probability(audio[part], state))
        voice.probability(other[part], other_state)
    assert together == alone.tolist()


def test_frame_of_another_length_is_refused(voice: VoiceActivity) -> None:
    with pytest.raises(ValueError, match=r"shape \(160,\)"):
        voice.probability(np.zeros(160, dtype=np.float32), voice.open())


def test_corrupt_network_is_a_model_error(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a network")
    with pytest.raises(ModelError, match=r"broken\.onnx is not a readable"):
        VoiceActivity(path)
