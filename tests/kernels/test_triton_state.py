"""Copies of state for cards against their reference, in Triton's interpreter: these bits only."""

from __future__ import annotations

import interpreted  # noqa: F401
import pytest
import torch
from omni_kernels.state import reference
from omni_kernels.state.triton_copy import copy_pages, copy_slots, fork_slots


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def bits(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Random bits: NaNs with payloads, infinities and denormals among them."""
    wide = torch.int32 if dtype == torch.float32 else torch.int16
    low, high = torch.iinfo(wide).min, torch.iinfo(wide).max
    return torch.randint(low, high, shape, dtype=wide).view(dtype)


def equal_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_snapshot_is_the_slot_bit_by_bit_and_nothing_else(dtype: torch.dtype) -> None:
    live = bits(5, 2, 3, 20, 20), bits(5, 2, 3, 90, dtype=dtype)
    kept = bits(4, 2, 3, 20, 20), bits(4, 2, 3, 90, dtype=dtype)
    expected = tuple(tensor.clone() for tensor in kept)
    before = tuple(tensor.clone() for tensor in live)
    pairs = ints(3, -1, 4, 0, 2), ints(2, 1, 0, 3, -1)
    copy_slots(*live, *kept, *pairs)
    for source, target in zip(live, expected, strict=True):
        reference.copy_slots(source, target, *pairs)
    assert all(map(equal_bits, kept, expected))
    assert all(map(equal_bits, live, before))


def test_a_restored_snapshot_is_what_was_kept() -> None:
    live = bits(3, 2, 2, 16, 16), bits(3, 2, 3, 64)
    kept = bits(2, 2, 2, 16, 16), bits(2, 2, 3, 64)
    before = tuple(tensor.clone() for tensor in live)
    copy_slots(*live, *kept, ints(2), ints(1))
    live[0][2], live[1][2] = 0.0, 0.0
    copy_slots(*kept, *live, ints(1), ints(2))
    assert all(map(equal_bits, live, before))


def test_a_checkpoint_by_itself_has_no_null_slot() -> None:
    live = bits(3, 2, 2, 16, 16), bits(3, 2, 3, 64)
    kept = tuple(torch.zeros_like(tensor[:1]) for tensor in live)
    copy_slots(*live, *kept, ints(2), ints(0))
    assert not any(bool(tensor.view(torch.int32).any()) for tensor in kept)
    copy_slots(*live, *kept, ints(2), ints(0), has_null=False)
    assert all(equal_bits(a[2], b[0]) for a, b in zip(live, kept, strict=True))


def test_a_fork_copies_inside_the_pool() -> None:
    pool = bits(6, 1, 2, 16, 16), bits(6, 1, 3, 64)
    expected = tuple(tensor.clone() for tensor in pool)
    fork_slots(*pool, ints(1, 2), ints(5, 3))
    for tensor in expected:
        reference.copy_slots(tensor, tensor, ints(1, 2), ints(5, 3))
    assert all(map(equal_bits, pool, expected))


def test_a_page_is_copied_in_every_layer() -> None:
    kv = bits(3, 2, 6, 16, 2, 40, dtype=torch.float16)
    expected = kv.clone()
    copy_pages(kv, ints(1, 4, -1), ints(5, 2, 3))
    reference.copy_pages(expected, ints(1, 4, -1), ints(5, 2, 3))
    assert equal_bits(kv, expected)


def test_pools_that_differ_are_refused() -> None:
    a, b = bits(2, 1, 1, 16, 16), bits(2, 1, 3, 64)
    with pytest.raises(ValueError, match="conv: slots of"):
        copy_slots(a, b, a, b.half(), ints(1), ints(1))
    with pytest.raises(ValueError, match="recurrent: slots of"):
        copy_slots(a, b, a[:, :, :, 1:], b, ints(1), ints(1))
    odd = bits(2, 1, 3, 21, dtype=torch.float16)
    with pytest.raises(ValueError, match="whole words"):
        copy_slots(a, odd, a.clone(), odd.clone(), ints(1), ints(1))


def test_the_operators_tell_torch_what_they_change() -> None:
    a, b = torch.randn(3, 1, 1, 16, 16), torch.randn(3, 1, 3, 64)
    pair = ints(1), ints(2)
    torch.library.opcheck(
        torch.ops.omni.copy_slots.default, (a, b, a.clone(), b.clone(), *pair, True)
    )
    torch.library.opcheck(torch.ops.omni.fork_slots.default, (a, b, *pair))
    torch.library.opcheck(
        torch.ops.omni.copy_pages.default, (torch.randn(2, 2, 3, 4, 1, 16), *pair)
    )
