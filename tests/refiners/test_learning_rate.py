"""The learning rate over a run: its schedule, how updates lead it, and updates that are taken back."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evolora.engine.choose import choose_engine
from evolora.engine.text import Text
from evolora.models.base import load_base
from evolora.models.lora import lora_config, lora_layout
from evolora.refiners import PPOConfig, PPORefiner
from evolora.refiners.learning_rate import BAND, FIRST, MOST, NARROW, SEEN, LedRate, decayed
from evolora.refiners.optimiser import RowAdam
from evolora.rewards import RewardScorer, similarity
from evolora.tasks.task import load_task

EXAMPLES = list(load_task(task="translate").train[:64])
Make = Callable[..., PPORefiner]


@pytest.fixture(scope="module")
def ppo() -> tuple[Make, Tensor]:
    """What makes a refiner of the bundled model, and the genome to be refined."""
    base = load_base("tiny-gpt2")
    layout, genome = lora_layout(base.model, lora_config(base.model), seed=0)

    def make(**options: Any) -> PPORefiner:
        config = PPOConfig(max_new_tokens=8, **options)
        engine, text = choose_engine(base.model, layout).engine, Text.of(base.model, base.tokenizer)
        return PPORefiner(engine, text, RewardScorer(similarity), config, seed=0)

    return make, genome


positive = st.floats(1e-6, 1e3)


@settings(deadline=None)
@given(st.floats(1, 1e4), st.floats(0, 1), st.floats(0, 1))
def test_a_rate_falls_by_its_factor_around_the_middle(decay: float, early: float, late: float) -> None:
    assert decayed(decay, 0.0) / decayed(decay, 1.0) == pytest.approx(decay)
    assert decayed(decay, early) * decayed(decay, 1 - early) == pytest.approx(1)
    assert decayed(decay, min(early, late)) >= decayed(decay, max(early, late))
    assert decayed(decay, 1.7) == decayed(decay, 1.0), "a budget may be overrun"
    assert decayed(1.0, early) == 1


@settings(deadline=None)
@given(st.lists(positive, min_size=1, max_size=12), positive)
def test_a_rate_is_set_anew_where_several_updates_say_so_and_only_then(kls: list[float], target: float) -> None:
    rate, since, band, tested = LedRate(), [], BAND, False
    for kl in kls:
        before = rate.factor
        rate.follow(kl, target=target)
        since = [*since, min(max(kl, target / MOST**2), target * MOST**2)][-SEEN:]
        mean = math.exp(sum(math.log(each) for each in since) / len(since))
        if rate.factor == before:
            most = band if tested else min(band, FIRST)
            assert len(since) < SEEN or target / band * (1 - 1e-9) <= mean <= target * most * (1 + 1e-9)
            band, tested = (BAND, True) if len(since) == SEEN else (band, tested)
            continue
        # A KL grows with the square of the rate: it comes to the target.
        assert len(since) == SEEN
        assert mean * (rate.factor / before) ** 2 == pytest.approx(target)
        since, band = [], NARROW


def test_a_wrong_rate_is_right_after_few_updates_and_stays() -> None:
    for wrong in (0.1, 10.0, 200.0):
        rate, kls = LedRate(), []
        for _ in range(4 * SEEN):
            kls.append(0.1 * (wrong * rate.factor) ** 2)
            rate.follow(kls[-1], target=0.1)
        assert kls[-1] == pytest.approx(0.1) and wrong * rate.factor == pytest.approx(1)


def test_one_that_is_far_off_changes_nothing_and_a_rate_set_too_low_is_corrected() -> None:
    rate = LedRate()
    for kl in (0.1, 0.1, math.inf, 0.1, 0.1):
        rate.follow(kl, target=0.1, taken_back=kl > 1)
        assert rate.factor == 1
    # Three that are far off by chance: what comes after says that the rate was right.
    assert not any(rate.follow(9.0, target=0.1) for _ in range(3)), "what was learned before is kept"
    low = rate.factor
    assert low < 0.2
    assert [rate.follow(0.01, target=0.1) for _ in range(3)] == [False] * 3, "too low is no harm"
    assert rate.factor == pytest.approx(low * 10**0.5)
    for kl in (0.05, 0.05, 0.05, 0.01, 0.01, 0.01):
        rate.follow(kl, target=0.1)
    assert rate.factor == pytest.approx(low * 10**0.5), "it has proven right, and the band is wide again"


def test_a_policy_that_rates_have_only_destroyed_is_better_forgotten() -> None:
    rate = LedRate()
    assert [rate.follow(1.1 * FIRST * 0.1, target=0.1) for _ in range(3)] == [False, False, True]
    assert [rate.follow(9.0, target=0.1, taken_back=True) for _ in range(2)] == [False, True]
    rate = LedRate()
    # Too low is no harm, and one that was raised too far falls again: what was learned is kept.
    assert not any(rate.follow(0.001, target=0.1) for _ in range(3))
    assert not any(rate.follow(9.0, target=0.1) for _ in range(3))
    assert rate.factor == pytest.approx(1.0, rel=0.1)


def test_first_updates_that_are_small_at_any_rate_do_not_hold_a_run_at_its_start() -> None:
    # The adapter's B is zero at the start of a refinement: the first three updates move next to nothing.
    rate, forgotten, since_start = LedRate(), 0, 0
    for _ in range(60):
        kl = (1e-3 if since_start < SEEN else 2.0) * rate.factor**2
        since_start += 1
        if rate.follow(kl, target=0.1):
            forgotten, since_start = forgotten + 1, 0
    assert forgotten <= 1 and since_start > 30


def test_two_in_a_row_that_are_taken_back_are_enough_and_none_says_nothing() -> None:
    rate = LedRate()
    rate.follow(5.0, target=0.1, taken_back=True)
    assert rate.factor == 1
    rate.follow(5.0, target=0.1, taken_back=True)
    assert rate.factor == pytest.approx((0.1 / 5) ** 0.5)
    rate = LedRate()
    for _ in range(2):
        rate.follow(math.inf, target=0.1, taken_back=True)
    assert rate.factor == pytest.approx(1 / MOST)
    rate = LedRate()
    for _ in range(5):
        rate.follow(0.0, target=0.1)
    assert rate.factor == 1


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
    assert followed[-1]["taken_back"] == 0
    once = make(rl_steps=1, lr=0.3, update_kl=0.1).refine(genome[None], EXAMPLES, key=[(0, 0)])
    assert once.stats[0]["taken_back"] == 1 and torch.equal(once.genomes[0], genome)


def test_what_far_too_high_rates_have_done_is_forgotten(
    ppo: tuple[Make, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    make, genome = ppo
    refiner, too_far = make(rl_steps=3, update_kl=0.1), iter([False, False, True])
    monkeypatch.setattr(LedRate, "follow", lambda *_, **__: next(too_far))
    trajectory = refiner.refine(genome[None], EXAMPLES[:12], key=[(1, 0)]).trajectory
    assert trajectory is not None
    assert [torch.equal(genomes[0], genome) for genomes in trajectory] == [False, False, True]


def test_a_run_learns_from_a_refinement_what_it_saw_and_no_correction_twice() -> None:
    run = LedRate()
    one, other = LedRate(run), LedRate(run)
    for rate in (one, other):
        for noise in (1.1, 0.8, 1.0, 0.9, 1.2):
            rate.follow(5 * noise * rate.factor**2, target=0.1)
    assert one.factor < 0.2 and run.factor == 1
    run.learn(one.moves)
    assert run.state_dict() == one.state_dict()
    run.learn(other.moves)
    assert run.factor == one.factor and not run.moves


def test_what_is_led_goes_on_after_a_resume(ppo: tuple[Make, Tensor]) -> None:
    make, genome = ppo
    whole, again = (make(lr=0.3, update_kl=0.1, rl_steps=2) for _ in range(2))
    first = whole.refine(genome[None], EXAMPLES[:12], key=[(1, 0)])
    again.load_state_dict(whole.state_dict())
    assert whole.led_rate.factor < 1
    found, expected = (each.refine(first.genomes, EXAMPLES[:12], key=[(2, 1)]) for each in (again, whole))
    assert torch.equal(found.genomes, expected.genomes) and found.stats == expected.stats
