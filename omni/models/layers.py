"""The few layers every decoder is made of, over plain fp32 weights or packed int8 ones.

Called by :mod:`omni.models.backbone` and the mixers. Which kind of weight a layer holds decides
which code runs: fp32 weights take plain torch (parity with transformers, references), packed ones
the kernels of :mod:`omni_kernels`. Letters: M rows, K inputs, N outputs, F feed-forward width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from omni_kernels.linear import GROUP, PackedWeight, linear
from omni_kernels.rowwise import rms_norm, silu_mul
from torch.nn import functional


class Linear:
    """y = x W^T + b, ``weight`` [N, K] fp32 or packed int8, ``bias`` [N] fp32 or None."""

    __slots__ = ("bias", "out_features", "weight")

    def __init__(self, weight: torch.Tensor | PackedWeight, bias: torch.Tensor | None = None):
        self.weight = weight
        self.bias = bias
        self.out_features = (
            weight.out_features if isinstance(weight, PackedWeight) else weight.shape[0]
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [M, K] fp32 contiguous -> [M, N] fp32."""
        if isinstance(self.weight, torch.Tensor):
            return functional.linear(x, self.weight, self.bias)
        return linear(x, self.weight, self.bias)


class RMSNorm:
    """x / rms(x) * w over the last dimension."""

    __slots__ = ("eps", "weight")

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        self.weight = weight
        self.eps = eps

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [M, K] -> [M, K], a new tensor."""
        return rms_norm(x, self.weight, self.eps)


class GatedFeedForward:
    """down(silu(gate(x)) * up(x)), gate and up in one matrix [2F, K]: gate rows first."""

    __slots__ = ("down", "gate_up")

    def __init__(self, gate_up: Linear, down: Linear) -> None:
        self.gate_up = gate_up
        self.down = down

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [M, K] -> [M, K]."""
        return self.down(silu_mul(self.gate_up(x)))


@dataclass(frozen=True, slots=True)
class QuantisedRows:
    """An embedding table as it lies on disk: ``codes`` [V, K] int8, ``scales`` [V, K / 32] fp16."""

    codes: torch.Tensor
    scales: torch.Tensor


class Embedding:
    """Looks rows up by token id; a quantised table is read row by row and never held whole."""

    __slots__ = ("num_rows", "table", "width")

    def __init__(self, table: torch.Tensor | QuantisedRows) -> None:
        self.table = table
        codes = table if isinstance(table, torch.Tensor) else table.codes
        self.num_rows, self.width = codes.shape

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        """``token_ids`` [M] int64 -> [M, K] fp32, a new tensor."""
        if isinstance(self.table, torch.Tensor):
            return functional.embedding(token_ids, self.table)
        codes = self.table.codes[token_ids].to(torch.float32).view(-1, self.width // GROUP, GROUP)
        scales = self.table.scales[token_ids].to(torch.float32)
        return (codes * scales[..., None]).view(-1, self.width)
