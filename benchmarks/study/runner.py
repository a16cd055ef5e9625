"""Makes the runs that are missing: in worker processes side by side, each row appended as soon as its run is done."""

import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from evolora import InputError
from study.budget import Budget
from study.measure import Job, Row, measure
from study.methods import METHODS, SEARCH_GRID, SEARCH_SEEDS, Options

Say = Callable[[str], None]


# --- the file ----------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> list[Row]:
    """The rows so far; a line that a kill cut short is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def append_row(path: Path, row: Row) -> None:
    """One line by one write, on a line of its own even after one that was cut short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        if end := file.seek(0, os.SEEK_END):
            file.seek(end - 1)
            start = b"" if file.read(1) == b"\n" else b"\n"
        else:
            start = b""
        file.write(start + json.dumps(row, separators=(",", ":")).encode() + b"\n")
        os.fsync(file.fileno())


def filled(path: Path, cells: Iterable[Row], measure: Callable[..., Row]) -> list[Row]:
    """The rows of all cells of a small benchmark; `measure(**cell)` makes those that the file lacks. A row has all that
    its cell says."""
    rows, cells = read_rows(path), list(cells)
    for cell in cells:
        if not any(cell.items() <= row.items() for row in rows):
            rows.append(measure(**cell))
            append_row(path, rows[-1])
            print(json.dumps(rows[-1]), flush=True)
    return [row for row in rows if any(cell.items() <= row.items() for cell in cells)]


def of_processor(rows: Iterable[Row], processor: str) -> list[Row]:
    """The rows that were made on such a processor: no others are compared with each other at equal seconds."""
    return [row for row in rows if row["processor"] == processor]


def key_of(row: Row) -> str:
    """What a finished run is known by, of a row or a job's identity."""
    names = ("phase", "task", "task_sha256", "method", "options_sha256", "seed", "budget", "processor")
    return json.dumps([row[name] for name in names])


def finished(rows: Iterable[Row]) -> set[str]:
    """The keys of the runs that need not be made again; one that failed is tried again."""
    return {key_of(row) for row in rows if "error" not in row}


# --- the plan ----------------------------------------------------------------------------------------------------


def search_jobs(tasks: Sequence[str], methods: Sequence[str], budget: Budget) -> list[Job]:
    """The runs that choose the settings of the methods that are searched."""
    return [
        Job(task, method, seed, budget, "search", setting)
        for seed in SEARCH_SEEDS
        for task in tasks
        for method in methods
        if METHODS[method].searched
        for setting in SEARCH_GRID
    ]


def chosen_setting(rows: Iterable[Row], task: str, method: str, budget: Budget) -> Options | None:
    """The setting with the highest mean test reward in its search, None until the search is complete.

    Of equals the first in the grid. Test prompts choose: in the searched methods' favour, not the hybrid's.
    """
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if "error" in row or row["phase"] != "search":
            continue
        if (row["task"], row["method"], row["budget"]) == (task, method, budget.name):
            found.setdefault(json.dumps(row["setting"], sort_keys=True), {})[row["seed"]] = row["test"]
    means = []
    for setting in SEARCH_GRID:
        by_seed = found.get(json.dumps(setting, sort_keys=True), {})
        if set(by_seed) < set(SEARCH_SEEDS):
            return None
        means.append(sum(by_seed[seed] for seed in SEARCH_SEEDS) / len(SEARCH_SEEDS))
    return dict(SEARCH_GRID[means.index(max(means))])


def study_jobs(
    rows: Sequence[Row],
    tasks: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    budget: Budget,
    *,
    search: bool,
    say: Say = print,
) -> list[Job]:
    """The runs to compare: seeds outermost, then tasks, then methods, so that any stop leaves a balanced table."""
    settings: dict[tuple[str, str], Options | None] = {}
    for task in tasks:
        for method in methods:
            setting: Options | None = {}
            if search and METHODS[method].searched:
                setting = chosen_setting(rows, task, method, budget)
                if setting is None:
                    say(f"{method} on {task}: left out, its search is not complete")
            settings[task, method] = setting
    return [
        Job(task, method, seed, budget, "study", setting)
        for seed in seeds
        for task in tasks
        for method in methods
        if (setting := settings[task, method]) is not None
    ]


