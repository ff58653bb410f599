"""Rotary positions of spans in the engine's sequences, against transformers' get_rope_index."""

from __future__ import annotations

import random

import pytest
import torch
from omni_encoders.vision import token_positions
from tiny_backbone import WIDTH, TinyBackbone, Watched
from transformers import DynamicCache
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5Config
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5Model

from omni.config import EngineConfig
from omni.engine.engine import Engine, Priority, SamplingParams
from omni.types import EmbeddingSpan

IMAGE, VIDEO, START, END = 248056, 248057, 248053, 248054
MERGE = 2


@pytest.fixture(scope="module")
def reference() -> Qwen3_5Model:
    text = {
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "linear_num_key_heads": 1,
        "linear_num_value_heads": 1,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "layer_types": ["full_attention"],
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 1,
        "out_hidden_size": 16,
        "spatial_merge_size": MERGE,
    }
    return Qwen3_5Model(Qwen3_5Config(text_config=text, vision_config=vision))


class Prompt:
    """One conversation built for both sides: ids and grids for theirs, an engine's for ours.

    The engine computes it in steps of 16 tokens, so spans are cut anywhere.
    """

    def __init__(self) -> None:
        config = EngineConfig(
            max_sequences=2, num_pages=128, page_tokens=8, max_context_tokens=1024, step_tokens=16
        )
        self.watched = Watched(TinyBackbone(("attention",), max_positions=1024))
        self.engine = Engine(self.watched, config)
        self.seq_id = self.engine.add(priority=Priority.LISTENING)
        self.ids: list[int] = []
        self.kinds: list[int] = []
        self.images: list[tuple[int, int, int]] = []
        self.videos: list[tuple[int, int, int]] = []
        self.position = 0  # of the next token, by what token_positions says

    def text(self, num_tokens: int) -> Prompt:
        return self._text([7] * num_tokens)

    def image(self, rows: int, columns: int) -> Prompt:
        self.images.append((1, rows, columns))
        return self._see(IMAGE, rows, columns)

    def video(self, num_moments: int, rows: int, columns: int) -> Prompt:
        """``<t seconds>`` (five tokens) before each moment."""
        self.videos.append((num_moments, rows, columns))
        for _ in range(num_moments):
            self.text(5)._see(VIDEO, rows, columns)
        return self

    def positions(self, num_decoded: int = 0) -> torch.Tensor:
        """[3, T + num_decoded - 1]: what the backbone was given for prompt and answer.

        The last token is left uncomputed until another follows.
        """
        if num_decoded:
            params = SamplingParams(max_tokens=num_decoded)
            self.engine.generate(self.seq_id, params)
        while self.engine.has_work():
            self.engine.step()
        given = [batch.positions.expand(3, -1) for batch in self.watched.batches]
        return torch.cat(given, dim=1)

    def _see(self, token: int, rows: int, columns: int) -> Prompt:
        self._text([START])
        positions, advance = token_positions(rows // MERGE, columns // MERGE)
        num_tokens = positions.shape[1]
        span = EmbeddingSpan(
            embeddings=torch.zeros(num_tokens, WIDTH),
            positions=positions,
            start_ms=0,
            end_ms=0,
            final=True,
        )
        self.engine.extend(self.seq_id, span)
        self.ids += [token] * num_tokens
        self.kinds += [1 if token == IMAGE else 2] * num_tokens
        self.position += advance
        return self._text([END])

    def _text(self, ids: list[int]) -> Prompt:
        self.engine.extend(self.seq_id, [7] * len(ids))
        self.ids += ids
        self.kinds += [0] * len(ids)
        self.position += len(ids)
        return self


def expected_positions(reference: Qwen3_5Model, prompt: Prompt) -> tuple[torch.Tensor, int]:
    """[3, T] and what is added to an index behind them."""
    positions, deltas = reference.get_rope_index(
        torch.tensor([prompt.ids]),
        mm_token_type_ids=torch.tensor([prompt.kinds]),
        image_grid_thw=torch.tensor(prompt.images) if prompt.images else None,
        video_grid_thw=torch.tensor(prompt.videos) if prompt.videos else None,
    )
    return positions[:, 0], int(deltas[0])


CASES = {
    "text": lambda: Prompt().text(9),
    "image": lambda: Prompt().text(4).image(4, 6).text(3),
    "image-first": lambda: Prompt().image(8, 4).text(3),
    "image-last": lambda: Prompt().text(2).image(4, 12),
    "one-token-image": lambda: Prompt().text(1).image(2, 2).text(1),
    "images": lambda: Prompt().text(3).image(4, 4).image(2, 20).text(2).image(14, 6).text(5),
    "video": lambda: Prompt().text(3).video(4, 6, 8).text(6),
    "one-moment": lambda: Prompt().text(3).video(1, 6, 4).text(2),
    "videos": lambda: Prompt().video(2, 4, 4).text(2).video(3, 2, 10).text(2),
    "image-and-videos": lambda: (
        Prompt().text(5).video(2, 8, 4).text(1).image(6, 6).text(4).video(1, 4, 4).image(2, 4)
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_positions_equal_transformers(reference: Qwen3_5Model, name: str) -> None:
    prompt = CASES[name]()
    expected, delta = expected_positions(reference, prompt)
    torch.testing.assert_close(prompt.positions(), expected[:, :-1], rtol=0, atol=0)
    assert prompt.position == len(prompt.ids) + delta


@pytest.mark.parametrize("name", CASES)
def test_decoded_tokens_go_on_as_in_transformers(reference: Qwen3_5Model, name: str) -> None:
    prompt, num_decoded = CASES[name](), 6
    expected, delta = expected_positions(reference, prompt)
    reference.rope_deltas = torch.tensor([[delta]])
    cache = DynamicCache()
    cache.update(*torch.zeros(2, 1, 1, len(prompt.ids), 1), 0)
    decoded = reference.compute_3d_position_ids(
        input_ids=None,
        inputs_embeds=torch.zeros(1, num_decoded - 1, 1),
        past_key_values=cache,
    )
    got = prompt.positions(num_decoded)
    torch.testing.assert_close(got, torch.cat([expected, decoded[:, 0]], dim=1), rtol=0, atol=0)


def test_random_conversations_equal_transformers(reference: Qwen3_5Model) -> None:
    rng = random.Random(11)

    def side() -> int:
        return MERGE * rng.randint(1, 7)

    for _ in range(25):
        prompt = Prompt()
        for _ in range(rng.randint(1, 5)):
            kind = rng.choice(["text", "image", "video"])
            if kind == "text":
                prompt.text(rng.randint(1, 9))
            elif kind == "image":
                prompt.image(side(), side())
            else:
                prompt.video(rng.randint(1, 3), side(), side())
        expected, delta = expected_positions(reference, prompt)
        torch.testing.assert_close(prompt.positions(), expected[:, :-1], rtol=0, atol=0)
        assert prompt.position == len(prompt.ids) + delta


def test_padded_batches_of_transformers_hold_the_same_positions(reference: Qwen3_5Model) -> None:
    """The engine never pads; the published rule for padding is that it takes no position."""
    short, long = CASES["image"](), CASES["images"]()
    num_padding = len(long.ids) - len(short.ids)
    mask = torch.ones(2, len(long.ids), dtype=torch.int64)
    mask[0, :num_padding] = 0
    positions, _ = reference.get_rope_index(
        torch.tensor([[0] * num_padding + short.ids, long.ids]),
        mm_token_type_ids=torch.tensor([[0] * num_padding + short.kinds, long.kinds]),
        image_grid_thw=torch.tensor(short.images + long.images),
        attention_mask=mask,
    )
    for row, prompt in enumerate((short, long)):
        expected = positions[:, row, mask[row].bool()]
        torch.testing.assert_close(prompt.positions(), expected[:, :-1], rtol=0, atol=0)


def test_a_picture_stands_still_in_time() -> None:
    positions, advance = token_positions(2, 3)
    assert positions.tolist() == [[0] * 6, [0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2]]
    assert advance == 3
