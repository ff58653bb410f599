"""The port ``submit(command)`` / ``step() -> outputs`` and the life of sessions behind it.

Called by :mod:`omni.worker` on the engine thread, one call at a time. Work over about 30 ms that
cannot be stepped (a recogniser pass, an end-of-turn score, speech) goes to ``parts`` and comes back
in :meth:`Assistant.step`; the engine never waits for it.
"""

from __future__ import annotations

import logging

from omni.assistant.answering import Answering
from omni.assistant.context import ANSWER_RESERVE_TOKENS, Context
from omni.assistant.listening import Hearing, Turn
from omni.assistant.seeing import Seeing, Sight
from omni.assistant.session import Session, turn_ids
from omni.assistant.watching import Watcher, Watching
from omni.engine.engine import Engine, EngineStats, Priority
from omni.errors import CapacityError
from omni.models import LoadedModel
from omni.parts import Parts
from omni.speech.contract import SpeechDecoder
from omni.types import (
    Cancel,
    Close,
    Command,
    Commit,
    Confirm,
    Discard,
    Edit,
    Failed,
    Feed,
    Look,
    Open,
    Output,
    Pause,
    Respond,
    Resume,
    Say,
    ScoreTurn,
    Speculate,
    TranscriptDone,
)

logger = logging.getLogger(__name__)


