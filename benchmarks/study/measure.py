"""One run of the study: made, judged by the noise-free reward, and written as one small row."""

import functools
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from speed.machine import cpu_model
from torch import Tensor

from evolora import evolve
from evolora.evolution.loop import Evolution
from evolora.population.evaluation import mean_fitness
from evolora.population.lineage import Lineage
from evolora.rewards import RewardScorer
from evolora.runs.assembled import Parts
from evolora.runs.assembly import assemble
from evolora.runs.config_file import read_run_config
from evolora.runs.given import Given, given_reward
from evolora.runs.options import make_options
from evolora.runs.tracking.view import Silence
from evolora.tasks.task import columns_of
from study.best_of_n import best_of_n
from study.budget import Budget, Point, cost_of, thinned
from study.methods import METHODS, Method, Options, options_sha256
from study.sketch import OPTIONS as SKETCH_OPTIONS
from study.sketch import sketch
from study.tasks import TASKS, StudyTask

Row = dict[str, Any]

# A curve is judged on so many of the test prompts; the end of a run on all.
CURVE_PROMPTS = 128


@dataclass(frozen=True)
class Job:
    """A run to be made. `setting` holds what a search chose, or tries."""

    task: str
    method: str
    seed: int
    budget: Budget
    phase: str = "study"
    setting: Options = field(default_factory=dict)

    @property
    def options(self) -> Options:
        """How the method works, without task, seed and budget."""
        method = METHODS[self.method]
        if method.kind == "sketch":
            return dict(SKETCH_OPTIONS)
        return {**method.options, **self.setting}

    def identity(self) -> Row:
        """What a finished run is known by. Raises InputError when this version refuses the options."""
        return {
            "phase": self.phase,
            "task": self.task,
            "task_sha256": _task_sha256(self.task),
            "method": self.method,
            "options_sha256": options_sha256(METHODS[self.method], self.options),
            "setting": self.setting,
            "seed": self.seed,
            "budget": self.budget.name,
            # The same seconds are another budget on another one.
            "processor": cpu_model(),
        }


@functools.cache
def _task_sha256(name: str) -> str:
    return TASKS[name].sha256


def measure(job: Job) -> Row:
    """Make the run; its row: who it was, test rewards of base and winner, what it cost, and its curve."""
    started = time.perf_counter()
    method, task = METHODS[job.method], TASKS[job.task]
    test: float | None
    if method.kind == "evolve":
        with tempfile.TemporaryDirectory(prefix="evolora-study-") as folder:
            parts, points, test, winner = _evolved(job, task, Path(folder))
    else:
        parts, points, test, winner = _own_loop(job, method, task)
    curve = thinned(points)
    base, tests = _judge(parts, curve)
    last = points[-1]
    start = Point(0.0, 0, None if last.flops is None else 0.0, test=tests[0])
    ends = [start, *curve]
    return job.identity() | {
        "base": _short(base),
        "test": _short(base if test is None else test),
        "winner": winner,
        "generations": len(points),
        "seconds": _short(last.seconds),
        "tokens": last.tokens,
        "flops": _short(last.flops),
        "wall_seconds": round(time.perf_counter() - started, 1),
        "curve": {
            "seconds": [_short(point.seconds) for point in ends],
            "tokens": [point.tokens for point in ends],
            "flops": None if last.flops is None else [_short(point.flops) for point in ends],
            "validation": [_short(point.validation) for point in ends],
            "test": [_short(value) for value in tests],
        },
    }


def _evolved(job: Job, task: StudyTask, folder: Path) -> tuple[Parts, list[Point], float, str]:
    run = folder / "run"
    with _recorded() as bests:
        result = evolve(
            reward=task.reward(job.seed),
            data=task.rows(),
            out=str(run),
            seed=job.seed,
            threads=1,
            save_every=1_000_000,
            **{**job.budget.options(), **task.options, **job.options},
        )
    points = [
        Point(*cost_of(metrics), validation=metrics["validation.best"], genome=genome)
        for metrics, genome in zip(result.history, bests, strict=True)
    ]
    parts = assemble(make_options(read_run_config(run)), Given(reward=given_reward(task.true_reward)), Silence())
    winner = result.summary["winner"]
    # The run's own figure is as noisy as its reward.
    test = winner["test"]["reward"] if not task.noise else _true_test(parts, run, winner["id"], task)
    return parts, points, float(test), str(winner["operator"])


