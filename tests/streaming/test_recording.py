"""The recording's time line: playback as a sound card would do it."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from omni_streaming.recording import Recording, speech_end_s, write_wav

RATE = 24_000


def tone(seconds: float, level: int = 1000) -> NDArray[np.int16]:
    return np.full(round(seconds * RATE), level, np.int16)


def test_audio_plays_from_its_arrival_back_to_back() -> None:
    recording = Recording()
    assert recording.play("a", tone(1.0, 1), now_s=2.0) == 2.0
    assert recording.play("a", tone(1.0, 2), now_s=2.1) == 3.0, "it waits for the piece before"
    assert recording.play("b", tone(1.0, 3), now_s=5.0) == 5.0, "after a gap it starts at once"
    _, assistant = recording.tracks()
    at = [int(assistant[round(s * RATE)]) for s in (1.99, 2.0, 2.99, 3.0, 3.99, 4.5, 5.0, 5.99)]
    assert at == [0, 1, 1, 2, 2, 0, 3, 3]
    assert len(assistant) == 6 * RATE


def test_a_cut_ends_the_sound_and_says_how_much_of_the_item_was_heard() -> None:
    recording = Recording()
    recording.play("a", tone(1.0, 1), now_s=0.0)
    recording.play("b", tone(1.0, 2), now_s=0.1)
    recording.play("b", tone(1.0, 3), now_s=0.1)
    assert recording.cut(1.25) == ("b", 250)
    assert recording.play_end_s == pytest.approx(1.25)
    _, assistant = recording.tracks()
    assert set(np.unique(assistant)) == {1, 2}
    assert recording.cut(1.25) is None, "nothing sounds any more"
    assert recording.play("c", tone(0.5, 4), now_s=2.0) == 2.0


def test_a_cut_in_silence_does_nothing() -> None:
    recording = Recording()
    assert recording.cut(1.0) is None
    recording.play("a", tone(1.0), now_s=0.0)
    assert recording.cut(1.5) is None
    assert recording.play_end_s == 1.0


def test_both_tracks_share_one_time_line(tmp_path: Path) -> None:
    recording = Recording()
    for _ in range(100):
        recording.capture(tone(0.02, 7))
    recording.play("a", tone(0.5, 9), now_s=2.5)
    user, assistant = recording.tracks()
    assert len(user) == len(assistant) == 3 * RATE
    assert np.count_nonzero(user) == 2 * RATE
    recording.write(tmp_path / "both.wav")
    with wave.open(str(tmp_path / "both.wav")) as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (2, RATE, 3 * RATE)
        frames = np.frombuffer(file.readframes(3 * RATE), "<i2").reshape(-1, 2)
    np.testing.assert_array_equal(frames[:, 0], user)
    np.testing.assert_array_equal(frames[:, 1], assistant)


def test_an_empty_recording_has_empty_tracks(tmp_path: Path) -> None:
    user, assistant = Recording().tracks()
    assert len(user) == len(assistant) == 0
    write_wav(tmp_path / "empty.wav", user)


def test_speech_ends_where_the_level_falls_for_good() -> None:
    clip = np.concatenate(
        [tone(0.5, 0), tone(1.0, 8000), tone(0.2, 20), tone(0.3, 4000), tone(1, 0)]
    )
    assert speech_end_s(clip) == pytest.approx(2.0, abs=0.005)
    assert speech_end_s(tone(1.0, 0)) == 0.0
    assert speech_end_s(tone(0.0)) == 0.0
