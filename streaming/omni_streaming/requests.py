"""What each client event asks of a session.

Called by :mod:`omni_streaming.session` with raw messages. Every fault is one ``error`` event with
the client's ``event_id``; it leaves the session as it was.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from omni.errors import InputError
from omni.types import INPUT_RATE_HZ, MediaPart
from omni.types import Conversation as Context
from omni_streaming import events
from omni_streaming.audio import (
    FORMAT_RATE_HZ,
    FORMAT_SAMPLE_BYTES,
    AudioFormat,
    Decoder,
    Encoder,
    float_to_pcm16,
)
from omni_streaming.conversation import Content, Item, render
from omni_streaming.items import (
    AnyItem,
    ClientError,
    FunctionCallItem,
    FunctionOutputItem,
    InputAudio,
    InputImage,
    ItemReference,
    ResponseParams,
)
from omni_streaming.pictures import read_data_uri
from omni_streaming.settings import tool_specs

if TYPE_CHECKING:
    from omni_streaming.session import Session

MIN_COMMIT_MS = 100
MAX_ITEM_JSON_BYTES = 512 * 1024
"""Items are repeated to the client and must fit in a frame of 1 MiB; audio is not repeated."""
MAX_RETRIEVED_BYTES = 720_000
"""Audio in ``conversation.item.retrieved``: 960 kB of base64, 15 s of PCM16."""
MAX_PARALLEL_RESPONSES = 8
"""Responses that one session may have at work, out-of-band ones included."""


class Requests:
    """The client's side of one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        handlers: dict[type[events.ClientEvent], Callable[[Any], None]] = {
            events.AppendAudio: self._append,
            events.AppendFrame: self._append_frame,
            events.AudioPlayed: self._played,
            events.CancelResponse: self._cancel,
            events.ClearAudio: self._clear,
            events.CommitAudio: self._commit,
            events.CreateItem: self._create_item,
            events.CreateResponse: self._create_response,
            events.DeleteItem: self._delete_item,
            events.DescribeCommand: self._describe,
            events.RetrieveItem: self._retrieve_item,
            events.SessionUpdate: self._update,
            events.TruncateItem: self._truncate_item,
        }
        self._handlers = handlers
        self._has_refused_audio = False

    def receive(self, message: str | bytes) -> None:
        """Carry out one message."""
        event_id: str | None = None
        try:
            event = events.parse_client_event(message)
            event_id = event.event_id
            self._handlers[type(event)](event)
        except ClientError as fault:
            self._session.emit(
                events.error(
                    fault.message, fault.code, fault.kind, fault.param, fault.event_id or event_id
                )
            )

    # --- Session and input buffer ----------------------------------------------------------------

    def _update(self, event: events.SessionUpdate) -> None:
        session = self._session
        settings = session.settings.updated(event.session, has_spoken=session.has_spoken)
        session.apply_settings(settings)
        session.emit(events.session_updated(settings.shown()))

    def _append(self, event: events.AppendAudio) -> None:
        session = self._session
        data = self._decode_base64(event.audio, "audio")
        limit_s = session.config.server.max_buffer_s
        if session.turns.is_manual:
            rate_hz = FORMAT_RATE_HZ[session.settings.input_format]
            seconds = len(data) / FORMAT_SAMPLE_BYTES[session.settings.input_format] / rate_hz
            if session.turns.buffered_ms / 1000 + seconds > limit_s:
                if not self._has_refused_audio:
                    self._has_refused_audio = True
                    raise ClientError(
                        "input_audio_buffer_full",
                        f"The input audio buffer holds at most {limit_s} s; commit or clear it. "
                        "Audio is dropped until then.",
                        "audio",
                    )
                return
        try:
            session.turns.append(data)
        except InputError as error:
            raise ClientError("invalid_value", f"Invalid 'audio': {error}.", "audio") from None

    def _commit(self, event: events.CommitAudio) -> None:
        buffered_ms = self._session.turns.buffered_ms
        if buffered_ms < MIN_COMMIT_MS:
            raise ClientError(
                "input_audio_buffer_commit_empty",
                "Error committing input audio buffer: buffer too small. Expected at least "
                f"{MIN_COMMIT_MS}ms of audio, but buffer only has {buffered_ms}ms of audio.",
            )
        self._has_refused_audio = False
        self._session.turns.commit()

    def _clear(self, event: events.ClearAudio) -> None:
        self._has_refused_audio = False
        self._session.turns.clear()
        self._session.emit(events.audio_cleared())

    def _played(self, event: events.AudioPlayed) -> None:
        self._session.report_played(event.item_id, event.played_ms, self._session.now_ms)

    # --- The camera ------------------------------------------------------------------------------

    def _append_frame(self, event: events.AppendFrame) -> None:
        self._check_describing("omni.frame.append")
        image = event.image
        uri = image if image.startswith("data:") else f"data:image/jpeg;base64,{image}"
        try:
            data = read_data_uri(uri)
        except InputError as error:
            raise ClientError("invalid_value", str(error), "image") from None
        self._session.describing.show(data, event.taken_ms)

    def _describe(self, event: events.DescribeCommand) -> None:
        self._check_describing("omni.describe.command")
        self._session.describing.command(event.command)

    def _check_describing(self, kind: str) -> None:
        if not self._session.describing.is_on:
            raise ClientError(
                "invalid_value",
                f"'{kind}' needs describe mode: send session.update with "
                '{"omni": {"describe": {}}} first.',
                "type",
            )

    # --- Items -----------------------------------------------------------------------------------

    def _create_item(self, event: events.CreateItem) -> None:
        session = self._session
        after = event.previous_item_id
        if after not in (None, "root") and after not in session.items:
            raise ClientError(
                "invalid_value",
                f"Previous item with item_id '{after}' not found.",
                "previous_item_id",
            )
        if event.item.id is not None and event.item.id in session.items:
            raise ClientError(
                "item_create_duplicate_item_id",
                f"An item with id '{event.item.id}' already exists in the conversation.",
                "item.id",
            )
        item, audio = self._new_item(event.item, "item")
        session.add_item(item, after)
        self._hear(audio, is_kept=True)
        session.sync()

    def _new_item(self, source: AnyItem, param: str) -> tuple[Item, list[tuple[str, bytes]]]:
        """An item of the client's, and (turn id, bytes) of audio that has to be heard."""
        size = len(source.model_dump_json(exclude={"content": {"__all__": {"audio", "image_url"}}}))
        if size > MAX_ITEM_JSON_BYTES:
            raise ClientError(
                "invalid_value",
                f"The item is {size} bytes of JSON without audio and images; the limit is "
                f"{MAX_ITEM_JSON_BYTES}.",
                param,
            )
        item_id = source.id or self._session.new_id("item")
        if isinstance(source, FunctionCallItem):
            call_id = source.call_id or self._session.new_id("call")
            return Item(
                item_id,
                "function_call",
                name=source.name,
                arguments=source.arguments,
                call_id=call_id,
            ), []
        if isinstance(source, FunctionOutputItem):
            return Item(
                item_id, "function_call_output", call_id=source.call_id, output=source.output
            ), []
        item = Item(item_id, "message", source.role)
        audio: list[tuple[str, bytes]] = []
        for index, part in enumerate(source.content):
            where = f"{param}.content[{index}]"
            if isinstance(part, InputImage):
                item.content.append(self._picture(part, f"{where}.image_url"))
                continue
            if not isinstance(part, InputAudio):
                item.content.append(Content(part.type, part.text))
                continue
            turn_id = item_id if not audio else self._session.new_id("item")
            content = Content("input_audio", part.transcript, turn_id)
            item.content.append(content)
            if part.audio is None and part.transcript is None:
                raise ClientError(
                    "missing_required_parameter",
                    f"Missing required parameter: '{where}.audio'.",
                    f"{where}.audio",
                )
            if part.audio is not None:
                audio.append((turn_id, self._decode_samples(part.audio, f"{where}.audio")))
        return item, audio

    def _picture(self, part: InputImage, where: str) -> Content:
        try:
            data = read_data_uri(part.image_url)
        except InputError as error:
            raise ClientError("invalid_value", str(error), where) from None
        media_id = self._session.new_id("image")
        media = MediaPart(media_id, "image", data, is_small=part.detail == "low")
        return Content("input_image", None, media=media)

    def _hear(self, audio: list[tuple[str, bytes]], *, is_kept: bool) -> None:
        """Let the assistant hear audio that came inside items."""
        session = self._session
        for turn_id, data in audio:
            decoder = Decoder(session.settings.input_format)
            samples = np.concatenate([decoder.push(data), decoder.flush()])
            session.turns.feed_item(turn_id, samples, is_kept=is_kept)
            if is_kept:
                session.items.keep_audio(turn_id, float_to_pcm16(samples), INPUT_RATE_HZ)

    def _retrieve_item(self, event: events.RetrieveItem) -> None:
        session = self._session
        item = session.items.get(event.item_id)
        if item is None:
            raise ClientError(
                "item_retrieve_invalid_item_id",
                f"Error retrieving item: the item with id '{event.item_id}' does not exist.",
                "item_id",
            )
        shown = item.shown()
        kept = session.items.audio(item.id)
        part = next((c for c in shown.get("content", ()) if c["type"].endswith("_audio")), None)
        if kept is not None and part is not None:
            wire = session.settings.wire["audio"]
            num_bytes = len(json.dumps(shown, ensure_ascii=False).encode("utf-8", "surrogatepass"))
            wire_format = wire["input" if item.role == "user" else "output"]["format"]["type"]
            part["audio"] = self._encode(kept, wire_format, MAX_RETRIEVED_BYTES - num_bytes)
        session.emit(events.item_retrieved(shown))

    @staticmethod
    def _encode(kept: tuple[int, bytes], wire_format: AudioFormat, max_bytes: int) -> str:
        rate_hz, pcm = kept
        max_samples = max(max_bytes, 0) // FORMAT_SAMPLE_BYTES[wire_format]
        num_samples = max_samples * rate_hz // FORMAT_RATE_HZ[wire_format]
        encoder = Encoder(wire_format, rate_hz)
        data = encoder.push(pcm[: num_samples * 2]) + encoder.flush()
        return base64.b64encode(data).decode()

    def _truncate_item(self, event: events.TruncateItem) -> None:
        session = self._session
        item = session.items.get(event.item_id)
        if item is None:
            raise ClientError(
                "item_truncate_invalid_item_id",
                f"Error truncating item: the item with id '{event.item_id}' does not exist.",
                "item_id",
            )
        if item.role != "assistant" or item.spoken is None:
            raise ClientError(
                "invalid_value", "Only assistant audio messages can be truncated.", "item_id"
            )
        if event.content_index >= len(item.content):
            raise ClientError(
                "invalid_value",
                f"The item has no content part {event.content_index}.",
                "content_index",
            )
        duration_ms = item.spoken.duration_ms
        if event.audio_end_ms > duration_ms:
            raise ClientError(
                "invalid_value",
                f"Audio content of {duration_ms}ms is already shorter than {event.audio_end_ms}ms",
                "audio_end_ms",
            )
        item.spoken.truncated_ms = event.audio_end_ms
        item.content[0].is_shown = False
        session.items.cut_audio(item.id, event.audio_end_ms)
        session.emit(events.item_truncated(event.item_id, event.content_index, event.audio_end_ms))
        session.sync()

    def _delete_item(self, event: events.DeleteItem) -> None:
        if not self._session.delete_item(event.item_id):
            raise ClientError(
                "item_delete_invalid_item_id",
                f"Error deleting item: the item with id '{event.item_id}' does not exist.",
                "item_id",
            )
        self._session.sync()

    # --- Responses -------------------------------------------------------------------------------

    def _create_response(self, event: events.CreateResponse) -> None:
        session = self._session
        params = event.response or ResponseParams()
        if session.settings.intent == "transcription":
            raise ClientError(
                "invalid_value", "A transcription session makes no responses.", "type"
            )
        if event.response is None and session.turns.answer_last():
            return
        is_in_band = params.conversation != "none"
        if is_in_band and session.active is not None and not session.describing.may_give_way:
            raise ClientError(
                "conversation_already_has_active_response",
                "Conversation already has an active response in progress: "
                f"{session.active.id}. Wait until the response is finished before creating a "
                "new one.",
            )
        if len(session.responses) >= MAX_PARALLEL_RESPONSES:
            raise ClientError(
                "too_many_responses",
                f"{MAX_PARALLEL_RESPONSES} responses are in progress, which is the limit.",
            )
        settings = session.settings.response(params, has_spoken=session.has_spoken)
        context = self._context(params)
        if is_in_band:
            session.describing.give_way()
        session.respond(session.describing.answering(settings), context)

    def _context(self, params: ResponseParams) -> Context | None:
        """The context of a response that differs from the conversation's; None: it does not."""
        session = self._session
        is_default = (
            params.conversation != "none"
            and params.input is None
            and params.instructions is None
            and params.tools is None
        )
        if is_default:
            return None
        instructions = session.settings.instructions
        if params.instructions is not None:
            instructions = params.instructions
        tools = session.settings.tools if params.tools is None else tool_specs(params.tools)
        if params.input is None:
            session.context_fits()
            return session.items.render(instructions, tools)
        items: list[Item] = []
        heard: list[tuple[str, bytes]] = []
        for index, source in enumerate(params.input):
            where = f"response.input[{index}]"
            if isinstance(source, ItemReference):
                known = session.items.get(source.id)
                if known is None:
                    raise ClientError(
                        "invalid_value", f"Item '{source.id}' does not exist.", f"{where}.id"
                    )
                items.append(known)
            else:
                item, audio = self._new_item(source, where)
                items.append(item)
                heard += audio
        self._hear(heard, is_kept=False)
        return render(items, instructions, tools)

    def _cancel(self, event: events.CancelResponse) -> None:
        session = self._session
        response = session.active
        if event.response_id is not None:
            response = session.responses.get(event.response_id)
        if response is None:
            raise ClientError(
                "response_cancel_not_active", "Cancellation failed: no active response found"
            )
        session.cancel(response, "client_cancelled")

    # --- Inside ----------------------------------------------------------------------------------

    def _decode_base64(self, text: str, param: str) -> bytes:
        limit = self._session.config.server.max_append_bytes
        if len(text) > limit:
            raise ClientError(
                "invalid_value",
                f"Invalid '{param}': {len(text)} bytes of base64; the limit is {limit}.",
                param,
            )
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ClientError(
                "invalid_value", f"Invalid '{param}': not valid base64 ({error}).", param
            ) from None

    def _decode_samples(self, text: str, param: str) -> bytes:
        """Base64 of whole samples in the session's input format."""
        data = self._decode_base64(text, param)
        if len(data) % FORMAT_SAMPLE_BYTES[self._session.settings.input_format]:
            raise ClientError(
                "invalid_value", f"Invalid '{param}': {len(data)} bytes is odd.", param
            )
        return data
