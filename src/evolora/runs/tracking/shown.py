"""What is shown of a run: kept from what its view is told, for whoever draws it."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from evolora.engine.progress import Sample
from evolora.runs.tracking.view import Outset

Clock = Callable[[], float]

# Not every generation has it, and it takes little.
SAVING = "saving"


class Pace:
    """The share of a run that is done and the seconds that it will still take, from the first phase on. Within a
    generation a phase counts as much as it took in the last one; in the first, all phases count the same.

    >>> pace = Pace(Outset("", gens=2, limits={}, done=0.0, phases=2), now=0.0)
    >>> pace.phase(0.0)
    >>> pace.share(1.0, 0.5), pace.left(1.0, 0.5)
    (0.125, 7.0)
    >>> pace.phase(3.0)
    >>> pace.generation(0.5, 4.0)
    >>> pace.phase(4.0)
    >>> pace.share(7.0, 0.5), pace.left(8.0, 0.0)
    (0.6875, 8.0)
    """

    def __init__(self, outset: Outset, now: float) -> None:
        self._outset, self._begun = outset, now
        self._done, self._first = outset.done, outset.done
        self._step = 1 / outset.gens if outset.gens else math.nan
        self._weights, self._starts = [1.0] * outset.phases, list[float]()
        self._used = _figure(outset.history[-1], "time.loop") if outset.history else 0.0

    def phase(self, now: float) -> None:
        """One of a generation's begins."""
        self._starts.append(now)

    def generation(self, done: float, now: float) -> None:
        """One has ended."""
        self._step, self._done = done - self._done, done
        self._weights = [end - start for start, end in pairwise([*self._starts, now])] or self._weights
        self._starts = []

    def share(self, now: float, of_phase: float) -> float:
        """What is done, when so much of the phase is; NaN where nobody can know."""
        if self._done >= 1 or not self._starts:
            return min(self._done, 1.0)
        place = len(self._starts) - 1
        before, whole = sum(self._weights[:place]), sum(self._weights)
        within = before + (self._weights[place] * of_phase if place < len(self._weights) else 0)
        share = self._done + self._step * min(within / whole, 1.0) if whole else self._done
        if (limit := self._outset.limits.get("seconds")) is not None:
            by_time = (self._used + now - self._begun) / limit
            share = by_time if math.isnan(share) else max(share, by_time)
        return min(share, 1.0)

    def left(self, now: float, of_phase: float) -> float:
        """Seconds, without those of the final test; NaN where nobody can know."""
        share = self.share(now, of_phase)
        gained = share - self._first
        return (now - self._begun) / gained * (1 - share) if gained > 0 else math.nan


class Shown:
    """All of it. It is told what a view is told, and read from other threads."""

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self.clock, self.began = clock, clock()
        self.title = "evolora"
        self.phase, self.done, self.total = "loading", 0, 0
        self.gens: int | None = None
        self.limits: Mapping[str, float] = {}
        self.metrics: Mapping[str, Any] = {}
        self.curve: list[float] = []
        self.added: dict[str, float] = {}
        self.base_reward = self.best_reward = math.nan
        self.base: Sample | None = None
        self.best: Sample | None = None
        self._place = 0
        self._pace: Pace | None = None

    def progress(self, what: str, done: int, total: int) -> None:
        name = what.partition(": ")[0]
        if self._pace is not None and name != self.phase.partition(": ")[0] and name != SAVING:
            self._pace.phase(self.clock())
        self.phase, self.done, self.total = what, done, total

    def wrote(self, who: str, reward: float, samples: Sequence[Sample]) -> None:
        """The base comes first. The prompt that is shown is the one on which it earned least."""
        if not samples:
            return
        if self.base is None and who == "base":
            rewards = [math.inf if math.isnan(each.reward) else each.reward for each in samples]
            self._place = rewards.index(min(rewards))
            self.base, self.base_reward = samples[self._place], reward
        if math.isnan(self.best_reward) or reward >= self.best_reward:
            self.best, self.best_reward = samples[min(self._place, len(samples) - 1)], reward

    def begin(self, outset: Outset) -> None:
        self.title, self.gens, self.limits = outset.title, outset.gens, outset.limits
        for metrics in outset.history:
            self._note(metrics)
        self._pace = Pace(outset, self.clock())

    def generation(self, metrics: Mapping[str, Any], gens: int | None, done: float) -> None:
        self.gens = gens
        self._note(metrics)
        if self._pace is None:  # nobody has told how it begins
            self._pace = Pace(Outset("", gens, {}, done, 1), self.began)
        self._pace.generation(done, self.clock())
        # What comes next is a new phase, whatever it is called.
        self.phase, self.done, self.total = "", 0, 0

    def _note(self, metrics: Mapping[str, Any]) -> None:
        self.metrics = metrics
        value = _figure(metrics, "validation")
        self.curve.append(value)
        for name in metrics:
            if name.endswith(".added") and not math.isnan(more := _figure(metrics, name)):
                who = name.removesuffix(".added")
                self.added[who] = self.added.get(who, 0.0) + more

    @property
    def refiner(self) -> str | None:
        """The name before its figures."""
        return next((name.removesuffix(".gain") for name in self.metrics if name.endswith(".gain")), None)

    def figure(self, name: str) -> float:
        """Of the last generation; NaN where there is none."""
        return _figure(self.metrics, name)

    @property
    def followed(self) -> float:
        """What RL follows beside what is wanted, on validation; NaN where it is the same."""
        return self.figure("validation.reward")

    def of_refiner(self, name: str) -> float:
        return _figure(self.metrics, f"{self.refiner}.{name}")

    @property
    def elapsed(self) -> float:
        return self.clock() - self.began

    @property
    def share(self) -> float:
        return 0.0 if self._pace is None else self._pace.share(self.clock(), self._of_phase)

    @property
    def left(self) -> float:
        return math.nan if self._pace is None else self._pace.left(self.clock(), self._of_phase)

    @property
    def _of_phase(self) -> float:
        return self.done / self.total if self.total else 0.0


class Showing:
    """What views that draw the same have in common: they keep what they are told."""

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self._shown = Shown(clock)

    def progress(self, what: str, done: int, total: int) -> None:
        self._shown.progress(what, done, total)

    def wrote(self, who: str, reward: float, samples: Sequence[Sample]) -> None:
        self._shown.wrote(who, reward, samples)

    def begin(self, outset: Outset) -> None:
        self._shown.begin(outset)


def _figure(metrics: Mapping[str, Any], name: str) -> float:
    value = metrics.get(name)
    return float(value) if isinstance(value, (int, float)) else math.nan
