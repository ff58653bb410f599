"""The state machine of one Realtime session: client events and outputs in, events and commands out.

Sans-I/O: :mod:`omni_streaming.connection` drives it and owns the socket, the clock and the voice
activity model. Two clocks are passed in: the samples received, and ``now_ms`` (monotonic
milliseconds, any origin). No method blocks, waits or reads a clock. Not thread-safe: one owner.

The cycle of a driver::

    session.receive(message, now_ms)              # one WebSocket message
    frames = session.frames_to_score()
    session.score_frames(vad(frames), now_ms)     # as many probabilities as frames
    for command in session.commands(): assistant.submit(command)
    for output in outputs: session.handle(output, now_ms)
    session.tick(now_ms)                          # at least every 50 ms
    for event in session.events_to_send(): send(event)
    if session.close_code: close(*session.close_code)

One response may be *active* (it belongs to the conversation); out-of-band responses run beside it.
A *speculation* is a response that the client does not know of yet: it began in a pause of the
user's turn, its outputs wait here, and it is either confirmed by the end of the turn or dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from omni.config import Config
from omni.types import (
    INPUT_RATE_HZ,
    AudioDelta,
    Cancel,
    Close,
    Command,
    Commit,
    Confirm,
    Discard,
    Done,
    Edit,
    Failed,
    Feed,
    Open,
    Output,
    Respond,
    ScoreTurn,
    Speculate,
    TextDelta,
    ToolCall,
    TranscriptDelta,
    TranscriptDone,
    TurnScore,
    Usage,
)
from omni.types import Conversation as Context
from omni_streaming import events
from omni_streaming.conversation import Content, Item, ItemList
from omni_streaming.hearing import Hearing, Turn
from omni_streaming.playback import Playback
from omni_streaming.requests import Requests
from omni_streaming.response import Channels, Response, Status
from omni_streaming.settings import Intent, ResponseSettings, Settings
from omni_streaming.transcripts import Transcripts
from omni_streaming.turns import Signal

if TYPE_CHECKING:
    from numpy.typing import NDArray

STALL_MS = 1_500
"""A client that sends no audio for this long inside a turn is taken to be silent."""

CONTEXT_SHARE = 0.75
"""Share of the backbone's context that the conversation may fill; the rest is for the answer."""

ResponseOutput = TextDelta | AudioDelta | ToolCall | Done | Failed


@dataclass(slots=True)
class Speculation:
    """A response to a turn that has perhaps ended."""

    response_id: str
    turn_id: str
    settings: ResponseSettings
    outputs: list[ResponseOutput] = field(default_factory=list)
    is_dead: bool = False  # it failed; the turn will be answered the ordinary way


