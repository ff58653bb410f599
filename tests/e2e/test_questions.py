"""Spoken questions get right spoken answers through the socket; the examples run as written."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from omni_encoders.recogniser import Recogniser
from omni_streaming.assembly import assemble
from omni_streaming.client import Client
from omni_streaming.recording import write_wav
from scipy.signal import resample_poly

from omni.benchmarks import material
from omni.benchmarks.conversation import SETTINGS, to_pcm
from omni.benchmarks.questions import QUESTIONS
from omni.config import Config, home
from omni.store import is_present, path
from omni.types import INPUT_RATE_HZ, OUTPUT_RATE_HZ
from tests.streaming.serving import serving_on_a_thread

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("qwen2.5-coder-0.5b", "whisper-base", "smart-turn-v3")
pytestmark = [
    pytest.mark.weights,
    pytest.mark.skipif(
        not all(is_present(name, home(Config())) for name in NAMES),
        reason="the embedded weights are absent: run `omni fetch`",
    ),
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving_on_a_thread(assemble(Config())) as url:
        yield url


@pytest.mark.slow
async def test_most_spoken_questions_are_answered_right_and_aloud(url: str) -> None:
    recogniser = Recogniser(path("whisper-base", home(Config())), threads=2)
    num_right, said = 0, []
    for number, question in enumerate(QUESTIONS[:5]):
        clip = material.speak(question.text, "hibari")
        if number % 2:
            clip = material.with_noise(clip, 20.0, np.random.default_rng(number))
        async with Client(url) as client:
            await client.update(**SETTINGS)
            client.start_microphone()
            client.say(to_pcm(clip))
            answer = await client.answer()
        assert answer.status == "completed"
        audio = resample_poly(answer.audio / 32768, INPUT_RATE_HZ, OUTPUT_RATE_HZ)
        heard = await asyncio.to_thread(recogniser.transcribe, audio.astype(np.float32))
        num_right += question.is_answered_by(answer.text) and question.is_answered_by(heard.text)
        said.append((question.text, answer.text, heard.text))
    assert num_right >= 4, said


@pytest.mark.parametrize(
    ("name", "expected"), [("ask_in_writing.py", "Paris"), ("call_a_tool.py", "21")]
)
def test_example_in_writing_runs_as_written(url: str, name: str, expected: str) -> None:
    output = run_example(url, name)
    assert expected in output


def test_example_with_a_recording_runs_as_written(url: str, tmp_path: Path) -> None:
    clip = np.concatenate([material.silence(0.2), material.speak(QUESTIONS[0].text, "hibari")])
    write_wav(tmp_path / "question.wav", to_pcm(clip))
    output = run_example(
        url, "ask_aloud.py", str(tmp_path / "question.wav"), str(tmp_path / "out.wav")
    )
    assert "Paris" in output
    assert (tmp_path / "out.wav").stat().st_size > 2 * 2 * OUTPUT_RATE_HZ


def run_example(url: str, name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        env={**os.environ, "OMNI_URL": url},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_short_and_run_here() -> None:
    examples = sorted((ROOT / "examples").glob("*.py"))
    assert {e.name for e in examples} == {"ask_aloud.py", "ask_in_writing.py", "call_a_tool.py"}
    for example in examples:
        assert len(example.read_text().splitlines()) <= 50, example.name
