"""The six tasks: three cold, two warm, one rugged. Their rows are in data/, which rows.py makes.

What the untouched base reaches on each is in data/base_rates.json; docs/results/testbed.md shows it.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from evolora.rewards import exact
from testbed.judging import apologises
from testbed.rows import DATA, Row

MAX_NEW_TOKENS = 16
ONE_LINE = {"stop": ["\n"]}  # of prompts that are no chat: an answer ends with its line
Kind = Literal["cold", "warm", "rugged"]


@dataclass(frozen=True, kw_only=True)
class BedTask:
    """A task: `fitness` is what is wanted, as `--fitness` has it, and `pays` what one completion is worth by it, 1 or
    0. Where `by_completion` the fitness is the mean of that, and RL can follow it."""

    name: str
    kind: Kind
    what: str
    fitness: str
    pays: Callable[..., Sequence[float | None]] = exact
    by_completion: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> list[Row]:
        return _rows(self.name)

    @property
    def run_options(self) -> dict[str, Any]:
        """What every run on it is given alike."""
        return {"max_new_tokens": MAX_NEW_TOKENS, "dtype": "bfloat16", **self.options}

    @property
    def followed(self) -> str:
        """The fitness as a reward."""
        return self.fitness if self.by_completion else "exact"

    def hits(self, completions: Sequence[str], columns: Mapping[str, Sequence[object]]) -> list[bool]:
        """Which completions are all that is wanted."""
        return [bool(value) for value in self.pays(completions=completions, **columns)]

    @property
    def sha256(self) -> str:
        """Changes with the task's rows and what is wanted."""
        said = [self.rows, self.fitness, self.run_options]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]


def in_float32(task: BedTask) -> BedTask:
    """The task as it is run on a processor without instructions for bfloat16, which takes ten times as long there."""
    return replace(task, options={**task.options, "dtype": "float32"})


@functools.cache
def _rows(name: str) -> list[Row]:
    lines = (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def labelled(completions: Sequence[str], target: Sequence[object], **_: object) -> list[float]:
    """1 for the label, as macro-F1 reads it.

    >>> labelled([" Mixed", "mixed feelings"], target=["mixed"] * 2)
    [1.0, 0.0]
    """
    return [float(text.strip().casefold() == label) for text, label in zip(completions, target, strict=True)]


TASKS: dict[str, BedTask] = {
    task.name: task
    for task in (
        BedTask(name="capitals", kind="cold", what="the capital, in one word", fitness="exact"),
        BedTask(name="sums", kind="cold", what="a sum, the number alone", fitness="exact"),
        BedTask(name="yes-or-no", kind="cold", what="whether a thing is of a kind, `yes` or `no`", fitness="exact"),
        BedTask(
            name="reviews",
            kind="warm",
            what="positive, negative or mixed, of labels that are far from equally many; macro-F1",
            fitness="macro-f1",
            pays=labelled,
            by_completion=False,
            options=ONE_LINE,
        ),
        BedTask(
            name="gym",
            kind="warm",
            what="reasoning-gym's chain_sum: a sum or difference of two numbers of one digit",
            fitness="exact",
            options=ONE_LINE,
        ),
        BedTask(
            name="replies",
            kind="rugged",
            what="one sentence that says sorry and names the item, by a rule; one of the terms is a classifier of such "
            "replies, which sees neither order, length nor the item",
            fitness="testbed.judging:apologises",
            pays=apologises,
        ),
    )
}
COLD = tuple(name for name, task in TASKS.items() if task.kind == "cold")
OTHERS = tuple(name for name, task in TASKS.items() if task.kind != "cold")
