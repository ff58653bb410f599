"""Eyes on one core that look at a street as fast as they can; asked line by line by
:mod:`.describe_live`.

"alone": for five seconds. "beside": until the next line. Each answers one line of JSON.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable

from omni import threads

ALONE_S = 5.0


def main() -> None:
    threads.set_environment()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    import torch

    torch.set_num_threads(1)
    from omni.assistant.embedded import open_eyes
    from omni.benchmarks.describe_material import street_frames
    from omni.config import load

    watcher = open_eyes(load())
    frames = list(itertools.islice(street_frames(), 40))
    state: object | None = None
    _, state = watcher.look(frames[0], 0, None)
    number = 0

    def look_until(is_over: Callable[[], bool]) -> float:
        nonlocal state, number
        began_s, first = time.perf_counter(), number
        while not is_over():
            number += 1
            _, state = watcher.look(frames[number % len(frames)], 250 * number, state)
        return (number - first) / (time.perf_counter() - began_s)

    print("{}", flush=True)
    sys.stdin.readline()
    give_up_s = time.perf_counter() + ALONE_S
    print(json.dumps({"fps": look_until(lambda: time.perf_counter() > give_up_s)}), flush=True)
    sys.stdin.readline()
    ended = threading.Event()

    def await_end() -> None:
        sys.stdin.readline()
        ended.set()

    threading.Thread(target=await_end, daemon=True).start()
    print(json.dumps({"fps": look_until(ended.is_set)}), flush=True)


if __name__ == "__main__":
    main()
