"""How different the individuals of a population are, in their weights and in what they write."""

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from evolora.population.evaluation import Evaluation
from evolora.population.population import Population
from evolora.strategies.operators.diversity import spread


def diversity(population: Population, evaluation: Evaluation) -> dict[str, float]:
    """The population's metrics of diversity, as docs/metrics.md defines them."""
    return {"diversity.distance": spread(population.genomes), "diversity.completions": written_apart(evaluation)}


def written_apart(evaluation: Evaluation) -> float:
    """The chance that two individuals answer a prompt differently (Simpson, 1949), over the prompts that two have met;
    0 where there is none. Who left a race early has not met the rest."""
    met = [
        [tuple(ids[prompt]) for ids, scores in zip(evaluation.completion_ids, evaluation.rewards, strict=True)
         if ids[prompt] or not np.isnan(scores[prompt])]
        for prompt in range(evaluation.rewards.shape[1])
    ]  # fmt: skip
    shares = [_apart(answers) for answers in met if len(answers) > 1]
    return float(np.mean(shares)) if shares else 0.0


def _apart(answers: Sequence[Hashable]) -> float:
    """
    >>> round(_apart(["a", "a", "b"]), 6)
    0.666667
    """
    n = len(answers)
    return 1 - sum(count * (count - 1) for count in Counter(answers).values()) / (n * (n - 1))
