"""Norms, the gated activation and rotary positions against their references, on every path."""

from __future__ import annotations

import pytest
import torch
from omni_kernels import library
from omni_kernels.attention import paged_attention
from omni_kernels.rowwise import (
    layer_norm,
    reference,
    rms_norm,
    rotate_and_store,
    sigmoid_mul,
    silu_mul,
)

SHAPES = [(1, 1), (3, 7), (2, 33), (1, 896), (40, 512), (64, 1000)]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative_error(value: torch.Tensor, truth: torch.Tensor) -> float:
    return ((value.double() - truth).norm() / truth.norm()).item()


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_norms_equal_the_reference(path: str, rows: int, columns: int) -> None:
    x, weight, bias = normal(rows, columns) + 3, normal(columns), normal(columns, seed=1)
    truth = reference.rms_norm(x.double(), weight.double(), 1e-6)
    assert relative_error(rms_norm(x, weight, 1e-6), truth) < 5e-7
    truth = reference.layer_norm(x.double(), weight.double(), bias.double(), 1e-5)
    assert relative_error(layer_norm(x, weight, bias, 1e-5), truth) < 2e-6


def test_norms_survive_small_and_large_rows(path: str) -> None:
    weight = torch.ones(64)
    for scale in (0.0, 1e-12, 1e12):
        x = normal(2, 64) * scale
        truth = reference.rms_norm(x.double(), weight.double(), 1e-6)
        torch.testing.assert_close(rms_norm(x, weight, 1e-6).double(), truth, atol=0, rtol=1e-6)


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_silu_mul_equals_the_reference(path: str, rows: int, columns: int) -> None:
    x = normal(rows, 2 * columns) * 4
    assert relative_error(silu_mul(x), reference.silu_mul(x.double())) < 5e-7


def test_silu_mul_has_the_right_limits(path: str) -> None:
    gate = torch.tensor([[-1e4, -100.0, -0.0, 0.0, 100.0, 1e4, torch.nan]])
    got = silu_mul(torch.cat([gate, torch.ones_like(gate)], dim=1))[0]
    assert got[:2].abs().max() < 1e-33
    assert (got[2:4] == 0).all()
    assert got[4:6].tolist() == [100.0, 1e4]
    assert got[6].isnan()


def test_a_row_does_not_depend_on_others_or_on_threads(path: str) -> None:
    x, bias = normal(300, 400), normal(400)
    for threads in (1, 3):
        library.set_num_threads(threads)
        for whole, alone in [
            (silu_mul(x), [silu_mul(row[None]) for row in x]),
            (rms_norm(x, bias, 1e-6), [rms_norm(row[None], bias, 1e-6) for row in x]),
            (layer_norm(x, bias, bias), [layer_norm(row[None], bias, bias) for row in x]),
        ]:
            assert torch.equal(whole, torch.cat(alone))


def test_out_may_be_the_input(path: str) -> None:
    x, weight = normal(5, 70), normal(70)
    expected = rms_norm(x, weight, 1e-6)
    assert rms_norm(x, weight, 1e-6, out=x) is x
    assert torch.equal(x, expected)
    x = normal(5, 70)
    expected = layer_norm(x, weight, weight)
    assert torch.equal(layer_norm(x, weight, weight, out=x), expected)


