"""The worst group: an individual is worth what it earns where it earns least."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from evolora.errors import InputError
from evolora.fitness.base import FitnessContext, FitnessFunction, Rows, Value, mean_fitness
from evolora.fitness.terms import scored_by


def make_worst_group(*, reward: str = "exact", context: FitnessContext) -> FitnessFunction:
    """The least of the groups' mean rewards, as in group DRO (Sagawa et al., 2020, arXiv 1911.08731); the groups are
    the values of the data's column `--group-column`. Raises InputError without one, and for a reward that cannot be
    made."""
    column = context.group
    if column is None:
        raise InputError("--fitness worst-group: expected --group-column beside it")
    if column not in context.columns:
        found = ", ".join(context.columns) or "none"
        raise InputError(f"--group-column {column}: found no such column, expected one of the data's ({found})")
    scored = scored_by("worst-group", reward, context)

    def worst_group(**keywords: Any) -> Value:
        values, groups = scored(keywords), _numbered(keywords[column])

        def value(rows: Rows) -> float:
            own_values, own_groups = values[rows], groups[rows]
            means = [mean_fitness(own_values[own_groups == group][None])[0] for group in np.unique(own_groups)]
            return float(np.nanmin(means)) if not np.isnan(means).all() else float("nan")

        return value

    return worst_group


def _numbered(values: Sequence[object]) -> "np.ndarray[Any, np.dtype[np.int64]]":
    names: dict[str, int] = {}
    return np.array([names.setdefault(str(value), len(names)) for value in values], np.int64)