def missing_jobs(jobs: Iterable[Job], rows: Iterable[Row], say: Say = print) -> list[Job]:
    """Those that are not in the file; of a method that this version refuses one message."""
    done, refused, missing = finished(rows), set(), []
    for job in jobs:
        if job.method in refused:
            continue
        try:
            key = key_of(job.identity())
        except InputError as error:
            refused.add(job.method)
            say(f"{job.method}: left out, this version refuses it: {error}")
            continue
        if key not in done:
            missing.append(job)
    return missing


# --- the work ----------------------------------------------------------------------------------------------------


@dataclass
class _Worker:
    process: BaseProcess
    pipe: "Connection[Any, Any]"
    job: Job | None = None


@dataclass
class Runner:
    """Makes jobs in `workers` processes side by side and appends their rows to `out`.

    Ctrl-C ends it at once; the runs that were under way are lost, the others are in the file. A run that fails leaves a
    row with `error`, and so does one whose process dies.
    """

    out: Path
    workers: int = 2
    say: Say = print
    make: Callable[[Job], Row] = measure
    failures: list[str] = field(default_factory=list)

    def run(self, jobs: Sequence[Job]) -> None:
        """Make the jobs, in order."""
        if not jobs:
            return
        began, waiting, done = time.perf_counter(), list(reversed(jobs)), 0
        workers = [_start(self.make) for _ in range(min(self.workers, len(jobs)))]
        try:
            while waiting or any(worker.job for worker in workers):
                for worker in workers:
                    if worker.job is None and waiting:
                        worker.job = waiting.pop()
                        worker.pipe.send(worker.job)
                ready = wait([worker.pipe for worker in workers if worker.job])
                for index, worker in enumerate(workers):
                    if worker.pipe in ready:
                        job, worker.job = worker.job, None
                        assert job is not None
                        try:
                            row = worker.pipe.recv()
                        except EOFError:
                            worker.process.join()
                            row = _failure(job, f"its process died with exit code {worker.process.exitcode}")
                            if waiting:
                                workers[index] = _start(self.make)
                        done += 1
                        self._note(row, done, len(jobs), time.perf_counter() - began)
        finally:
            for worker in workers:
                worker.process.terminate()
            for worker in workers:
                worker.process.join()

    def _note(self, row: Row, done: int, count: int, seconds: float) -> None:
        append_row(self.out, row)
        name = f"{row['phase']} {row['task']} {row['method']} seed {row['seed']}"
        if "error" in row:
            self.failures.append(f"{name}: {row['error'].splitlines()[-1]}")
        result = "failed" if "error" in row else f"{row['base']:.3f} -> {row['test']:.3f}"
        left = seconds / done * (count - done) / 60
        self.say(f"{done}/{count}  {name} {row['setting'] or ''}: {result}  ({left:.0f} min left)")


def _start(make: Callable[[Job], Row]) -> _Worker:
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, make), daemon=True)
    with _one_thread():
        process.start()
    theirs.close()
    return _Worker(process, ours)


class _one_thread:  # noqa: N801 - reads as a statement
    """What a process that is started inside inherits: read when numpy and torch are imported."""

    NAMES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

    def __enter__(self) -> None:
        self.before = {name: os.environ.get(name) for name in self.NAMES}
        os.environ.update(dict.fromkeys(self.NAMES, "1"))

    def __exit__(self, *_: object) -> None:
        for name, value in self.before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work(pipe: "Connection[Any, Any]", make: Callable[[Job], Row]) -> None:
    """Make jobs until the pipe is closed. Ctrl-C is the parent's to handle."""
    import warnings

    import torch
    import transformers

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for job in _received(pipe):
        try:
            row = make(job)
        except Exception:
            row = _failure(job, traceback.format_exc(limit=-3))
        pipe.send(row)


def _received(pipe: "Connection[Any, Any]") -> Iterator[Job]:
    while True:
        try:
            yield pipe.recv()
        except EOFError:
            sys.exit(0)


def _failure(job: Job, error: str) -> Row:
    return job.identity() | {"error": error.strip()[-2000:]}
