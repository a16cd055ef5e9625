"""Strengths of individuals from pairwise votes: Bradley and Terry, 1952, with Davidson's ties.

R. A. Bradley and M. E. Terry, "Rank analysis of incomplete block designs: I. The method of paired comparisons",
Biometrika 39, 1952. R. R. Davidson, "On extending the Bradley-Terry model to accommodate ties in paired comparison
experiments", Journal of the American Statistical Association 65, 1970.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from evolora.human.votes import Vote

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

PRIOR_SCALE = 1.0
TIE_PRIOR_MEAN = math.log(0.5)  # one tie in five between equals
TIE_PRIOR_SCALE = 1.0
_TOLERANCE = 1e-10
_MAX_STEPS = 200


class Comparison(NamedTuple):
    """Two individuals, and the first's result: 1 it won, 0 it lost, 0.5 a tie."""

    first: int
    second: int
    result: float


def comparisons(votes: Iterable[Vote]) -> list[Comparison]:
    """The votes that say something of two different individuals. "Both bad" is a tie."""
    results = {"a": 1.0, "b": 0.0, "tie": 0.5, "bad": 0.5}
    return [
        Comparison(vote.individual_a, vote.individual_b, results[vote.outcome])
        for vote in votes
        if vote.individual_a is not None and vote.individual_b is not None and vote.individual_a != vote.individual_b
    ]


@dataclass(frozen=True)
class Fit:
    """Strengths with their uncertainty.

    The posterior is taken to be normal (Laplace's approximation) with mean `strengths` [n] and covariance
    `covariance` [n, n], both in the order of `individuals`; `nu` is Davidson's tie parameter.
    """

    individuals: tuple[int, ...]
    strengths: Floats
    covariance: Floats
    nu: float

    def strength(self, individual: int) -> float:
        """One individual's strength. Raises ValueError for one that is not in the fit."""
        return float(self.strengths[self.individuals.index(individual)])

    def probabilities(self, first: int, second: int) -> tuple[float, float, float]:
        """The probabilities that the first wins, that it is a tie, and that the second wins."""
        difference = np.array([self.strength(first) - self.strength(second)])
        win, tie, loss = outcome_probabilities(difference, self.nu)
        return float(win[0]), float(tie[0]), float(loss[0])

    def certainty(self, among: Iterable[int] | None = None) -> float:
        """How sure the order of these individuals is (default: all): the mean, over pairs, of the posterior probability
        that the fit has the pair in the right order, in [0.5, 1]. 1 for fewer than two individuals.

        >>> round(fit_strengths([], [0, 1, 2]).certainty(), 3)
        0.5
        """
        chosen = self.individuals if among is None else tuple(dict.fromkeys(among))
        if len(chosen) < 2:
            return 1.0
        rows = np.array([self.individuals.index(individual) for individual in chosen])
        first, second = (rows[index] for index in np.triu_indices(len(rows), k=1))
        gap = np.abs(self.strengths[first] - self.strengths[second])
        deviation = np.sqrt(difference_variance(self.covariance, first, second))
        return float(np.mean([_normal_cdf(z) for z in gap / np.maximum(deviation, 1e-12)]))


def fit_strengths(
    compared: Sequence[Comparison],
    individuals: Iterable[int] = (),
    *,
    prior_means: Mapping[int, float] | None = None,
    prior_scale: float = PRIOR_SCALE,
    tie_prior_mean: float = TIE_PRIOR_MEAN,
    tie_prior_scale: float = TIE_PRIOR_SCALE,
) -> Fit:
    """The most probable strengths theta given the comparisons.

    With d = theta_i - theta_j, i wins, ties and loses with probabilities proportional to exp(d / 2), nu and exp(-d / 2)
    (Davidson, 1970). Priors: theta_i ~ N(m_i, prior_scale^2), where m_i is `prior_means`' or 0, and
    log nu ~ N(tie_prior_mean, tie_prior_scale^2). The log posterior is strictly concave in (theta, log nu): Newton's
    method, with steps halved until they gain, finds its one maximum.

    The fit has all of `individuals`, in that order, and then whoever else was compared; an individual without a vote
    has its prior mean.

    >>> fit = fit_strengths([Comparison(0, 1, 1.0)] * 3 + [Comparison(1, 2, 0.5)], [0, 1, 2])
    >>> fit.strength(0) > 0 > fit.strength(1)
    True
    """
    if not (math.isfinite(prior_scale) and prior_scale > 0 and math.isfinite(tie_prior_scale) and tie_prior_scale > 0):
        raise ValueError(f"the priors' scales are {prior_scale} and {tie_prior_scale}, expected positive numbers")
    everybody = dict.fromkeys(individuals)
    for comparison in compared:
        everybody.update(dict.fromkeys(comparison[:2]))
    names = tuple(everybody)
    row_of = {name: row for row, name in enumerate(names)}
    first = np.array([row_of[comparison.first] for comparison in compared], dtype=np.int64)
    second = np.array([row_of[comparison.second] for comparison in compared], dtype=np.int64)
    result = np.array([comparison.result for comparison in compared], dtype=np.float64)
    if not np.isin(result, (0.0, 0.5, 1.0)).all():
        raise ValueError("a comparison's result is not 0, 0.5 or 1")

    means = prior_means or {}
    centre = np.array([*(means.get(name, 0.0) for name in names), tie_prior_mean])
    precision = np.array([*[prior_scale**-2] * len(names), tie_prior_scale**-2])
    posterior = _Posterior(first, second, result, centre, precision)
    parameters = posterior.maximum()
    covariance = np.asarray(np.linalg.inv(posterior.curvature(parameters)), dtype=np.float64)
    return Fit(names, parameters[:-1], covariance[:-1, :-1], math.exp(parameters[-1]))


