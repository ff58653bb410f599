"""Gated DeltaNet: what lies between the two projections of a linear-attention layer.

Causal convolution, gates, delta rule and gated norm in one call on the state of each sequence's
slot. Called by the backbone. A row's result and the state it leaves have the same bits alone, among
other sequences, in any slot, in any cut of a prompt into chunks, and for any number of threads; so
replaying tokens equals having decoded them.

Letters: N tokens, H key heads, HV value heads, K and V widths of a key and a value head, C channels
of the convolution, W its width (see ``op.py``).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

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
    num_tokens = _check_rows("x", x, op.input_width)
    num_slots = len(recurrent)
    strides = (op.value_dim * op.key_dim, op.key_dim, 1)
    slot_stride = _check_slots("recurrent", recurrent, num_slots, op.recurrent_shape, strides)
    window_stride = _check_slots("conv", conv, num_slots, op.conv_shape, (op.channels, 1))
    if journal is None:
        capacity, apart, row_stride = 0, 0, 0
    else:
        capacity, apart, row_stride = _check_journal(journal, num_slots, op.journal_width)
    starts = (-1,) * len(slots) if journal_starts is None else journal_starts
    _check_sequences(num_tokens, num_slots, slots, cu_seqlens, starts, capacity)
    kernels = library.cpu()
    if kernels is None:
        return reference.gated_delta_net(x, op, recurrent, conv, slots, cu_seqlens, journal, starts)
    out = torch.empty(num_tokens, op.output_width)
    numbers = array("q", slots)
    numbers.extend(starts)
    numbers.extend(cu_seqlens)
    sequences, first = len(slots), numbers.buffer_info()[0]
    kernels.omni_gated_delta(
        op.layer_pointer,
        x.data_ptr(),
        x.stride(0),
        recurrent.data_ptr(),
        slot_stride,
        conv.data_ptr(),
        window_stride,
        None if journal is None else journal.data_ptr(),
        apart,
        row_stride,
        first,
        first + 8 * sequences,
        first + 16 * sequences,
        sequences,
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
    num_tokens = _check_rows("rows", rows, op.journal_width)
    require("recurrent", recurrent, op.recurrent_shape)
    require("conv", conv, op.conv_shape)
    kernels = library.cpu()
    if kernels is None:
        reference.replay(op, rows, recurrent, conv)
        return
    numbers = array("q", (0, -1, 0, num_tokens))  # slot, journal row, offsets
    first = numbers.buffer_info()[0]
    kernels.omni_gated_delta(
        op.layer_pointer,
        rows.data_ptr(),
        rows.stride(0),
        recurrent.data_ptr(),
        0,
        conv.data_ptr(),
        0,
        None,
        0,
        0,
        first,
        first + 8,
        first + 16,
        1,
        None,
    )


# A call of one token computes for 20 us, so what stands before every raw pointer is lean: one look
# at each property, and no views.


def _check_rows(name: str, rows: torch.Tensor, width: int) -> int:
    """Return the number of rows."""
    shape, num_rows = rows.shape, len(rows)
    if shape != (num_rows, width) or rows.dtype != torch.float32:
        raise ValueError(f"{name}: expected float32 [N, {width}], got {rows.dtype} {list(shape)}")
    if (num_rows and rows.stride(1) != 1) or not rows.is_cpu:
        raise ValueError(f"{name}: expected dense rows in CPU memory")
    return num_rows


def _check_slots(
    name: str,
    states: torch.Tensor,
    num_slots: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
) -> int:
    """Return how far apart the slots lie."""
    if states.shape != (num_slots, *shape) or states.dtype != torch.float32:
        raise ValueError(
            f"{name}: expected float32 {[num_slots, *shape]}, got {states.dtype} "
            f"{list(states.shape)}"
        )
    apart, *inside = states.stride()
    # A dimension of one may have any stride: let torch judge what is not plainly dense.
    if (tuple(inside) != strides and not states[:1].is_contiguous()) or not states.is_cpu:
        raise ValueError(f"{name}: expected slots, each contiguous, in CPU memory")
    return apart


def _check_journal(journal: torch.Tensor, num_slots: int, width: int) -> tuple[int, int, int]:
    """Return the rows of a slot, how far apart slots lie, and how far rows."""
    shape, strides = journal.shape, journal.stride()
    if (
        len(shape) != 3
        or (shape[0], shape[2]) != (num_slots, width)
        or journal.dtype != torch.float32
        or strides[2] != 1
        or not journal.is_cpu
    ):
        raise ValueError(
            f"journal: expected float32 [{num_slots}, capacity, {width}] with dense rows in CPU "
            f"memory, got {journal.dtype} {list(shape)}"
        )
    return shape[1], strides[0], strides[1]


def _check_sequences(
    num_tokens: int,
    num_slots: int,
    slots: Sequence[int],
    cu_seqlens: Sequence[int],
    starts: Sequence[int],
    capacity: int,
) -> None:
    """Refuse what would read or write another session's memory, or nobody's."""
    sequences = len(slots)
    if len(cu_seqlens) != sequences + 1 or len(starts) != sequences:
        raise ValueError(
            f"{sequences} slots, but {len(cu_seqlens)} offsets and {len(starts)} journal starts"
        )
    if cu_seqlens[0] != 0 or cu_seqlens[-1] != num_tokens:
        raise ValueError(f"cu_seqlens must run from 0 to {num_tokens}, got {tuple(cu_seqlens)}")
    for b, (slot, start) in enumerate(zip(slots, starts, strict=True)):
        tokens = cu_seqlens[b + 1] - cu_seqlens[b]
        if tokens < 0:
            raise ValueError(f"cu_seqlens must not fall, got {tuple(cu_seqlens)}")
        if not 0 <= slot < num_slots:
            raise ValueError(f"sequence {b}: slot {slot} is not in 0 .. {num_slots - 1}")
        if start != -1 and not 0 <= start <= capacity - tokens:
            raise ValueError(
                f"sequence {b}: {tokens} tokens from journal row {start} do not fit its {capacity}"
            )
    if sequences > 1 and len(set(slots)) != sequences:
        raise ValueError(f"two sequences share a slot: {tuple(slots)}")
