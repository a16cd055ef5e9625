"""One run of the test bed: made, judged from its adapter alone, and written as one row."""

import hashlib
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from speed.machine import processor
from study.budget import POINTS, Budget
from study.measure import Job, Row

from evolora import evolve, resume
from evolora.files import file_sha256
from evolora.rng import keyed_seed
from evolora.runs.run import Result
from testbed.arms import ARMS, BUDGET_SECONDS, RUNGS, TERMS, Arm, Options, options_sha256
from testbed.first_hit import watched
from testbed.held_out import assembled, judge
from testbed.plan import ELSEWHERE, PHASE, Planned
from testbed.supervised import supervise
from testbed.tasks import TASKS, BedTask, in_float32


@dataclass(frozen=True, kw_only=True)
class BedJob(Job):
    """A run to be made: `method` is its arm, `setting` what the plan changes of it, `model` the base model's folder."""

    model: str

    @classmethod
    def of(cls, run: Planned, model: str, seconds: float = BUDGET_SECONDS, phase: str = PHASE) -> "BedJob":
        budget = Budget(seconds=seconds)
        return cls(run["task"], run["arm"], run["seed"], budget, phase, run["setting"], model=model)

    @property
    def on(self) -> BedTask:
        return in_float32(TASKS[self.task]) if self.phase == ELSEWHERE else TASKS[self.task]

    @property
    def options(self) -> Options:
        return {**ARMS[self.method].options_on(self.on), **self.setting}

    def identity(self) -> Row:
        task = self.on
        # The same rows for another model are another task.
        known = hashlib.sha256(f"{task.sha256} {_weights_sha256(self.model)}".encode()).hexdigest()[:12]
        return {
            "phase": self.phase,
            "task": self.task,
            "task_sha256": known,
            "method": self.method,
            "options_sha256": options_sha256(ARMS[self.method], task, self.setting),
            "setting": self.setting,
            "seed": self.seed,
            "budget": self.budget.name,
            "processor": processor(),
        }


@cache
def _weights_sha256(model: str) -> str:
    return file_sha256(Path(model) / "model.safetensors")


@dataclass(frozen=True)
class Made:
    """What a run left: its adapter, the reward that it followed, its seconds and tokens, its curve, and more."""

    adapter: Path
    reward: str
    seconds: float
    tokens: int
    curve: list[dict[str, Any]]
    more: dict[str, Any]


def measure_run(job: Job) -> Row:
    """Make the run; its row. Raises what the run raises."""
    assert isinstance(job, BedJob)
    started, task, arm = time.perf_counter(), job.on, ARMS[job.method]
    with tempfile.TemporaryDirectory(prefix="evolora-testbed-") as folder:
        with watched(task) as hits:
            made = _MAKERS[arm.kind](job, arm, task, Path(folder))
        found = judge(task, job.model, made.reward, made.adapter, job.seed)
    base = judge_base(task, job.model)
    return job.identity() | {
        "options": job.options,
        "base": _short(base["fitness"]),
        "test": _short(found["fitness"]),
        **{name: _short(found[name]) for name in ("reward", "pass_1", "pass_16", "kl", "drift")},
        "base_pass_16": _short(base["pass_16"]),
        "seconds": _short(made.seconds),
        "tokens": made.tokens,
        "hits": hits.as_json(),
        "curve": made.curve,
        **made.more,
        "texts": found["texts"],
        "wall_seconds": round(time.perf_counter() - started, 1),
    }


_BASES: dict[tuple[str, str], dict[str, Any]] = {}


def judge_base(task: BedTask, model: str) -> dict[str, Any]:
    """The untouched base on the test rows, once a process."""
    key = task.sha256, model
    if key not in _BASES:
        _BASES[key] = judge(task, model, task.followed, None, 0)
    return _BASES[key]


# --- who makes them ----------------------------------------------------------------------------------------------


def _within(seconds: float) -> dict[str, Any]:
    """The options that end a run with the generation whose end is nearest to its budget of so many seconds: generations
    are long, and arms whose own are longer should not have more."""

    def over(metrics: dict[str, Any]) -> bool:
        return bool(metrics["time.loop"] + metrics["time.generation"] / 2 >= seconds)

    return {"budget_seconds": seconds, "callbacks": [over]}


