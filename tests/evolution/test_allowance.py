"""What the end of a run may cost."""

from collections.abc import Sequence

import numpy as np
import pytest

from evolora.evolution.allowance import FIRST, UNLIMITED, Allowance
from evolora.models.cost import Cost
from evolora.population.evaluation import Evaluation
from evolora.tasks.task import Example

EXAMPLES = [Example(f"prompt {row}", {"row": row}) for row in range(1000)]


class Measured:
    """Two individuals, whose completions are the prompts' numbers and cost two tokens each."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, examples: Sequence[Example]) -> list[Evaluation]:
        self.calls.append(len(examples))
        rows = np.array([float(str(example.columns["row"])) for example in examples])
        texts = [[example.prompt for example in examples]] * 2
        ids = [[[int(row)] for row in rows]] * 2
        rewards = np.stack([rows, -rows])
        cost = Cost(tokens=4 * len(examples), flops=8 * len(examples))
        return [Evaluation(rewards.mean(axis=1), rewards, texts, cost, 1, ids, {"term": 2 * rewards})]


def test_without_a_budget_all_are_met_at_once() -> None:
    measured = Measured()
    examples, (evaluation,) = UNLIMITED.evaluated(measured, EXAMPLES, seed=0, split="test")
    assert measured.calls == [1000] and examples == EXAMPLES and evaluation.rewards.shape == (2, 1000)


@pytest.mark.parametrize(
    ("allowance", "most"),
    [
        (Allowance(tokens=1), FIRST),
        (Allowance(tokens=4 * 300), 300),
        (Allowance(flops=8 * 300), 300),
        (Allowance(tokens=4 * 300, flops=8 * 200, seconds=100), 200),
        (Allowance(tokens=4 * 100).times(2), 200),
        (Allowance(seconds=100), 1000),
        (Allowance(seconds=1e-9), FIRST),
    ],
)
def test_as_many_prompts_are_met_as_fit(allowance: Allowance, most: int) -> None:
    measured = Measured()
    examples, (evaluation,) = allowance.evaluated(measured, EXAMPLES, seed=0, split="test")
    assert 0.75 * most <= len(examples) <= most
    rows = [int(str(example.columns["row"])) for example in examples]
    assert rows == sorted(set(rows)), "each once, in their order"
    assert evaluation.rewards.tolist() == [rows, [-row for row in rows]]
    assert evaluation.fitness.tolist() == pytest.approx([np.mean(rows), -np.mean(rows)])
    assert evaluation.completions[1] == [example.prompt for example in examples]
    assert evaluation.completion_ids[0] == [[row] for row in rows]
    assert evaluation.terms["term"].tolist() == (2 * evaluation.rewards).tolist()
    assert evaluation.cost.tokens == 4 * len(rows) and evaluation.failed == len(measured.calls)


def test_what_is_met_is_drawn_by_the_seed() -> None:
    def drawn(seed: int) -> list[Example]:
        return Allowance(tokens=1).evaluated(Measured(), EXAMPLES, seed=seed, split="test")[0]

    assert drawn(0) == drawn(0) != drawn(1)
    assert drawn(0) != EXAMPLES[:FIRST], "data may be sorted"
