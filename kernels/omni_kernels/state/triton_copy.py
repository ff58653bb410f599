# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Snapshot, restore and copy-on-write on a card: one launch for all layers and all pairs.

Called by the engine's state cache where there is a card. A snapshot copies live slots to places of
a checkpoint pool, a restore copies back, a fork copies slot to slot in one pool; pages are copied
when a shared one is about to be written. Bits are copied, whatever they mean.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from omni_kernels.triton_core import Launch

BLOCK = 2048
"""Words of 4 bytes that one program copies: four 16-byte loads a thread."""

__all__ = ["copy_pages", "copy_slots", "fork_slots"]


@triton.jit
def copy_kernel(
    source,
    target,
    num_words,
    source_stride,
    target_stride,
    outer_stride,
    more_source,
    more_target,
    more_words,
    more_source_stride,
    more_target_stride,
    sources,
    targets,
    FIRST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    block = tl.program_id(0)
    a = tl.load(sources + tl.program_id(1)).to(tl.int64)
    b = tl.load(targets + tl.program_id(1)).to(tl.int64)
    if (a < 0) | (b < FIRST):
        return
    blocks = tl.cdiv(num_words, BLOCK)
    if block < blocks:
        outer = tl.program_id(2).to(tl.int64) * outer_stride
        word = block * BLOCK + tl.arange(0, BLOCK)
        inside = word < num_words
        words = tl.load(source + outer + a * source_stride + word, mask=inside)
        tl.store(target + outer + b * target_stride + word, words, mask=inside)
    else:
        word = (block - blocks) * BLOCK + tl.arange(0, BLOCK)
        inside = word < more_words
        words = tl.load(more_source + a * more_source_stride + word, mask=inside)
        tl.store(more_target + b * more_target_stride + word, words, mask=inside)


def copy_slots(
    recurrent: torch.Tensor,
    conv: torch.Tensor,
    to_recurrent: torch.Tensor,
    to_conv: torch.Tensor,
    sources: torch.Tensor,
    targets: torch.Tensor,
    *,
    has_null: bool = True,
) -> None:
    """Copy slots of one pool to another: a snapshot or a restore, one launch.

    Args:
        recurrent: [S, L, HV, V, K] and
        conv: [S, L, W - 1, C], slot-major, a slot contiguous.
        to_recurrent: [S', L, HV, V, K] and
        to_conv: [S', L, W - 1, C], the same types. Mutated.
        sources: int32 [B] slots; a pair with a negative one is left out.
        targets: int32 [B] slots, different; a pair with 0 or a negative one is left out.
        has_null: whether slot 0 of the targets is nobody's; False: it is one like the others (a
            checkpoint by itself).

    Raises:
        ValueError: the pools' slots differ or are not contiguous.
    """
    for name, source, target in (
        ("recurrent", recurrent, to_recurrent),
        ("conv", conv, to_conv),
    ):
        if source.shape[1:] != target.shape[1:] or source.dtype != target.dtype:
            raise ValueError(
                f"{name}: slots of {source.dtype} {list(source.shape[1:])} do not fit those of "
                f"{target.dtype} {list(target.shape[1:])}"
            )
    _copy_slots(recurrent, conv, to_recurrent, to_conv, sources, targets, has_null)


def fork_slots(
    recurrent: torch.Tensor, conv: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor
) -> None:
    """Copy slots inside one pool, one launch; no target may be another pair's source."""
    _fork_slots(recurrent, conv, sources, targets)


def copy_pages(kv: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor) -> None:
    """Copy pages of ``kv`` [L, 2, P, T, Hkv, D] in all layers, one launch; pairs as above."""
    _copy_pages(kv, sources, targets)


def plan_slots(
    recurrent: torch.Tensor,
    conv: torch.Tensor,
    to_recurrent: torch.Tensor,
    to_conv: torch.Tensor,
    sources: torch.Tensor,
    targets: torch.Tensor,
    *,
    has_null: bool = True,
) -> Launch:
    """Plan the launch of :func:`copy_slots`."""
    first, more = _words(recurrent), _words(conv)
    to_first, to_more = _words(to_recurrent), _words(to_conv)
    blocks = triton.cdiv(first.shape[1], BLOCK) + triton.cdiv(more.shape[1], BLOCK)
    return Launch(
        copy_kernel,
        (blocks, len(sources), 1),
        {
            "source": first,
            "target": to_first,
            "num_words": first.shape[1],
            "source_stride": first.stride(0),
            "target_stride": to_first.stride(0),
            "outer_stride": 0,
            "more_source": more,
            "more_target": to_more,
            "more_words": more.shape[1],
            "more_source_stride": more.stride(0),
            "more_target_stride": to_more.stride(0),
            "sources": sources,
            "targets": targets,
            "FIRST": 1 if has_null else 0,
            "BLOCK": BLOCK,
        },
        num_warps=4,
    )


def plan_pages(kv: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor) -> Launch:
    """Plan the launch of :func:`copy_pages`."""
    words = _words(kv.flatten(0, 2))  # [L * 2 * P, words of a page]
    num_words, stride = words.shape[1], words.stride(0)
    return Launch(
        copy_kernel,
        (triton.cdiv(num_words, BLOCK), len(sources), kv.shape[0] * 2),
        {
            "source": words,
            "target": words,
            "num_words": num_words,
            "source_stride": stride,
            "target_stride": stride,
            "outer_stride": kv.shape[2] * stride,
            "more_source": words,
            "more_target": words,
            "more_words": 0,
            "more_source_stride": 0,
            "more_target_stride": 0,
            "sources": sources,
            "targets": targets,
            "FIRST": 1,
            "BLOCK": BLOCK,
        },
        num_warps=4,
    )


def _words(pool: torch.Tensor) -> torch.Tensor:
    """View a pool [S, ...] as int32 [S, words of a slot]."""
    if not pool[0].is_contiguous() or pool[0].numel() * pool.element_size() % 4:
        raise ValueError(f"a slot of {pool.dtype} {list(pool.shape[1:])} is not whole words")
    return pool.flatten(1).view(torch.int32)


@torch.library.custom_op("omni::copy_slots", mutates_args=("to_recurrent", "to_conv"))
def _copy_slots(
    recurrent: torch.Tensor,
    conv: torch.Tensor,
    to_recurrent: torch.Tensor,
    to_conv: torch.Tensor,
    sources: torch.Tensor,
    targets: torch.Tensor,
    has_null: bool,
) -> None:
    parts = recurrent, conv, to_recurrent, to_conv
    plan_slots(*parts, sources, targets, has_null=has_null).run()


@torch.library.custom_op("omni::fork_slots", mutates_args=("recurrent", "conv"))
def _fork_slots(
    recurrent: torch.Tensor, conv: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor
) -> None:
    plan_slots(recurrent, conv, recurrent, conv, sources, targets).run()


@torch.library.custom_op("omni::copy_pages", mutates_args=("kv",))
def _copy_pages(kv: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor) -> None:
    plan_pages(kv, sources, targets).run()


@_copy_slots.register_fake
@_fork_slots.register_fake
@_copy_pages.register_fake
def _(*_: object) -> None:
    return None
