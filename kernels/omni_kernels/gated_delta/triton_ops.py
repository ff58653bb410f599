"""Gated DeltaNet on a card as torch operators: decode, prefill (short and long) and replay.

Called by the backbone where there is a card. Nothing synchronises, so all of it can be captured in
a CUDA graph. Letters as in ``op.py``.
"""

from __future__ import annotations

import torch

from omni_kernels.gated_delta import triton_chunk, triton_recurrent
from omni_kernels.gated_delta.triton_state import (
    DeltaRows,
    DeltaState,
    DeltaWeights,
    ReplayRows,
)
from omni_kernels.triton_core import dot_precision

__all__ = ["decode", "prefill", "prefill_long", "replay"]


def decode(
    x: torch.Tensor, weights: DeltaWeights, state: DeltaState, rows: DeltaRows
) -> torch.Tensor:
    """Run at most one token of each sequence: one launch.

    Args:
        x: fp32, fp16 or bf16 [N, C + 2 HV + HV V], rows dense: qkv | b | a | z of each token.
        weights: one layer's.
        state: one layer's; the slots named are advanced in place.
        rows: whose the rows are; its counters end as they began.

    Returns:
        [N, HV V] in the type of ``x``. Rows of nobody's slots are zero.

    Raises:
        ValueError: a shape does not fit.
    """
    _check(x, state, rows)
    return _run(x, weights, state, rows, one_token=True)


def prefill(
    x: torch.Tensor, weights: DeltaWeights, state: DeltaState, rows: DeltaRows
) -> torch.Tensor:
    """Run any number of tokens of each sequence, token by token: one launch, the bits of decoding.

    As :func:`decode` otherwise; meant for up to ``MAX_SHORT_TOKENS`` tokens a sequence.
    """
    _check(x, state, rows)
    return _run(x, weights, state, rows, one_token=False)


def prefill_long(
    x: torch.Tensor,
    weights: DeltaWeights,
    state: DeltaState,
    rows: DeltaRows,
    *,
    max_new_tokens: int,
) -> torch.Tensor:
    """Run any number of tokens of each sequence in chunks by matrix products: four launches.

    As :func:`decode` otherwise, but: close to having decoded, not equal in bits (on NVIDIA cards
    products are tf32); no journal is written, so a checkpoint belongs at its end; rows of nobody's
    slots come out as if from an empty state.

    Args:
        x: as above.
        weights: one layer's; key and value heads of one width.
        state: one layer's.
        rows: whose the rows are.
        max_new_tokens: of any sequence, at least.

    Raises:
        ValueError: a shape does not fit.
    """
    _check(x, state, rows)
    if state.shape.key_dim != state.shape.value_dim:
        raise ValueError("key and value heads of two widths have no chunked path")
    out: torch.Tensor = _gated_delta_long(
        x,
        weights.taps,
        weights.a_log,
        weights.dt_bias,
        weights.norm,
        weights.eps,
        state.recurrent,
        state.conv,
        rows.slots,
        rows.cu_seqlens,
        max_new_tokens,
    )
    return out


def replay(weights: DeltaWeights, state: DeltaState, rows: ReplayRows) -> None:
    """Advance slots by journalled tokens in all layers at once: one launch, the bits of decoding.

    Args:
        weights: all layers'.
        state: all layers', with the journal; ``rows.slots`` are advanced in place from the state
            before the first row (a restored checkpoint).
        rows: what is replayed.

    Raises:
        ValueError: a shape does not fit.
    """
    shape = state.shape
    if state.recurrent.dim() != 5 or state.journal is None:
        raise ValueError("a replay takes the state of all layers and their journal")
    if rows.counters.numel() < shape.layers * len(rows.slots) * shape.key_heads:
        raise ValueError(f"{rows.counters.numel()} counters are too few for {shape.layers} layers")
    _replay(
        weights.taps,
        weights.a_log,
        weights.dt_bias,
        state.recurrent,
        state.conv,
        state.journal,
        rows.slots,
        rows.journal_slots,
        rows.firsts,
        rows.lasts,
        rows.counters,
    )


def _check(x: torch.Tensor, state: DeltaState, rows: DeltaRows) -> None:
    shape = state.shape
    width = shape.channels + 2 * shape.value_heads + shape.value_heads * shape.value_dim
    if x.dim() != 2 or x.shape[1] != width or x.stride(1) != 1:
        raise ValueError(f"x: expected dense rows of {width}, got {list(x.shape)}")
    if state.recurrent.dim() != 4:
        raise ValueError("a forward pass takes the state of one layer")
    if rows.counters.numel() < len(rows.slots) * shape.key_heads:
        raise ValueError(f"{rows.counters.numel()} counters are too few for {len(rows.slots)} rows")
    if len(rows.cu_seqlens) != len(rows.slots) + 1:
        raise ValueError(f"{len(rows.slots)} slots, but {len(rows.cu_seqlens)} offsets")


