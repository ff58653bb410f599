"""Finds, loads and steers the C++ library of this package.

Every CPU kernel calls :func:`cpu`; ``None`` means the torch path. The library is a plain shared
object (no Python.h) called through ctypes, which releases the interpreter lock for each call.

``OMNI_KERNELS`` = ``torch`` | ``scalar`` | ``avx2`` | ``avx512`` | ``neon`` forces a path;
otherwise the best one that this machine can run is used.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import logging
import os
import threading
from ctypes import c_float, c_int, c_int64, c_uint64, c_void_p
from pathlib import Path
from typing import Literal

from omni.errors import ConfigError

Backend = Literal["avx512vnni", "avx2", "neon", "scalar", "torch"]

ENVIRONMENT = "OMNI_KERNELS"
_VERSION = 6  # of the functions below; raised together with omni_version() of isa.cpp
_ISAS: tuple[Backend, ...] = ("scalar", "avx2", "avx512vnni", "neon")  # index: enum Isa of isa.h
_FORCED: dict[str, Backend] = {
    "torch": "torch",
    "scalar": "scalar",
    "avx2": "avx2",
    "avx512": "avx512vnni",
    "neon": "neon",
}
_SIGNATURES: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "omni_version": (c_int, ()),
    "omni_best_isa": (c_int, ()),
    "omni_runs_isa": (c_int, (c_int,)),
    "omni_set_isa": (c_int, (c_int,)),
    "omni_set_num_threads": (None, (c_int,)),
    "omni_num_threads": (c_int, ()),
    # to, from, bytes
    "omni_copy": (None, (c_void_p, c_void_p, c_int64)),
    # memory, words
    "omni_read": (c_uint64, (c_void_p, c_int64)),
    # x, rows, columns, data, scales, bits, offsets, outputs, bias, out
    "omni_linear": (
        c_int,
        (c_void_p, *(c_int64,) * 2, *(c_void_p,) * 2, *(c_int,) * 2, c_int64, *(c_void_p,) * 2),
    ),
    # x, weight, rows, columns, eps, out
    "omni_rms_norm": (None, (c_void_p, c_void_p, c_int64, c_int64, c_float, c_void_p)),
    # x, weight, bias, rows, columns, eps, out
    "omni_layer_norm": (None, (*(c_void_p,) * 3, c_int64, c_int64, c_float, c_void_p)),
    # gate_up, rows, columns, out
    "omni_silu_mul": (None, (c_void_p, c_int64, c_int64, c_void_p)),
    # x, gate, rows, columns, gate_stride
    "omni_sigmoid_mul": (None, (c_void_p, c_void_p, *(c_int64,) * 3)),
    # qkv, rows, stride, heads, kv_heads, dim, half, q_norm, k_norm, eps, cosine, sine, slots,
    # tokens, k, v
    "omni_norm_rotate_and_store": (
        c_int,
        (
            c_void_p,
            *(c_int64,) * 6,
            *(c_void_p, c_void_p, c_float),
            *(c_void_p,) * 3,
            *(c_int64, c_void_p, c_void_p),
        ),
    ),
    # q, q_stride, k, v, out, cu_seqlens, num_computed, pages, page_offsets,
    # sequences, page_tokens, heads, kv_heads, dim, scale
    "omni_paged_attention": (
        c_int,
        (c_void_p, c_int64, *(c_void_p,) * 7, *(c_int64,) * 5, c_float),
    ),
    # layer, x, x_stride, recurrent, its stride, conv, its stride, journal, its two strides,
    # slots, journal_starts, cu_seqlens, sequences, out
    "omni_gated_delta": (
        c_int,
        (
            c_void_p,
            c_void_p,
            c_int64,
            *(c_void_p, c_int64) * 3,
            c_int64,
            *(c_void_p,) * 3,
            c_int64,
            c_void_p,
        ),
    ),
}

_log = logging.getLogger(__name__)


class _State:
    """What is loaded; written under ``lock``, read without it once ``ready``."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.ready = False
        self.library: ctypes.CDLL | None = None
        self.brief: ctypes.CDLL | None = None
        self.backend: Backend = "torch"


_state = _State()


def cpu() -> ctypes.CDLL | None:
    """Return the loaded library set to the chosen path, or None for the torch path.

    Raises:
        ConfigError: ``OMNI_KERNELS`` names no path, or one that cannot run here.
    """
    if not _state.ready:
        with _state.lock:
            if not _state.ready:
                _choose(os.environ.get(ENVIRONMENT, ""))
    return _state.library


