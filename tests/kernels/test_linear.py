"""The quantised linear against its reference, on every path, and its promises."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from omni_kernels import linear as lib
from omni_kernels.linear import layout, reference

SHAPES = [(1, 1), (16, 32), (33, 70), (17, 31), (100, 64), (512, 512), (300, 896)]


class Form(NamedTuple):
    """How weights are stored."""

    bits: lib.Bits
    offsets: bool


FORMS = (Form(8, False), Form(5, False), Form(4, False), Form(5, True), Form(4, True))
every_form = pytest.mark.parametrize(
    "form", FORMS, ids=[f"{bits} bits{' offsets' * offsets}" for bits, offsets in FORMS]
)
every_width = pytest.mark.parametrize("bits", layout.BITS)


def make(
    n: int, k: int, m: int, form: Form = FORMS[0], seed: int = 0
) -> tuple[torch.Tensor, lib.PackedWeight, torch.Tensor]:
    """Return x [m, k], a packed weight [n, k] and a bias [n]."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(n, k, generator=generator) * 0.05
    x = torch.randn(m, k, generator=generator)
    x[:, ::17] *= 30  # outliers, as real activations have
    packed = pack_with_offsets(weight, form.bits) if form.offsets else lib.pack(weight, form.bits)
    assert (packed.bits, packed.has_offsets) == form
    return x, packed, torch.randn(n, generator=generator)


def pack_with_offsets(weight: torch.Tensor, bits: lib.Bits) -> lib.PackedWeight:
    """Quantise [N, K] between each group's least and greatest weight."""
    n, k = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -k % 32)).view(n, -1, 32)
    least, greatest = padded.aminmax(dim=2, keepdim=True)
    steps = (1 << bits) - 1
    scales = (greatest - least) / steps
    q = ((padded - least) / scales).round().clamp(0, steps).to(torch.int8)
    whole = lib.pack_quantized(
        q.flatten(1), scales.squeeze(2), bits, offsets=least.squeeze(2).contiguous()
    )
    return lib.PackedWeight(whole.data, whole.scales, n, k)


def codes_of(bits: lib.Bits) -> tuple[int, int]:
    """Return the least and the greatest weight of ``bits``."""
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def relative_error(value: torch.Tensor, truth: torch.Tensor) -> float:
    return ((value.double() - truth.double()).norm() / truth.double().norm()).item()


@every_form
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_linear_equals_the_reference(path: str, n: int, k: int, form: Form) -> None:
    for m in (1, 2, 3, 4, 5, 6, 7, 13, 64):
        x, weight, bias = make(n, k, m, form)
        assert relative_error(lib.linear(x, weight), reference.linear(x, weight)) < 5e-7
        got = lib.linear(x, weight, bias)
        assert relative_error(got, reference.linear(x, weight, bias)) < 5e-7


@every_form
def test_reference_is_the_dequantised_product_within_activation_error(form: Form) -> None:
    x, weight, bias = make(300, 896, 8, form)
    truth = x.double() @ lib.unpack(weight).double().T + bias.double()
    assert relative_error(reference.linear(x, weight, bias), truth) < 0.02


@every_width
@pytest.mark.parametrize("m", [9, 31])
def test_whole_numbers_come_out_exact(path: str, m: int, bits: lib.Bits) -> None:
    # Values whose largest magnitude is 127 are their own quantisation: no rounding anywhere.
    generator = torch.Generator().manual_seed(1)
    low, high = codes_of(bits)
    q = torch.randint(low, high + 1, (40, 96), generator=generator, dtype=torch.int8)
    x = torch.randint(-127, 128, (m, 96), generator=generator).float()
    x[:, ::32] = 127
    weight = lib.pack_quantized(q, torch.ones(40, 3), bits)
    assert torch.equal(lib.linear(x, weight), x @ q.float().T)


