"""What a test says: intervals, and two individuals side by side."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from evolora.evolution.comparison import resampled, resampled_gaps
from evolora.fitness.base import Judged
from evolora.population.evaluation import Evaluation
from evolora.runs.report.inspection import Inspection, inspect_completions

# How often a fitness of the whole is recomputed.
_RESAMPLES = 1000


def compare(prompts: Sequence[str], base: Evaluation, winner: Evaluation) -> Inspection:
    """The first individual of `winner` beside that of `base`, both evaluated on `prompts`."""
    return inspect_completions(
        prompts,
        (base.completions[0], base.rewards[0].tolist()),
        (winner.completions[0], winner.rewards[0].tolist()),
        ids=(base.completion_ids[0], winner.completion_ids[0]),
    )


def fitness_interval(judged: Judged, *, seed: int) -> tuple[float, float]:
    """The 95% interval of an individual's fitness over prompts. A fitness of the whole is recomputed on resampled
    prompts; NaN where it cannot be."""
    if judged.by_prompt is not None:
        return bootstrap_interval(judged.by_prompt, seed=seed)
    return _edges(resampled(judged, seed=seed, resamples=_RESAMPLES))


def gain_interval(winner: Judged, base: Judged, *, seed: int) -> tuple[float, float]:
    """That of how much fitter the winner is, from the same resamples of the same prompts for both."""
    if winner.by_prompt is not None and base.by_prompt is not None:
        return bootstrap_interval(winner.by_prompt - base.by_prompt, seed=seed)
    return _edges(resampled_gaps(winner, base, seed=seed, resamples=_RESAMPLES))


def _edges(values: npt.NDArray[np.float64] | None) -> tuple[float, float]:
    if values is None or np.isnan(values).all():
        return math.nan, math.nan
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def bootstrap_interval(
    rewards: npt.NDArray[np.float64], *, seed: int, level: float = 0.95, resamples: int = 10_000
) -> tuple[float, float]:
    """The percentile bootstrap interval of a mean over prompts (Efron, 1979), from rewards [prompts].

    >>> import numpy as np
    >>> bootstrap_interval(np.ones(5), seed=0)
    (1.0, 1.0)
    """
    scored = rewards[~np.isnan(rewards)]
    if not len(scored):
        return math.nan, math.nan
    draws = np.random.default_rng(seed).integers(0, len(scored), (resamples, len(scored)))
    low, high = np.quantile(scored[draws].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
