"""pass@k: whether one of k samples is right."""

import math
from typing import Any

import numpy as np

from evolora.errors import InputError
from evolora.fitness.base import FitnessContext, FitnessFunction
from evolora.fitness.terms import scored_by


def make_pass_at_k(
    *, k: int | None = None, reward: str = "exact", least: float = 1.0, context: FitnessContext
) -> FitnessFunction:
    """The chance that of k samples of a prompt one at least earns `least`, by the unbiased estimate from n samples of
    which c do (Chen et al., 2021, arXiv 2107.03374): 1 - C(n - c, k) / C(n, k). n is `--fitness-samples`, and k too
    unless given. Raises InputError for fewer than two samples, a k that is not from 1 to n, and a reward that cannot be
    made.
    """
    n = context.samples
    if n < 2:
        raise InputError(f"--fitness-samples {n} with --fitness pass-at-k: expected at least 2")
    of = n if k is None else k
    if not 1 <= of <= n:
        raise InputError(f"fitness pass-at-k: k is {of}, expected a number from 1 to --fitness-samples {n}.")
    scored = scored_by("pass-at-k", reward, context)

    def pass_at_k(**keywords: Any) -> list[float]:
        right = (scored(keywords) >= least).reshape(-1, n).sum(1)
        chances = [chance(n, int(c), of) for c in right]
        return np.repeat(chances, n).tolist()

    return pass_at_k


def chance(n: int, right: int, k: int) -> float:
    """That of k samples one at least is right, by n of which so many are.

    >>> chance(4, 1, 1), chance(4, 1, 4), chance(4, 0, 4)
    (0.25, 1.0, 0.0)
    """
    return 1 - math.comb(n - right, k) / math.comb(n, k)
