"""What parts of the hybrid are worth on a real model, and how much of mutation and crossover costs nothing: on two
tasks that carry no claim of the test bed, answers in one word and capitals as JSON, otherwise as the test bed has it.

    python benchmarks/real_parts.py --seeds 0 & python benchmarks/real_parts.py --seeds 1      two side by side

Writes one JSON line a run; runs that are already in the file are not made again. Prints a table: test fitness, the mean
over seeds with the worst seed in brackets, and the drift, the KL from the base a token on neutral sentences.
"""

import argparse
import functools
import itertools
import json
import os
import statistics
import tempfile
import warnings
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from speed.machine import processor
from study.runner import filled
from testbed.arms import ALL_TERMS, ARMS
from testbed.held_out import judge
from testbed.measure import start
from testbed.model import base_model
from testbed.rows import DATA, Row
from testbed.tasks import BedTask

SECONDS = 180.0
METHODS: dict[str, dict[str, Any]] = {
    "default": {},
    "a scale that changes 10%": {"mutation_changes": 0.1},
    "a scale that changes 3%": {"mutation_changes": 0.03},
    "three in ten mutated": {"mutation_rate": 0.3},
    "no crossover": {"crossover_rate": 0.0},
    "neither": ARMS["hybrid-no-operators"].options,
    "no genes": {"genes": "none"},
    "neither, no genes": {**ARMS["hybrid-no-operators"].options, "genes": "none"},
    "no replay": {"replay": 0},
    # What the hybrid has beside evolution and the test bed's single arms have not.
    "GRPO alone, with replay": {**ARMS["grpo-terms"].options, "replay": 64, "fitness_first": True},
}


@dataclass(frozen=True, kw_only=True)
class Trial(BedTask):
    """A task whose rows are at hand."""

    made: list[Row]

    @property
    def rows(self) -> list[Row]:
        return self.made


def one_word() -> list[Row]:
    """The task of `make real`."""
    folder, rows = files("evolora").joinpath("assets", "tasks", "one-word"), []
    for split in ("train", "validation", "test"):
        for line in folder.joinpath(f"{split}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            rows.append({"prompt": row["prompt"], "target": row["target"], "split": split})
    return rows


def capitals_as_json() -> list[Row]:
    """The test bed's capitals, asked for in another form."""
    rows = []
    for line in (DATA / "capitals.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        asked = row["prompt"][0]["content"].replace("Answer with one word.", 'Answer as {"capital": "..."}.')
        rows.append(
            {**row, "prompt": [{"role": "user", "content": asked}], "target": json.dumps({"capital": row["target"]})}
        )
    return rows


def trials() -> dict[str, Trial]:
    found = {"one word": one_word(), "capitals as JSON": capitals_as_json()}
    return {name: Trial(name=name, kind="cold", what="", fitness="exact", made=rows) for name, rows in found.items()}


def measure(
    tasks: dict[str, Trial],
    model: str,
    *,
    task: str,
    method: str,
    seed: int,
    seconds: float,
    dtype: str,
    processor: str,
) -> dict[str, Any]:
    """One run's figures, judged from its adapter."""
    trial = replace(tasks[task], options={"dtype": dtype})
    options = {**ARMS["hybrid"].options_on(trial), **METHODS[method]}
    with tempfile.TemporaryDirectory() as folder:
        result = start(model, trial, seed, Path(folder) / "run", options, seconds)
        found = judge(trial, model, ALL_TERMS, result.adapter, seed)
    return {
        "task": task,
        "method": method,
        "seed": seed,
        "seconds": seconds,
        "dtype": dtype,
        "processor": processor,
        "generations": len(result.history),
        "validation": [point["validation.best"] for point in result.history],
        "test": found["fitness"],
        "pass_16": found["pass_16"],
        "drift": found["drift"],
    }


def table(rows: list[dict[str, Any]], tasks: list[str]) -> str:
    """Test fitness and drift by task and method."""
    lines = [f"| changed | {' | '.join(tasks)} | seeds |", "|---|" + "---|" * (len(tasks) + 1)]
    for method in METHODS:
        cells, seeds = [], set()
        for task in tasks:
            found = [row for row in rows if (row["task"], row["method"]) == (task, method)]
            tests, drifts = [row["test"] for row in found], [row["drift"] for row in found]
            cells.append(
                f"{statistics.mean(tests):.3f} ({min(tests):.3f}), {statistics.mean(drifts):.3f}" if found else ""
            )
            seeds |= {row["seed"] for row in found}
        lines.append(f"| {method} | {' | '.join(cells)} | {len(seeds)} |")
    return "\n".join(lines)


def main() -> None:
    tasks = trials()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(tasks), default=list(tasks), metavar="TASK")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--model", help="the base model's folder (default: that of scripts/smollm2.py)")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--dtype", default="bfloat16", help="float32 where the processor has no bfloat16")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "real_parts.jsonl")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    told = {"seconds": options.seconds, "dtype": options.dtype, "processor": processor()}
    cells = (
        {"seed": seed, "task": task, "method": method, **told}
        for seed, task, method in itertools.product(options.seeds, options.tasks, options.methods)
    )
    measured = functools.partial(measure, tasks, options.model or base_model())
    print(table(filled(options.out, cells, measured), options.tasks))


if __name__ == "__main__":
    main()
