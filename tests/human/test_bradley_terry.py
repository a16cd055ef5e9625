"""The fit of strengths against scipy, its uncertainty, and the choice of pairs against random pairs."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from evolora.human.bradley_terry import (
    PRIOR_SCALE,
    TIE_PRIOR_MEAN,
    TIE_PRIOR_SCALE,
    Comparison,
    Fit,
    comparisons,
    fit_strengths,
    outcome_probabilities,
)
from evolora.human.choice import choose_pairs
from evolora.human.votes import Pair, Vote

RESULTS = st.sampled_from([0.0, 0.5, 1.0])


def log_posterior(parameters: np.ndarray, compared: list[Comparison], means: np.ndarray, scale: float) -> float:
    """Davidson, 1970, as in the paper: pi_i / (pi_i + pi_j + nu sqrt(pi_i pi_j)), and the priors."""
    pi, nu = np.exp(parameters[:-1]), math.exp(parameters[-1])
    total = float(stats.norm.logpdf(parameters[:-1], means, scale).sum())
    total += float(stats.norm.logpdf(parameters[-1], TIE_PRIOR_MEAN, TIE_PRIOR_SCALE))
    for i, j, result in compared:
        tie = nu * math.sqrt(pi[i] * pi[j])
        total += math.log({1.0: pi[i], 0.0: pi[j], 0.5: tie}[result] / (pi[i] + pi[j] + tie))
    return total


def simulate(rng: np.random.Generator, strengths: np.ndarray, nu: float, i: int, j: int) -> Comparison:
    win, tie, _ = (float(p[0]) for p in outcome_probabilities(np.array([strengths[i] - strengths[j]]), nu))
    draw = rng.random()
    return Comparison(i, j, 1.0 if draw < win else 0.5 if draw < win + tie else 0.0)


@pytest.mark.parametrize("seed", range(4))
def test_the_fit_is_the_maximum_that_scipy_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count, scale = 6, (0.5, 1.0, 3.0, 1.0)[seed]
    truth, means = rng.normal(size=count), rng.normal(size=count)
    compared = [simulate(rng, truth, 0.7, *rng.choice(count, 2, replace=False)) for _ in range(5 + 20 * seed)]
    fit = fit_strengths(compared, range(count), prior_means=dict(enumerate(means)), prior_scale=scale)

    def loss(parameters: np.ndarray) -> float:
        return -log_posterior(parameters, compared, means, scale)

    found = optimize.minimize(loss, np.zeros(count + 1), method="BFGS", options={"gtol": 1e-9})
    ours = np.array([*fit.strengths, math.log(fit.nu)])
    assert loss(ours) <= found.fun + 1e-10
    np.testing.assert_allclose(ours, found.x, atol=1e-5)
    # Laplace: the inverse of the second derivatives, here by central differences.
    step = 1e-4
    eye = np.eye(count + 1) * step
    hessian = np.array(
        [
            [
                (loss(ours + a + b) - loss(ours + a - b) - loss(ours - a + b) + loss(ours - a - b)) / (4 * step**2)
                for b in eye
            ]
            for a in eye
        ]
    )
    np.testing.assert_allclose(fit.covariance, np.linalg.inv(hessian)[:-1, :-1], rtol=1e-4, atol=1e-5)


def test_known_strengths_and_ties_are_recovered() -> None:
    rng = np.random.default_rng(0)
    truth = np.linspace(-1.5, 1.5, 7)
    compared = [simulate(rng, truth, 0.8, *rng.choice(7, 2, replace=False)) for _ in range(4000)]
    fit = fit_strengths(compared, range(7), prior_scale=3.0)
    np.testing.assert_allclose(fit.strengths - fit.strengths.mean(), truth, atol=0.2)
    assert fit.nu == pytest.approx(0.8, abs=0.08)
    assert fit.certainty() > 0.99


def test_the_posterior_is_calibrated() -> None:
    """Over draws from the prior, 90% intervals of differences hold the truth about 90% of the time, and the certainty
    is the share of pairs that are in the right order."""
    rng = np.random.default_rng(1)
    inside, right, said = [], [], []
    for _ in range(200):
        truth = rng.normal(scale=PRIOR_SCALE, size=5)
        compared = [simulate(rng, truth, 0.5, *rng.choice(5, 2, replace=False)) for _ in range(20)]
        fit = fit_strengths(compared, range(5))
        said.append(fit.certainty())
        for i, j in combinations(range(5), 2):
            gap = fit.strengths[i] - fit.strengths[j]
            deviation = math.sqrt(fit.covariance[i, i] + fit.covariance[j, j] - 2 * fit.covariance[i, j])
            inside.append(abs(gap - (truth[i] - truth[j])) < 1.645 * deviation)
            right.append(gap * (truth[i] - truth[j]) > 0)
    assert 0.86 < np.mean(inside) < 0.94
    assert abs(np.mean(right) - np.mean(said)) < 0.04


def test_a_prior_alone_is_returned_and_votes_move_it() -> None:
    fit = fit_strengths([], [5, 3], prior_means={3: 2.0}, prior_scale=0.7)
    assert fit.individuals == (5, 3)
    np.testing.assert_allclose(fit.strengths, [0.0, 2.0])
    np.testing.assert_allclose(fit.covariance, np.eye(2) * 0.49, atol=1e-12)
    moved = fit_strengths([Comparison(5, 3, 1.0)] * 10, [5, 3], prior_means={3: 2.0}, prior_scale=0.7)
    assert moved.strength(5) > moved.strength(3)
    with pytest.raises(ValueError, match="scale"):
        fit_strengths([], [1], prior_scale=0.0)
    with pytest.raises(ValueError, match="result"):
        fit_strengths([Comparison(1, 2, 0.7)])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 4), st.sampled_from([0.0, 0.5, 1.0])).filter(
            lambda c: c[0] != c[1]
        ),
        max_size=60,
    )
)
def test_order_and_direction_of_votes_do_not_matter(raw: list[tuple[int, int, float]]) -> None:
    compared = [Comparison(*one) for one in raw]
    fit = fit_strengths(compared, range(5))
    turned = fit_strengths([Comparison(j, i, 1 - result) for i, j, result in compared[::-1]], range(5))
    np.testing.assert_allclose(fit.strengths, turned.strengths, atol=1e-7)
    assert fit.nu == pytest.approx(turned.nu)
    assert np.linalg.eigvalsh(fit.covariance).min() > 0
    assert 0.5 <= fit.certainty() <= 1
    more = fit_strengths([*compared, Comparison(0, 1, 1.0)], range(5))
    assert more.strength(0) - more.strength(1) > fit.strength(0) - fit.strength(1)


def test_a_one_sided_record_stays_finite() -> None:
    fit = fit_strengths([Comparison(0, 1, 1.0)] * 100_000, prior_scale=10.0)
    assert np.isfinite(fit.strengths).all()
    assert fit.probabilities(0, 1)[0] > 0.999
    assert sum(fit.probabilities(0, 1)) == pytest.approx(1)


def test_votes_become_comparisons() -> None:
    def vote(a: int | None, b: int | None, outcome: str) -> Vote:
        return Vote(1, "p", "x", "y", a, b, outcome)  # type: ignore[arg-type]

    votes = [
        vote(1, 2, "a"),
        vote(1, 2, "b"),
        vote(2, 1, "tie"),
        vote(2, 1, "bad"),
        vote(None, None, "a"),
        vote(4, 4, "a"),
    ]
    assert comparisons(votes) == [(1, 2, 1.0), (1, 2, 0.0), (2, 1, 0.5), (2, 1, 0.5)]


# ---- the choice of pairs


def all_pairs(individuals: int, prompts: int) -> list[Pair]:
    return [
        Pair(f"prompt {p}", i, f"text {p} {i}", j, f"text {p} {j}")
        for p in range(prompts)
        for i, j in combinations(range(individuals), 2)
    ]


def test_identical_texts_are_never_asked_and_the_same_texts_once() -> None:
    candidates = [
        Pair("p", 0, "same", 1, "same"),
        Pair("p", 0, "x", 2, "y"),
        Pair("p", 3, "y", 1, "x"),
        Pair("p", 2, "u", 2, "v"),
        Pair("p", 1, "x", 2, "z"),
    ]
    fit = fit_strengths([], range(4))
    picked = choose_pairs(candidates, fit, 10)
    assert len(picked) == 2
    assert {frozenset((pair.text_a, pair.text_b)) for pair in picked} == {frozenset("xy"), frozenset("xz")}
    assert choose_pairs(candidates, fit, 10, asked=[candidates[2]]) == [candidates[4]]
    assert choose_pairs([], fit, 3) == []


def test_prompts_are_not_repeated_while_there_are_others() -> None:
    fit = fit_strengths([Comparison(0, 1, 1.0)] * 5, range(4))
    picked = choose_pairs(all_pairs(4, 5), fit, 12)
    assert [len({pair.prompt for pair in picked[:n]}) for n in (5, 12)] == [5, 5]
    assert len({pair.prompt for pair in picked[5:10]}) == 5
    asked = all_pairs(4, 5)[:1]
    assert "prompt 0" not in {pair.prompt for pair in choose_pairs(all_pairs(4, 5), fit, 4, asked=asked)}


def test_the_first_pick_tells_most_and_a_batch_spreads() -> None:
    # 0 and 1 are known well, 2 and 3 hardly: of the pairs, 2 against 3 is worth most.
    fit = fit_strengths([Comparison(0, 1, 1.0), Comparison(0, 1, 0.0)] * 20, range(4))
    picked = choose_pairs(all_pairs(4, 8), fit, 4)
    assert {picked[0].individual_a, picked[0].individual_b} == {2, 3}
    # Without the update of the covariance the same two would be asked again and again.
    assert len({(pair.individual_a, pair.individual_b) for pair in picked}) >= 3


def test_the_update_within_a_batch_is_that_of_a_tie() -> None:
    """With one more vote at the same strengths the fit's own covariance changes as the choice says."""
    fit = Fit((0, 1, 2), np.zeros(3), np.diag([1.0, 1.0, 1.5]), 0.5)
    first, second = choose_pairs(all_pairs(3, 2), fit, 2)
    win, _, loss = (float(p[0]) for p in outcome_probabilities(np.zeros(1), 0.5))
    x = np.zeros(3)
    x[first.individual_a], x[first.individual_b] = 1, -1
    after = np.linalg.inv(np.linalg.inv(fit.covariance) + (win + loss) / 4 * np.outer(x, x))

    def variance(i: int, j: int) -> float:
        return float(after[i, i] + after[j, j] - 2 * after[i, j])

    best = max(combinations(range(3), 2), key=lambda pair: variance(*pair))
    assert (second.individual_a, second.individual_b) == best


