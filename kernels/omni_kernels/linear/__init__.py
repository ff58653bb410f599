"""The quantised linear layer: weights of 4, 5 or 8 bits in groups of 32, activations of 8 per row.

Called by the backbone and the recogniser for every matrix of 0.5 M weights and more. A row's
result is bit-identical whatever the number of rows, its neighbours and the number of threads.
"""

from __future__ import annotations

import torch

from omni_kernels import library
from omni_kernels.library import backend, num_threads, set_num_threads
from omni_kernels.linear import reference
from omni_kernels.linear.layout import (
    GROUP,
    Bits,
    PackedWeight,
    pack,
    pack_quantized,
    packed_shapes,
    unpack,
)
from omni_kernels.tensors import require

__all__ = [
    "GROUP",
    "Bits",
    "PackedWeight",
    "backend",
    "linear",
    "num_threads",
    "pack",
    "pack_quantized",
    "packed_shapes",
    "set_num_threads",
    "unpack",
]


def linear(
    x: torch.Tensor,
    weight: PackedWeight,
    bias: torch.Tensor | None = None,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute ``x`` [M, K] @ weight^T + ``bias`` [N]; ``x`` is quantised per row in groups of 32.

    Args:
        x: fp32 [M, K], contiguous, K = ``weight.in_features``.
        weight: from :func:`pack` or :func:`pack_quantized`.
        bias: fp32 [N], contiguous, or None.
        out: fp32 [M, N], contiguous, overwritten; must not overlap ``x``. None: a new tensor.

    Returns:
        ``out``, fp32 [M, N]. A row with a value that is not finite comes out as NaN.

    Raises:
        ValueError: a shape, type or layout is not as above.
    """
    rows, n = x.shape[0], weight.out_features
    require("x", x, (rows, weight.in_features))
    if bias is not None:
        require("bias", bias, (n,))
    if out is None:
        out = x.new_empty(rows, n)  # half the time of torch.empty
    else:
        require("out", out, (rows, n))
    kernels = library.cpu()
    if kernels is None:
        out.copy_(reference.linear(x, weight, bias))
        return out
    status: int = kernels.omni_linear(
        x.data_ptr(),
        rows,
        weight.in_features,
        weight.data_pointer,
        weight.scales_pointer,
        weight.bits,
        weight.has_offsets,
        n,
        None if bias is None else bias.data_ptr(),
        out.data_ptr(),
    )
    if status != 0:
        raise MemoryError(f"no memory to quantise activations {list(x.shape)}")
    return out
