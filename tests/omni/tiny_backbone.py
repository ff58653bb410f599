"""A small, real hybrid backbone for the engine's tests: plain torch, one sequence at a time.

Attention layers have grouped queries, rotary positions and paged keys and values; recurrent layers
a short depthwise convolution and a leaky sum with per-channel decay, computed token by token (so
any chunking is bit-equal there). It reads exactly what the contract says is defined: tokens before
``num_computed`` plus the step's own, never the rest of a page.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional as F

from omni.models.batch import Batch, StateSpec, StateView

ATTENTION: tuple[Literal["attention", "recurrent"], ...] = ("attention", "attention")
HYBRID: tuple[Literal["attention", "recurrent"], ...] = ("recurrent", "attention", "recurrent")

_WIDTH, _HEADS, _KV_HEADS, _HEAD_DIM, _CONV = 32, 4, 2, 8, 3


class TinyBackbone:
    """Random weights, fixed by ``seed``; everything observable is recorded per forward call."""

    def __init__(
        self,
        mixers: tuple[Literal["attention", "recurrent"], ...] = ATTENTION,
        *,
        vocab_size: int = 61,
        max_positions: int = 512,
        seed: int = 0,
    ) -> None:
        self.vocab_size = vocab_size
        self.max_positions = max_positions
        is_recurrent = "recurrent" in mixers
        self.state_spec = StateSpec(
            mixers=mixers,
            num_kv_heads=_KV_HEADS,
            head_dim=_HEAD_DIM,
            recurrent_shape=(_WIDTH,) if is_recurrent else (),
            conv_shape=(_WIDTH, _CONV - 1) if is_recurrent else (),
        )
        generator = torch.Generator().manual_seed(seed)

        def weight(*shape: int, scale: float = 1.0) -> torch.Tensor:
            return torch.randn(*shape, generator=generator) * scale / shape[-1] ** 0.5

        self.embed = torch.randn(vocab_size, _WIDTH, generator=generator)
        self.head = weight(vocab_size, _WIDTH, scale=3.0)
        self.layers = [
            {
                "q": weight(_HEADS * _HEAD_DIM, _WIDTH),
                "k": weight(_KV_HEADS * _HEAD_DIM, _WIDTH),
                "v": weight(_KV_HEADS * _HEAD_DIM, _WIDTH),
                "o": weight(_WIDTH, _HEADS * _HEAD_DIM),
                "conv": weight(_WIDTH, _CONV),
                "decay": torch.rand(_WIDTH, generator=generator) * 0.5 + 0.5,
                "up": weight(2 * _WIDTH, _WIDTH),
                "down": weight(_WIDTH, 2 * _WIDTH),
            }
            for _ in mixers
        ]
        self.batches: list[Batch] = []
        self.logits: list[torch.Tensor] = []
        self.fail_next = False

    def forward(self, batch: Batch, state: StateView) -> torch.Tensor:
        hidden = self.embed[batch.token_ids.clamp(min=0)]  # [N, width]
        if batch.embeddings is not None:
            hidden[batch.token_ids < 0] = batch.embeddings
        rows = [self._sequence(batch, b, hidden, state) for b in range(batch.num_sequences)]
        self.batches.append(batch)
        if self.fail_next:
            self.fail_next = False
            raise RuntimeError("injected fault")
        hidden = torch.cat(rows)[batch.logits_rows]
        logits = F.layer_norm(hidden, (_WIDTH,)) @ self.head.T
        self.logits.append(logits.clone())
        return logits

    def _sequence(
        self, batch: Batch, b: int, hidden: torch.Tensor, state: StateView
    ) -> torch.Tensor:
        start, end = batch.cu_seqlens[b], batch.cu_seqlens[b + 1]
        x = hidden[start:end]
        positions = batch.positions[..., start:end]
        num_attention = num_recurrent = 0
        for kind, layer in zip(self.state_spec.mixers, self.layers, strict=True):
            normed = F.layer_norm(x, (_WIDTH,))
            if kind == "attention":
                x = x + self._attend(layer, normed, positions, batch, b, state.kv[num_attention])
                num_attention += 1
            else:
                assert state.recurrent is not None
                assert state.conv is not None
                slot = batch.slots[b]
                assert slot > 0, "a recurrent layer was given the null slot"
                memory, window = state.recurrent[slot], state.conv[slot]
                x = x + self._leak(layer, normed, memory[num_recurrent], window[num_recurrent])
                num_recurrent += 1
            x = x + F.silu(F.layer_norm(x, (_WIDTH,)) @ layer["up"].T) @ layer["down"].T
        return x

    def _attend(
        self,
        layer: dict[str, torch.Tensor],
        x: torch.Tensor,
        positions: torch.Tensor,
        batch: Batch,
        b: int,
        kv: torch.Tensor,
    ) -> torch.Tensor:
        num_new, num_old = len(x), batch.num_computed[b]
        page_tokens = kv.shape[2]
        table = torch.tensor(batch.page_table[b])
        assert len(table) == -(-(num_old + num_new) // page_tokens), "table covers other tokens"
        assert int(table.min()) > 0, "the null page was given to a sequence"
        q = _rotate((x @ layer["q"].T).view(num_new, _HEADS, _HEAD_DIM), positions)
        k = _rotate((x @ layer["k"].T).view(num_new, _KV_HEADS, _HEAD_DIM), positions)
        v = (x @ layer["v"].T).view(num_new, _KV_HEADS, _HEAD_DIM)
        index = torch.arange(num_old + num_new)
        pages, offsets = table[index // page_tokens], index % page_tokens
        kv[0, pages[num_old:], offsets[num_old:]] = k
        kv[1, pages[num_old:], offsets[num_old:]] = v
        keys = kv[0, pages, offsets].repeat_interleave(_HEADS // _KV_HEADS, dim=1)  # [T, H, D]
        values = kv[1, pages, offsets].repeat_interleave(_HEADS // _KV_HEADS, dim=1)
        scores = torch.einsum("nhd,thd->hnt", q, keys) / _HEAD_DIM**0.5
        future = index[None, :] > num_old + torch.arange(num_new)[:, None]
        weights = scores.masked_fill(future, float("-inf")).softmax(-1)
        out = torch.einsum("hnt,thd->nhd", weights, values)
        return out.reshape(num_new, -1) @ layer["o"].T

    def _leak(
        self,
        layer: dict[str, torch.Tensor],
        x: torch.Tensor,
        memory: torch.Tensor,
        window: torch.Tensor,
    ) -> torch.Tensor:
        out = []
        for token in x:
            inputs = torch.cat([window, token[:, None]], dim=1)  # [width, conv]
            memory.copy_(layer["decay"] * memory + (inputs * layer["conv"]).sum(1))
            window.copy_(inputs[:, 1:].clone())
            out.append(memory.clone())
        return torch.stack(out)


def _rotate(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rotary embedding; [3, N] positions turn one pair of channels in three each."""
    half = x.shape[-1] // 2
    frequency = 100.0 ** -(torch.arange(half) / half)
    if positions.dim() == 2:
        positions = positions[torch.arange(half) % 3].T  # [N, half]
    else:
        positions = positions[:, None]
    angle = (positions * frequency)[:, None, :]  # [N, 1, half]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)
