"""The learning rate over a run: it falls on a schedule, and is set anew when updates move the policy far too much or
far too little."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# How many times more or less than the target the KL of updates may be: a rate off by the root of it. The KLs of good
# rates are that far apart, by what the task is and how far the run has come.
BAND = 30.0
# The same while a rate that was set anew has yet to prove right: what set it anew was measured far from there.
NARROW = 3.0
# How many times more than the target it may be as long as all rates so far were too high: at first updates are small,
# as the adapter's B is zero, and a rate that is too high has nothing to lose but what it has done itself.
FIRST = 9.0
# Updates whose mean says so: one is estimated on few tokens, and varies as much from rollout to rollout.
SEEN = 3
# By how much a rate changes at once, at most.
MOST = 10.0
# Updates that moved a policy this far, in nats a token, have destroyed it: they are taken back.
FAR = 1.0


def decayed(decay: float, progress: float) -> float:
    """What the learning rate is multiplied by when `progress`, from 0 to 1, of a run is done: it falls geometrically by
    the factor `decay` from the beginning to the end, and is as given in the middle.

    >>> [round(decayed(100.0, progress), 6) for progress in (0.0, 0.5, 1.0)]
    [10.0, 1.0, 0.1]
    """
    return float(decay ** (0.5 - min(max(progress, 0.0), 1.0)))


class Move(NamedTuple):
    """How far updates at the rate of this `factor` moved a policy, and whether they were taken back."""

    kl: float
    factor: float
    target: float
    taken_back: bool


class LedRate:
    """A factor of the learning rate that follows how far updates move the policy, in nats a completion.

    A KL grows with the square of the rate. While the geometric mean of the last three KLs is within 30 times the
    target and a 30th of it the factor stays as it is; outside it is multiplied by the root of target / mean, which
    brings the KL to the target, but at most by 10 or a tenth, and three KLs are seen before it changes again. Until
    three of them are within three times the target and a third of it the rate is corrected once more. As long as no
    rate was right or too low nine times the target are too much. None counts for more than 100 times the target or less
    than a hundredth. Updates that were taken back count as others do, but two in a row are enough. (Rates that follow
    the KL, in small steps: Rudin et al., 2022, arXiv 2109.11978.)

    A refinement has one of its own, which goes on from the run's, `known`, and whose `moves` the run's learns from
    afterwards.

    >>> rate = LedRate()
    >>> for kl in (0.001, 0.002, 0.0005, 0.1, 0.3, 0.2):
    ...     _ = rate.follow(kl, target=0.1)
    ...     print(round(rate.factor, 3))
    1.0
    1.0
    8.909
    8.909
    8.909
    8.909
    """

    def __init__(self, known: "LedRate | None" = None) -> None:
        self.factor = 1.0
        self.recent: list[float] = []  # logarithms of target / KL since the last change
        self.proven = True
        self.tested = False  # whether any rate was right or too low yet
        self.taken_back = False  # the last updates
        self.moves: list[Move] = []
        if known is not None:
            self.load_state_dict(known.state_dict())

    def follow(self, kl: float, *, target: float, taken_back: bool = False) -> bool:
        """Updates moved a policy by `kl`; none at all, 0, says nothing. Returns whether all that rates have done so far
        was to destroy it, so that it had better be forgotten."""
        self.moves.append(Move(kl, self.factor, target, taken_back))
        if kl <= 0:
            return False
        # No more than a change can mend: one that is far off must not speak for all three.
        most = 2 * math.log(MOST)
        self.recent = [*self.recent, min(max(math.log(target / kl) if kl < math.inf else -most, -most), most)][-SEEN:]
        mean = sum(self.recent) / len(self.recent)
        in_a_row, self.taken_back = taken_back and self.taken_back, taken_back
        if len(self.recent) < SEEN and not in_a_row:
            return False
        band = BAND if self.proven else NARROW
        destroyed = not self.tested and (in_a_row or mean < -math.log(FIRST))
        if in_a_row or destroyed or abs(mean) > math.log(band):
            self.factor *= min(max(math.exp(mean / 2), 1 / MOST), MOST)
            self.recent, self.proven, self.taken_back = [], False, False
            # After too low a rate, one that is too high is a correction gone too far. Were that to begin anew, the
            # first small updates would ask for the same correction again, without end.
            self.tested = self.tested or mean > 0
            return destroyed
        self.proven = self.tested = True
        return False

    def learn(self, moves: Sequence[Move]) -> None:
        """Follow what other rates than this one have done: its own KL would have been larger by the square of how much
        it is larger."""
        for move in moves:
            times = self.factor / move.factor
            self.follow(move.kl * times**2, target=move.target, taken_back=move.taken_back and times >= 1)
        self.moves.clear()

    def state_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "factor": self.factor,
            "recent": self.recent,
            "proven": self.proven,
            "tested": self.tested,
            "taken_back": self.taken_back,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.factor, self.recent = state["factor"], list(state["recent"])
        self.proven, self.tested, self.taken_back = state["proven"], state["tested"], state["taken_back"]