@pytest.mark.parametrize("bits", [4, 5])
@pytest.mark.parametrize("m", [1, 9, 31])
def test_whole_numbers_with_offsets_come_out_exact(path: str, m: int, bits: lib.Bits) -> None:
    generator = torch.Generator().manual_seed(1)
    q = torch.randint(0, 1 << bits, (40, 96), generator=generator, dtype=torch.int8)
    q[3] = (1 << bits) - 1  # against activations of 127 alone: the greatest sums there are
    offsets = torch.randint(-40, 9, (40, 3), generator=generator).float()
    x = torch.randint(-127, 128, (m, 96), generator=generator).float()
    x[:, ::32] = 127
    x[0] = 127
    weight = lib.pack_quantized(q, torch.ones(40, 3), bits, offsets=offsets)
    whole = q.float() + offsets.repeat_interleave(32, dim=1)
    assert torch.equal(lib.unpack(weight), whole)
    assert torch.equal(lib.linear(x, weight), x @ whole.T)


@every_width
@pytest.mark.parametrize("end", [0, 1])
def test_extreme_values_do_not_saturate(path: str, end: int, bits: lib.Bits) -> None:
    q = torch.full((16, 64), codes_of(bits)[end], dtype=torch.int8)
    weight = lib.pack_quantized(q, torch.ones(16, 2), bits)
    for value in (-127.0, 127.0):
        for m in (3, 40):
            x = torch.full((m, 64), value)
            assert torch.equal(lib.linear(x, weight), x @ q.float().T)


@every_form
def test_a_row_does_not_depend_on_its_neighbours(path: str, form: Form) -> None:
    x, weight, bias = make(77, 352, 40, form)
    alone = torch.cat([lib.linear(x[i : i + 1], weight, bias) for i in range(40)])
    for m in (2, 5, 6, 7, 16, 25, 40):
        assert torch.equal(lib.linear(x[:m], weight, bias), alone[:m])
        x[m - 1] = 1e4  # the last row becomes loud: the others must not notice
        assert torch.equal(lib.linear(x[:m], weight, bias)[: m - 1], alone[: m - 1])
        x, _, _ = make(77, 352, 40)


@every_form
def test_a_row_of_any_loudness_has_the_bits_it_has_alone(path: str, form: Form) -> None:
    x, weight, bias = make(35, 70, 24, form)
    x *= torch.logspace(-37, 30, 24).unsqueeze(1)  # from below what counts as zero
    x[5, 32:64] = 0.0
    x[7] = (torch.arange(70) - 35) / 2  # ties in rounding
    x[7, ::32] = 127.0
    alone = torch.cat([lib.linear(row, weight, bias) for row in x.split(1)])
    for m in range(2, 25):
        assert torch.equal(lib.linear(x[:m], weight, bias), alone[:m])


@pytest.mark.parametrize("bits", [4, 5])
def test_the_stored_width_does_not_change_a_bit(path: str, bits: lib.Bits) -> None:
    x, weight, bias = make(77, 352, 40, Form(bits, False))
    wide = lib.pack_quantized(*layout.split(weight))
    assert wide.bits == 8
    for m in (1, 6, 20, 40):
        assert torch.equal(lib.linear(x[:m], weight, bias), lib.linear(x[:m], wide, bias))


@every_form
def test_more_rows_than_one_pass_holds_keep_their_bits(path: str, form: Form) -> None:
    x, weight, bias = make(40, 1100, 300, form)  # 3 spans of groups, 2 passes of rows
    whole = lib.linear(x, weight, bias)
    cut = torch.cat([lib.linear(part, weight, bias) for part in x.split((1, 26, 2, 271))])
    assert torch.equal(whole, cut)


@every_form
def test_the_number_of_threads_does_not_change_a_bit(path: str, form: Form) -> None:
    x, weight, bias = make(1000, 896, 33, form)
    results = []
    for threads in (1, 2, 3, 5):
        lib.set_num_threads(threads)
        assert lib.num_threads() == threads
        results.append(lib.linear(x, weight, bias))
    assert all(torch.equal(results[0], other) for other in results[1:])


@every_form
def test_out_is_filled_whole_and_nothing_beyond(path: str, form: Form) -> None:
    x, weight, bias = make(35, 70, 7, form)
    store = torch.full((9, 35), torch.nan)
    out = store[1:8]
    assert lib.linear(x, weight, bias, out=out) is out
    assert torch.equal(out, lib.linear(x, weight, bias))
    assert store[0].isnan().all()
    assert store[8].isnan().all()


