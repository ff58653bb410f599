"""Named parameters of one stack, as plain numbers or packed, and what is built from them.

Made by :mod:`omni.models.weights` and :mod:`omni.models.repacked`, taken apart by
:mod:`omni.models.backbone`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from omni_kernels.linear import PackedWeight

from omni.errors import ModelError
from omni.models.layers import Embedding, Linear, QuantisedRows

Parameter = torch.Tensor | PackedWeight | QuantisedRows


class Parameters:
    """Named parameters; a missing name is a :class:`ModelError`."""

    def __init__(self, values: Mapping[str, Parameter]) -> None:
        self._values = values

    def tensor(self, name: str) -> torch.Tensor:
        """Plain numbers."""
        value = self._get(name)
        if not isinstance(value, torch.Tensor):
            raise ModelError(f"parameter {name} is packed, expected plain numbers")
        return value

    def linear(self, name: str, bias: str | None = None) -> Linear:
        """A matrix, with the bias of that name."""
        return Linear(self._matrix(name), self.tensor(bias) if bias else None)

    def linears(self, name: str, count: int) -> list[Linear]:
        """A matrix that is ``count`` equal ones, one below the other; nothing is copied.

        Raises:
            ModelError: packed, and their heights do not fall between panels of the layout.
        """
        weight = self._matrix(name)
        if isinstance(weight, torch.Tensor):
            return [Linear(part) for part in weight.chunk(count)]
        height = weight.out_features // count
        num_panels = len(weight.data) // count
        if (
            len(weight.data) % count
            or height * len(weight.data) != weight.out_features * num_panels
        ):
            raise ModelError(
                f"{name} is {count} matrices of {height} rows, expected multiples of 16"
            )
        return [
            Linear(
                PackedWeight(
                    data=weight.data[first : first + num_panels],
                    scales=weight.scales[first : first + num_panels],
                    out_features=height,
                    in_features=weight.in_features,
                )
            )
            for first in range(0, len(weight.data), num_panels)
        ]

    def embedding(self, name: str) -> Embedding:
        """A table of rows."""
        table = self._get(name)
        if isinstance(table, PackedWeight):
            raise ModelError(f"parameter {name} is packed, expected a table of rows")
        return Embedding(table)

    def _matrix(self, name: str) -> torch.Tensor | PackedWeight:
        weight = self._get(name)
        if isinstance(weight, QuantisedRows):
            raise ModelError(f"parameter {name} is a table of rows, expected a matrix")
        return weight

    def _get(self, name: str) -> Parameter:
        try:
            return self._values[name]
        except KeyError:
            raise ModelError(f"the weights have no parameter {name}") from None
