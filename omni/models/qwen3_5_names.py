"""Which checkpoint tensors make up each parameter of a Qwen3.5 or Qwen3-Next stack.

Called by :mod:`omni.models.qwen3_5`. Letters: D hidden width, H key heads, HV value heads of the
recurrent layers, K and V their widths, C channels, E experts, I their width.

Three layouts of the same stack. transformers names the projections of a recurrent layer apart
(``in_proj_qkv``, ``_z``, ``_b``, ``_a``); Qwen3-Next fuses them key head by key head
(``in_proj_qkvz``, ``in_proj_ba``); llama.cpp has them apart again, but with value heads *tiled*
over the key heads (value head h reads key head h % H) where the others and this stack *group* them
(h // (HV / H)), so every row, column and value that belongs to a value head changes place.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from omni.models.backbone import BackboneConfig
from omni.models.experts import ExpertsShape
from omni.models.family import Format
from omni.models.gated_delta import DeltaShape
from omni.models.weights import Entry, Piece

_GGUF = {
    "embed_tokens.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "linear_attn.in_proj_qkv.weight": "attn_qkv.weight",
    "linear_attn.in_proj_z.weight": "attn_gate.weight",
    "linear_attn.in_proj_b.weight": "ssm_beta.weight",
    "linear_attn.in_proj_a.weight": "ssm_alpha.weight",
    "linear_attn.conv1d.weight": "ssm_conv1d.weight",
    "linear_attn.A_log": "ssm_a",
    "linear_attn.dt_bias": "ssm_dt.bias",
    "linear_attn.norm.weight": "ssm_norm.weight",
    "linear_attn.out_proj.weight": "ssm_out.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.experts.gate_up_proj": "ffn_gate_up_exps.weight",
    "mlp.experts.gate_proj": "ffn_gate_exps.weight",
    "mlp.experts.up_proj": "ffn_up_exps.weight",
    "mlp.experts.down_proj": "ffn_down_exps.weight",
    "mlp.shared_expert.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_expert.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_expert.down_proj.weight": "ffn_down_shexp.weight",
    "mlp.shared_expert_gate.weight": "ffn_gate_inp_shexp.weight",
}


def plan(config: BackboneConfig, source: Format, names: Collection[str]) -> list[Entry]:
    """The plan of the whole stack; ``names`` tell which of the known layouts a checkpoint has."""
    return _Plan(config, source, names).entries()


class _Plan:
    def __init__(self, config: BackboneConfig, source: Format, names: Collection[str]) -> None:
        self._config = config
        self._is_gguf = source == "gguf"
        self._names = names
        nested = "model.language_model.embed_tokens.weight" in names
        self._stem = "model.language_model." if nested else "model."

    def entries(self) -> list[Entry]:
        config, hidden = self._config, self._config.hidden_size
        embed = Piece(self._name("embed_tokens.weight"), (config.vocab_size, hidden))
        head = Piece("output.weight" if self._is_gguf else "lm_head.weight", embed.shape)
        entries = [
            Entry("embed", "rows", (embed,)),
            Entry("head", "matrix", (embed if config.tied_head else head,)),
            Entry("final_norm", "plain", (self._norm(self._name("norm.weight"), hidden),)),
        ]
        for layer, kind in enumerate(config.mixers):
            for target, name in (
                ("mixer_norm", "input_layernorm.weight"),
                ("ffn_norm", "post_attention_layernorm.weight"),
            ):
                norm = self._norm(self._name(name, layer), hidden)
                entries.append(Entry(f"layers.{layer}.{target}", "plain", (norm,)))
            entries += self._attention(layer) if kind == "attention" else self._delta(layer)
            if config.experts is None:
                size = config.intermediate_size
                entries += self._feed_forward(layer, f"layers.{layer}.ffn.", "mlp.", size)
            else:
                entries += self._experts(layer, config.experts)
        return entries

    def _name(self, name: str, layer: int | None = None) -> str:
        """The checkpoint's name of what transformers calls ``name`` in a layer, or in the stack."""
        if self._is_gguf:
            return _GGUF[name] if layer is None else f"blk.{layer}.{_GGUF[name]}"
        return self._stem + (name if layer is None else f"layers.{layer}.{name}")

    def _norm(self, name: str, width: int) -> Piece:
        """A norm's factor: zero-centred in transformers (1 + w), as it is applied in llama.cpp."""
        return Piece(name, (width,), change="none" if self._is_gguf else "plus one")

    def _attention(self, layer: int) -> list[Entry]:
        config, target = self._config, f"layers.{layer}.attention."
        heads, dim, hidden = config.num_heads, config.head_dim, config.hidden_size
        # A query head and its gate lie side by side; the stack has all gates after the values.
        pairs = np.arange(2 * heads * dim).reshape(heads, 2, dim)
        query, gate = (
            Piece(
                self._name("self_attn.q_proj.weight", layer),
                (2 * heads * dim, hidden),
                _tuple(pairs[:, half]),
            )
            for half in (0, 1)
        )
        key, value = (
            Piece(
                self._name(f"self_attn.{part}_proj.weight", layer),
                (config.num_kv_heads * dim, hidden),
            )
            for part in "kv"
        )
        out = Piece(self._name("self_attn.o_proj.weight", layer), (hidden, heads * dim))
        return [
            Entry(target + "qkv", "matrix", (query, key, value, gate)),
            Entry(target + "out", "matrix", (out,)),
            *(
                Entry(
                    target + norm,
                    "plain",
                    (self._norm(self._name(f"self_attn.{norm}.weight", layer), dim),),
                )
                for norm in ("q_norm", "k_norm")
            ),
        ]

    def _delta(self, layer: int) -> list[Entry]:
        shape, hidden = self._config.delta, self._config.hidden_size
        assert shape is not None, "a recurrent layer has a shape"
        heads = _tiled_heads(shape) if self._is_gguf else None
        value_rows = _rows_of_heads(heads, shape.value_dim)

        def piece(name: str, *size: int, rows: tuple[int, ...] | None = None) -> Piece:
            return Piece(self._name("linear_attn." + name, layer), size, rows)

        channel_rows = None
        if value_rows is not None:
            keys = 2 * shape.key_channels
            channel_rows = (*range(keys), *(keys + row for row in value_rows))
        if self._stem + f"layers.{layer}.linear_attn.in_proj_qkvz.weight" in self._names:
            qkv, z, b, a = _fused_rows(shape)
            wide = 2 * (shape.key_channels + shape.value_channels)
            project = (
                piece("in_proj_qkvz.weight", wide, hidden, rows=qkv),
                piece("in_proj_ba.weight", 2 * shape.num_value_heads, hidden, rows=b),
                piece("in_proj_ba.weight", 2 * shape.num_value_heads, hidden, rows=a),
                piece("in_proj_qkvz.weight", wide, hidden, rows=z),
            )
        else:
            project = (
                piece("in_proj_qkv.weight", shape.channels, hidden, rows=channel_rows),
                piece("in_proj_b.weight", shape.num_value_heads, hidden, rows=heads),
                piece("in_proj_a.weight", shape.num_value_heads, hidden, rows=heads),
                piece("in_proj_z.weight", shape.value_channels, hidden, rows=value_rows),
            )
        conv = piece("conv1d.weight", shape.channels, 1, shape.conv_width, rows=channel_rows)
        a_log = piece("A_log", shape.num_value_heads, rows=heads)
        if self._is_gguf:
            a_log = replace(a_log, change="log of the negative")  # it holds -exp(A_log)
        dt_bias = piece("dt_bias", shape.num_value_heads, rows=heads)
        out = replace(piece("out_proj.weight", hidden, shape.value_channels), columns=value_rows)
        target = f"layers.{layer}.delta."
        return [
            Entry(target + "project", "matrix", project),
            Entry(target + "conv", "plain", (conv,)),
            Entry(target + "a_log", "plain", (a_log,)),
            Entry(target + "dt_bias", "plain", (dt_bias,)),
            Entry(target + "norm", "plain", (piece("norm.weight", shape.value_dim),)),
            Entry(target + "out", "matrix", (out,)),
        ]

    def _feed_forward(self, layer: int, target: str, stem: str, size: int) -> list[Entry]:
        hidden = self._config.hidden_size
        gate, up = (
            Piece(self._name(f"{stem}{part}_proj.weight", layer), (size, hidden))
            for part in ("gate", "up")
        )
        down = Piece(self._name(f"{stem}down_proj.weight", layer), (hidden, size))
        return [
            Entry(target + "gate_up", "matrix", (gate, up)),
            Entry(target + "down", "matrix", (down,)),
        ]

    def _experts(self, layer: int, shape: ExpertsShape) -> list[Entry]:
        hidden, target = self._config.hidden_size, f"layers.{layer}.ffn."
        router = Piece(self._name("mlp.gate.weight", layer), (shape.num_experts, hidden))
        shared_gate = Piece(self._name("mlp.shared_expert_gate.weight", layer), (1, hidden))
        gate_up, down = self._chosen(layer, shape)
        return [
            Entry(target + "router", "plain", (router,)),
            Entry(target + "experts.gate_up", "matrix", gate_up),
            Entry(target + "experts.down", "matrix", down),
            Entry(target + "shared.gate", "plain", (shared_gate,)),
            *self._feed_forward(layer, target + "shared.", "mlp.shared_expert.", shape.shared_size),
        ]

    def _chosen(
        self, layer: int, shape: ExpertsShape
    ) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
        """Gate and up rows, and down rows, of expert after expert: one tensor, two, or 3 E."""
        count, size, hidden = shape.num_experts, shape.expert_size, self._config.hidden_size
        each = self._stem + f"layers.{layer}.mlp.experts."
        if each + "0.gate_proj.weight" in self._names:
            return (
                tuple(
                    Piece(f"{each}{expert}.{part}_proj.weight", (size, hidden))
                    for expert in range(count)
                    for part in ("gate", "up")
                ),
                tuple(
                    Piece(f"{each}{expert}.down_proj.weight", (hidden, size))
                    for expert in range(count)
                ),
            )
        down = (Piece(self._name("mlp.experts.down_proj", layer), (count, hidden, size)),)
        fused = self._name("mlp.experts.gate_up_proj", layer)
        if fused in self._names or not self._is_gguf:
            return (Piece(fused, (count, 2 * size, hidden)),), down
        apart = tuple(
            Piece(
                self._name(f"mlp.experts.{part}_proj", layer),
                (count, size, hidden),
                range(expert * size, (expert + 1) * size),
            )
            for expert in range(count)
            for part in ("gate", "up")
        )
        return apart, down


