"""What is wanted comes first, group by group, and the reward where it says nothing."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evolora import GRPOConfig, InputError, PPOConfig
from evolora.engine.choose import choose_engine
from evolora.engine.text import Text
from evolora.fitness.judging import ByCompletion
from evolora.models.base import load_base
from evolora.models.lora import lora_config, lora_layout
from evolora.refiners import GRPORefiner, PPORefiner
from evolora.refiners.advantages import fitness_first
from evolora.rewards import RewardScorer
from evolora.runs.options import make_options
from evolora.tasks.task import Example

SIZE = 4
values = st.lists(st.sampled_from([0.0, 0.5, 1.0, float("nan")]), min_size=3 * SIZE, max_size=3 * SIZE)
rewards = st.lists(st.floats(-10, 10), min_size=3 * SIZE, max_size=3 * SIZE)


@settings(deadline=None)
@given(values, rewards)
def test_each_group_follows_the_fitness_or_nothing_or_the_reward(paid: list[float], earned: list[float]) -> None:
    scores, worth = torch.tensor([earned], dtype=torch.float64), torch.tensor([paid], dtype=torch.float64)
    found = fitness_first(scores, torch.ones(1, 3 * SIZE), worth, group_size=SIZE, least=torch.zeros(1))
    assert bool(found.isfinite().all())
    for start in range(0, 3 * SIZE, SIZE):
        group = slice(start, start + SIZE)
        own, before, after = worth[0, group], scores[0, group], found[0, group]
        known = own[~own.isnan()]
        if len(known) > 1 and known.min() < known.max():
            told = after[~own.isnan()]
            order = [(float(a), float(b)) for a, b in zip(known, told, strict=True)]
            for worse, better in ((a, b) for a in order for b in order if a[0] < b[0]):
                assert worse[1] < better[1]
            for one, other in ((a, b) for a in order for b in order if a[0] == b[0]):
                assert one[1] == pytest.approx(other[1])
        elif len(known) == SIZE and known[0] > 0:
            assert after.tolist() == pytest.approx([float(before.mean())] * SIZE)
        else:
            assert after.tolist() == before.tolist()


def test_a_group_keeps_its_mean_and_the_usual_spread() -> None:
    scores = torch.tensor([[5.0, 5.0, 7.0, 7.0, 1.0, 1.0, 3.0, 3.0]], dtype=torch.float64)
    paid = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    found = fitness_first(scores, torch.ones(1, 8), paid, group_size=4, least=torch.zeros(1))[0]
    assert float(found[:4].mean()) == pytest.approx(6.0)
    assert float(found[:4].std()) == pytest.approx(float(scores[0, :4].std()))
    assert found[4:].tolist() == scores[0, 4:].tolist()


def test_what_all_have_earned_is_followed_where_nobody_was_ever_paid_less() -> None:
    scores, paid = torch.tensor([[1.0, 2.0]]), torch.ones(1, 2)
    found = fitness_first(scores, torch.ones(1, 2), paid, group_size=2, least=torch.ones(1))
    assert found.tolist() == scores.tolist()


@pytest.mark.parametrize(("refiner", "options"), [(PPORefiner, PPOConfig), (GRPORefiner, GRPOConfig)])
def test_a_policy_follows_the_fitness_against_a_reward_that_leads_away(refiner: Any, options: Any) -> None:
    """The reward is for long completions, the fitness for short ones."""
    base = load_base("tiny-gpt2")
    layout, genome = lora_layout(base.model, lora_config(base.model), seed=0)
    engine, text = choose_engine(base.model, layout).engine, Text.of(base.model, base.tokenizer)
    reward = RewardScorer(lambda completions: [len(text) / 10 for text in completions])
    fitness = ByCompletion(
        RewardScorer(lambda completions: [float(len(text) < 8) for text in completions]), samples=1, slow=False
    )
    examples = [Example(f"{number} + 3 =", {}) for number in range(8)]
    lengths = {}
    for first in (False, True):
        config = options(max_new_tokens=8, rollout_samples=4, fitness_first=first, rl_steps=6, lr=2e-3)
        refined = refiner(engine, text, reward, config, seed=0, fitness=fitness).refine(genome[None], examples)
        lengths[first] = refined.stats[0]["length"]
    assert lengths[True] < lengths[False]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({}, False),
        ({"fitness": "exact", "reward": "similarity"}, True),
        ({"fitness": "exact", "reward": "similarity", "rollout_samples": 1}, False),
        ({"fitness": "exact", "reward": "similarity", "strategy": "none"}, False),
        ({"fitness": "exact", "reward": "similarity", "fitness_first": False}, False),
    ],
)
def test_a_population_with_a_fitness_follows_it_first(words: dict[str, Any], expected: bool) -> None:
    assert make_options({"task": "translate", **words}).refiner.fitness_first is expected


def test_one_completion_a_prompt_tells_nothing_apart() -> None:
    with pytest.raises(InputError, match="one completion a prompt with fitness_first: expected rollout_samples"):
        make_options({"task": "translate", "fitness_first": True, "rollout_samples": 1})
