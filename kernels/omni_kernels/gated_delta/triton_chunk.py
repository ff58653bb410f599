# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Gated DeltaNet over long prompts on a card, in chunks of 64 tokens, by matrix products.

Four launches: the convolution, what each chunk can compute alone, the walk over the chunks, and the
gated norm. In a chunk, with G the running sum of g:

    A = strict-lower[beta_i e^(Gi - Gj) ki.kj];   T = (I + A)^-1
    D = T (beta v) - T (beta e^G k) S
    o = e^G q S + lower[e^(Gi - Gj) qi.kj] D;      S <- e^Gc S + k^T (D e^(Gc - G))

T comes row by row, by forward substitution: with keys alike (silence, a still picture) the usual
series or doubling loses all digits at 64. Exponents are masked to -inf before the exponential.
Agrees with the token-by-token kernel to rounding, not in bits. Letters as in ``op.py``; D = K = V.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from omni_kernels.gated_delta import triton_conv
from omni_kernels.gated_delta.triton_state import DeltaRows, DeltaState, DeltaWeights
from omni_kernels.triton_core import Argument, Launch, Precision, f32, put, sigmoid, silu, softplus

CHUNK = 64
"""Tokens per chunk."""
SLICE = 32
"""Columns of keys, queries and values that are multiplied at a time."""
SCAN_ROWS = 16
"""Rows of a head's state that one program carries over the chunks."""
NORM_ROWS = 8
"""Heads of tokens that one program normalises."""


