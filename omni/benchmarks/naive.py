"""The naive serial pipeline that the assistant is measured against, made of the same parts.

Wait 500 ms of silence, recognise, answer as far as the first sentence, speak it: each step starts
when the one before has ended. The system prompt is already computed, as in any server.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from omni_encoders.recogniser import Recogniser

from omni import store, threads
from omni.assistant.context import Senses
from omni.config import Config, home
from omni.engine.engine import Engine, Priority, SamplingParams
from omni.models import load
from omni.models.tokenizer import StreamDecoder
from omni.speech.registry import open_decoder
from omni.types import Conversation, Message, TextPart

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SILENCE_WAIT_S = 0.5
MAX_TOKENS = 60
SENTENCE_ENDS = (".", "!", "?", "\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class NaiveTurn:
    """Seconds of each step of one turn, and what was understood and said."""

    recognise_s: float
    answer_s: float
    speak_s: float
    question: str
    answer: str

    @property
    def latency_s(self) -> float:
        return SILENCE_WAIT_S + self.recognise_s + self.answer_s + self.speak_s


class NaivePipeline:
    """Loads its own copy of the parts named in ``config``."""

    def __init__(self, config: Config) -> None:
        root = home(config)
        sizes = threads.resolve(engine=config.engine_threads, parts=config.parts_threads)
        self._recogniser = Recogniser(
            store.find(config.model.recogniser, root), threads=sizes.parts
        )
        self._model = load(store.find(config.model.backbone, root), home=root)
        self._engine = Engine(self._model.backbone, config.engine)
        self._speech = open_decoder(config.model.speech, root)
        self._voice = config.model.voice
        self._instructions = config.model.instructions
        self._sequence = self._engine.add(priority=Priority.RESPONDING)

    def turn(self, audio: NDArray[np.float32]) -> NaiveTurn:
        """Answer ``audio`` [n] float32 16 kHz; the clock runs from the call."""
        self._engine.sync(self._sequence, self._tokens(None))
        while self._engine.has_work():
            self._engine.step()

        start = time.perf_counter()
        question = self._recogniser.transcribe(audio).text.strip()
        recognised = time.perf_counter()
        answer = self._first_sentence(question)
        answered = time.perf_counter()
        stream = self._speech.open(voice=self._voice, speed=1.0)
        for pieces in (stream.push(answer), stream.flush()):
            if next(iter(pieces), None) is not None:
                break
        spoken = time.perf_counter()
        return NaiveTurn(
            recognise_s=recognised - start,
            answer_s=answered - recognised,
            speak_s=spoken - answered,
            question=question,
            answer=answer,
        )

    def _tokens(self, question: str | None) -> list[int]:
        messages = () if question is None else (Message("user", (TextPart(question),)),)
        conversation = Conversation(instructions=self._instructions, messages=messages)
        tokens = self._model.template.render(conversation, Senses())
        return tokens if question is None else tokens + self._model.template.assistant_header()

    def _first_sentence(self, question: str) -> str:
        self._engine.sync(self._sequence, self._tokens(question))
        stop_ids = self._model.template.stop_ids
        self._engine.generate(
            self._sequence, SamplingParams(max_tokens=MAX_TOKENS, stop_ids=stop_ids)
        )
        decoder = StreamDecoder(self._model.tokenizer)
        text = ""
        while self._engine.has_work():
            for token in self._engine.step():
                if token.token_id is not None and token.finish_reason != "stop":
                    text += decoder.push(token.token_id)
            if text.rstrip().endswith(SENTENCE_ENDS) and len(text) > 1:
                self._engine.cancel(self._sequence)
                break
        return text.strip()
