"""Pictures and clips in a conversation: what the model sees, and when it has to look."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_assistant import run, tiny_assistant
from tiny_backbone import HYBRID, Run, TinyBackbone, Watched, one_thread  # noqa: F401
from tiny_qwen3_5 import change_tensors, make_tokenizer
from tiny_qwen3_5 import make as make_theirs
from transformers import PreTrainedModel
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from omni.assistant.context import Context, Senses
from omni.assistant.seeing import (
    MAX_CLIP_LOOKS,
    MAX_IMAGE_PIXELS,
    Blind,
    TowerSight,
    WordsSight,
)
from omni.assistant.text_chat import open_chat
from omni.config import EngineConfig
from omni.engine.engine import Engine, Priority, Prompt, SamplingParams
from omni.errors import CancelledError, InputError, ModelError
from omni.models import LoadedModel, load
from omni.models.batch import Backbone
from omni.scene import Scene
from omni.types import (
    OUTPUT_RATE_HZ,
    AudioDelta,
    Cancel,
    Conversation,
    Done,
    Edit,
    EmbeddingSpan,
    Look,
    MediaPart,
    Message,
    Open,
    Output,
    Respond,
    ResponseConfig,
    Say,
    Seen,
    Span,
    TextDelta,
    TextPart,
    TextSpan,
)

TEXT = ResponseConfig(modality="text", max_output_tokens=6)
NUM_GREEDY = 64


def make(backbone: Backbone) -> Run:
    config = EngineConfig(
        max_sequences=6, num_pages=64, page_tokens=16, max_context_tokens=1024, step_tokens=48
    )
    watched = Watched(backbone)
    return Run(Engine(watched, config), watched)


def png(pixels: NDArray[np.uint8]) -> bytes:
    ok, data = cv2.imencode(".png", pixels[:, :, ::-1])
    assert ok
    return data.tobytes()


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def picture(seed: int = 0, height: int = 96, width: int = 160) -> MediaPart:
    return MediaPart(f"picture {seed}", "image", png(noise(height, width, seed)))


def clip(num_frames: int, rate: int = 10) -> bytes:
    """A clip that is all of one grey in each frame, brighter from frame to frame."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for index in range(num_frames):
            grey = np.full((64, 96, 3), (40 + index * 4) % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


# --- A native model --------------------------------------------------------------------------


@dataclass
class Pair:
    """One random checkpoint, read by transformers and by Omni."""

    theirs: PreTrainedModel
    ours: LoadedModel


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = make_tokenizer()
    theirs = make_theirs("vision", vocab_size=len(tokenizer), max_position_embeddings=1024)
    theirs.config.image_token_id = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    theirs.config.vision_start_token_id = tokenizer.convert_tokens_to_ids("<|vision_start|>")
    theirs.config.vision_end_token_id = tokenizer.convert_tokens_to_ids("<|vision_end|>")
    theirs.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Pair(theirs, load(folder, home=folder, precision="fp32"))


def test_an_answer_about_pictures_equals_that_of_transformers(pair: Pair) -> None:
    shown = (picture(1), picture(2, 320, 96))
    words = ("Compare this", "to this.")
    parts = (TextPart(words[0]), shown[0], TextPart(words[1]), shown[1])
    conversation = Conversation(messages=(Message("user", parts),))
    model = pair.ours
    assert model.vision is not None
    context = Context(model.template, model.tokenizer, instructions="", max_tokens=1024)
    sight = TowerSight(model.vision)
    senses = Senses(sights={part.media_id: sight.look(part, lambda: False) for part in shown})
    prompt = context.render(conversation, senses) + context.answer_header(conversation)

    run_ = make(model.backbone)
    seq = run_.engine.add(priority=Priority.RESPONDING)
    run_.engine.extend(seq, prompt)
    run_.engine.generate(seq, SamplingParams(max_tokens=NUM_GREEDY))
    run_.drain()

    pad = pair.theirs.config.image_token_id
    processor = Qwen2VLImageProcessor(
        patch_size=16,
        merge_size=2,
        min_pixels=256 * 256,
        max_pixels=MAX_IMAGE_PIXELS,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    pixels = [
        torch.from_numpy(noise(*size)).permute(2, 0, 1) for size in ((96, 160, 1), (320, 96, 2))
    ]
    inputs = processor(images=pixels, return_tensors="pt")
    ids = torch.tensor([[pad if token < 0 else token for token in prompt.token_ids]])
    with torch.inference_mode():
        expected = pair.theirs.generate(
            ids,
            pixel_values=inputs["pixel_values"],
            image_grid_thw=inputs["image_grid_thw"],
            mm_token_type_ids=(ids == pad).int(),
            max_new_tokens=NUM_GREEDY,
            do_sample=False,
            eos_token_id=None,
        )[0, ids.shape[1] :]
    assert prompt.num_embeddings == sum(g.prod() // 4 for g in inputs["image_grid_thw"])
    assert run_.generated(seq) == expected.tolist()


def test_a_picture_is_computed_once_for_all_questions_about_it(pair: Pair) -> None:
    chat = open_chat(
        pair.ours, EngineConfig(), instructions="Look.", params=SamplingParams(max_tokens=4)
    )
    shown = picture(3)
    chat.look(shown)
    list(chat.ask("What is this?", [shown]))
    before = chat.stats.input_tokens
    list(chat.ask("And what is behind it?"))
    assert chat.stats.cached_tokens >= before
    chat.undo()
    list(chat.ask("And what is under it?"))
    assert chat.stats.cached_tokens >= before


def test_a_clip_is_times_and_pictures(pair: Pair) -> None:
    assert pair.ours.vision is not None
    spans = TowerSight(pair.ours.vision).look(MediaPart("c", "video", clip(30)), lambda: False)
    stamps = [span.text for span in spans if isinstance(span, TextSpan)]
    seen = [span for span in spans if isinstance(span, EmbeddingSpan)]
    # Frames 0, 6, 12, 17, 23 and 29 of 30, two for each moment.
    assert stamps == ["<0.3 seconds>", "<1.4 seconds>", "<2.6 seconds>"]
    assert [type(span) for span in spans] == [TextSpan, EmbeddingSpan] * len(stamps)
    assert not torch.equal(seen[0].embeddings, seen[1].embeddings)


def test_a_look_stops_when_asked_to(pair: Pair) -> None:
    assert pair.ours.vision is not None
    sight = TowerSight(pair.ours.vision)
    for part in (picture(), MediaPart("c", "video", clip(4))):
        with pytest.raises(CancelledError):
            sight.look(part, lambda: True)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot be decoded"),
        (b"not a video at all", "cannot be decoded"),
        (clip(10)[:300], "cannot be decoded"),
        (clip(123, rate=2), "61 s long, expected at most 60 s"),
    ],
)
def test_a_bad_clip_is_refused_with_the_reason(pair: Pair, data: bytes, message: str) -> None:
    assert pair.ours.vision is not None
    with pytest.raises(InputError, match=message):
        TowerSight(pair.ours.vision).look(MediaPart("c", "video", data), lambda: False)


def test_a_tower_with_a_weight_missing_is_refused(pair: Pair, tmp_path: Path) -> None:
    pair.theirs.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    change_tensors(
        tmp_path, lambda t: {k: v for k, v in t.items() if k != "model.visual.merger.norm.weight"}
    )
    with pytest.raises(ModelError, match=r"merger\.norm\.weight"):
        load(tmp_path, home=tmp_path, precision="fp32")


def test_a_checkpoint_that_left_its_tower_out_is_a_text_model(pair: Pair, tmp_path: Path) -> None:
    pair.theirs.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    change_tensors(tmp_path, lambda t: {k: v for k, v in t.items() if ".visual." not in k})
    assert load(tmp_path, home=tmp_path, precision="fp32").vision is None


def test_a_family_without_eyes_says_so_where_embeddings_would_stand() -> None:
    span = EmbeddingSpan(
        embeddings=torch.zeros(1, 4), positions=torch.arange(1), start_ms=0, end_ms=0, final=True
    )
    with tiny_assistant() as assistant:
        template = assistant._model.template
        message = Message("user", (picture(),))
        with pytest.raises(ModelError, match="sees no pictures"):
            template.message(message, Senses(sights={picture().media_id: (span,)}))


# --- The engine ------------------------------------------------------------------------------


def span_of(backbone: TinyBackbone, token_ids: list[int]) -> EmbeddingSpan:
    return EmbeddingSpan(
        embeddings=backbone.embed[token_ids],
        positions=torch.arange(len(token_ids)),
        start_ms=0,
        end_ms=0,
        final=True,
    )


def test_a_prompt_keeps_the_spans_it_shares_and_no_others() -> None:
    backbone = TinyBackbone(HYBRID)
    run_ = make(backbone)
    one, two = span_of(backbone, [5, 6]), span_of(backbone, [5, 6])
    seq = run_.engine.add(priority=Priority.LISTENING)
    run_.engine.sync(seq, Prompt([1, 2, -1, -1, 3, 4], (one,)))
    assert run_.engine.sync(seq, Prompt([1, 2, -1, -1, 3, 9, 9], (one,))) == 5
    assert run_.engine.sync(seq, Prompt([1, 2, -1, -1, 3, 9, 9], (two,))) == 2
    assert run_.engine.sync(seq, Prompt([1, 2, -1, -1, -1, -1, 3], (two, one))) == 4
    assert run_.engine.sync(seq, Prompt([1, 2, -1, -1], (two,))) == 4
    assert run_.engine.sync(seq, [1, 2, 7]) == 2
    assert run_.engine.tokens(seq) == [1, 2, 7]
    run_.drain()
    run_.engine.check_integrity()


def test_a_span_that_was_cut_is_not_taken_for_the_whole() -> None:
    backbone = TinyBackbone(HYBRID)
    run_ = make(backbone)
    whole = span_of(backbone, [5, 6, 7])
    seq = run_.engine.add(priority=Priority.LISTENING)
    run_.engine.sync(seq, Prompt([1, -1, -1, -1], (whole,)))
    run_.engine.truncate(seq, 3)
    assert run_.engine.sync(seq, Prompt([1, -1, -1, -1, 2], (whole,))) == 1


def test_a_bad_id_behind_a_span_changes_nothing() -> None:
    backbone = TinyBackbone(HYBRID)
    run_ = make(backbone)
    seq = run_.engine.add([1, 2], priority=Priority.LISTENING)
    with pytest.raises(InputError):
        run_.engine.extend(seq, Prompt([-1, -1, 10**6], (span_of(backbone, [5, 6]),)))
    assert run_.engine.tokens(seq) == [1, 2]
    run_.engine.check_integrity()


# --- The assistant ---------------------------------------------------------------------------


@dataclass
class Describes:
    """Eyes that put what they see into words, and count their looks."""

    looks: list[str] = field(default_factory=list)

    def look(self, part: MediaPart, should_stop: Callable[[], bool]) -> tuple[Span, ...]:
        self.looks.append(part.media_id)
        if part.data == b"broken":
            raise InputError("it is damaged")
        text = f"[A picture of {part.media_id}.]"
        return (TextSpan(text=text, start_ms=0, end_ms=0, final=True),)

    def recall(self, scene: Scene) -> tuple[Span, ...] | None:
        return (TextSpan(text=f"[{scene.main}, seen.]", start_ms=0, end_ms=0, final=True),)


def shown(*names: str) -> Conversation:
    messages = (
        Message("user", (MediaPart(name, "image", name.encode()), TextPart(f"What is {name}?")))
        for name in names
    )
    return Conversation(messages=tuple(messages))


def test_an_answer_waits_for_the_pictures_and_each_is_looked_at_once() -> None:
    sight = Describes()
    with tiny_assistant(sight=sight) as assistant:
        assistant.submit(Open("s", Conversation()))
        run(assistant)
        assistant.submit(Edit("s", shown("cat")))
        assistant.submit(Respond("s", "r", TEXT))
        assert not assistant._sessions["s"].responses["r"].sequence, "began before it saw"
        outputs = run(assistant)
        assert any(isinstance(output, TextDelta) for output in outputs)
        assert "[A picture of cat.]\nWhat is cat?" in assistant.context_text("s")
        assistant.submit(Edit("s", shown("cat", "dog")))
        assistant.submit(Respond("s", "r2", TEXT))
        run(assistant)
        assert sight.looks == ["cat", "dog"]
        assistant.submit(Edit("s", shown("dog")))
        run(assistant)
        assert "cat" not in assistant.context_text("s")
        assert list(assistant._sessions["s"].senses.sights) == ["dog"]


def test_nothing_behind_an_unseen_picture_is_computed() -> None:
    with tiny_assistant(sight=Describes()) as assistant:
        assistant.submit(Open("s", Conversation()))
        run(assistant)
        before = assistant.context_text("s")
        assistant.submit(Edit("s", shown("cat")))
        assert assistant.context_text("s") == before
        run(assistant)
        assert "What is cat?" in assistant.context_text("s")


def test_a_picture_of_an_out_of_band_question_leaves_no_trace() -> None:
    sight = Describes()
    with tiny_assistant(sight=sight) as assistant:
        assistant.submit(Open("s", Conversation()))
        assistant.submit(Respond("s", "r", TEXT, conversation=shown("cat"), out_of_band=True))
        outputs = run(assistant)
        assert any(isinstance(output, TextDelta) for output in outputs)
        assistant.submit(Edit("s", Conversation()))
        assert not assistant._sessions["s"].senses.sights
        assert "cat" not in assistant.context_text("s")


def test_an_album_of_one_session_does_not_hold_up_the_picture_of_another() -> None:
    sight = Describes()
    with tiny_assistant(sight=sight) as assistant:
        assistant.submit(Open("s", shown("cat", "dog", "cow")))
        assistant.submit(Open("t", shown("car")))
        assistant.submit(Edit("s", shown("cat", "cow")))
        run(assistant)
        assert sight.looks == ["cat", "car", "cow"]


def test_out_of_band_questions_pile_up_nothing_while_the_conversation_stands_still() -> None:
    with tiny_assistant(sight=Describes()) as assistant:
        assistant.submit(Open("s", shown("cat")))
        run(assistant)
        session = assistant._sessions["s"]
        before = list(session.senses.sights), list(session.context._cache)
        for number in range(3):
            asked = shown("cat", f"dog {number}")
            assistant.submit(Respond("s", f"r{number}", TEXT, conversation=asked, out_of_band=True))
            if number == 2:
                assistant.submit(Cancel("s", "r2"))  # before it was looked at
            run(assistant)
        assert (list(session.senses.sights), list(session.context._cache)) == before
        assert not session.looks
        assert not session.context._generated


@pytest.mark.parametrize("sight", [Describes(), Blind()])
def test_the_model_is_told_of_a_picture_that_cannot_be_seen(sight: Describes | Blind) -> None:
    with tiny_assistant(sight=sight) as assistant:
        assistant.submit(Open("s", Conversation()))
        assistant.submit(Edit("s", shown("broken")))
        assistant.submit(Respond("s", "r", TEXT))
        outputs = run(assistant)
        assert any(isinstance(output, TextDelta) for output in outputs)
        reason = "but it is damaged" if isinstance(sight, Describes) else "You cannot see it"
        assert reason in assistant.context_text("s")


def test_a_session_that_leaves_while_it_looks_leaves_nothing_behind() -> None:
    sight = Describes()
    with tiny_assistant(sight=sight) as assistant:
        assistant.submit(Open("s", shown("cat")))
        assistant.close()
        run(assistant)
        assert sight.looks == []


# --- A camera --------------------------------------------------------------------------------


class Glances:
    """Eyes that tell how many frames they saw before; a broken frame is none."""

    def look(
        self,
        picture: bytes | NDArray[np.uint8],
        at_ms: int,
        state: object | None,
        *,
        wants_text: bool = False,
        wants_main: bool = False,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> tuple[Scene, object]:
        if isinstance(picture, bytes) and picture == b"broken":
            raise InputError("it is damaged")
        count = 1 if state is None else int(str(state)) + 1
        return Scene(at_ms=at_ms, main=f"frame {count}"), count


def seen(outputs: list[Output]) -> dict[str, str]:
    return {
        o.frame_id: (o.scene.main or "") if o.scene else f"{o.fault}: {o.reason}"
        for o in outputs
        if isinstance(o, Seen)
    }


@pytest.mark.parametrize("num_frames", [1, 60, 110])
def test_words_for_a_clip_take_six_looks_at_most(num_frames: int) -> None:
    spans = WordsSight(Glances()).look(MediaPart("c", "video", clip(num_frames)), lambda: False)
    assert 1 <= len(spans) <= MAX_CLIP_LOOKS


def test_frames_are_seen_in_order_and_a_bad_one_loses_nothing() -> None:
    with tiny_assistant(watcher=Glances()) as assistant:
        assistant.submit(Open("s", Conversation()))
        found = {}
        for name, data in (("a", b"1"), ("b", b"broken"), ("c", b"2")):
            assistant.submit(Look("s", name, data, 0))
            found |= seen(run(assistant))
        assert found == {"a": "frame 1", "b": "bad_picture: it is damaged", "c": "frame 2"}


def test_frames_that_come_faster_than_they_are_seen_are_skipped_but_for_text() -> None:
    with tiny_assistant(watcher=Glances()) as assistant:
        assistant.submit(Open("s", Conversation()))
        for number in range(6):
            assistant.submit(Look("s", str(number), b"1", number, wants_text=number == 1))
        found = seen(run(assistant))
        skipped = [name for name, what in found.items() if what.startswith("skipped")]
        assert sorted(skipped) == ["2", "3", "4"]
        assert [found[name] for name in "015"] == ["frame 1", "frame 2", "frame 3"]


class Shut:
    """Eyes that do not open, but for one moment."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def look(
        self, picture: bytes | NDArray[np.uint8], at_ms: int, state: object | None, **_: object
    ) -> tuple[Scene, object]:
        if picture == b"open":
            return Scene(at_ms=at_ms), state
        raise self.error


@pytest.mark.parametrize("error", [ModelError("no weights"), RuntimeError("damaged weights")])
def test_the_log_says_once_why_frames_are_not_seen(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with tiny_assistant(watcher=Shut(error)) as assistant:
        assistant.submit(Open("s", Conversation()))
        for number, data in enumerate((b"1", b"2", b"3", b"open", b"4", b"5")):
            assistant.submit(Look("s", str(number), data, number))
            assert str(number) in seen(run(assistant))
    assert [str(error) in message for message in caplog.messages] == [True, True]


@pytest.mark.parametrize(
    "error", [ModelError("/home/me/nanodet.bin is damaged"), RuntimeError("/srv/x.py broke")]
)
def test_failing_eyes_tell_the_model_nothing_of_the_machine_and_the_log_all(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with tiny_assistant(sight=WordsSight(Shut(error))) as assistant:
        assistant.submit(Open("s", shown("cat")))
        run(assistant)
        text = assistant.context_text("s")
    assert "[The user shows a picture, but you cannot look at pictures at the moment.]" in text
    assert "/" not in text
    (record,) = (r for r in caplog.records if str(error) in r.getMessage())
    assert (record.exc_info is not None) == isinstance(error, RuntimeError)


class Bright:
    """Sees in every picture that the light is too bright."""

    def look(
        self, picture: bytes | NDArray[np.uint8], at_ms: int, state: object | None, **_: object
    ) -> tuple[Scene, object]:
        return Scene(at_ms=0, condition="bright"), state


def test_a_model_without_eyes_is_told_of_files_as_pictures_and_of_frames_as_the_camera() -> None:
    sight = WordsSight(Bright())
    shown = sight.look(picture(), lambda: False)
    assert [span.text for span in shown if isinstance(span, TextSpan)] == [
        "[The picture shows nothing: the light is too bright.]"
    ]
    part = MediaPart("clip", "video", clip(12))
    texts = [span.text for span in sight.look(part, lambda: False) if isinstance(span, TextSpan)]
    assert len(texts) > 1
    assert all(": [The picture shows nothing" in text for text in texts)
    recalled = sight.recall(Scene(at_ms=0, condition="bright"))
    assert recalled is not None
    assert isinstance(recalled[0], TextSpan)
    assert recalled[0].text.startswith("[The camera shows nothing")


def test_without_eyes_a_look_says_so() -> None:
    with tiny_assistant() as assistant:
        assistant.submit(Open("s", Conversation()))
        assistant.submit(Look("s", "a", b"1", 0))
        assert "no_eyes" in seen(run(assistant))["a"]


def test_given_words_are_spoken_as_they_are() -> None:
    words = "Watch out. A bicycle is coming from the left."
    with tiny_assistant() as assistant:
        assistant.submit(Open("s", Conversation()))
        run(assistant)
        before = assistant.context_text("s")
        assistant.submit(Say("s", "r", words, ResponseConfig()))
        outputs = run(assistant)
        assert "".join(o.text for o in outputs if isinstance(o, TextDelta)) == words
        sound = [o for o in outputs if isinstance(o, AudioDelta)]
        assert sum(len(o.pcm) for o in sound) > OUTPUT_RATE_HZ  # half a second at least
        assert sound[-1].marks[-1].num_chars == len(words)
        (done,) = [o for o in outputs if isinstance(o, Done)]
        assert done.reason == "completed"
        assert done.usage.output_text_tokens == 0
        assert assistant.context_text("s") == before


def test_given_words_are_written_in_the_text_modality_and_can_be_cancelled() -> None:
    with tiny_assistant() as assistant:
        assistant.submit(Open("s", Conversation()))
        assistant.submit(Say("s", "r", "One. Two.", TEXT))
        outputs = run(assistant)
        assert "".join(o.text for o in outputs if isinstance(o, TextDelta)) == "One. Two."
        assert not any(isinstance(o, AudioDelta) for o in outputs)
        assistant.submit(Say("s", "r2", "One. Two. Three.", ResponseConfig()))
        assistant.submit(Cancel("s", "r2"))
        outputs = run(assistant)
        assert not any(isinstance(o, AudioDelta) for o in outputs)
        assert [o.reason for o in outputs if isinstance(o, Done)] == ["cancelled"]


def test_a_question_about_a_frame_that_was_seen_needs_no_second_look() -> None:
    sight = Describes()
    with tiny_assistant(sight=sight, watcher=Glances()) as assistant:
        assistant.submit(Open("s", Conversation()))
        for number in range(12):
            assistant.submit(Look("s", f"f{number}", b"1", number))
            run(assistant)
        part = MediaPart("f11", "image", b"1")
        question = Conversation(messages=(Message("user", (part, TextPart("What is it?"))),))
        assistant.submit(Edit("s", question))
        assistant.submit(Respond("s", "r", TEXT))
        run(assistant)
        assert "[frame 12, seen.]\nWhat is it?" in assistant.context_text("s")
        assert not sight.looks
        assert len(assistant._sessions["s"].watch.scenes) == 8
