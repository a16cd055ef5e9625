"""Genes beyond the weights: an individual's own hyperparameters, which are mixed and mutate as its weights do.

An inner reward whose weights evolve while selection goes by what is wanted: Jaderberg et al., 2019, "Human-level
performance in 3D multiplayer games with population-based reinforcement learning". Log-normal steps: Schwefel, 1981.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evolora.population.population import Hyperparameters
from evolora.rng import keyed_seed
from evolora.strategies.options import GeneName

# How far the logarithm of a gene goes at a step, and between the first individuals.
STEP, SPREAD = 0.4, 1.0
# As many times higher or lower than the option's value a rate or a KL weight may be at most.
WIDEST = 30.0
# Temperatures, in the option's: few, as individuals of one temperature sample and are scored together.
TEMPERATURES = (0.7, 0.85, 1.0, 1.2, 1.4)
# Their neighbours are some 0.17 apart in the logarithm.
TEMPERATURE_STEP = 0.15
# The chance that a summand is switched off, switched on, or comes to dominate, and the share that it has then.
SWITCHED, DOMINANT = 0.2, 0.8
# A factor below this is 0.
LEAST = 0.05


@dataclass(frozen=True)
class Genes:
    """Which hyperparameters evolve, around which ones: the options' own, with a factor of 1 for each of the reward's
    summands. Every gene's draws are its own, by the key of whoever gets it.

    A rate or a KL weight stays within 30 times the option's value and a 30th of it. The factors of the summands are
    never negative, and 1 on average, so that a reward of terms alike in size keeps its size.
    """

    start: Hyperparameters
    evolving: Collection[GeneName]
    seed: int

    def child(
        self, parents: Sequence[Hyperparameters], key: tuple[int, ...], *, first: bool = False
    ) -> Hyperparameters:
        """Those of a child: each gene is one parent's or their geometric mean, and mutates. The `first` individuals are
        spread further, so that those are among them that follow little but one summand."""
        start = child = self.start
        for name, field in (("lr", "lr"), ("kl-weight", "kl_weight")):
            if name in self.evolving and (value := getattr(start, field)) > 0:
                drawn = self._generator(name, key)
                mixed = _one_or_mean([getattr(each, field) for each in parents], drawn)
                mixed *= math.exp(drawn.normal(0.0, SPREAD if first else STEP))
                bounded = min(max(mixed, value / WIDEST), value * WIDEST)
                child = replace(child, lr=bounded) if field == "lr" else replace(child, kl_weight=bounded)
        if "temperature" in self.evolving and start.temperature is not None:
            drawn = self._generator("temperature", key)
            mixed = _one_or_mean([each.temperature or start.temperature for each in parents], drawn)
            mixed *= math.exp(drawn.normal(0.0, TEMPERATURE_STEP * (2 if first else 1)))
            ladder = [start.temperature * step for step in TEMPERATURES]
            child = replace(child, temperature=min(ladder, key=lambda each: abs(math.log(each / mixed))))
        if "reward-weights" in self.evolving and start.reward_weights:
            drawn = self._generator("reward-weights", key)
            factors = _first_factors(len(start.reward_weights), drawn) if first else _factors(parents, drawn)
            child = replace(child, reward_weights=tuple(factors.tolist()))
        return child

    def _generator(self, name: str, key: tuple[int, ...]) -> np.random.Generator:
        return np.random.default_rng(keyed_seed(self.seed, "genes", name, *key))


def _one_or_mean(values: Sequence[float], drawn: np.random.Generator) -> float:
    """One parent's or, as often, the geometric mean."""
    choice = int(drawn.integers(len(values) + 1))
    return math.exp(sum(map(math.log, values)) / len(values)) if choice == len(values) else values[choice]


def _first_factors(count: int, drawn: np.random.Generator) -> np.ndarray:
    """A sparse draw: most of it falls on one summand or two, however many there are."""
    return _normalised(drawn.dirichlet(np.full(count, 1 / count)))


def _factors(parents: Sequence[Hyperparameters], drawn: np.random.Generator) -> np.ndarray:
    """As the summands' factors mean something together, they are mixed together."""
    known = np.array([each.reward_weights for each in parents])
    choice = int(drawn.integers(len(known) + 1))
    mean = known.prod(0) ** (1 / len(known))
    # Of parents with no summand in common the geometric mean has none.
    factors = known[choice] if choice < len(known) else mean if mean.any() else known.mean(0)
    factors = _normalised(factors * np.exp(drawn.normal(0.0, STEP, len(factors))))
    if drawn.random() < SWITCHED:
        factors = _switched(factors, drawn)
    return factors


def _switched(factors: np.ndarray, drawn: np.random.Generator) -> np.ndarray:
    on, off = np.flatnonzero(factors), np.flatnonzero(factors == 0)
    kind = drawn.choice(["off", "on", "dominant"])
    factors = factors.copy()
    if kind == "off" and len(on) > 1:
        factors[drawn.choice(on)] = 0
    elif kind == "on" and len(off):
        factors[drawn.choice(off)] = 1
    else:
        one = drawn.integers(len(factors))
        factors *= 1 - DOMINANT
        factors[one] += DOMINANT * len(factors)
    return _normalised(factors)


def _normalised(factors: np.ndarray) -> np.ndarray:
    """With a mean of 1, and without those that are next to nothing."""
    shares = factors / factors.mean()
    shares = np.where(shares < LEAST, 0.0, shares)
    return np.asarray(shares / shares.mean())