@pytest.mark.parametrize("dim", [2, 16, 64, 80])
def test_rotate_and_store_equals_the_reference(path: str, dim: int) -> None:
    rows, heads, kv_heads = 9, 4, 2
    qkv, angles = normal(rows, heads + 2 * kv_heads, dim), normal(rows, dim // 2) * 3
    kv = torch.full((2, 4, 8, kv_heads, dim), torch.nan)
    slots = torch.randperm(32, generator=torch.Generator().manual_seed(0))[:rows]
    turned = reference.rotate(qkv[:, : heads + kv_heads], angles.cos(), angles.sin())
    values = qkv[:, heads + kv_heads :].clone()
    query = rotate_and_store(qkv, kv, angles.cos(), angles.sin(), slots)
    torch.testing.assert_close(query, turned[:, :heads], atol=1e-6, rtol=1e-6)
    tokens = kv.view(2, 32, kv_heads, dim)
    torch.testing.assert_close(tokens[0, slots], turned[:, heads:], atol=1e-6, rtol=1e-6)
    assert torch.equal(tokens[1, slots], values)
    others = torch.ones(32, dtype=torch.bool)
    others[slots] = False
    assert tokens[:, others].isnan().all()


@pytest.mark.parametrize("dim", [16, 80, 256])
@pytest.mark.parametrize("share", [1, 4])
@pytest.mark.parametrize("rows", [1, 9])
def test_heads_are_normed_and_rotated_in_part_within_a_wider_projection(
    path: str, dim: int, share: int, rows: int
) -> None:
    heads, kv_heads, extra = 4, 2, 3
    wide = normal(rows, heads + 2 * kv_heads + extra, dim) + 0.5
    before = wide.clone()
    angles = normal(rows, dim // share // 2) * 3
    norms = normal(dim, seed=1) + 1, normal(dim, seed=2) + 1
    kv, slots = torch.zeros(2, 4, 8, kv_heads, dim), torch.arange(3, 3 + rows)
    exact = before.double()
    factors = (
        *(norms[0],) * heads,
        *(norms[1],) * kv_heads,
    )
    for head, factor in enumerate(factors):
        exact[:, head] = reference.rms_norm(exact[:, head], factor.double(), 1e-6)
    turned = reference.rotate(
        exact[:, : heads + kv_heads], angles.double().cos(), angles.double().sin()
    )
    query = rotate_and_store(
        wide[:, :-extra], kv, angles.cos(), angles.sin(), slots, norms=norms, eps=1e-6
    )
    assert query.data_ptr() == wide.data_ptr()
    assert relative_error(query, turned[:, :heads]) < 5e-7
    tokens = kv.view(2, 32, kv_heads, dim)
    assert relative_error(tokens[0, slots], turned[:, heads:]) < 5e-7
    assert torch.equal(tokens[1, slots], before[:, heads + kv_heads : -extra])
    assert torch.equal(wide[:, heads + kv_heads :], before[:, heads + kv_heads :])


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_sigmoid_mul_equals_the_reference(path: str, rows: int, columns: int) -> None:
    x, wide = normal(rows, columns), normal(rows, columns + 5, seed=1) * 4
    gate = wide[:, 2:-3]
    truth = reference.sigmoid_mul(x.double(), gate.double())
    got = sigmoid_mul(x, gate)
    assert got.data_ptr() == x.data_ptr()
    assert relative_error(got, truth) < 5e-7


def test_sigmoid_mul_has_the_right_limits(path: str) -> None:
    gate = torch.tensor([[-1e4, -100.0, 0.0, 100.0, 1e4, torch.nan]])
    got = sigmoid_mul(torch.full_like(gate, 2.0), gate)[0]
    assert got[:2].abs().max() < 1e-33
    assert got[2:5].tolist() == [1.0, 2.0, 2.0]
    assert got[5].isnan()


def test_attention_takes_the_rotated_view(path: str) -> None:
    qkv, kv = normal(5, 8, 16), torch.zeros(2, 3, 4, 2, 16)
    angles = normal(5, 8)
    query = rotate_and_store(qkv, kv, angles.cos(), angles.sin(), torch.arange(4, 9))
    case = ((0, 5), (0,), ((1, 2),))
    got = paged_attention(query, kv, *case)
    assert torch.equal(got, paged_attention(query.contiguous(), kv, *case))


def test_wrong_input_is_refused_with_the_expectation(path: str) -> None:
    x, weight = normal(4, 10), normal(10)
    with pytest.raises(ValueError, match=r"weight: expected float32 \[10\]"):
        rms_norm(x, weight[:9], 1e-6)
    with pytest.raises(ValueError, match="x: expected float32"):
        layer_norm(x.double(), weight, weight)
    with pytest.raises(ValueError, match="even number"):
        silu_mul(normal(2, 9))
    with pytest.raises(ValueError, match="contiguous"):
        silu_mul(normal(4, 20)[:, :10])
    qkv, kv, angles = normal(2, 8, 16), torch.zeros(2, 3, 4, 2, 16), normal(2, 8)
    for slot in (-1, 12):
        with pytest.raises(ValueError, match="a slot is not in 0"):
            rotate_and_store(qkv, kv, angles, angles, torch.tensor([0, slot]))
    assert torch.equal(qkv, normal(2, 8, 16))
    with pytest.raises(ValueError, match="with 9 angles"):
        rotate_and_store(qkv, kv, normal(2, 9), normal(2, 9), torch.tensor([0, 1]))
    norms = normal(16), normal(8)
    with pytest.raises(ValueError, match=r"norm: expected float32 \[16\]"):
        rotate_and_store(qkv, kv, angles, angles, torch.tensor([0, 1]), norms=norms)
    with pytest.raises(ValueError, match=r"gate: expected float32 \[2, 8\]"):
        sigmoid_mul(normal(2, 8), normal(2, 9))
    with pytest.raises(ValueError, match="slots: expected int64"):
        rotate_and_store(qkv, kv, angles, angles, torch.tensor([0, 1], dtype=torch.int32))