class Session:
    """One Realtime session.

    Args:
        session_id: ``sess_...``; also the ``session_id`` of every command and output.
        config: the server's settings (turn detection, limits).
        model: the model name shown to the client.
        voices: names of the speech decoder's voices; hosted voices mean the default one.
        new_id: ``new_id("item")`` -> a fresh id such as ``item_x8...``, at most 32 characters.
        now_ms: monotonic milliseconds.
        expires_at_s: unix seconds at which the session ends, shown to the client.
        intent: ``transcription`` opens a transcription session (``?intent=transcription``).
        initial: a session object to apply at once (from a client secret).

    Raises:
        ClientError: ``initial`` is not a valid session.
    """

    def __init__(
        self,
        *,
        session_id: str,
        config: Config,
        model: str,
        voices: tuple[str, ...],
        new_id: Callable[[str], str],
        now_ms: int,
        expires_at_s: int,
        intent: Intent = "realtime",
        initial: Mapping[str, Any] | None = None,
    ) -> None:
        self.session_id = session_id
        self.config = config
        self.new_id = new_id
        self.close_code: tuple[int, str] | None = None
        self.settings = Settings.initial(
            session_id=session_id,
            config=config,
            model=model,
            voices=voices,
            expires_at_s=expires_at_s,
            intent=intent,
        )
        if initial is not None:
            self.settings = self.settings.parsed_and_updated(initial)
        self.items = ItemList()
        self.hearing = Hearing(self.settings, config, new_id, self._feed)
        self.playback = Playback(now_ms)
        self.transcripts = Transcripts(self.emit, self.items)
        self.transcripts.options = self.settings.transcription
        self.active: Response | None = None
        self.responses: dict[str, Response] = {}
        self.has_spoken = False
        self._requests = Requests(self)
        self._channels = Channels(self.emit, self.items, self.playback, new_id)
        self._conversation_id = new_id("conv")
        self._speculation: Speculation | None = None
        self._owed_turn_id: str | None = None  # ended while a response was active
        self._score_after_ms = 0
        self._now_ms = now_ms
        self._created_ms = now_ms
        self._client_ms = now_ms  # when the client was last heard of
        self._audio_ms = now_ms  # when audio last came
        self._idle_since: tuple[int, int] | None = None  # (ms, audio position), after a response
        self._is_closed = False
        self._is_ending = False
        self._events: list[events.Event] = []
        self._commands: list[Command] = []
        self._feeds: list[NDArray[np.float32]] = []  # not yet one command
        self._feed_of: tuple[str, int] | None = None  # (turn, position)
        self._context = self._rendered()
        self._commands.append(Open(session_id, self._context))
        self.emit(events.session_created(self.settings.wire))

    # --- Driver's side ---------------------------------------------------------------------------

    def receive(self, message: str | bytes, now_ms: int) -> None:
        """Take one WebSocket message; faults become ``error`` events, never exceptions."""
        if self._is_closed:
            return
        self._advance(now_ms)
        self._client_ms = now_ms
        self._requests.receive(message, now_ms)

    def frames_to_score(self) -> list[NDArray[np.float32]]:
        """Frames [512] float32 16 kHz that wait for a speech probability, in order; drained.

        Every frame returned must be answered, in order, through :meth:`score_frames`.
        """
        return [] if self._is_closed else self.hearing.frames_to_score()

    def score_frames(self, probabilities: Sequence[float], now_ms: int) -> None:
        """Speech probabilities of the oldest frames handed out and not yet scored."""
        if self._is_closed:
            return
        self._advance(now_ms)
        for probability in probabilities:
            signal = self.hearing.next_signal(
                probability,
                is_assistant_heard=self.playback.is_audible,
                echo_source_db=self.playback.echo_source_db,
            )
            if signal is not None:
                self._on_signal(signal)
            self.hearing.listen()
            turn = self.hearing.turn
            longest = self.config.server.max_buffer_s * INPUT_RATE_HZ
            if turn is not None and self.hearing.position - turn.start >= longest:
                self._on_stopped()

    def handle(self, output: Output, now_ms: int) -> None:
        """Take one output of the assistant; outputs of unknown turns or responses are dropped."""
        if self._is_closed:
            return
        self._advance(now_ms)
        if isinstance(output, TurnScore):
            self._on_score(output)
        elif isinstance(output, TranscriptDelta):
            self.transcripts.add(output)
        elif isinstance(output, TranscriptDone):
            self.transcripts.finish(output)
            self._drop_empty_answer(output)
        elif isinstance(output, Failed) and output.response_id is None:
            self._fail(output)
        elif isinstance(output, Failed) and self.transcripts.fail(output):
            pass
        elif self._speculation and output.response_id == self._speculation.response_id:
            self._speculation.outputs.append(output)
            is_early_end = isinstance(output, Failed) or (
                isinstance(output, Done) and output.reason == "cancelled"
            )
            self._speculation.is_dead |= is_early_end
        elif (response := self.responses.get(output.response_id or "")) is not None:
            self._apply(response, output)

    def tick(self, now_ms: int) -> None:
        """Let time pass: idle, expiry, silent clients; at least every 50 ms."""
        if self._is_closed:
            return
        self._advance(now_ms)
        server = self.config.server
        if now_ms - self._created_ms >= server.max_session_age_s * 1000:
            self._end_all()
            self.emit(
                events.error(
                    f"The session has reached its maximum age of {server.max_session_age_s} s.",
                    "session_expired",
                )
            )
            self.close_code = (1001, "session expired")
        elif now_ms - self._client_ms >= server.max_idle_s * 1000:
            self._end_all()
            self.close_code = (1001, "idle")
        else:
            self._check_stall()
            self._check_idle()

    def report_played(self, item_id: str, played_ms: int, now_ms: int) -> None:
        """The client has played exactly ``played_ms`` of the item's audio (heard point).

        Also reachable as the client event ``omni.output_audio.played``
        ``{item_id, content_index: 0, played_ms}``, which is never answered.
        """
        item = self.items.get(item_id)
        if self._is_closed or item is None or item.spoken is None:
            return
        self._advance(now_ms)
        item.spoken.reported_ms = played_ms
        if item.spoken.is_cut:
            self.sync()
        elif self.items.last_spoken is item:
            self.playback.correct(max(item.spoken.duration_ms - played_ms, 0))

    def events_to_send(self) -> list[dict[str, Any]]:
        """Server events in order, each with ``event_id`` and ``type``; drained."""
        drained, self._events = self._events, []
        return drained

    def commands(self) -> list[Command]:
        """Commands for the assistant in order; drained. The first is Open."""
        self._flush_feed()
        drained, self._commands = self._commands, []
        return drained

    def close(self) -> None:
        """End the session: ends responses, emits the Close command. Idempotent."""
        if self._is_closed:
            return
        self._end_all()
        self.command(Close(self.session_id))
        self._is_closed = True

    # --- Shared with requests --------------------------------------------------------------------

    def emit(self, event: events.Event) -> None:
        self._events.append({"event_id": self.new_id("event"), **event})

    def command(self, command: Command) -> None:
        self._flush_feed()
        self._commands.append(command)

    def sync(self) -> None:
        """Tell the assistant of a changed conversation; an active response is left in peace."""
        if self.active is not None:
            return
        context = self._rendered()
        if context != self._context:
            self.drop_speculation()
            self._context = context
            self.command(Edit(self.session_id, context))

    def context_fits(self) -> bool:
        """Shorten the context as ``truncation`` says; False when it may not be and is too long."""
        limit = int(self.config.engine.max_context_tokens * CONTEXT_SHARE)
        return self.items.shrink(self.settings.instructions, self.settings.truncation, limit)

    def add_item(self, item: Item, after: str | None = None) -> str | None:
        """Insert an item, keep the list within its limit; returns the previous item's id."""
        previous = self.items.insert(item, after)
        self._evict()
        return previous

    def delete_item(self, item_id: str) -> bool:
        """Take an item out and say so; False when there is no such item."""
        if self.items.delete(item_id) is None:
            return False
        self.transcripts.forget(item_id)
        self.emit(events.item_deleted(item_id))
        return True

    def feed_all(self, turn_id: str, samples: NDArray[np.float32]) -> None:
        """Give the assistant a turn that the client brought along whole."""
        self.command(Feed(self.session_id, turn_id, samples, 0))
        self.command(Commit(self.session_id, turn_id))

    def note_audio(self) -> None:
        self._audio_ms = self._now_ms

    def apply_settings(self, settings: Settings) -> None:
        """Replace the effective session."""
        self.drop_speculation()
        self.settings = settings
        self.transcripts.options = settings.transcription
        self._discard(self.hearing.configure(settings))
        self.sync()

    def commit_buffer(self) -> None:
        """The client commits what it has sent; nobody answers by itself."""
        self.drop_speculation()
        self._commit(self.hearing.take_all(), respond=False)

    def clear_buffer(self) -> None:
        self.drop_speculation()
        self._discard(self.hearing.clear())

    def respond(
        self, settings: ResponseSettings, context: Context | None, turn_id: str | None = None
    ) -> None:
        """Begin a response the client knows of; ``context`` None: the conversation's."""
        if settings.is_in_band:
            self.drop_speculation()
        fits = self.context_fits() if context is None else True
        self.sync()
        response = self._start(self.new_id("resp"), settings, turn_id)
        if not fits:
            message = "The conversation is longer than the context and truncation is disabled."
            self._finish(response, "failed", error=("context_length_exceeded", message))
            return
        self.command(
            Respond(
                self.session_id,
                response.id,
                settings.config,
                context,
                out_of_band=not settings.is_in_band,
            )
        )

    def cancel(self, response: Response, reason: str) -> None:
        """End a response that the client cancelled or the user interrupted."""
        if response.is_in_band:
            self._stop_playback()
        self.command(Cancel(self.session_id, response.id))
        self._finish(response, "cancelled", reason)

    def drop_speculation(self) -> None:
        """The turn goes on, or what the speculation rested on has changed."""
        speculation, self._speculation = self._speculation, None
        if speculation is None:
            return
        for index, command in enumerate(self._commands):
            if isinstance(command, Speculate) and command.response_id == speculation.response_id:
                del self._commands[index]  # it was never submitted
                break
        else:
            self.command(Cancel(self.session_id, speculation.response_id))
        self.transcripts.reopen(speculation.turn_id)
        self.hearing.resume()

    # --- Turns -----------------------------------------------------------------------------------

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
        turn = self.hearing.open_turn()
        self._idle_since = None
        self.emit(events.speech_started(turn.id, _ms(turn.start)))
        detection = self.hearing.detection
        if detection is not None and detection.interrupt_response:
            self._owed_turn_id = None
            self._stop_playback()
            if self.active is not None:
                self.cancel(self.active, "turn_detected")
            self.sync()

    def _on_paused(self) -> None:
        turn, detection = self.hearing.turn, self.hearing.detection
        assert turn is not None
        assert detection is not None
        self.hearing.listen()
        if detection.kind == "semantic_vad":
            self._score_after_ms = _ms(turn.fed - turn.start)
            self.command(ScoreTurn(self.session_id, turn.id))
        if detection.create_response and self.active is None and self.context_fits():
            self.sync()
            settings = self.settings.response()
            self._speculation = Speculation(self.new_id("resp"), turn.id, settings)
            turn.is_held = True
            self.command(
                Speculate(self.session_id, turn.id, self._speculation.response_id, settings.config)
            )

    def _on_score(self, output: TurnScore) -> None:
        turn, detector = self.hearing.turn, self.hearing.detector
        # at_ms counts from the start of the turn; a score of an earlier pause heard less.
        is_stale = turn is None or turn.id != output.turn_id or output.at_ms < self._score_after_ms
        if detector is None or is_stale or not detector.is_paused:
            return
        if detector.score(output.probability) is not None:
            self._on_stopped()

    def _on_stopped(self) -> None:
        detection = self.hearing.detection
        turn = self.hearing.end_turn()
        assert turn is not None
        assert detection is not None
        self.emit(events.speech_stopped(turn.id, _ms(self.hearing.position)))
        self._commit(turn, respond=detection.create_response)

    def _commit(self, turn: Turn, *, respond: bool) -> None:
        """The turn becomes an item and, with ``respond``, is answered."""
        speculation, self._speculation = self._speculation, None
        is_empty = self.transcripts.is_known_empty(turn.id)
        is_confirmed = bool(respond and speculation and not speculation.is_dead and not is_empty)
        if speculation is not None and is_confirmed:
            self.command(Confirm(self.session_id, speculation.response_id))
            if any(isinstance(output, Done) for output in speculation.outputs):
                # The assistant may have let go of a finished speculation, and with it of the turn.
                self.command(Commit(self.session_id, turn.id))
        else:
            if speculation is not None:
                self.command(Cancel(self.session_id, speculation.response_id))
            self.command(Commit(self.session_id, turn.id))
        content = Content("input_audio", None, turn.id, is_shown=False)
        item = Item(turn.id, "message", "user", [content])
        previous = self.items.last_id
        self.emit(events.audio_committed(turn.id, previous))
        self.add_item(item)
        self.items.keep_audio(item.id, turn.audio, INPUT_RATE_HZ)
        self.emit(events.item_added(item.shown(), previous))
        self.emit(events.item_done(item.shown(), previous))
        self.transcripts.commit(turn.id)
        if not respond:
            self.sync()
        elif speculation is not None and is_confirmed:
            response = self._start(speculation.response_id, speculation.settings, turn.id)
            for output in speculation.outputs:
                self._apply(response, output)
        elif self.active is not None:
            self._owed_turn_id = turn.id
        elif is_empty:
            self._finish(
                self._start(self.new_id("resp"), self.settings.response(), turn.id), "completed"
            )
        else:
            self.respond(self.settings.response(), None, turn.id)

    def _drop_empty_answer(self, done: TranscriptDone) -> None:
        """A turn without words (noise) gets an empty response, unless words of it are out."""
        response = self.active
        if done.text or response is None or response.turn_id != done.turn_id:
            return
        if not response.has_output:
            self.command(Cancel(self.session_id, response.id))
            self._finish(response, "completed")

    def _check_stall(self) -> None:
        detector = self.hearing.detector
        if self.hearing.turn is None or detector is None:
            return
        if self._now_ms - self._audio_ms >= max(STALL_MS, detector.wait_ms):
            self._on_stopped()

    def _check_idle(self) -> None:
        detection = self.hearing.detection
        timeout_ms = detection.idle_timeout_ms if detection else None
        if timeout_ms is None or self._idle_since is None or self.active or self.hearing.turn:
            return
        since_ms, position = self._idle_since
        if self._now_ms < since_ms + timeout_ms:
            return
        self._idle_since = None
        item = Item(self.new_id("item"), "message", "user", [Content("input_audio", "")])
        end_ms = _ms(self.hearing.position)
        self.emit(events.timeout_triggered(item.id, min(_ms(position), end_ms), end_ms))
        previous = self.items.last_id
        self.emit(events.audio_committed(item.id, previous))
        self.add_item(item)
        self.emit(events.item_added(item.shown(), previous))
        self.emit(events.item_done(item.shown(), previous))
        self.respond(self.settings.response(), None)

    # --- Responses -------------------------------------------------------------------------------

    def _start(
        self, response_id: str, settings: ResponseSettings, turn_id: str | None = None
    ) -> Response:
        response = Response(response_id, settings, self._conversation_id, self._channels, turn_id)
        self.responses[response_id] = response
        if settings.is_in_band:
            assert self.active is None
            self.active = response
            self._idle_since = None
        return response

    def _apply(self, response: Response, output: ResponseOutput) -> None:
        if response.id not in self.responses:
            return  # an output before this one has ended it
        if isinstance(output, TextDelta):
            response.add_text(output.text)
        elif isinstance(output, AudioDelta):
            response.add_audio(output.pcm, output.marks)
            self.has_spoken |= response.has_audio
        elif isinstance(output, ToolCall):
            limit = self.config.server.max_tool_calls
            if self.items.num_pending_calls >= limit:
                self.command(Cancel(self.session_id, response.id))
                message = f"{limit} tool calls wait for their output; answer or delete some."
                self._finish(response, "failed", error=("too_many_tool_calls", message))
            else:
                response.add_call(output.call_id, output.name, output.arguments)
        elif isinstance(output, Failed):
            self._finish(response, "failed", error=(output.code, output.message))
        elif output.reason == "cancelled":
            message = "The assistant stopped this response."
            self._finish(response, "failed", error=("server_error", message), usage=output.usage)
        elif output.reason == "max_output_tokens":
            self._finish(response, "incomplete", "max_output_tokens", usage=output.usage)
        else:
            self._finish(response, "completed", usage=output.usage)

    def _finish(
        self,
        response: Response,
        status: Status,
        reason: str | None = None,
        error: tuple[str, str] | None = None,
        usage: Usage | None = None,
    ) -> None:
        """End a response; whatever comes for it later is dropped."""
        if status == "failed" and not response.has_output:
            response.add_notice()
        response.finish(status, usage or Usage(), reason, error)
        del self.responses[response.id]
        if response is not self.active:
            return
        self.active = None
        self._evict()
        self.sync()
        remaining_ms = self.playback.remaining_ms
        self._idle_since = (
            round(self._now_ms + remaining_ms),
            self.hearing.position + round(remaining_ms * INPUT_RATE_HZ / 1000),
        )
        owed, self._owed_turn_id = self._owed_turn_id, None
        if owed is not None and not self._is_ending:
            self.respond(self.settings.response(), None, owed)

    def _fail(self, failed: Failed) -> None:
        """The session cannot go on."""
        self._is_ending = True
        for response in list(self.responses.values()):
            self._finish(response, "failed", error=(failed.code, failed.message))
        self.emit(events.error(failed.message, failed.code, "server_error"))
        is_full = failed.code == "rate_limit_exceeded"
        self.close_code = (1013, "at capacity") if is_full else (1011, "internal error")

    def _end_all(self) -> None:
        """Cancel everything that is going on; the session is about to end."""
        self._is_ending = True
        self.drop_speculation()
        for response in list(self.responses.values()):
            self.command(Cancel(self.session_id, response.id))
            self._finish(response, "cancelled", "client_cancelled")

    def _stop_playback(self) -> None:
        """The client throws away what it has not played: what was heard is decided now."""
        self.items.stop_speech(self._now_ms)
        self.playback.flush()

    # --- Inside ----------------------------------------------------------------------------------

    def _advance(self, now_ms: int) -> None:
        self._now_ms = max(self._now_ms, now_ms)
        self.playback.advance(self._now_ms)

    def _rendered(self) -> Context:
        return self.items.render(self.settings.instructions, self.settings.tools)

    def _evict(self) -> None:
        """Keep the list of items within its limit; the oldest go."""
        while len(self.items) > self.config.server.max_items:
            oldest = self.items.oldest
            if oldest.status == "in_progress":
                break
            self.delete_item(oldest.id)

    def _discard(self, turn: Turn | None) -> None:
        """The assistant need not remember the turn."""
        if turn is not None:
            self.transcripts.forget(turn.id)
            if turn.fed > turn.start:
                self.command(Discard(self.session_id, turn.id))

    def _feed(self, turn: Turn, samples: NDArray[np.float32], position: int) -> None:
        if self._feed_of is None or self._feed_of[0] != turn.id:
            self._flush_feed()
            self.transcripts.open(turn.id)
            self._feed_of = (turn.id, position)
        self._feeds.append(samples)

    def _flush_feed(self) -> None:
        """Audio of one turn goes down as one command, before any command that follows it."""
        if self._feed_of is None:
            return
        (turn_id, position), self._feed_of = self._feed_of, None
        pieces, self._feeds = self._feeds, []
        samples = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        self._commands.append(Feed(self.session_id, turn_id, samples, _ms(position)))


def _ms(position: int) -> int:
    """Milliseconds of a position in samples at 16 kHz."""
    return position * 1000 // INPUT_RATE_HZ
