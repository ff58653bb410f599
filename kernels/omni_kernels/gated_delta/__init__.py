"""Gated DeltaNet: what lies between the two projections of a linear-attention layer.

Causal convolution, gates, delta rule and gated norm in one call on the state of each sequence's
slot. Called by the backbone. A row's result and the state it leaves have the same bits alone, among
other sequences, in any slot, in any cut of a prompt into chunks, and for any number of threads; so
replaying tokens equals having decoded them.

Letters: N tokens, H key heads, HV value heads, K and V widths of a key and a value head, C channels
of the convolution, W its width (see ``op.py``).
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from itertools import pairwise

import torch

from omni_kernels import library
from omni_kernels.gated_delta import reference
from omni_kernels.gated_delta.op import GatedDelta
from omni_kernels.tensors import require

__all__ = ["GatedDelta", "gated_delta_net", "replay"]


def gated_delta_net(
    x: torch.Tensor,
    op: GatedDelta,
    *,
    recurrent: torch.Tensor,
    conv: torch.Tensor,
    slots: Sequence[int],
    cu_seqlens: Sequence[int],
    journal: torch.Tensor | None = None,
    journal_starts: Sequence[int] | None = None,
) -> torch.Tensor:
    """Run the new tokens of each sequence through its slot's state.

    Args:
        x: fp32 [N, C + 2 HV + HV V], rows dense: qkv (before the convolution) | b | a | z, the
            fused projection of each token; qkv is q of all heads, then k, then v.
        op: the layer's weights.
        recurrent: fp32 [slots, HV, V, K], one layer's view: slots may lie apart, the inside of a
            slot is contiguous. The slots named are advanced in place.
        conv: fp32 [slots, W - 1, C], viewed likewise: raw qkv of the last W - 1 tokens, oldest
            first; all zero before the first. Advanced in place.
        slots: [B] slot of each sequence, all different.
        cu_seqlens: B + 1 offsets into N, from 0 to N.
        journal: fp32 [slots, capacity, C + 2 HV], viewed likewise (rows may lie apart too), or
            None. Receives the tokens' raw qkv | b | a, from which :func:`replay` can repeat them.
        journal_starts: [B] journal row of each sequence's first new token; -1: store none.

    Returns:
        fp32 [N, HV V], ready for the output projection. A value that is not finite makes its own
        sequence's later tokens and state NaN, and no other's.

    Raises:
        ValueError: a shape, type, slot, offset or journal row does not fit; nothing has changed.
    """
    _check(x, op, recurrent, conv, slots, cu_seqlens)
    starts = _check_journal(op, journal, journal_starts, recurrent.shape[0], slots, cu_seqlens)
    kernels = library.cpu()
    if kernels is None:
        return reference.gated_delta_net(x, op, recurrent, conv, slots, cu_seqlens, journal, starts)
    out = torch.empty(len(x), op.output_width)
    offsets, where = array("q", cu_seqlens), array("q", slots)
    first_rows = None if starts is None else array("q", starts)
    kernels.omni_gated_delta(
        ctypes.byref(op.layer),
        x.data_ptr(),
        x.stride(0),
        recurrent.data_ptr(),
        recurrent.stride(0),
        conv.data_ptr(),
        conv.stride(0),
        None if journal is None or first_rows is None else journal.data_ptr(),
        0 if journal is None else journal.stride(0),
        0 if journal is None else journal.stride(1),
        where.buffer_info()[0],
        offsets.buffer_info()[0],
        None if first_rows is None else first_rows.buffer_info()[0],
        len(slots),
        out.data_ptr(),
    )
    return out


def replay(
    op: GatedDelta, rows: torch.Tensor, *, recurrent: torch.Tensor, conv: torch.Tensor
) -> None:
    """Advance one slot by journalled tokens, to the same bits as having computed them.

    Args:
        op: the layer's weights.
        rows: fp32 [T, C + 2 HV], rows dense: journal rows of one sequence, oldest first.
        recurrent: fp32 [HV, V, K], contiguous: the state before the first row. Advanced in place.
        conv: fp32 [W - 1, C], contiguous, likewise.

    Raises:
        ValueError: a shape or type does not fit.
    """
    _check_rows("rows", rows, op.journal_width)
    require("recurrent", recurrent, (op.num_value_heads, op.value_dim, op.key_dim))
    require("conv", conv, (op.conv_width - 1, op.channels))
    kernels = library.cpu()
    if kernels is None:
        reference.replay(op, rows, recurrent, conv)
        return
    numbers = array("q", (0, 0, len(rows)))  # slot 0, offsets 0 and T
    slots = numbers.buffer_info()[0]
    kernels.omni_gated_delta(
        ctypes.byref(op.layer),
        rows.data_ptr(),
        rows.stride(0),
        recurrent.data_ptr(),
        0,
        conv.data_ptr(),
        0,
        None,
        0,
        0,
        slots,
        slots + numbers.itemsize,
        None,
        1,
        None,
    )


def _check(
    x: torch.Tensor,
    op: GatedDelta,
    recurrent: torch.Tensor,
    conv: torch.Tensor,
    slots: Sequence[int],
    cu_seqlens: Sequence[int],
) -> None:
    """Refuse what would read or write another session's memory, or nobody's."""
    _check_rows("x", x, op.input_width)
    num_slots = recurrent.shape[0]
    _check_slots("recurrent", recurrent, (num_slots, *_state_shape(op)))
    _check_slots("conv", conv, (num_slots, op.conv_width - 1, op.channels))
    if len(cu_seqlens) != len(slots) + 1:
        raise ValueError(f"{len(slots)} slots, but {len(cu_seqlens)} offsets")
    if cu_seqlens[0] != 0 or cu_seqlens[-1] != len(x):
        raise ValueError(f"cu_seqlens must run from 0 to {len(x)}, got {tuple(cu_seqlens)}")
    if any(last < first for first, last in pairwise(cu_seqlens)):
        raise ValueError(f"cu_seqlens must not fall, got {tuple(cu_seqlens)}")
    if slots and not 0 <= min(slots) <= max(slots) < num_slots:
        raise ValueError(f"slots run from {min(slots)} to {max(slots)}; there are {num_slots}")
    if len(set(slots)) != len(slots):
        raise ValueError(f"two sequences share a slot: {tuple(slots)}")


def _check_journal(
    op: GatedDelta,
    journal: torch.Tensor | None,
    starts: Sequence[int] | None,
    num_slots: int,
    slots: Sequence[int],
    cu_seqlens: Sequence[int],
) -> Sequence[int] | None:
    """Return the starts, or None when nothing is to be stored."""
    if journal is None or starts is None:
        if starts is not None and any(start >= 0 for start in starts):
            raise ValueError("journal_starts without a journal")
        return None
    capacity = journal.shape[1]
    if (
        journal.shape != (num_slots, capacity, op.journal_width)
        or journal.dtype != torch.float32
        or journal.stride(2) != 1
        or not journal.is_cpu
    ):
        raise ValueError(
            f"journal: expected float32 [{num_slots}, capacity, {op.journal_width}] with dense "
            f"rows in CPU memory, got {list(journal.shape)}"
        )
    if len(starts) != len(slots):
        raise ValueError(f"{len(slots)} sequences, but {len(starts)} journal_starts")
    for b, start in enumerate(starts):
        end = start + cu_seqlens[b + 1] - cu_seqlens[b]
        if start < -1 or (start >= 0 and end > capacity):
            raise ValueError(f"sequence {b}: journal rows {start} to {end} of {capacity}")
    return starts


def _state_shape(op: GatedDelta) -> tuple[int, int, int]:
    return op.num_value_heads, op.value_dim, op.key_dim


def _check_rows(name: str, rows: torch.Tensor, width: int) -> None:
    if rows.ndim != 2 or rows.shape[1] != width or rows.dtype != torch.float32:
        raise ValueError(f"{name}: expected float32 [N, {width}], got {list(rows.shape)}")
    if (len(rows) and rows.stride(1) != 1) or not rows.is_cpu:
        raise ValueError(f"{name}: expected dense rows in CPU memory")


def _check_slots(name: str, states: torch.Tensor, shape: tuple[int, ...]) -> None:
    """Check a view of all slots by the first one; an empty view has none to misread."""
    if states.shape != shape:
        raise ValueError(f"{name}: expected float32 {list(shape)}, got {list(states.shape)}")
    if len(states):
        require(f"{name}[0]", states[0], shape[1:])
