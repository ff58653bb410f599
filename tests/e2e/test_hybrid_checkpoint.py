"""A folder with a random Qwen3.5 checkpoint, from the command line and through the server.

What random weights say is noise; that tokens flow, become sound, can be interrupted and taken back
to what was heard is not.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from omni_streaming.assembly import assemble

from omni.cli import main
from omni.config import Config, EngineConfig, ModelConfig, home
from omni.store import is_present
from tests.omni.tiny_qwen3_5 import make, make_tokenizer
from tests.streaming.serving import Socket, serving_on_a_thread, socket


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen3_5")
    make("vision", 2, vocab_size=960, max_position_embeddings=2048).save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    if not all(is_present(name, home(Config())) for name in ("whisper-base", "smart-turn-v3")):
        pytest.skip("the embedded weights are absent: run `omni fetch`")
    # A store of its own, so that what is repacked goes with the test.
    (folder / "store").mkdir()
    (folder / "store" / "models").symlink_to(home(Config()) / "models")
    config = Config(
        home=str(folder / "store"),
        model=ModelConfig(backbone=str(folder)),
        engine=EngineConfig(max_context_tokens=1536, num_pages=1024),
    )
    with serving_on_a_thread(assemble(config)) as place:
        yield place


def test_chat_answers_from_the_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--set",
        f"home={folder / 'chat'}",
        "--model",
        str(folder),
        "--max-tokens",
        "24",
        "--stats",
        "--system",
        "Be brief.",
    ]
    assert main(["chat", *options, "What can the function do?"]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip()
    assert "24 out" in printed.err


def test_chat_answers_about_a_picture_from_the_folder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photo.png").write_bytes(photo())
    options = ["--set", f"home={folder / 'chat'}", "--model", str(folder), "--max-tokens", "4"]
    image = ["--image", str(tmp_path / "photo.png")]
    assert main(["chat", *options, "--stats", *image, "What is this?"]) == 0
    assert capsys.readouterr().out.strip()
    (tmp_path / "photo.png").write_bytes(photo()[:200])
    assert main(["chat", *options, *image, "What is this?"]) == 1
    assert "the image ends too early" in capsys.readouterr().err


def photo() -> bytes:
    pixels = np.random.default_rng(1).integers(0, 256, (128, 96, 3), dtype=np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


async def given(client: Socket, num_deltas: int) -> str:
    """What an answer says in its first ``num_deltas`` deltas of text."""
    return "".join(
        [(await client.until("response.output_text.delta"))["delta"] for _ in range(num_deltas)]
    )


@pytest.mark.weights
async def test_an_interrupted_answer_is_taken_back_to_what_was_given(url: str) -> None:
    async with socket(url) as client:
        session = {
            "type": "realtime",
            "output_modalities": ["text"],
            "instructions": "You choose a function.",
            "max_output_tokens": 200,
        }
        await client.send("session.update", session=session)
        await client.until("session.updated")
        await client.ask("What can the function do with a value?")
        text = await given(client, 12)
        await client.send("response.cancel")
        done = (await client.until("response.done"))["response"]
        assert done["status"] == "cancelled"
        whole = done["output"][0]["content"][0]["text"]
        assert whole.startswith(text)
        await client.ask("And then?")
        done = (await client.until("response.done"))["response"]
        assert done["status"] in ("completed", "incomplete")
        usage = done["usage"]
        # Prompt, question and the interrupted answer were all computed before.
        assert usage["input_token_details"]["cached_tokens"] > 0.5 * usage["input_tokens"]


@pytest.mark.weights
async def test_a_spoken_answer_is_truncated_to_what_was_heard(url: str) -> None:
    async with socket(url) as client:
        await client.send("session.update", session={"type": "realtime", "max_output_tokens": 60})
        await client.until("session.updated")
        await client.ask("What can the function do with a value?")
        delta = await client.until("response.output_audio.delta")
        answered = (await client.until("response.done"))["response"]
        where = {"item_id": delta["item_id"], "content_index": 0}
        await client.send("conversation.item.truncate", **where, audio_end_ms=700)
        await client.until("conversation.item.truncated")
        await client.send("conversation.item.retrieve", item_id=delta["item_id"])
        item = (await client.until("conversation.item.retrieved"))["item"]
        assert item["content"][0].get("transcript") is None  # the protocol drops it with the audio
        await client.ask("Go on.")
        after = (await client.until("response.done"))["response"]
        assert after["status"] in ("completed", "incomplete")
        # What was not heard is gone from the context: 60 tokens were said, few of them heard.
        grown = after["usage"]["input_tokens"] - answered["usage"]["input_tokens"]
        assert 0 < grown < 60


@pytest.mark.weights
async def test_a_picture_is_seen_once_and_stays_in_the_context(url: str) -> None:
    async with socket(url) as client:
        session = {"type": "realtime", "output_modalities": ["text"], "max_output_tokens": 8}
        await client.send("session.update", session=session)
        await client.until("session.updated")
        image = f"data:image/png;base64,{base64.b64encode(photo()).decode()}"
        item = {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_image", "image_url": image}],
        }
        await client.send("conversation.item.create", item=item)
        await client.ask("What is this?")
        first = (await client.until("response.done"))["response"]["usage"]
        assert first["input_token_details"]["image_tokens"] == 70  # seen as 320 x 224 pixels
        await client.ask("And what is behind it?")
        second = (await client.until("response.done"))["response"]["usage"]
        details = second["input_token_details"]
        assert details["image_tokens"] == 70
        assert details["cached_tokens"] >= first["input_tokens"]
