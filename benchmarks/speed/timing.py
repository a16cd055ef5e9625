"""Timing that is fair to every side: in one process, in turn, and the median."""

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Side = Callable[[], Tensor | None]


def seconds_of(run: Callable[[], object]) -> float:
    """How long one call takes."""
    gc.collect()  # garbage of one side must not be collected on the next one's time
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def alternate(
    sides: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    between: Callable[[], object] | None = None,
) -> dict[str, list[float]]:
    """Time every side `repeats` times, in turn, so that a slow minute of the machine meets all of them.

    Each round has an order of its own, so that no side always follows the same neighbour. `between` runs once a round,
    untimed. The callers have run each side before: that is the warm-up.
    """
    names = list(sides)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats):
        for name in random.Random(turn).sample(names, len(names)):
            seconds[name].append(seconds_of(sides[name]))
        if between is not None:
            between()
    return seconds


def best_threads(run: Side, counts: Sequence[int]) -> tuple[int, Side]:
    """Which of some numbers of torch's threads `run` is fastest with, by one timed run each after a warm-up, and `run`
    with so many."""
    sides = {count: _with_threads(run, count) for count in counts}
    if len(sides) == 1:
        return counts[0], sides[counts[0]]
    seconds = {}
    for count, side in sides.items():
        side()
        seconds[count] = seconds_of(side)
    best = min(seconds, key=seconds.__getitem__)
    return best, sides[best]


def _with_threads(run: Side, threads: int) -> Side:
    def with_threads() -> Tensor | None:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return run()
        finally:
            torch.set_num_threads(before)

    return with_threads


def median(values: list[float]) -> float:
    return statistics.median(values)
