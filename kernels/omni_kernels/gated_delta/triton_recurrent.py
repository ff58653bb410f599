# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Gated DeltaNet on a card, token by token: decode, short prefill and replay are one kernel.

Convolution, gates, delta rule, gated norm, journal and the new convolution window in one launch.
One program owns BV rows of one value head's state, keeps them in registers over its sequence's
tokens and reads and writes them once. What spans programs (the norm, and the window, which others
still read) is done by the last program of each key head to arrive.

Decoding, prefilling and replaying the same tokens run the same operations in the same layout
without contraction, so they leave the same bits. Letters as in ``op.py``; W = 4, L layers.
Called by the backbone (decode, up to 128 new tokens a sequence) and by rollback.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from omni_kernels.gated_delta.triton_state import DeltaRows, DeltaState, DeltaWeights, ReplayRows
from omni_kernels.triton_core import Argument, Launch, f32, is_last, put, sigmoid, silu, softplus

NORM_TOKENS = 8
"""Tokens times heads normalised at once after a prefill."""


@triton.jit
def unit(x, K: tl.constexpr):
    """x [K] / sqrt(|x|^2 + 1e-6)."""
    return x * tl.rsqrt(tl.sum(x * x, axis=0) + 1e-6)


@triton.jit
def advance(state, q, k, v, beta, decay):
    """Take one token into ``state`` [BV, K]; return it and what the query reads [BV].

    S <- e^g S; d = beta (v - S k); S <- S + d k^T; o = S q, with both products of the old state
    taken side by side: o = e^g S q + d (k q).
    """
    predicted = tl.sum(state * k[None, :], axis=1)  # [BV]
    read = tl.sum(state * q[None, :], axis=1)  # [BV]
    delta = beta * (v - decay * predicted)
    state = state * decay + delta[:, None] * k[None, :]
    return state, decay * read + delta * tl.sum(q * k, axis=0)


@triton.jit
def slide(window, rows, row_stride, channels, num_tokens, C: tl.constexpr):
    """Set ``window`` [3, C] at ``channels`` to the last three of its rows and the new ones."""
    n = num_tokens
    row = rows + n * row_stride + channels
    newest = f32(row - row_stride)
    middle = tl.where(
        n >= 2, f32(row - 2 * row_stride, n >= 2), f32(window + (n + 1) * C + channels, n < 2)
    )
    oldest = tl.where(
        n >= 3, f32(row - 3 * row_stride, n >= 3), f32(window + n * C + channels, n < 3)
    )
    put(window + channels, oldest)
    put(window + C + channels, middle)
    put(window + 2 * C + channels, newest)


