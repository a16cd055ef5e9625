"""Where a run shows itself: what a view is told, and which one there is."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TextIO, cast

from evolora.engine.progress import Progress, Sample
from evolora.screen import Screen


@dataclass(frozen=True)
class Outset:
    """What is known when the loop begins or goes on: the run's `title`; its limits, `gens` and those of `tokens`,
    `seconds` and `flops` that are set; the share of them that is used; how many phases the first generation has; and
    the metrics of the generations so far."""

    title: str
    gens: int | None
    limits: Mapping[str, float]
    done: float
    phases: int
    history: Sequence[Mapping[str, Any]] = field(default_factory=tuple)


class View(Progress, Protocol):
    """Where a run shows itself. It is told what happens, in this order, and tells nothing back."""

    def begin(self, outset: Outset) -> None:
        """All is loaded, and the loop begins."""
        ...

    def generation(self, metrics: dict[str, Any], gens: int | None, done: float) -> None:
        """A generation has ended; there will be `gens` of them unless a budget ends the run before, and the share
        `done` of generations or budget is used, whichever is nearer its end."""
        ...

    def close(self) -> None:
        """Nothing more comes. It may be told so again."""
        ...


class Silence:
    """Shows nothing; a view of one's own may be made of it."""

    def say(self, text: str) -> None: ...

    def progress(self, what: str, done: int, total: int) -> None: ...

    def wrote(self, who: str, reward: float, samples: Sequence[Sample]) -> None: ...

    def begin(self, outset: Outset) -> None: ...

    def generation(self, metrics: dict[str, Any], gens: int | None, done: float) -> None: ...

    def close(self) -> None: ...


def warn(view: View, text: str) -> None:
    """Say what must not be missed: on stderr, where the view shows nothing."""
    if type(view) is Silence:
        print(text, file=cast(TextIO, Screen(sys.stderr)))
    else:
        view.say(text)
