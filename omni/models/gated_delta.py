"""The Gated DeltaNet mixer: linear attention whose state has a fixed size.

Between its two projections everything is one call of :mod:`omni_kernels.gated_delta` on the state
of each sequence's slot. The input projection is one matrix, int8 where the others are: the few rows
of the gates apart in fp32 take the output's error from 1.26% to 1.24% only (relative RMS over 512
tokens, random weights in the shape of the 0.8B; 2.08% to 2.04% with outlier channels).

Letters: N tokens of the step, D hidden width, H key heads, HV value heads, K and V their widths, W
width of the convolution over C = 2 H K + HV V channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from omni_kernels.gated_delta import GatedDelta, gated_delta_net, replay

from omni.models.attention import Step
from omni.models.batch import StateView
from omni.models.layers import Linear


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaShape:
    """Shape of every Gated DeltaNet layer of a stack."""

    num_key_heads: int
    num_value_heads: int  # a multiple of num_key_heads: head hv reads key head hv // (HV / H)
    key_dim: int
    value_dim: int
    conv_width: int  # tokens that the convolution sees, the newest included

    @property
    def key_channels(self) -> int:
        """H K."""
        return self.num_key_heads * self.key_dim

    @property
    def value_channels(self) -> int:
        """HV V."""
        return self.num_value_heads * self.value_dim

    @property
    def channels(self) -> int:
        """C."""
        return 2 * self.key_channels + self.value_channels

    @property
    def journal_width(self) -> int:
        """What a token puts into the state: C + 2 HV."""
        return self.channels + 2 * self.num_value_heads

    @property
    def input_width(self) -> int:
        """Rows of the input projection: qkv, b, a, z."""
        return self.journal_width + self.value_channels

    @property
    def recurrent_shape(self) -> tuple[int, int, int]:
        return self.num_value_heads, self.value_dim, self.key_dim

    @property
    def conv_shape(self) -> tuple[int, int]:
        return self.conv_width - 1, self.channels


class GatedDeltaMixer:
    """``project`` makes qkv | b | a | z of a token; ``row`` is this layer's row of the slots."""

    def __init__(self, *, project: Linear, op: GatedDelta, out: Linear, row: int) -> None:
        self._project = project
        self._op = op
        self._out = out
        self._row = row

    def __call__(self, x: torch.Tensor, step: Step, state: StateView) -> torch.Tensor:
        """``x`` [N, D] (normed) -> [N, D]; advances each sequence's slot and fills its journal."""
        assert state.recurrent is not None, "a recurrent layer needs slots"
        assert state.conv is not None, "a Gated DeltaNet layer needs windows"
        batch = step.batch
        mixed = gated_delta_net(
            self._project(x),
            self._op,
            recurrent=state.recurrent[:, self._row],
            conv=state.conv[:, self._row],
            slots=batch.slots,
            cu_seqlens=batch.cu_seqlens,
            journal=None if state.journal is None else state.journal[:, self._row],
            journal_starts=batch.journal_starts,
        )  # [N, HV V]
        return self._out(mixed)

    def replay(self, state: StateView, slot: int, rows: slice) -> None:
        """Advance ``slot`` by ``rows`` of its journal.

        Raises:
            ValueError: there is no journal, or it has no such rows.
        """
        assert state.recurrent is not None, "a recurrent layer needs slots"
        assert state.conv is not None, "a Gated DeltaNet layer needs windows"
        if state.journal is None or not 0 <= rows.start <= rows.stop <= state.journal.shape[2]:
            raise ValueError(f"the journal has no rows {rows.start} to {rows.stop}")
        replay(
            self._op,
            state.journal[slot, self._row, rows],
            recurrent=state.recurrent[slot, self._row],
            conv=state.conv[slot, self._row],
        )
