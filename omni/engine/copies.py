"""Copies of sequence state, where it lives: in host memory or on a card.

Called by :mod:`omni.engine.state_cache`, which knows what is copied and why. L layers of a kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from omni_kernels import memory

from omni.models.batch import StateSpec


@dataclass(frozen=True, slots=True)
class Slots:
    """Recurrent state of several slots, or of one: a checkpoint."""

    recurrent: torch.Tensor  # [S, L, *recurrent_shape] fp32
    conv: torch.Tensor | None  # [S, L, *conv_shape] fp32


class StateCopies(Protocol):
    """How state is copied. Nothing but the target named is written."""

    def slot(self, source: Slots, at: int, target: Slots, to: int) -> None:
        """Copy slot ``at`` of ``source`` to slot ``to`` of ``target``, maybe the same slots."""
        ...

    def page(self, kv: torch.Tensor, source: int, target: int, num_tokens: int) -> None:
        """Copy at least the first ``num_tokens`` tokens of a page of ``kv``, in all layers.

        ``kv`` is [L, 2, P, page_tokens, Hkv, D].
        """
        ...


class HostCopies:
    """In host memory, part by part."""

    def slot(self, source: Slots, at: int, target: Slots, to: int) -> None:
        memory.copy(source.recurrent[at], target.recurrent[to])
        if source.conv is not None:
            assert target.conv is not None, "slots of one kind"
            memory.copy(source.conv[at], target.conv[to])

    def page(self, kv: torch.Tensor, source: int, target: int, num_tokens: int) -> None:
        kv[:, :, target, :num_tokens] = kv[:, :, source, :num_tokens]


class CardCopies:
    """On a card: one launch for all layers and both kinds of state."""

    def slot(self, source: Slots, at: int, target: Slots, to: int) -> None:
        from omni_kernels.state.triton_copy import copy_slots, fork_slots  # Triton is optional

        assert source.conv is not None, "cards run Gated DeltaNet, which has windows"
        assert target.conv is not None, "slots of one kind"
        pair = _pair(at, to, source.recurrent.device)
        if source.recurrent is target.recurrent:
            fork_slots(source.recurrent, source.conv, *pair)
        else:
            parts = source.recurrent, source.conv, target.recurrent, target.conv
            copy_slots(*parts, *pair, has_null=False)

    def page(self, kv: torch.Tensor, source: int, target: int, num_tokens: int) -> None:
        from omni_kernels.state.triton_copy import copy_pages  # Triton is optional

        if num_tokens:
            copy_pages(kv, *_pair(source, target, kv.device))


def copies_of(spec: StateSpec) -> StateCopies:
    """How the state of ``spec`` is copied."""
    return CardCopies() if spec.on_card else HostCopies()


def _pair(source: int, target: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    pair = torch.tensor([source, target], dtype=torch.int32).to(device)
    return pair[:1], pair[1:]
