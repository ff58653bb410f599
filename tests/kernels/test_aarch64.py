"""The kernels as ARM processors compute them, under emulation, against the same references."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from emulated import NEWER, OLDER, Emulated, build
from omni_kernels import library
from omni_kernels import linear as lib
from omni_kernels.attention import reference as attention
from omni_kernels.gated_delta import GatedDelta
from omni_kernels.gated_delta import reference as gated_delta
from omni_kernels.linear import layout
from omni_kernels.linear import reference as linear
from omni_kernels.rowwise import reference as rowwise

SCALAR, NEON = library._ISAS.index("scalar"), library._ISAS.index("neon")
FORMS: tuple[tuple[lib.Bits, bool], ...] = (
    *((8, False), (5, False), (4, False)),
    *((5, True), (4, True)),
)
every_form = pytest.mark.parametrize(
    ("bits", "offsets"), FORMS, ids=[f"{bits} bits{' offsets' * more}" for bits, more in FORMS]
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("aarch64"))


@pytest.fixture(scope="module")
def newer(program: Path) -> Iterator[Emulated]:
    """A processor with dot products."""
    process = Emulated(program, NEWER)
    yield process
    process.close()


@pytest.fixture(params=[SCALAR, NEON], ids=["scalar", "neon"])
def arm(newer: Emulated, request: pytest.FixtureRequest) -> Emulated:
    assert newer.call("omni_set_isa", request.param) == 0
    newer.call("omni_set_num_threads", 2)
    return newer


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative_error(value: torch.Tensor, truth: torch.Tensor) -> float:
    return ((value.double() - truth.double()).norm() / truth.double().norm()).item()


def make(n: int, k: int, bits: lib.Bits, offsets: bool) -> lib.PackedWeight:
    """Quantise a random weight [n, k]; with offsets its numbers are random themselves."""
    if not offsets:
        return lib.pack(normal(n, k) * 0.05, bits)
    groups = -(-k // 32)
    generator = torch.Generator().manual_seed(1)
    q = torch.randint(0, 1 << bits, (n, groups * 32), generator=generator, dtype=torch.int8)
    q[:, k:] = 0
    scales, shifts = torch.rand(2, n, groups, generator=generator) * 0.01
    whole = lib.pack_quantized(q, scales, bits, offsets=-10 * shifts)
    return lib.PackedWeight(whole.data, whole.scales, n, k)


def product(
    arm: Emulated, x: torch.Tensor, weight: lib.PackedWeight, bias: torch.Tensor | None = None
) -> torch.Tensor:
    out = torch.full((len(x), weight.out_features), torch.nan)
    form = (weight.bits, int(weight.has_offsets))
    status = arm.call(
        "omni_linear",
        *(x.contiguous(), *x.shape, weight.data, weight.scales, *form, weight.out_features),
        *(bias, out),
    )
    assert status == 0
    return out


def test_dot_products_are_used_where_the_processor_has_them(program: Path, newer: Emulated) -> None:
    older = Emulated(program, OLDER)
    for process, best in ((newer, NEON), (older, SCALAR)):
        assert process.call("omni_version") == library._VERSION
        assert process.call("omni_best_isa") == best
        for isa, name in enumerate(library._ISAS):
            runs = name == "scalar" or isa == best
            assert process.call("omni_runs_isa", isa) == runs
            assert process.call("omni_set_isa", isa) == (0 if runs else -1)
    x, weight = normal(7, 70), make(33, 70, 5, False)
    assert relative_error(product(older, x, weight), linear.linear(x, weight)) < 5e-7
    older.close()


@every_form
def test_linear_equals_the_reference(arm: Emulated, bits: lib.Bits, offsets: bool) -> None:
    for n, k in [(1, 1), (16, 32), (33, 70), (17, 31), (100, 64), (77, 896)]:
        weight, bias = make(n, k, bits, offsets), normal(n, seed=2)
        for m in (1, 2, 3, 4, 5, 7, 13, 64):
            x = normal(m, k, seed=3)
            x[:, ::17] *= 30  # outliers, as real activations have
            assert relative_error(product(arm, x, weight), linear.linear(x, weight)) < 5e-7
            truth = linear.linear(x, weight, bias)
            assert relative_error(product(arm, x, weight, bias), truth) < 5e-7


@every_form
def test_neon_differs_from_scalar_by_rounding_alone(
    newer: Emulated, bits: lib.Bits, offsets: bool
) -> None:
    weight = make(100, 1100, bits, offsets)
    for m in (1, 4, 40):
        results = []
        for isa in (SCALAR, NEON):
            assert newer.call("omni_set_isa", isa) == 0
            results.append(product(newer, normal(m, 1100, seed=3), weight))
        assert relative_error(results[1], results[0]) < 5e-7
        assert not torch.equal(results[1], results[0])  # fused multiply-adds: really two paths


@every_form
def test_extreme_whole_numbers_come_out_exact(arm: Emulated, bits: lib.Bits, offsets: bool) -> None:
    low, high = (0, (1 << bits) - 1) if offsets else (-(1 << bits - 1), (1 << bits - 1) - 1)
    generator = torch.Generator().manual_seed(4)
    q = torch.randint(low, high + 1, (40, 96), generator=generator, dtype=torch.int8)
    q[3], q[4] = low, high
    shifts = torch.randint(-40, 9, (40, 3), generator=generator).float() if offsets else None
    weight = lib.pack_quantized(q, torch.ones(40, 3), bits, offsets=shifts)
    for m in (3, 31):
        x = torch.randint(-127, 128, (m, 96), generator=generator).float()
        x[:, ::32] = 127
        x[0], x[1] = 127, -127
        assert torch.equal(product(arm, x, weight), x @ lib.unpack(weight).T)


def test_activations_between_two_numbers_go_to_the_even_one(arm: Emulated) -> None:
    weight = lib.pack_quantized(torch.ones(1, 32, dtype=torch.int8), torch.ones(1, 1))
    for value, even in ((0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (126.5, 126)):
        x = torch.zeros(1, 32)
        x[0, :2] = torch.tensor([127.0, value])
        assert product(arm, x, weight).item() == 127 + even


@every_form
def test_a_row_does_not_depend_on_its_neighbours(
    arm: Emulated, bits: lib.Bits, offsets: bool
) -> None:
    weight, x = make(77, 1100, bits, offsets), normal(40, 1100, seed=5)
    whole = product(arm, x, weight)
    assert torch.equal(whole, torch.cat([product(arm, part, weight) for part in x.split(1)]))
    assert torch.equal(whole[:6], product(arm, x[:6], weight))
    if bits < 8 and not offsets:
        wide = lib.pack_quantized(*layout.split(weight))
        padded = torch.nn.functional.pad(x, (0, wide.in_features - 1100))
        assert torch.equal(product(arm, padded, wide), whole)
    for bad in (torch.nan, torch.inf, -torch.inf):
        x[2, 69] = bad
        got = product(arm, x, weight)
        assert got[2].isnan().all()
        assert torch.equal(got[3:], whole[3:])
    assert torch.equal(product(arm, torch.full((1, 1100), 1e-38), weight), torch.zeros(1, 77))


def test_attention_equals_the_reference(arm: Emulated) -> None:
    computed, new, page_tokens, kv_heads = (63, 530, 0), (2, 1, 70), 16, 2
    lengths = [a + b for a, b in zip(computed, new, strict=True)]
    counts = [-(-length // page_tokens) for length in lengths]
    starts = torch.tensor([0, *new]).cumsum(0)
    offsets = torch.tensor([0, *counts]).cumsum(0)
    pages = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(0))
    table = [ids.tolist() for ids in pages.split(counts)]
    for heads, dim in ((6, 4), (2, 64), (6, 80)):
        q = 2 * normal(sum(new), heads, dim)
        kv = normal(2, sum(counts), page_tokens, kv_heads, dim, seed=1)
        out = torch.full_like(q, torch.nan)
        status = arm.call(
            "omni_paged_attention",
            *(q, heads * dim, kv[0], kv[1], out, starts, torch.tensor(computed), pages, offsets),
            *(len(new), page_tokens, heads, kv_heads, dim, dim**-0.5),
        )
        assert status == 0
        truth = attention.paged_attention(
            q.double(), kv.double(), starts.tolist(), computed, table, dim**-0.5
        )
        assert relative_error(out, truth) < 2e-6


@pytest.mark.parametrize(("key_dim", "value_dim"), [(4, 12), (32, 16), (128, 128)])
def test_gated_delta_equals_the_reference(arm: Emulated, key_dim: int, value_dim: int) -> None:
    heads, value_heads, taps = 2, 4, 4
    op = GatedDelta(
        num_key_heads=heads,
        num_value_heads=value_heads,
        key_dim=key_dim,
        value_dim=value_dim,
        conv_weight=normal(2 * heads * key_dim + value_heads * value_dim, taps, seed=1) * 0.5,
        a_log=normal(value_heads, seed=2),
        dt_bias=normal(value_heads, seed=3),
        norm=1 + 0.1 * normal(value_dim, seed=4),
        eps=1e-6,
    )
    recurrent, conv = normal(3, *op.recurrent_shape) * 0.3, normal(3, *op.conv_shape, seed=5)
    journal = torch.full((3, 80, op.journal_width), torch.nan)
    x, slots, starts, offsets = normal(66, op.input_width, seed=6), (2, 0), (7, -1), (0, 65, 66)
    exact = recurrent.double(), conv.double()
    truth = gated_delta.gated_delta_net(x.double(), op, *exact, slots, offsets)
    out = torch.full((66, op.output_width), torch.nan)
    status = arm.call(
        "gated_delta",
        *(heads, value_heads, key_dim, value_dim, taps),
        *(op.taps, op.rate, op.dt_bias, op.norm, op.eps),
        *(x, op.input_width, recurrent, recurrent[0].numel(), conv, conv[0].numel()),
        *(journal, journal[0].numel(), op.journal_width),
        *(torch.tensor(slots), torch.tensor(starts), torch.tensor(offsets), 2, out),
    )
    assert status == 0
    assert relative_error(out, truth) < 3e-6
    assert relative_error(recurrent, exact[0]) < 1e-6
    assert torch.equal(conv.double(), exact[1])
    assert torch.equal(journal[2, 7:72], x[:65, : op.journal_width])
    assert journal[[0, 1]].isnan().all()


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 7), (300, 400)])
def test_rowwise_operations_equal_their_references(arm: Emulated, rows: int, columns: int) -> None:
    x, weight, bias = normal(rows, columns) + 3, normal(columns), normal(columns, seed=1)
    out = torch.full_like(x, torch.nan)
    arm.call("omni_rms_norm", x, weight, rows, columns, 1e-6, out)
    truth = rowwise.rms_norm(x.double(), weight.double(), 1e-6)
    assert relative_error(out, truth) < 5e-7
    arm.call("omni_layer_norm", x, weight, bias, rows, columns, 1e-5, out)
    truth = rowwise.layer_norm(x.double(), weight.double(), bias.double(), 1e-5)
    assert relative_error(out, truth) < 2e-6
    gate_up = normal(rows, 2 * columns) * 4
    arm.call("omni_silu_mul", gate_up, rows, columns, out)
    assert relative_error(out, rowwise.silu_mul(gate_up.double())) < 5e-7
    gate = normal(rows, columns, seed=2) * 4
    truth = rowwise.sigmoid_mul(x.double(), gate.double())
    arm.call("omni_sigmoid_mul", x, gate, rows, columns, columns)
    assert relative_error(x, truth) < 5e-7


def test_heads_are_normed_rotated_and_stored(arm: Emulated) -> None:
    rows, heads, kv_heads, dim, half = 9, 4, 2, 80, 10
    qkv, angles = normal(rows, heads + 2 * kv_heads, dim) + 0.5, normal(rows, half) * 3
    before, both = qkv.clone(), heads + kv_heads
    norms = normal(dim, seed=1) + 1, normal(dim, seed=2) + 1
    exact = before[:, :both].double()
    for head in range(both):
        norm = norms[head >= heads].double()
        exact[:, head] = rowwise.rms_norm(exact[:, head], norm, 1e-6)
    exact = rowwise.rotate(exact, angles.double().cos(), angles.double().sin())
    k, v = torch.full((2, 12, kv_heads, dim), torch.nan).unbind()
    status = arm.call(
        "omni_norm_rotate_and_store",
        *(qkv, rows, qkv[0].numel(), heads, kv_heads, dim, half, *norms, 1e-6),
        *(angles.cos(), angles.sin(), torch.arange(3, 3 + rows), 12, k, v),
    )
    assert status == 0
    assert relative_error(qkv[:, :heads], exact[:, :heads]) < 5e-7
    assert relative_error(k[3:], exact[:, heads:]) < 5e-7
    assert torch.equal(v[3:], before[:, both:])
    assert k[:3].isnan().all()


def test_copies_are_whole(arm: Emulated) -> None:
    source, target = normal(3, 1001), torch.zeros(3, 1001)
    arm.call("omni_copy", target, source, source.nbytes - 4)
    assert torch.equal(target.view(-1)[:-1], source.view(-1)[:-1])
    assert target[2, 1000] == 0
