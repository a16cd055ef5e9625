"""Parts of a batch side by side, each in a thread of its own.

Threads that share one operation wait for each other at its end: a small model's operations are too short for that, and
many times slower as soon as anything else runs. Parts wait for each other once a batch.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

Result = TypeVar("Result")


class Threads:
    """Up to `count` threads, which are started when they are first needed."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool: ThreadPoolExecutor | None = None

    def side_by_side(self, run: Callable[[int], Result], parts: int) -> list[Result]:
        """`run(i)` for i < `parts`, as many at once as there are threads, each with an equal share of the caller's
        threads for its operations."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.count, thread_name_prefix="evolora")
        each = max(1, torch.get_num_threads() // parts)

        def run_part(index: int) -> Result:
            torch.set_num_threads(each)  # of the operations that this thread starts
            return run(index)

        futures = [self._pool.submit(run_part, index) for index in range(parts)]
        try:
            return [future.result() for future in futures]
        finally:
            wait(futures)  # whatever has happened, nothing may be left running on an engine

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