@every_form
def test_zero_rows_and_zero_values(path: str, form: Form) -> None:
    x, weight, bias = make(35, 70, 4, form)
    assert lib.linear(x[:0], weight, bias).shape == (0, 35)
    assert torch.equal(lib.linear(torch.zeros(2, 70), weight, bias), bias.expand(2, 35))
    tiny = lib.linear(torch.full((1, 70), 1e-38), weight)
    assert torch.equal(tiny, torch.zeros(1, 35))


@every_form
@pytest.mark.parametrize("m", [5, 30])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_value_that_is_not_finite_poisons_its_row_only(
    path: str, bad: float, m: int, form: Form
) -> None:
    x, weight, _ = make(35, 70, m, form)
    clean = lib.linear(x, weight)
    x[2, 69] = bad
    got = lib.linear(x, weight)
    assert got[2].isnan().all()
    keep = [row for row in range(m) if row != 2]
    assert torch.equal(got[keep], clean[keep])


@every_width
def test_pack_errs_by_half_a_step_at_most(bits: lib.Bits) -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(50, 90, generator=generator) * torch.logspace(-6, 2, 50).unsqueeze(1)
    packed = lib.pack(weight, bits)
    assert packed.bits == bits
    _, scales = layout.split(packed)
    step = scales.float().repeat_interleave(32, dim=1)[:, :90]
    assert ((lib.unpack(packed) - weight).abs() <= step * 0.5001).all()
    normal = weight.abs().amax(dim=1) > 1e-2
    assert relative_error(lib.unpack(packed)[normal], weight[normal]) < 0.006 * 2 ** (8 - bits)


@every_width
def test_pack_quantized_keeps_every_bit(bits: lib.Bits) -> None:
    generator = torch.Generator().manual_seed(3)
    low, high = codes_of(bits)
    q = torch.randint(low, high + 1, (37, 96), generator=generator, dtype=torch.int8)
    scales = torch.rand(37, 3, generator=generator).half()
    packed = lib.pack_quantized(q, scales.float(), bits)
    assert packed.nbytes == 3 * 3 * (64 * bits + 32)
    got_q, got_scales = layout.split(packed)
    assert torch.equal(got_q, q)
    assert torch.equal(got_scales, scales)
    expected = q.float() * scales.float().repeat_interleave(32, dim=1)
    assert torch.equal(lib.unpack(packed), expected)


