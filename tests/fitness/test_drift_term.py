"""The drift as a term of a fitness."""

import numpy as np
import pytest

from evolora.errors import InputError
from evolora.fitness.base import Judged
from evolora.fitness.drift import DriftTerm, without_drift
from evolora.fitness.judging import shifted
from evolora.fitness.loading import parse_fitness
from evolora.runs.options import make_options


@pytest.mark.parametrize(
    ("spec", "rest", "drift"),
    [
        ("exact - 0.5 * drift", "exact", DriftTerm(-0.5)),
        ("exact + 0.2 * brevity - drift", "exact + 0.2 * brevity", DriftTerm(-1.0)),
        ("macro-f1 - 2 * drift(sentences=30)", "macro-f1", DriftTerm(-2.0, 30)),
        ("drift * 0.5 * 3 + exact", "exact", DriftTerm(1.5)),
        ("exact", "exact", None),
    ],
)
def test_it_is_taken_out_of_the_sum_and_put_back(spec: str, rest: str, drift: DriftTerm | None) -> None:
    whole = parse_fitness(spec)
    left, found = without_drift(whole)
    assert (str(left), found) == (rest, drift)
    assert without_drift(parse_fitness(str(whole)))[1] == drift


@pytest.mark.parametrize(
    "spec",
    ["drift", "0 - drift", "exact * drift", "exact - drift - drift", "exact + (drift > 0.5)", "exact - drift(many=2)",
     "exact - drift(sentences=0)", "exact - 0 * drift"],
)  # fmt: skip
def test_it_stands_nowhere_else(spec: str) -> None:
    with pytest.raises(InputError, match="drift"):
        parse_fitness(spec)


def test_no_completion_is_paid_for_it() -> None:
    options = make_options({"fitness": "exact - 0.5 * drift"})
    assert (options.reward.name, options.evolution.fitness) == ("exact", "exact - 0.5 * drift")
    assert make_options({"fitness": "macro-f1 - drift", "reward": "exact"}).reward.name == "exact"
    with pytest.raises(InputError, match="racing"):
        make_options({"fitness": "exact - 0.5 * drift", "racing": 0.1})


def test_what_is_known_of_a_fitness_is_shifted_with_it() -> None:
    by_prompt = shifted(Judged(0.5, 0, np.array([0.0, 1.0])), -0.25)
    assert by_prompt.fitness == 0.25 and by_prompt.by_prompt is not None
    assert by_prompt.by_prompt.tolist() == [-0.25, 0.75] and by_prompt.value is None
    whole = shifted(Judged(0.5, 0, value=lambda rows: float(len(rows)), prompts=3), 0.5)
    assert whole.value is not None and whole.value(np.arange(3)) == 3.5
