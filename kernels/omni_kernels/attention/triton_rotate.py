# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""What stands between the projection and the attention on a card, in one launch.

Norms of queries and keys, partial rotary positions, keys and values to their pages. One program
handles one head of one token. Called by the backbone's full-attention layers where there is a card.
Letters: N rows, Hq query heads, Hkv key heads, D width, R rotated dimensions, P pages, T tokens.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from omni_kernels.triton_core import Launch, f32, put

__all__ = ["norm_rotate_store"]


@triton.jit
def rotate_kernel(
    q,
    q_row_stride,
    q_head_stride,
    k,
    k_row_stride,
    v,
    v_row_stride,
    keys,
    values,
    q_norm,
    k_norm,
    eps,
    cosine,
    sine,
    places,
    out,
    HQ: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    head = tl.program_id(0)
    n = tl.program_id(1).to(tl.int64)
    place = tl.load(places + n)
    d = tl.arange(0, D)
    if head >= HQ + HKV:  # a value: moved as it is
        h = head - HQ - HKV
        if place >= 0:
            put(values + (place * HKV + h) * D + d, f32(v + n * v_row_stride + h * D + d))
        return
    h = head if head < HQ else head - HQ
    in_q, in_k = n * q_row_stride + h * q_head_stride, n * k_row_stride + h * D
    source = q + in_q if head < HQ else k + in_k
    partner = tl.where(d < R // 2, d + R // 2, d - R // 2)
    is_turned = d < R
    x, other = f32(source + d), f32(source + partner, is_turned)
    if HAS_NORM:
        scale = tl.rsqrt(tl.sum(x * x, axis=0) / D + eps)
        norm = q_norm if head < HQ else k_norm
        x *= scale * f32(norm + d)
        other *= scale * f32(norm + partner, is_turned)
    angle = n * (R // 2) + d % (R // 2)
    c, s = f32(cosine + angle, is_turned), f32(sine + angle, is_turned)
    x = tl.where(is_turned, x * c + tl.where(d < R // 2, -other, other) * s, x)
    if head < HQ:
        put(out + (n * HQ + h) * D + d, x)
    elif place >= 0:
        put(keys + (place * HKV + h) * D + d, x)


def norm_rotate_store(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kv: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    eps: float,
    cosine: torch.Tensor,
    sine: torch.Tensor,
    places: torch.Tensor,
) -> torch.Tensor:
    """Normalise and rotate queries and keys; write keys and values to their pages.

    Args:
        q: fp32, fp16 or bf16 [N, Hq, D], last dimension dense (a view of q | gate is).
        k: [N, Hkv, D] in the type of ``q``, each row dense.
        v: likewise.
        kv: [2, P, T, Hkv, D], contiguous. Mutated.
        norms: fp32 factors [D] of q and k after division by their root mean square (1 + w where
            the checkpoint's norm is zero-centred); None: no norm.
        eps: added to the mean square.
        cosine: fp32 [N, R / 2] of each token's angles; pairs are (i, i + R / 2), i < R / 2.
        sine: likewise.
        places: int64 [N] page id * T + offset of each token; a negative one is not stored.

    Returns:
        The rotated queries [N, Hq, D], contiguous, in the type of ``q``. Nothing synchronises;
        places are not checked.

    Raises:
        ValueError: a shape or layout does not fit.
    """
    rows, _, dim = q.shape
    kv_heads, rotated = kv.shape[3], 2 * cosine.shape[1]
    if q.stride(2) != 1 or dim & (dim - 1) or rotated & (rotated - 1) or rotated > dim:
        raise ValueError(f"q: a power of 2 of at least {rotated} expected, got {list(q.shape)}")
    for name, tensor in (("k", k), ("v", v)):
        if tensor.shape != (rows, kv_heads, dim) or tensor.stride()[1:] != (dim, 1):
            raise ValueError(f"{name}: expected dense [{rows}, {kv_heads}, {dim}]")
    if kv.shape[4] != dim or not kv.is_contiguous():
        raise ValueError(f"kv: expected [2, P, T, Hkv, {dim}], got {list(kv.shape)}")
    q_norm, k_norm = (None, None) if norms is None else norms
    out: torch.Tensor = _norm_rotate_store(q, k, v, kv, q_norm, k_norm, eps, cosine, sine, places)
    return out


def plan(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kv: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    eps: float,
    cosine: torch.Tensor,
    sine: torch.Tensor,
    places: torch.Tensor,
    out: torch.Tensor,
) -> Launch:
    """Plan the launch of :func:`norm_rotate_store` into ``out``."""
    rows, heads, dim = q.shape
    kv_heads = kv.shape[3]
    keys, values = kv.unbind()
    return Launch(
        rotate_kernel,
        (heads + 2 * kv_heads, rows),
        {
            "q": q,
            "q_row_stride": q.stride(0),
            "q_head_stride": q.stride(1),
            "k": k,
            "k_row_stride": k.stride(0),
            "v": v,
            "v_row_stride": v.stride(0),
            "keys": keys,
            "values": values,
            "q_norm": cosine if norms is None else norms[0],
            "k_norm": cosine if norms is None else norms[1],
            "eps": eps,
            "cosine": cosine,
            "sine": sine,
            "places": places,
            "out": out,
            "HQ": heads,
            "HKV": kv_heads,
            "D": dim,
            "R": 2 * cosine.shape[1],
            "HAS_NORM": norms is not None,
        },
        num_warps=1,
    )


@torch.library.custom_op("omni::norm_rotate_store", mutates_args=("kv",))
def _norm_rotate_store(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kv: torch.Tensor,
    q_norm: torch.Tensor | None,
    k_norm: torch.Tensor | None,
    eps: float,
    cosine: torch.Tensor,
    sine: torch.Tensor,
    places: torch.Tensor,
) -> torch.Tensor:
    norms = None if q_norm is None or k_norm is None else (q_norm, k_norm)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    plan(q, k, v, kv, norms, eps, cosine, sine, places, out).run()
    return out


@_norm_rotate_store.register_fake
def _(q: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)
