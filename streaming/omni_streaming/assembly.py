"""Puts a server together: the worker around an assistant, and the app around the worker.

Called by the command line, the end-to-end tests and the benchmarks. The assistant is built and
warmed up on the engine thread, while the server already answers ``/readyz`` with 503.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from omni_encoders.vad import VoiceActivity

from omni import threads
from omni.config import Config
from omni.errors import ModelError
from omni.parts import Parts, ThreadParts
from omni.scripted import ScriptedAssistant
from omni.types import (
    INPUT_RATE_HZ,
    Close,
    Commit,
    Conversation,
    Done,
    Failed,
    Feed,
    Message,
    Open,
    Respond,
    ResponseConfig,
    TextPart,
    TranscriptDone,
)
from omni.worker import Port, Worker
from omni_streaming.server import Server

if TYPE_CHECKING:
    from omni.assistant import Assistant

logger = logging.getLogger(__name__)

SCRIPTED = "scripted"
"""Name of the model that needs no weights."""

WARM_UP_S = 60.0
"""A first answer takes about a second; a machine that needs longer than this is not usable."""

Progress = Callable[[int, int], None]
"""(weights repacked so far, in all); called on a model's first start only."""


def assemble(config: Config, progress: Progress | None = None) -> Server:
    """A server of the embedded default; ``server.worker`` is not started yet."""
    sizes = threads.resolve(engine=config.engine_threads, parts=config.parts_threads)
    loaded: list[Assistant] = []

    def build(parts: Parts) -> Port:
        import torch
        from omni_kernels import library

        from omni.assistant import embedded

        torch.set_num_threads(sizes.engine)  # of this thread's pool, while weights are prepared
        assistant = embedded.build(config, parts, progress)
        library.use_threads(sizes.engine)
        loaded[:] = [assistant]
        voices()  # an unknown model.voice is refused now
        warm_up(assistant)
        return assistant

    def start_parts_thread() -> None:
        import torch

        torch.set_num_threads(sizes.parts)

    def start_eyes_thread() -> None:
        import torch

        torch.set_num_threads(1)  # looks run beside a conversation

    def voices() -> tuple[str, ...]:
        from omni.speech.voices import resolve_voice

        speech = loaded[0].speech
        return tuple(dict.fromkeys((resolve_voice(config.model.voice, speech), *speech.voices)))

    def about() -> Mapping[str, object]:
        from omni_kernels import library

        model = config.model
        return {
            "kernels": {"backend": library.backend(), "threads": library.num_threads()},
            "threads": {"engine": sizes.engine, "parts": sizes.parts},
            "models": {
                "backbone": model.backbone,
                "recogniser": model.recogniser,
                "end_of_turn": model.end_of_turn,
                "speech": model.speech,
            },
        }

    return Server(
        config=config,
        worker=Worker(
            build,
            ThreadParts(
                initialise=start_parts_thread,
                eyes=ThreadParts(name="omni-eyes", initialise=start_eyes_thread),
            ),
        ),
        vad=VoiceActivity(),
        model=config.model.backbone,
        voices=voices,
        about=about,
        sees_natively=lambda: loaded[0].sees_natively,
    )


def assemble_scripted(config: Config) -> Server:
    """A server that answers by script: no weights, for demonstrations and tests of the protocol."""
    return Server(
        config=replace(config, record=""),  # it has no eyes: nothing is kept, and none is told so
        worker=Worker(ScriptedAssistant),
        vad=VoiceActivity(),
        model=SCRIPTED,
        voices=lambda: ScriptedAssistant.voices,
        about=lambda: {"models": {"assistant": SCRIPTED}},
    )


def warm_up(assistant: Port) -> None:
    """Hold one short conversation, so that no user's first answer pays for lazy set-up.

    Raises:
        ModelError: the assistant cannot answer; its reason is in the message.
    """
    session_id, turn_id, response_id = "warm-up", "turn", "response"
    second = np.zeros(INPUT_RATE_HZ, np.float32)
    hello = Conversation(messages=(Message("user", (TextPart("Say hello."),)),))
    assistant.submit(Open(session_id, hello))
    assistant.submit(Feed(session_id, turn_id, second, 0))
    assistant.submit(Commit(session_id, turn_id))
    assistant.submit(Respond(session_id, response_id, ResponseConfig(max_output_tokens=8)))
    waiting = {TranscriptDone, Done}
    give_up_s = time.monotonic() + WARM_UP_S
    while waiting and time.monotonic() < give_up_s:
        for output in assistant.step():
            if isinstance(output, Failed):
                raise ModelError(f"the assistant cannot answer: {output.message}")
            waiting.discard(type(output))
        if not assistant.has_work():
            time.sleep(0.002)  # the parts thread is at work
    assistant.submit(Close(session_id))
    assistant.step()
    if waiting:
        raise ModelError(f"the assistant did not answer within {WARM_UP_S:.0f} s")
