"""The hybrid, the genetic algorithm alone and PPO alone, at the same number of generated tokens.

    python benchmarks/hybrid_and_parts.py --budget-tokens 100000 --seeds 0 1 2

Every run has the defaults of `evolora train` and stops after the generation that reaches the budget; validation counts,
the final choice and test do not, being the same for all. Prints a table of test rewards and writes one JSON line a run;
runs that are already in the file are not made again.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from evolora import evolve

METHODS: dict[str, dict[str, Any]] = {
    "hybrid": {},
    "GA alone": {"refiner": "none"},
    "PPO alone": {"strategy": "none"},
}


def measure(task: str, method: str, seed: int, budget: int) -> dict[str, Any]:
    """One run's figures."""
    with tempfile.TemporaryDirectory() as folder:
        options = {**METHODS[method], "task": task, "seed": seed, "budget_tokens": budget}
        result = evolve(out=f"{folder}/run", save_every=10_000, **options)
    last = result.history[-1]
    return {
        "task": task,
        "method": method,
        "seed": seed,
        "budget_tokens": budget,
        "generations": result.summary["generations"],
        "tokens": last["tokens.evaluation"] + last["tokens.rollout"],
        "seconds": round(result.summary["seconds"], 1),
        "base": result.summary["base"]["test"]["reward"],
        "test": result.summary["winner"]["test"]["reward"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="translate")
    parser.add_argument("--budget-tokens", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "hybrid_and_parts.jsonl")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    for seed in options.seeds:
        for method in options.methods:
            key = (options.task, method, seed, options.budget_tokens)
            if any((row["task"], row["method"], row["seed"], row["budget_tokens"]) == key for row in rows):
                continue
            rows.append(measure(options.task, method, seed, options.budget_tokens))
            with options.out.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    print("| method | test reward, by seed | mean | tokens | seconds |\n|---|---|---|---|---|")
    for method in options.methods:
        runs = [
            row
            for row in rows
            if (row["task"], row["method"], row["budget_tokens"]) == (options.task, method, options.budget_tokens)
            and row["seed"] in options.seeds
        ]
        means = [statistics.mean(row[name] for row in runs) for name in ("test", "tokens", "seconds")]
        by_seed = ", ".join(f"{row['test']:.3f}" for row in runs)
        print(f"| {method} | {by_seed} | {means[0]:.3f} | {means[1]:,.0f} | {means[2]:.0f} |")


if __name__ == "__main__":
    main()
