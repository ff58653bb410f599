"""Pictures and clips become spans: looked at once each, on the parts thread.

Used by :mod:`omni.assistant.assistant` on the engine thread. What a look yields is the
:class:`Sight`'s business: embeddings of a native vision tower, or words.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol

from omni_encoders.answers import about_picture
from omni_encoders.clip import read_clip
from omni_encoders.declining import REFUSALS, declined, is_general
from omni_encoders.image import ImageEncoder, PixelLimits, decode_image
from omni_encoders.video import VideoEncoder, clip_size
from omni_encoders.vision import VisionTower
from omni_encoders.wording import scene_text

from omni.assistant.context import Senses, media
from omni.assistant.priorities import PartPriority
from omni.assistant.session import Session
from omni.assistant.watching import Watcher
from omni.errors import CancelledError, InputError, OmniError
from omni.parts import Parts, ShouldStop
from omni.scene import Scene
from omni.types import AudioPart, Conversation, MediaPart, Message, Span, TextPart, TextSpan

logger = logging.getLogger(__name__)

MAX_IMAGE_PIXELS = 512 * 512
"""Of a picture, 256 tokens: a published limit of 16,384 tokens is minutes of a laptop's time."""

SMALL_IMAGE_PIXELS = 256 * 256
"""Where the client says that a low level of detail is enough: 64 tokens."""

MAX_CLIP_LOOKS = 6
"""At a clip, by eyes that put what they see into words: 60 words each."""

MAX_CLIP_PIXELS = 64 * 256 * 256
"""Of all frames of a clip together: 2,048 tokens."""


class Sight(Protocol):
    """Eyes: what there is to see in a picture."""

    def look(self, part: MediaPart, should_stop: ShouldStop) -> tuple[Span, ...]:
        """Look at ``part``; runs on the parts thread.

        Raises:
            InputError: it is no picture or clip, or a damaged one.
            CancelledError: ``should_stop()`` became true.
        """
        ...

    def recall(self, scene: Scene) -> tuple[Span, ...] | None:
        """What stands for a frame of the camera that was seen already; None: look at it anew."""
        ...


class TowerSight:
    """The eyes of a model with a vision tower: embeddings."""

    def __init__(self, tower: VisionTower) -> None:
        self._large, self._small = (
            ImageEncoder(tower, PixelLimits(max_pixels=pixels))
            for pixels in (MAX_IMAGE_PIXELS, SMALL_IMAGE_PIXELS)
        )
        self._video = VideoEncoder(tower)
        self._side = tower.config.token_pixels

    def look(self, part: MediaPart, should_stop: ShouldStop) -> tuple[Span, ...]:
        if part.kind == "image":
            encoder = self._small if part.is_small else self._large
            return (encoder.encode(decode_image(part.data), should_stop=should_stop),)
        frames = read_clip(part.data, should_stop)
        height, width = frames[0].pixels.shape[:2]
        size = clip_size(
            len(frames), height, width, multiple=self._side, max_pixels=MAX_CLIP_PIXELS
        )
        state = self._video.open(every_ms=None, size=size)
        spans, state = self._video.encode(frames, state, should_stop)
        return (*spans, *self._video.tail(state, should_stop))

    def recall(self, scene: Scene) -> tuple[Span, ...] | None:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneSpan(TextSpan):
    """The words that stand for a picture, with the findings that they were made of."""

    scene: Scene


def own_answer(conversation: Conversation, senses: Senses) -> str | None:
    """What is said without asking a model that knows of pictures only what was found in them.

    None: it sees for itself, or is asked something else. To the one picture that came with a plain
    question (the assistant has not spoken between the two, and has no tools to use) the findings
    answer: a small model that reads them answers "Is there a dog?" with whatever sounds likely.
    What no camera may answer is declined as long as any picture is in the conversation, also when
    the user insists.
    """
    messages = [one for one in conversation.messages if one.role != "system"]
    asked = list(takewhile(lambda message: message.role == "user", reversed(messages)))
    if not any(_is_in_words(senses.sights.get(one.media_id)) for one in media(conversation)):
        return None
    words = " ".join(_words_of(message, senses) for message in reversed(asked))
    before = messages[-len(asked) - 1] if len(asked) < len(messages) else None
    if (refusal := declined(words)) is not None:
        return refusal
    if before is not None and asked and not is_general(words):
        said = " ".join(part.text for part in before.parts if isinstance(part, TextPart))
        if said in REFUSALS:
            return said
    pictures = [p for message in asked for p in message.parts if isinstance(p, MediaPart)]
    if len(pictures) != 1 or conversation.tools:
        return None
    spans = senses.seen(pictures[0])
    if len(spans) != 1 or not isinstance(span := spans[0], SceneSpan):
        return None
    return about_picture(_words_of(asked[0], senses), span.scene)


def _is_in_words(spans: tuple[Span, ...] | None) -> bool:
    return bool(spans) and all(isinstance(span, TextSpan) for span in spans or ())


