"""Copies of states: snapshots, restores and forks of a slot.

Called by the engine's state cache. On a machine that others use too, torch's own copy waits for
every thread of its pool; this one waits for none that has not begun.
"""

from __future__ import annotations

import torch

from omni_kernels import library

__all__ = ["copy"]


def copy(source: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Copy ``source`` into ``out``: same shape and type, both contiguous and in CPU memory.

    Large copies (4 MiB and more) go around the caches.

    Returns:
        ``out``.

    Raises:
        ValueError: the two differ in shape or type, share memory, or are not as above.
    """
    if source.shape != out.shape or source.dtype != out.dtype:
        raise ValueError(
            f"cannot copy {source.dtype} {list(source.shape)} to {out.dtype} {list(out.shape)}"
        )
    for name, tensor in (("source", source), ("out", out)):
        if not tensor.is_contiguous() or not tensor.is_cpu:
            raise ValueError(f"{name}: expected a contiguous tensor in CPU memory")
    first, second, nbytes = source.data_ptr(), out.data_ptr(), source.nbytes
    if nbytes and abs(first - second) < nbytes:
        raise ValueError("source and out share memory")
    kernels = library.cpu()
    if kernels is None:
        return out.copy_(source)
    kernels.omni_copy(second, first, nbytes)
    return out
