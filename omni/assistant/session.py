"""What the assistant keeps of one session: its conversation, turns, responses and sequence.

Owned by :mod:`omni.assistant.assistant`; plain data.
"""

from __future__ import annotations

from omni.assistant.context import Context, Senses
from omni.assistant.listening import Turn
from omni.assistant.response import Response
from omni.assistant.watching import Watch
from omni.parts import Ticket
from omni.types import AudioPart, Conversation, MediaPart, Message


class Session:
    """One conversation: its sequence in the engine, its turns, its responses."""

    def __init__(self, session_id: str, conversation: Conversation, context: Context) -> None:
        self.session_id = session_id
        self.conversation = conversation
        self.context = context
        self.sequence: int | None = None
        self.turns: dict[str, Turn] = {}
        self.senses = Senses()
        self.looks: dict[str, Ticket] = {}  # the picture that is being looked at, by media_id
        self.unlooked: dict[str, MediaPart] = {}  # those that come next, by media_id
        self.languages: dict[str, str] = {}  # of the turns that were not in English
        self.watch = Watch()
        self.responses: dict[str, Response] = {}
        self.guesses: dict[str, Response] = {}  # speculations that ended before their turn did
        self.is_paused = False

    @property
    def speaking(self) -> Response | None:
        """The response that holds the session's own sequence, if any."""
        return next((r for r in self.responses.values() if r.owns_session), None)


def asked_in(session: Session, response: Response) -> str:
    """Id of the spoken turn that the response answers; empty if it answers something else."""
    messages = (response.conversation or session.conversation).messages
    ids = turn_ids(messages[-1]) if messages else []
    return ids[-1] if ids else ""


def turn_ids(message: Message) -> list[str]:
    return [part.turn_id for part in message.parts if isinstance(part, AudioPart)]
