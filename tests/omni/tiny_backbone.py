"""Small, real backbones for the engine's tests, and what the tests need to watch them.

:class:`TinyBackbone` is a hybrid stack in plain torch: attention layers with grouped queries,
rotary positions and paged keys and values; recurrent layers with a short depthwise convolution and
a leaky sum with per-channel decay. Every row is computed by itself, in the same order whatever
else is in the step, so any chunking and any neighbours are *bit-equal* and whatever the engine
mixes up shows. It reads exactly what the contract says is defined, never the rest of a page.

:func:`decoder_stack` is the product's own stack with random weights, whose matrix products round
differently for different numbers of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import pytest
import torch
from torch.nn import functional as F

from omni.engine.engine import Engine, TokenOutput
from omni.models.backbone import BackboneConfig, DecoderStack
from omni.models.batch import Backbone, Batch, StateSpec, StateView
from omni.models.gated_delta import DeltaShape

Mixers = tuple[Literal["attention", "recurrent"], ...]
ATTENTION: Mixers = ("attention", "attention")
HYBRID: Mixers = ("recurrent", "attention", "recurrent")

WIDTH = 32
_HEADS, _KV_HEADS, _HEAD_DIM, _CONV = 4, 2, 8, 3


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from a second thread and wait long for a busy core."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


class TinyBackbone:
    """Random weights, fixed by ``seed``."""

    def __init__(
        self,
        mixers: Mixers = ATTENTION,
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
            recurrent_shape=(WIDTH,) if is_recurrent else (),
            conv_shape=(WIDTH, _CONV - 1) if is_recurrent else (),
            journal_width=WIDTH if is_recurrent else 0,
        )
        generator = torch.Generator().manual_seed(seed)

        def weight(*shape: int, scale: float = 1.0) -> torch.Tensor:
            return torch.randn(*shape, generator=generator) * scale / shape[-1] ** 0.5

        self.embed = torch.randn(vocab_size, WIDTH, generator=generator)
        self.head = weight(vocab_size, WIDTH, scale=3.0)
        self.layers = [
            {
                "qkv": weight((_HEADS + 2 * _KV_HEADS) * _HEAD_DIM, WIDTH),
                "out": weight(WIDTH, _HEADS * _HEAD_DIM),
                "conv": weight(WIDTH, _CONV),
                "decay": torch.rand(WIDTH, generator=generator) * 0.5 + 0.5,
                "up": weight(WIDTH, WIDTH),
                "down": weight(WIDTH, WIDTH),
            }
            for _ in mixers
        ]
        half = torch.arange(_HEAD_DIM // 2) / (_HEAD_DIM // 2)
        angles = torch.arange(max_positions)[:, None] * 100.0**-half
        self.cos, self.sin = angles.cos(), angles.sin()

    def forward(self, batch: Batch, state: StateView) -> torch.Tensor:
        hidden = self.embed[batch.token_ids.clamp(min=0)]  # [N, width]
        if batch.embeddings is not None:
            hidden[batch.token_ids < 0] = batch.embeddings
        rows = [self._sequence(batch, b, hidden, state) for b in range(batch.num_sequences)]
        hidden = torch.cat(rows)[batch.logits_rows]
        return _linear(F.layer_norm(hidden, (WIDTH,)), self.head)

    def _sequence(
        self, batch: Batch, b: int, hidden: torch.Tensor, state: StateView
    ) -> torch.Tensor:
        x = hidden[batch.cu_seqlens[b] : batch.cu_seqlens[b + 1]]
        num_attention = num_recurrent = 0
        for kind, layer in zip(self.state_spec.mixers, self.layers, strict=True):
            normed = F.layer_norm(x, (WIDTH,))
            if kind == "attention":
                x = x + self._attend(layer, normed, batch, b, state.kv[num_attention])
                num_attention += 1
            else:
                assert state.recurrent is not None
                assert state.conv is not None
                slot = batch.slots[b]
                assert slot > 0, "a recurrent layer was given the null slot"
                memory, window = state.recurrent[slot], state.conv[slot]
                if state.journal is not None:
                    _write(state.journal[slot, num_recurrent], batch, b, normed)
                x = x + _leak(layer, normed, memory[num_recurrent], window[num_recurrent])
                num_recurrent += 1
            x = x + _linear(F.relu(_linear(F.layer_norm(x, (WIDTH,)), layer["up"])), layer["down"])
        return x

    def replay(self, state: StateView, slot: int, rows: slice) -> None:
        recurrent = [
            layer
            for kind, layer in zip(self.state_spec.mixers, self.layers, strict=True)
            if kind == "recurrent"
        ]
        assert state.recurrent is not None
        assert state.conv is not None
        assert state.journal is not None
        for i, layer in enumerate(recurrent):
            inputs = state.journal[slot, i, rows]
            assert inputs.isfinite().all(), "a row of the journal was never written"
            _leak(layer, inputs, state.recurrent[slot, i], state.conv[slot, i])

    def _attend(
        self,
        layer: dict[str, torch.Tensor],
        x: torch.Tensor,
        batch: Batch,
        b: int,
        kv: torch.Tensor,
    ) -> torch.Tensor:
        num_new, num_old = len(x), batch.num_computed[b]
        page_tokens = kv.shape[2]
        table = torch.tensor(batch.page_table[b])
        assert len(table) == -(-(num_old + num_new) // page_tokens), "table covers other tokens"
        assert int(table.min()) > 0, "the null page was given to a sequence"
        positions = batch.positions[..., batch.cu_seqlens[b] : batch.cu_seqlens[b + 1]]
        heads = _linear(x, layer["qkv"]).view(num_new, -1, _HEAD_DIM)
        q = self._rotate(heads[:, :_HEADS], positions)
        k = self._rotate(heads[:, _HEADS : _HEADS + _KV_HEADS], positions)
        v = heads[:, _HEADS + _KV_HEADS :]
        index = torch.arange(num_old + num_new)
        pages, offsets = table[index // page_tokens], index % page_tokens
        kv[0, pages[num_old:], offsets[num_old:]] = k
        kv[1, pages[num_old:], offsets[num_old:]] = v
        keys = kv[0, pages, offsets].repeat_interleave(_HEADS // _KV_HEADS, dim=1)  # [T, H, D]
        values = kv[1, pages, offsets].repeat_interleave(_HEADS // _KV_HEADS, dim=1)
        out = []
        for n in range(num_new):
            past = slice(0, num_old + n + 1)
            scores = (keys[past] * q[n]).sum(-1) / _HEAD_DIM**0.5  # [T, H]
            out.append((scores.softmax(0)[..., None] * values[past]).sum(0))
        return _linear(torch.stack(out).view(num_new, -1), layer["out"])

    def _rotate(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Rotary embedding; with positions [3, N] each axis turns every third pair."""
        half = _HEAD_DIM // 2
        if positions.dim() == 2:
            axis = torch.arange(half) % 3
            rows, pairs = positions[axis].T, torch.arange(half)  # [N, half]
            cos, sin = self.cos[rows, pairs][:, None], self.sin[rows, pairs][:, None]
        else:
            cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def _linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A matrix product whose rows do not depend on how many there are."""
    return (x[:, None, :] * weight).sum(-1)


def _leak(
    layer: dict[str, torch.Tensor], x: torch.Tensor, memory: torch.Tensor, window: torch.Tensor
) -> torch.Tensor:
    out = []
    for token in x:
        inputs = torch.cat([window, token[:, None]], dim=1)  # [width, conv]
        memory.copy_(layer["decay"] * memory + (inputs * layer["conv"]).sum(1))
        window.copy_(inputs[:, 1:].clone())
        out.append(memory.clone())
    return torch.stack(out)


def _write(journal: torch.Tensor, batch: Batch, b: int, x: torch.Tensor) -> None:
    assert batch.journal_starts is not None
    if (row := batch.journal_starts[b]) >= 0:
        journal[row : row + len(x)] = x


def decoder_stack(
    *,
    seed: int = 0,
    vocab_size: int = 97,
    max_positions: int = 512,
    mixers: Mixers = ("attention",) * 3,
    num_sayable: int | None = None,
) -> DecoderStack:
    """The product's stack in fp32 with random weights; recurrent layers are Gated DeltaNet.

    Greedy decoding never chooses a token from ``num_sayable`` on.
    """
    config, values = stack_parts(
        seed=seed, vocab_size=vocab_size, max_positions=max_positions, mixers=mixers
    )
    if num_sayable is not None:
        values["head"][num_sayable:] = 0
    return DecoderStack(config, values)


def stack_parts(
    *, seed: int = 0, vocab_size: int = 97, max_positions: int = 512, mixers: Mixers = ATTENTION
) -> tuple[BackboneConfig, dict[str, torch.Tensor]]:
    """What :func:`decoder_stack` is made of."""
    delta = None
    if "recurrent" in mixers:
        delta = DeltaShape(
            num_key_heads=2, num_value_heads=4, key_dim=16, value_dim=16, conv_width=4
        )
    config = BackboneConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=96,
        mixers=mixers,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        max_positions=max_positions,
        qkv_bias=True,
        tied_head=False,
        delta=delta,
    )
    generator = torch.Generator().manual_seed(seed)

    def weight(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

    size, inner = config.hidden_size, config.intermediate_size
    values = {
        "embed": weight(config.vocab_size, size),
        "head": weight(config.vocab_size, size) * 3,
        "final_norm": torch.ones(size),
    }
    qkv = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    for index in range(config.num_layers):
        prefix = f"layers.{index}."
        values |= {
            prefix + "mixer_norm": torch.ones(size),
            prefix + "ffn_norm": torch.ones(size),
            prefix + "ffn.gate_up": weight(2 * inner, size),
            prefix + "ffn.down": weight(size, inner),
        }
        if mixers[index] == "attention":
            values |= {
                prefix + "attention.qkv": weight(qkv, size),
                prefix + "attention.qkv_bias": weight(qkv),
                prefix + "attention.out": weight(size, config.num_heads * config.head_dim),
            }
        else:
            assert delta is not None
            values |= {
                prefix + "delta.project": weight(delta.input_width, size),
                prefix + "delta.conv": weight(delta.channels, delta.conv_width),
                prefix + "delta.a_log": torch.rand(4, generator=generator).log(),
                prefix + "delta.dt_bias": torch.randn(4, generator=generator),
                prefix + "delta.norm": torch.ones(delta.value_dim),
                prefix + "delta.out": weight(size, delta.value_channels),
            }
    return config, values


class Watched:
    """A backbone whose steps are recorded, and which can be made to fail."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.vocab_size = backbone.vocab_size
        self.max_positions = backbone.max_positions
        self.state_spec = backbone.state_spec
        self.batches: list[Batch] = []
        self.logits: list[torch.Tensor] = []
        self.num_replayed = 0  # journal rows
        self.fault: Exception | None = None
        self.spoiled_row: int | None = None  # row of the next logits that becomes NaN

    def replay(self, state: StateView, slot: int, rows: slice) -> None:
        self.num_replayed += rows.stop - rows.start
        self.backbone.replay(state, slot, rows)

    def forward(self, batch: Batch, state: StateView) -> torch.Tensor:
        logits = self.backbone.forward(batch, state).clone()
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        if self.spoiled_row is not None:
            logits[self.spoiled_row, 3:] = torch.nan
            self.spoiled_row = None
        self.batches.append(batch)
        self.logits.append(logits)
        return logits