def brief() -> ctypes.CDLL | None:
    """Return the same library as :func:`cpu`, called without releasing the interpreter lock.

    For calls of a few microseconds: after a release, another Python thread may keep the lock for
    its whole switch interval (5 ms), which is a thousand times the work.
    """
    cpu()
    return _state.brief


def backend() -> Backend:
    """Return the path in use: ``avx512vnni``, ``avx2``, ``neon``, ``scalar`` or ``torch``."""
    cpu()
    return _state.backend


def select(path: str) -> Backend:
    """Switch this process to ``path`` (a value of ``OMNI_KERNELS``; empty: the best one).

    Not for use while kernels run in other threads.

    Raises:
        ConfigError: ``path`` names no path, or one that cannot run here.
    """
    with _state.lock:
        _choose(path)
    return _state.backend


def available() -> tuple[str, ...]:
    """Return the values of ``OMNI_KERNELS`` that can run on this machine, ``torch`` first."""
    library = _load()
    if library is None:
        return ("torch",)
    runs = {isa for index, isa in enumerate(_ISAS) if library.omni_runs_isa(index)}
    return ("torch", *(name for name, isa in _FORCED.items() if isa in runs))


def set_num_threads(count: int) -> None:
    """Let each kernel call use up to ``count`` threads, the caller included.

    Without the library this sets torch's own pool, which then does the work.

    Raises:
        ValueError: ``count`` is below 1.
    """
    if count < 1:
        raise ValueError(f"a kernel needs at least 1 thread, got {count}")
    library = cpu()
    if library is not None:
        library.omni_set_num_threads(count)
    else:
        import torch

        torch.set_num_threads(count)


def use_threads(count: int) -> None:
    """Give the backbone ``count`` threads, on the thread that runs it.

    Where the library does the work, torch itself keeps one: an OpenMP region of a small addition
    waits for a core that others hold, and 256 tokens of prefill took 1383 ms instead of 574 beside
    two busy processes (2 cores, 0.8B shapes).

    Raises:
        ValueError: ``count`` is below 1.
    """
    set_num_threads(count)
    if cpu() is not None:
        import torch

        torch.set_num_threads(1)


def num_threads() -> int:
    """Return how many threads one kernel call may use."""
    library = cpu()
    if library is not None:
        count: int = library.omni_num_threads()
        return count
    import torch

    return torch.get_num_threads()


def _choose(wanted: str) -> None:
    """Load the library if ``wanted`` needs it and set its path."""
    if wanted and wanted not in _FORCED:
        raise ConfigError(
            f"{ENVIRONMENT} is {wanted!r}; expected one of {', '.join(_FORCED)}, or unset"
        )
    library = None if wanted == "torch" else _load()
    if library is None:
        if wanted not in ("", "torch"):
            raise ConfigError(
                f"{ENVIRONMENT} is {wanted!r}, but the compiled kernels are missing; "
                "install a C++17 compiler and reinstall the package"
            )
        if not wanted:
            _log.warning("compiled kernels are missing: linear layers use the slow torch path")
        _state.library = _state.brief = None
        _state.backend, _state.ready = "torch", True
        return
    best: int = library.omni_best_isa()
    isa = _ISAS.index(_FORCED[wanted]) if wanted else best
    if library.omni_set_isa(isa) != 0:
        raise ConfigError(f"{ENVIRONMENT} is {wanted!r}, but this CPU has {_ISAS[best]}")
    _state.library, _state.brief = library, _declare(ctypes.PyDLL(library._name))
    _state.backend, _state.ready = _ISAS[isa], True


def _load() -> ctypes.CDLL | None:
    """Open the shared library that setup.py built beside this file, or return None."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_cpu{suffix}")
        if not path.exists():
            continue
        try:
            library = _declare(ctypes.CDLL(str(path)))
            version: int = library.omni_version()
        except (OSError, AttributeError) as error:  # another platform's file, or an older build
            _log.warning("cannot use %s: %s", path.name, error)
            continue
        if version != _VERSION:
            _log.warning("%s is of another version; reinstall the package", path.name)
            continue
        return library
    return None


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Set the types of all functions; AttributeError when one is missing."""
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library
