"""Lists of rewards with weights, as TRL takes them."""

from typing import Any

import numpy as np
import pytest

from evolora.errors import InputError
from evolora.rewards import RewardContext, ScoringOptions, exact, make_scorer
from evolora.rewards.several import weighted


def short(completions: list[str], **_: Any) -> list[float]:
    return [1 / (1 + len(text)) for text in completions]


def test_the_weighted_sum_is_that_of_each_called_alone() -> None:
    expression, functions = weighted([short, "exact", "0.5 * brevity(limit=2)"], [0.5, 2.0, 3.0])
    scorer = make_scorer(expression, ["target"], ScoringOptions(), RewardContext(), functions)
    completions, targets = ["a", "bb", "c d e f"], ["a", "a", "c d e f"]
    scores = scorer.score(["p"] * 3, completions, {"target": targets})
    brevity = make_scorer(weighted(["brevity(limit=2)"])[0], [], ScoringOptions(), RewardContext())
    alone = brevity.score(["p"] * 3, completions, {}).rewards
    expected = 0.5 * np.array(short(completions)) + 2 * np.array(exact(completions, targets)) + 1.5 * alone
    np.testing.assert_allclose(scores.rewards, expected)
    assert set(scores.terms) == {"short", "exact", "brevity(limit=2)"}
    np.testing.assert_allclose(scores.terms["short"], short(completions))


def test_a_single_function_is_itself() -> None:
    expression, functions = weighted([short])
    assert str(expression) == "<function short>" and functions == {"<function short>": short}


def test_two_functions_of_one_name_are_refused() -> None:
    def other() -> Any:
        def short(completions: list[str], **_: Any) -> list[float]:
            return [0.0 for _ in completions]

        return short

    with pytest.raises(InputError, match="two functions of the name short"):
        weighted([short, other()])
    assert len(weighted([short, short])[1]) == 1, "the same one twice is one"


@pytest.mark.parametrize(
    ("rewards", "weights", "words"),
    [
        ([], None, "empty list"),
        ([short], [1.0, 2.0], "found 2 for 1 rewards"),
        ([3], None, "found 3, expected a function"),
        (["nonsense"], None, "nonsense"),
        *(
            [[short, "exact"], [1.0, weight], "reward_weights: found .*, expected a finite number for each"]
            for weight in (float("nan"), float("inf"), "nan", "a", None, True, 10**400)
        ),
        ([short], 3j, "found 3j, expected a finite"),
    ],
)
def test_what_is_no_list_of_rewards_is_refused(rewards: Any, weights: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        weighted(rewards, weights)