def _tiled_heads(shape: DeltaShape) -> tuple[int, ...] | None:
    """Where llama.cpp has each of the stack's value heads; None: at the same place."""
    group = shape.num_value_heads // shape.num_key_heads
    if group == 1:
        return None
    return _tuple(np.arange(shape.num_value_heads).reshape(group, shape.num_key_heads).T)


def _rows_of_heads(heads: tuple[int, ...] | None, width: int) -> tuple[int, ...] | None:
    if heads is None:
        return None
    return _tuple(np.array(heads)[:, None] * width + np.arange(width))


def _fused_rows(shape: DeltaShape) -> tuple[tuple[int, ...], ...]:
    """Rows of qkv and z in Qwen3-Next's in_proj_qkvz, of b and a in its in_proj_ba.

    Each key head has its q, k, values and z together, and its b and a.
    """
    heads, key = shape.num_key_heads, shape.key_dim
    value = shape.value_channels // heads
    wide = np.arange(2 * heads * (key + value)).reshape(heads, -1)
    q, k, v, z = np.split(wide, [key, 2 * key, 2 * key + value], axis=1)
    b, a = np.split(np.arange(2 * shape.num_value_heads).reshape(heads, -1), 2, axis=1)
    qkv = np.concatenate([part.ravel() for part in (q, k, v)])
    return tuple(_tuple(rows) for rows in (qkv, z, b, a))


def _tuple(rows: NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(rows.ravel().tolist())
