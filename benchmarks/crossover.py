"""Does crossover pay? Two parents, each tuned on one half of a task, and their child by every crossover: is it better
on both halves than either parent, and what does one run of both parents' cost on the whole task reach?

    python benchmarks/crossover.py                  the runs that are missing, and the table
    python benchmarks/crossover.py --seeds 0 --pairs words

All three runs of a seed start from one genome, as islands of one run do, and have the defaults of `evolora train`. A
crossover that draws makes four children, of which the best on both halves' validation prompts is tested; the others
make one. Writes one JSON line for each pair and seed.
"""

import argparse
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from study.report import table
from study.runner import filled
from study.statistics import stratified_interval
from torch import Tensor

from evolora import evolve
from evolora.models.export import load_adapter
from evolora.models.genome import GenomeLayout
from evolora.runs.assembled import Parts
from evolora.runs.assembly import assemble
from evolora.runs.given import Given
from evolora.runs.options import make_options
from evolora.runs.tracking.view import Silence
from evolora.strategies.operators import CROSSOVERS, FITTER_FIRST
from evolora.tasks.task import Example, load_task

RESULTS = Path(__file__).resolve().parent / "results" / "crossover.jsonl"
FLOPS = 8e11  # of a parent, some 12 s; the control has twice that
CHILDREN = 4
TRIM = 0.2  # the share of a parent's changes that TIES keeps

Row = dict[str, Any]
Rows = list[Row]
Child = Callable[[Tensor, Tensor, Tensor, GenomeLayout, torch.Generator], Tensor]


def _bundled(name: str) -> Rows:
    task = load_task(task=name)
    splits = {"train": task.train, "validation": task.validation, "test": task.test}
    return [
        {"prompt": each.prompt, "target": str(each.columns["target"]), "split": split}
        for split, examples in splits.items()
        for each in examples
    ]


def _words(first: bool) -> Rows:
    """French words of the task translate that begin with a to f, or with the later letters: about half each."""
    return [row for row in _bundled("translate") if (row["prompt"].split("'")[1][0].lower() <= "f") == first]


PAIRS: dict[str, Callable[[], tuple[Rows, Rows]]] = {
    "words": lambda: (_words(True), _words(False)),
    "translate, arithmetic": lambda: (_bundled("translate"), _bundled("arithmetic")),
    "translate, format": lambda: (_bundled("translate"), _bundled("format")),
}


def task_arithmetic(first: Tensor, second: Tensor, ancestor: Tensor, *_: object) -> Tensor:
    """Both parents' changes in full (Ilharco et al., 2022, arXiv 2212.04089)."""
    return first + second - ancestor


def mean(first: Tensor, second: Tensor, *_: object) -> Tensor:
    return (first + second) / 2


def ties(first: Tensor, second: Tensor, ancestor: Tensor, *_: object) -> Tensor:
    """Of each parent's changes the largest fifth; at each place the sign with more mass; the mean of those that have it
    (Yadav et al., 2023, arXiv 2306.01708).

    >>> ties(torch.tensor([1.0, 0.1, 0, 0, 0]), torch.tensor([3.0, 0, 0, 0, 0.1]), torch.zeros(5)).tolist()
    [2.0, 0.0, 0.0, 0.0, 0.0]
    """
    changes = torch.stack([first - ancestor, second - ancestor])
    least = changes.abs().topk(max(1, int(TRIM * changes.shape[1])), dim=1).values[:, -1:]
    kept = torch.where(changes.abs() >= least, changes, 0.0)
    agreeing = (kept.sign() == kept.sum(0).sign()) & (kept != 0)
    return ancestor + (kept * agreeing).sum(0) / agreeing.sum(0).clamp(min=1)


def _of_project(name: str) -> Child:
    def child(
        first: Tensor, second: Tensor, ancestor: Tensor, layout: GenomeLayout, generator: torch.Generator
    ) -> Tensor:
        more = {"ancestor": ancestor} if name == "dare" else {}
        return CROSSOVERS[name](first, second, layout, generator, **more)

    return child


MIXES: dict[str, Child] = {
    **{name: _of_project(name) for name in CROSSOVERS if name not in FITTER_FIRST},
    "mean": mean,
    "task arithmetic": task_arithmetic,
    "ties": ties,
}
DRAWS_NOTHING = ("blend", "mean", "task arithmetic", "ties")


