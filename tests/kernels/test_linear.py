"""The quantised linear against its reference, on every path, and its promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from omni_kernels import linear as lib
from omni_kernels.linear import layout, reference

SHAPES = [(1, 1), (16, 32), (33, 70), (17, 31), (100, 64), (512, 512), (300, 896)]


def make(
    n: int, k: int, m: int, seed: int = 0
) -> tuple[torch.Tensor, lib.PackedWeight, torch.Tensor]:
    """Return x [m, k], a packed weight [n, k] and a bias [n]."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(n, k, generator=generator) * 0.05
    x = torch.randn(m, k, generator=generator)
    x[:, ::17] *= 30  # outliers, as real activations have
    return x, lib.pack(weight), torch.randn(n, generator=generator)


def relative_error(value: torch.Tensor, truth: torch.Tensor) -> float:
    return ((value.double() - truth.double()).norm() / truth.double().norm()).item()


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_linear_equals_the_reference(path: str, n: int, k: int) -> None:
    for m in (1, 2, 3, 4, 5, 6, 7, 13, 64):
        x, weight, bias = make(n, k, m)
        assert relative_error(lib.linear(x, weight), reference.linear(x, weight)) < 5e-7
        got = lib.linear(x, weight, bias)
        assert relative_error(got, reference.linear(x, weight, bias)) < 5e-7


def test_reference_is_the_dequantised_product_within_activation_error() -> None:
    x, weight, bias = make(300, 896, 8)
    truth = x.double() @ lib.unpack(weight).double().T + bias.double()
    assert relative_error(reference.linear(x, weight, bias), truth) < 0.02


def test_whole_numbers_come_out_exact(path: str) -> None:
    # Values whose largest magnitude is 127 are their own quantisation: no rounding anywhere.
    generator = torch.Generator().manual_seed(1)
    q = torch.randint(-127, 128, (40, 96), generator=generator, dtype=torch.int8)
    x = torch.randint(-127, 128, (9, 96), generator=generator).float()
    x[:, ::32] = 127
    weight = lib.pack_quantized(q, torch.ones(40, 3))
    assert torch.equal(lib.linear(x, weight), x @ q.float().T)


@pytest.mark.parametrize("sign", [-1, 1])
def test_extreme_values_do_not_saturate(path: str, sign: int) -> None:
    q = torch.full((16, 64), -128 if sign < 0 else 127, dtype=torch.int8)
    weight = lib.pack_quantized(q, torch.ones(16, 2))
    for value in (-127.0, 127.0):
        x = torch.full((3, 64), value)
        assert torch.equal(lib.linear(x, weight), x @ q.float().T)


def test_a_row_does_not_depend_on_its_neighbours(path: str) -> None:
    x, weight, bias = make(77, 352, 40)
    alone = torch.cat([lib.linear(x[i : i + 1], weight, bias) for i in range(40)])
    for m in (2, 5, 6, 7, 16, 40):
        assert torch.equal(lib.linear(x[:m], weight, bias), alone[:m])
        x[m - 1] = 1e4  # the last row becomes loud: the others must not notice
        assert torch.equal(lib.linear(x[:m], weight, bias)[: m - 1], alone[: m - 1])
        x, _, _ = make(77, 352, 40)


def test_the_number_of_threads_does_not_change_a_bit(path: str) -> None:
    x, weight, bias = make(1000, 896, 33)
    results = []
    for threads in (1, 2, 3, 5):
        lib.set_num_threads(threads)
        assert lib.num_threads() == threads
        results.append(lib.linear(x, weight, bias))
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_out_is_filled_whole_and_nothing_beyond(path: str) -> None:
    x, weight, bias = make(35, 70, 7)
    store = torch.full((9, 35), torch.nan)
    out = store[1:8]
    assert lib.linear(x, weight, bias, out=out) is out
    assert torch.equal(out, lib.linear(x, weight, bias))
    assert store[0].isnan().all()
    assert store[8].isnan().all()


def test_zero_rows_and_zero_values(path: str) -> None:
    x, weight, bias = make(35, 70, 4)
    assert lib.linear(x[:0], weight, bias).shape == (0, 35)
    assert torch.equal(lib.linear(torch.zeros(2, 70), weight, bias), bias.expand(2, 35))
    tiny = lib.linear(torch.full((1, 70), 1e-38), weight)
    assert torch.equal(tiny, torch.zeros(1, 35))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_value_that_is_not_finite_poisons_its_row_only(path: str, bad: float) -> None:
    x, weight, _ = make(35, 70, 5)
    clean = lib.linear(x, weight)
    x[2, 69] = bad
    got = lib.linear(x, weight)
    assert got[2].isnan().all()
    keep = [0, 1, 3, 4]
    assert torch.equal(got[keep], clean[keep])


