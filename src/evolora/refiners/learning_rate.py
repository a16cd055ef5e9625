"""The learning rate over a run: it falls on a schedule, and is set anew when updates move the policy far too much or
far too little."""

import math
from collections.abc import Mapping
from typing import Any

# How many times more or less than the target the KL of updates may be: a rate off by the root of it. The KLs of good
# rates are that far apart, by what the task is and how far the run has come.
BAND = 20.0
# Updates whose mean says so: one is estimated on few tokens, and varies as much from rollout to rollout.
SEEN = 3
# By how much a rate changes at once, at most.
MOST = 10.0
# Updates that moved a policy this far, in nats a token, have destroyed it: they are taken back.
FAR = 1.0
# By how much the rate falls then, at least.
_FALL = 3.0


def decayed(decay: float, progress: float) -> float:
    """What the learning rate is multiplied by when `progress`, from 0 to 1, of a run is done: it falls geometrically by
    the factor `decay` from the beginning to the end, and is as given in the middle.

    >>> [round(decayed(100.0, progress), 6) for progress in (0.0, 0.5, 1.0)]
    [10.0, 1.0, 0.1]
    """
    return float(decay ** (0.5 - min(max(progress, 0.0), 1.0)))


class LedRate:
    """A factor of the learning rate that follows how far updates move the policy, in nats a completion.

    A KL grows with the square of the rate. While the geometric mean of the last three KLs is within 20 times the
    target and a 20th of it the factor stays as it is; outside it is multiplied by the root of target / mean, which
    brings the KL to the target, but at most by 10 or a tenth, and three KLs are seen before it changes again. Updates
    that were taken back count at once, and let it fall to a third at least. (Rates that follow the KL, in small steps:
    Rudin et al., 2022, arXiv 2109.11978.)

    >>> rate = LedRate()
    >>> for kl in (0.001, 0.002, 0.0005, 0.1, 0.3, 0.2):
    ...     rate.follow(kl, target=0.1)
    ...     print(round(rate.factor, 3))
    1.0
    1.0
    10.0
    10.0
    10.0
    10.0
    """

    def __init__(self) -> None:
        self.factor = 1.0
        self.recent: list[float] = []  # logarithms of the KLs since the last change

    def follow(self, kl: float, *, target: float, taken_back: bool = False) -> None:
        """Updates moved a policy by `kl`. None at all, 0, says nothing."""
        if taken_back:
            self._change(min((target / kl) ** 0.5, 1 / _FALL))
        elif kl > 0:
            self.recent = [*self.recent, math.log(kl)][-SEEN:]
            error = math.log(target) - sum(self.recent) / len(self.recent)
            if len(self.recent) == SEEN and abs(error) > math.log(BAND):
                self._change(math.exp(error / 2))

    def _change(self, by: float) -> None:
        self.factor *= min(max(by, 1 / MOST), MOST)
        self.recent = []

    def state_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"factor": self.factor, "recent": self.recent}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.factor, self.recent = state["factor"], list(state["recent"])
