"""Adaptive choice of operators: those whose children gained more are chosen more often."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from evolora.population.population import Individual, Population


class AdaptivePursuit:
    """Adaptive pursuit (Thierens, 2005, "An adaptive pursuit strategy for allocating operator probabilities").

    Each arm has an estimate of its reward, q += rate * (reward - q) whenever it was used. The probability of the best
    arm moves towards p_max = 1 - (K - 1) p_min, that of each other towards p_min, by the share `rate`: it pursues the
    winner instead of matching probabilities to rewards, and never gives an arm up. p_min = 1 / (2 K) as in the paper.
    Arms that are equally good share what the others leave, so that nothing is pursued before the first reward.

    >>> pursuit = AdaptivePursuit(("a", "b"), rate=0.5)
    >>> pursuit.learn("b", 1.0)
    >>> pursuit.probabilities
    {'a': 0.375, 'b': 0.625}
    """

    def __init__(self, arms: Sequence[str], *, rate: float = 0.3) -> None:
        if not arms:
            raise ValueError("expected at least one operator to choose from, found none")
        self.rate = rate
        self.least = 1 / (2 * len(arms))
        self.qualities = dict.fromkeys(arms, 0.0)
        self.probabilities = dict.fromkeys(arms, 1 / len(arms))

    def draw(self, generator: torch.Generator) -> str:
        """An arm by the present probabilities. The only arm costs no draw."""
        arms = list(self.probabilities)
        if len(arms) == 1:
            return arms[0]
        edges = np.cumsum(list(self.probabilities.values()))
        point = float(torch.rand((), generator=generator, dtype=torch.float64)) * edges[-1]
        return arms[min(int(np.searchsorted(edges, point, side="right")), len(arms) - 1)]

    def learn(self, arm: str, reward: float) -> None:
        """Take in the reward of one use of `arm`."""
        if len(self.qualities) == 1:
            return
        self.qualities[arm] += self.rate * (reward - self.qualities[arm])
        highest = max(self.qualities.values())
        best = [other for other, quality in self.qualities.items() if quality == highest]
        most = (1 - (len(self.qualities) - len(best)) * self.least) / len(best)
        for other, probability in self.probabilities.items():
            self.probabilities[other] += self.rate * ((most if other in best else self.least) - probability)

    def state_dict(self) -> dict[str, Any]:
        return {"qualities": dict(self.qualities), "probabilities": dict(self.probabilities)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        # By this object's order of arms: a draw depends on it, and a file may have sorted the names.
        self.qualities = {arm: float(state["qualities"][arm]) for arm in self.qualities}
        self.probabilities = {arm: float(state["probabilities"][arm]) for arm in self.probabilities}


class OperatorChoice:
    """Which mutation and which crossover make a child, and what each child has gained by them.

    A child's reward is its gain over its fittest parent, if it has one: max(0, f(child) - f(parent) - shift). Child and
    parent were measured on different prompts, so the gain is corrected by how much easier the new ones are: `shift` is
    the mean change of those who were measured on both (their histories say so); 0 where nobody was. A failed child
    gains nothing. It is the child's own fitness that counts, before any refinement.

    `kinds` gives the operators of each kind, such as {"mutation": ["gaussian", "svd"]}; of a single one there is
    nothing to learn.
    """

    def __init__(self, kinds: Mapping[str, Sequence[str]]) -> None:
        self.pursuits = {kind: AdaptivePursuit(arms) for kind, arms in kinds.items()}
        # By child, until it is measured: its parent's fitness and its operators by kind.
        self.children: dict[int, tuple[float, dict[str, str]]] = {}

    @property
    def adaptive(self) -> bool:
        return any(len(pursuit.qualities) > 1 for pursuit in self.pursuits.values())

    def draw(self, kind: str, generator: torch.Generator) -> str:
        return self.pursuits[kind].draw(generator)

    def made(self, child: int, parent_fitness: float, used: Mapping[str, str]) -> None:
        """Remember what made a child."""
        if self.adaptive:
            self.children[child] = (parent_fitness, dict(used))

    def learn(self, population: Population, fitness: npt.NDArray[np.float64], generation: int) -> None:
        """Credit the operators of the children that generation `generation` has measured."""
        children, self.children = self.children, {}
        if not children:
            return
        shift = _shift(population, generation)
        for row, individual in enumerate(population.individuals):
            # A refined child has a new id, and its own as its only parent.
            known = next((id for id in (individual.id, *individual.parents[:1]) if id in children), None)
            if known is None:
                continue
            parent_fitness, used = children.pop(known)
            gain = _measured(individual, generation, first=True, default=float(fitness[row])) - parent_fitness - shift
            for kind, arm in used.items():
                self.pursuits[kind].learn(arm, max(0.0, gain) if np.isfinite(gain) else 0.0)

    def metrics(self) -> dict[str, float]:
        """The probability of each operator, where there is a choice."""
        return {
            f"{kind}.{arm}": probability
            for kind, pursuit in self.pursuits.items()
            if len(pursuit.qualities) > 1
            for arm, probability in pursuit.probabilities.items()
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "pursuits": {kind: pursuit.state_dict() for kind, pursuit in self.pursuits.items()},
            "children": [[child, fitness, used] for child, (fitness, used) in self.children.items()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for kind, pursuit in self.pursuits.items():
            pursuit.load_state_dict(state["pursuits"][kind])
        self.children = {int(child): (float(fitness), dict(used)) for child, fitness, used in state["children"]}


def _measured(individual: Individual, generation: int, *, first: bool, default: float) -> float:
    """An individual's first or last fitness of a generation: what it was before, or after, its refinement."""
    found = [fitness for when, fitness in individual.history if when == generation]
    return default if not found else found[0] if first else found[-1]


def _shift(population: Population, generation: int) -> float:
    nan = float("nan")
    changes = [
        _measured(each, generation, first=True, default=nan) - _measured(each, generation - 1, first=False, default=nan)
        for each in population.individuals
    ]
    known = [change for change in changes if np.isfinite(change)]
    return float(np.mean(known)) if known else 0.0
