"""The items of one conversation, and what of the assistant's speech was heard.

Called by :mod:`omni_streaming.session` and :mod:`omni_streaming.response`. The items are the
truth; :meth:`ItemList.render` makes the :class:`omni.types.Conversation` of them that the
assistant's context is computed from. Knows no sockets and no clocks but the times it is given.

What was heard decides what the model remembers having said. Three witnesses, the first that
speaks wins: ``conversation.item.truncate``, the client's reports of what it has played, and the
clock (audio plays in real time from the moment it was sent).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from omni.types import (
    OUTPUT_RATE_HZ,
    AudioPart,
    CallPart,
    Conversation,
    Mark,
    MediaPart,
    Message,
    Part,
    ResultPart,
    TextPart,
    ToolSpec,
)

ContentType = Literal["input_text", "input_audio", "input_image", "output_text", "output_audio"]

MAX_HISTORY_CHARS = 16 * 2**20
"""Text of all items as they came in; the longest context is a thousandth of it."""

MAX_HISTORY_AUDIO_BYTES = 32 * 2**20
"""Audio kept per session for ``conversation.item.retrieve``; the oldest goes first."""

MAX_HISTORY_IMAGES = 32
MAX_HISTORY_IMAGE_BYTES = 64 * 2**20
"""Pictures kept per session; beyond either limit the oldest leave the context."""

BYTES_PER_TOKEN = 3
"""UTF-8 bytes that count as one token where the session has to guess (English is nearer to 4)."""
TOKENS_PER_MESSAGE = 8
"""Header and end of one message in a chat template."""
TOKENS_PER_IMAGE = 260
"""The most that a picture becomes: 256 embeddings and the marks around them."""
AUTO_RETENTION_RATIO = 0.8
"""``truncation: auto`` keeps this share of the context, so that cuts are rare and caches last."""


@dataclass(slots=True)
class Content:
    """One part of a message; ``text`` is the transcript of audio, None while unknown."""

    type: ContentType
    text: str | None
    turn_id: str | None = None  # of input audio that the assistant heard
    is_shown: bool = True  # transcripts are the client's only if it asked for transcription
    media: MediaPart | None = None  # of an input image; None once it has left the context


class Spoken:
    """The speech of one item: its samples at 24 kHz, its text, and how much of it was heard.

    ``first_char`` is where the item's text begins in its response; marks count from there.
    """

    def __init__(self, first_char: int = 0, first_sample: int = 0) -> None:
        self._first_char = first_char
        self._first_sample = first_sample
        self._marks: list[Mark] = []
        self._segments: list[tuple[float, int, int]] = []  # (plays at ms, first sample, samples)
        self.num_samples = 0
        self.is_complete = False
        self.truncated_ms: int | None = None
        self._report: tuple[int, float] | None = None  # (samples played, at ms), from the client
        self._stopped_at: int | None = None  # samples

    @property
    def duration_ms(self) -> int:
        """Length of the audio sent, rounded up."""
        return -(-self.num_samples * 1000 // OUTPUT_RATE_HZ)

    def add(self, num_samples: int, marks: Iterable[Mark], plays_at_ms: float) -> None:
        """``num_samples`` more were sent; the client plays them from ``plays_at_ms``."""
        self._segments.append((plays_at_ms, self.num_samples, num_samples))
        self._marks.extend(marks)
        self.num_samples += num_samples

    def report(self, played_ms: int, now_ms: float) -> None:
        """The client says what it has played; after a stop that is the exact heard point."""
        samples = min(played_ms * OUTPUT_RATE_HZ // 1000, self.num_samples)
        if played_ms >= self.duration_ms:
            samples = self.num_samples
        self._report = (samples, now_ms)
        if self._stopped_at is not None:
            self._stopped_at = samples

    def played_samples(self, now_ms: float) -> int:
        """What has been played by now: since the last report if there is one, else since sent."""
        if self._report is not None:
            samples, at_ms = self._report
            elapsed = int((now_ms - at_ms) * OUTPUT_RATE_HZ / 1000)
            return min(samples + max(elapsed, 0), self.num_samples)
        played = 0
        for plays_at_ms, first, count in self._segments:
            elapsed = int((now_ms - plays_at_ms) * OUTPUT_RATE_HZ / 1000)
            if elapsed > 0:
                played = first + min(elapsed, count)
        return played

    def stop(self, now_ms: float) -> None:
        """Playback stopped at ``now_ms``; nothing more of this item will be heard."""
        if self._stopped_at is None:
            self._stopped_at = self.played_samples(now_ms)

    @property
    def is_cut(self) -> bool:
        """A part of the item was not heard."""
        return self._heard_samples() is not None

    def _heard_samples(self) -> int | None:
        """Samples heard, or None when all that was or will be sent counts as heard."""
        if self.truncated_ms is not None:
            heard = self.truncated_ms * OUTPUT_RATE_HZ // 1000
            is_all = self.truncated_ms >= self.duration_ms
        elif self._stopped_at is not None:
            heard = self._stopped_at
            is_all = heard >= self.num_samples
        else:
            return None
        return None if is_all and self.is_complete else min(heard, self.num_samples)

    def heard(self, text: str) -> str:
        """The part of the item's ``text`` that was heard."""
        samples = self._heard_samples()
        if samples is None:
            return text
        if self._marks:
            index = bisect_right(self._marks, samples + self._first_sample, key=lambda m: m.sample)
            if index == 0:
                return ""
            return text[: max(self._marks[index - 1].num_chars - self._first_char, 0)]
        if not self.num_samples:
            return ""
        cut = len(text) * samples // self.num_samples  # no alignment: in proportion,
        return text if cut >= len(text) else text[: text.rfind(" ", 0, cut + 1) + 1]  # whole words


