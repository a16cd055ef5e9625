"""Individuals that are refined by their own temperature and weights of the reward's summands."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from evolora.engine.choose import choose_engine
from evolora.engine.text import Text
from evolora.models.base import BaseModel, load_base
from evolora.models.genome import GenomeLayout
from evolora.models.lora import lora_config, lora_layout
from evolora.population.population import Hyperparameters
from evolora.refiners import GRPOConfig, GRPORefiner, PPOConfig, PPORefiner
from evolora.refiners.policy_gradient import PolicyGradientRefiner
from evolora.rewards import CombinedScorer, RewardScorer
from evolora.rewards.expression import parse
from evolora.tasks.task import load_task

EXAMPLES = list(load_task(task="translate").train[:6])
KINDS: dict[str, tuple[Any, Any]] = {"ppo": (PPORefiner, PPOConfig), "grpo": (GRPORefiner, GRPOConfig)}
KEYS = [(1, 5), (1, 6), (1, 7)]
REWARD = "vowels - 0.5 * short + 0.25"


def vowels(completions: list[str]) -> list[float | None]:
    return [None if len(text) % 7 == 0 else sum(each in "aeiou" for each in text) / 10 for text in completions]


def short(completions: list[str]) -> list[float | None]:
    return [None if len(text) % 5 == 0 else 1 / (1 + len(text)) for text in completions]


@pytest.fixture(scope="module")
def made() -> tuple[BaseModel, GenomeLayout, Tensor]:
    base = load_base("tiny-gpt2")
    layout, founder = lora_layout(base.model, lora_config(base.model), seed=0)
    noise = torch.randn(3, layout.genome_length, generator=torch.Generator().manual_seed(0))
    return base, layout, founder + 0.02 * noise


def refiner(
    kind: str, made: tuple[BaseModel, GenomeLayout, Tensor], reward: str = REWARD, **more: Any
) -> PolicyGradientRefiner[Any]:
    base, layout, _ = made
    make, config = KINDS[kind]
    scorer = CombinedScorer(parse(reward), {"vowels": RewardScorer(vowels), "short": RewardScorer(short)})
    found: PolicyGradientRefiner[Any] = make(
        choose_engine(base.model, layout).engine,
        Text.of(base.model, base.tokenizer),
        scorer,
        config(**{"max_new_tokens": 6, "rl_steps": 2, "rollout_samples": 4, "update_kl": 1e-4, **more}),
        seed=0,
    )
    return found


def own(temperature: float | None = None, weights: tuple[float, ...] = (), lr: float = 1e-3) -> Hyperparameters:
    return Hyperparameters(lr, 0.02, 0.0, temperature, weights)


@pytest.mark.parametrize("kind", KINDS)
def test_factors_of_1_and_the_options_temperature_change_no_bit(kind: str, made: Any) -> None:
    genomes = made[2]
    plain = refiner(kind, made).refine(genomes, EXAMPLES, key=KEYS)
    same = refiner(kind, made).refine(genomes, EXAMPLES, key=KEYS, hyperparameters=[own(1.0, (1.0, 1.0))] * 3)
    assert torch.equal(plain.genomes, same.genomes)
    assert plain.earned == same.earned
    for before, after in zip(plain.stats, same.stats, strict=True):
        assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("kind", KINDS)
def test_each_comes_out_as_alone(kind: str, made: Any) -> None:
    genomes = made[2]
    settings = [own(1.4, (2.0, 0.0), lr=3e-4), own(0.7, (0.5, 1.5)), own(1.4, (0.0, 2.0), lr=3e-3)]
    together, alone = refiner(kind, made), refiner(kind, made)
    all_of_them = together.refine(genomes, EXAMPLES, key=KEYS, children=[8, 9, 10], hyperparameters=settings)
    for row in range(3):
        one = alone.refine(
            genomes[[row]], EXAMPLES, key=[KEYS[row]], children=[8 + row], hyperparameters=[settings[row]]
        )
        step = (one.genomes[0] - genomes[row]).norm()
        assert step > 0
        assert (all_of_them.genomes[row] - one.genomes[0]).norm() < 0.01 * step
        assert all_of_them.stats[row].keys() == one.stats[0].keys()
        assert one.trajectory is not None and all_of_them.trajectory is not None
        assert torch.equal(all_of_them.trajectory[-1, row], all_of_them.genomes[row])
    together.settle()
    alone.settle()
    assert together.led_rate.factor == pytest.approx(alone.led_rate.factor) != 1
    assert together.led_rate.recent == pytest.approx(alone.led_rate.recent, rel=1e-3)


def test_weights_say_what_is_followed_and_rewards_stay_comparable(made: Any) -> None:
    by, genomes = refiner("grpo", made), made[2][[0, 0, 0]]
    settings = [own(weights=(1.0, 1.0)), own(weights=(2.0, 0.0)), own(weights=(0.0, 2.0))]
    key = [(1, 5, 0)] * 3
    rollout = by.collect(genomes, EXAMPLES, key, by._settings(settings, [{}] * 3))
    texts = by.writer.text.decode(rollout.completions)[: rollout.scores.shape[1]]
    assert torch.equal(rollout.rewards[0], rollout.rewards[1]) and torch.equal(rollout.scores[0], rollout.rewards[0])
    first, second = ([np.nan if value is None else value for value in term(texts)] for term in (vowels, short))
    for row, expected in ((1, 2 * np.array(first)), (2, -np.array(second))):
        known = ~np.isnan(expected)
        # What only a summand of weight 0 scores has no score.
        assert rollout.scored[row].tolist() == known.tolist() and 0 < known.sum() < len(known)
        assert rollout.scores[row].numpy()[known] == pytest.approx(expected[known] + 0.25, abs=1e-6)


def test_a_rate_of_ones_own_does_not_lead_that_of_the_run_astray(made: Any) -> None:
    """A KL that a rate 30 times the option's has made says what the option's would have: a 900th."""
    by = refiner("ppo", made, rl_steps=1)
    by.refine(made[2][:1], EXAMPLES, key=KEYS[:1], hyperparameters=[own(lr=3e-2)])
    (moves,) = by._moves.values()
    assert [move.factor for move in moves] == pytest.approx([30.0])


def test_the_temperature_is_that_of_sampling_and_of_the_updates(made: Any) -> None:
    genomes = made[2][:1]
    expected = refiner("grpo", made, temperature=0.7).refine(genomes, EXAMPLES, key=KEYS[:1])
    found = refiner("grpo", made).refine(genomes, EXAMPLES, key=KEYS[:1], hyperparameters=[own(0.7)])
    assert torch.equal(expected.genomes, found.genomes)
