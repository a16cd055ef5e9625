"""What a fitness that is made of a reward asks it."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from evolora.errors import InputError
from evolora.fitness.base import FitnessContext, Floats
from evolora.rewards.base import FailedReward, accepted_keywords, check_signature
from evolora.rewards.loading import make_reward, parse_reward

Scored = Callable[[Mapping[str, Any]], Floats]


def scored_by(fitness: str, reward: str, context: FitnessContext) -> Scored:
    """What each completion earns [completions] by a reward, from the keywords that a fitness is called with. Raises
    InputError for a reward that cannot be made; the function raises ValueError for a completion on which it fails."""
    try:
        expression = parse_reward(reward)
        functions = {str(term): make_reward(term, context.rewards) for term in expression.terms}
        for function in functions.values():
            check_signature(function, context.columns)
    except InputError as error:
        raise InputError(f"fitness {fitness}: {error}") from None

    def scored(keywords: Mapping[str, Any]) -> Floats:
        terms = {}
        for name, function in functions.items():
            accepted = accepted_keywords(function)
            values = function(**{n: v for n, v in keywords.items() if accepted is None or n in accepted})
            for value in values:
                if isinstance(value, FailedReward):
                    raise ValueError(f"its reward {name} {value.what}") from value.exception
            terms[name] = np.array([np.nan if value is None else value for value in values], np.float64)
        return expression.combine(terms)

    return scored
