"""Selection by small probabilities: exact ones of known hits, and samples that are dealt by successive halving."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model, set_peft_model_state_dict

from evolora.engine.choose import choose_engine
from evolora.engine.text import Text
from evolora.evolution.acceptance import clearly_more, entering, standing
from evolora.evolution.hits import KnownHit
from evolora.evolution.small_probabilities import (
    HitChances,
    halved,
    least_told,
    most_often,
    samples_a_round,
    samples_to_tell,
)
from evolora.fitness.base import Judged
from evolora.models.base import load_base
from evolora.models.cost import Cost
from evolora.models.lora import lora_config, lora_layout
from evolora.population.evaluation import Evaluation

Floats = npt.NDArray[np.float64]


def arms(chances: list[float], seed: int = 0) -> tuple[Callable[[list[int], int, int], Floats], list[int]]:
    """Individuals that hit so often, and how many samples each has been asked for."""
    draws = np.random.default_rng(seed).random((len(chances), 4000))
    asked = [0] * len(chances)

    def ask(rows: list[int], start: int, stop: int) -> Floats:
        for row in rows:
            assert asked[row] == start, "samples are asked for in their order"
            asked[row] = stop
        return np.array([draws[row, start:stop] < chances[row] for row in rows], np.float64)

    return ask, asked


@given(st.integers(2, 40), st.integers(0, 3000))
def test_no_more_is_sampled_than_the_budget(n: int, budget: int) -> None:
    ask, asked = arms([0.5] * n)
    halved(n, budget, ask)
    assert sum(asked) <= budget and (sum(asked) > 0) == bool(samples_a_round(n, budget))
    assert max(asked) == sum(samples_a_round(n, budget))


@given(st.integers(2, 20), st.data())
def test_who_always_hits_where_nobody_else_does_is_the_best(n: int, data: st.DataObject) -> None:
    best, budget = data.draw(st.integers(0, n - 1)), data.draw(st.integers(n * 6, 2000))
    ask, asked = arms([float(row == best) for row in range(n)])
    values = halved(n, budget, ask)
    assert values.argmax() == best and asked[best] == max(asked)
    assert values[best] == 1.0 and all(value == 0.0 for row, value in enumerate(values) if row != best)


def test_the_best_of_many_survives_a_gap_that_the_samples_tell() -> None:
    """One in a hundred against one in a thousand, with what that takes for the last round."""
    budget = 3 * 8 * samples_to_tell(0.01, 0.001)
    found = [halved(8, budget, arms([0.001] * 7 + [0.01], seed)[0]).argmax() == 7 for seed in range(30)]
    assert sum(found) >= 27


def test_who_was_dropped_early_is_never_ahead_of_who_stayed() -> None:
    # Lucky at first: the last two hit only in the first samples.
    def ask(rows: list[int], start: int, stop: int) -> Floats:
        return np.array([[float(row in (2, 3) or (row == 1 and start > 0))] * (stop - start) for row in rows])

    values = halved(4, 24, ask)
    assert values[2] == values[3] == 1.0 and values[0] == values[1] == 0.0
    # Equals at nothing stay equals, so that the reward may decide.
    assert halved(4, 24, arms([0.0] * 4)[0]).tolist() == [0.0] * 4


def test_without_any_score_nothing_is_known() -> None:
    assert np.isnan(halved(3, 60, lambda rows, start, stop: np.full((len(rows), stop - start), np.nan))).all()


@given(st.integers(1, 10**6))
def test_the_least_share_is_the_one_that_the_samples_tell_from_a_tenth(samples: int) -> None:
    least = least_told(samples)
    assert samples_to_tell(least, least / 10) in (samples, samples + 1)
    assert (1 - most_often(samples)) ** samples == pytest.approx(0.05)


def test_so_many_samples_do_tell_them_apart() -> None:
    """The arithmetic holds in draws: the better is ahead in nearly all pairs, and in far fewer with a tenth of them."""
    generator = np.random.default_rng(0)
    n = samples_to_tell(0.01, 0.001)

    def ahead(n: int) -> float:
        return float((generator.binomial(n, 0.01, 4000) > generator.binomial(n, 0.001, 4000)).mean())

    assert ahead(n) > 0.95 and ahead(n // 10) < 0.5


def test_the_chance_of_known_hits_is_the_sum_of_what_transformers_computes() -> None:
    base = load_base("tiny-gpt2")
    config = lora_config(base.model)
    layout, founder = lora_layout(base.model, config, seed=0)
    genomes = founder.repeat(2, 1)
    genomes[1] += 0.02 * torch.randn(len(founder), generator=torch.Generator().manual_seed(0))
    text = Text.of(base.model, base.tokenizer)
    end = base.tokenizer.eos_token_id
    hits = [
        KnownHit(prompt, (*base.tokenizer(answer)["input_ids"], end), worth)
        for prompt, answer, worth in (
            ("2 + 3 =", " 5", 1.0),
            ("2 + 3 =", " five", 0.25),
            ("Translate 'chat' to English:", " the cat is here", 1.0),
            ("14 - 8 =", " 26", 0.5),
        )
    ]
    engine = choose_engine(base.model, layout).engine
    found, cost = HitChances(engine, text, rows=3).expected(genomes, hits)
    model = get_peft_model(base.model, config)
    model.eval()
    for genome, own in zip(genomes, found, strict=True):
        set_peft_model_state_dict(model, layout.to_state_dict(genome))
        expected = 0.0
        for hit in hits:
            prompt = base.tokenizer(hit.prompt)["input_ids"]
            ids = torch.tensor([[*prompt, *hit.completion_ids]])
            with torch.no_grad():
                logs = model(ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
            p = logs.gather(1, ids[0, len(prompt) :, None]).sum().exp().item()
            expected += p * hit.worth
        assert own == pytest.approx(expected, rel=1e-3)
    assert found[0] != found[1] and cost.tokens == 0 < cost.flops
    # Alone as in company.
    assert HitChances(engine, text, rows=3).expected(genomes[1:], hits)[0][0] == found[1]


def evaluation(fitness: list[float], rewards: list[float], chances: list[float] | None) -> Evaluation:
    judged = [Judged(value, 0, np.array([value])) for value in fitness]
    whole = Evaluation(np.array(fitness), np.array(rewards)[:, None], [], Cost(), 0, [], {}, judged)
    return whole if chances is None else replace(whole, hit_chances=np.array(chances))


def test_among_equals_the_chance_of_a_hit_decides_before_the_reward() -> None:
    apart = standing(evaluation([0.0, 0.0, 0.0, 0.5], [0.9, 0.1, 0.2, 0.0], [1e-6, 1e-4, 1e-4, 0.0]))
    assert np.argsort(apart).tolist() == [0, 1, 2, 3]
    # Also where one reward is all there is.
    plain = replace(evaluation([0.0, 0.0], [0.0, 0.0], [2e-5, 1e-5]), judged=[])
    assert np.argsort(standing(plain)).tolist() == [1, 0]
    assert standing(replace(plain, hit_chances=None)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("chance", "reward", "enters"),
    [(1e-3, 0.1, True), (1e-6, 0.9, False), (1.1e-4, 0.1, False), (0.9e-4, 0.9, True)],
)
def test_of_two_that_fitness_does_not_tell_apart_the_one_enters_that_hits_clearly_more(
    chance: float, reward: float, enters: bool
) -> None:
    before, after = evaluation([0.0], [0.5], [1e-4]), evaluation([0.0], [reward], [chance])
    assert entering("better", before, [0], after, seed=0).tolist() == [enters]
    replaced = before.replaced({0: 0}, after).hit_chances
    assert replaced is not None and replaced.tolist() == [chance]


def test_clearly_more_is_more_than_twice() -> None:
    assert clearly_more(np.array([3.0, 1.0, 1.9, 0.0]), np.array([1.0, 3.0, 1.0, 0.0])).tolist() == [1, -1, 0, 0]
