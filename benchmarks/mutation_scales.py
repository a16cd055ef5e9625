"""How the mutation scale changes what a model writes and how fit its mutants are: the table in docs/algorithms.md.

    python benchmarks/mutation_scales.py tiny-gpt2
    python benchmarks/mutation_scales.py /path/to/SmolLM2-135M-Instruct

The bundled model has its default task, another is asked for capitals (reward: contains). One line a scale goes to
benchmarks/results/mutation_scales.jsonl: the changed share of the mutants' greedy completions, their mean fitness and
the best one's, and the base's. The mutants of all scales have the same noise.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from evolora.rng import keyed_generator
from evolora.runs.assembly import assemble
from evolora.runs.given import Given
from evolora.runs.options import make_options
from evolora.runs.tracking.view import Silence
from evolora.strategies.operators import MUTATIONS
from evolora.tasks.task import drawn_order

RESULTS = Path(__file__).parent / "results" / "mutation_scales.jsonl"
PROMPTS, MUTANTS = 16, 16
CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "Japan": "Tokyo", "Egypt": "Cairo",
    "Greece": "Athens", "Austria": "Vienna", "Russia": "Moscow", "China": "Beijing", "Poland": "Warsaw",
    "Norway": "Oslo", "Sweden": "Stockholm", "Ireland": "Dublin", "Portugal": "Lisbon", "Hungary": "Budapest",
    "Cuba": "Havana", "Peru": "Lima", "Kenya": "Nairobi", "Thailand": "Bangkok", "Turkey": "Ankara",
    "Finland": "Helsinki", "Denmark": "Copenhagen", "Belgium": "Brussels",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--mutation", default="gaussian")
    parser.add_argument("--scales", type=float, nargs="+", default=[0.005, 0.01, 0.02, 0.04, 0.06, 0.08])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "capitals.jsonl"
        data.write_text("".join(json.dumps(_capital(*each)) + "\n" for each in CAPITALS.items()))
        tiny = arguments.model == "tiny-gpt2"
        words = {"reward": "exact"} if tiny else {"data": str(data), "reward": "contains", "max_new_tokens": 16}
        measure(arguments, words)


def _capital(country: str, capital: str) -> dict[str, object]:
    question = f"What is the capital of {country}?"
    return {"prompt": [{"role": "user", "content": question}], "target": capital}


def measure(arguments: argparse.Namespace, words: dict[str, object]) -> None:
    """Append a line for each scale."""
    config = make_options({"model": arguments.model, "threads": 1, "seed": arguments.seed, "pop": MUTANTS, **words})
    parts = assemble(config, Given(), Silence())
    order = drawn_order(parts.task.train, arguments.seed, "mutation scales")[:PROMPTS]
    examples = [parts.task.train[row] for row in order]
    base = parts.evaluator.evaluate(parts.founder[None], examples)
    for scale in arguments.scales:
        began = time.perf_counter()
        mutants = MUTATIONS[arguments.mutation](
            parts.founder.repeat(MUTANTS, 1),
            parts.layout,
            torch.full((MUTANTS,), scale, dtype=torch.float64),
            [keyed_generator(arguments.seed, "mutation scales", mutant) for mutant in range(MUTANTS)],
        )
        found = parts.evaluator.evaluate(mutants, examples)
        changed = [
            [own != ids for own, ids in zip(row, base.completion_ids[0], strict=True)] for row in found.completion_ids
        ]
        line = {
            "model": Path(arguments.model).name,
            "mutation": arguments.mutation,
            "seed": arguments.seed,
            "scale": scale,
            "changed": float(np.mean(changed)),
            "fitness.mean": float(found.fitness.mean()),
            "fitness.best": float(found.fitness.max()),
            "fitness.base": float(base.fitness[0]),
            "rewards": found.rewards.mean(1).tolist(),
            "seconds": round(time.perf_counter() - began, 1),
        }
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps({name: value for name, value in line.items() if name != "rewards"}), flush=True)


if __name__ == "__main__":
    main()