@dataclass(slots=True, eq=False)
class Item:
    """One conversation item; which fields mean something depends on ``type``."""

    id: str
    type: Literal["message", "function_call", "function_call_output"]
    role: Literal["system", "user", "assistant"] | None = None
    content: list[Content] = field(default_factory=list)
    status: Literal["completed", "incomplete", "in_progress"] = "completed"
    name: str = ""
    arguments: str = ""
    call_id: str = ""
    output: str = ""
    response_id: str | None = None
    spoken: Spoken | None = None
    is_notice: bool = False  # shown to the user, but not the model's words

    @property
    def num_chars(self) -> int:
        """Of everything that it says."""
        said = (content.text or "" for content in self.content)
        return sum(map(len, (self.name, self.arguments, self.output, *said)))

    def shown(self) -> dict[str, Any]:
        """The item as the protocol shows it, without audio bytes."""
        item: dict[str, Any] = {
            "id": self.id,
            "object": "realtime.item",
            "type": self.type,
            "status": self.status,
        }
        if self.type == "message":
            return item | {"role": self.role, "content": [_shown(c) for c in self.content]}
        if self.type == "function_call":
            return item | {
                "call_id": self.call_id,
                "name": self.name,
                "arguments": self.arguments,
            }
        return item | {"call_id": self.call_id, "output": self.output}


def _shown(content: Content) -> dict[str, Any]:
    if content.type == "input_image":  # not repeated: it may be larger than a frame
        return {"type": content.type}
    is_audio = content.type in ("input_audio", "output_audio")
    text = content.text if content.is_shown else None
    return {"type": content.type, "transcript" if is_audio else "text": text}


