"""The user's side of the conversation: turns, speculation, silence.

Called by :mod:`omni_streaming.session`, to which it says when a response is due. It owns the input
buffer and the transcripts. A *speculation* is a response that the client does not know of yet: it
began in a pause of the user's turn, its outputs wait here, and it is either confirmed by the end
of the turn or dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omni.types import (
    INPUT_RATE_HZ,
    Cancel,
    Commit,
    Confirm,
    Discard,
    Done,
    Failed,
    Feed,
    MediaPart,
    ScoreTurn,
    Speculate,
    TranscriptDelta,
    TranscriptDone,
    TurnScore,
)
from omni_streaming import events
from omni_streaming.conversation import Content, Item
from omni_streaming.hearing import Hearing, Turn
from omni_streaming.response import ResponseOutput
from omni_streaming.settings import ResponseSettings, Settings
from omni_streaming.transcripts import Transcripts
from omni_streaming.turns import Signal

if TYPE_CHECKING:
    from omni_streaming.session import Session

STALL_MS = 1_500
"""A client that sends no audio for this long inside a turn is taken to be silent."""


@dataclass(slots=True)
class Speculation:
    """A response to a turn that has perhaps ended."""

    response_id: str
    turn_id: str
    settings: ResponseSettings
    shown: tuple[MediaPart, ...] = ()  # what the camera showed, before the turn's words
    outputs: list[ResponseOutput] = field(default_factory=list)
    is_dead: bool = False  # it failed; the turn will be answered the ordinary way


@dataclass(frozen=True, slots=True)
class Awaited:
    """A turn that has ended while its words, which decide what becomes of it, are not known."""

    turn_id: str
    speculation: Speculation | None  # confirmed, and perhaps not wanted


class TurnTaking:
    """Listens for one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._queue = session.queue
        self._hearing = Hearing(session.settings, session.config, session.new_id, self._feed)
        self._transcripts = Transcripts(session.emit, session.items)
        self._transcripts.options = session.settings.transcription
        self._speculation: Speculation | None = None
        self._awaited: Awaited | None = None  # ended; its words decide who answers
        self._committed_id: str | None = None  # the last turn that the client committed itself
        self._owed_turn_id: str | None = None  # ended while a response was active
        self._score_after_ms = 0
        self._audio_ms = session.now_ms  # when audio last came
        self._idle_since: tuple[float, int] | None = None  # (ms, audio position)

    # --- Audio -----------------------------------------------------------------------------------

    @property
    def open_turn_id(self) -> str | None:
        """The turn that is being heard."""
        return self._hearing.turn.id if self._hearing.turn else None

    @property
    def buffered_ms(self) -> int:
        """Audio that a commit would take."""
        return _ms(self._hearing.num_buffered)

    @property
    def is_manual(self) -> bool:
        """There is no turn detection: the client commits."""
        return self._hearing.detector is None

    def append(self, data: bytes) -> None:
        """Take audio in the client's format.

        Raises:
            InputError: bytes that are not whole samples; nothing was taken.
        """
        self._hearing.append(data)
        self._audio_ms = self._session.now_ms

    def frames_to_score(self) -> list[NDArray[np.float32]]:
        """Frames that wait for their speech probability."""
        return self._hearing.frames_to_score()

    def score(self, probabilities: Sequence[float]) -> None:
        """Take the probabilities of the oldest frames handed out."""
        playback = self._session.playback
        longest = self._session.config.server.max_buffer_s * INPUT_RATE_HZ
        for probability in probabilities:
            signal = self._hearing.next_signal(
                probability,
                is_assistant_heard=playback.is_audible,
                echo_source_db=playback.echo_source_db,
            )
            if signal is not None:
                self._on_signal(signal)
            self._hearing.listen()
            turn = self._hearing.turn
            if turn is not None and self._hearing.position - turn.start >= longest:
                self._on_stopped()

    def commit(self) -> None:
        """The client commits what it has sent; nobody answers by itself."""
        self.drop_speculation()
        turn = self._hearing.take_all()
        self._commit(turn, respond=False)
        self._committed_id = turn.id

    def answer_last(self) -> bool:
        """In describe mode: answer the user's last message, or carry it out, once it is understood.

        False where describe mode is off, or nobody asked anything: then nothing was done.
        """
        session, turn_id = self._session, self._committed_id
        self._committed_id = None
        if not session.describing.is_on:
            return False
        item = session.items.get(turn_id) if turn_id is not None else None
        if turn_id is not None and item is not None:
            self._awaited = Awaited(turn_id, None)
            words = next((c.text for c in item.content if c.turn_id == turn_id), None)
            if words is not None:
                self.resolve(turn_id, words)
            return True
        return self._answer_in_writing()

    def _answer_in_writing(self) -> bool:
        """Carry out or answer from the picture what the user wrote last; else show the model."""
        session = self._session
        last = session.items.get(session.items.last_id) if session.items.last_id else None
        if last is None or last.role != "user" or any(c.turn_id for c in last.content):
            return False
        if session.describing.heard(" ".join(c.text for c in last.content if c.text), last.id):
            return True
        if all(c.media is None for c in last.content):
            shown = [Content("input_image", None, media=p) for p in session.describing.shown()]
            last.content[:0] = shown
            session.sync()
        return False

    def clear(self) -> None:
        """The client clears the buffer."""
        self.drop_speculation()
        self._discard(self._hearing.clear())

    def configure(self, settings: Settings) -> None:
        """Take new settings."""
        self.drop_speculation()
        self._transcripts.options = settings.transcription
        self._discard(self._hearing.configure(settings))

    def feed_item(self, turn_id: str, samples: NDArray[np.float32], *, is_kept: bool) -> None:
        """Let the assistant hear audio that came inside an item; ``is_kept``: of the
        conversation, so that its transcript is wanted."""
        session_id = self._session.session_id
        if is_kept:
            self._transcripts.open(turn_id)
            self._transcripts.commit(turn_id)
        self._queue.add(Feed(session_id, turn_id, samples, 0))
        self._queue.add(Commit(session_id, turn_id))

    def forget(self, item_id: str) -> None:
        """An item was deleted."""
        self._transcripts.forget(item_id)

    def close(self) -> None:
        """The session is over: the audio is let go."""
        self._hearing.close()

    # --- Outputs ---------------------------------------------------------------------------------

    def take_transcript(self, output: TranscriptDelta | TranscriptDone) -> None:
        """Words of the user."""
        if isinstance(output, TranscriptDelta):
            self._transcripts.add(output)
        else:
            self._transcripts.finish(output)

    def take_failure(self, output: Failed) -> bool:
        """A failure that may name a turn; False when it does not."""
        return self._transcripts.fail(output)

    def take_score(self, output: TurnScore) -> None:
        """How finished the turn sounds."""
        turn, detector = self._hearing.turn, self._hearing.detector
        # at_ms counts from the start of the turn; a score of an earlier pause heard less.
        is_stale = turn is None or turn.id != output.turn_id or output.at_ms < self._score_after_ms
        if detector is None or is_stale or not detector.is_paused:
            return
        if detector.score(output.probability) is not None:
            self._on_stopped()

    def hold(self, output: ResponseOutput) -> bool:
        """Keep an output of the speculation; False when it is of another response."""
        speculation = self._awaited.speculation if self._awaited else self._speculation
        if speculation is None or output.response_id != speculation.response_id:
            return False
        speculation.outputs.append(output)
        speculation.is_dead |= isinstance(output, Failed) or (
            isinstance(output, Done) and output.reason == "cancelled"
        )
        return True

    def resolve(self, turn_id: str, text: str) -> None:
        """The words of a turn are known: it was a command of describe mode, or is answered."""
        awaited, session = self._awaited, self._session
        if awaited is None or awaited.turn_id != turn_id:
            return
        self._awaited = None
        speculation = awaited.speculation
        item = session.items.of_turn(turn_id)
        item_id = item.id if item is not None else None
        is_command = bool(text.strip()) and session.describing.heard(text, item_id)
        if is_command or not text.strip():
            if speculation is not None:
                self._queue.add(Cancel(session.session_id, speculation.response_id))
            session.sync()
            if not is_command and session.active is None:
                session.answer_nothing(turn_id)
        else:
            self._answer(turn_id, speculation)

    # --- Time ------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Time has passed: the client may have fallen silent."""
        detector, now_ms = self._hearing.detector, self._session.now_ms
        if detector is None:
            return
        if self._hearing.turn is None:
            self._check_idle()
        elif now_ms - self._audio_ms >= max(STALL_MS, detector.wait_ms):
            self._on_stopped()

    def response_started(self) -> None:
        """The conversation is not idle."""
        self._idle_since = None

    def response_ended(self) -> None:
        """The user may be idle from when the answer has been played; an owed answer begins."""
        remaining_ms = self._session.playback.remaining_ms
        position = self._hearing.position + round(remaining_ms * INPUT_RATE_HZ / 1000)
        self._idle_since = (self._session.now_ms + remaining_ms, position)
        session, owed = self._session, self.take_owed()
        if owed is not None and not session.is_ending:
            settings = session.describing.answering(session.settings.response())
            session.respond(settings, None, owed)

    def take_owed(self) -> str | None:
        """The turn that waits for a response to end before it is answered; it waits no more."""
        owed, self._owed_turn_id = self._owed_turn_id, None
        return owed

    def owe(self, turn_id: str | None) -> None:
        """Answer a turn when the next response has ended."""
        self._owed_turn_id = turn_id

    def _check_idle(self) -> None:
        session, detection = self._session, self._hearing.detection
        timeout_ms = detection.idle_timeout_ms if detection else None
        if timeout_ms is None or self._idle_since is None or session.active is not None:
            return
        since_ms, position = self._idle_since
        if session.now_ms < since_ms + timeout_ms:
            return
        self._idle_since = None
        item = Item(session.new_id("item"), "message", "user", [Content("input_audio", "")])
        end_ms = _ms(self._hearing.position)
        session.emit(events.timeout_triggered(item.id, min(_ms(position), end_ms), end_ms))
        self._add(item)
        session.respond(session.settings.response(), None)

    # --- Turns -----------------------------------------------------------------------------------

    def drop_speculation(self) -> None:
        """The turn goes on, or what the speculation rested on has changed."""
        speculation, self._speculation = self._speculation, None
        if speculation is None:
            return
        if not self._queue.retract(speculation.response_id):
            self._queue.add(Cancel(self._session.session_id, speculation.response_id))
        self._transcripts.reopen(speculation.turn_id)
        self._hearing.resume()

    def _on_signal(self, signal: Signal) -> None:
        if signal is Signal.STARTED:
            self._on_started()
        elif signal is Signal.PAUSED:
            self._on_paused()
        elif signal is Signal.RESUMED:
            self.drop_speculation()
        else:
            self._on_stopped()

    def _on_started(self) -> None:
        turn, detection = self._hearing.open_turn(), self._hearing.detection
        self._idle_since = None
        self._forget_awaited()
        self._session.describing.user_speaks(True)
        self._session.emit(events.speech_started(turn.id, _ms(turn.start)))
        if detection is not None and detection.interrupt_response:
            self._owed_turn_id = None
            self._session.interrupt()

    def _on_paused(self) -> None:
        session, turn, detection = self._session, self._hearing.turn, self._hearing.detection
        assert turn is not None
        assert detection is not None
        self._hearing.listen()
        if detection.kind == "semantic_vad":
            self._score_after_ms = _ms(turn.fed - turn.start)
            self._queue.add(ScoreTurn(session.session_id, turn.id))
        if detection.create_response and session.active is None and session.context_fits():
            session.sync()
            session.sync_now()
            settings = session.describing.answering(session.settings.response())
            shown = session.describing.shown()
            speculation = Speculation(session.new_id("resp"), turn.id, settings, shown)
            turn.is_held = True
            self._speculation = speculation
            self._queue.add(
                Speculate(
                    session.session_id, turn.id, speculation.response_id, settings.config, shown
                )
            )

    def _on_stopped(self) -> None:
        detection, turn = self._hearing.detection, self._hearing.end_turn()
        assert turn is not None
        assert detection is not None
        self._session.emit(events.speech_stopped(turn.id, _ms(self._hearing.position)))
        self._session.describing.user_speaks(False)
        self._commit(turn, respond=detection.create_response)

    def _commit(self, turn: Turn, *, respond: bool) -> None:
        """The turn becomes an item and, with ``respond``, is answered."""
        session = self._session
        session.sync_now()  # a speculation on what has changed must not be confirmed
        speculation, self._speculation = self._speculation, None
        is_empty = self._transcripts.is_known_empty(turn.id)
        is_confirmed = bool(respond and speculation and not speculation.is_dead and not is_empty)
        if speculation is not None and is_confirmed:
            self._queue.add(Confirm(session.session_id, speculation.response_id))
        else:
            if speculation is not None:
                self._queue.add(Cancel(session.session_id, speculation.response_id))
            self._queue.add(Commit(session.session_id, turn.id))
        shown = speculation.shown if speculation and is_confirmed else session.describing.shown()
        content = [Content("input_image", None, media=part) for part in shown]
        content.append(Content("input_audio", None, turn.id, is_shown=False))
        self._add(Item(turn.id, "message", "user", content))
        session.items.keep_audio(turn.id, turn.audio, INPUT_RATE_HZ)
        self._transcripts.commit(turn.id)
        if not respond:
            session.sync()
        elif session.describing.is_on and not is_empty:
            self._awaited = Awaited(turn.id, speculation if is_confirmed else None)
        elif is_empty and session.active is None:
            session.answer_nothing(turn.id)
        else:
            self._answer(turn.id, speculation if is_confirmed else None)

    def _answer(self, turn_id: str, speculation: Speculation | None) -> None:
        """Answer a turn, by the ``speculation`` that was confirmed if there is one."""
        session = self._session
        session.describing.give_way()
        if session.active is not None:  # a warning, or the user may not interrupt
            self._owed_turn_id = turn_id
            if speculation is not None:
                self._queue.add(Cancel(session.session_id, speculation.response_id))
        elif speculation is not None:
            session.begin(speculation.response_id, speculation.settings, turn_id)
            for output in speculation.outputs:
                session.apply(output)
        else:
            settings = session.describing.answering(session.settings.response())
            session.respond(settings, None, turn_id)

    def _forget_awaited(self) -> None:
        """The user goes on speaking before the words of the turn were known."""
        awaited, self._awaited = self._awaited, None
        if awaited is not None and awaited.speculation is not None:
            self._queue.add(Cancel(self._session.session_id, awaited.speculation.response_id))

    def _add(self, item: Item) -> None:
        """Announce an item of committed audio."""
        previous = self._session.items.last_id
        self._session.emit(events.audio_committed(item.id, previous))
        self._session.add_item(item)

    def _discard(self, turn: Turn | None) -> None:
        """The assistant need not remember the turn."""
        if turn is not None:
            self._transcripts.forget(turn.id)
            if turn.fed > turn.start:
                self._queue.add(Discard(self._session.session_id, turn.id))

    def _feed(self, turn: Turn, samples: NDArray[np.float32], position: int) -> None:
        self._transcripts.open(turn.id)
        self._queue.feed(turn.id, samples, _ms(position))


def _ms(position: int) -> int:
    """Milliseconds of a position in samples at 16 kHz."""
    return position * 1000 // INPUT_RATE_HZ
