"""The learning rate over a run: its schedule, how updates lead it, and updates that are taken back."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from evolora.model import load_base, lora_config, lora_layout
from evolora.population_model import PopulationModel
from evolora.refiners import PPOConfig, PPORefiner
from evolora.refiners.learning_rate import BAND, decayed, led
from evolora.refiners.optimiser import RowAdam
from evolora.rewards import RewardScorer, similarity
from evolora.task import load_task

EXAMPLES = list(load_task(task="translate").train[:64])
Make = Callable[..., PPORefiner]


@pytest.fixture(scope="module")
def ppo() -> tuple[Make, Tensor]:
    """What makes a refiner of the bundled model, and the genome to be refined."""
    base = load_base("tiny-gpt2")
    layout, genome = lora_layout(base.model, lora_config(base.model), seed=0)

    def make(**options: Any) -> PPORefiner:
        config = PPOConfig(max_new_tokens=8, **options)
        return PPORefiner(PopulationModel(base.model, layout), base.tokenizer, RewardScorer(similarity), config, seed=0)

    return make, genome


positive = st.floats(1e-6, 1e3)


@given(st.floats(1, 1e4), st.floats(0, 1), st.floats(0, 1))
def test_a_rate_falls_by_its_factor_around_the_middle(decay: float, early: float, late: float) -> None:
    assert decayed(decay, 0.0) / decayed(decay, 1.0) == pytest.approx(decay)
    assert decayed(decay, early) * decayed(decay, 1 - early) == pytest.approx(1)
    assert decayed(decay, min(early, late)) >= decayed(decay, max(early, late))
    assert decayed(decay, 1.7) == decayed(decay, 1.0), "a budget may be overrun"
    assert decayed(1.0, early) == 1


@given(positive, positive, positive)
def test_a_rate_is_led_toward_the_target_and_only_from_outside_the_band(
    factor: float, kl: float, target: float
) -> None:
    found = led(factor, kl, target=target)
    if target / BAND <= kl <= target * BAND:
        assert found == factor
    elif 1e-2 < factor < 1e2:
        # A KL grows with the square of the rate: one change never oversteps the target.
        after = kl * (found / factor) ** 2
        assert abs(math.log(after / target)) < abs(math.log(kl / target))
        assert after == pytest.approx(target) or (after > target) == (kl > target)


def test_a_wrong_rate_comes_into_the_band_in_few_updates_and_stays() -> None:
    for wrong in (0.1, 10.0):
        factor, kls = 1.0, []
        for _ in range(8):
            kls.append(0.03 * (wrong * factor) ** 2)
            factor = led(factor, kls[-1], target=0.03)
        assert kls[-1] == kls[-2] and 0.03 / BAND <= kls[-1] <= 0.03 * BAND
    assert led(1.0, math.inf, target=0.1) == pytest.approx(1 / 1.5)
    assert led(1.0, math.inf, target=0.1, taken_back=True) == pytest.approx(1 / 3)


def test_rows_that_are_taken_back_begin_anew() -> None:
    rows = torch.zeros(2, 5)
    adam = RowAdam(rows, torch.tensor([0.1, 0.1]), [{}, {}])
    before = rows.clone()
    adam.step(torch.ones(2, 5), torch.tensor([True, True]))
    after = rows.clone()
    adam.take_back(before, torch.tensor([True, False]))
    assert torch.equal(rows[0], before[0]) and torch.equal(rows[1], after[1])
    assert adam.steps == [0, 1] and not adam.first[0].any() and adam.first[1].any()
    adam.step(torch.ones(2, 5), torch.tensor([True, True]))
    assert torch.equal(rows[0], after[0]), "its next step is a first one"


def test_the_schedule_scales_the_first_step(ppo: tuple[Make, Tensor]) -> None:
    make, genome = ppo
    moved = {}
    for progress in (0.0, 0.5, 1.0):
        refiner = make(lr=1e-4, lr_decay=16.0, rl_steps=1, epochs=1)
        refined = refiner.refine(genome[None], EXAMPLES[:12], key=[(1, 0)], progress=progress)
        moved[progress] = float((refined.genomes - genome).abs().max())
        assert refined.stats[0]["lr"] == pytest.approx(1e-4 * 4.0 ** (1 - 2 * progress))
    # Adam's first step is the rate, whatever the gradient.
    assert moved == pytest.approx({0.0: 4e-4, 0.5: 1e-4, 1.0: 2.5e-5}, rel=1e-2)


def test_a_far_too_high_rate_is_survived_where_it_is_led(ppo: tuple[Make, Tensor]) -> None:
    """One step at 0.3 destroys the policy; taken back, at lower and lower rates, it learns all the same."""
    make, genome = ppo

    def refined(**options: Any) -> list[dict[str, float]]:
        refiner, genomes, stats = make(rl_steps=4, **options), genome[None], []
        for generation in range(3):
            found = refiner.refine(genomes, EXAMPLES, key=[(generation, generation)])
            genomes, stats = found.genomes, [*stats, found.stats[0]]
        return stats

    untouched = make(rl_steps=1).refine(genome[None], EXAMPLES, key=[(0, 0)]).stats[0]["reward"]
    free, followed = refined(lr=0.3), refined(lr=0.3, update_kl=0.1)
    assert free[-1]["reward"] < 0.5 * untouched
    assert followed[-1]["reward"] > 1.2 * untouched
    assert followed[2]["lr"] < followed[0]["lr"] < 0.3
    assert followed[0]["taken_back"] + followed[1]["taken_back"] > 0 == followed[-1]["taken_back"]


def test_what_is_led_goes_on_after_a_resume(ppo: tuple[Make, Tensor]) -> None:
    make, genome = ppo
    whole, again = (make(lr=0.3, update_kl=0.1, rl_steps=2) for _ in range(2))
    first = whole.refine(genome[None], EXAMPLES[:12], key=[(1, 0)])
    again.load_state_dict(whole.state_dict())
    assert whole.lr_factor < 1
    found, expected = (each.refine(first.genomes, EXAMPLES[:12], key=[(2, 1)]) for each in (again, whole))
    assert torch.equal(found.genomes, expected.genomes) and found.stats == expected.stats