class ItemList:
    """The ordered items of a conversation."""

    def __init__(self) -> None:
        self._items: list[Item] = []
        self._by_id: dict[str, Item] = {}
        self._audio: dict[str, tuple[int, bytearray]] = {}  # id -> (rate, int16 samples)
        self._audio_bytes = 0
        self._num_chars: dict[str, int] = {}  # id -> when it was inserted
        self.num_chars = 0
        """Of all items; answers that have grown since are bounded by their tokens."""
        self._outside: set[str] = set()  # ids that were taken out of the context

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._by_id

    def get(self, item_id: str) -> Item | None:
        return self._by_id.get(item_id)

    @property
    def last_id(self) -> str | None:
        return self._items[-1].id if self._items else None

    @property
    def oldest(self) -> Item:
        return self._items[0]

    @property
    def last_spoken(self) -> Item | None:
        """The newest item with speech."""
        spoken = (i for i in reversed(self._items) if i.spoken and i.spoken.num_samples)
        return next(spoken, None)

    def stop_speech(self, now_ms: float) -> None:
        """Playback stopped: what was not played of the newest items will not be heard."""
        for item in reversed(self._items):
            spoken = item.spoken
            if spoken is None:
                continue
            if spoken.is_complete and spoken.played_samples(now_ms) >= spoken.num_samples:
                break
            spoken.stop(now_ms)

    @property
    def num_pending_calls(self) -> int:
        """Tool calls that no output has answered."""
        answered = {i.call_id for i in self._items if i.type == "function_call_output"}
        calls = (i.call_id for i in self._items if i.type == "function_call")
        return sum(call_id not in answered for call_id in calls)

    def insert(self, item: Item, after: str | None = None) -> str | None:
        """Put ``item`` after the id ``after``, first for ``root``, last for None.

        Returns the id of the item before it. Raises KeyError when ``after`` is unknown.
        """
        assert item.id not in self._by_id
        if after is None:
            at = len(self._items)
        elif after == "root":
            at = 0
        else:
            at = self._items.index(self._by_id[after]) + 1
        self._items.insert(at, item)
        self._by_id[item.id] = item
        self._num_chars[item.id] = item.num_chars
        self.num_chars += item.num_chars
        self._drop_old_pictures()
        return self._items[at - 1].id if at else None

    def previous_id(self, item_id: str) -> str | None:
        """The id of the item before ``item_id``; None for the first and for unknown ids."""
        item = self._by_id.get(item_id)
        at = self._items.index(item) if item else 0
        return self._items[at - 1].id if at else None

    def delete(self, item_id: str) -> Item | None:
        """Take an item out; None when there is no such item."""
        item = self._by_id.pop(item_id, None)
        if item is not None:
            self._items.remove(item)
            self._outside.discard(item_id)
            self.num_chars -= self._num_chars.pop(item_id)
            self.drop_audio(item_id)
        return item

    def clear(self) -> None:
        """Forget every item, and their audio."""
        self._items.clear()
        self._by_id.clear()
        self._outside.clear()
        self._num_chars.clear()
        self.num_chars = 0
        self._audio.clear()
        self._audio_bytes = 0

    def _drop_old_pictures(self) -> None:
        """Keep the pictures within their limits; the newest stays whatever its size."""
        num_bytes = num_images = 0
        for item in reversed(self._items):
            for content in reversed(item.content):
                if content.media is None:
                    continue
                num_images += 1
                num_bytes += len(content.media.data)
                is_over = num_images > MAX_HISTORY_IMAGES or num_bytes > MAX_HISTORY_IMAGE_BYTES
                if is_over and num_images > 1:
                    content.media = None

    # --- Audio kept for retrieval ----------------------------------------------------------------

    def keep_audio(self, item_id: str, pcm: bytes | bytearray, rate_hz: int) -> None:
        """Append int16 ``pcm`` to the item's audio; the oldest audio of the session gives way."""
        if item_id not in self._by_id:
            return
        _, data = self._audio.setdefault(item_id, (rate_hz, bytearray()))
        data += pcm
        self._audio_bytes += len(pcm)
        while self._audio_bytes > MAX_HISTORY_AUDIO_BYTES:
            self.drop_audio(next(iter(self._audio)))

    def drop_audio(self, item_id: str) -> None:
        _, data = self._audio.pop(item_id, (0, b""))
        self._audio_bytes -= len(data)

    def cut_audio(self, item_id: str, end_ms: int) -> None:
        """Keep only the first ``end_ms`` of the item's audio."""
        if item_id in self._audio:
            rate_hz, data = self._audio[item_id]
            num_bytes = min(end_ms * rate_hz // 1000 * 2, len(data))
            self._audio_bytes -= len(data) - num_bytes
            del data[num_bytes:]

    def audio(self, item_id: str) -> tuple[int, bytes] | None:
        """(rate in Hz, int16 samples) of an item, if it is still kept."""
        kept = self._audio.get(item_id)
        return (kept[0], bytes(kept[1])) if kept else None

    # --- The context -----------------------------------------------------------------------------

    def render(self, instructions: str, tools: tuple[ToolSpec, ...]) -> Conversation:
        """What the model is to see of the items inside the context."""
        inside = (item for item in self._items if item.id not in self._outside)
        return render(inside, instructions, tools)

    def of_turn(self, turn_id: str) -> Item | None:
        """The item that a spoken turn became; None when there is none (any more)."""
        spoken = (i for i in reversed(self._items) if any(c.turn_id == turn_id for c in i.content))
        return next(spoken, None)

    def leave_out(self, item_id: str) -> None:
        """Take an item out of the model's context; the client keeps it."""
        self._outside.add(item_id)

    def shrink(self, instructions: str, truncation: Any, max_tokens: int) -> bool:
        """Take the oldest items out of the context when it is full, by the protocol's setting.

        ``truncation``: ``auto`` (shrink to 80%), ``disabled``, or a retention_ratio object.
        Returns False when the context is too long and ``disabled`` forbids to shorten it.
        """
        ratio = AUTO_RETENTION_RATIO
        limit = max_tokens - estimate_tokens(instructions)
        if isinstance(truncation, dict):
            ratio = truncation["retention_ratio"]
            limits = truncation.get("token_limits") or {}
            limit = min(limit, limits.get("post_instructions", limit))
        inside = self._inside()
        total = sum(map(_item_tokens, inside))
        if total <= limit:
            return True
        if truncation == "disabled":
            return False
        for item in inside[:-1]:  # the newest stays whatever its size
            if total <= limit * ratio:
                break
            self._outside.add(item.id)
            total -= _item_tokens(item)
        return True

    def context_tokens(self, instructions: str) -> int:
        """About how many tokens the context is, by the same estimate."""
        return estimate_tokens(instructions) + sum(map(_item_tokens, self._inside()))

    def _inside(self) -> list[Item]:
        return [item for item in self._items if item.id not in self._outside]


def estimate_tokens(text: str) -> int:
    """A guess on the safe side; the session has no tokenizer."""
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


def _item_tokens(item: Item) -> int:
    texts = [c.text or "" for c in item.content]
    texts += [item.name, item.arguments, item.output]
    images = sum(c.media is not None for c in item.content)
    return TOKENS_PER_MESSAGE + images * TOKENS_PER_IMAGE + sum(map(estimate_tokens, texts))


def render(items: Iterable[Item], instructions: str, tools: tuple[ToolSpec, ...]) -> Conversation:
    """The context made of ``items``.

    Left out: turns in which no words were heard, what the assistant said unheard, notices, unknown
    calls' outputs, and messages still being generated. Consecutive items of one response
    become one message, as they were generated.
    """
    messages: list[Message] = []
    called: set[str] = set()
    for item in items:
        role, parts = _message(item, called)
        if not parts:
            continue
        last = messages[-1] if messages else None
        if (
            last
            and role == last.role == "assistant"
            and item.response_id is not None
            and item.response_id == last.response_id
        ):
            messages[-1] = Message(role, last.parts + parts, last.response_id)
        else:
            messages.append(Message(role, parts, item.response_id))
    return Conversation(instructions=instructions, tools=tools, messages=tuple(messages))


_Role = Literal["system", "user", "assistant", "tool"]


def _message(item: Item, called: set[str]) -> tuple[_Role, tuple[Part, ...]]:
    if item.type == "function_call":
        if item.status == "in_progress":
            return "assistant", ()
        called.add(item.call_id)
        return "assistant", (CallPart(item.call_id, item.name, item.arguments),)
    if item.type == "function_call_output":
        if item.call_id not in called:
            return "tool", ()
        return "tool", (ResultPart(item.call_id, item.output),)
    if item.role == "assistant":
        text = "".join(c.text or "" for c in item.content)
        if item.spoken is not None:
            if item.status == "in_progress" and not item.spoken.is_cut:
                return "assistant", ()
            text = item.spoken.heard(text)
        elif item.status == "in_progress":
            return "assistant", ()
        return "assistant", (TextPart(text),) if text and not item.is_notice else ()
    parts: list[Part] = []
    for content in item.content:
        if content.media is not None:
            parts.append(content.media)
        elif content.turn_id is not None and content.text != "":
            parts.append(AudioPart(content.turn_id, content.text))
        elif content.text:
            parts.append(TextPart(content.text))
    return item.role or "user", tuple(parts)
