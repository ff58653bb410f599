"""How the benchmarks here measure: in turns, so that a noisy machine hurts all alike."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from omni_kernels import library


class Clock:
    """Calls functions in turn and keeps their times."""

    def __init__(
        self, rounds: int, seconds: float, timer: Callable[[], float] = time.perf_counter
    ) -> None:
        self.rounds = rounds
        self.seconds = seconds
        self.timer = timer

    def race(self, *calls: Callable[[int], object]) -> list[list[float]]:
        """Return seconds per call of each function for each round; ``call(i)`` uses copy i."""
        counts = []
        for call in calls:
            call(0)  # warm-up
            start = self.timer()
            call(1)
            once = self.timer() - start
            counts.append(max(1, int(self.seconds / self.rounds / len(calls) / max(once, 1e-6))))
        times: list[list[float]] = [[] for _ in calls]
        position = [0] * len(calls)
        for _ in range(self.rounds):
            for c, call in enumerate(calls):
                start = self.timer()
                for _ in range(counts[c]):
                    call(position[c])
                    position[c] += 1
                times[c].append((self.timer() - start) / counts[c])
        return times


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


class Reader:
    """Reads a buffer beyond every cache."""

    def __init__(self, nbytes: int) -> None:
        self.memory = torch.ones(nbytes // 8, dtype=torch.int64)
        kernels = library.cpu()
        assert kernels is not None
        self._read = kernels.omni_read

    def __call__(self, _: int) -> None:
        self._read(self.memory.data_ptr(), self.memory.numel())