def test_pack_errs_by_half_a_step_at_most() -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(50, 90, generator=generator) * torch.logspace(-6, 2, 50).unsqueeze(1)
    packed = lib.pack(weight)
    _, scales = layout.split(packed)
    step = scales.float().repeat_interleave(32, dim=1)[:, :90]
    assert ((lib.unpack(packed) - weight).abs() <= step * 0.5001).all()
    normal = weight.abs().amax(dim=1) > 1e-2
    assert relative_error(lib.unpack(packed)[normal], weight[normal]) < 0.006


def test_pack_quantized_keeps_every_bit() -> None:
    generator = torch.Generator().manual_seed(3)
    q = torch.randint(-128, 128, (37, 96), generator=generator, dtype=torch.int8)
    scales = torch.rand(37, 3, generator=generator).half()
    packed = lib.pack_quantized(q, scales.float())
    got_q, got_scales = layout.split(packed)
    assert torch.equal(got_q, q)
    assert torch.equal(got_scales, scales)
    expected = q.float() * scales.float().repeat_interleave(32, dim=1)
    assert torch.equal(lib.unpack(packed), expected)


def test_layout_is_the_documented_one() -> None:
    q = torch.arange(-100, 92, dtype=torch.int16).to(torch.int8).repeat(20, 1)[:, :64]
    q = (q + torch.arange(20, dtype=torch.int8).unsqueeze(1)).contiguous()
    packed = lib.pack_quantized(q, torch.rand(20, 2))
    for n, k in [(0, 0), (3, 5), (15, 31), (16, 32), (19, 63)]:
        byte = (k % 32) // 4 * 64 + (n % 16) * 4 + k % 4
        assert packed.data[n // 16, k // 32, byte].item() == 128 + q[n, k].item()
    assert (packed.scales[1, :, 4:] == 0).all()


def test_packed_arrays_work_from_a_memory_map(path: str, tmp_path: Path) -> None:
    x, weight, _ = make(50, 96, 3)
    file = tmp_path / "weight.bin"
    file.write_bytes(bytes(64) + weight.data.numpy().tobytes() + weight.scales.numpy().tobytes())
    mapped = np.memmap(file, dtype=np.uint8, mode="c", offset=64)
    data, scales = layout.packed_shapes(50, 96)
    cut = int(np.prod(data))
    loaded = lib.PackedWeight(
        torch.from_numpy(mapped[:cut]).view(data),
        torch.from_numpy(mapped[cut:]).view(torch.float16).view(scales),
        50,
        96,
    )
    assert torch.equal(lib.linear(x, loaded), lib.linear(x, weight))


def test_wrong_input_is_refused_with_the_expectation(path: str) -> None:
    x, weight, bias = make(35, 70, 4)
    with pytest.raises(ValueError, match=r"x: expected float32 \[4, 70\]"):
        lib.linear(x[:, :69].contiguous(), weight)
    with pytest.raises(ValueError, match="x: expected float32"):
        lib.linear(x.double(), weight)
    with pytest.raises(ValueError, match="contiguous"):
        lib.linear(x.T.contiguous().T, weight)
    with pytest.raises(ValueError, match="bias"):
        lib.linear(x, weight, bias[:-1])
    with pytest.raises(ValueError, match="out"):
        lib.linear(x, weight, bias, out=torch.empty(4, 36))
    with pytest.raises(ValueError, match="at least 1 thread"):
        lib.set_num_threads(0)


def test_wrong_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        lib.pack(torch.full((2, 32), torch.nan))
    with pytest.raises(ValueError, match="multiple of 32"):
        lib.pack_quantized(torch.zeros(2, 33, dtype=torch.int8), torch.ones(2, 1))
    with pytest.raises(ValueError, match="expected float scales"):
        lib.pack_quantized(torch.zeros(2, 32, dtype=torch.int8), torch.ones(2, 2))
    with pytest.raises(ValueError, match="fp16"):
        lib.pack_quantized(torch.zeros(2, 32, dtype=torch.int8), torch.full((2, 1), 1e6))
    good = lib.pack(torch.randn(20, 40))
    with pytest.raises(ValueError, match="packed data"):
        lib.PackedWeight(good.data[:1], good.scales, 20, 40)
    with pytest.raises(ValueError, match="packed scales"):
        lib.PackedWeight(good.data, good.scales.float(), 20, 40)