def measure(pair: str, seed: int, flops: float) -> Row:
    """Both parents, their children and the control, each on both halves' test prompts."""
    halves = PAIRS[pair]()
    with tempfile.TemporaryDirectory() as folder:
        adapters = [
            _tuned(rows, seed, cost, Path(folder) / name)
            for name, rows, cost in (
                ("first", halves[0], flops),
                ("second", halves[1], flops),
                ("control", halves[0] + halves[1], 2 * flops),
            )
        ]
        parts = _assembled(halves[0] + halves[1], seed, Path(folder) / "data.jsonl")
        genomes = torch.stack([parts.layout.from_state_dict(load_adapter(adapter)[1]) for adapter in adapters])
    own = [{row["prompt"] for row in rows} for rows in halves]
    tests, validations = (
        [[example for example in examples if example.prompt in prompts] for prompts in own]
        for examples in (parts.task.test, parts.task.validation)
    )
    first, second, control = _scores(parts, genomes, tests)
    return {
        "pair": pair,
        "seed": seed,
        "flops": flops,
        "base": _scores(parts, parts.founder[None], tests)[0],
        "first": first,
        "second": second,
        "control": control,
        "children": {name: _child(name, parts, genomes, tests, validations, seed) for name in MIXES},
    }


def _tuned(rows: Rows, seed: int, flops: float, folder: Path) -> Path:
    options: dict[str, Any] = {"data": rows, "reward": "similarity", "budget_flops": flops, "max_new_tokens": 24}
    return evolve(out=str(folder), seed=seed, threads=1, save_every=10_000, view=None, **options).adapter


def _assembled(rows: Rows, seed: int, data: Path) -> Parts:
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = {"data": str(data), "reward": "similarity", "seed": seed, "threads": 1, "max_new_tokens": 24}
    return assemble(make_options(words), Given(), Silence())


def _scores(parts: Parts, genomes: Tensor, halves: list[list[Example]]) -> list[list[float]]:
    """Each genome's mean similarity on either half."""
    found = [parts.evaluator.evaluate(genomes, examples).fitness for examples in halves]
    return [[round(float(value), 4) for value in row] for row in np.stack(found, 1)]


def _child(
    name: str,
    parts: Parts,
    genomes: Tensor,
    tests: list[list[Example]],
    validations: list[list[Example]],
    seed: int,
) -> list[float]:
    generator = torch.Generator().manual_seed(seed)
    count = 1 if name in DRAWS_NOTHING else CHILDREN
    children = torch.stack(
        [MIXES[name](genomes[0], genomes[1], parts.founder, parts.layout, generator) for _ in range(count)]
    )
    best = int(np.argmax([sum(own) for own in _scores(parts, children, validations)])) if count > 1 else 0
    return _scores(parts, children[best : best + 1], tests)[0]


def tables(rows: Rows) -> Iterator[str]:
    """For each pair: every child's mean on either half, in how many seeds it is better than either parent on both, and
    by how much it is ahead of the best parent and of the control, over both halves."""
    for pair in PAIRS:
        found = [row for row in rows if row["pair"] == pair]
        if not found:
            continue
        lines = [[name, *_halves([row[name] for row in found])] for name in ("base", "first", "second", "control")]
        for name in MIXES:
            children = [row["children"][name] for row in found]
            both = sum(_better(child, row) for child, row in zip(children, found, strict=True))
            over = [
                np.mean(child) - max(np.mean(row["first"]), np.mean(row["second"]))
                for child, row in zip(children, found, strict=True)
            ]
            beside = [np.mean(child) - np.mean(row["control"]) for child, row in zip(children, found, strict=True)]
            lines.append(
                [name, *_halves(children), f"{both} of {len(found)}", _with_interval(over), _with_interval(beside)]
            )
        head = [
            "",
            "first half",
            "second half",
            "better than both parents on both",
            "over the best parent",
            "over the control",
        ]
        yield f"{pair}, {len(found)} seeds\n\n{table(head, [[*line, *[''] * (6 - len(line))] for line in lines])}"


def _better(child: list[float], row: Row) -> bool:
    return all(own > max(row["first"][half], row["second"][half]) for half, own in enumerate(child))


def _halves(values: list[list[float]]) -> list[str]:
    return [f"{value:.3f}" for value in np.mean(values, axis=0)]


def _with_interval(values: list[Any]) -> str:
    low, high = stratified_interval(lambda group: float(group["all"].mean()), {"all": np.array(values, dtype=float)})
    return f"{np.mean(values):+.3f} ({low:+.3f} to {high:+.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3])
    parser.add_argument("--flops", type=float, default=FLOPS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    cells = (
        {"pair": pair, "seed": seed, "flops": options.flops}
        for seed, pair in itertools.product(options.seeds, options.pairs)
    )
    print("\n\n".join(tables(filled(options.out, cells, measure))))


if __name__ == "__main__":
    main()
