"""The truth about the row-wise operations, in plain torch. Letters: M rows, K columns, I width."""

from __future__ import annotations

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """``x`` [M, K] / sqrt(mean(x^2) + eps) * ``weight`` [K]."""
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + eps) * weight


def layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> torch.Tensor:
    """(``x`` [M, K] - mean) / sqrt(variance + eps) * ``weight`` [K] + ``bias`` [K]."""
    centred = x - x.mean(dim=1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(dim=1, keepdim=True) + eps) * weight + bias


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of ``gate_up`` [M, 2I], gate first -> [M, I]; silu(x) = x / (1 + e^-x)."""
    gate, up = gate_up.chunk(2, dim=1)
    return gate / (1 + torch.exp(-gate)) * up


def sigmoid_mul(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """``x`` [M, K] / (1 + e^-gate)."""
    return x / (1 + torch.exp(-gate))


def rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Turn pairs (i, i + R/2) of ``x`` [N, H, D] by angles given as [N, R/2] (RoFormer, 3.2.2).

    What is beyond R stays as it is.
    """
    half = cosine.shape[1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    c, s = cosine.unsqueeze(1), sine.unsqueeze(1)
    return torch.cat([first * c - second * s, second * c + first * s, rest], dim=2)
