"""What a fitness is: what judges an individual by all that it wrote."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from evolora.rewards import RewardContext, Scorer
from evolora.tasks.task import Example

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

Value = Callable[[Rows], float]
"""What a fitness of the whole is of some completions, by their numbers, any of them several times."""


class FitnessFunction(Protocol):
    """A function that judges one individual at a time.

    It is called by keyword as a reward is, with `prompts`, `completions`, `completion_ids` and the data's columns, a
    row for each completion, the samples of a prompt one after another. It returns one number for all of them, or, as a
    reward does, one for each. A built-in one may return a `Value` in the place of a number: what it has read is then
    not read again where its fitness is asked for on other rows.

    `recomputes = False` says that it is not to be asked again for intervals and comparisons: it is a person, or slow.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


@dataclass(frozen=True)
class FitnessContext:
    """The run that a fitness is for: how many `samples` there are of each prompt, the data's `columns`, of these the
    `group` column, if there is one, and what a reward is made from."""

    samples: int
    columns: tuple[str, ...]
    group: str | None
    rewards: RewardContext


@dataclass(frozen=True)
class Judged:
    """One individual: its fitness, NaN where it has none; how often it `failed` to be judged; and what the fitness is
    the mean of, `by_prompt` [prompts], and `by_completion` where each completion is paid alone. Of a fitness of the
    whole there is no such thing: there `value` says what it would be on some of the `prompts`, how many there are, by
    their numbers, unless that cannot be found out."""

    fitness: float
    failed: int
    by_prompt: Floats | None = None
    value: Value | None = None
    prompts: int = 0
    by_completion: Floats | None = None


class Fitness(Protocol):
    """Judges individuals. `name` is for logs; `varies`: another time the same may be worth something
    else."""

    name: str
    varies: bool
    scorer: Scorer

    @property
    def pays(self) -> Scorer | None:
        """What says of each completion on its own what it is worth, and can be asked of all that RL samples; None for
        what judges the whole, people, and what is slow."""
        ...

    def judged(
        self, examples: Sequence[Example], texts: Sequence[Sequence[str]], ids: Sequence[Sequence[list[int]]]
    ) -> list[Judged]:
        """Each individual, from its completions of all `examples`, the samples of a prompt one after another."""
        ...


def mean_fitness(rewards: Floats) -> Floats:
    """The mean over scored completions of each row of [n, prompts]; NaN for a row without any."""
    return np.array(
        [math.fsum(row[~np.isnan(row)]) / n if (n := int((~np.isnan(row)).sum())) else math.nan for row in rewards]
    )
