"""What all Triton kernels share: one launch as a value, and the few functions they are made of.

Imported only by the ``triton_*`` modules, which a caller imports once it knows that it has a card;
nothing on the CPU paths imports Triton.

Kernels load through :func:`f32` and compute in fp32 (the interpreter of Triton, in which they are
tested, multiplies bf16 wrongly).
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import triton
import triton.language as tl

Argument = torch.Tensor | int | float | bool | str | None
Precision = Literal["ieee", "tf32", "tf32x3"]


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel launch, planned; ``omni_kernels.triton_ahead`` compiles it for other cards.

    ``arguments`` are the kernel's by name: tensors, numbers and compile-time constants.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Argument]
    num_warps: int
    num_stages: int = 1
    contract: bool = True
    """Whether a * b + c may become one rounding. False: the arithmetic is the one that is written,
    so that two kernels which share a function agree in its bits."""

    def run(self) -> None:
        """Launch on the current stream; an empty grid is nothing to do."""
        if min(self.grid) > 0:
            self.kernel[self.grid](
                **self.arguments,
                num_warps=self.num_warps,
                num_stages=self.num_stages,
                enable_fp_fusion=self.contract,
            )


def dot_precision(*, is_fast: bool = False) -> Precision:
    """How fp32 matrix products are taken; 16-bit operands are exact in all of these.

    tf32 has 10 bits and is as good as the bf16 that the inputs come in; tf32x3 takes three products
    and keeps nearly all of fp32. AMD's compiler has ieee only.
    """
    if torch.version.hip or not torch.cuda.is_available():
        return "ieee"
    return "tf32" if is_fast else "tf32x3"


@triton.jit
def f32(pointer, mask=None):
    """Load as fp32; masked elements are 0."""
    value = tl.load(pointer) if mask is None else tl.load(pointer, mask=mask, other=0.0)
    return value.to(tl.float32)


@triton.jit
def put(pointer, value, mask=None):
    """Store in the type of the memory."""
    tl.store(pointer, value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x); e^-x may be infinite, then it is 0."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def silu(x):
    """x sigmoid(x)."""
    return x / (1.0 + tl.exp(-x))


@triton.jit
def softplus(x):
    """log(1 + e^x) by the larger exponent: no overflow and no threshold."""
    return tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def is_last(counter, total):
    """Whether this program is the last of ``total`` to arrive; the last one zeroes the counter.

    What the others stored before arriving is visible to the last one, if it loads with ``.cg``.
    """
    tl.debug_barrier()  # this program's stores come before its arrival
    last = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == total - 1
    if last:
        tl.store(counter, 0)
    tl.debug_barrier()  # and its arrival before what it loads now
    return last
