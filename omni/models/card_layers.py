"""The few layers of a decoder on a card, each one launch where its weight is quantised.

Called by :mod:`omni.models.card`. What :mod:`omni.models.layers` does one after another is fused
here: a norm or the gated activation comes before a matrix, a bias or the residual after it. Weights
of plain numbers (the fp32 reference) take torch's own operators. Activations are fp32. Letters: M
rows, K inputs, N outputs, D hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from omni_kernels.linear import PackedWeight, pack, unpack
from omni_kernels.linear.triton_layout import CardWeight, from_packed
from omni_kernels.linear.triton_linear import linear
from torch.nn import functional

from omni.errors import ModelError
from omni.models.experts import MixtureOfExperts
from omni.models.layers import Embedding, QuantisedRows
from omni.models.parameters import Parameter

CardParameter = torch.Tensor | CardWeight | QuantisedRows


@dataclass(frozen=True, slots=True)
class CardNorm:
    """x / rms(x) * w over the last dimension, most often fused into what comes after it."""

    weight: torch.Tensor  # fp32 [K]
    eps: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [M, K] -> [M, K]."""
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


@dataclass(frozen=True, slots=True)
class CardLinear:
    """y = f(x) W^T + added, f a norm, the gated activation, or nothing."""

    weight: torch.Tensor | CardWeight  # [N, K]
    bias: torch.Tensor | None = None  # [N]; not beside a residual

    def __call__(
        self,
        x: torch.Tensor,
        *,
        norm: CardNorm | None = None,
        is_gated: bool = False,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``x`` [M, K] (gated: [M, 2 K], gate first) -> [M, N], a new tensor."""
        assert self.bias is None or residual is None, "one thing is added after a matrix"
        added = self.bias if residual is None else residual
        if isinstance(self.weight, CardWeight):
            factors, eps = (None, 0.0) if norm is None else (norm.weight, norm.eps)
            return linear(x, self.weight, norm=factors, eps=eps, is_gated=is_gated, addend=added)
        if norm is not None:
            x = norm(x)
        if is_gated:
            gate, up = x.chunk(2, dim=-1)
            x = functional.silu(gate) * up
        out = functional.linear(x, self.weight)
        return out if added is None else out.add_(added)


@dataclass(frozen=True, slots=True)
class CardFeedForward:
    """down(silu(gate(x)) * up(x)), gate and up in one matrix: gate rows first."""

    gate_up: CardLinear
    down: CardLinear

    def __call__(
        self,
        x: torch.Tensor,
        *,
        norm: CardNorm | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``x`` [M, D] -> [M, D]: of ``norm`` (x), plus ``residual``."""
        return self.down(self.gate_up(x, norm=norm), is_gated=True, residual=residual)


@dataclass(frozen=True, slots=True)
class CardExperts:
    """A mixture of experts; which ones run is the host's to know, so it is no part of a graph."""

    mixture: MixtureOfExperts

    def __call__(self, x: torch.Tensor, *, norm: CardNorm, residual: torch.Tensor) -> torch.Tensor:
        """``x`` [M, D] -> [M, D]: of ``norm`` (x), plus ``residual``."""
        return self.mixture(norm(x)).add_(residual)


class CardParameters:
    """Named parameters of a stack, on ``device``; a missing name is a :class:`ModelError`.

    Matrices of 8 and 4 bits keep their numbers, those of 5 take 8, and those with offsets are
    rounded to 8: cards have no form for them.
    """

    def __init__(self, values: Mapping[str, Parameter], device: torch.device) -> None:
        self._values = {name: _moved(name, value, device) for name, value in values.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def tensor(self, name: str) -> torch.Tensor:
        """Plain numbers."""
        value = self._get(name)
        if not isinstance(value, torch.Tensor):
            raise ModelError(f"parameter {name} is packed, expected plain numbers")
        return value

    def norm(self, name: str, eps: float) -> CardNorm:
        """The factors of an RMS norm."""
        return CardNorm(self.tensor(name), eps)

    def linear(self, name: str, bias: str | None = None) -> CardLinear:
        """A matrix, with the bias of that name."""
        return CardLinear(self._matrix(name), self.tensor(bias) if bias else None)

    def linears(self, name: str, count: int) -> list[CardLinear]:
        """A matrix that is ``count`` equal ones, one below the other; nothing is copied."""
        weight = self._matrix(name)
        if isinstance(weight, torch.Tensor):
            return [CardLinear(part) for part in weight.chunk(count)]
        parts = zip(weight.codes.chunk(count), weight.scales.chunk(count), strict=True)
        return [CardLinear(CardWeight(codes, scales, weight.bits)) for codes, scales in parts]

    def embedding(self, name: str) -> Embedding:
        """A table of rows."""
        table = self._get(name)
        if isinstance(table, CardWeight):
            raise ModelError(f"parameter {name} is packed, expected a table of rows")
        return Embedding(table)

    def _matrix(self, name: str) -> torch.Tensor | CardWeight:
        weight = self._get(name)
        if isinstance(weight, QuantisedRows):
            raise ModelError(f"parameter {name} is a table of rows, expected a matrix")
        return weight

    def _get(self, name: str) -> CardParameter:
        try:
            return self._values[name]
        except KeyError:
            raise ModelError(f"the weights have no parameter {name}") from None


def _moved(name: str, value: Parameter, device: torch.device) -> CardParameter:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, QuantisedRows):
        return QuantisedRows(value.codes.to(device), value.scales.to(device))
    try:
        weight = _as_rows(value)
    except ValueError as error:
        raise ModelError(f"{name} cannot be laid out for a card: {error}") from error
    return CardWeight(weight.codes.to(device), weight.scales.to(device), weight.bits)


def _as_rows(packed: PackedWeight) -> CardWeight:
    return from_packed(pack(unpack(packed)) if packed.has_offsets else packed)
