"""The decoder stack that every family shares: per layer one mixer and one feed-forward.

Called by :mod:`omni.engine` through :class:`omni.models.batch.Backbone`. It knows no checkpoint
names (:mod:`omni.models.weights`), no family and no sampling; what differs between families is data
in :class:`BackboneConfig`. Letters: N tokens of the step, D hidden width, R wanted rows,
H heads, Hkv key/value heads, K head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from omni_kernels.gated_delta import GatedDelta

from omni.errors import ModelError
from omni.models.attention import Attention, Step
from omni.models.batch import Batch, StateSpec, StateView
from omni.models.experts import ExpertsShape, MixtureOfExperts
from omni.models.gated_delta import DeltaShape, GatedDeltaMixer
from omni.models.layers import GatedFeedForward, QuantisedRows, RMSNorm
from omni.models.parameters import Parameter, Parameters
from omni.models.rotary import Rotary

MixerKind = Literal["attention", "recurrent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneConfig:
    """Shape of a stack. ``mixers`` has one entry per layer."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int  # of a dense feed-forward
    mixers: tuple[MixerKind, ...]
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    max_positions: int
    qkv_bias: bool
    tied_head: bool
    rotary_dim: int | None = None  # how much of a head is rotated; None: all
    rope_sections: tuple[int, int, int] | None = None  # pairs by time, height, width; None: 1 axis
    rope_interleaved: bool = False  # the sections alternate instead of following each other
    qk_norm: bool = False  # query and key heads are normed before they are rotated
    output_gate: bool = False  # attention's output is multiplied by a sigmoid
    delta: DeltaShape | None = None  # of the recurrent layers
    experts: ExpertsShape | None = None  # a mixture in the place of every dense feed-forward

    @property
    def num_layers(self) -> int:
        return len(self.mixers)

    def state_spec(self) -> StateSpec:
        delta = self.delta
        return StateSpec(
            mixers=self.mixers,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            recurrent_shape=delta.recurrent_shape if delta else (),
            conv_shape=delta.conv_shape if delta else (),
            journal_width=delta.journal_width if delta else 0,
        )


class Mixer(Protocol):
    """Mixes information between the tokens of a sequence; the only reader of its state."""

    def __call__(self, x: torch.Tensor, step: Step, state: StateView) -> torch.Tensor:
        """``x`` [N, D] (normed) -> [N, D]; writes the tokens' state into ``state``."""
        ...


class FeedForward(Protocol):
    """Transforms each token by itself."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [N, D] (normed) -> [N, D]."""
        ...


def build_attention(
    config: BackboneConfig, parameters: Parameters, prefix: str, row: int
) -> Attention:
    """Grouped-query attention over row ``row`` of the pages."""
    name = prefix + "attention."
    norms = None
    if config.qk_norm:
        norms = parameters.tensor(name + "q_norm"), parameters.tensor(name + "k_norm")
    return Attention(
        qkv=parameters.linear(name + "qkv", name + "qkv_bias" if config.qkv_bias else None),
        out=parameters.linear(name + "out"),
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        row=row,
        norms=norms,
        eps=config.rms_norm_eps,
        has_gate=config.output_gate,
    )


def build_gated_delta(
    config: BackboneConfig, parameters: Parameters, prefix: str, row: int
) -> GatedDeltaMixer:
    """Gated DeltaNet over row ``row`` of the slots."""
    shape, name = config.delta, prefix + "delta."
    if shape is None:
        raise ModelError("a recurrent layer without its shape")
    try:
        op = GatedDelta(
            num_key_heads=shape.num_key_heads,
            num_value_heads=shape.num_value_heads,
            key_dim=shape.key_dim,
            value_dim=shape.value_dim,
            conv_weight=parameters.tensor(name + "conv"),
            a_log=parameters.tensor(name + "a_log"),
            dt_bias=parameters.tensor(name + "dt_bias"),
            norm=parameters.tensor(name + "norm"),
            eps=config.rms_norm_eps,
        )
    except ValueError as error:
        raise ModelError(f"this build cannot run the model's recurrent layers: {error}") from error
    return GatedDeltaMixer(
        project=parameters.linear(name + "project"),
        op=op,
        out=parameters.linear(name + "out"),
        row=row,
    )


def build_feed_forward(parameters: Parameters, name: str) -> GatedFeedForward:
    """A dense feed-forward; ``name`` such as ``layers.3.ffn.``."""
    return GatedFeedForward(parameters.linear(name + "gate_up"), parameters.linear(name + "down"))


