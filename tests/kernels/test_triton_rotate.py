"""Norms, rotary positions and writes to pages for cards, in Triton's interpreter."""

from __future__ import annotations

import interpreted  # noqa: F401
import pytest
import torch
from omni_kernels.attention import triton_reference as reference
from omni_kernels.attention.triton_rotate import norm_rotate_store

HEADS, KV_HEADS, DIM, PAGES, PAGE_TOKENS = 4, 2, 32, 3, 8


def make(
    dtype: torch.dtype, rotated: int, is_normed: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, list[object]]:
    """q (a view of q | gate), k and v (views of one projection), pages of NaN, and the rest."""
    random = torch.Generator().manual_seed(3)
    rows = 5
    q = torch.randn(rows, HEADS, 2 * DIM, generator=random).to(dtype)[:, :, :DIM]
    both = torch.randn(rows, 2 * KV_HEADS, DIM, generator=random).to(dtype)
    kv = torch.full((2, PAGES, PAGE_TOKENS, KV_HEADS, DIM), torch.nan, dtype=dtype)
    norms = None
    if is_normed:
        norms = torch.randn(DIM, generator=random), torch.randn(DIM, generator=random)
    angles = torch.randn(rows, rotated // 2, generator=random)
    places = torch.tensor([9, 10, -1, 23, 8])
    rest: list[object] = [norms, 1e-6, angles.cos(), angles.sin(), places]
    return q, both[:, :KV_HEADS], both[:, KV_HEADS:], kv, rest


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize(("rotated", "is_normed"), [(8, True), (DIM, False), (DIM, True)])
def test_queries_and_pages_equal_the_reference(
    dtype: torch.dtype, rotated: int, is_normed: bool
) -> None:
    q, k, v, kv, rest = make(dtype, rotated, is_normed)
    wide = kv.float()
    expected = reference.norm_rotate_store(q.float(), k.float(), v.float(), wide, *rest)  # type: ignore[arg-type]
    got = norm_rotate_store(q, k, v, kv, *rest)  # type: ignore[arg-type]
    tolerance = {"rtol": 2e-3, "atol": 2e-3} if dtype == torch.float16 else {}
    torch.testing.assert_close(got.float(), expected, **tolerance)
    torch.testing.assert_close(kv.float(), wide, equal_nan=True, **tolerance)
    assert torch.equal(kv[1].flatten(0, 1)[9], v[0])
    assert kv.isfinite().sum() == 2 * 4 * KV_HEADS * DIM


def test_what_does_not_fit_is_refused() -> None:
    q, k, v, kv, rest = make(torch.float32, 8, True)
    with pytest.raises(ValueError, match="k: expected dense"):
        norm_rotate_store(q, k[:, :1], v, kv, *rest)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="power of 2"):
        norm_rotate_store(q[:, :, :31], k, v, kv, *rest)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kv: expected"):
        norm_rotate_store(q, k, v, kv.transpose(1, 2), *rest)  # type: ignore[arg-type]


def test_the_operator_tells_torch_what_it_changes() -> None:
    q, k, v, kv, rest = make(torch.float32, 8, False)
    _, eps, cosine, sine, places = rest
    torch.library.opcheck(
        torch.ops.omni.norm_rotate_store.default,
        (q, k, v, torch.zeros_like(kv), None, None, eps, cosine, sine, places),
    )
