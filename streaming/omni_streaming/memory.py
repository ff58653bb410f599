"""Memory that was freed, given back to the system.

Called by :mod:`omni_streaming.connection` after sessions with long messages. glibc keeps blocks of
up to 32 MiB for the next time, in an arena for every thread that ever freed one, so that a flood
of 15 MiB messages would be resident for as long as the server runs.
"""

from __future__ import annotations

import ctypes


def give_back_memory() -> bool:
    """Return freed pages to the system (milliseconds, without the interpreter's lock).

    Returns whether there were any; False also where the C library keeps none or cannot be asked.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return malloc_trim is not None and bool(malloc_trim(0))
