"""Names of speech decoders, and the one way to load them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Protocol, cast

from omni.errors import ConfigError
from omni.speech.contract import SpeechDecoder

DECODERS = {
    "hibari": "omni.speech.hibari:HibariDecoder",
    "kokoro-82m": "omni.speech.kokoro:KokoroDecoder",
}
"""Setting ``model.speech`` -> "module:Class"."""


class _Loads(Protocol):
    @staticmethod
    def load(folder: Path) -> SpeechDecoder: ...


def open_decoder(name: str, home: Path) -> SpeechDecoder:
    """Load the speech decoder ``name``; its files are in ``home / "models" / name``.

    Raises:
        ConfigError: no decoder has this name.
        ModelError: its files are missing or not the known ones.
    """
    if name not in DECODERS:
        raise ConfigError(f"model.speech is {name!r}, expected one of {', '.join(DECODERS)}")
    module, _, class_name = DECODERS[name].partition(":")
    decoder = cast(_Loads, getattr(importlib.import_module(module), class_name))
    return decoder.load(home / "models" / name)