def start(model: str, task: BedTask, seed: int, folder: Path, options: Options, seconds: float) -> Result:
    """A run of the test bed, to its end."""
    return evolve(
        model=model,
        data=task.rows,
        out=str(folder),
        seed=seed,
        threads=1,
        save_every=1_000_000,
        kept=False,
        view=None,
        **_within(seconds),
        **options,
    )


def _evolved(job: BedJob, _: Arm, task: BedTask, folder: Path) -> Made:
    assert job.budget.seconds is not None
    result = start(job.model, task, job.seed, folder / "run", job.options, job.budget.seconds)
    return _made(result, job.options["reward"], {})


def _made(result: Result, reward: str, more: dict[str, Any]) -> Made:
    last, winner = result.history[-1], result.summary["winner"]
    known = {"generations": len(result.history), "winner": winner["operator"], "genes": _genes(last)}
    return Made(result.adapter, reward, last["time.loop"], _tokens(last), _curve(result), {**known, **more})


def _genes(metrics: dict[str, Any]) -> dict[str, Any]:
    """What the last generation says of the individuals' own rates, weights and so on."""
    return {name: value for name, value in metrics.items() if name.startswith("genes.")}


def _tokens(metrics: dict[str, Any]) -> int:
    return int(metrics["tokens.evaluation"] + metrics["tokens.rollout"])


def _curve(result: Result) -> list[dict[str, Any]]:
    """At most 20 points: seconds, tokens, and the best on validation so far, by fitness and by reward."""
    every = max(1, -(-len(result.history) // POINTS))
    points = result.history[::-1][::every][::-1]
    return [
        {
            "seconds": _short(point["time.loop"]),
            "tokens": _tokens(point),
            "validation": _short(point["validation.best"]),
            "reward": _short(point.get("validation.reward")),
        }
        for point in points
    ]


def _searched(job: BedJob, _: Arm, task: BedTask, folder: Path) -> Made:
    """Successive halving over single terms; all that it spends is the arm's."""
    whole = job.budget.seconds
    assert whole is not None
    share = whole / BUDGET_SECONDS
    draw = random.Random(keyed_seed(job.seed, "search", job.task))
    order = {term: draw.random() for term in TERMS}
    runs: dict[str, Result] = {}

    def spent() -> float:
        return sum(float(result.history[-1]["time.loop"]) for result in runs.values())

    def rank(term: str) -> tuple[float, float]:
        return -float(runs[term].history[-1]["validation.best"] or 0.0), order[term]

    standing = sorted(TERMS, key=order.__getitem__)
    for count, seconds in RUNGS:
        for term in (standing := standing[:count]):
            if term not in runs:
                options = {**job.options, "reward": term}
                runs[term] = start(job.model, task, job.seed, folder / str(len(runs)), options, seconds * share)
            elif runs[term].history[-1]["time.loop"] < seconds * share:
                runs[term] = resume(runs[term].folder, view=None, **_within(seconds * share))
        standing.sort(key=rank)
    best, tried = (
        standing[0],
        {term: float(result.history[-1]["validation.best"] or 0.0) for term, result in runs.items()},
    )
    if (left := whole - spent()) > 0:
        before = float(runs[best].history[-1]["time.loop"])
        runs[best] = resume(runs[best].folder, view=None, **_within(before + left))
    made = _made(runs[best], best, {"searched": {"best": best, "validation": tried}})
    tokens = sum(_tokens(result.history[-1]) for result in runs.values())
    return Made(made.adapter, made.reward, spent(), tokens, made.curve, made.more)


def _supervised(job: BedJob, arm: Arm, task: BedTask, folder: Path) -> Made:
    assert job.budget.seconds is not None
    with assembled(task, job.model, task.followed, None) as parts:
        epochs, seconds = supervise(parts, folder, seed=job.seed, seconds=job.budget.seconds, **arm.options)
    return Made(folder, task.followed, seconds, 0, [], {"generations": epochs, "winner": "supervised", "genes": {}})


_MAKERS: dict[str, Callable[[BedJob, Arm, BedTask, Path], Made]] = {
    "evolve": _evolved,
    "search": _searched,
    "supervised": _supervised,
}


def _short(value: float | None) -> float | None:
    """Five digits are more than a figure is good for."""
    return None if value is None else float(f"{value:.5g}")