@pytest.mark.parametrize("bits", [4, 5])
def test_offsets_lie_behind_the_scales_of_their_group(bits: lib.Bits) -> None:
    generator = torch.Generator().manual_seed(6)
    q = torch.randint(0, 1 << bits, (20, 64), generator=generator, dtype=torch.int8)
    scales, offsets = torch.rand(2, 20, 2, generator=generator).half()
    packed = lib.pack_quantized(q, scales, bits, offsets=-offsets)
    assert packed.scales.shape == (2, 2, 2, 16)
    for n, g in [(0, 0), (15, 1), (16, 0), (19, 1)]:
        assert packed.scales[n // 16, g, 0, n % 16] == scales[n, g]
        assert packed.scales[n // 16, g, 1, n % 16] == -offsets[n, g]
    got_q, got_scales, got_offsets = layout.parts(packed)
    assert torch.equal(got_q, q)
    assert torch.equal(got_scales, scales)
    assert got_offsets is not None
    assert torch.equal(got_offsets, -offsets)
    with pytest.raises(ValueError, match="has offsets"):
        layout.split(packed)


@pytest.mark.parametrize(
    ("kind", "bits"),
    [
        (GGMLQuantizationType.Q4_0, 4),
        (GGMLQuantizationType.Q5_0, 5),
        (GGMLQuantizationType.Q8_0, 8),
    ],
)
def test_blocks_of_gguf_transfer_exactly(
    path: str, kind: GGMLQuantizationType, bits: lib.Bits
) -> None:
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(50, 96, generator=generator)
    weight[7, 32:64] = 0  # a group whose scale is 0
    blocks = quantize(weight.numpy(), kind).reshape(50, 3, -1)
    truth = torch.from_numpy(dequantize(blocks.reshape(50, -1), kind))
    scales = torch.from_numpy(np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0])
    step = scales.float().repeat_interleave(32, dim=1)
    q = torch.where(step == 0, 0.0, truth / step).to(torch.int8)  # exact: a code times fp16
    packed = lib.pack_quantized(q, scales, bits)
    assert torch.equal(lib.unpack(packed), truth)
    # One activation of 127 in a row of zeros is exact: the product shows the weights themselves.
    x = torch.zeros(96, 96)
    x.fill_diagonal_(127.0)
    assert torch.equal(lib.linear(x, packed), 127.0 * truth.T)


def test_layout_of_8_bits_is_the_documented_one() -> None:
    q = torch.arange(-100, 92, dtype=torch.int16).to(torch.int8).repeat(20, 1)[:, :64]
    q = (q + torch.arange(20, dtype=torch.int8).unsqueeze(1)).contiguous()
    packed = lib.pack_quantized(q, torch.rand(20, 2))
    for n, k in [(0, 0), (3, 5), (15, 31), (16, 32), (19, 63)]:
        byte = (k % 32) // 4 * 64 + (n % 16) * 4 + k % 4
        assert packed.data[n // 16, k // 32, byte].item() == 128 + q[n, k].item()
    assert (packed.scales[1, :, 4:] == 0).all()


def test_layout_of_4_and_5_bits_is_the_documented_one() -> None:
    generator = torch.Generator().manual_seed(5)
    q5 = torch.randint(-16, 16, (20, 64), generator=generator, dtype=torch.int8)
    q4 = (q5 >> 1).contiguous()
    four = lib.pack_quantized(q4, torch.ones(20, 2), 4).data
    five = lib.pack_quantized(q5, torch.ones(20, 2), 5).data
    assert (four.shape, five.shape) == ((2, 2, 256), (2, 2, 320))
    for n, k in [(0, 0), (3, 5), (15, 15), (15, 16), (15, 31), (16, 32), (19, 63)]:
        step, lane = k % 32 // 4, n % 16 * 4 + k % 4
        shift = 4 * (step // 4)
        for data, u in ((four, 8 + q4[n, k].item()), (five, 16 + q5[n, k].item())):
            group = data[n // 16, k // 32]
            assert int(group[step % 4 * 64 + lane]) >> shift & 15 == int(u) & 15
        assert int(five[n // 16, k // 32, 256 + lane]) >> step & 1 == int(16 + q5[n, k]) >> 4


@every_form
def test_packed_arrays_work_from_a_memory_map(path: str, tmp_path: Path, form: Form) -> None:
    x, weight, _ = make(50, 96, 3, form)
    file = tmp_path / "weight.bin"
    file.write_bytes(bytes(64) + weight.data.numpy().tobytes() + weight.scales.numpy().tobytes())
    mapped = np.memmap(file, dtype=np.uint8, mode="c", offset=64)
    data, scales = layout.packed_shapes(50, 96, *form)
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
    wide = torch.tensor([[-8, 8] * 16], dtype=torch.int8)
    with pytest.raises(ValueError, match=r"4 bits lie in -8 \.\. 7, got -8 \.\. 8"):
        lib.pack_quantized(wide, torch.ones(1, 1), 4)
    ones = torch.ones(1, 1)
    with pytest.raises(ValueError, match=r"4 bits lie in 0 \.\. 15, got -8"):
        lib.pack_quantized(wide, ones, 4, offsets=ones)
    with pytest.raises(ValueError, match="expected float offsets"):
        lib.pack_quantized(wide, ones, 8, offsets=ones)
    with pytest.raises(ValueError, match="offset is not finite in fp16"):
        lib.pack_quantized(wide.abs(), ones, 4, offsets=1e6 * ones)
    with pytest.raises(ValueError, match=r"packed data: expected uint8 \[2, 2, 512\]"):
        lib.PackedWeight(good.data[..., :384].contiguous(), good.scales, 20, 40)