def build_experts(shape: ExpertsShape, parameters: Parameters, name: str) -> MixtureOfExperts:
    """A mixture of experts; ``name`` such as ``layers.3.ffn.``."""
    gate_up = parameters.linears(name + "experts.gate_up", shape.num_experts)
    down = parameters.linears(name + "experts.down", shape.num_experts)
    return MixtureOfExperts(
        router=parameters.tensor(name + "router"),
        experts=[GatedFeedForward(*pair) for pair in zip(gate_up, down, strict=True)],
        shared=build_feed_forward(parameters, name + "shared."),
        shared_gate=parameters.tensor(name + "shared.gate").view(1, -1),
        shape=shape,
    )


class _Layer:
    __slots__ = ("ffn", "ffn_norm", "mixer", "mixer_norm")

    def __init__(
        self, mixer: Mixer, ffn: FeedForward, mixer_norm: RMSNorm, ffn_norm: RMSNorm
    ) -> None:
        self.mixer = mixer
        self.ffn = ffn
        self.mixer_norm = mixer_norm
        self.ffn_norm = ffn_norm


class DecoderStack:
    """Implements :class:`omni.models.batch.Backbone`.

    ``weight_bytes`` is what one token's step reads of the weights.
    """

    def __init__(self, config: BackboneConfig, values: Mapping[str, Parameter]) -> None:
        self.config = config
        self.vocab_size = config.vocab_size
        self.max_positions = config.max_positions
        self.state_spec = config.state_spec()
        self.weight_bytes = weight_bytes(config, values)
        parameters = Parameters(values)
        self._embed = parameters.embedding("embed")
        self._head = parameters.linear("embed" if "head" not in values else "head")
        self._final_norm = RMSNorm(parameters.tensor("final_norm"), config.rms_norm_eps)
        self._rotary = Rotary(
            dim=config.head_dim if config.rotary_dim is None else config.rotary_dim,
            theta=config.rope_theta,
            sections=config.rope_sections,
            interleaved=config.rope_interleaved,
        )
        self._layers: list[_Layer] = []
        self._recurrent: list[GatedDeltaMixer] = []
        num_attention = 0
        for index, kind in enumerate(config.mixers):
            prefix = f"layers.{index}."
            mixer: Mixer
            if kind == "attention":
                mixer = build_attention(config, parameters, prefix, num_attention)
                num_attention += 1
            else:
                mixer = build_gated_delta(config, parameters, prefix, len(self._recurrent))
                self._recurrent.append(mixer)
            ffn: FeedForward
            if config.experts is None:
                ffn = build_feed_forward(parameters, prefix + "ffn.")
            else:
                ffn = build_experts(config.experts, parameters, prefix + "ffn.")
            norms = (
                RMSNorm(parameters.tensor(prefix + name), config.rms_norm_eps)
                for name in ("mixer_norm", "ffn_norm")
            )
            self._layers.append(_Layer(mixer, ffn, *norms))

    @torch.inference_mode()
    def forward(self, batch: Batch, state: StateView) -> torch.Tensor:
        """Compute ``batch``; see :meth:`omni.models.batch.Backbone.forward`."""
        x = self._embedded(batch)  # [N, D]
        step = Step.of(batch, state, *self._rotary(batch.positions))
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

    @torch.inference_mode()
    def replay(self, state: StateView, slot: int, rows: slice) -> None:
        """Advance a slot by its journal; see :meth:`omni.models.batch.Backbone.replay`."""
        for mixer in self._recurrent:
            mixer.replay(state, slot, rows)

    def _embedded(self, batch: Batch) -> torch.Tensor:
        if batch.embeddings is None:
            return self._embed(batch.token_ids)
        given = batch.token_ids < 0
        x = self._embed(batch.token_ids.clamp(min=0))
        x[given] = batch.embeddings.to(x.dtype)
        return x


def weight_bytes(config: BackboneConfig, values: Mapping[str, Parameter]) -> int:
    """Bytes of the weights that one token's step reads: of the experts, only the chosen."""
    shape, total = config.experts, 0
    for name, value in values.items():
        if isinstance(value, QuantisedRows):
            continue
        size = value.nbytes
        if shape is not None and ".experts." in name:
            size = size * shape.num_chosen // shape.num_experts
        total += size
    return total
