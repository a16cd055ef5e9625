"""Statistics over few runs: Agarwal et al., 2021, "Deep Reinforcement Learning at the Edge of the Statistical
Precipice", arXiv 2108.13264. The formulas are those of the paper and of its authors' package rliable
(github.com/google-research/rliable, Apache-2.0), written anew in numpy.

Scores are given by task: one array of runs for each.
"""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Scores = Mapping[str, Floats]


def interquartile_mean(scores: Scores) -> float:
    """The mean of the middle half of all runs of all tasks: a quarter, rounded down, is cut off at either end
    (`scipy.stats.trim_mean(runs, 0.25)`).

    >>> interquartile_mean({"a": np.array([0.0, 1.0]), "b": np.array([2.0, 9.0])})
    1.5
    """
    return float(_trimmed_mean(np.concatenate(list(scores.values()))[None])[0])


def _trimmed_mean(rows: Floats) -> Floats:
    """Of each row of [resamples, runs]."""
    count = rows.shape[1]
    cut = count // 4
    return np.asarray(np.partition(rows, (cut, count - cut - 1), axis=1)[:, cut : count - cut].mean(1))


def probability_of_improvement(x: Floats, y: Floats) -> float:
    """How often a run of `x` is better than a run of `y`, over all pairs, ties by half: the Mann-Whitney U statistic
    over the number of pairs.

    >>> probability_of_improvement(np.array([1.0, 2.0]), np.array([1.0, 0.0]))
    0.875
    """
    if not len(x) or not len(y):
        raise ValueError("expected at least one run of each")
    return float(((x[:, None] > y).mean() + (x[:, None] >= y).mean()) / 2)


def mean_probability_of_improvement(x: Scores, y: Scores) -> float:
    """The mean over tasks."""
    return float(np.mean([probability_of_improvement(x[task], y[task]) for task in x]))


def performance_profile(scores: Scores, thresholds: Floats) -> Floats:
    """The share of runs above each threshold, [thresholds], all tasks alike.

    >>> performance_profile({"a": np.array([0.2, 0.6]), "b": np.array([0.9])}, np.array([0.0, 0.5, 0.8])).tolist()
    [1.0, 0.75, 0.5]
    """
    return np.asarray(np.mean([(runs[:, None] > thresholds).mean(0) for runs in scores.values()], axis=0))


def stratified_interval(
    statistic: Callable[..., float], *groups: Scores, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap interval of `statistic(*groups)`: runs are drawn with replacement within each task (and
    group), the tasks stay as they are.

    >>> stratified_interval(interquartile_mean, {"a": np.ones(3)})
    (1.0, 1.0)
    """
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        drawn = [
            {task: runs[generator.integers(0, len(runs), len(runs))] for task, runs in group.items()}
            for group in groups
        ]
        values.append(statistic(*drawn))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_difference(x: Scores, y: Scores) -> float:
    """The mean over tasks of the difference of the means of runs.

    >>> mean_difference({"a": np.array([1.0, 2.0])}, {"a": np.array([1.0])})
    0.5
    """
    return float(np.mean([x[task].mean() - y[task].mean() for task in x]))


def at_cost(costs: Floats, values: Floats, cost: float) -> float:
    """A learning curve's value at a cost, between two points by the line through them.

    >>> at_cost(np.array([0.0, 10.0]), np.array([0.2, 0.4]), 5.0)
    0.30000000000000004
    """
    return float(np.interp(cost, costs, values))