class Run:
    """Drives an engine and sorts what comes out by sequence."""

    def __init__(self, engine: Engine, watched: Watched, *, poisons: bool = True) -> None:
        self.engine = engine
        self.watched = watched
        self.poisons = poisons
        self.outputs: dict[int, list[TokenOutput]] = {}
        self.logits: dict[int, list[torch.Tensor]] = {}

    def step(self) -> list[TokenOutput]:
        if self.poisons:
            poison(self.engine)
        num_steps = len(self.watched.logits)
        outputs = self.engine.step()
        sampled = [output for output in outputs if output.finish_reason != "cancelled"]
        if len(self.watched.logits) > num_steps:
            logits = self.watched.logits[-1]
            assert len(logits) == len(sampled), "a row of logits without an output"
            for row, output in zip(logits, sampled, strict=True):
                self.logits.setdefault(output.seq_id, []).append(row)
        for output in outputs:
            self.outputs.setdefault(output.seq_id, []).append(output)
        return outputs

    def drain(self) -> None:
        """Step until nothing is left to do."""
        while self.engine.has_work():
            self.step()

    def generated(self, seq_id: int) -> list[int]:
        """Tokens given out for a sequence so far, stop token included."""
        outputs = self.outputs.get(seq_id, [])
        return [output.token_id for output in outputs if output.token_id is not None]


