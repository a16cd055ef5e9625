"""Agreement: whether an individual says the same each time that it is asked."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from evolora.errors import InputError
from evolora.fitness.base import FitnessContext, FitnessFunction


def make_agreement(*, context: FitnessContext) -> FitnessFunction:
    """The chance that two of a prompt's samples are the same text, blanks at the ends and case apart, as
    self-consistency counts them (Wang et al., 2022, arXiv 2203.11171); it needs no target. Raises InputError for fewer
    than two `--fitness-samples`.
    """
    n = context.samples
    if n < 2:
        raise InputError(f"--fitness-samples {n} with --fitness agreement: expected at least 2")

    def agreement(completions: Sequence[str]) -> list[float]:
        plain = [text.strip().casefold() for text in completions]
        same = [
            sum(count * (count - 1) for count in Counter(plain[at : at + n]).values()) / (n * (n - 1))
            for at in range(0, len(plain), n)
        ]
        return np.repeat(same, n).tolist()

    return agreement
