"""The raw rows, put in order: which of them count, and their figures by task, method and seed."""

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evolora import InputError
from study.budget import Budget
from study.measure import Job, Row
from study.methods import METHODS, Options
from study.runner import chosen_setting, of_processor
from study.statistics import at_cost
from study.tasks import TASKS

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Results:
    """The runs of one budget: `runs[task][method][seed]` is a row. `settings` holds what the searches chose; `stale`
    names the methods and tasks whose runs were made with other options or data than today's."""

    budget: Budget
    runs: dict[str, dict[str, dict[int, Row]]]
    settings: dict[tuple[str, str], Options]
    stale: list[str]
    errors: int

    def seeds(self, task: str, *methods: str) -> list[int]:
        """The seeds that all these methods were run with."""
        found = [set(self.runs.get(task, {}).get(method, {})) for method in methods]
        return sorted(set.intersection(*found))

    def tests(self, task: str, method: str, seeds: Sequence[int]) -> Floats:
        """Test rewards at the end of the budget of seconds."""
        return np.array([self.runs[task][method][seed]["test"] for seed in seeds], dtype=float)

    def shared_flops(self, task: str, methods: Sequence[str], seeds: Sequence[int]) -> float | None:
        """The most FLOPs that all these runs reached; None where a run has not counted them."""
        found = [self.runs[task][method][seed]["flops"] for method in methods for seed in seeds]
        return None if None in found else float(min(found))

    def tests_at_flops(self, task: str, method: str, seeds: Sequence[int], flops: float) -> Floats:
        """Test rewards of the best adapter (on validation) that the runs had after so many FLOPs."""
        curves = [self.runs[task][method][seed]["curve"] for seed in seeds]
        return np.array([at_cost(np.array(curve["flops"]), np.array(curve["test"]), flops) for curve in curves])

    def base(self, task: str) -> float:
        """The untouched base's test reward."""
        return next(float(row["base"]) for seeds in self.runs[task].values() for row in seeds.values())

    def normalised(self, task: str, rewards: Floats) -> Floats:
        """0 is the untouched base, 1 the most that can be earned."""
        base = self.base(task)
        return (rewards - base) / (TASKS[task].top - base)

    def scores(self, method: str, tasks: Sequence[str]) -> dict[str, Floats]:
        """Normalised test rewards by task, for the tasks where there are any."""
        found = {task: self.seeds(task, method) for task in tasks}
        return {task: self.normalised(task, self.tests(task, method, seeds)) for task, seeds in found.items() if seeds}

    def shared_seeds(self, method: str, tasks: Sequence[str]) -> dict[str, list[int]]:
        """By task the seeds that `method` and the one it is compared with were both run with; tasks without one are
        left out."""
        return {task: seeds for task in tasks if (seeds := self.seeds(task, METHODS[method].beside, method))}

    def side_by_side(self, method: str, tasks: Sequence[str]) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """Normalised test rewards by task of the method that `method` is compared with, and its own, on the seeds that
        they share."""
        shared = self.shared_seeds(method, tasks)
        whole, changed = (
            {task: self.normalised(task, self.tests(task, name, seeds)) for task, seeds in shared.items()}
            for name in (METHODS[method].beside, method)
        )
        return whole, changed

    def side_by_side_at_flops(self, method: str, tasks: Sequence[str]) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """The same at equal FLOPs: on each task at the most that all these runs reached. A task where a run has not
        counted them is left out."""
        pair = METHODS[method].beside, method
        whole: dict[str, Floats] = {}
        changed: dict[str, Floats] = {}
        for task, seeds in self.shared_seeds(method, tasks).items():
            if (flops := self.shared_flops(task, pair, seeds)) is not None:
                whole[task], changed[task] = (
                    self.normalised(task, self.tests_at_flops(task, name, seeds, flops)) for name in pair
                )
        return whole, changed

    def methods(self) -> list[str]:
        """Those with a run, in the table's order."""
        return [name for name in METHODS if any(name in methods for methods in self.runs.values())]

    def tasks(self) -> list[str]:
        """Those with a run, in the table's order."""
        return [name for name in TASKS if name in self.runs]


def collect(rows: Iterable[Row], budget: Budget) -> Results:
    """The runs that count: of the processor that has made most, of each task's data and each method's options the
    newest, never two kinds side by side."""
    rows = [row for row in rows if row["budget"] == budget.name and row["task"] in TASKS and row["method"] in METHODS]
    processors = Counter(row["processor"] for row in rows)
    if processors:
        rows = of_processor(rows, processors.most_common(1)[0][0])
    whole = [row for row in rows if "error" not in row]
    newest_task = {row["task"]: row["task_sha256"] for row in whole}
    whole = [row for row in whole if row["task_sha256"] == newest_task[row["task"]]]
    settings: dict[tuple[str, str], Options] = {}
    for task in TASKS:
        for name, method in METHODS.items():
            if method.searched and (setting := chosen_setting(whole, task, name, budget)) is not None:
                settings[task, name] = setting
    study = [
        row
        for row in whole
        if row["phase"] == "study" and row["setting"] == settings.get((row["task"], row["method"]), {})
    ]
    # A searched method's options are its task's own.
    newest = {_kind(row): row["options_sha256"] for row in study}
    runs: dict[str, dict[str, dict[int, Row]]] = {}
    for row in study:
        if row["options_sha256"] == newest[_kind(row)]:
            runs.setdefault(row["task"], {}).setdefault(row["method"], {})[row["seed"]] = row
    counted = [row for methods in runs.values() for seeds in methods.values() for row in seeds.values()]
    stale = sorted({text for row in counted for text in _stale(row)})
    return Results(budget, runs, settings, stale, sum("error" in row for row in rows))


def _kind(row: Row) -> tuple[str, str]:
    return row["method"], row["task"] if METHODS[row["method"]].searched else ""


def _stale(row: Row) -> list[str]:
    """What of a run is no longer as it was: its task, its method, or a method that is now refused."""
    try:
        today = _today(row["task"], row["method"], tuple(row["setting"].items()))
    except InputError:
        return [row["method"]]
    names = {"task_sha256": f"task {row['task']}", "options_sha256": row["method"]}
    return [name for field, name in names.items() if today[field] != row[field]]


@functools.cache
def _today(task: str, method: str, setting: tuple[tuple[str, object], ...]) -> Row:
    return Job(task, method, 0, Budget(gens=1), setting=dict(setting)).identity()
