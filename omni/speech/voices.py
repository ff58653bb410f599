"""Voice names: a decoder's own, and the hosted service's, which mean the decoder's default."""

from __future__ import annotations

from omni.errors import InputError
from omni.speech.contract import SpeechDecoder

HOSTED_VOICES = (
    "alloy", "ash", "ballad", "coral", "echo", "sage", "shimmer", "verse", "marin", "cedar",
)  # fmt: skip


def resolve_voice(name: str, decoder: SpeechDecoder) -> str:
    """The decoder's voice that ``name`` means.

    A name of its own (``af_heart``), or its last part where that is unique (``heart``); a hosted
    voice that it lacks means its default.

    Raises:
        InputError: no such voice; the message lists what exists.
    """
    voices = decoder.voices
    if name in voices:
        return name
    same = [voice for voice in voices if voice.rpartition("_")[2] == name]
    if len(same) == 1:
        return same[0]
    if name in HOSTED_VOICES:
        return voices[0]
    raise InputError(
        f"unknown voice {name!r}; this speech decoder has {', '.join(voices)} "
        f"(and {', '.join(HOSTED_VOICES)} mean {voices[0]})"
    )


SPEEDS = (0.25, 2.5)
"""The Realtime API's ``speed`` ends at 1.5; people who listen for a living go to about 300 words a
minute, 1.75 of our voices' own. At 2 Whisper base still hears every word, at 2.5 "years" for
"metres"."""


def check_opening(voice: str, speed: float, voices: tuple[str, ...]) -> None:
    """Refuse what no stream can be opened with.

    Raises:
        InputError: an unknown voice, or a speed outside :data:`SPEEDS`.
    """
    if voice not in voices:
        raise InputError(f"unknown voice {voice!r}; this speech decoder has {', '.join(voices)}")
    if not SPEEDS[0] <= speed <= SPEEDS[1]:
        raise InputError(f"speed is {speed}, expected {SPEEDS[0]} to {SPEEDS[1]}")
