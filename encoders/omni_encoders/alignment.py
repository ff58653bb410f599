"""When each recognised token was said: a monotonic path through cross-attention.

Some of Whisper's decoder heads look at the sound of the token they are about to predict (the
"alignment heads" of the checkpoint's config). Their averaged attention is read as the emission
scores of a left-to-right chain in which every token holds at least one frame, and the best path
is found by dynamic programming. Used by :mod:`omni_encoders.recogniser`.

Letters: N tokens, T encoder frames of 20 ms.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FRAME_MS = 20
_MEDIAN_FRAMES = 7  # smooths single-frame attention spikes, as openai/whisper's timing.py does


def token_starts(attention: Tensor, num_frames: int) -> NDArray[np.int64]:
    """First frame of each token.

    Args:
        attention: [N, heads, T] weights of the positions that *predict* the tokens, the end of
            text included as the last of them.
        num_frames: frames that hold sound; the rest is padding and takes no part.

    Returns:
        [N] frame indices, strictly increasing while there are frames enough.
    """
    num_tokens = len(attention)
    num_frames = max(num_frames, num_tokens)
    weights = attention[:, :, :num_frames]
    # Standardising over tokens removes frames that every token attends to (silence, the start).
    weights = weights - weights.mean(0, keepdim=True)
    weights = weights / weights.square().mean(0, keepdim=True).sqrt().clamp(min=1e-6)
    scores = weights.mean(1)  # [N, T]
    half = _MEDIAN_FRAMES // 2
    padded = torch.nn.functional.pad(scores[None], (half, half), mode="replicate")[0]
    scores = padded.unfold(1, _MEDIAN_FRAMES, 1).median(-1).values
    return _best_path(scores.numpy().astype(np.float64))


def _best_path(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Viterbi over ``scores`` [N, T]: each frame stays with its token or moves to the next."""
    num_tokens, num_frames = scores.shape
    columns = np.ascontiguousarray(scores.T)
    moved = np.zeros((num_frames, num_tokens), dtype=bool)
    best = np.full(num_tokens, -np.inf)
    best[0] = columns[0, 0]
    previous = np.empty_like(best)
    for t in range(1, num_frames):
        previous[0] = -np.inf
        previous[1:] = best[:-1]
        np.greater(previous, best, out=moved[t])
        np.maximum(previous, best, out=best)
        best += columns[t]
    starts = np.zeros(num_tokens, dtype=np.int64)
    token = num_tokens - 1
    for t in range(num_frames - 1, 0, -1):
        if moved[t, token]:
            starts[token] = t
            token -= 1
    return starts
