from __future__ import annotations

import numpy as np
import torch
from omni_encoders.alignment import token_starts


def attention(starts: list[int], num_frames: int, *, num_heads: int = 3) -> torch.Tensor:
    """Noisy heads of which each token looks from its own start to the next token's."""
    generator = torch.Generator().manual_seed(0)
    out = torch.rand(len(starts), num_heads, num_frames, generator=generator) * 0.2
    for token, (start, end) in enumerate(zip(starts, [*starts[1:], num_frames], strict=True)):
        out[token, :, start:end] += 1.0
    return out.softmax(-1)


def test_tokens_start_where_attention_moves_to_them() -> None:
    expected = [0, 12, 30, 31 + 20, 80]
    found = token_starts(attention(expected, 100), 100)
    assert np.abs(found - np.array(expected)).max() <= 3  # the median filter blurs 3 frames


def test_padding_takes_no_part() -> None:
    sound = attention([0, 10, 20], 40)
    padding = torch.rand(3, 3, 500)
    padded = torch.cat([sound, padding], dim=2)
    np.testing.assert_array_equal(token_starts(padded, 40), token_starts(sound, 40))


def test_starts_increase_even_with_hardly_a_frame_per_token() -> None:
    found = token_starts(torch.rand(30, 2, 500), 12)
    assert (np.diff(found) >= 1).all()
    assert found[0] == 0


def test_one_token_starts_at_the_beginning() -> None:
    assert token_starts(torch.rand(1, 2, 50), 50).tolist() == [0]
