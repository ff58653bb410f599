"""The score of a turn's end, from the words' completeness and the voice's sound."""

from __future__ import annotations

import pytest
from omni_streaming.settings import LONGEST_WAIT_MS, Detection
from omni_streaming.turns import TurnDetector

from omni.assistant.listening import turn_score
from omni.config import TurnConfig


def wait_ms(acoustic: float | None, completeness: float | None) -> int:
    detection = Detection(
        kind="semantic_vad",
        threshold=0.5,
        prefix_padding_ms=300,
        silence_duration_ms=400,
        longest_wait_ms=LONGEST_WAIT_MS["auto"],
        idle_timeout_ms=None,
        create_response=True,
        interrupt_response=True,
    )
    detector = TurnDetector(detection, TurnConfig())
    detector.score(turn_score(acoustic, completeness))
    return detector.wait_ms


@pytest.mark.parametrize("completeness", [0.22, 0.5, 0.9])
@pytest.mark.parametrize("acoustic", [0.02, 0.5, 0.98])
def test_a_whole_sentence_is_answered_soon_whatever_the_voice_says(
    acoustic: float, completeness: float
) -> None:
    assert wait_ms(acoustic, completeness) <= 350


@pytest.mark.parametrize("completeness", [0.0, 0.005, 0.02])
@pytest.mark.parametrize("acoustic", [0.02, 0.5, 0.98])
def test_half_a_sentence_may_pause_for_a_second(acoustic: float, completeness: float) -> None:
    assert wait_ms(acoustic, completeness) > 1000


def test_a_voice_that_surely_sounds_finished_is_not_kept_waiting_for_seconds() -> None:
    assert wait_ms(0.95, 0.001) <= 1300 < wait_ms(0.3, 0.001) <= 2500


def test_without_words_the_sound_decides() -> None:
    assert turn_score(0.7, None) == 0.7
    assert turn_score(None, None) == 0.5


def test_the_score_grows_with_both() -> None:
    steps = [0.01, 0.1, 0.3, 0.6, 0.9]
    for other in steps:
        by_words = [turn_score(other, step) for step in steps]
        by_sound = [turn_score(step, other) for step in steps]
        assert by_words == sorted(by_words)
        assert by_sound == sorted(by_sound)
