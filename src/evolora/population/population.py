"""The population: a matrix of genomes and who they are."""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# The checksum of a genome of fewer values is there before a thread would be.
_LONG = 2**20

# The operator that makes a lineage's running average.
AVERAGE = "average"
# That of the individuals that a run begins with, beside individual 0.
INITIAL = "initial"


@dataclass(frozen=True)
class Hyperparameters:
    """What an individual's own refinement is set to: the options `lr`, `kl_weight` and `entropy_weight`; the
    `temperature` of its rollouts, None for the option's; and `reward_weights`, what the reward's summands are
    multiplied by beside the user's own coefficients, empty for nothing.

    >>> Hyperparameters(1e-3, 0.0, 0.0, 1.2, (2.0, 0.0)).named(["similarity", "brevity"])
    {'lr': 0.001, 'kl_weight': 0.0, 'temperature': 1.2, 'weight.similarity': 2.0, 'weight.brevity': 0.0}
    """

    lr: float
    kl_weight: float
    entropy_weight: float
    temperature: float | None = None
    reward_weights: tuple[float, ...] = ()

    def named(self, summands: Sequence[str]) -> dict[str, float]:
        """Those that evolve, by name, the weights by those of the reward's `summands`."""
        own = {"lr": self.lr, "kl_weight": self.kl_weight, "temperature": self.temperature}
        weights = zip(summands, self.reward_weights, strict=False)
        known = {name: value for name, value in own.items() if value is not None}
        return known | {f"weight.{name}": value for name, value in weights}


@dataclass(frozen=True)
class Individual:
    """Who a genome is: its id, its parents' ids, the operator that made it, the generation it was born in, its own
    mutation scale, its fitness history as (generation, fitness) pairs, and the hyperparameters of its refinement, if
    they are its own."""

    id: int
    parents: tuple[int, ...]
    operator: str
    born: int
    mutation_scale: float
    history: tuple[tuple[int, float], ...] = ()
    hyperparameters: Hyperparameters | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Individual":
        """An individual from `dataclasses.asdict`, also after a round trip through JSON."""
        history = tuple((int(generation), float(fitness)) for generation, fitness in values["history"])
        own = values.get("hyperparameters")
        weights = () if own is None else tuple(own.get("reward_weights", ()))
        hyperparameters = None if own is None else Hyperparameters(**{**own, "reward_weights": weights})
        parents = tuple(values["parents"])
        return cls(**{**values, "parents": parents, "history": history, "hyperparameters": hyperparameters})


@dataclass(frozen=True)
class Population:
    """`genomes`, float32 [individuals, genome_length], and the individuals, row by row.

    >>> import torch
    >>> founder = Individual(id=0, parents=(), operator="base", born=0, mutation_scale=0.02)
    >>> population = Population(torch.zeros(1, 8), (founder,))
    >>> len(population)
    1
    """

    genomes: Tensor
    individuals: tuple[Individual, ...]

    def __post_init__(self) -> None:
        if self.genomes.ndim != 2 or self.genomes.shape[0] != len(self.individuals):
            raise ValueError(f"{len(self.individuals)} individuals with genomes of shape {list(self.genomes.shape)}")

    def __len__(self) -> int:
        return len(self.individuals)

    def select(self, rows: Sequence[int]) -> "Population":
        """The individuals at `rows`, in that order."""
        return Population(self.genomes[list(rows)], tuple(self.individuals[row] for row in rows))

    def join(self, other: "Population") -> "Population":
        """Both populations, one after the other."""
        return Population(torch.cat([self.genomes, other.genomes]), self.individuals + other.individuals)

    def state_dict(self) -> dict[str, Any]:
        """`genomes` as a tensor and `individuals` as JSON can hold them."""
        return {"genomes": self.genomes, "individuals": [asdict(individual) for individual in self.individuals]}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "Population":
        return cls(state["genomes"], tuple(Individual.from_dict(values) for values in state["individuals"]))


def newest(population: Population, operator: str) -> int | None:
    """The row of the youngest individual that an operator has made, if there is one.

    >>> base = Individual(id=0, parents=(), operator="base", born=0, mutation_scale=0.02)
    >>> newest(Population(torch.zeros(1, 8), (base,)), "ppo") is None
    True
    """
    rows = [row for row, individual in enumerate(population.individuals) if individual.operator == operator]
    return max(rows, key=lambda row: population.individuals[row].id, default=None)


def genome_sha256(genome: Tensor) -> str:
    """The checksum that names a genome [genome_length]: SHA-256 of its float32 values, little-endian."""
    values = genome.detach().cpu().float().numpy()
    return hashlib.sha256(np.ascontiguousarray(values, dtype="<f4").data).hexdigest()


def genome_sha256_later(genome: Tensor) -> Future[str]:
    """The same, of a long genome beside whatever is done next: a large model's takes a second. The genome must stay as
    it is until it is there."""
    if genome.numel() >= _LONG:
        return _beside().submit(genome_sha256, genome)
    there: Future[str] = Future()
    there.set_result(genome_sha256(genome))
    return there


@functools.cache
def _beside() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="evolora-checksums")
