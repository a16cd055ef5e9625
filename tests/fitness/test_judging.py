"""How a fitness is asked, and that what it says holds on resampled prompts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from evolora.errors import InputError, RewardError
from evolora.evolution.comparison import clearly_better, resampled, within_noise
from evolora.fitness.base import Fitness, FitnessContext, Judged
from evolora.fitness.loading import make_fitness, parse_fitness
from evolora.rewards import RewardContext, ScoringOptions
from evolora.rewards.several import weighted
from evolora.runs.report.statistics import fitness_interval, gain_interval
from evolora.tasks.task import Example

EXAMPLES = [Example(f"prompt {n}", {"target": target}) for n, target in enumerate("aabb" * 8)]
IDS = [[1]] * len(EXAMPLES)


def made(function: Any, samples: int = 1, **options: Any) -> Fitness:
    expression, functions = weighted([function])
    context = FitnessContext(samples, ("target",), None, RewardContext())
    return make_fitness(expression, ScoringOptions(**options), context, functions)


def right(completions: Sequence[str], target: Sequence[str]) -> float:
    return float(np.mean([said == wanted for said, wanted in zip(completions, target, strict=True)]))


def right_each(completions: Sequence[str], target: Sequence[str]) -> list[float]:
    return [float(said == wanted) for said, wanted in zip(completions, target, strict=True)]


def test_a_function_may_judge_the_whole_or_each_completion() -> None:
    texts = ["a"] * len(EXAMPLES)
    (whole,), (each,) = (made(judge).judged(EXAMPLES, [texts], [IDS]) for judge in (right, right_each))
    assert whole.fitness == each.fitness == 0.5
    assert whole.by_prompt is None and whole.value is not None
    assert each.by_prompt is not None and each.by_prompt.tolist() == [1, 1, 0, 0] * 8
    some = np.array([0, 1, 1, 2])
    assert whole.value(some) == 0.75 == each.by_prompt[some].mean()


def test_samples_come_prompt_by_prompt_and_resamples_keep_them_together() -> None:
    seen: list[list[str]] = []

    def judge(prompts: list[str], completions: list[str]) -> float:
        del completions
        seen.append(prompts)
        return float(len(set(prompts)))

    examples = [Example(name, {}, draw=draw) for name in ("one", "two", "three") for draw in range(2)]
    (judged,) = made(judge, samples=2).judged(examples, [["x"] * 6], [[[1]] * 6])
    assert judged.value is not None and judged.prompts == 3
    assert judged.value(np.array([2, 0, 2])) == 2.0
    assert seen[-1] == ["three", "three", "one", "one", "three", "three"]


def test_the_mean_is_over_a_prompts_samples_and_then_over_prompts() -> None:
    values = [1.0, None, 0.0, 0.0]
    examples = [Example(name, {}, draw=draw) for name in ("one", "two") for draw in range(2)]
    (judged,) = made(lambda completions: values, samples=2).judged(examples, [["x"] * 4], [[[1]] * 4])
    assert judged.by_prompt is not None and judged.by_prompt.tolist() == [1.0, 0.0] and judged.fitness == 0.5


def test_one_that_is_not_to_be_asked_again_has_no_interval() -> None:
    def person(completions: list[str]) -> float:
        return 1.0

    person.recomputes = False  # type: ignore[attr-defined]
    (judged,) = made(person).judged(EXAMPLES, [["a"] * len(EXAMPLES)], [IDS])
    assert judged.value is None and np.isnan(fitness_interval(judged, seed=0)).all()
    lower = Judged(0.5, 0, prompts=judged.prompts)
    assert clearly_better(judged, lower, level=0.05, seed=0) and not within_noise(lower, judged, seed=0)
    assert not clearly_better(lower, judged, level=0.05, seed=0)


def test_a_whole_that_is_a_mean_compares_and_lies_where_the_mean_does() -> None:
    good, bad = (["a"] * len(EXAMPLES), ["a", "x"] * (len(EXAMPLES) // 2))
    whole = made(right).judged(EXAMPLES, [good, bad], [IDS, IDS])
    each = made(right_each).judged(EXAMPLES, [good, bad], [IDS, IDS])
    assert fitness_interval(whole[0], seed=3) == pytest.approx(fitness_interval(each[0], seed=3), abs=0.05)
    assert gain_interval(*whole, seed=3) == pytest.approx(gain_interval(*each, seed=3), abs=0.05)
    for judged in (whole, each):
        assert clearly_better(judged[0], judged[1], level=0.05, seed=0)
        assert not clearly_better(judged[1], judged[0], level=0.05, seed=0)
        assert not within_noise(judged[1], judged[0], seed=0) and within_noise(judged[0], judged[1], seed=0)


def test_both_sides_meet_the_same_resamples() -> None:
    """Two who differ by the same on every prompt differ by that on every resample, however much each varies."""
    noise = np.random.default_rng(0).normal(0, 10, len(EXAMPLES))

    def judged(more: float) -> Judged:
        return Judged(
            float(noise.mean()) + more, 0, value=lambda rows: float(noise[rows].mean()) + more, prompts=len(noise)
        )

    low, high = gain_interval(judged(0.1), judged(0.0), seed=1)
    assert low == pytest.approx(0.1) and high == pytest.approx(0.1)
    assert clearly_better(judged(0.1), judged(0.0), level=0.05, seed=1)
    replicates = resampled(judged(0.0), seed=1, resamples=50)
    assert replicates is not None and replicates.std() > 1


@pytest.mark.parametrize("returned", ["0.5", {"a": 1}, [1.0], float("nan")])
def test_what_is_neither_a_number_nor_one_for_each_is_named(returned: Any) -> None:
    with pytest.raises(RewardError, match=r"^fitness <lambda>"):
        made(lambda completions: returned).judged(EXAMPLES, [["a"] * len(EXAMPLES)], [IDS])


def test_what_raises_is_shown_or_skipped() -> None:
    def judge(completions: list[str]) -> float:
        raise KeyError("missing")

    with pytest.raises(RewardError, match=r"^fitness judge raised KeyError"):
        made(judge).judged(EXAMPLES, [["a"] * len(EXAMPLES)], [IDS])
    (judged,) = made(judge, on_error="skip", failed_reward=-1.0).judged(EXAMPLES, [["a"] * len(EXAMPLES)], [IDS])
    assert judged.fitness == -1.0 and judged.failed


def test_a_column_that_the_data_lacks_is_refused_before_any_work() -> None:
    with pytest.raises(InputError, match=r"fitness judge requires the parameter 'label'"):

        def judge(completions: list[str], label: list[str]) -> float:
            return 0.0

        made(judge)


def test_a_reward_expression_is_a_fitness_by_completion() -> None:
    context = FitnessContext(1, ("target",), None, RewardContext())
    judge = make_fitness(parse_fitness("exact - 0.5 * contains"), ScoringOptions(), context)
    (judged,) = judge.judged(EXAMPLES, [["a"] * len(EXAMPLES)], [IDS])
    assert judged.fitness == 0.25 and judged.by_prompt is not None
