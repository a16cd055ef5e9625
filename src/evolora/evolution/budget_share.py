"""How many rollouts a refinement has, when evolution and RL compete for the budget."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from evolora.population.evaluation import mean_fitness
from evolora.strategies.operator_choice import AdaptivePursuit

Floats = npt.NDArray[np.float64]

# By how much a refinement may grow or shrink, at most.
MOST = 4.0
_EVOLUTION, _RL = "evolution", "rl"


class BudgetShare:
    """Moves the budget between evolution and RL, to the one that has gained more an operation lately.

    The two are the arms of an adaptive pursuit (see `AdaptivePursuit`), each rewarded once a generation by what it
    gained over what it cost. The share p of RL begins at 1/2, where a refinement has `rollouts` rollouts, and goes up
    to 3/4 or down to 1/4, where it has four times or a quarter as many, at least one: rollouts x 4^((p - 1/2) / (1/4)).

    >>> share = BudgetShare(3)
    >>> for _ in range(20):
    ...     share.learn(evolution=(0.0, 1e9), rl=(0.1, 4e9))
    >>> share.rollouts
    12
    """

    def __init__(self, rollouts: int) -> None:
        self._start = rollouts
        self._pursuit = AdaptivePursuit((_EVOLUTION, _RL))

    @property
    def rl(self) -> float:
        """RL's share."""
        return self._pursuit.probabilities[_RL]

    @property
    def rollouts(self) -> int:
        """Rollouts of the next refinement."""
        return max(1, round(self._start * math.pow(MOST, (self.rl - 0.5) / 0.25)))

    def learn(self, *, evolution: tuple[float, float], rl: tuple[float, float]) -> None:
        """Take in a generation: of each the gain, NaN where there was none to be measured, and the operations."""
        for arm, (gain, cost) in ((_EVOLUTION, evolution), (_RL, rl)):
            if np.isfinite(gain) and cost > 0:
                self._pursuit.learn(arm, gain / cost)

    def state_dict(self) -> dict[str, Any]:
        return self._pursuit.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._pursuit.load_state_dict(state)


def evolution_gain(rewards: Floats, is_child: Sequence[bool]) -> float:
    """How much better the best child is than the best of those that were carried over, from `rewards` [individuals,
    prompts], NaN where there is none, and `is_child` [individuals]; NaN when either kind is missing.

    The best of several is the luckiest too. So it is chosen on half of the prompts and measured on the other half, and
    the same the other way round.

    >>> import numpy as np
    >>> evolution_gain(np.array([[0.0, 1.0], [1.0, 1.0], [0.5, 0.5]]), [False, True, True])
    0.5
    """
    child = np.asarray(is_child, dtype=bool)
    halves = [rewards[:, start::2] for start in (0, 1)]
    gains = []
    for choosing, judging in (halves, halves[::-1]):
        means = mean_fitness(choosing)
        pair = [_best(means, chosen) for chosen in (child, ~child)]
        if pair[0] is None or pair[1] is None:
            return float("nan")
        judged = mean_fitness(judging)
        gains.append(judged[pair[0]] - judged[pair[1]])
    return float(np.mean(gains))


def _best(means: Floats, among: npt.NDArray[np.bool_]) -> int | None:
    candidates = np.flatnonzero(among & np.isfinite(means))
    return int(candidates[np.argmax(means[candidates])]) if len(candidates) else None
