"""The list of runs, fixed before the first of them: 160 at most.

python benchmarks/testbed/plan.py      writes runs.json
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from testbed.arms import ABLATIONS, RATES, singles_on
from testbed.tasks import COLD, TASKS

RUNS = Path(__file__).resolve().parent / "runs.json"
MOST = 160
# The phases of the rows that count: of the list's processor, and of another one, in float32.
PHASE, ELSEWHERE = "testbed", "testbed on another processor"

# How many seeds, from 0 on. The cold tasks carry the claim that must be shown, and have the most.
COLD_SEEDS, OTHER_SEEDS = 5, 3
ABLATION_SEEDS = {"cold": 2, "warm": 1, "rugged": 1}
# Where the learning rate varies: one cold task and one warm one.
RATE_TASKS = ("capitals", "gym")
RATE_ARMS = ("hybrid", "grpo-terms")

Planned = dict[str, Any]


def planned() -> list[Planned]:
    """The runs: seeds outermost, so that any stop leaves a balanced table."""
    seeds = range(max(COLD_SEEDS, OTHER_SEEDS))
    return [
        {"task": task, "arm": arm, "setting": setting, "seed": seed}
        for seed in seeds
        for task in TASKS
        for arm, setting in _of(task, seed)
    ]


def _of(task: str, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    if seed < (COLD_SEEDS if task in COLD else OTHER_SEEDS):
        yield "hybrid", {}
        yield from ((arm, {}) for arm in singles_on(task))
    if seed < ABLATION_SEEDS[TASKS[task].kind]:
        yield from ((arm, {}) for arm in ABLATIONS)
    if seed == 0:
        if task in RATE_TASKS:
            yield from ((arm, {"lr": rate}) for arm in RATE_ARMS for rate in RATES)
        yield "supervised", {}


def read_plan() -> list[Planned]:
    """What was fixed."""
    return [dict(run) for run in json.loads(RUNS.read_text(encoding="utf-8"))]


if __name__ == "__main__":
    lines = ",\n".join(json.dumps(run) for run in planned())
    RUNS.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(f"{len(planned())} runs: {RUNS}")