@triton.jit
def chunk_kernel(
    rows,
    row_stride,
    mixed,
    a_log,
    dt_bias,
    cu_seqlens,
    decays,
    from_state,
    from_values,
    scores,
    H: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    CHUNK: tl.constexpr,
    SLICE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One chunk of one value head: G, T (beta e^G k), T (beta v) and lower[e^(Gi-Gj) qi.kj]."""
    HV: tl.constexpr = H * GROUP
    C: tl.constexpr = 2 * H * D + HV * D
    b = tl.program_id(2)
    hv = tl.program_id(1)
    first = tl.load(cu_seqlens + b).to(tl.int64)
    num_tokens = tl.load(cu_seqlens + b + 1).to(tl.int64) - first
    start = tl.program_id(0) * CHUNK
    if start >= num_tokens:
        return
    index = tl.arange(0, CHUNK)
    inside = start + index < num_tokens
    token = first + start + index
    rows_in = inside[:, None]
    q = mixed + token[:, None] * C + (hv // GROUP) * D
    k = q + H * D
    v = mixed + token[:, None] * C + 2 * H * D + hv * D
    own = (token * HV + hv)[:, None] * D

    beta = sigmoid(f32(rows + token * row_stride + C + hv, inside))
    beta = tl.where(inside, beta, 0.0)
    rate = tl.exp(f32(a_log + hv))
    g = -rate * softplus(f32(rows + token * row_stride + C + HV + hv, inside) + f32(dt_bias + hv))
    total = tl.cumsum(tl.where(inside, g, 0.0), axis=0)  # G
    put(decays + token * HV + hv, total, mask=inside)

    of_keys = tl.zeros([CHUNK, CHUNK], tl.float32)
    of_queries = tl.zeros([CHUNK, CHUNK], tl.float32)
    for part in range(0, D, SLICE):
        at = part + tl.arange(0, SLICE)[None, :]
        keys = f32(k + at, rows_in)
        of_keys = tl.dot(keys, tl.trans(keys), of_keys, input_precision=PRECISION)
        of_queries = tl.dot(
            f32(q + at, rows_in), tl.trans(keys), of_queries, input_precision=PRECISION
        )

    apart = total[:, None] - total[None, :]
    upto = tl.exp(tl.where(index[:, None] >= index[None, :], apart, -float("inf")))
    score_at = (token * HV + hv)[:, None] * CHUNK + index[None, :]
    tl.store(scores + score_at, of_queries * upto, mask=rows_in)
    is_before = index[:, None] > index[None, :]
    a = of_keys * beta[:, None] * tl.where(is_before, upto, 0.0)

    # Row i of the inverse is e_i - sum_{j < i} a_ij row_j; rows not reached yet are e_j.
    inverse = tl.where(index[:, None] == index[None, :], 1.0, 0.0)
    for i in range(1, CHUNK):
        row = tl.sum(tl.where(index[:, None] == i, a, 0.0), axis=0)  # a_i, 0 from i on
        taken = tl.sum(row[:, None] * inverse, axis=0)
        inverse -= tl.where(index[:, None] == i, taken[None, :], 0.0)

    kept = (beta * tl.exp(total))[:, None]
    for part in range(0, D, SLICE):
        at = part + tl.arange(0, SLICE)[None, :]
        into = tl.dot(inverse, f32(k + at, rows_in) * kept, input_precision=PRECISION)
        tl.store(from_state + own + at, into, mask=rows_in)
        into = tl.dot(inverse, f32(v + at, rows_in) * beta[:, None], input_precision=PRECISION)
        tl.store(from_values + own + at, into, mask=rows_in)


@triton.jit
def scan_kernel(
    mixed,
    decays,
    from_state,
    from_values,
    scores,
    recurrent,
    recurrent_slot_stride,
    slots,
    cu_seqlens,
    raw,
    H: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BV: tl.constexpr,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """BV rows of one value head's state over all chunks of a sequence; o goes to ``raw``."""
    HV: tl.constexpr = H * GROUP
    C: tl.constexpr = 2 * H * D + HV * D
    hv = tl.program_id(1)
    b = tl.program_id(2)
    slot = tl.load(slots + b).to(tl.int64)
    first = tl.load(cu_seqlens + b).to(tl.int64)
    num_tokens = tl.load(cu_seqlens + b + 1).to(tl.int64) - first
    if num_tokens <= 0:
        return
    index = tl.arange(0, CHUNK)
    in_k = tl.arange(0, D)
    own_v = tl.program_id(0) * BV + tl.arange(0, BV)
    recurrent += slot * recurrent_slot_stride + hv * D * D
    state_at = recurrent + own_v[None, :] * D + in_k[:, None]  # [K, BV]: S as in the formulae
    is_held = (in_k[:, None] >= 0) & (slot > 0)
    state = f32(state_at, is_held)
    for start in range(0, num_tokens, CHUNK):
        token = first + start + index
        inside = start + index < num_tokens
        rows_in = inside[:, None]
        last = first + tl.minimum(start + CHUNK, num_tokens) - 1
        total = f32(decays + token * HV + hv, inside)
        end = f32(decays + last * HV + hv)
        own = (token * HV + hv)[:, None]
        q = mixed + token[:, None] * C + (hv // GROUP) * D + in_k[None, :]

        delta = f32(from_values + own * D + own_v[None, :], rows_in)
        into = f32(from_state + own * D + in_k[None, :], rows_in)
        delta -= tl.dot(into, state, input_precision=PRECISION)  # [CHUNK, BV]

        o = tl.dot(f32(q, rows_in), state, input_precision=PRECISION) * tl.exp(total)[:, None]
        seen = f32(scores + own * CHUNK + index[None, :], rows_in)
        o = tl.dot(seen, delta, o, input_precision=PRECISION)
        tl.store(raw + own * D + own_v[None, :], o, mask=rows_in)

        k = f32(q + H * D, rows_in)
        delta *= tl.exp(end - total)[:, None]  # at most 1: G only falls
        state = tl.dot(tl.trans(k), delta, state * tl.exp(end), input_precision=PRECISION)
    tl.store(state_at, state, mask=is_held)


@triton.jit
def norm_kernel(
    raw,
    rows,
    row_stride,
    norm,
    out,
    eps,
    num_rows,
    Z: tl.constexpr,
    HV: tl.constexpr,
    V: tl.constexpr,
    NT: tl.constexpr,
):
    """NT heads of tokens: o / rms(o) * norm * silu(z), z at column Z of the rows."""
    index = tl.program_id(0) * NT + tl.arange(0, NT)
    in_v = tl.arange(0, V)
    inside = (index < num_rows)[:, None]
    at = index.to(tl.int64)[:, None] * V + in_v[None, :]
    o = f32(raw + at, inside)
    scale = tl.rsqrt(tl.sum(o * o, axis=1) / V + eps)
    z_at = (index // HV).to(tl.int64) * row_stride + Z + (index % HV) * V
    z = f32(rows + z_at[:, None] + in_v[None, :], inside)
    put(out + at, o * scale[:, None] * f32(norm + in_v)[None, :] * silu(z), mask=inside)


def plan(
    x: torch.Tensor,
    weights: DeltaWeights,
    state: DeltaState,
    rows: DeltaRows,
    out: torch.Tensor,
    *,
    max_new_tokens: int,
    precision: Precision,
) -> list[Launch]:
    """Plan the launches of a long prefill of one layer into ``out`` [N, HV V], in order."""
    shape = state.shape
    heads: dict[str, Argument] = {"H": shape.key_heads, "GROUP": shape.group, "D": shape.key_dim}
    chunked: dict[str, Argument] = {"CHUNK": CHUNK, "PRECISION": precision}
    sequences, value_heads = len(rows.slots), shape.value_heads
    chunks = triton.cdiv(max_new_tokens, CHUNK)

    def scratch(*inner: int) -> torch.Tensor:
        return torch.empty(len(x), *inner, dtype=torch.float32, device=x.device)

    mixed, decays = scratch(shape.channels), scratch(value_heads)
    from_state = scratch(value_heads, shape.key_dim)
    from_values = scratch(value_heads, shape.value_dim)
    scores = scratch(value_heads, CHUNK)
    raw = scratch(value_heads, shape.value_dim)
    conv = triton_conv.plan(
        x,
        weights.taps,
        state.conv,
        rows.slots,
        rows.cu_seqlens,
        max_new_tokens,
        mixed,
        unit_heads=shape.key_heads,
        width=shape.key_dim,
    )
    alone = Launch(
        chunk_kernel,
        (chunks, value_heads, sequences),
        {
            "rows": x,
            "row_stride": x.stride(0),
            "mixed": mixed,
            "a_log": weights.a_log,
            "dt_bias": weights.dt_bias,
            "cu_seqlens": rows.cu_seqlens,
            "decays": decays,
            "from_state": from_state,
            "from_values": from_values,
            "scores": scores,
            "SLICE": min(SLICE, shape.key_dim),
            **heads,
            **chunked,
        },
        num_warps=8,
    )
    walk = Launch(
        scan_kernel,
        (shape.value_dim // SCAN_ROWS, value_heads, sequences),
        {
            "mixed": mixed,
            "decays": decays,
            "from_state": from_state,
            "from_values": from_values,
            "scores": scores,
            "recurrent": state.recurrent,
            "recurrent_slot_stride": state.recurrent.stride(0),
            "slots": rows.slots,
            "cu_seqlens": rows.cu_seqlens,
            "raw": raw,
            "BV": SCAN_ROWS,
            **heads,
            **chunked,
        },
        num_warps=8,
    )
    norm = Launch(
        norm_kernel,
        (triton.cdiv(len(x) * value_heads, NORM_ROWS),),
        {
            "raw": raw,
            "rows": x,
            "row_stride": x.stride(0),
            "norm": weights.norm,
            "out": out,
            "eps": weights.eps,
            "num_rows": len(x) * value_heads,
            "Z": shape.channels + 2 * value_heads,
            "HV": value_heads,
            "V": shape.value_dim,
            "NT": NORM_ROWS,
        },
        num_warps=4,
    )
    return [conv, alone, walk, norm]
