"""The short convolution and the chunked long prefill for cards, in Triton's interpreter."""

from __future__ import annotations

import interpreted  # noqa: F401
import pytest
import torch
from omni_kernels.gated_delta import triton_ops as ops
from omni_kernels.gated_delta import triton_reference
from omni_kernels.gated_delta.triton_conv import short_conv
from omni_kernels.gated_delta.triton_state import DeltaRows, DeltaState
from test_triton_gated_delta import NUM_SLOTS, Case, error, ints

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])


def rows_of(slots: list[int], lengths: list[int]) -> DeltaRows:
    return DeltaRows(
        slots=ints(slots),
        cu_seqlens=ints([0, *torch.tensor(lengths).cumsum(0).tolist()]),
        counters=torch.zeros(NUM_SLOTS * 2, dtype=torch.int32),
    )


def run_long(case: Case, x: torch.Tensor, slots: list[int], lengths: list[int]) -> torch.Tensor:
    state = DeltaState(recurrent=case.recurrent[:, 0], conv=case.conv[:, 0])
    rows = rows_of(slots, lengths)
    return ops.prefill_long(x, case.weights(0), state, rows, max_new_tokens=max(lengths))


@DTYPES
@pytest.mark.parametrize("lengths", [[1, 2, 3], [5, 0, 33], [70]], ids=str)
def test_the_convolution_equals_the_reference(lengths: list[int], dtype: torch.dtype) -> None:
    case = Case((1, 2), dtype)
    slots = [3, 1, 4][: len(lengths)]
    x, taps = case.rows(sum(lengths)), case.ops[0].taps
    conv = case.conv[:, 0].double()
    cu_seqlens = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    raw = x[:, : case.channels].double()
    expected = triton_reference.short_conv(raw, taps.double(), conv, slots, cu_seqlens)
    got = short_conv(x, taps, case.conv[:, 0], rows_of(slots, lengths), max_new_tokens=max(lengths))
    assert error(got, expected) < 1e-6
    assert torch.equal(case.conv[:, 0].double(), conv)


@pytest.mark.parametrize(
    ("lengths", "heads", "dtype"),
    [
        ([64], (2, 2), torch.float32),
        ([65, 1, 130], (1, 2), torch.float32),
        ([3, 66], (1, 1), torch.float16),
    ],
    ids=["one", "ragged", "fp16"],
)
def test_chunks_equal_the_reference(
    lengths: list[int], heads: tuple[int, int], dtype: torch.dtype
) -> None:
    case = Case(heads, dtype)
    slots = [3, 1, 4][: len(lengths)]
    x = case.rows(sum(lengths))
    out, recurrent, conv = case.truth(x, slots, lengths)
    untouched = case.recurrent[[0, 2]].clone()
    got = run_long(case, x, slots, lengths)
    assert error(got, out) < (1e-3 if dtype == torch.float16 else 5e-6)
    assert error(case.recurrent[slots, 0], recurrent[slots]) < 5e-6
    assert torch.equal(case.conv[:, 0].double(), conv)
    assert torch.equal(case.recurrent[[0, 2]], untouched)


def test_keys_all_alike_and_almost_no_decay_stay_close() -> None:
    case = Case((1, 2))
    x = case.rows(1).repeat(128, 1) + 1e-3 * case.rows(128)
    decay = slice(case.channels + 2, case.channels + 4)
    x[:, decay] = -30.0  # softplus(-30) is about 1e-13
    x[:, case.channels : case.channels + 2] = 6.0  # beta is about 1
    out, recurrent, _ = case.truth(x, [2], [128])
    assert error(run_long(case, x, [2], [128]), out) < 1e-4
    assert error(case.recurrent[2, 0], recurrent[2]) < 1e-4


def test_forgetting_everything_neither_overflows_nor_divides_by_nothing() -> None:
    case = Case((1, 1))
    x = case.rows(70)
    x[:, case.channels + 1] = 200.0
    out, recurrent, _ = case.truth(x, [3], [70])
    assert error(run_long(case, x, [3], [70]), out) < 5e-6
    assert error(case.recurrent[3, 0], recurrent[3]) < 5e-6


def test_decoding_goes_on_where_the_chunks_ended() -> None:
    case = Case((1, 1))
    x = case.rows(68)
    out, recurrent, _ = case.truth(x, [2], [68])
    got = run_long(case, x[:66], [2], [66])
    rest = case.run(x[66:], [2], [2])
    assert error(torch.cat([got, rest]), out) < 5e-6
    assert error(case.recurrent[2, 0], recurrent[2]) < 5e-6


def test_nobodys_slot_is_neither_read_nor_written() -> None:
    case = Case((1, 1))
    recurrent, conv = case.recurrent.clone(), case.conv.clone()
    run_long(case, case.rows(8), [0, -1], [4, 4])
    assert torch.equal(case.recurrent, recurrent)
    assert torch.equal(case.conv, conv)


def test_the_operators_tell_torch_what_they_change() -> None:
    case = Case()
    x, w = case.rows(3), case.weights(0)
    conv, recurrent = case.conv[:, 0], case.recurrent[:, 0]
    torch.library.opcheck(
        torch.ops.omni.short_conv.default, (x, w.taps, conv, ints([1]), ints([0, 3]), 3)
    )
    torch.library.opcheck(
        torch.ops.omni.gated_delta_long.default,
        (x, w.taps, w.a_log, w.dt_bias, w.norm, w.eps, recurrent, conv, ints([1]), ints([0, 3]), 3),
        test_utils=("test_schema", "test_faketensor"),  # the others repeat these four launches
    )
