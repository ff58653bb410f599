"""The port ``submit(command)`` / ``step() -> outputs`` and the life of sessions behind it.

Called by :mod:`omni.worker` on the engine thread, one call at a time. Work over about 30 ms that
cannot be stepped (a recogniser pass, an end-of-turn score, speech) goes to ``parts`` and comes back
in :meth:`Assistant.step`; the engine never waits for it.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from omni.assistant.context import Context, sentence_ends
from omni.assistant.listening import Hearing, Turn
from omni.assistant.response import APOLOGY, Response, tool_opening, wrong_language
from omni.assistant.session import Session, asked_in, turn_ids
from omni.engine.engine import Engine, EngineStats, Priority, SamplingParams, TokenOutput
from omni.errors import CapacityError, OmniError
from omni.models import LoadedModel
from omni.parts import Parts
from omni.speech.contract import SpeechDecoder
from omni.types import (
    Cancel,
    Close,
    Command,
    Commit,
    Confirm,
    Conversation,
    Discard,
    Done,
    Edit,
    Failed,
    Feed,
    Message,
    Open,
    Output,
    Pause,
    Respond,
    Resume,
    ScoreTurn,
    Speculate,
    TranscriptDone,
    Usage,
)

logger = logging.getLogger(__name__)

ANSWER_RESERVE_TOKENS = 1024
"""Context kept free for the answer when old messages have to be left out."""


class Assistant:
    """Listens, thinks and speaks for many sessions with one set of weights."""

    def __init__(
        self,
        *,
        model: LoadedModel,
        engine: Engine,
        hearing: Hearing,
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
        self._sentence_ends = sentence_ends(model.tokenizer, model.template)
        self._sessions: dict[str, Session] = {}
        self._by_sequence: dict[int, Response] = {}
        self._outputs: list[Output] = []

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
                session.texts = {k: v for k, v in session.texts.items() if k in kept}
                self._advance(session)
            case Speculate():
                self._speculate(session, command)
            case Confirm():
                self._confirm(session, command)
            case Respond():
                self._respond(session, command)
            case Cancel():
                if response := session.responses.get(command.response_id):
                    self._end(session, response, "cancelled")
                if guess := session.guesses.pop(command.response_id, None):
                    self._drop_guess(guess)
            case Pause():
                self._pause(session, True)
            case Resume():
                self._pause(session, False)
            case Close():
                self._close(session)

    def step(self) -> list[Output]:
        self._parts.poll()
        if self._engine.has_work():
            for token in self._engine.step():
                self._take(token)
        outputs, self._outputs = self._outputs, []
        return outputs

    def has_work(self) -> bool:
        return bool(self._outputs) or self._engine.has_work() or self._parts.is_ready()

    def close(self) -> None:
        for session in list(self._sessions.values()):
            self._close(session)

    # --- looking ---------------------------------------------------------------------------------

    @property
    def speech(self) -> SpeechDecoder:
        return self._speech

    def stats(self) -> EngineStats:
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
            session.sequence = self._engine.add(priority=Priority.LISTENING)
            self._advance(session)
        except CapacityError as error:
            self._fail_session(session, "rate_limit_exceeded", str(error))

    def _fail_session(self, session: Session, code: str, message: str) -> None:
        self._close(session)
        self._outputs.append(Failed(session.session_id, None, code, message))

    def _close(self, session: Session) -> None:
        for turn in session.turns.values():
            turn.drop()
        for response in list(session.responses.values()):
            self._release(session, response)
        for guess in session.guesses.values():
            self._drop_guess(guess)
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
        tokens = session.context.render(
            session.conversation, session.texts, reserve_tokens=ANSWER_RESERVE_TOKENS
        )
        if turn is not None:
            tokens += session.context.listening(turn.stable_text)
        self._engine.set_priority(session.sequence, Priority.LISTENING)
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
        """A turn's final text is known: responses that waited for it can go on."""
        session.texts[turn.turn_id] = turn.final_text
        session.languages.pop(turn.turn_id, None)  # an earlier pass may have heard otherwise
        if turn.language != "en":
            session.languages[turn.turn_id] = turn.language
        for response in list(session.responses.values()):
            if turn.turn_id in response.waiting_for:
                response.waiting_for.discard(turn.turn_id)
                self._start_when_ready(session, response)
        if turn.is_ended:
            self._retire(session, turn)
            self._advance(session)

    def _retire(self, session: Session, turn: Turn) -> None:
        """The turn has ended and its text is known: say so, and let its audio go."""
        session.turns.pop(turn.turn_id, None)
        self._outputs.append(
            TranscriptDone(
                session.session_id, turn.turn_id, turn.final_text, turn.duration_ms, turn.language
            )
        )

    # --- responding ------------------------------------------------------------------------------

    def _speculate(self, session: Session, command: Speculate) -> None:
        turn = session.turns.get(command.turn_id)
        if turn is None:
            return
        message = Message("user", (turn.part(),))
        conversation = session.conversation
        response = Response(
            session.session_id,
            command.response_id,
            command.config,
            conversation=Conversation(
                instructions=conversation.instructions,
                tools=conversation.tools,
                messages=(*conversation.messages, message),
            ),
            turn=turn,
        )
        session.responses[command.response_id] = response
        response.waiting_for = {turn.turn_id}
        turn.hear_to_the_end()

    def _confirm(self, session: Session, command: Confirm) -> None:
        guess = session.guesses.pop(command.response_id, None)
        response = guess or session.responses.get(command.response_id)
        if response is None or (turn := response.turn) is None or not response.is_speculative:
            return
        response.is_speculative = False
        if response.sequence is not None:
            old, session.sequence = session.sequence, response.sequence
            if old is not None:
                self._engine.free(old)
            self._engine.set_priority(response.sequence, Priority.SPEAKING)
        turn.is_ended = True
        if turn.is_final:
            self._retire(session, turn)

    def _respond(self, session: Session, command: Respond) -> None:
        response = Response(
            session.session_id,
            command.response_id,
            command.config,
            conversation=command.conversation,
            out_of_band=command.out_of_band,
        )
        session.responses[command.response_id] = response
        conversation = command.conversation or session.conversation
        response.waiting_for = {
            turn_id
            for message in conversation.messages
            for turn_id in turn_ids(message)
            if turn_id in session.turns and not session.turns[turn_id].is_final
        }
        self._start_when_ready(session, response)

    def _start_when_ready(self, session: Session, response: Response) -> None:
        if response.waiting_for or response.sequence is not None:
            return  # not yet, or already
        turn = response.turn
        if turn is not None and not turn.final_text.strip():
            self._end(session, response, "completed")  # nobody said anything: nothing to answer
            return
        if (language := session.languages.get(asked_in(session, response))) is not None:
            self._outputs += response.notice(wrong_language(language), self._speech)
            self._end(session, response, "completed")
            return
        try:
            if turn is not None and response.is_speculative:
                self._measure(session, response, turn)
            self._start(session, response)
        except OmniError as error:
            self._fail(session, response, error)

    def _measure(self, session: Session, response: Response, turn: Turn) -> None:
        """Ask the backbone, in the step that begins the answer, whether the turn is a sentence.

        It knows better than the sound of the voice alone.
        """
        assert session.sequence is not None
        tokens = session.context.render(
            session.conversation, session.texts, reserve_tokens=ANSWER_RESERVE_TOKENS
        )
        tokens += session.context.unfinished(turn.final_text)
        probe = self._engine.fork(session.sequence, priority=Priority.SPECULATING)
        response.probe = probe
        self._by_sequence[probe] = response
        self._engine.sync(probe, tokens)
        self._engine.measure(probe, self._sentence_ends)

    def _start(self, session: Session, response: Response) -> None:
        """Give the response a sequence that ends in the assistant's header, and let it decode."""
        assert session.sequence is not None
        conversation = response.conversation or session.conversation
        if response.config.tool_choice == "none" or response.is_without_tools:
            conversation = replace(conversation, tools=())
        reserve = min(response.config.max_output_tokens, ANSWER_RESERVE_TOKENS)
        tokens = session.context.render(conversation, session.texts, reserve_tokens=reserve)
        tokens += session.context.answer_header(conversation)
        opening = tool_opening(response.config.tool_choice) if conversation.tools else ""
        if opening:
            tokens += self._model.tokenizer.encode(opening)
        if response.owns_session:
            priority = Priority.RESPONDING
        else:
            priority = Priority.SPECULATING if response.is_speculative else Priority.BACKGROUND
        sequence = session.sequence
        if response.sequence is not None:
            sequence = response.sequence  # a second try
        elif not response.owns_session:
            sequence = self._engine.fork(session.sequence, priority=priority)
        response.sequence = sequence
        self._by_sequence[sequence] = response
        self._engine.set_priority(sequence, priority)
        cached = self._engine.sync(sequence, tokens)
        response.begin(
            generated=session.context.begin(response.response_id),
            tokenizer=self._model.tokenizer,
            speech=self._speech,
            parts=self._parts,
            tools=tuple(tool.name for tool in conversation.tools),
            opening=opening,
            emit=self._emit,
            on_spoken=lambda: self._finish_when_spoken(session, response),
            on_failed=lambda error: self._fail(session, response, error),
            usage=Usage(input_text_tokens=len(tokens), cached_tokens=cached),
        )
        config = response.config
        self._engine.generate(
            sequence,
            SamplingParams(
                temperature=config.temperature,
                top_p=config.top_p,
                seed=config.seed,
                max_tokens=config.max_output_tokens,
                stop_ids=self._model.template.stop_ids,
            ),
        )
        if session.is_paused:
            self._engine.hold(sequence, True)
            response.pause(True)

    def _pause(self, session: Session, is_paused: bool) -> None:
        """The client reads too slowly: answers stand still, listening goes on."""
        session.is_paused = is_paused
        for response in session.responses.values():
            if response.sequence is not None:
                self._engine.hold(response.sequence, is_paused)
            response.pause(is_paused)

    def _take(self, token: TokenOutput) -> None:
        response = self._by_sequence.get(token.seq_id)
        if response is None:
            return
        session = self._sessions[response.session_id]
        if token.finish_reason == "measured":
            self._take_measure(response, token.probability)
            return
        if token.token_id is not None and token.finish_reason != "stop":
            response.take(token.token_id)
        if token.finish_reason is not None:
            response.finish(token.finish_reason)
            self._finish_when_spoken(session, response)

    def _take_measure(self, response: Response, probability: float) -> None:
        self._free_probe(response)
        if response.turn is not None and response.is_speculative:
            response.turn.complete(probability)

    def _free_probe(self, response: Response) -> None:
        if response.probe is not None:
            self._by_sequence.pop(response.probe)
            self._engine.free(response.probe)
            response.probe = None

    def _finish_when_spoken(self, session: Session, response: Response) -> None:
        if response.is_complete and response.response_id in session.responses:
            if response.has_refused_call and not response.is_without_tools:
                response.is_without_tools = True  # it called what does not exist: let it speak
                self._start(session, response)
            elif response.is_empty:
                self._fail(session, response, OmniError("the model gave no answer"))
            else:
                self._end(session, response, response.done_reason)

    def _end(self, session: Session, response: Response, reason: str) -> None:
        self._release(session, response)
        assert reason in ("completed", "max_output_tokens", "cancelled")
        self._outputs.append(
            Done(session.session_id, response.response_id, reason, response.total_usage())  # type: ignore[arg-type]
        )
        self._advance(session)

    def _fail(self, session: Session, response: Response, error: BaseException) -> None:
        """End a response that cannot go on; the user is told aloud, never left in silence."""
        if response.response_id not in session.responses:
            return
        logger.error("response %s failed: %s", response.response_id, error)
        self._release(session, response)
        self._outputs += response.notice(APOLOGY, self._speech)
        code = "rate_limit_exceeded" if isinstance(error, CapacityError) else "server_error"
        self._outputs.append(Failed(session.session_id, response.response_id, code, str(error)))
        self._advance(session)

    def _release(self, session: Session, response: Response) -> None:
        """Let go of everything the response holds, except the session's own sequence.

        A speculation that ended by itself keeps its sequence until it is confirmed or cancelled.
        """
        session.responses.pop(response.response_id, None)
        response.drop()
        self._free_probe(response)
        if response.sequence is not None:
            self._by_sequence.pop(response.sequence, None)
            self._engine.hold(response.sequence, False)
            self._engine.cancel(response.sequence)
        if response.is_speculative:
            session.guesses[response.response_id] = response
        elif response.sequence not in (None, session.sequence):
            self._engine.free(response.sequence)

    def _drop_guess(self, guess: Response) -> None:
        """The user went on: the speculation leaves no trace."""
        if guess.sequence is not None:
            self._engine.free(guess.sequence)
        if guess.turn is not None:
            guess.turn.resume()