class Assistant:
    """Listens, thinks and speaks for many sessions with one set of weights."""

    def __init__(
        self,
        *,
        model: LoadedModel,
        engine: Engine,
        hearing: Hearing,
        sight: Sight,
        watcher: Watcher | None = None,
        speech: SpeechDecoder,
        parts: Parts,
        instructions: str,
        max_context_tokens: int,
    ) -> None:
        self._model = model
        self._engine = engine
        self._hearing = hearing
        self._speech = speech
        self._parts = parts
        self._instructions = instructions
        self._max_tokens = min(model.context_tokens, max_context_tokens)
        self._sessions: dict[str, Session] = {}
        self._outputs: list[Output] = []
        self._seeing = Seeing(sight, parts, on_seen=self._seen)
        self._watching = Watching(watcher, parts, emit=self._emit)
        self._answering = Answering(
            model=model,
            engine=engine,
            speech=speech,
            parts=parts,
            seeing=self._seeing,
            emit=self._emit,
            advance=self._advance,
        )

    # --- the port --------------------------------------------------------------------------------

    def submit(self, command: Command) -> None:
        if isinstance(command, Open):
            self._open(command)
            return
        session = self._sessions.get(command.session_id)
        if session is None:
            return
        match command:
            case Feed():
                self._feed(session, command)
            case ScoreTurn():
                if turn := session.turns.get(command.turn_id):
                    turn.score()
            case Commit():
                if turn := session.turns.get(command.turn_id):
                    turn.finish()
            case Discard():
                if turn := session.turns.pop(command.turn_id, None):
                    turn.drop()
                self._advance(session)
            case Edit():
                session.conversation = command.conversation
                session.context.prune(command.conversation, {*session.responses, *session.guesses})
                kept = {p for m in command.conversation.messages for p in turn_ids(m)}
                kept |= set(session.turns)
                texts = session.senses.texts
                session.senses.texts = {k: v for k, v in texts.items() if k in kept}
                self._seeing.prune(session)
                self._advance(session)
            case Speculate():
                self._answering.speculate(session, command)
            case Confirm():
                if turn := self._answering.confirm(session, command):
                    turn.is_ended = True
                    if turn.is_final:
                        self._retire(session, turn)
            case Respond():
                self._answering.respond(session, command)
            case Say():
                self._answering.say(session, command)
            case Look():
                self._watching.look(session, command)
            case Cancel():
                self._answering.cancel(session, command.response_id)
            case Pause():
                self._answering.pause(session, True)
            case Resume():
                self._answering.pause(session, False)
            case Close():
                self._close(session)

    def step(self) -> list[Output]:
        self._parts.poll()
        if self._engine.has_work():
            for token in self._engine.step():
                self._answering.take(token)
        outputs, self._outputs = self._outputs, []
        return outputs

    def has_work(self) -> bool:
        return bool(self._outputs) or self._engine.has_work() or self._parts.is_ready()

    def close(self) -> None:
        for session in list(self._sessions.values()):
            self._close(session)

    # --- looking ---------------------------------------------------------------------------------

    @property
    def sees_natively(self) -> bool:
        """Whether the model looks at pictures itself, with a vision tower of its own."""
        return self._model.vision is not None

    @property
    def speech(self) -> SpeechDecoder:
        return self._speech

    def stats(self) -> EngineStats:
        """On the engine thread only, as everything here; others read ``Worker.stats``."""
        return self._engine.stats()

    def check_integrity(self) -> None:
        """Raise AssertionError if the engine's books do not balance."""
        self._engine.check_integrity()

    def context_text(self, session_id: str) -> str:
        """What the session's sequence holds, special tokens shown: for tests and debugging."""
        sequence = self._sessions[session_id].sequence
        assert sequence is not None
        return self._model.tokenizer.decode(self._engine.tokens(sequence), special=True)

    def _emit(self, output: Output) -> None:
        self._outputs.append(output)

    # --- sessions --------------------------------------------------------------------------------

    def _open(self, command: Open) -> None:
        context = Context(
            self._model.template,
            self._model.tokenizer,
            instructions=self._instructions,
            max_tokens=self._max_tokens,
        )
        session = Session(command.session_id, command.conversation, context)
        self._sessions[command.session_id] = session
        try:
            session.sequence = self._engine.add(
                priority=Priority.LISTENING, owner=session.session_id
            )
            self._advance(session)
        except CapacityError as error:
            self._fail_session(session, "rate_limit_exceeded", str(error))

    def _fail_session(self, session: Session, code: str, message: str) -> None:
        self._close(session)
        self._outputs.append(Failed(session.session_id, None, code, message))

    def _close(self, session: Session) -> None:
        for turn in session.turns.values():
            turn.drop()
        self._seeing.close(session)
        self._watching.close(session)
        self._answering.close(session)
        if session.sequence is not None:
            self._engine.free(session.sequence)
        self._sessions.pop(session.session_id, None)

    def _advance(self, session: Session) -> None:
        """Bring the session's sequence up to the conversation and the turn being spoken.

        Listening is prefill: the stable words of the turn are computed while the user still talks.
        A response that holds the sequence is left alone; its end calls this again.
        """
        if session.sequence is None or session.speaking is not None:
            return
        turn = next((t for t in session.turns.values() if not t.is_ended), None)
        unseen = self._seeing.look(session, session.conversation)
        tokens = session.context.render(
            session.conversation, session.senses, reserve_tokens=ANSWER_RESERVE_TOKENS
        )
        if turn is not None and not unseen:
            tokens += session.context.listening(turn.stable_text)
        self._engine.set_priority(session.sequence, Priority.LISTENING)
        self._engine.keep(session.sequence, session.context.num_system_tokens(session.conversation))
        try:
            self._engine.sync(session.sequence, tokens)
        except CapacityError as error:
            # Listening ahead only saves time: the response that needs these tokens reports it.
            logger.info("session %s waits for room: %s", session.session_id, error)

    # --- listening -------------------------------------------------------------------------------

    def _feed(self, session: Session, command: Feed) -> None:
        turn = session.turns.get(command.turn_id)
        if turn is None:
            turn = Turn(
                session.session_id,
                command.turn_id,
                self._hearing,
                self._parts,
                emit=self._emit,
                on_words=lambda: self._advance(session),
                on_urgent=self._give_way,
                on_final=lambda t: self._heard(session, t),
            )
            session.turns[command.turn_id] = turn
        turn.feed(command.samples)

    def _give_way(self) -> None:
        for session in self._sessions.values():
            for turn in session.turns.values():
                turn.give_way()

    def _heard(self, session: Session, turn: Turn) -> None:
        """A turn's final text is known."""
        session.senses.texts[turn.turn_id] = turn.final_text
        session.languages.pop(turn.turn_id, None)  # an earlier pass may have heard otherwise
        if turn.language != "en":
            session.languages[turn.turn_id] = turn.language
        self._answering.known(session, turn.turn_id)
        if turn.is_ended:
            self._retire(session, turn)
            self._advance(session)

    def _seen(self, session: Session, media_id: str) -> None:
        """A picture was looked at."""
        self._answering.known(session, media_id)
        self._advance(session)

    def _retire(self, session: Session, turn: Turn) -> None:
        """The turn has ended and its text is known: say so, and let its audio go."""
        session.turns.pop(turn.turn_id, None)
        self._outputs.append(
            TranscriptDone(
                session.session_id, turn.turn_id, turn.final_text, turn.duration_ms, turn.language
            )
        )
