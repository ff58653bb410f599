"""Copies of states, on every path."""

from __future__ import annotations

import pytest
import torch
from omni_kernels import library
from omni_kernels.memory import copy


@pytest.mark.parametrize("size", [0, 1, 13, 65537, 4 * 2**20 - 1, 4 * 2**20, 4 * 2**20 + 131])
@pytest.mark.parametrize("offset", [0, 1, 16])
def test_copy_writes_every_byte_and_no_other(path: str, size: int, offset: int) -> None:
    source = torch.randint(1, 256, (size,), dtype=torch.uint8)
    memory = torch.zeros(size + 128, dtype=torch.uint8)
    out = memory[offset : offset + size]
    for threads in (1, 3):
        memory.zero_()
        library.set_num_threads(threads)
        assert copy(source, out) is out
        assert torch.equal(out, source)
        assert not memory[:offset].any()
        assert not memory[offset + size :].any()


def test_copy_moves_one_slot_to_another(path: str) -> None:
    slots = torch.randn(4, 3, 2, 8, 8)
    before = slots.clone()
    copy(slots[1], slots[3])
    assert torch.equal(slots[3], before[1])
    assert torch.equal(slots[:3], before[:3])


def test_a_copy_that_would_go_wrong_is_refused(path: str) -> None:
    x = torch.arange(12.0)
    for message, source, out in [
        ("cannot copy", x[:4], x[4:9]),
        ("cannot copy", x[:4], x[4:8].double()),
        ("share memory", x[:4], x[2:6]),
        ("source: expected a contiguous", x[:8:2], x[8:]),
        ("out: expected a contiguous", x[:4], x[4::2]),
    ]:
        with pytest.raises(ValueError, match=message):
            copy(source, out)
    assert torch.equal(x, torch.arange(12.0))
