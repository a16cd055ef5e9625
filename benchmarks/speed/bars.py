"""The bars: what each ratio has to reach, and whether it does.

A bar that speaks of several shapes is judged by the worst of them.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from speed.generation import EVOLORA, FLOOR, FLOOR_STOCK, MIXED, ONE_BY_ONE, ONE_STATE, POPULORA, STOCK
from speed.store import Row, Store

# Products of different shapes round differently, and a tie that falls the other way changes the rest of its row. A
# side that differs by more has done other work, and a ratio to it means nothing.
LEAST_EQUAL = 0.98

Figure = tuple[str, float]  # which shape, and the ratio there; NaN where the tokens differ


@dataclass(frozen=True)
class Bar:
    """A ratio and its limit: at least or at most."""

    name: str
    limit: float
    at_least: bool
    figures: Callable[[Store], list[Figure]]
    expected: int  # how many shapes it speaks of

    def measured(self, store: Store) -> list[Figure]:
        return self.figures(store)

    def worst(self, store: Store) -> float:
        values = [value for _, value in self.measured(store)]
        if len(values) < self.expected or any(math.isnan(value) for value in values):
            return math.nan
        return min(values) if self.at_least else max(values)

    def holds(self, store: Store) -> bool:
        worst = self.worst(store)
        return worst >= self.limit if self.at_least else worst <= self.limit

    @property
    def sign(self) -> str:
        return "at least" if self.at_least else "at most"


def _speedup(row: Row, side: str) -> float:
    """How many times faster evolora is than `side`."""
    found = row["sides"][side]
    if found["equal_tokens"] < LEAST_EQUAL:
        return math.nan
    return float(found["median"] / row["sides"][EVOLORA]["median"])


def _over_floor(row: Row) -> float:
    """evolora's time over the lower of the floors."""
    floors = [row["sides"][name] for name in (FLOOR, FLOOR_STOCK) if name in row["sides"]]
    if any(floor["equal_tokens"] < LEAST_EQUAL for floor in floors):
        return math.nan
    return float(row["sides"][EVOLORA]["median"] / min(floor["median"] for floor in floors))


def _rows(store: Store, part: str, models: Iterable[str], individuals: int | None = None) -> list[Row]:
    return [
        row
        for row in store.rows(part)
        if row["model"] in models and (individuals is None or row.get("individuals") == individuals)
    ]


def _shape(row: Row) -> str:
    return f"{row['model']} {row['individuals']} x {row['prompts']} x {row['new_tokens']}"


def _faster_than(side: str, model: str, individuals: int) -> Callable[[Store], list[Figure]]:
    return lambda store: [
        (_shape(row), _speedup(row, side))
        for row in _rows(store, "generation", [model], individuals)
        if side in row["sides"]
    ]


def _early(side: str) -> Callable[[Store], list[Figure]]:
    return lambda store: [(_shape(row), _speedup(row, side)) for row in _rows(store, "early", ["tiny", "124M"], 32)]


def _floor(model: str, individuals: int | None) -> Callable[[Store], list[Figure]]:
    return lambda store: [(_shape(row), _over_floor(row)) for row in _rows(store, "generation", [model], individuals)]


def _gemm(model: str) -> Callable[[Store], list[Figure]]:
    return lambda store: [
        (_shape(row), float(row["gemm_share"]["highest"])) for row in _rows(store, "generation", [model])
    ]


def _pair(part: str, model: str, slow: str, fast: str) -> Callable[[Store], list[Figure]]:
    return lambda store: [
        (model, float(row["sides"][slow]["median"] / row["sides"][fast]["median"]))
        for row in _rows(store, part, [model])
    ]


def _memory(name: str, unit: float) -> Callable[[Store], list[Figure]]:
    return lambda store: [
        (f"{row['model']} {row['individuals']} individuals", math.nan if row[name] is None else row[name] / unit)
        for row in _rows(store, "memory", ["124M"], 256)
    ]


BARS = (
    Bar("124M, 8 individuals: over one state, one prompt", 12.0, True, _faster_than(ONE_BY_ONE, "124M", 8), 1),
    Bar("124M, 8 individuals: over one state, its prompts", 3.5, True, _faster_than(ONE_STATE, "124M", 8), 1),
    Bar("tiny, 32 individuals: over PEFT's mixed batch", 3.0, True, _faster_than(MIXED, "tiny", 32), 2),
    Bar("32 individuals, lengths over 1..64: over populora", 1.3, True, _early(POPULORA), 2),
    Bar("124M: time over the floor", 1.05, False, _floor("124M", None), 4),
    Bar("tiny, 32 individuals: time over the floor", 1.10, False, _floor("tiny", 32), 2),
    Bar("124M: share of the highest GEMM rate", 0.80, True, _gemm("124M"), 4),
    Bar("32 individuals, lengths over 1..64: over transformers", 1.6, True, _early(STOCK), 2),
    Bar("tiny: a GRPO update, over TRL", 4.0, True, _pair("refinement", "tiny", "TRL", "evolora"), 1),
    Bar("124M: a GRPO update, over TRL", 1.2, True, _pair("refinement", "124M", "TRL", "evolora"), 1),
    Bar("tiny: 4 elites, together", 1.8, True, _pair("elites", "tiny", "one after another", "together"), 1),
    Bar("124M, 256 individuals: peak memory, GB", 3.0, False, _memory("peak", 1e9), 1),
    Bar("124M, 256 individuals: copies of the base", 1.5, False, _memory("bases", 1.0), 1),
)


def judge(store: Store) -> list[Row]:
    """Each bar with its figures, for the table and the file."""
    return [
        {
            "bar": bar.name,
            "limit": f"{bar.sign} {bar.limit:g}",
            "worst": None if math.isnan(worst := bar.worst(store)) else worst,
            "figures": {shape: None if math.isnan(value) else round(value, 3) for shape, value in bar.measured(store)},
            "shapes": bar.expected,
            "holds": bar.holds(store),
        }
        for bar in BARS
    ]