def _run(
    x: torch.Tensor,
    weights: DeltaWeights,
    state: DeltaState,
    rows: DeltaRows,
    *,
    one_token: bool,
) -> torch.Tensor:
    out: torch.Tensor = _gated_delta(
        x,
        weights.taps,
        weights.a_log,
        weights.dt_bias,
        weights.norm,
        weights.eps,
        state.recurrent,
        state.conv,
        state.journal,
        rows.slots,
        rows.cu_seqlens,
        rows.journal_starts,
        rows.counters,
        one_token,
    )
    return out


@torch.library.custom_op(
    "omni::gated_delta", mutates_args=("recurrent", "conv", "journal", "counters")
)
def _gated_delta(
    x: torch.Tensor,
    taps: torch.Tensor,
    a_log: torch.Tensor,
    dt_bias: torch.Tensor,
    norm: torch.Tensor,
    eps: float,
    recurrent: torch.Tensor,
    conv: torch.Tensor,
    journal: torch.Tensor | None,
    slots: torch.Tensor,
    cu_seqlens: torch.Tensor,
    journal_starts: torch.Tensor | None,
    counters: torch.Tensor,
    one_token: bool,
) -> torch.Tensor:
    weights = DeltaWeights(taps=taps, a_log=a_log, dt_bias=dt_bias, norm=norm, eps=eps)
    state = DeltaState(recurrent=recurrent, conv=conv, journal=journal)
    rows = DeltaRows(
        slots=slots, cu_seqlens=cu_seqlens, journal_starts=journal_starts, counters=counters
    )
    out = x.new_empty(len(x), norm.numel() * a_log.numel())
    triton_recurrent.plan(x, weights, state, rows, out, one_token=one_token).run()
    return out


@torch.library.custom_op("omni::gated_delta_long", mutates_args=("recurrent", "conv"))
def _gated_delta_long(
    x: torch.Tensor,
    taps: torch.Tensor,
    a_log: torch.Tensor,
    dt_bias: torch.Tensor,
    norm: torch.Tensor,
    eps: float,
    recurrent: torch.Tensor,
    conv: torch.Tensor,
    slots: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_new_tokens: int,
) -> torch.Tensor:
    weights = DeltaWeights(taps=taps, a_log=a_log, dt_bias=dt_bias, norm=norm, eps=eps)
    state = DeltaState(recurrent=recurrent, conv=conv)
    rows = DeltaRows(slots=slots, cu_seqlens=cu_seqlens, counters=slots)
    out = x.new_empty(len(x), norm.numel() * a_log.numel())
    for launch in triton_chunk.plan(
        x,
        weights,
        state,
        rows,
        out,
        max_new_tokens=max_new_tokens,
        precision=dot_precision(is_fast=True),
    ):
        launch.run()
    return out


@_gated_delta.register_fake
@_gated_delta_long.register_fake
def _(
    x: torch.Tensor,
    taps: torch.Tensor,
    a_log: torch.Tensor,
    dt_bias: torch.Tensor,
    norm: torch.Tensor,
    *_: object,
) -> torch.Tensor:
    return x.new_empty(x.shape[0], norm.numel() * a_log.numel())


@torch.library.custom_op("omni::gated_delta_replay", mutates_args=("recurrent", "conv", "counters"))
def _replay(
    taps: torch.Tensor,
    a_log: torch.Tensor,
    dt_bias: torch.Tensor,
    recurrent: torch.Tensor,
    conv: torch.Tensor,
    journal: torch.Tensor,
    slots: torch.Tensor,
    journal_slots: torch.Tensor,
    firsts: torch.Tensor,
    lasts: torch.Tensor,
    counters: torch.Tensor,
) -> None:
    weights = DeltaWeights(taps=taps, a_log=a_log, dt_bias=dt_bias, norm=a_log, eps=0.0)
    state = DeltaState(recurrent=recurrent, conv=conv, journal=journal)
    rows = ReplayRows(
        slots=slots, journal_slots=journal_slots, firsts=firsts, lasts=lasts, counters=counters
    )
    triton_recurrent.plan_replay(weights, state, rows).run()


@_replay.register_fake
def _(*_: object) -> None:
    return None
