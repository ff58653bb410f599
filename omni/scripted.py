"""An assistant without weights: answers by script, with the timing and order of a real one.

Called by tests and demonstrations in the place of :class:`omni.assistant.Assistant`; it implements
the same port. Deterministic: outputs depend on the commands and on how often ``step`` is called,
never on a clock. Each step says one word of every response under way, in order of their ids'
arrival, so that a test can interrupt an answer at any word.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from omni.parts import Parts
from omni.scene import Scene
from omni.types import (
    OUTPUT_RATE_HZ,
    AudioDelta,
    AudioPart,
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
    Look,
    Mark,
    Message,
    Open,
    Output,
    Pause,
    Progress,
    Respond,
    ResponseConfig,
    Resume,
    Say,
    ScoreTurn,
    Seen,
    Speculate,
    TextDelta,
    TextPart,
    ToolCall,
    TranscriptDelta,
    TranscriptDone,
    TurnScore,
    Usage,
)

_Reason = Literal["completed", "max_output_tokens", "cancelled"]

WORD_MS = 240
"""Every word is spoken this long: 250 words a minute."""
TONE_HZ = 220.0
TONE_AMPLITUDE = 0.1  # -23 dB re full scale, as loud as speech
SILENCE_DB = -60.0
"""A turn that never gets louder than this holds no words."""


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call of the script; ``arguments`` is JSON text."""

    name: str
    arguments: str = "{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the assistant says, then calls; ``failure`` is a code to fail with at the end."""

    text: str = ""
    calls: tuple[Call, ...] = ()
    failure: str = ""


