"""Figures as text of a width that stays, and a generation as one line."""

import math
from typing import NamedTuple

from evolora.runs.tracking.shown import Shown


class Cell(NamedTuple):
    """A figure of a generation's line. The cells of the lowest ranks are shown where not all have room."""

    rank: int
    label: str
    value: str
    style: str = ""

    @property
    def width(self) -> int:
        return len(f"{self.label} {self.value}")


def cells(shown: Shown, *, left: bool) -> list[Cell]:
    """The last generation's line; with the time `left`."""
    number, gens = int(shown.figure("generation")), shown.gens
    of = f"{number} ({shown.share:.0%})" if gens is None else f"{number:>{len(str(gens))}}/{gens}"
    found = [
        Cell(0, "gen", of),
        Cell(2, "best", reward(shown.figure("fitness.best"))),
        Cell(7, "mean", reward(shown.figure("fitness.mean"))),
        Cell(1, "validation", reward(shown.figure("validation")), "bold green"),
        *([Cell(1, "reward", reward(followed))] if not math.isnan(followed := shown.followed) else []),
        *([] if shown.refiner is None else [Cell(3, shown.refiner, gain(shown.of_refiner("added")))]),
        Cell(4, "evolution", gain(shown.figure("evolution.added"))),
        Cell(5, "tok/s", f"{shown.figure('time.tokens_per_second'):>6,.0f}"),
    ]
    if left:
        found.append(Cell(5, f"{duration(shown.left):>7}", "left"))
    return [*found, Cell(6, "by", str(shown.metrics.get("best.operator") or "-"))]


def fitting(row: list[Cell], width: int) -> list[Cell]:
    """Those that have room, in their order."""
    room, kept = width, set[int]()
    for place, cell in sorted(enumerate(row), key=lambda each: each[1].rank):
        if cell.width > room:
            break
        room -= cell.width + 2
        kept.add(place)
    return [cell for place, cell in enumerate(row) if place in kept]


def reward(value: float) -> str:
    """In five characters, however large it is.

    >>> [reward(value) for value in (0.5, -1.25, 123.456, -123.456, 1e9, math.nan)]
    ['0.500', '-1.25', '123.5', ' -123', '1e+09', '    -']
    """
    if not math.isfinite(value):
        return f"{'-' if math.isnan(value) else value:>5}"
    texts = (f"{value:.{digits}f}" for digits in (3, 2, 1, 0))
    return next((text for text in texts if len(text) <= 5), f"{value:.0e}").rjust(5)


def gain(value: float) -> str:
    """The same with its sign."""
    size = reward(abs(value)).strip()
    return (size if math.isnan(value) else f"{'-' if value < 0 else '+'}{size}").rjust(6)


def percent(value: float) -> str:
    return f"{'-':>4}" if math.isnan(value) else f"{value:>4.0%}"


def amount(value: float) -> str:
    """A budget's number.

    >>> [amount(value) for value in (12.4, 20138, 1.6e12)]
    ['12', '20,138', '1.6e+12']
    """
    return f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.2g}"


def duration(seconds: float) -> str:
    if math.isnan(seconds):
        return "-"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {seconds:02d}s" if minutes else f"{seconds}s"


def phase(shown: Shown) -> str:
    """What is under way, and how much of it is done."""
    what, colon, part = shown.phase.partition(": ")
    return what + (f" {shown.done:,} of {shown.total:,}" if shown.total else "") + colon + part
