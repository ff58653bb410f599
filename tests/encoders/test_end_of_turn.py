from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from audio_samples import Say
from omni_encoders.end_of_turn import WINDOW_SAMPLES, EndOfTurn

from omni.errors import ModelError

QUESTIONS = (
    "What is the capital of Australia?",
    "Could you please tell me how long the train takes?",
    "I would like to order a large pizza with mushrooms.",
    "Please set an alarm for seven in the morning.",
)


@pytest.fixture(scope="module")
def detector(models: Path) -> EndOfTurn:
    return EndOfTurn(models / "smart-turn-v3")


@pytest.mark.weights
def test_finished_sentences_score_higher_than_interrupted_ones(
    detector: EndOfTurn, say: Say
) -> None:
    clips = [say(question) for question in QUESTIONS]
    finished = [detector.score(clip) for clip in clips]
    interrupted = [detector.score(clip[: int(len(clip) * 0.6)]) for clip in clips]
    assert np.mean(finished) > np.mean(interrupted) + 0.3
    assert all(0.0 <= score <= 1.0 for score in (*finished, *interrupted))


@pytest.mark.weights
def test_only_the_last_eight_seconds_count(detector: EndOfTurn, say: Say) -> None:
    recent = np.resize(say(QUESTIONS[0]), WINDOW_SAMPLES)
    earlier = say(QUESTIONS[1])
    assert detector.score(np.concatenate([earlier, recent])) == detector.score(recent)


@pytest.mark.weights
def test_no_audio_at_all_has_a_score(detector: EndOfTurn) -> None:
    assert 0.0 <= detector.score(np.zeros(0, dtype=np.float32)) <= 1.0


def test_empty_folder_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds 0 \.onnx files"):
        EndOfTurn(tmp_path)


def test_corrupt_network_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "smart-turn.onnx").write_bytes(b"\0" * 100)
    with pytest.raises(ModelError, match="is not a readable network"):
        EndOfTurn(tmp_path)
