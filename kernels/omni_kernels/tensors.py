"""The one check that stands before every raw pointer."""

from __future__ import annotations

import torch


def require(
    name: str,
    tensor: torch.Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Refuse a tensor that a kernel would misread.

    Raises:
        ValueError: another shape or type, not contiguous, or not in CPU memory.
    """
    if tensor.shape != shape or tensor.dtype != dtype:
        raise ValueError(
            f"{name}: expected {str(dtype).removeprefix('torch.')} {list(shape)}, "
            f"got {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        )
    if not tensor.is_contiguous() or not tensor.is_cpu:
        raise ValueError(f"{name}: expected a contiguous tensor in CPU memory")
