"""What a model family says about itself; one file per family fills this in.

A family turns a checkpoint's own description (GGUF metadata or a Hugging Face config) into a
:class:`BackboneConfig`, names the checkpoint tensors behind each parameter of the stack, and makes
its chat template. :mod:`omni.models.registry` finds families by architecture.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, Protocol, TypeVar

from omni_encoders.vision import VisionConfig

from omni.errors import ModelError
from omni.models.backbone import BackboneConfig, MixerKind
from omni.models.template import ChatTemplate
from omni.models.tokenizer import Tokenizer
from omni.models.weights import Entry, Piece, unpaired_rows

Format = Literal["gguf", "hf"]
T = TypeVar("T")

_ATTENTION: tuple[MixerKind, ...] = ("attention",)


class Family(Protocol):
    """One architecture: stateless, constructed without arguments."""

    def config_from_gguf(
        self, metadata: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]
    ) -> BackboneConfig:
        """Read ``<architecture>.*`` fields; ``tensors`` are the shapes present in the file."""
        ...

    def config_from_hf(self, config: Mapping[str, Any]) -> BackboneConfig:
        """Read a Hugging Face ``config.json``."""
        ...

    def plan(
        self, config: BackboneConfig, source: Format, names: Collection[str] = ()
    ) -> list[Entry]:
        """The checkpoint tensors behind every parameter; ``names`` are those it has."""
        ...

    def ignored(self, config: BackboneConfig) -> tuple[str, ...]:
        """Beginnings of the names of checkpoint tensors that are known and not needed."""
        ...

    def vision(self, config: Mapping[str, Any]) -> tuple[VisionConfig, str] | None:
        """The vision tower that a ``config.json`` describes, and what its weights' names begin
        with; None: the model has no eyes."""
        ...

    def template(self, tokenizer: Tokenizer, thinking: bool = False) -> ChatTemplate:
        """The chat template over ``tokenizer``; with ``thinking`` answers begin with a thought.

        Raises:
            ModelError: no template of the tokenizer's kind, or a model that does not think.
        """
        ...


def field(fields: Mapping[str, Any], key: str, kind: type[T], default: T | None = None) -> T:
    """``fields[key]`` as ``kind``.

    Raises:
        ModelError: absent without a default, or not a ``kind``.
    """
    value = fields.get(key)
    if value is None:
        if default is None:
            raise ModelError(f"the model's description has no {key}")
        return default
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind):
        raise ModelError(f"{key} is {value!r}, expected {kind.__name__}")
    return value


def refuse_thinking(thinking: bool) -> None:
    """Raise :class:`ModelError` if ``thinking`` is asked of a family that writes no thoughts."""
    if thinking:
        raise ModelError(
            "this model was not made to think before it answers: set model.thinking to false, "
            "or take a Qwen3.5"
        )


def config_from_gguf(
    metadata: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]], architecture: str
) -> BackboneConfig:
    """The shape of a plain decoder (attention in every layer) from GGUF metadata."""

    def number(key: str, default: int | None = None) -> int:
        return field(metadata, f"{architecture}.{key}", int, default)

    if f"{architecture}.rope.scaling.type" in metadata or "rope_freqs.weight" in tensors:
        raise ModelError(f"this {architecture} model scales its rotary positions: not supported")
    num_heads, hidden = number("attention.head_count"), number("embedding_length")
    head_dim = number("attention.key_length", hidden // num_heads)
    if number("rope.dimension_count", head_dim) != head_dim:
        raise ModelError("partial rotary positions are not supported for this architecture")
    if "token_embd.weight" not in tensors:
        raise ModelError("the model file has no token_embd.weight")
    return BackboneConfig(
        vocab_size=tensors["token_embd.weight"][0],
        hidden_size=hidden,
        intermediate_size=number("feed_forward_length"),
        mixers=_ATTENTION * number("block_count"),
        num_heads=num_heads,
        num_kv_heads=number("attention.head_count_kv", num_heads),
        head_dim=head_dim,
        rms_norm_eps=field(metadata, f"{architecture}.attention.layer_norm_rms_epsilon", float),
        rope_theta=field(metadata, f"{architecture}.rope.freq_base", float, 10000.0),
        max_positions=number("context_length"),
        qkv_bias="blk.0.attn_q.bias" in tensors,
        tied_head="output.weight" not in tensors,
    )


def rope_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """How a Hugging Face config describes its rotary positions; empty where it says nothing."""
    key = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    return field(config, key, dict, {})


def config_from_hf(config: Mapping[str, Any], *, qkv_bias: bool) -> BackboneConfig:
    """The shape of a plain decoder from a Hugging Face config."""
    num_heads, hidden = field(config, "num_attention_heads", int), field(config, "hidden_size", int)
    rope = rope_of(config)
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise ModelError(f"rotary scaling {rope} is not supported")
    if config.get("use_sliding_window"):
        raise ModelError("sliding window attention is not supported")
    return BackboneConfig(
        vocab_size=field(config, "vocab_size", int),
        hidden_size=hidden,
        intermediate_size=field(config, "intermediate_size", int),
        mixers=_ATTENTION * field(config, "num_hidden_layers", int),
        num_heads=num_heads,
        num_kv_heads=field(config, "num_key_value_heads", int, num_heads),
        head_dim=field(config, "head_dim", int, hidden // num_heads),
        rms_norm_eps=field(config, "rms_norm_eps", float),
        rope_theta=field(rope, "rope_theta", float, field(config, "rope_theta", float, 10000.0)),
        max_positions=field(config, "max_position_embeddings", int),
        qkv_bias=qkv_bias,
        tied_head=field(config, "tie_word_embeddings", bool, False),
    )


_NAMES: dict[Format, dict[str, str]] = {
    "gguf": {
        "embed": "token_embd.weight",
        "final_norm": "output_norm.weight",
        "head": "output.weight",
        "mixer_norm": "blk.{}.attn_norm.weight",
        "ffn_norm": "blk.{}.ffn_norm.weight",
        "q": "blk.{}.attn_q",
        "k": "blk.{}.attn_k",
        "v": "blk.{}.attn_v",
        "out": "blk.{}.attn_output.weight",
        "gate": "blk.{}.ffn_gate.weight",
        "up": "blk.{}.ffn_up.weight",
        "down": "blk.{}.ffn_down.weight",
    },
    "hf": {
        "embed": "model.embed_tokens.weight",
        "final_norm": "model.norm.weight",
        "head": "lm_head.weight",
        "mixer_norm": "model.layers.{}.input_layernorm.weight",
        "ffn_norm": "model.layers.{}.post_attention_layernorm.weight",
        "q": "model.layers.{}.self_attn.q_proj",
        "k": "model.layers.{}.self_attn.k_proj",
        "v": "model.layers.{}.self_attn.v_proj",
        "out": "model.layers.{}.self_attn.o_proj.weight",
        "gate": "model.layers.{}.mlp.gate_proj.weight",
        "up": "model.layers.{}.mlp.up_proj.weight",
        "down": "model.layers.{}.mlp.down_proj.weight",
    },
}


def decoder_plan(
    config: BackboneConfig, source: Format, *, interleaved_rotary: bool = False
) -> list[Entry]:
    """The plan of a plain decoder; ``interleaved_rotary``: see :func:`unpaired_rows`."""
    names = _NAMES[source]
    hidden, inner, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    embed = Piece(names["embed"], (vocab, hidden))
    head = embed if config.tied_head else Piece(names["head"], (vocab, hidden))
    plan = [
        Entry("embed", "rows", (embed,)),
        Entry("head", "matrix", (head,)),
        Entry("final_norm", "plain", (Piece(names["final_norm"], (hidden,)),)),
    ]

    query_rows = key_rows = None
    if interleaved_rotary:
        query_rows = unpaired_rows(config.num_heads, config.head_dim)
        key_rows = unpaired_rows(config.num_kv_heads, config.head_dim)

    def qkv(layer: int, suffix: str, columns: tuple[int, ...]) -> tuple[Piece, ...]:
        return (
            Piece(names["q"].format(layer) + suffix, (query, *columns), query_rows),
            Piece(names["k"].format(layer) + suffix, (key, *columns), key_rows),
            Piece(names["v"].format(layer) + suffix, (key, *columns)),
        )

    for layer in range(config.num_layers):
        prefix = f"layers.{layer}."

        def one(name: str, *shape: int, layer: int = layer) -> Piece:
            return Piece(names[name].format(layer), shape)

        plan += [
            Entry(prefix + "mixer_norm", "plain", (one("mixer_norm", hidden),)),
            Entry(prefix + "attention.qkv", "matrix", qkv(layer, ".weight", (hidden,))),
            Entry(prefix + "attention.out", "matrix", (one("out", hidden, query),)),
            Entry(prefix + "ffn_norm", "plain", (one("ffn_norm", hidden),)),
            Entry(
                prefix + "ffn.gate_up",
                "matrix",
                (one("gate", inner, hidden), one("up", inner, hidden)),
            ),
            Entry(prefix + "ffn.down", "matrix", (one("down", hidden, inner),)),
        ]
        if config.qkv_bias:
            plan.append(Entry(prefix + "attention.qkv_bias", "plain", qkv(layer, ".bias", ())))
    return plan
