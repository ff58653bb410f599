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
:mod:`omni_streaming.turn_taking` listens to the user, :mod:`omni_streaming.requests` carries out
client events; both act on the session through its public methods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from omni.config import Config
from omni.types import (
    AudioDelta,
    Cancel,
    Close,
    Command,
    Edit,
    Failed,
    Open,
    Output,
    Progress,
    Respond,
    Seen,
    TextDelta,
    ToolCall,
    TranscriptDelta,
    TranscriptDone,
    TurnScore,
    Usage,
)
from omni.types import Conversation as Context
from omni_streaming import events
from omni_streaming.command_queue import CommandQueue
from omni_streaming.conversation import MAX_HISTORY_CHARS, Item, ItemList
from omni_streaming.describing import Describing
from omni_streaming.playback import Playback
from omni_streaming.requests import Requests
from omni_streaming.response import Channels, Response, ResponseOutput, Status
from omni_streaming.settings import Intent, ResponseSettings, Settings
from omni_streaming.turn_taking import TurnTaking

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CUT_IN_THOUGHT = "it was still thinking when max_output_tokens ended it"

CONTEXT_SHARE = 0.75
"""Share of the backbone's context that the conversation may fill; the rest is for the answer."""


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
        has_native_sight: the model looks at pictures itself.

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
        has_native_sight: bool = False,
    ) -> None:
        self.session_id = session_id
        self.config = config
        self.new_id = new_id
        self.has_native_sight = has_native_sight
        self.close_code: tuple[int, str] | None = None
        """Set when the driver must close the socket: (WebSocket close code, reason)."""
        self._events: list[events.Event] = []
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
        self.now_ms = now_ms
        self.is_ending = False
        self.has_spoken = False
        self.items = ItemList()
        self.playback = Playback(now_ms)
        self.queue = CommandQueue(session_id)
        self.active: Response | None = None
        self.responses: dict[str, Response] = {}
        self.describing = Describing(self)
        self.turns = TurnTaking(self)
        self._requests = Requests(self)
        self._channels = Channels(self.emit, self.items, self.playback, new_id)
        self._conversation_id = new_id("conv")
        self._created_ms = now_ms
        self._client_ms = now_ms  # when the client was last heard of
        self._is_closed = False
        self._context = self._rendered()
        self._is_stale = False  # the assistant may not know the latest of the conversation
        self.describing.configure(self.settings.omni)
        self.queue.add(Open(session_id, self._context))
        self.emit(events.session_created(self.settings.shown()))

    # --- Driver's side ---------------------------------------------------------------------------

    def receive(self, message: str | bytes, now_ms: int) -> None:
        """Take one WebSocket message; faults become ``error`` events, never exceptions."""
        if self._is_over:
            return
        self._advance(now_ms)
        self._client_ms = now_ms
        self._requests.receive(message)

    def frames_to_score(self) -> list[NDArray[np.float32]]:
        """Frames [512] float32 16 kHz that wait for a speech probability, in order; drained.

        Every frame returned must be answered, in order, through :meth:`score_frames`.
        """
        return [] if self._is_over else self.turns.frames_to_score()

    def score_frames(self, probabilities: Sequence[float], now_ms: int) -> None:
        """Speech probabilities of the oldest frames handed out and not yet scored."""
        if not self._is_over:
            self._advance(now_ms)
            self.turns.score(probabilities)

    def handle(self, output: Output, now_ms: int) -> None:
        """Take one output of the assistant; outputs of unknown turns or responses are dropped."""
        if self._is_over:
            return
        self._advance(now_ms)
        if isinstance(output, TurnScore):
            self.turns.take_score(output)
        elif isinstance(output, TranscriptDelta):
            self.turns.take_transcript(output)
        elif isinstance(output, TranscriptDone):
            self.turns.take_transcript(output)
            self._drop_empty_answer(output)
            self.turns.resolve(output.turn_id, output.text)
        elif isinstance(output, Seen):
            self.describing.take(output)
        elif isinstance(output, Failed) and output.response_id is None:
            self._fail(output)
        elif isinstance(output, Failed) and self.turns.take_failure(output):
            pass
        elif not self.turns.hold(output):
            self.apply(output)

    def tick(self, now_ms: int) -> None:
        """Let time pass: idle, expiry, silent clients; at least every 50 ms."""
        if self._is_over:
            return
        self._advance(now_ms)
        server = self.config.server
        if now_ms - self._created_ms >= server.max_session_age_s * 1000:
            self._end_all()
            message = f"The session has reached its maximum age of {server.max_session_age_s} s."
            self.emit(events.error(message, "session_expired"))
            self.close_code = (1001, "session expired")
        elif now_ms - self._client_ms >= server.max_idle_s * 1000:
            self._end_all()
            self.close_code = (1001, "idle")
        else:
            self.turns.tick()
            self.describing.tick()

    def report_played(self, item_id: str, played_ms: int, now_ms: int) -> None:
        """The client has played exactly ``played_ms`` of the item's audio (heard point).

        Also reachable as the client event ``omni.output_audio.played``
        ``{item_id, content_index: 0, played_ms}``, which is never answered.
        """
        item = self.items.get(item_id)
        if self._is_over or item is None or item.spoken is None:
            return
        self._advance(now_ms)
        item.spoken.report(played_ms, self.now_ms)
        if item.spoken.is_cut:
            self.sync()
        elif self.items.last_spoken is item:
            self.playback.correct(max(item.spoken.duration_ms - played_ms, 0))

    def events_to_send(self) -> list[dict[str, Any]]:
        """Server events in order, each with ``event_id`` and ``type``; drained."""
        drained, self._events = self._events, []
        return drained

    def commands(self, *, edit: bool = True) -> list[Command]:
        """Commands for the assistant in order; drained. The first is Open.

        Changes of the conversation since the last call are one Edit, or wait with ``edit`` False;
        what depends on them never comes before them.
        """
        if edit:
            self.sync_now()
        return self.queue.drain()

    def close(self) -> None:
        """End the session: ends responses, emits the Close command. Idempotent."""
        if self._is_closed:
            return
        self._end_all()
        self.queue.add(Close(self.session_id))
        self._is_closed = True
        # The parts of a session refer to each other: what they hold would wait for the collector.
        self.turns.close()
        self.describing.configure(None)
        self.items.clear()

    # --- Items -----------------------------------------------------------------------------------

    def emit(self, event: events.Event) -> None:
        """Queue a server event."""
        self._events.append({"event_id": self.new_id("event"), **event})

    def add_item(self, item: Item, after: str | None = None) -> None:
        """Insert a whole item and say so; the list stays within its limit."""
        previous = self.items.insert(item, after)
        self.emit(events.item_added(item.shown(), previous))
        self.emit(events.item_done(item.shown(), previous))
        self._evict()

    def delete_item(self, item_id: str) -> bool:
        """Take an item out and say so; False when there is no such item."""
        if self.items.delete(item_id) is None:
            return False
        self.turns.forget(item_id)
        self.emit(events.item_deleted(item_id))
        return True

    def apply_settings(self, settings: Settings) -> None:
        """Replace the effective session."""
        self.settings = settings
        self.turns.configure(settings)
        self.describing.configure(settings.omni)
        self.sync()

    def note_describe(self, options: Mapping[str, Any]) -> None:
        """The user has changed describe mode by voice or key: show the session as it is now."""
        self.settings = self.settings.with_describe(options)
        self.emit(events.session_updated(self.settings.shown()))

    def sync(self) -> None:
        """The conversation may have changed: tell the assistant with the next commands."""
        self._is_stale = True

    def sync_now(self) -> None:
        """Tell the assistant of a changed conversation; an active response is left in peace."""
        if not self._is_stale or self.active is not None or self.is_ending:
            return
        self._is_stale = False
        context = self._rendered()
        if context != self._context:
            self.turns.drop_speculation()
            self._context = context
            self.queue.add(Edit(self.session_id, context))

    def context_fits(self) -> bool:
        """Shorten the context as ``truncation`` says; False when it may not be and is too long."""
        settings = self.settings
        return self.items.shrink(settings.instructions, settings.truncation, self._context_limit)

    @property
    def _context_limit(self) -> int:
        return int(self.config.engine.max_context_tokens * CONTEXT_SHARE)

    # --- Responses -------------------------------------------------------------------------------

    def respond(
        self, settings: ResponseSettings, context: Context | None, turn_id: str | None = None
    ) -> None:
        """Begin a response; ``context`` None: the conversation's."""
        if settings.is_in_band:
            self.turns.drop_speculation()
        fits = self.context_fits() if context is None else True
        self.sync()
        self.sync_now()
        response = self.begin(self.new_id("resp"), settings, turn_id)
        if fits:
            self.queue.add(
                Respond(
                    self.session_id,
                    response.id,
                    settings.config,
                    context,
                    out_of_band=not settings.is_in_band,
                )
            )
        else:
            num_tokens = self.items.context_tokens(self.settings.instructions)
            message = (
                f"About {num_tokens} tokens are needed and the context has room for "
                f"{self._context_limit} beside an answer; truncation is disabled."
            )
            self._finish(response, "failed", error=("context_length_exceeded", message))

    def answer_nothing(self, turn_id: str) -> None:
        """A turn without words is answered by an empty response."""
        settings = self.settings.response()
        self._finish(self.begin(self.new_id("resp"), settings, turn_id), "completed")

    def begin(
        self,
        response_id: str,
        settings: ResponseSettings,
        turn_id: str | None = None,
        *,
        is_notice: bool = False,
    ) -> Response:
        """Tell the client of a response that the assistant works at, or is about to.

        ``is_notice``: what it says is an item like others, but not for the model to repeat.
        """
        response = Response(
            response_id,
            settings,
            self._conversation_id,
            self._channels,
            turn_id,
            is_notice=is_notice,
        )
        self.responses[response_id] = response
        if settings.is_in_band:
            assert self.active is None
            self.active = response
            self.turns.response_started()
            self.describing.began(response)
        return response

    def apply(self, output: ResponseOutput) -> None:
        """Carry out an output of a response, if it has not ended."""
        response = self.responses.get(output.response_id or "")
        if response is None:
            return
        if isinstance(output, Progress):
            response.usage = output.usage
        elif isinstance(output, TextDelta):
            response.add_text(output.text)
            if response.settings.config.modality == "text" and response.is_in_band:
                self.describing.wrote(response, output.text)
        elif isinstance(output, AudioDelta):
            response.add_audio(output.pcm, output.marks)
            self.has_spoken |= response.has_audio
            if response.has_audio and response.is_in_band:
                self.describing.sounded(response)
        elif isinstance(output, ToolCall):
            limit = self.config.server.max_tool_calls
            if self.items.num_pending_calls >= limit:
                self.queue.add(Cancel(self.session_id, response.id))
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
            error = ("max_output_tokens", CUT_IN_THOUGHT) if output.is_thinking else None
            self._finish(response, "incomplete", output.reason, error, output.usage)
        else:
            self._finish(response, "completed", usage=output.usage)

    def cancel(self, response: Response, reason: str) -> None:
        """End a response that the client cancelled or the user interrupted."""
        if response.is_in_band:
            self._stop_playback()
        self.queue.add(Cancel(self.session_id, response.id))
        self._finish(response, "cancelled", reason)

    def interrupt(self) -> None:
        """The user speaks: the assistant falls silent, and remembers what was heard of it."""
        self._stop_playback()
        if self.active is not None:
            self.cancel(self.active, "turn_detected")
        self.sync()

    def fall_silent(self) -> None:
        """Describe mode has something more urgent to say, or the user wants silence."""
        if self.playback.is_audible:
            self.emit(events.stop_playback())
        self._stop_playback()
        if self.active is not None:
            owed = self.turns.take_owed()
            self.cancel(self.active, "turn_detected")
            self.turns.owe(owed)  # to be answered after what is said now
        self.sync()

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
        response.finish(status, usage or response.usage, reason, error)
        del self.responses[response.id]
        if response is self.active:
            self.active = None
            self._evict()
            self.sync()
            self.turns.response_ended()

    def _drop_empty_answer(self, done: TranscriptDone) -> None:
        """A turn without words (noise) gets an empty response, unless words of it are out."""
        response = self.active
        if done.text.strip() or response is None or response.turn_id != done.turn_id:
            return
        if not response.has_output:
            self.queue.add(Cancel(self.session_id, response.id))
            self._finish(response, "completed")

    def _fail(self, failed: Failed) -> None:
        """The session cannot go on."""
        self.is_ending = True
        for response in list(self.responses.values()):
            self._finish(response, "failed", error=(failed.code, failed.message))
        self.emit(events.error(failed.message, failed.code, "server_error"))
        is_full = failed.code == "rate_limit_exceeded"
        self.close_code = (1013, "at capacity") if is_full else (1011, "internal error")

    def _end_all(self) -> None:
        """Cancel everything that is going on; the session is about to end."""
        self.is_ending = True
        self.turns.drop_speculation()
        for response in list(self.responses.values()):
            self.queue.add(Cancel(self.session_id, response.id))
            self._finish(response, "cancelled", "client_cancelled")

    def _stop_playback(self) -> None:
        """The client throws away what it has not played: what was heard is decided now."""
        self.items.stop_speech(self.now_ms)
        self.playback.flush()

    # --- Inside ----------------------------------------------------------------------------------

    @property
    def _is_over(self) -> bool:
        """Closed, or about to be by the driver."""
        return self._is_closed or self.close_code is not None

    def _advance(self, now_ms: int) -> None:
        self.now_ms = max(self.now_ms, now_ms)
        self.playback.advance(self.now_ms)

    def _rendered(self) -> Context:
        instructions = self.describing.guided(self.settings.instructions)
        return self.items.render(instructions, self.settings.tools)

    def _evict(self) -> None:
        """Keep the items within their limits; the oldest go."""
        max_items = self.config.server.max_items
        while len(self.items) > max_items or self.items.num_chars > MAX_HISTORY_CHARS:
            oldest = self.items.oldest
            if oldest.status == "in_progress":
                break
            self.delete_item(oldest.id)
