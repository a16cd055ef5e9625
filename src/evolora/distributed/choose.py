"""Who a run's batches are dealt to, by its options."""

import functools
from collections.abc import Callable, Sequence

from transformers import PreTrainedModel

from evolora.distributed.checking import RowCheck
from evolora.distributed.crew import LocalCrew
from evolora.distributed.engine import DealtEngine
from evolora.distributed.jobs import Worker
from evolora.distributed.options import WorkersOptions
from evolora.distributed.remote import EngineSpec
from evolora.engine.base import Engine, Replicates
from evolora.engine.budget import Budget
from evolora.engine.calibration import MOST_ROWS_DECODED, MOST_ROWS_OF_DEVICE, available_cores, is_small

_SLICE_ROWS = 64
ROWS_AT_ONCE = MOST_ROWS_OF_DEVICE
"""Rows that are asked for at once where they are dealt: each worker has some of them."""


def slice_rows(options: WorkersOptions, model: PreTrainedModel, *, devices: int = 1) -> int | None:
    """Rows of a slice; None where batches are not dealt. It must not depend on who there is to compute them, nor on
    what memory is free."""
    if not options.asked and devices == 1:
        return None
    return options.slice_rows or (_SLICE_ROWS if is_small(model) else MOST_ROWS_DECODED)


def deal(
    engine: Engine,
    spec: Callable[[str], EngineSpec],
    options: WorkersOptions,
    *,
    elsewhere: Sequence[Callable[[], Engine]] = (),
    tolerance: float,
    gives_back: bool = False,
    rows: int,
    threads: int,
    budget: Budget,
    say: Callable[[str], None],
) -> DealtEngine:
    """An engine like the given one, in slices of so many `rows`: by workers on Ray, each with an engine of its own,
    which `spec` says for a device, or by copies of `engine` in this process, and by those that it has `elsewhere`, on
    other devices; each with so many `threads`. Log-probabilities that differ by more than the `tolerance` are wrong. In
    this process what updates leave free of its heap is given back where it `gives_back`.

    Raises InputError where there can be no workers.
    """
    if not options.remote:
        side_by_side = max(1, available_cores() // threads) if engine.device.type == "cpu" else 1
        workers = [lambda: Worker(engine, gives_back=gives_back)]
        if isinstance(engine, Replicates):
            workers += [lambda: Worker(engine.replica(), gives_back=gives_back)] * (side_by_side - 1)
        workers += [functools.partial(_worker, make) for make in elsewhere]
        return DealtEngine(engine, LocalCrew(workers, threads=threads), slice_rows=rows, budget=budget)
    from evolora.distributed.ray_crew import RayCrew

    gpus = options.gpus if options.gpus is not None else float(engine.device.type == "cuda")
    crew = RayCrew(
        spec("cuda" if gpus else "cpu"),
        address=options.ray,
        count=options.count,
        gpus=gpus,
        limit=options.limit,
        own=engine,
        check=RowCheck(engine, tolerance),
        say=say,
    )
    return DealtEngine(engine, crew, slice_rows=rows, budget=budget)


def _worker(make: Callable[[], Engine]) -> Worker:
    return Worker(make())
