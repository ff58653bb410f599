"""A whole assistant with random weights: what it says is noise, what it does is the product's.

Engine, template, passes, speech and the assistant itself are real; the backbone's weights are
random, and the recogniser reads from a script, so that a test decides what is heard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from omni_encoders.audio import StreamingRecogniser
from omni_encoders.end_of_turn import EndOfTurn
from omni_encoders.recogniser import Transcript, Word
from omni_encoders.vad import VadState, VoiceActivity
from tiny_backbone import Mixers, decoder_stack

from omni.assistant import Assistant
from omni.assistant.listening import Hearing
from omni.assistant.seeing import Blind, Sight
from omni.assistant.watching import Watcher
from omni.config import EngineConfig
from omni.engine.engine import Engine
from omni.models import LoadedModel
from omni.models.qwen2 import Qwen2
from omni.models.tokenizer import Tokenizer, _byte_alphabet
from omni.parts import InlineParts, Parts
from omni.speech.contract import SpeechDecoder
from omni.speech.registry import open_decoder
from omni.types import INPUT_RATE_HZ, AudioPart, Conversation, Feed, Message, Output, TextPart

MAX_POSITIONS = 2048
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WORD_MS = 400


class Loudness(VoiceActivity):
    """Voice activity that is simply loudness."""

    def __init__(self) -> None:
        pass

    def open(self) -> VadState:
        return VadState()

    def probability(self, frame: NDArray[np.float32], state: VadState) -> float:
        return float(np.abs(frame).max())


class EvenOdds(EndOfTurn):
    """Never knows whether a turn sounds finished."""

    def __init__(self) -> None:
        pass

    def score(self, audio: NDArray[np.float32]) -> float:
        return 0.5


@dataclass
class Script:
    """A recogniser: each pass reads the next (language, text), the last one again and again."""

    lines: list[tuple[str, str]] = field(default_factory=lambda: [("en", "hello")])
    num_threads: int = 1

    def hear(self, audio: NDArray[np.float32], should_stop: Callable[[], bool]) -> tuple[str, str]:
        return self.lines.pop(0) if len(self.lines) > 1 else self.lines[0]

    def read(
        self,
        window: tuple[str, str],
        *,
        draft: Sequence[int],
        prefix: Sequence[int],
        should_stop: Callable[[], bool],
        language: str | None,
        careful: bool = False,
    ) -> Transcript:
        heard_in, text = window
        words = tuple(
            Word(" " + word, i * WORD_MS, (i + 1) * WORD_MS, 0.9, (i,))
            for i, word in enumerate(text.split())
        )
        return Transcript(
            tokens=(),
            text=text,
            words=words,
            language=heard_in,
            no_speech_probability=0.0,
            average_logprob=-0.1,
            is_repetitive=False,
            num_forward_passes=1,
        )


def tokenizer() -> Tokenizer:
    """One token for each ASCII character."""
    tokens = [*_byte_alphabet()[:128], *SPECIAL]
    return Tokenizer.from_gguf(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "qwen2",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.merges": [],
            "tokenizer.ggml.token_type": [1] * 128 + [3] * len(SPECIAL),
        }
    )


@cache
def model(mixers: Mixers = ("attention",) * 3, num_sayable: int | None = None) -> LoadedModel:
    ascii_only = tokenizer()
    return LoadedModel(
        backbone=decoder_stack(
            vocab_size=ascii_only.vocab_size,
            max_positions=MAX_POSITIONS,
            mixers=mixers,
            num_sayable=num_sayable,
        ),
        tokenizer=ascii_only,
        template=Qwen2().template(ascii_only),
        name="tiny",
        context_tokens=MAX_POSITIONS,
    )


@cache
def voice() -> SpeechDecoder:
    return open_decoder("hibari", Path())


def build(
    parts: Parts,
    script: Script | None = None,
    config: EngineConfig | None = None,
    *,
    max_sessions: int = 4,
    loaded: LoadedModel | None = None,
    sight: Sight | None = None,
    watcher: Watcher | None = None,
) -> Assistant:
    config = config or EngineConfig(num_pages=1024, max_context_tokens=MAX_POSITIONS)
    loaded = loaded or model()
    return Assistant(
        model=loaded,
        engine=Engine(loaded.backbone, config, max_owners=max_sessions),
        hearing=Hearing(StreamingRecogniser(script or Script(), Loudness()), EvenOdds()),
        sight=sight or Blind(),
        watcher=watcher,
        speech=voice(),
        parts=parts,
        instructions="Be brief.",
        max_context_tokens=config.max_context_tokens,
    )


@contextmanager
def tiny_assistant(
    script: Script | None = None,
    config: EngineConfig | None = None,
    *,
    max_sessions: int = 4,
    loaded: LoadedModel | None = None,
    sight: Sight | None = None,
    watcher: Watcher | None = None,
) -> Iterator[Assistant]:
    """An assistant whose books must balance, and be empty, at the end."""
    assistant = build(
        InlineParts(),
        script,
        config,
        max_sessions=max_sessions,
        loaded=loaded,
        sight=sight,
        watcher=watcher,
    )
    yield assistant
    assistant.check_integrity()
    assistant.close()
    run(assistant)
    stats = assistant.stats()
    assert stats.num_sequences == 0
    assert stats.num_pages_free == stats.num_pages
    assistant.check_integrity()


def run(assistant: Assistant) -> list[Output]:
    """Step until nothing is left to do."""
    outputs: list[Output] = []
    while assistant.has_work():
        outputs += assistant.step()
    return outputs


def speak(assistant: Assistant, session_id: str, turn_id: str, seconds: float) -> None:
    """Feed loud sound and a pause; what was said is up to the script."""
    loud = np.full(int(seconds * INPUT_RATE_HZ), 0.9, np.float32)
    pause = np.zeros(INPUT_RATE_HZ // 2, np.float32)
    assistant.submit(Feed(session_id, turn_id, np.concatenate([loud, pause]), 0))


def said(text: str) -> Message:
    return Message("user", (TextPart(text),))


def spoken(turn_id: str) -> Conversation:
    """A conversation of one turn that was spoken."""
    return Conversation(messages=(Message("user", (AudioPart(turn_id),)),))