@triton.jit
def recurrent_kernel(
    rows,
    rows_slot_stride,
    rows_layer_stride,
    row_stride,
    taps,
    a_log,
    dt_bias,
    norm,
    recurrent,
    recurrent_slot_stride,
    recurrent_layer_stride,
    conv,
    conv_slot_stride,
    conv_layer_stride,
    journal,
    journal_slot_stride,
    journal_row_stride,
    journal_starts,
    slots,
    row_slots,
    firsts,
    lasts,
    counters,
    scratch,
    out,
    eps,
    H: tl.constexpr,
    GROUP: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BV: tl.constexpr,
    NT: tl.constexpr,
    ONE_TOKEN: tl.constexpr,
    HAS_OUTPUT: tl.constexpr,
    HAS_JOURNAL: tl.constexpr,
):
    HV: tl.constexpr = H * GROUP
    C: tl.constexpr = 2 * H * K + HV * V
    BLOCKS: tl.constexpr = V // BV
    hv = tl.program_id(0) // BLOCKS
    block = tl.program_id(0) % BLOCKS
    b = tl.program_id(1)
    layer = tl.program_id(2).to(tl.int64)
    h = hv // GROUP
    in_k = tl.arange(0, K)
    in_v = tl.arange(0, V)
    own_v = block * BV + tl.arange(0, BV)

    slot = tl.load(slots + b).to(tl.int64)
    first = tl.load(firsts + b)
    num_tokens = tl.load(lasts + b) - first
    if num_tokens <= 0:
        return
    if slot <= 0:  # a place of a captured batch that nobody holds: state untouched, zeros out
        if HAS_OUTPUT:
            for t in range(num_tokens):
                nobody = out + (first + t).to(tl.int64) * HV * V + hv * V
                put(nobody + own_v, tl.zeros([BV], tl.float32))
        return
    if ONE_TOKEN:
        num_tokens = 1

    rows += tl.load(row_slots + b).to(tl.int64) * rows_slot_stride + layer * rows_layer_stride
    rows += first.to(tl.int64) * row_stride
    recurrent += slot * recurrent_slot_stride + layer * recurrent_layer_stride
    conv += slot * conv_slot_stride + layer * conv_layer_stride
    taps += layer * 4 * C
    rate = tl.exp(f32(a_log + layer * HV + hv))
    bias = f32(dt_bias + layer * HV + hv)

    q_at = h * K + in_k
    k_at = H * K + h * K + in_k
    v_at = 2 * H * K + hv * V + own_v
    beta_at = C + hv
    decay_at = C + HV + hv
    # The taps and the three tokens before, oldest first.
    wq0, wq1 = f32(taps + q_at), f32(taps + C + q_at)
    wq2, wq3 = f32(taps + 2 * C + q_at), f32(taps + 3 * C + q_at)
    wk0, wk1 = f32(taps + k_at), f32(taps + C + k_at)
    wk2, wk3 = f32(taps + 2 * C + k_at), f32(taps + 3 * C + k_at)
    wv0, wv1 = f32(taps + v_at), f32(taps + C + v_at)
    wv2, wv3 = f32(taps + 2 * C + v_at), f32(taps + 3 * C + v_at)
    q0, q1, q2 = f32(conv + q_at), f32(conv + C + q_at), f32(conv + 2 * C + q_at)
    k0, k1, k2 = f32(conv + k_at), f32(conv + C + k_at), f32(conv + 2 * C + k_at)
    v0, v1, v2 = f32(conv + v_at), f32(conv + C + v_at), f32(conv + 2 * C + v_at)
    own_state = recurrent + (hv * V + own_v[:, None]) * K + in_k[None, :]
    state = tl.load(own_state)  # [BV, K]

    if HAS_JOURNAL:
        note = tl.load(journal_starts + b)
        journal += slot * journal_slot_stride + note.to(tl.int64) * journal_row_stride
        leads_key_head = (note >= 0) & (block == 0) & (hv == h * GROUP)
        leads_head = (note >= 0) & (block == 0)

    row = rows
    q3, k3, v3 = f32(row + q_at), f32(row + k_at), f32(row + v_at)
    b_raw, a_raw = f32(row + beta_at), f32(row + decay_at)
    for t in range(num_tokens):
        # The next token's row is fetched while this one is computed.
        row += row_stride
        more = t + 1 < num_tokens
        q4, k4, v4 = f32(row + q_at, more), f32(row + k_at, more), f32(row + v_at, more)
        b_next, a_next = f32(row + beta_at, more), f32(row + decay_at, more)

        q = unit(silu(q0 * wq0 + q1 * wq1 + q2 * wq2 + q3 * wq3), K) * (K**-0.5)
        k = unit(silu(k0 * wk0 + k1 * wk1 + k2 * wk2 + k3 * wk3), K)
        v = silu(v0 * wv0 + v1 * wv1 + v2 * wv2 + v3 * wv3)
        decay = tl.exp(-rate * softplus(a_raw + bias))
        state, o = advance(state, q, k, v, sigmoid(b_raw), decay)
        if HAS_OUTPUT:
            tl.store(scratch + ((first + t).to(tl.int64) * HV + hv) * V + own_v, o)
        if HAS_JOURNAL:
            put(journal + q_at, q3, mask=leads_key_head)
            put(journal + k_at, k3, mask=leads_key_head)
            put(journal + v_at, v3, mask=note >= 0)
            put(journal + beta_at, b_raw, mask=leads_head)
            put(journal + decay_at, a_raw, mask=leads_head)
            journal += journal_row_stride
        q0, q1, q2, q3 = q1, q2, q3, q4
        k0, k1, k2, k3 = k1, k2, k3, k4
        v0, v1, v2, v3 = v1, v2, v3, v4
        b_raw, a_raw = b_next, a_next
    tl.store(own_state, state)

    counter = counters + (layer * tl.num_programs(1) + b) * H + h
    if is_last(counter, GROUP * BLOCKS):
        slide(conv, rows, row_stride, q_at, num_tokens, C)
        slide(conv, rows, row_stride, k_at, num_tokens, C)
        for g in tl.static_range(GROUP):
            slide(conv, rows, row_stride, 2 * H * K + (h * GROUP + g) * V + in_v, num_tokens, C)
        if HAS_OUTPUT:
            weight = f32(norm + in_v)
            for start in range(0, num_tokens * GROUP, NT):
                index = start + tl.arange(0, NT)  # token, then value head of this key head
                token = (index // GROUP).to(tl.int64)
                head = h * GROUP + index % GROUP
                inside = (index < num_tokens * GROUP)[:, None]
                at = ((first + token) * HV + head)[:, None] * V + in_v[None, :]
                o = tl.load(scratch + at, mask=inside, other=0.0, cache_modifier=".cg")  # [NT, V]
                scale = tl.rsqrt(tl.sum(o * o, axis=1) / V + eps)
                z_at = (token * row_stride + C + 2 * HV + head * V)[:, None] + in_v[None, :]
                z = f32(rows + z_at, inside)
                put(out + at, o * scale[:, None] * weight[None, :] * silu(z), mask=inside)


def plan(
    x: torch.Tensor,
    weights: DeltaWeights,
    state: DeltaState,
    rows: DeltaRows,
    out: torch.Tensor,
    *,
    one_token: bool,
) -> Launch:
    """Plan one layer's tokens into ``out`` [N, HV V]; ``one_token``: no sequence has two."""
    shape = state.shape
    has_journal = state.journal is not None and rows.journal_starts is not None
    journal = x if state.journal is None else state.journal
    arguments = _arguments(weights, state, rows.slots, rows.counters)
    return Launch(
        recurrent_kernel,
        (shape.value_heads * shape.blocks, len(rows.slots), 1),
        arguments
        | {
            "rows": x,
            "row_stride": x.stride(0),
            "journal": journal,
            "journal_slot_stride": journal.stride(0) if has_journal else 0,
            "journal_row_stride": journal.stride(1) if has_journal else 0,
            "journal_starts": rows.slots if rows.journal_starts is None else rows.journal_starts,
            "firsts": rows.cu_seqlens,
            "lasts": rows.cu_seqlens[1:],
            "scratch": torch.empty(out.shape, dtype=torch.float32, device=out.device),
            "out": out,
            "NT": 1 if one_token and shape.group == 1 else NORM_TOKENS,
            "ONE_TOKEN": one_token,
            "HAS_OUTPUT": True,
            "HAS_JOURNAL": has_journal,
        },
        num_warps=1,
        contract=False,
    )


def plan_replay(weights: DeltaWeights, state: DeltaState, rows: ReplayRows) -> Launch:
    """Plan the journalled tokens of all layers; every tensor has its layers' dimension."""
    shape = state.shape
    journal = state.journal
    assert journal is not None, "there is no journal to replay"
    arguments = _arguments(weights, state, rows.slots, rows.counters)
    return Launch(
        recurrent_kernel,
        (shape.value_heads * shape.blocks, len(rows.slots), shape.layers),
        arguments
        | {
            "rows": journal,
            "rows_slot_stride": journal.stride(0),
            "rows_layer_stride": journal.stride(1),
            "row_stride": journal.stride(2),
            "recurrent_layer_stride": state.recurrent.stride(1),
            "conv_layer_stride": state.conv.stride(1),
            "row_slots": rows.journal_slots,
            "firsts": rows.firsts,
            "lasts": rows.lasts,
        },
        num_warps=1,
        contract=False,
    )


def _arguments(
    weights: DeltaWeights, state: DeltaState, slots: torch.Tensor, counters: torch.Tensor
) -> dict[str, Argument]:
    """Everything that both plans share, or that one of them has no use for."""
    shape = state.shape
    return {
        "rows_slot_stride": 0,
        "rows_layer_stride": 0,
        "taps": weights.taps,
        "a_log": weights.a_log,
        "dt_bias": weights.dt_bias,
        "norm": weights.norm,
        "eps": weights.eps,
        "recurrent": state.recurrent,
        "recurrent_slot_stride": state.recurrent.stride(0),
        "recurrent_layer_stride": 0,
        "conv": state.conv,
        "conv_slot_stride": state.conv.stride(0),
        "conv_layer_stride": 0,
        "journal": state.recurrent,
        "journal_slot_stride": 0,
        "journal_row_stride": 0,
        "journal_starts": slots,
        "slots": slots,
        "row_slots": slots,
        "counters": counters,
        "scratch": state.recurrent,
        "out": state.recurrent,
        "H": shape.key_heads,
        "GROUP": shape.group,
        "K": shape.key_dim,
        "V": shape.value_dim,
        "BV": shape.value_dim // shape.blocks,
        "NT": 1,
        "ONE_TOKEN": False,
        "HAS_OUTPUT": False,
        "HAS_JOURNAL": False,
    }
