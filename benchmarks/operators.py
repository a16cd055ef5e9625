"""The mutations and the crossovers, ranked under a black-box reward: the genetic algorithm alone, without a refiner, at
the same number of generated tokens.

    python benchmarks/operators.py --tasks translate arithmetic --budget-tokens 100000 --seeds 0 1 2

A mutation is run at several scales, for one scale means something else in each, with children of one parent only; a
crossover with children of two parents only, mutated by the default. Everything else has its default. Validation counts
into the budget, the final choice and test do not, being the same for all.

Writes one JSON line a run; runs that are already in the file are not made again. Prints a table of test rewards, best
first, with the mean over tasks of the rank among all (1 is best).
"""

import argparse
import itertools
import statistics
import tempfile
from pathlib import Path
from typing import Any

from study.runner import filled

from evolora import evolve
from evolora.strategies.operators import CROSSOVERS

# In each one's own unit: weights, or shares of a tensor's or a singular value's size.
SCALES = {
    "gaussian": (0.005, 0.01, 0.02, 0.04),
    "module": (0.01, 0.02, 0.04, 0.08),
    "masked": (0.02, 0.04, 0.08, 0.16),
    "relative": (0.05, 0.1, 0.2, 0.4),
    "svd": (0.05, 0.1, 0.2, 0.4),
}


def methods() -> dict[str, dict[str, Any]]:
    """The options of each method, by its name."""
    found: dict[str, dict[str, Any]] = {}
    for name, scales in SCALES.items():
        for scale in scales:
            found[f"mutation {name} {scale}"] = {"mutation": name, "mutation_scale": scale, "crossover_rate": 0.0}
    for name in CROSSOVERS:
        found[f"crossover {name}"] = {"crossover": name, "crossover_rate": 1.0}
    found["default"] = {}
    return found


METHODS = methods()


def measure(task: str, method: str, seed: int, budget_tokens: int) -> dict[str, Any]:
    """One run's figures."""
    with tempfile.TemporaryDirectory() as folder:
        options = {**METHODS[method], "task": task, "seed": seed, "gens": 10_000, "budget_tokens": budget_tokens}
        result = evolve(out=f"{folder}/run", refiner="none", save_every=10_000, threads=1, **options)
    last = result.history[-1]
    return {
        "task": task,
        "method": method,
        "seed": seed,
        "budget_tokens": budget_tokens,
        "generations": result.summary["generations"],
        "tokens": last["tokens.evaluation"],
        "seconds": round(result.summary["seconds"], 1),
        "base": result.summary["base"]["test"]["reward"],
        "validation": result.summary["winner"]["validation"],
        "test": result.summary["winner"]["test"]["reward"],
    }


def table(rows: list[dict[str, Any]], tasks: list[str]) -> str:
    """Test rewards by task, methods with the best mean rank first; means over seeds, the worst seed in brackets."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        found.setdefault(row["method"], {}).setdefault(row["task"], []).append(row)
    whole = {method: by_task for method, by_task in found.items() if len(by_task) == len(tasks)}
    means = {
        task: {method: statistics.mean(run["test"] for run in by_task[task]) for method, by_task in whole.items()}
        for task in tasks
    }
    # Equals share a rank.
    ranks = {
        method: statistics.mean(
            1 + sum(other > means[task][method] for other in means[task].values()) for task in tasks
        )
        for method in whole
    }
    lines = [
        f"| method | rank | {' | '.join(tasks)} | generations | tokens | seconds |",
        "|---|---|" + "---|" * (len(tasks) + 3),
    ]
    for method in sorted(whole, key=lambda name: (ranks[name], name)):
        runs = [run for task in tasks for run in whole[method][task]]
        rewards = [
            f"{means[task][method]:.3f} ({min(run['test'] for run in whole[method][task]):.3f})" for task in tasks
        ]
        sums = [statistics.mean(run[name] for run in runs) for name in ("generations", "tokens", "seconds")]
        figures = " | ".join(f"{value:,.0f}" for value in sums)
        lines.append(f"| {method} | {ranks[method]:.1f} | {' | '.join(rewards)} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["translate", "arithmetic"])
    parser.add_argument("--budget-tokens", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "operators.jsonl")
    options = parser.parse_args()
    cells = (
        {"task": task, "method": method, "seed": seed, "budget_tokens": options.budget_tokens}
        for seed, task, method in itertools.product(options.seeds, options.tasks, options.methods)
    )
    print(table(filled(options.out, cells, measure), options.tasks))


if __name__ == "__main__":
    main()
