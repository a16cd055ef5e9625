"""How the rooms tell what a run is at, while nothing else could be shown."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Sample(NamedTuple):
    """A prompt, its target where the data has one, what was written and what that earned."""

    prompt: str
    target: str | None
    completion: str
    reward: float


class Progress(Protocol):
    """Whoever shows it."""

    def say(self, text: str) -> None:
        """A line that stays."""
        ...

    def progress(self, what: str, done: int, total: int) -> None:
        """`what` is under way, and `done` of `total` are done; 0 of 0 where nobody counts. A part of it is named behind
        a colon."""
        ...

    def wrote(self, who: str, reward: float, samples: Sequence[Sample]) -> None:
        """What the operator `who` made was validated: its mean reward, and some of what it wrote."""
        ...


class Reporter:
    """Tells somebody, or nobody, what a run is at. The rooms share one: who counts does not know what for.

    >>> class Heard:
    ...     def progress(self, what, done, total):
    ...         print(what, done, total)
    >>> reporter = Reporter(Heard())
    >>> reporter.begin("evaluating", 8)
    evaluating 0 8
    >>> reporter.step()
    evaluating 1 8
    >>> reporter.part("rewarding")
    evaluating: rewarding 1 8
    """

    def __init__(self, to: Progress | None = None) -> None:
        self.to = to
        self._what, self._done, self._total = "", 0, 0

    def begin(self, what: str, total: int = 0, *, done: int = 0) -> None:
        """`what` begins or goes on, which has `total` steps."""
        self._what = what
        self.at(done, total)

    def at(self, done: int, total: int) -> None:
        """So many steps of it are done."""
        self._done, self._total = done, total
        if self.to is not None:
            self.to.progress(self._what, done, total)

    def step(self) -> None:
        """One more is."""
        self.at(self._done + 1, self._total)

    def part(self, part: str) -> None:
        """A part of it begins that is no step."""
        if self.to is not None:
            self.to.progress(f"{self._what}: {part}", self._done, self._total)

    def wrote(self, who: str, reward: float, samples: Sequence[Sample]) -> None:
        if self.to is not None:
            self.to.wrote(who, reward, samples)


NOBODY = Reporter()
"""Hears nothing."""
