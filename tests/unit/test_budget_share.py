"""What evolution gained, and how the budget follows it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from evolora.evolution.budget_share import BudgetShare, evolution_gain

gains = st.floats(-1, 1)
costs = st.floats(1, 1e15)


@given(st.lists(st.tuples(gains, costs, gains, costs), max_size=30), st.integers(1, 9))
def test_a_refinement_has_a_quarter_to_four_times_its_rollouts_and_at_least_one(
    generations: list[tuple[float, float, float, float]], rollouts: int
) -> None:
    share = BudgetShare(rollouts)
    assert share.rollouts == rollouts
    for mine, cost, theirs, other_cost in generations:
        share.learn(evolution=(mine, cost), rl=(theirs, other_cost))
        assert 0.25 - 1e-9 <= share.rl <= 0.75 + 1e-9
        assert max(1, round(rollouts / 4)) <= share.rollouts <= 4 * rollouts
    resumed = BudgetShare(rollouts)
    resumed.load_state_dict(share.state_dict())
    assert resumed.rollouts == share.rollouts


def test_it_is_the_gain_an_operation_that_counts() -> None:
    share = BudgetShare(4)
    for _ in range(20):
        share.learn(evolution=(0.1, 1e9), rl=(0.2, 4e9))
    assert share.rollouts == 1
    # What cannot be measured says nothing.
    before = share.state_dict()
    share.learn(evolution=(float("nan"), 1e9), rl=(0.2, 0.0))
    assert share.state_dict() == before


def test_luck_is_no_gain() -> None:
    """Children no better than those before them gain 0 on average, though the best of them always looks better."""
    generator = np.random.default_rng(0)
    rewards = generator.normal(size=(4000, 8, 16))
    is_child = [False] * 3 + [True] * 5
    measured = [evolution_gain(each, is_child) for each in rewards]
    error = np.std(measured) / np.sqrt(len(measured))
    assert abs(np.mean(measured)) < 4 * error
    naive = rewards[:, 3:].mean(-1).max(-1) - rewards[:, :3].mean(-1).max(-1)
    assert naive.mean() > 10 * error
    rewards[:, 5] += 0.5
    assert np.mean([evolution_gain(each, is_child) for each in rewards[:400]]) > 0.25


def test_the_failed_have_no_part_in_a_gain() -> None:
    rewards = np.array([[0.5] * 4, [np.nan] * 4, [0.75, np.nan, 0.75, 0.75], [np.nan] * 4])
    assert evolution_gain(rewards, [False, False, True, True]) == 0.25
    assert np.isnan(evolution_gain(rewards, [False, False, False, True]))
    assert np.isnan(evolution_gain(rewards, [True] * 4))
