"""The soup of a run's finalists beside the best of them, of the same run, on the test prompts.

    python benchmarks/soups.py --tasks translate arithmetic --seeds 0 1

Every run has the defaults of `evolora train` but for its budget. Prints a table and writes one JSON line a run; runs
that are already in the file are not made again. The tasks are those of the study but for noisy: where rewards vary
there is no soup.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from study.statistics import Scores, stratified_interval
from study.tasks import TASKS

from evolora import evolve
from evolora.evolution.loop import Evolution
from evolora.evolution.soup import SOUP, soup
from evolora.population.population import Population
from evolora.runs import run as runs
from evolora.runs.assembly import assemble
from evolora.runs.config_file import read_run_config
from evolora.runs.options import make_options
from evolora.runs.tracking.view import Silence


def measure(task: str, flops: float, seed: int) -> dict[str, Any]:
    """One run's figures."""
    rows, reward = TASKS[task].rows(), TASKS[task].true_reward
    with tempfile.TemporaryDirectory() as folder, _noted() as finalists:
        run = Path(folder) / "run"
        result = evolve(
            out=str(run),
            data=rows,
            reward=reward,
            seed=seed,
            budget_flops=flops,
            save_every=10_000,
            **TASKS[task].options,
        )
        parts = assemble(make_options(read_run_config(run)), reward, Silence())
        (ranked,) = finalists
        mixed = soup(ranked, range(len(ranked)), id=-1, generation=0)
        both = torch.cat([ranked.genomes[:1], mixed.genomes])
        tests, validations = (
            parts.evaluator.evaluate(both, examples).fitness.tolist()
            for examples in (parts.task.test, parts.task.validation)
        )
    return {
        "task": task,
        "flops": flops,
        "seed": seed,
        "best": round(tests[0], 4),
        "soup": round(tests[1], 4),
        "best_validation": round(validations[0], 4),
        "soup_validation": round(validations[1], 4),
        "chosen": result.summary["winner"]["operator"] == SOUP,
    }


@contextmanager
def _noted() -> Iterator[list[Population]]:
    """Inside, the best finalists of each run, which its soup is made of, are noted."""
    found: list[Population] = []
    ranked_with_soup = runs.best_finalists

    def noted(evolution: Evolution, count: int) -> Any:
        config = evolution.config
        evolution.config = config.model_copy(update={"soup": 0})
        ranked, *_ = ranked_with_soup(evolution, config.soup + 1)
        # The base is among them, and who is behind it has no part in the soup.
        ids = [individual.id for individual in ranked.individuals]
        better = ids.index(0) if 0 in ids else config.soup
        found.append(ranked.select(range(max(1, min(better, config.soup)))))
        evolution.config = config
        return ranked_with_soup(evolution, count)

    runs.best_finalists = noted
    try:
        yield found
    finally:
        runs.best_finalists = ranked_with_soup


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=[name for name, task in TASKS.items() if not task.noise])
    parser.add_argument("--flops", type=float, default=1e12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "soups.jsonl")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    rows = [row for row in rows if row["flops"] == options.flops]
    for seed in options.seeds:
        for task in options.tasks:
            if any((row["task"], row["seed"]) == (task, seed) for row in rows):
                continue
            rows.append(measure(task, options.flops, seed))
            with options.out.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    gains = {}
    print("| task | runs | best finalist | soup | winner | soup chosen |\n|---|---|---|---|---|---|")
    for task in options.tasks:
        found = [row for row in rows if row["task"] == task and row["seed"] in options.seeds]
        best, mixed = (np.array([row[name] for row in found]) for name in ("best", "soup"))
        chosen = np.array([row["chosen"] for row in found])
        winner = np.where(chosen, mixed, best)
        gains[task] = winner - best
        means = f"{best.mean():.3f} | {mixed.mean():.3f} | {winner.mean():.3f}"
        print(f"| {task} | {len(found)} | {means} | {chosen.sum()} |")

    def over_tasks(scores: Scores) -> float:
        return float(np.mean([values.mean() for values in scores.values()]))

    low, high = stratified_interval(over_tasks, gains)
    print(f"winner minus best finalist, mean over tasks: {over_tasks(gains):+.4f} (95% {low:+.4f} to {high:+.4f})")


if __name__ == "__main__":
    main()