def poison(engine: Engine) -> None:
    """Fill with NaN all state that nothing may read: free pages and slots, rests of pages."""
    cache = engine._cache
    kv = cache.view.kv
    kv[:, :, [0, *cache._free]] = torch.nan
    for sequence in engine._sequences.values():
        state, page_tokens = sequence.state, cache.page_tokens
        first, used = divmod(state.num_computed, page_tokens)
        if first < len(state.pages):
            kv[:, :, state.pages[first], used:] = torch.nan
            kv[:, :, state.pages[first + 1 :]] = torch.nan
    if cache.view.recurrent is not None:
        cache.view.recurrent[[0, *cache._free_slots]] = torch.nan
    if cache.view.conv is not None:
        cache.view.conv[[0, *cache._free_slots]] = torch.nan
    if cache.view.journal is not None:
        cache.view.journal[[0, *cache._free_slots]] = torch.nan
        for sequence in engine._sequences.values():
            used = sequence.state.num_computed - sequence.journal_start
            cache.view.journal[sequence.slot, :, used:] = torch.nan


def forward_whole(backbone: Backbone, token_ids: Sequence[int]) -> torch.Tensor:
    """Logits [T, vocab] of every token, computed in one step from an empty state, no engine."""
    spec = backbone.state_spec
    num_tokens = len(token_ids)
    kv_shape = (spec.num_attention, 2, 2, num_tokens, spec.num_kv_heads, spec.head_dim)
    slots = (2, spec.num_recurrent)
    state = StateView(
        kv=torch.full(kv_shape, torch.nan),
        recurrent=torch.zeros(*slots, *spec.recurrent_shape) if spec.num_recurrent else None,
        conv=torch.zeros(*slots, *spec.conv_shape) if spec.num_recurrent else None,
    )
    batch = Batch(
        token_ids=torch.tensor(token_ids),
        positions=torch.arange(num_tokens),
        cu_seqlens=(0, num_tokens),
        num_computed=(0,),
        page_table=((1,),),
        slots=(1,),
        logits_rows=torch.arange(num_tokens),
    )
    with torch.inference_mode():
        return backbone.forward(batch, state)


def greedy(backbone: Backbone, token_ids: Sequence[int], num_tokens: int) -> list[int]:
    """Greedy continuation without an engine: every token from a whole forward."""
    known = list(token_ids)
    for _ in range(num_tokens):
        known.append(int(forward_whole(backbone, known)[-1].argmax()))
    return known[len(token_ids) :]


def relative_rms(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())