def repeat_last(conversation: Conversation) -> Answer:
    """The default script: say what was said, or what a tool returned."""
    for message in reversed(conversation.messages):
        for part in message.parts:
            if message.role == "tool":
                return Answer(text=f"The tool says {getattr(part, 'output', '')}.")
            text = getattr(part, "text", None) or getattr(part, "transcript", None)
            if message.role == "user" and text:
                return Answer(text=f"You said: {text}")
    return Answer(text="I am listening.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What is heard and said; each sequence is used in order and starts over at its end."""

    transcripts: tuple[str, ...] = ("hello there",)
    scores: tuple[float, ...] = (0.95,)
    answers: tuple[Answer, ...] = ()
    answer: Callable[[Conversation], Answer] = repeat_last
    """Asked for every answer when ``answers`` is empty."""
    scenes: tuple[Scene, ...] = ()
    """What the camera shows, look by look; the last one stays. Empty: there are no eyes."""


@dataclass(slots=True)
class _Turn:
    id: str
    transcript: str
    num_samples: int = 0
    is_loud: bool = False
    num_words_out: int = 0
    is_ended: bool = False

    @property
    def words(self) -> list[str]:
        return _words(self.transcript) if self.is_loud else []


@dataclass(slots=True)
class _Response:
    id: str
    config: ResponseConfig
    conversation: Conversation
    turn: _Turn | None = None  # whose end it waits for, as a speculation does
    words: list[str] | None = None  # still to be said; None: not begun
    calls: list[Call] = field(default_factory=list)
    failure: str = ""
    is_cut: bool = False  # by max_output_tokens
    num_words: int = 0
    num_chars: int = 0
    num_samples: int = 0


@dataclass(slots=True)
class _Session:
    conversation: Conversation
    turns: dict[str, _Turn] = field(default_factory=dict)
    heard: dict[str, str] = field(default_factory=dict)
    responses: dict[str, _Response] = field(default_factory=dict)
    speculated: dict[str, str] = field(default_factory=dict)  # response id -> turn id
    is_paused: bool = False


class ScriptedAssistant:
    """Implements the assistant's port by a script."""

    voices: tuple[str, ...] = ("heart", "tone")

    def __init__(self, parts: Parts | None = None, script: Script | None = None) -> None:
        self._script = script or Script()
        self._sessions: dict[str, _Session] = {}
        self._outputs: list[Output] = []
        self._num_turns = 0
        self._num_looks = 0
        self._num_scores = 0
        self._num_answers = 0
        self._num_calls = 0

    def submit(self, command: Command) -> None:
        """Accept one command; unknown sessions, turns and responses are ignored."""
        if isinstance(command, Open):
            self._sessions[command.session_id] = _Session(command.conversation)
            return
        session = self._sessions.get(command.session_id)
        if session is None:
            return
        match command:
            case Feed():
                self._feed(session, command)
            case ScoreTurn():
                if turn := session.turns.get(command.turn_id):
                    score = self._script.scores[self._num_scores % len(self._script.scores)]
                    self._num_scores += 1
                    self._outputs.append(
                        TurnScore(command.session_id, turn.id, score, turn.num_samples // 16)
                    )
            case Commit():
                self._end_turn(command.session_id, session, command.turn_id)
            case Discard():
                session.turns.pop(command.turn_id, None)
            case Edit():
                session.conversation = command.conversation
            case Speculate():
                turn = session.turns.get(command.turn_id)
                session.speculated[command.response_id] = command.turn_id
                session.responses[command.response_id] = _Response(
                    command.response_id, command.config, session.conversation, turn
                )
            case Confirm():
                # The response may have been said to its end already.
                if turn_id := session.speculated.pop(command.response_id, None):
                    self._end_turn(command.session_id, session, turn_id)
            case Respond():
                session.responses[command.response_id] = _Response(
                    command.response_id,
                    command.config,
                    command.conversation or session.conversation,
                )
            case Say():
                session.responses[command.response_id] = _Response(
                    command.response_id,
                    command.config,
                    session.conversation,
                    words=_words(command.text),
                )
            case Look():
                self._look(command)
            case Cancel():
                session.speculated.pop(command.response_id, None)
                response = session.responses.pop(command.response_id, None)
                if response is not None:
                    self._done(command.session_id, response, "cancelled")
            case Pause():
                session.is_paused = True
            case Resume():
                session.is_paused = False
            case Close():
                del self._sessions[command.session_id]
                self._outputs = [o for o in self._outputs if o.session_id != command.session_id]

    def step(self) -> list[Output]:
        """One word of every response under way."""
        for session_id, session in list(self._sessions.items()):
            if not session.is_paused:
                for response in list(session.responses.values()):
                    self._advance(session_id, session, response)
        outputs, self._outputs = self._outputs, []
        return outputs

    def stats(self) -> None:
        """There is no engine."""

    def has_work(self) -> bool:
        """Whether another step would give anything."""
        sessions = self._sessions.values()
        return bool(self._outputs) or any(s.responses and not s.is_paused for s in sessions)

    def close(self) -> None:
        """Forget every session."""
        self._sessions.clear()
        self._outputs.clear()

    def _look(self, look: Look) -> None:
        """The script's next picture, whatever the frame shows."""
        scenes = self._script.scenes
        if not scenes:
            self._outputs.append(
                Seen(look.session_id, look.frame_id, None, "no_eyes", "the script has no pictures")
            )
            return
        scene = replace(scenes[min(self._num_looks, len(scenes) - 1)], at_ms=look.at_ms)
        self._num_looks += 1
        if not look.wants_text:
            scene = replace(scene, lettering=None)
        self._outputs.append(Seen(look.session_id, look.frame_id, scene))

    # --- Listening -------------------------------------------------------------------------------

    def _feed(self, session: _Session, feed: Feed) -> None:
        turn = session.turns.get(feed.turn_id)
        if turn is None:
            transcripts = self._script.transcripts
            transcript = transcripts[self._num_turns % len(transcripts)]
            self._num_turns += 1
            turn = session.turns[feed.turn_id] = _Turn(feed.turn_id, transcript)
        turn.num_samples += len(feed.samples)
        if len(feed.samples):
            level = 10 * np.log10(np.mean(np.square(feed.samples)) + 1e-12)
            turn.is_loud |= bool(level > SILENCE_DB)
        # A word for every half second heard, the last one only at the end.
        stable = min(turn.num_samples // 8000, max(len(turn.words) - 1, 0))
        for word in turn.words[turn.num_words_out : stable]:
            self._outputs.append(TranscriptDelta(feed.session_id, turn.id, word))
        turn.num_words_out = max(stable, turn.num_words_out)

    def _end_turn(self, session_id: str, session: _Session, turn_id: str) -> None:
        turn = session.turns.pop(turn_id, None)
        if turn is None:
            return
        text = "".join(turn.words).strip()
        session.heard[turn_id] = text
        duration_ms = turn.num_samples // 16
        self._outputs.append(TranscriptDone(session_id, turn_id, text, duration_ms))

    # --- Answering -------------------------------------------------------------------------------

    def _advance(self, session_id: str, session: _Session, response: _Response) -> None:
        if response.words is None:
            self._begin(session, response)
            self._report(session_id, response)
            assert response.words is not None
        if response.words:
            self._say(session_id, response, response.words.pop(0))
            return
        for call in response.calls:
            self._num_calls += 1
            call_id = f"call_{self._num_calls:08d}"
            self._outputs.append(
                ToolCall(session_id, response.id, call_id, call.name, call.arguments)
            )
        del session.responses[response.id]
        if response.failure:
            message = "The script says that this answer fails."
            self._outputs.append(Failed(session_id, response.id, response.failure, message))
        else:
            self._done(
                session_id, response, "max_output_tokens" if response.is_cut else "completed"
            )

    def _begin(self, session: _Session, response: _Response) -> None:
        messages = list(response.conversation.messages)
        if response.turn is not None:
            text = "".join(response.turn.words).strip()
            messages.append(Message("user", (AudioPart(response.turn.id, text),)))
        heard = tuple(_with_transcripts(m, session.heard) for m in messages)
        context = Conversation(
            instructions=response.conversation.instructions,
            tools=response.conversation.tools,
            messages=heard,
        )
        if self._script.answers:
            answer = self._script.answers[self._num_answers % len(self._script.answers)]
        else:
            answer = self._script.answer(context)
        self._num_answers += 1
        words = _words(answer.text)
        limit = response.config.max_output_tokens
        response.is_cut = len(words) > limit
        response.words = words[:limit]
        response.failure = answer.failure
        names = {tool.name for tool in context.tools}
        if not response.is_cut and response.config.tool_choice != "none":
            response.calls = [call for call in answer.calls if call.name in names]

    def _say(self, session_id: str, response: _Response, word: str) -> None:
        response.num_words += 1
        self._report(session_id, response)
        response.num_chars += len(word)
        self._outputs.append(TextDelta(session_id, response.id, word))
        if response.config.modality == "text":
            return
        num_samples = round(OUTPUT_RATE_HZ * WORD_MS / 1000 / response.config.speed)
        at = np.arange(response.num_samples, response.num_samples + num_samples)
        tone = TONE_AMPLITUDE * np.sin(2 * np.pi * TONE_HZ * at / OUTPUT_RATE_HZ)
        response.num_samples += num_samples
        mark = Mark(response.num_samples, response.num_chars)
        pcm = np.round(tone * 32767).astype("<i2").tobytes()
        self._outputs.append(AudioDelta(session_id, response.id, pcm, (mark,)))

    def _report(self, session_id: str, response: _Response) -> None:
        self._outputs.append(Progress(session_id, response.id, _usage(response)))

    def _done(self, session_id: str, response: _Response, reason: _Reason) -> None:
        self._outputs.append(Done(session_id, response.id, reason, _usage(response)))


def _usage(response: _Response) -> Usage:
    context = response.conversation
    texts = [context.instructions]
    texts += [_text(part) for m in context.messages for part in m.parts]
    return Usage(
        input_text_tokens=sum(len(text.split()) for text in texts),
        output_text_tokens=response.num_words,
    )


def _words(text: str) -> list[str]:
    """Words with their leading space, so that they concatenate to the text."""
    return [word if index == 0 else " " + word for index, word in enumerate(text.split())]


def _text(part: object) -> str:
    for name in ("text", "transcript", "output", "arguments"):
        text = getattr(part, name, None)
        if text:
            return str(text)
    return ""


def _with_transcripts(message: Message, heard: dict[str, str]) -> Message:
    """The message with its turns as text."""
    parts = tuple(
        TextPart(heard.get(part.turn_id, part.transcript or ""))
        if isinstance(part, AudioPart)
        else part
        for part in message.parts
    )
    return Message(message.role, parts, message.response_id)
