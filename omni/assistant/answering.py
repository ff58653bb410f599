"""From a question to its answer: which sequence a response gets, how it goes on, how it ends.

Used by :mod:`omni.assistant.assistant` on the engine thread. Knows sessions and the engine; what
becomes of tokens is :mod:`omni.assistant.response`, what is heard is
:mod:`omni.assistant.listening`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from omni_encoders.declining import REFUSALS

from omni.assistant.context import ANSWER_RESERVE_TOKENS, sentence_ends
from omni.assistant.listening import WHOLE_QUESTION, Turn
from omni.assistant.response import APOLOGY, Response, Voice, tool_opening, wrong_language
from omni.assistant.seeing import Seeing, own_answer
from omni.assistant.session import Session, asked_in, turn_ids
from omni.assistant.thoughts import is_opened_by
from omni.engine.engine import Engine, Priority, SamplingParams, TokenOutput
from omni.errors import CapacityError, OmniError
from omni.models import LoadedModel
from omni.parts import Parts
from omni.speech.contract import SpeechDecoder
from omni.types import (
    Confirm,
    Done,
    Failed,
    Message,
    Output,
    Respond,
    Say,
    Speculate,
    Usage,
)

logger = logging.getLogger(__name__)


class Answering:
    """The responses of all sessions.

    ``advance`` is called when a response has let go of its session's sequence.
    """

    def __init__(
        self,
        *,
        model: LoadedModel,
        engine: Engine,
        speech: SpeechDecoder,
        parts: Parts,
        seeing: Seeing,
        emit: Callable[[Output], None],
        advance: Callable[[Session], None],
    ) -> None:
        self._model = model
        self._engine = engine
        self._voice = Voice(speech, parts, emit)
        self._seeing = seeing
        self._emit = emit
        self._advance = advance
        self._sentence_ends = sentence_ends(model.tokenizer, model.template)
        self._by_sequence: dict[int, tuple[Session, Response]] = {}

    def speculate(self, session: Session, command: Speculate) -> None:
        """Answer a turn as if it had ended now."""
        turn = session.turns.get(command.turn_id)
        if turn is None:
            return
        message = Message("user", (*command.shown, turn.part()))
        guessed = replace(session.conversation, messages=(*session.conversation.messages, message))
        response = Response(
            session.session_id,
            command.response_id,
            command.config,
            self._voice,
            conversation=guessed,
            turn=turn,
        )
        session.responses[command.response_id] = response
        response.waiting_for = {turn.turn_id, *self._seeing.look(session, guessed)}
        turn.hear_to_the_end()

    def confirm(self, session: Session, command: Confirm) -> Turn | None:
        """A guess was right; returns the turn that has thereby ended."""
        guess = session.guesses.pop(command.response_id, None)
        response = guess or session.responses.get(command.response_id)
        if response is None or (turn := response.turn) is None or not response.is_speculative:
            return None
        response.is_speculative = False
        if response.sequence is not None:
            old, session.sequence = session.sequence, response.sequence
            if old is not None:
                self._engine.free(old)
            self._engine.set_priority(response.sequence, Priority.SPEAKING)
        return turn

    def respond(self, session: Session, command: Respond) -> None:
        """Answer once every turn and picture that the context holds is known."""
        response = Response(
            session.session_id,
            command.response_id,
            command.config,
            self._voice,
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
        response.waiting_for |= self._seeing.look(session, conversation)
        self._start_when_ready(session, response)

    def say(self, session: Session, command: Say) -> None:
        """Speak given words."""
        response = Response(
            session.session_id,
            command.response_id,
            command.config,
            self._voice,
            out_of_band=True,
        )
        session.responses[command.response_id] = response
        response.pause(session.is_paused)
        response.recite(command.text, lambda: self._end(session, response, "completed"))

    def cancel(self, session: Session, response_id: str) -> None:
        """Stop a response, or forget a guess that has ended by itself."""
        if response := session.responses.get(response_id):
            self._end(session, response, "cancelled")
        if guess := session.guesses.pop(response_id, None):
            self._drop_guess(guess)

    def known(self, session: Session, name: str) -> None:
        """A turn's final text, or a picture, is known: responses that waited for it can go on."""
        for response in list(session.responses.values()):
            if name in response.waiting_for:
                response.waiting_for.discard(name)
                self._start_when_ready(session, response)

    def close(self, session: Session) -> None:
        """The session is gone: let go of everything but its own sequence."""
        for response in list(session.responses.values()):
            self._release(session, response)
        for guess in session.guesses.values():
            self._drop_guess(guess)

    def _start_when_ready(self, session: Session, response: Response) -> None:
        if response.waiting_for or response.sequence is not None:
            return  # not yet, or already
        turn = response.turn
        if turn is not None and not turn.final_text.strip():
            self._end(session, response, "completed")  # nobody said anything: nothing to answer
            return
        if (language := session.languages.get(asked_in(session, response))) is not None:
            words = wrong_language(language)
            response.close_with(words, lambda: self._end(session, response, "completed"))
            return
        asked = response.conversation or session.conversation
        if (own := own_answer(asked, session.senses)) is not None:
            response.pause(session.is_paused)
            # No model measures it. What is declined may be half a question: "Is it ok to".
            if turn is not None and response.is_speculative and own not in REFUSALS:
                turn.complete(WHOLE_QUESTION)
            response.recite(own, lambda: self._end(session, response, "completed"))
            return
        try:
            self._start(session, response)
        except OmniError as error:
            self._fail(session, response, error)
            return
        if turn is not None and response.is_speculative:
            try:
                self._measure(session, response, turn)
            except CapacityError as error:  # the turn is judged by its sound alone
                self._free_probe(response)
                logger.info("session %s measures no turn: %s", session.session_id, error)

    def _measure(self, session: Session, response: Response, turn: Turn) -> None:
        """Ask the backbone, in the step that begins the answer, whether the turn is a sentence.

        It knows better than the sound of the voice alone.
        """
        assert session.sequence is not None
        tokens = session.context.render(
            session.conversation, session.senses, reserve_tokens=ANSWER_RESERVE_TOKENS
        )
        tokens += session.context.unfinished(turn.final_text)
        probe = self._engine.fork(session.sequence, priority=Priority.SPECULATING)
        response.probe = probe
        self._by_sequence[probe] = session, response
        self._engine.sync(probe, tokens)
        self._engine.measure(probe, self._sentence_ends)

    def _start(self, session: Session, response: Response) -> None:
        """Give the response a sequence that ends in the assistant's header, and let it decode."""
        assert session.sequence is not None
        conversation = response.conversation or session.conversation
        if response.config.tool_choice == "none" or response.is_without_tools:
            conversation = replace(conversation, tools=())
        is_whole = response.config.is_whole
        reserve = 1 if is_whole else min(response.config.max_output_tokens, ANSWER_RESERVE_TOKENS)
        tokens = session.context.render(
            conversation, session.senses, reserve_tokens=reserve, is_whole=is_whole
        )
        begun: list[int] = []
        opening = ""
        if conversation.tools:
            begun, opening = tool_opening(response.config.tool_choice, self._model.template)
        header = session.context.answer_header(conversation, thinking=not begun)
        tokens += header + begun
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
        self._by_sequence[sequence] = session, response
        self._engine.set_priority(sequence, priority)
        cached = self._engine.sync(sequence, tokens)
        response.begin(
            generated=session.context.begin(response.response_id),
            tokenizer=self._model.tokenizer,
            tools=conversation.tools,
            opening=opening,
            is_thinking=is_opened_by(header, self._model.tokenizer),
            on_spoken=lambda: self._finish_when_spoken(session, response),
            on_failed=lambda error: self._fail(session, response, error),
            usage=Usage(
                input_text_tokens=len(tokens) - tokens.num_embeddings,
                input_image_tokens=tokens.num_embeddings,
                cached_tokens=cached,
            ),
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

    def pause(self, session: Session, is_paused: bool) -> None:
        """The client reads too slowly: answers stand still, listening goes on."""
        session.is_paused = is_paused
        for response in session.responses.values():
            if response.sequence is not None:
                self._engine.hold(response.sequence, is_paused)
            response.pause(is_paused)

    def take(self, token: TokenOutput) -> None:
        """One output of the engine."""
        session, response = self._by_sequence.get(token.seq_id, (None, None))
        if session is None or response is None:
            return
        if token.finish_reason == "measured":
            self._take_measure(response, token.probability)
            return
        if token.token_id is not None and token.finish_reason != "stop":
            response.take(token.token_id)
        if token.finish_reason == "capacity":
            self._fail(session, response, CapacityError(token.message))
        elif token.finish_reason == "error":
            self._fail(session, response, OmniError("the model computed no numbers"))
        elif token.finish_reason is not None:
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
                try:
                    self._start(session, response)
                except OmniError as error:
                    self._fail(session, response, error)
            elif response.is_cut_in_thought:
                reason = response.done_reason
                response.close_with(APOLOGY, lambda: self._end(session, response, reason))
            elif response.is_empty and not response.is_cut_in_writing:
                self._fail(session, response, OmniError("the model gave no answer"))
            else:
                self._end(session, response, response.done_reason)

    def _end(self, session: Session, response: Response, reason: str) -> None:
        self._release(session, response)
        assert reason in ("completed", "max_output_tokens", "cancelled")
        self._emit(
            Done(
                session.session_id,
                response.response_id,
                reason,  # type: ignore[arg-type]
                response.total_usage(),
                is_thinking=response.is_cut_in_thought,
            )
        )
        self._advance(session)

    def _fail(self, session: Session, response: Response, error: BaseException) -> None:
        """End a response that cannot go on; the user is told aloud, never left in silence."""
        if response.response_id not in session.responses or response.is_closing:
            return
        logger.error("response %s failed: %s", response.response_id, error)
        code = error.code if isinstance(error, OmniError) else OmniError.code
        failed = Failed(session.session_id, response.response_id, code, str(error))
        self._let_go(session, response, is_kept=False)

        def end() -> None:
            self._release(session, response)
            self._emit(failed)
            self._advance(session)

        if response.is_speculative:  # nobody waits for it: its turn is answered once it has ended
            end()
        else:
            response.close_with(APOLOGY, end)

    def _let_go(self, session: Session, response: Response, *, is_kept: bool) -> None:
        """Stop computing for the response; its sequence stays only if kept or the session's."""
        self._free_probe(response)
        if response.sequence is None:
            return
        self._by_sequence.pop(response.sequence, None)
        self._engine.hold(response.sequence, False)
        self._engine.cancel(response.sequence)
        if not is_kept:
            if response.sequence != session.sequence:
                self._engine.free(response.sequence)
            response.sequence = None

    def _release(self, session: Session, response: Response) -> None:
        """Let go of everything the response holds, except the session's own sequence.

        A speculation that ended by itself keeps its sequence until it is confirmed or cancelled.
        """
        session.responses.pop(response.response_id, None)
        response.drop()
        self._let_go(session, response, is_kept=response.is_speculative)
        if response.is_speculative:
            session.guesses[response.response_id] = response
        if response.out_of_band:  # no edit of the conversation need ever come
            asked = response.conversation or session.conversation
            session.context.forget(response.response_id, asked, session.conversation)
            self._seeing.prune(session)

    def _drop_guess(self, guess: Response) -> None:
        """The user went on: the speculation leaves no trace."""
        if guess.sequence is not None:
            self._engine.free(guess.sequence)
        if guess.turn is not None:
            guess.turn.resume()
