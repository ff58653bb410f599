"""How many threads each pool uses; decided once, before torch loads.

With one other busy process an OpenMP region of 12 us averages 973 us when its threads spin and
67 us when they sleep (measured on 2 cores), so waiting is passive.
"""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Threads:
    """Sizes of the pools: ``engine`` for the backbone, ``parts`` for recogniser and speech."""

    engine: int
    parts: int


def resolve(num_cpus: int | None = None, engine: int = 0, parts: int = 0) -> Threads:
    """Choose pool sizes; 0 means automatic.

    Two cores: both pools may use both, for they seldom run at once. More cores: the backbone's
    memory traffic saturates at about 8 threads.
    """
    cpus = num_cpus or len(os.sched_getaffinity(0))
    return Threads(engine=engine or min(cpus, 8), parts=parts or min(cpus, 4))


def set_environment() -> None:
    """Set the OpenMP environment unless the user has; call before torch is imported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
