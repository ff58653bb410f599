"""What the card's Gated DeltaNet works on: weights, state and rows, all on one device.

Letters as in ``op.py``; L layers. Nothing here reads a value from the card: which slot, row or
journal place a sequence has is the caller's to get right.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

ROWS = 16
"""BV: rows of a head's state that one warp keeps, 64 registers a thread for K = 128."""
TAPS = 4
"""W, written out in the kernels."""
MAX_SHORT_TOKENS = 128
"""New tokens of a sequence up to which one launch token by token is the better way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaShape:
    """The sizes that kernels are compiled for."""

    layers: int
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int

    @property
    def group(self) -> int:
        """Value heads of one key head."""
        return self.value_heads // self.key_heads

    @property
    def channels(self) -> int:
        """C."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    @property
    def blocks(self) -> int:
        """Programs that share one value head."""
        return max(1, self.value_dim // ROWS)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaWeights:
    """One layer's weights, or all layers' with a first dimension L (replay)."""

    taps: torch.Tensor  # fp32 [(L,) W, C], the newest token's tap last: GatedDelta.taps
    a_log: torch.Tensor  # fp32 [(L,) HV]
    dt_bias: torch.Tensor  # fp32 [(L,) HV]
    norm: torch.Tensor  # fp32 [V], not read by a replay
    eps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaState:
    """One layer's view of every slot's state, or all layers' (replay).

    Slot 0 and negative slots are nobody's: their state is neither read nor written.

    Raises:
        ValueError: a shape, type or layout does not fit.
    """

    recurrent: torch.Tensor  # fp32 [slots, (L,) HV, V, K]
    conv: torch.Tensor  # [slots, (L,) W - 1, C] raw qkv, oldest first; fp32 or the rows' type
    journal: torch.Tensor | None = None  # [slots, (L,) capacity, C + 2 HV] raw qkv | b | a

    def __post_init__(self) -> None:
        shape = self.shape
        if self.recurrent.dtype != torch.float32:
            raise ValueError(f"recurrent: expected float32, got {self.recurrent.dtype}")
        for name, width in (("key", shape.key_dim), ("value", shape.value_dim)):
            if width < 16 or width & (width - 1):
                raise ValueError(f"{name} heads of width {width}: expected a power of 2 from 16")
        keys = self.conv.shape[-1] - shape.value_heads * shape.value_dim
        if keys != 2 * shape.key_heads * shape.key_dim or shape.value_heads % shape.key_heads:
            raise ValueError(
                f"conv {list(self.conv.shape)} does not fit recurrent {list(self.recurrent.shape)}"
            )
        if self.conv.shape[-2] != TAPS - 1:
            raise ValueError(f"conv: expected {TAPS - 1} rows, got {self.conv.shape[-2]}")
        for name, tensor, inner in (("recurrent", self.recurrent, 3), ("conv", self.conv, 2)):
            if not tensor[0].is_contiguous() and not (
                tensor.dim() == inner + 2 and tensor[0, 0].is_contiguous()
            ):
                raise ValueError(f"{name}: the inside of a layer's slot must be contiguous")
        if self.journal is not None and (
            self.journal.dim() != self.conv.dim()
            or self.journal.shape[-1] != shape.channels + 2 * shape.value_heads
            or self.journal.stride(-1) != 1
        ):
            raise ValueError(
                f"journal: expected dense rows of {shape.channels + 2 * shape.value_heads}, "
                f"got {list(self.journal.shape)}"
            )

    @property
    def shape(self) -> DeltaShape:
        """The sizes, read off the tensors."""
        value_heads, value_dim, key_dim = self.recurrent.shape[-3:]
        keys = self.conv.shape[-1] - value_heads * value_dim
        return DeltaShape(
            layers=self.recurrent.shape[1] if self.recurrent.dim() == 5 else 1,
            key_heads=max(1, keys // (2 * key_dim)),
            value_heads=value_heads,
            key_dim=key_dim,
            value_dim=value_dim,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaRows:
    """Whose the rows of a batch are; B sequences, all int32."""

    slots: torch.Tensor  # [B], different but for those that are nobody's
    cu_seqlens: torch.Tensor  # [B + 1] offsets into N
    counters: torch.Tensor  # [>= B H], zero before and after each launch
    journal_starts: torch.Tensor | None = None  # [B] row of the first new token; -1: store none


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRows:
    """Which journal rows are replayed into which slots; B sequences, all int32."""

    slots: torch.Tensor  # [B], advanced; different but for those that are nobody's
    journal_slots: torch.Tensor  # [B], whose journal is read
    firsts: torch.Tensor  # [B] first journal row
    lasts: torch.Tensor  # [B] row after the last
    counters: torch.Tensor  # [>= L B H], zero before and after each launch
