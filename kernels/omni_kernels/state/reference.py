"""The truth about copying state, in plain torch. Letters: S slots, L layers, P pages."""

from __future__ import annotations

import torch


def copy_slots(
    source: torch.Tensor, target: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor
) -> None:
    """Copy ``source`` [S, ...] at each of ``sources`` to ``target`` [S', ...] at ``targets``.

    Pairs with a negative source, or a target that is nobody's (0 or below), are left out.
    """
    for a, b in zip(sources.tolist(), targets.tolist(), strict=True):
        if a >= 0 and b > 0:
            target[b] = source[a]


def copy_pages(kv: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor) -> None:
    """Copy pages of ``kv`` [L, 2, P, T, Hkv, D] likewise, in all layers."""
    for a, b in zip(sources.tolist(), targets.tolist(), strict=True):
        if a >= 0 and b > 0:
            kv[:, :, b] = kv[:, :, a]