def test_weights_steer_and_bad_input_is_refused() -> None:
    candidates, fit = all_pairs(3, 2), fit_strengths([], range(3))
    weights = [0.0] * 5 + [1.0]
    assert choose_pairs(candidates, fit, 3, weights=weights) == [candidates[5]]
    for bad in ([1.0], [-1.0] * 6, [math.nan] * 6):
        with pytest.raises(ValueError, match="weights"):
            choose_pairs(candidates, fit, 1, weights=bad)
    with pytest.raises(ValueError, match=r"\[2\]"):
        choose_pairs(candidates, fit_strengths([], range(2)), 1)


def test_chosen_pairs_rank_better_than_random_pairs_for_the_same_votes() -> None:
    individuals, rounds, batch = 12, 6, 10
    candidates = all_pairs(individuals, 20)
    reached: dict[str, list[float]] = {"chosen": [], "random": []}
    for seed in range(24):
        for way, results in reached.items():
            rng = np.random.default_rng(seed)
            truth = rng.normal(scale=2.0, size=individuals)
            compared: list[Comparison] = []
            for _ in range(rounds):
                fit = fit_strengths(compared, range(individuals), prior_scale=2.0)
                if way == "chosen":
                    asked = choose_pairs(candidates, fit, batch)
                else:
                    asked = [candidates[n] for n in rng.choice(len(candidates), batch, replace=False)]
                compared += [simulate(rng, truth, 0.3, pair.individual_a, pair.individual_b) for pair in asked]
            fit = fit_strengths(compared, range(individuals), prior_scale=2.0)
            results.append(float(stats.spearmanr(fit.strengths, truth).statistic))
    chosen, random = np.array(reached["chosen"]), np.array(reached["random"])
    assert chosen.mean() > random.mean() + 0.02
    assert stats.ttest_rel(chosen, random, alternative="greater").pvalue < 0.05
