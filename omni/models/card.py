"""The decoder stack on a card: the layers of :mod:`omni.models.backbone` as Triton kernels.

Made by :func:`omni.models.device.build_stack`; the engine sees a
:class:`omni.models.batch.Backbone` like any other. It is a stack of its own and not the other one
with other operators, because what it is made of are launches: a norm and the matrix behind it are
one, so are a matrix and the residual. Where its tensors are in host memory, Triton's interpreter
must run the kernels; this is how all of it is tested, and it has not run on a card yet.

Letters: N tokens of the step, B sequences, D hidden width, R wanted rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from omni_kernels.attention.triton_paged import PagedRows
from omni_kernels.gated_delta import triton_ops
from omni_kernels.gated_delta.triton_state import (
    TAPS,
    DeltaRows,
    DeltaState,
    DeltaWeights,
    ReplayRows,
)
from omni_kernels.triton_graph import Capture, DecodeInputs, capture_cuda

from omni.errors import ModelError
from omni.models.backbone import BackboneConfig, weight_bytes
from omni.models.batch import Batch, StateView
from omni.models.card_layers import (
    CardExperts,
    CardFeedForward,
    CardLinear,
    CardNorm,
    CardParameters,
)
from omni.models.card_mixers import CardAttention, CardDelta, CardStep, Heads
from omni.models.experts import ExpertsShape, MixtureOfExperts
from omni.models.parameters import Parameter
from omni.models.rotary import Rotary

CardMixer = Callable[[torch.Tensor, CardStep, StateView], torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Layer:
    mixer: CardMixer
    ffn: CardFeedForward | CardExperts
    ffn_norm: CardNorm


class CardStack:
    """Implements :class:`omni.models.batch.GraphedBackbone`.

    ``weight_bytes`` is what one token's step reads of the weights as they lie in host memory.

    Raises:
        ModelError: a parameter is missing, or the kernels cannot run the model's shapes.
    """

    def __init__(
        self,
        config: BackboneConfig,
        values: Mapping[str, Parameter],
        *,
        device: torch.device,
        capture: Capture = capture_cuda,
        page_dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        """``page_dtype`` is that of keys and values: fp32 ones do not fit into a card's program."""
        _check(config)
        self.config = config
        self.vocab_size = config.vocab_size
        self.max_positions = config.max_positions
        self.state_spec = replace(
            config.state_spec(), device=device, on_card=True, kv_dtype=page_dtype
        )
        self.weight_bytes = weight_bytes(config, values)
        # Which experts run is decided on the host, in the middle of a step.
        self.capture = capture if config.experts is None else None
        parameters = CardParameters(values, device)
        self._embed = parameters.embedding("embed")
        self._head = parameters.linear("head" if "head" in parameters else "embed")
        self._final_norm = parameters.norm("final_norm", config.rms_norm_eps)
        self._rotary = Rotary(
            dim=config.head_dim if config.rotary_dim is None else config.rotary_dim,
            theta=config.rope_theta,
            sections=config.rope_sections,
            interleaved=config.rope_interleaved,
            device=device,
        )
        self._heads = Heads(
            query=config.num_heads,
            key=config.num_kv_heads,
            delta_key=config.delta.num_key_heads if config.delta else 0,
        )
        self._delta = _delta_weights(config, parameters)
        self._layers = _layers(config, parameters, self._delta)

    @torch.inference_mode()
    def forward(self, batch: Batch, state: StateView) -> torch.Tensor:
        """Compute ``batch``; see :meth:`omni.models.batch.Backbone.forward`."""
        angles = self._angles(batch.positions)
        step = CardStep.of_batch(batch, state.page_tokens, angles, self._heads)
        x = self._embed(batch.token_ids.clamp(min=0))  # [N, D]
        if batch.embeddings is not None:
            x[batch.token_ids < 0] = batch.embeddings.to(x.dtype)
        return self._run(x, step, state, batch.logits_rows)

    @torch.inference_mode()
    def decode(self, inputs: DecodeInputs, state: StateView) -> torch.Tensor:
        """Compute one token of each of B sequences; logits fp32 [B, vocab_size].

        ``inputs`` are on the card and nothing synchronises: a CUDA graph can be made of it.
        """
        size, num_pages = inputs.page_table.shape
        cosine, sine = self._angles(inputs.positions)
        cu_seqlens = torch.arange(size + 1, dtype=torch.int32, device=inputs.slots.device)
        counters = self._heads.counters(size, inputs.slots.device)
        step = CardStep(
            cosine=cosine,
            sine=sine,
            places=inputs.places,
            paged=PagedRows(
                cu_seqlens=cu_seqlens,
                num_computed=inputs.num_computed,
                page_table=inputs.page_table,
                counters=counters,
                max_new_tokens=1,
                max_tokens=num_pages * state.page_tokens,
            ),
            delta=DeltaRows(
                slots=inputs.slots,
                cu_seqlens=cu_seqlens,
                counters=counters,
                journal_starts=inputs.journal_starts,
            ),
        )
        return self._run(self._embed(inputs.token_ids), step, state, None)

    @torch.inference_mode()
    def replay(self, state: StateView, slot: int, rows: slice) -> None:
        """Advance a slot by its journal; see :meth:`omni.models.batch.Backbone.replay`."""
        if self._delta is None:
            return
        assert state.recurrent is not None, "a recurrent layer needs slots"
        assert state.conv is not None, "a Gated DeltaNet layer needs windows"
        if state.journal is None or not 0 <= rows.start <= rows.stop <= state.journal.shape[2]:
            raise ValueError(f"the journal has no rows {rows.start} to {rows.stop}")
        device = state.journal.device
        numbers = torch.tensor([slot, rows.start, rows.stop], dtype=torch.int32).to(device)
        own, first, last = numbers.view(3, 1)
        num_counters = self.state_spec.num_recurrent * self._heads.delta_key
        triton_ops.replay(
            self._delta,
            DeltaState(recurrent=state.recurrent, conv=state.conv, journal=state.journal),
            ReplayRows(
                slots=own,
                journal_slots=own,
                firsts=first,
                lasts=last,
                counters=torch.zeros(num_counters, dtype=torch.int32, device=device),
            ),
        )

    def _angles(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines [N, R / 2]; as floats they are computed, not looked up on the host."""
        return self._rotary(positions.to(torch.float32))

    def _run(
        self,
        x: torch.Tensor,
        step: CardStep,
        state: StateView,
        logits_rows: torch.Tensor | None,
    ) -> torch.Tensor:
        """Logits [R, vocab] of ``x`` [N, D]; None: of every row."""
        last = len(self._layers) - 1
        for index, layer in enumerate(self._layers):
            x = layer.mixer(x, step, state)
            if index == last and logits_rows is not None:
                # Nothing after the last mixer looks at other tokens.
                x = x[logits_rows]  # [R, D]
            if len(x):
                x = layer.ffn(x, norm=layer.ffn_norm, residual=x)
        if not len(x):
            return x.new_empty(0, self.vocab_size)
        return self._head(x, norm=self._final_norm)  # [R, vocab]


def _check(config: BackboneConfig) -> None:
    """Refuse what the kernels are not written for.

    Raises:
        ModelError: naming the width.
    """
    rotated = config.head_dim if config.rotary_dim is None else config.rotary_dim
    widths = {"heads": (config.head_dim, 16), "the rotated part of heads": (rotated, 2)}
    if (delta := config.delta) is not None:
        widths |= {"key heads": (delta.key_dim, 16), "value heads": (delta.value_dim, 16)}
        if delta.conv_width != TAPS:
            raise ModelError(
                f"a convolution of width {delta.conv_width} does not run on cards, which take "
                f'{TAPS}; set engine.device to "cpu"'
            )
    for name, (width, least) in widths.items():
        if width < least or width & (width - 1):
            raise ModelError(
                f"{name} of width {width} do not run on cards, which take powers of 2 from "
                f'{least}; set engine.device to "cpu"'
            )


def _delta_weights(config: BackboneConfig, parameters: CardParameters) -> DeltaWeights | None:
    """The weights of all recurrent layers, one below the other: a replay is one launch."""
    names = [f"layers.{i}.delta." for i, kind in enumerate(config.mixers) if kind == "recurrent"]
    if not names:
        return None

    def stacked(name: str) -> torch.Tensor:
        return torch.stack([parameters.tensor(prefix + name) for prefix in names])

    return DeltaWeights(
        taps=stacked("conv").mT.contiguous(),
        a_log=stacked("a_log"),
        dt_bias=stacked("dt_bias"),
        norm=stacked("norm"),
        eps=config.rms_norm_eps,
    )


def _layers(
    config: BackboneConfig, parameters: CardParameters, delta: DeltaWeights | None
) -> list[_Layer]:
    layers: list[_Layer] = []
    num_attention = num_recurrent = 0
    for index, kind in enumerate(config.mixers):
        prefix = f"layers.{index}."
        norm = parameters.norm(prefix + "mixer_norm", config.rms_norm_eps)
        mixer: CardMixer
        if kind == "attention":
            mixer = _attention(config, parameters, prefix + "attention.", norm, num_attention)
            num_attention += 1
        else:
            assert delta is not None, "a recurrent layer has weights"
            mixer = CardDelta(
                norm=norm,
                project=parameters.linear(prefix + "delta.project"),
                out=parameters.linear(prefix + "delta.out"),
                weights=_one(delta, num_recurrent),
                row=num_recurrent,
            )
            num_recurrent += 1
        ffn: CardFeedForward | CardExperts
        if config.experts is None:
            ffn = _feed_forward(parameters, prefix + "ffn.")
        else:
            ffn = _experts(config.experts, parameters, prefix + "ffn.")
        ffn_norm = parameters.norm(prefix + "ffn_norm", config.rms_norm_eps)
        layers.append(_Layer(mixer, ffn, ffn_norm))
    return layers


def _one(delta: DeltaWeights, row: int) -> DeltaWeights:
    return DeltaWeights(
        taps=delta.taps[row],
        a_log=delta.a_log[row],
        dt_bias=delta.dt_bias[row],
        norm=delta.norm[row],
        eps=delta.eps,
    )


def _attention(
    config: BackboneConfig, parameters: CardParameters, name: str, norm: CardNorm, row: int
) -> CardAttention:
    head_norms = None
    if config.qk_norm:
        head_norms = parameters.tensor(name + "q_norm"), parameters.tensor(name + "k_norm")
    return CardAttention(
        norm=norm,
        qkv=parameters.linear(name + "qkv", name + "qkv_bias" if config.qkv_bias else None),
        out=parameters.linear(name + "out"),
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        row=row,
        head_norms=head_norms,
        has_gate=config.output_gate,
    )


def _feed_forward(parameters: CardParameters, name: str) -> CardFeedForward:
    return CardFeedForward(parameters.linear(name + "gate_up"), parameters.linear(name + "down"))


def _experts(shape: ExpertsShape, parameters: CardParameters, name: str) -> CardExperts:
    def pairs(prefix: str) -> list[tuple[CardLinear, CardLinear]]:
        gate_up = parameters.linears(prefix + "gate_up", shape.num_experts)
        down = parameters.linears(prefix + "down", shape.num_experts)
        return list(zip(gate_up, down, strict=True))

    return CardExperts(
        MixtureOfExperts(
            router=parameters.tensor(name + "router"),
            experts=[CardFeedForward(*pair) for pair in pairs(name + "experts.")],
            shared=_feed_forward(parameters, name + "shared."),
            shared_gate=parameters.tensor(name + "shared.gate").view(1, -1),
            shape=shape,
        )
    )