@dataclass(frozen=True)
class _Posterior:
    """The log posterior of (theta, log nu): parameters [n + 1]."""

    first: Integers
    second: Integers
    result: Floats
    centre: Floats
    precision: Floats

    def value(self, parameters: Floats) -> float:
        difference, log_nu = parameters[self.first] - parameters[self.second], parameters[-1]
        # The exponent of what happened, minus the logarithm of the sum over what could have.
        happened = (self.result - 0.5) * difference + np.where(self.result == 0.5, log_nu, 0.0)
        total = np.logaddexp(np.logaddexp(difference / 2, -difference / 2), log_nu)
        prior = -0.5 * float(self.precision @ (parameters - self.centre) ** 2)
        return float((happened - total).sum()) + prior

    def gradient(self, parameters: Floats) -> Floats:
        win, tie, loss = outcome_probabilities(parameters[self.first] - parameters[self.second], _nu(parameters))
        residual = (self.result - 0.5) - (win - loss) / 2
        gradient = -self.precision * (parameters - self.centre)
        np.add.at(gradient, self.first, residual)
        np.add.at(gradient, self.second, -residual)
        gradient[-1] += float(((self.result == 0.5) - tie).sum())
        return gradient

    def curvature(self, parameters: Floats) -> Floats:
        """Minus the matrix of second derivatives: positive definite."""
        win, tie, loss = outcome_probabilities(parameters[self.first] - parameters[self.second], _nu(parameters))
        own = information(win, loss)
        # The covariance of (half the score, whether it is a tie) under the model's probabilities.
        cross = -tie * (win - loss) / 2
        matrix = np.diag(self.precision)
        for rows, columns, values in (
            (self.first, self.first, own),
            (self.second, self.second, own),
            (self.first, self.second, -own),
            (self.second, self.first, -own),
        ):
            np.add.at(matrix, (rows, columns), values)
        for rows, values in ((self.first, cross), (self.second, -cross)):
            np.add.at(matrix[:, -1], rows, values)
            np.add.at(matrix[-1, :], rows, values)
        matrix[-1, -1] += float((tie * (1 - tie)).sum())
        return matrix

    def maximum(self) -> Floats:
        parameters = self.centre.copy()
        value = self.value(parameters)
        for _ in range(_MAX_STEPS):
            gradient = self.gradient(parameters)
            if np.abs(gradient).max() < _TOLERANCE:
                break
            step = np.linalg.solve(self.curvature(parameters), gradient)
            scale = 1.0
            while True:
                trial = parameters + scale * step
                trial_value = self.value(trial)
                if trial_value > value:
                    break
                scale /= 2
                if scale < 1e-8:  # rounding is all that is left to gain
                    return parameters
            parameters, value = trial, trial_value
        return parameters


def outcome_probabilities(difference: Floats, nu: float) -> tuple[Floats, Floats, Floats]:
    """Davidson's probabilities of win, tie and loss at these differences of strength.

    >>> [round(float(p[0]), 3) for p in outcome_probabilities(np.array([0.0]), 0.5)]
    [0.4, 0.2, 0.4]
    """
    exponents = np.stack([difference / 2, np.full_like(difference, math.log(nu)), -difference / 2])
    weights = np.exp(exponents - exponents.max(axis=0))
    win, tie, loss = weights / weights.sum(axis=0)
    return win, tie, loss


def information(win: Floats, loss: Floats) -> Floats:
    """Fisher's information of one vote about the difference of strength: (win + loss - (win - loss)^2) / 4, which is
    p (1 - p) where there are no ties."""
    return np.asarray((win + loss - (win - loss) ** 2) / 4)


def difference_variance(covariance: Floats, first: Integers, second: Integers) -> Floats:
    """The variance of theta_first - theta_second, for each pair of rows."""
    variance = covariance[first, first] + covariance[second, second] - 2 * covariance[first, second]
    return np.asarray(np.maximum(variance, 0.0))


def _nu(parameters: Floats) -> float:
    return math.exp(parameters[-1])


def _normal_cdf(z: float) -> float:
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))
