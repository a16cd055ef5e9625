"""When a run is good enough to end."""

import math
from typing import Any

import pytest

from evolora.runs.limits import enough
from evolora.runs.options import make_options


def lines(*values: float | None, base: float = 0.5) -> list[dict[str, Any]]:
    best, found = base, []
    for value in values:
        best = max(best, -math.inf if value is None else value)
        found.append({"validation": value, "validation.best": best, "validation.base": base})
    return found


def test_neither_ends_a_run_by_default() -> None:
    assert enough(make_options(), lines(1.0, 1.0, 1.0)) is None


@pytest.mark.parametrize(
    ("values", "ends"), [((0.6, 0.79), False), ((0.6, 0.8), True), ((0.9, 0.2), True), ((), False)]
)
def test_until_ends_it_once_the_best_on_validation_is_there(values: tuple[float, ...], ends: bool) -> None:
    said = enough(make_options({"until": 0.8}), lines(*values))
    assert (said is not None) == ends and (said is None or said.endswith("has reached --until 0.8"))


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ((0.6, 0.6, 0.5), True),
        ((0.6, 0.6, 0.61), False),
        ((0.6, 0.7, 0.7), False),
        ((0.4, 0.4), True),  # the base is better than any: none of the generations was better
        ((0.5, 0.5), True),
        ((0.4,), False),
        ((None, None), True),
        ((0.6, 0.5, 0.7, 0.7, 0.6), True),
    ],
)
def test_patience_counts_generations_without_a_better_one(values: tuple[float | None, ...], ends: bool) -> None:
    said = enough(make_options({"patience": 2}), lines(*values))
    assert (said == "no better validation in 2 generations, --patience 2") == ends


@pytest.mark.parametrize(
    ("words", "until"),
    [
        ({"prompt": "p", "target": "t"}, 1.0),
        ({"prompt": "p", "target": "t", "until": None}, None),
        ({"prompt": "p", "target": "t", "until": 0.5}, 0.5),
        ({"prompt": "p", "target": "t", "reward": "length(3)"}, None),
        ({"prompt": "p", "target": "t", "fitness": "exact", "reward": "chrf"}, None),
        ({"prompt": "p", "reward": "length(3)"}, None),
        ({}, None),
    ],
)
def test_a_single_pair_ends_when_it_is_solved(words: dict[str, Any], until: float | None) -> None:
    assert make_options(words).evolution.until == until


def test_one_alone_is_both_and_a_judge_of_the_whole_is_none() -> None:
    alone = make_options({"fitness": "exact"})
    assert (alone.reward.name, alone.evolution.fitness) == ("exact", None)
    assert alone == make_options({"reward": "exact"}) == make_options({"reward": "exact", "fitness": "exact"})
    beside = make_options({"fitness": "exact", "reward": "chrf"})
    assert (beside.reward.name, beside.evolution.fitness) == ("chrf", "exact")
    whole = make_options({"fitness": "macro-f1(ignore_case=false)"})
    assert (whole.reward.name, whole.evolution.fitness) == (None, "macro-f1(ignore_case=false)")
    # What RL follows beside it may lead astray, so that its children have to show that they are fit.
    assert (alone.evolution.accept, beside.evolution.accept, whole.evolution.accept) == ("always", "better", "better")
