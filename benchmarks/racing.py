"""Races against full evaluation: what they save, and what they cost in final fitness.

    python benchmarks/racing.py --tasks translate arithmetic --seeds 0 1 2

Every run has the defaults of `evolora train` but for `--racing` and `--pop`. Prints a table and writes one JSON line a
run; runs that are already in the file are not made again.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from evolora import evolve


def measure(task: str, racing: float | None, pop: int, gens: int, seed: int) -> dict[str, Any]:
    """One run's figures."""
    with tempfile.TemporaryDirectory() as folder:
        result = evolve(out=f"{folder}/run", task=task, racing=racing, pop=pop, gens=gens, seed=seed, save_every=10_000)
    return {
        "task": task,
        "racing": racing,
        "pop": pop,
        "gens": gens,
        "seed": seed,
        "evaluation_tokens": result.history[-1]["tokens.evaluation"],
        "dropped": sum(line.get("racing.dropped", 0) for line in result.history),
        "seconds": round(result.summary["seconds"], 1),
        "test": result.summary["winner"]["test"]["reward"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=["translate", "arithmetic"])
    parser.add_argument("--levels", type=float, nargs="+", default=[0.05])
    parser.add_argument("--pop", type=int, default=16)
    parser.add_argument("--gens", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "racing.jsonl")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []

    def runs(task: str, racing: float | None) -> list[dict[str, Any]]:
        wanted = (task, racing, options.pop, options.gens)
        return [row for row in rows if tuple(row[name] for name in ("task", "racing", "pop", "gens")) == wanted]

    for seed in options.seeds:
        for task in options.tasks:
            for racing in (None, *options.levels):
                if any(row["seed"] == seed for row in runs(task, racing)):
                    continue
                rows.append(measure(task, racing, options.pop, options.gens, seed))
                with options.out.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    print("| task | racing | test reward, by seed | mean | evaluation tokens | seconds |\n|---|---|---|---|---|---|")
    for task in options.tasks:
        for racing in (None, *options.levels):
            found = [row for row in runs(task, racing) if row["seed"] in options.seeds]
            test, tokens, seconds = (
                statistics.mean(row[name] for row in found) for name in ("test", "evaluation_tokens", "seconds")
            )
            by_seed = ", ".join(f"{row['test']:.3f}" for row in found)
            print(f"| {task} | {racing or 'none'} | {by_seed} | {test:.3f} | {tokens:,.0f} | {seconds:.0f} |")


if __name__ == "__main__":
    main()
