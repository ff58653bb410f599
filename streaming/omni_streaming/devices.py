"""Microphone and speakers of this machine, for ``omni talk --mic``.

Needs the optional package sounddevice. Without headphones the microphone hears the speakers, so the
conversation is half-duplex: while the assistant speaks, silence is sent. With headphones
(``full_duplex``) the user can interrupt; playback stops at once and the server is told exactly how
much was heard.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from omni.errors import OmniError
from omni.types import OUTPUT_RATE_HZ
from omni_streaming.client import CHUNK_SAMPLES, Client, Event

if TYPE_CHECKING:
    from numpy.typing import NDArray

TAIL_S = 0.3
"""How long the room still rings, and the sound card still plays, after the last sample."""

MAX_WAITING_CHUNKS = 100
"""Captured chunks (2 s) that wait for the socket; older ones are dropped when it is slower."""


class Speakers:
    """What the sound card plays next. Filled on the event loop, emptied by the audio thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[tuple[str, NDArray[np.int16]]] = deque()
        self._played: dict[str, int] = {}
        self._quiet_samples = round(TAIL_S * OUTPUT_RATE_HZ)

    def add(self, item_id: str, pcm: NDArray[np.int16]) -> None:
        """Play ``pcm`` [n] after what is waiting."""
        with self._lock:
            self._waiting.append((item_id, pcm))

    def cut(self) -> tuple[str, int] | None:
        """Play nothing more: (the item that was sounding, its milliseconds played)."""
        with self._lock:
            if not self._waiting:
                return None
            item_id = self._waiting[0][0]
            self._waiting.clear()
            return item_id, self._played.get(item_id, 0) * 1000 // OUTPUT_RATE_HZ

    @property
    def is_sounding(self) -> bool:
        """Whether something is playing or has only just been."""
        return bool(self._waiting) or self._quiet_samples < TAIL_S * OUTPUT_RATE_HZ

    def fill(self, out: NDArray[np.int16]) -> None:
        """Write the next samples into ``out`` [n]; silence where there are none."""
        out[:] = 0
        filled = 0
        with self._lock:
            while self._waiting and filled < len(out):
                item_id, pcm = self._waiting[0]
                piece = pcm[: len(out) - filled]
                out[filled : filled + len(piece)] = piece
                filled += len(piece)
                self._played[item_id] = self._played.get(item_id, 0) + len(piece)
                if len(piece) == len(pcm):
                    self._waiting.popleft()
                else:
                    self._waiting[0] = item_id, pcm[len(piece) :]
            self._quiet_samples = 0 if filled else self._quiet_samples + len(out)


async def converse(client: Client, *, full_duplex: bool, say: Callable[[str], None]) -> None:
    """Talk until the connection ends or the task is cancelled; transcripts go to ``say``.

    Raises:
        OmniError: sounddevice or a device is missing.
        ServerError: the server closed the connection.
    """
    sounddevice = require_sound()
    loop = asyncio.get_running_loop()
    speakers = Speakers()
    captured: asyncio.Queue[NDArray[np.int16]] = asyncio.Queue(MAX_WAITING_CHUNKS)

    def keep(chunk: NDArray[np.int16]) -> None:
        if captured.full():
            captured.get_nowait()
        captured.put_nowait(chunk)

    def on_audio(
        heard: NDArray[np.int16], out: NDArray[np.int16], frames: int, times: Any, status: Any
    ) -> None:
        speakers.fill(out[:, 0])
        chunk = heard[:, 0].copy()
        if not full_duplex and speakers.is_sounding:
            chunk[:] = 0
        loop.call_soon_threadsafe(keep, chunk)

    client.cuts_answers = False  # the sound card knows better than the time line what was played
    client.on_event = _Hearing(client, speakers, say, cuts=full_duplex).take
    try:
        stream = sounddevice.Stream(
            samplerate=OUTPUT_RATE_HZ,
            blocksize=CHUNK_SAMPLES,
            channels=1,
            dtype="int16",
            callback=on_audio,
        )
    except sounddevice.PortAudioError as error:
        raise OmniError(f"the microphone or the speakers cannot be opened: {error}") from error
    with stream:
        while True:
            await client.append(await captured.get())


class _Hearing:
    """Turns events into sound and words."""

    def __init__(
        self, client: Client, speakers: Speakers, say: Callable[[str], None], *, cuts: bool
    ) -> None:
        self._client = client
        self._speakers = speakers
        self._say = say
        self._cuts = cuts
        self._sending: set[asyncio.Task[None]] = set()

    def take(self, event: Event) -> None:
        match event["type"]:
            case "response.output_audio.delta":
                answer = self._client.answers[event["response_id"]]
                self._speakers.add(event["item_id"], answer.last_audio)
            case "input_audio_buffer.speech_started" if self._cuts:
                if (cut := self._speakers.cut()) is not None:
                    item_id, played_ms = cut
                    task = asyncio.ensure_future(
                        self._client.send(
                            "conversation.item.truncate",
                            item_id=item_id,
                            content_index=0,
                            audio_end_ms=played_ms,
                        )
                    )
                    self._sending.add(task)
                    task.add_done_callback(self._sending.discard)
            case "conversation.item.input_audio_transcription.completed":
                self._say(f"You:  {event['transcript'].strip()}")
            case "response.done":
                answer = self._client.answers[event["response"]["id"]]
                note = "" if answer.status == "completed" else f" [{answer.status}]"
                self._say(f"Omni: {answer.text.strip()}{note}")
            case "error":
                self._say(f"(server: {event['error']['message']})")


def require_sound() -> Any:
    """The module sounddevice.

    Raises:
        OmniError: it, or PortAudio, is not installed; the message says what to do.
    """
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: PortAudio itself is missing
        raise OmniError(
            "the microphone needs the package sounddevice and PortAudio: run "
            f"`{sys.executable} -m pip install sounddevice` and install your system's libportaudio2"
        ) from error
    return sounddevice
