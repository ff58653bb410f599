"""The decoder stack that every family shares: per layer one mixer and one feed-forward.

Called by :mod:`omni.engine` through :class:`omni.models.batch.Backbone`. It knows no checkpoint
names (:mod:`omni.models.weights`), no family and no sampling; what differs between families is data
in :class:`BackboneConfig`. Letters: N tokens of the step, D hidden width, R wanted rows,
H heads, Hkv key/value heads, K head width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from omni_kernels.linear import PackedWeight

from omni.errors import ModelError
from omni.models.attention import Attention, Step
from omni.models.batch import Batch, StateSpec, StateView
from omni.models.layers import Embedding, GatedFeedForward, Linear, QuantisedRows, RMSNorm

Parameter = torch.Tensor | PackedWeight | QuantisedRows
MixerKind = Literal["attention", "recurrent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneConfig:
    """Shape of a stack. ``mixers`` has one entry per layer."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    mixers: tuple[MixerKind, ...]
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    max_positions: int
    qkv_bias: bool
    tied_head: bool
    recurrent_shape: tuple[int, ...] = ()
    conv_shape: tuple[int, ...] = ()

    @property
    def num_layers(self) -> int:
        return len(self.mixers)

    def state_spec(self) -> StateSpec:
        return StateSpec(
            mixers=self.mixers,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            recurrent_shape=self.recurrent_shape,
            conv_shape=self.conv_shape,
        )


class Mixer(Protocol):
    """Mixes information between the tokens of a sequence; the only reader of its state."""

    def __call__(self, x: torch.Tensor, step: Step, state: StateView) -> torch.Tensor:
        """``x`` [N, D] (normed) -> [N, D]; writes the tokens' state into ``state``."""
        ...


class Parameters:
    """Named parameters of one stack; a missing name is a :class:`ModelError`."""

    def __init__(self, values: Mapping[str, Parameter]) -> None:
        self._values = values

    def tensor(self, name: str) -> torch.Tensor:
        value = self._get(name)
        if not isinstance(value, torch.Tensor):
            raise ModelError(f"parameter {name} is packed, expected plain numbers")
        return value

    def linear(self, name: str, bias: str | None = None) -> Linear:
        weight = self._get(name)
        if isinstance(weight, QuantisedRows):
            raise ModelError(f"parameter {name} is a table of rows, expected a matrix")
        return Linear(weight, self.tensor(bias) if bias else None)

    def embedding(self, name: str) -> Embedding:
        table = self._get(name)
        if isinstance(table, PackedWeight):
            raise ModelError(f"parameter {name} is packed, expected a table of rows")
        return Embedding(table)

    def _get(self, name: str) -> Parameter:
        try:
            return self._values[name]
        except KeyError:
            raise ModelError(f"the weights have no parameter {name}") from None


MixerBuilder = Callable[[BackboneConfig, Parameters, str, int], Mixer]
"""(config, parameters, prefix such as ``layers.3.``, row of its state) -> mixer."""


def build_attention(
    config: BackboneConfig, parameters: Parameters, prefix: str, row: int
) -> Attention:
    """Grouped-query attention over row ``row`` of the pages."""
    name = prefix + "attention."
    return Attention(
        qkv=parameters.linear(name + "qkv", name + "qkv_bias" if config.qkv_bias else None),
        out=parameters.linear(name + "out"),
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        row=row,
    )


class _Layer:
    __slots__ = ("ffn", "ffn_norm", "mixer", "mixer_norm")

    def __init__(
        self, mixer: Mixer, ffn: GatedFeedForward, mixer_norm: RMSNorm, ffn_norm: RMSNorm
    ) -> None:
        self.mixer = mixer
        self.ffn = ffn
        self.mixer_norm = mixer_norm
        self.ffn_norm = ffn_norm


class DecoderStack:
    """Implements :class:`omni.models.batch.Backbone`.

    ``builders`` maps each mixer kind of the config to what builds it; a kind that is missing is a
    :class:`ModelError`. ``weight_bytes`` is what one token's step reads of the weights.
    """

    def __init__(
        self,
        config: BackboneConfig,
        values: Mapping[str, Parameter],
        builders: Mapping[str, MixerBuilder] | None = None,
    ) -> None:
        self.config = config
        self.vocab_size = config.vocab_size
        self.max_positions = config.max_positions
        self.state_spec = config.state_spec()
        builders = {"attention": build_attention, **(builders or {})}
        self.weight_bytes = sum(
            value.nbytes for name, value in values.items() if not isinstance(value, QuantisedRows)
        )
        parameters = Parameters(values)
        self._embed = parameters.embedding("embed")
        self._head = parameters.linear("embed" if "head" not in values else "head")
        self._final_norm = RMSNorm(parameters.tensor("final_norm"), config.rms_norm_eps)
        self._layers: list[_Layer] = []
        rows = dict.fromkeys(config.mixers, 0)
        for index, kind in enumerate(config.mixers):
            if kind not in builders:
                raise ModelError(f"layer {index} mixes by {kind!r}, which this build does not have")
            prefix = f"layers.{index}."
            mixer = builders[kind](config, parameters, prefix, rows[kind])
            rows[kind] += 1
            ffn = GatedFeedForward(
                parameters.linear(prefix + "ffn.gate_up"), parameters.linear(prefix + "ffn.down")
            )
            norms = (
                RMSNorm(parameters.tensor(prefix + name), config.rms_norm_eps)
                for name in ("mixer_norm", "ffn_norm")
            )
            self._layers.append(_Layer(mixer, ffn, *norms))
        self._cos, self._sin = rotary_table(config)

    @torch.inference_mode()
    def forward(self, batch: Batch, state: StateView) -> torch.Tensor:
        """Compute ``batch``; see :meth:`omni.models.batch.Backbone.forward`."""
        x = self._embedded(batch)  # [N, D]
        step = Step.of(batch, state, self._cos, self._sin)
        last = len(self._layers) - 1
        for index, layer in enumerate(self._layers):
            x = x.add_(layer.mixer(layer.mixer_norm(x), step, state))
            if index == last:
                # Nothing after the last mixer looks at other tokens.
                x = x[batch.logits_rows]  # [R, D]
            if len(x):
                x = x.add_(layer.ffn(layer.ffn_norm(x)))
        if not len(x):
            return x.new_empty(0, self.vocab_size)
        return self._head(self._final_norm(x))  # [R, vocab]

    def _embedded(self, batch: Batch) -> torch.Tensor:
        if batch.embeddings is None:
            return self._embed(batch.token_ids)
        given = batch.token_ids < 0
        x = self._embed(batch.token_ids.clamp(min=0))
        x[given] = batch.embeddings.to(x.dtype)
        return x


def rotary_table(config: BackboneConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [max_positions, head_dim / 2] fp32 of every position (RoFormer, 3.2.2)."""
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    inverse = 1.0 / (config.rope_theta**half)
    angles = torch.arange(config.max_positions, dtype=torch.float32)[:, None] * inverse
    return angles.cos(), angles.sin()
