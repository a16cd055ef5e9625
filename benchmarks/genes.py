"""What each gene is worth: the bundled model, a reward of the test bed's ten terms, and `exact` as the fitness.

    python benchmarks/genes.py --tasks arithmetic translate --gens 6 --seeds 0 1 2 3

Individuals have no genes, one kind of gene, all, or all but one kind. All make the same number of generations and
refine two individuals by three rollouts each, so that the cost is about the same. The weight of the KL penalty is left
out: the hybrid has none that could evolve.

Writes one JSON line a run; runs that are already in the file are not made again. Prints a table of test fitness, the
mean over seeds with the worst seed in brackets.
"""

import argparse
import itertools
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from study.runner import filled
from testbed.arms import ALL_TERMS

from evolora import evolve

KINDS = ("lr", "temperature", "reward-weights")
METHODS: dict[str, dict[str, Any]] = {
    "none": {"genes": None, "refine": 2, "rl_steps": 3},
    **{f"only {kind}": {"genes": [kind]} for kind in KINDS},
    "all": {"genes": list(KINDS)},
    **{f"all but {kind}": {"genes": [other for other in KINDS if other != kind]} for kind in KINDS},
}


def measure(task: str, method: str, seed: int, gens: int) -> dict[str, Any]:
    """One run's figures."""
    with tempfile.TemporaryDirectory() as folder:
        result = evolve(
            task=task,
            reward=ALL_TERMS,
            fitness="exact",
            gens=gens,
            seed=seed,
            threads=1,
            save_every=10_000,
            kept=False,
            view=None,
            out=f"{folder}/run",
            **METHODS[method],
        )
    return {
        "task": task,
        "method": method,
        "seed": seed,
        "gens": gens,
        "seconds": round(result.summary["seconds"], 1),
        "base": result.summary["base"]["test"]["fitness"],
        "test": result.summary["winner"]["test"]["fitness"],
    }


def table(rows: list[dict[str, Any]], tasks: list[str]) -> str:
    """Test fitness by task and method."""
    lines = [f"| genes | {' | '.join(tasks)} | seconds a run |", "|---|" + "---|" * (len(tasks) + 1)]
    for method in METHODS:
        cells, seconds = [], []
        for task in tasks:
            found = [row for row in rows if (row["task"], row["method"]) == (task, method)]
            tests = [row["test"] for row in found]
            cells.append(f"{statistics.mean(tests):.3f} ({min(tests):.3f})" if tests else "")
            seconds += [row["seconds"] for row in found]
        lines.append(f"| {method} | {' | '.join(cells)} | {statistics.mean(seconds) if seconds else 0:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["arithmetic", "translate"])
    parser.add_argument("--gens", type=int, default=6)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "genes.jsonl")
    options = parser.parse_args()
    cells = (
        {"seed": seed, "task": task, "method": method, "gens": options.gens}
        for seed, task, method in itertools.product(options.seeds, options.tasks, options.methods)
    )
    print(table(filled(options.out, cells, measure), options.tasks))


if __name__ == "__main__":
    main()