def _true_test(parts: Parts, run: Path, winner: int, task: StudyTask) -> float:
    """The noise-free reward of what the winner wrote in its run's test."""
    lineage = Lineage(run / "lineage.sqlite")
    query = f"SELECT prompt, completion FROM samples WHERE stage = 'test' AND individual = {int(winner)}"
    written = dict(lineage.query(query))
    lineage.close()
    examples = parts.task.test
    scores = RewardScorer(task.true_reward).score(
        prompts=[example.prompt for example in examples],
        completions=[written[example.prompt] for example in examples],
        columns=columns_of(examples),
    )
    return float(mean_fitness(scores.rewards[None])[0])


def _own_loop(job: Job, method: Method, task: StudyTask) -> tuple[Parts, list[Point], float | None, str]:
    with assembled(task, job.seed) as parts:
        reward = task.reward(job.seed)
        if method.kind == "best-of-n":
            points = best_of_n(parts, reward, task.true_reward, job.seed, job.budget)
            return parts, points, points[-1].test, f"best of {len(points)}"
        points = sketch(parts, reward, job.seed, job.budget)
        genome = points[-1].genome
        assert genome is not None
        test = float(parts.evaluator.evaluate(genome[None], parts.task.test).fitness[0])
        return parts, points, test, "sketch"


@contextmanager
def assembled(task: StudyTask, seed: int) -> Iterator[Parts]:
    """The parts of a run on a task, with its noise-free reward."""
    with tempfile.TemporaryDirectory(prefix="evolora-study-") as folder:
        data = Path(folder) / "data.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in task.rows()), encoding="utf-8")
        config = make_options({"data": str(data), "reward": "exact", "seed": seed, "threads": 1})
        yield assemble(config, Given(reward=given_reward(task.true_reward)), Silence())


def _judge(parts: Parts, curve: list[Point]) -> tuple[float, list[float]]:
    """The base's test reward, and the rewards of base and curve on the curve's share of the test prompts."""
    base = parts.evaluator.evaluate(parts.founder[None], parts.task.test)
    examples = parts.task.test[:CURVE_PROMPTS]
    first = float(mean_fitness(base.rewards[:, :CURVE_PROMPTS])[0])
    if any(point.test is not None for point in curve):
        return float(base.fitness[0]), [first, *(float(point.test or 0.0) for point in curve)]
    distinct: dict[int, Tensor] = {id(point.genome): point.genome for point in curve if point.genome is not None}
    fitness = parts.evaluator.evaluate(torch.stack(list(distinct.values())), examples).fitness
    by_genome = dict(zip(distinct, map(float, fitness), strict=True))
    return float(base.fitness[0]), [first, *(by_genome[id(point.genome)] for point in curve)]


@contextmanager
def _recorded() -> Iterator[list[Tensor]]:
    """Inside, the best adapter so far (on validation) is noted after each generation of a run: what the run would have
    given had it ended there. A genome that stays the best is one object."""
    bests: list[Tensor] = []
    known: dict[int, Tensor] = {}
    step = Evolution.step

    def noted(self: Evolution, progress: float = 0.0) -> dict[str, Any]:
        metrics = step(self, progress)
        best = self.best()
        bests.append(known.setdefault(best.individuals[0].id, best.genomes[0]))
        return metrics

    Evolution.step = noted  # type: ignore[method-assign]
    try:
        yield bests
    finally:
        Evolution.step = step  # type: ignore[method-assign]


def _short(value: float | None) -> float | None:
    """Five digits are more than a figure is good for."""
    return None if value is None else float(f"{value:.5g}")