def _words_of(message: Message, senses: Senses) -> str:
    """What the user wrote and said in one message."""
    words = [part.text for part in message.parts if isinstance(part, TextPart)]
    words += [senses.heard(part) for part in message.parts if isinstance(part, AudioPart)]
    return " ".join(words)


class WordsSight:
    """The eyes of a model without any: a detector, a classifier and a text reader, in words."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def look(self, part: MediaPart, should_stop: ShouldStop) -> tuple[Span, ...]:
        if part.kind == "image":
            scene, _ = self._watcher.look(
                part.data,
                0,
                None,
                wants_text=not part.is_small,
                wants_main=True,
                should_stop=should_stop,
            )
            return (_shown(scene, scene_text(scene, what="picture")),)
        frames = read_clip(part.data, should_stop)
        spans: list[Span] = []
        state: object | None = None
        for frame in frames[:: -(-len(frames) // MAX_CLIP_LOOKS)]:
            scene, state = self._watcher.look(
                frame.pixels, round(frame.at_ms), state, should_stop=should_stop
            )
            words = scene_text(scene, what="picture")
            spans.append(_told(f"After {frame.at_ms / 1000:.1f} seconds: {words}\n"))
        return tuple(spans)

    def recall(self, scene: Scene) -> tuple[Span, ...] | None:
        return (_shown(scene, scene_text(scene)),)


class Blind:
    """No eyes: the model is told that something was shown."""

    def look(self, part: MediaPart, should_stop: ShouldStop) -> tuple[Span, ...]:
        return (_told(f"[The user shows {_NAMES[part.kind]}. You cannot see it.]"),)

    def recall(self, scene: Scene) -> tuple[Span, ...] | None:
        return None


_NAMES = {"image": "a picture", "video": "a video"}


def _shown(scene: Scene, text: str) -> SceneSpan:
    return SceneSpan(text=text, start_ms=0, end_ms=0, final=True, scene=scene)


def _told(text: str) -> TextSpan:
    return TextSpan(text=text, start_ms=0, end_ms=0, final=True)


class Seeing:
    """The looks of all sessions, one at a time for each: nobody's album holds up the others.

    ``on_seen`` is called when a session knows one more picture.
    """

    def __init__(
        self, sight: Sight, parts: Parts, *, on_seen: Callable[[Session, str], None]
    ) -> None:
        self._sight = sight
        self._parts = parts
        self._on_seen = on_seen

    def look(self, session: Session, conversation: Conversation) -> set[str]:
        """Have every picture of ``conversation`` looked at; returns those not yet seen."""
        wanted = {part.media_id: part for part in media(conversation)}
        unseen = {k: part for k, part in wanted.items() if k not in session.senses.sights}
        for media_id, part in unseen.items():
            scene = session.watch.scenes.get(media_id)
            if scene is not None and (spans := self._sight.recall(scene)) is not None:
                session.senses.sights[media_id] = spans
            elif media_id not in session.looks:
                session.unlooked[media_id] = part
        self._go_on(session)
        return unseen.keys() - session.senses.sights.keys()

    def prune(self, session: Session) -> None:
        """Forget the pictures that neither the conversation nor a response holds any more."""
        held = [session.conversation]
        responses = [*session.responses.values(), *session.guesses.values()]
        held += [r.conversation for r in responses if r.conversation]
        kept = {part.media_id for conversation in held for part in media(conversation)}
        sights = session.senses.sights
        for media_id in sights.keys() - kept:
            del sights[media_id]
        for media_id in session.unlooked.keys() - kept:
            del session.unlooked[media_id]
        for media_id in session.looks.keys() - kept:
            session.looks.pop(media_id).cancel()
        self._go_on(session)

    def close(self, session: Session) -> None:
        for ticket in session.looks.values():
            ticket.cancel()
        session.looks.clear()
        session.unlooked.clear()

    def _go_on(self, session: Session) -> None:
        """Begin the next look unless one is under way."""
        if session.unlooked and not session.looks:
            self._start(session, session.unlooked.pop(next(iter(session.unlooked))))

    def _start(self, session: Session, part: MediaPart) -> None:
        def done(result: tuple[Span, ...] | BaseException) -> None:
            if session.looks.get(part.media_id) is not ticket:  # forgotten meanwhile
                return
            del session.looks[part.media_id]
            self._go_on(session)
            if isinstance(result, CancelledError):
                return
            if isinstance(result, BaseException):
                trace = None if isinstance(result, OmniError) else result
                logger.error(
                    "%s %s was not seen: %s", part.kind, part.media_id, result, exc_info=trace
                )
                name = _NAMES[part.kind]
                # The picture's own fault in full. Ours names files of this machine, and the model
                # would give a remote user advice about them.
                is_its_own = isinstance(result, InputError)
                kinds = name.removeprefix("a ") + "s"
                why = str(result) if is_its_own else f"you cannot look at {kinds} at the moment"
                result = (_told(f"[The user shows {name}, but {why}.]"),)
            session.senses.sights[part.media_id] = result
            self._on_seen(session, part.media_id)

        ticket = self._parts.eyes.submit(
            PartPriority.LOOK, lambda should_stop: self._sight.look(part, should_stop), done
        )
        session.looks[part.media_id] = ticket
