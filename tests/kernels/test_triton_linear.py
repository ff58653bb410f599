"""The card's linear against its reference, in Triton's interpreter."""

from __future__ import annotations

import interpreted  # noqa: F401
import pytest
import torch
from omni_kernels.linear import pack, unpack
from omni_kernels.linear import triton_reference as reference
from omni_kernels.linear.layout import BITS as BITS_ON_FILE
from omni_kernels.linear.triton_layout import (
    CardWeight,
    dequantize,
    from_packed,
    pack4,
)
from omni_kernels.linear.triton_linear import linear

BITS = pytest.mark.parametrize("bits", [8, 4])


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def make(bits: int, n: int = 40, k: int = 96) -> CardWeight:
    return from_packed(pack(normal(n, k), 8 if bits == 8 else 4))


def error(got: torch.Tensor, truth: torch.Tensor) -> float:
    return ((got.double() - truth).norm() / truth.norm()).item()


@BITS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("rows", [1, 3, 5, 20, 70])
def test_the_product_equals_the_reference(rows: int, dtype: torch.dtype, bits: int) -> None:
    weight, x = make(bits), normal(rows, 96).to(dtype)
    got = linear(x, weight)
    assert got.dtype == dtype
    bound = 1e-3 if dtype == torch.float16 else 1e-6
    assert error(got, reference.linear(x.double(), weight)) < bound


@BITS
@pytest.mark.parametrize("rows", [2, 6])
@pytest.mark.parametrize("addend", ["residual", "bias"])
@pytest.mark.parametrize("prologue", ["norm", "gate"])
def test_neighbours_are_fused_as_written(prologue: str, addend: str, rows: int, bits: int) -> None:
    weight = make(bits)
    wide = normal(rows, 2 * 96 if prologue == "gate" else 96) * 3
    norm = normal(96) if prologue == "norm" else None
    added = normal(rows, 40) if addend == "residual" else normal(40)
    got = linear(wide, weight, norm=norm, eps=1e-6, is_gated=prologue == "gate", addend=added)
    truth = reference.linear(
        wide.double(),
        weight,
        norm=norm,
        eps=1e-6,
        is_gated=prologue == "gate",
        addend=added.double(),
    )
    assert error(got, truth) < 1e-6


@BITS
@pytest.mark.parametrize("rows", [1, 7])
def test_rows_apart_and_a_ragged_number_of_outputs_are_taken(rows: int, bits: int) -> None:
    weight, x = make(bits, 21, 1056), normal(rows, 2 * 1056)[:, 1056:]
    got = linear(x, weight, norm=torch.ones(1056), eps=1e-6)
    truth = reference.linear(x.double(), weight, norm=torch.ones(1056), eps=1e-6)
    assert error(got, truth) < 2e-6


def test_a_row_is_a_row_within_a_path() -> None:
    weight, x, norm = make(8), normal(20, 96), normal(96)
    for some, more in ((1, 4), (5, 12)):
        all_rows = linear(x[:more], weight, norm=norm, eps=1e-6)
        assert torch.equal(linear(x[:some], weight, norm=norm, eps=1e-6), all_rows[:some])


def test_a_row_that_is_not_finite_stays_its_own_trouble() -> None:
    weight, x = make(8), normal(6, 96)
    clean = linear(x, weight)
    x[2, 5] = torch.nan
    got = linear(x, weight)
    assert got[2].isnan().all()
    assert torch.equal(got[[0, 1, 3, 4, 5]], clean[[0, 1, 3, 4, 5]])


def test_a_reordered_weight_holds_the_same_numbers() -> None:
    for bits in BITS_ON_FILE:
        packed = pack(normal(40, 96), bits)
        weight = from_packed(packed)
        assert weight.bits == (4 if bits == 4 else 8)
        assert torch.equal(dequantize(weight), unpack(packed))
    q = torch.randint(-8, 8, (5, 64), dtype=torch.int8)
    assert torch.equal(dequantize(pack4(q, torch.ones(5, 2))), q.float())


def test_what_does_not_fit_is_refused() -> None:
    weight, x = make(8), normal(2, 96)
    with pytest.raises(ValueError, match="dense rows of 96"):
        linear(x[:, 1:], weight)
    with pytest.raises(ValueError, match="no gate"):
        linear(normal(2, 192), weight, norm=normal(96), is_gated=True)
    with pytest.raises(ValueError, match="addend"):
        linear(x, weight, addend=normal(2, 39))
    with pytest.raises(ValueError, match="4 bits"):
        pack4(torch.full((1, 32), 8, dtype=torch.int8), torch.ones(1, 1))
    with pytest.raises(ValueError, match="no multiple"):
        from_packed(pack(normal(4, 40)))
    with pytest.raises(ValueError, match="codes: expected"):
        CardWeight(weight.codes, weight.scales, 4)


def test_the_operator_is_one_for_torch() -> None:
    weight, x = make(4), normal(2, 96)
    torch.library.opcheck(
        torch.ops.omni.card_linear.default,
        (x, weight.codes, weight.scales, normal(96), 1e-6, False, normal(40)),
    )
