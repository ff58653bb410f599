"""Builds the embedded default from the model store: the parts behind an :class:`Assistant`.

Called once per process by the command line and by tests; the weights are shared by all sessions.
"""

from __future__ import annotations

from pathlib import Path

from omni_encoders.audio import StreamingRecogniser
from omni_encoders.end_of_turn import EndOfTurn
from omni_encoders.eyes import Eyes
from omni_encoders.recogniser import Recogniser
from omni_encoders.vad import VoiceActivity

from omni import store, threads
from omni.assistant.assistant import Assistant
from omni.assistant.listening import Hearing
from omni.assistant.recording import RecordingEyes
from omni.assistant.seeing import TowerSight, WordsSight
from omni.assistant.watching import LateEyes, Watcher
from omni.config import Config, home
from omni.engine.engine import Engine
from omni.models import load
from omni.models.device import choose
from omni.models.loading import Progress
from omni.parts import Parts
from omni.speech.registry import open_decoder


def build(config: Config, parts: Parts, progress: Progress | None = None) -> Assistant:
    """Load every part named in ``config.model``.

    ``progress(done, total)`` counts parameters repacked; called on a model's first start only.

    Raises:
        ConfigError: ``engine.device`` asks for a card that is not here.
        ModelError: a setting names no model of its role, or a weight file is missing or corrupt;
            the message says what to do.
    """
    root = home(config)
    backbone = store.find(config.model.backbone, root, role="backbone")
    adapter = store.find(config.model.adapter, root) if config.model.adapter else None
    recogniser_folder = store.find(config.model.recogniser, root, role="recogniser")
    end_of_turn = store.find(config.model.end_of_turn, root, role="end of turn")
    sizes = threads.resolve(engine=config.engine_threads, parts=config.parts_threads)
    model = load(
        backbone,
        home=root,
        progress=progress,
        adapter=adapter,
        thinking=config.model.thinking,
        device=choose(config.engine.device),
    )
    engine = Engine(model.backbone, config.engine, max_owners=config.server.max_sessions)
    engine.warm_up()
    recogniser = Recogniser(recogniser_folder, threads=sizes.parts)
    hearing = Hearing(
        recogniser=StreamingRecogniser(recogniser, VoiceActivity()),
        end_of_turn=EndOfTurn(end_of_turn),
    )
    watcher = open_eyes(config)
    return Assistant(
        model=model,
        engine=engine,
        hearing=hearing,
        sight=TowerSight(model.vision) if model.vision else WordsSight(watcher),
        watcher=watcher,
        speech=open_decoder(config.model.speech, root),
        parts=parts,
        instructions=config.model.instructions,
        max_context_tokens=config.engine.max_context_tokens,
    )


def open_eyes(config: Config) -> Watcher:
    """The eyes that ``config.model`` names; what they lack is said at the first look.

    Raises:
        ConfigError: ``config.record`` names a folder that cannot be made.
    """
    root = home(config)
    eyes = LateEyes(
        lambda: Eyes(
            # Random weights see an empty world and say so: better none.
            store.find(config.model.detector, root, role="detector", is_hashed=True),
            store.find(config.model.classifier, root, role="classifier", is_hashed=True),
        )
    )
    return RecordingEyes(eyes, Path(config.record).expanduser()) if config.record else eyes
