"""What a refiner is: reinforcement learning on some individuals' own genomes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

from evolora.models.cost import Costs
from evolora.population.evaluation import Evaluation
from evolora.population.population import Hyperparameters, Individual
from evolora.tasks.task import Example


@dataclass(frozen=True)
class Sampled:
    """A completion that the individual of a `row` has sampled for training, what it is worth, NaN for no score, and how
    many tokens had been sampled by the end of its rollout."""

    row: int
    prompt: str
    completion: str
    completion_ids: Sequence[int]
    worth: float
    tokens: int


@dataclass(frozen=True)
class Refinement:
    """What came of refining k individuals: their new `genomes` [k, genome_length], row by row; `stats`, a dictionary
    of the metrics in docs/metrics.md for each; the `costs` of rollouts and updates; on how many completions
    the reward `failed`; and, from a refiner that goes step by step, the `trajectory` [steps, k,
    genome_length], the genomes after each step, the last of which is `genomes`; and the lowest and the highest reward
    that its rollouts `earned`, if any; and all that was `sampled`."""

    genomes: Tensor
    stats: list[dict[str, float]]
    costs: Costs
    failed: int
    trajectory: Tensor | None = None
    earned: tuple[float, ...] = ()
    sampled: Sequence[Sampled] = ()


def joined(parts: Sequence[Refinement], rows: Sequence[int]) -> Refinement:
    """Refinements of some individuals each as that of all; `rows` says where each of them belongs."""
    if len(parts) == 1:
        return parts[0]
    order = sorted(range(len(rows)), key=rows.__getitem__)
    stats = [stats for part in parts for stats in part.stats]
    steps = [part.trajectory for part in parts if part.trajectory is not None]
    earned = [value for part in parts for value in part.earned]
    costs, sampled, places = Costs(), list[Sampled](), iter(rows)
    for part in parts:
        own = list(islice(places, len(part.stats)))
        before = costs.generated_tokens
        sampled += [replace(one, row=own[one.row], tokens=before + one.tokens) for one in part.sampled]
        costs += part.costs
    return Refinement(
        torch.cat([part.genomes for part in parts])[order],
        [stats[row] for row in order],
        costs,
        sum(part.failed for part in parts),
        torch.cat(steps, 1)[:, order] if len(steps) == len(parts) else None,
        (min(earned), max(earned)) if earned else (),
        sampled,
    )


class Refiner(Protocol):
    """Improves individuals by reinforcement learning. `name` marks what it made, in metrics and lineage."""

    name: str

    def refine(
        self,
        genomes: Tensor,
        examples: Sequence[Example],
        *,
        key: Sequence[tuple[int, ...]],
        children: Sequence[int] | None = None,
        hyperparameters: Sequence[Hyperparameters | None] | None = None,
        steps: int | None = None,
        progress: float = 0.0,
    ) -> Refinement:
        """Refine `genomes` [k, genome_length], which stay as they are, on the prompts of `examples`.

        `key` names each row's draws: (generation, individual id). Up to rounding a row comes out as it would alone: a
        generation's individuals may be refined in any slices, one call after another. With `steps` there are so many
        rollouts, each on an equal part of `examples`; without, as many as the refiner is set to, each on all of them.
        `children` are the ids of the refined individuals, for a refiner whose state travels with individuals; without
        them nothing of this refinement does. `hyperparameters` are the individuals' own, None for the refiner's.
        `progress`, from 0 to 1, is how much of the run is done, for what changes over it.
        """
        ...

    def keep(self, individuals: Sequence[Individual]) -> None:
        """Forget what it holds of all but these individuals. One of whom it holds nothing inherits from its first
        parent of whom it does."""
        ...

    def keep_to(self, reference: Tensor) -> None:
        """Told the genome [genome_length] that is the reference, for a refiner that has one; else it is the base."""
        del reference

    def observe(self, examples: Sequence[Example], evaluation: Evaluation) -> None:
        """Told what the population wrote for `examples` and what it earned."""
        del examples, evaluation

    def starts_from_nothing(self) -> None:
        """Told that the base is paid for nothing that it writes greedily."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
