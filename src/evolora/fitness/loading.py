"""From what `--fitness` says to what judges individuals."""

import inspect
import re
from collections.abc import Mapping
from typing import Any

from evolora.environment import references, resolved
from evolora.errors import InputError
from evolora.fitness.base import Fitness, FitnessContext, FitnessFunction
from evolora.fitness.drift import without_drift
from evolora.fitness.judging import ByCompletion, ByIndividual, WithDrift
from evolora.fitness.registry import BUILTIN_FITNESS, DRIFT, builtin_fitness, fitness_factory, names_drift
from evolora.rewards.base import Reward, check_signature
from evolora.rewards.expression import Expression, Term, parse
from evolora.rewards.loading import load_function, parse_reward, with_named_options
from evolora.rewards.scoring import ScoringOptions, make_scorer

# What Python gave: no place where a function is, and no reward.
_GIVEN = "<function "
# What is added to what is said of a name that is no reward.
_UNKNOWN = re.compile(r"^--\w+ is '.*', expected one of ", re.DOTALL)
_MORE = f"--fitness may also be {', '.join(BUILTIN_FITNESS)}, each alone, or have {DRIFT} as a term."
# Rewards that are not asked about all that RL samples beside another reward.
_SLOW = ("command", "http", "reward-model")


def parse_fitness(spec: str) -> Expression:
    """What `spec` writes: a built-in fitness alone, or what a reward may be. Raises InputError for what is neither."""
    try:
        if names_drift(spec):
            rest, drift = without_drift(parse(spec))
            return parse_reward(spec) if drift is None else drift.added_to(parse_fitness(str(rest)))
        if (name := builtin_fitness(spec)) is None:
            return parse_reward(spec)
        alone = parse(spec).single
        assert alone is not None
        return Expression(with_named_options(alone, fitness_factory(name)))
    except InputError as error:
        raise _of_fitness(error) from None


def parse_followed(spec: str) -> Expression:
    """The reward that `spec` writes. Raises InputError for what is none, which says where a term is a fitness."""
    try:
        return parse_reward(spec)
    except InputError as error:
        raise InputError(_with_more(str(error))) from None


def make_fitness(
    expression: Expression,
    options: ScoringOptions,
    context: FitnessContext,
    functions: Mapping[str, Reward] | None = None,
) -> Fitness:
    """The fitness of a run, some of whose terms may be Python `functions`, by the terms' text. Raises InputError for
    one that cannot be made, or that asks for columns which the data does not have."""
    functions = functions or {}
    rest, drift = without_drift(expression)
    if drift is not None:
        return WithDrift(make_fitness(rest, options, context, functions), drift)
    alone = expression.single
    if alone is not None and references(alone.name):
        return make_fitness(parse_fitness(resolved(alone.name)), options, context, functions)
    try:
        if alone is None or not (alone.is_function or alone.name in BUILTIN_FITNESS or alone.name.startswith(_GIVEN)):
            scorer = make_scorer(expression, context.columns, options, context.rewards, functions)
            slow = any(term.name in _SLOW for term in expression.terms)
            return ByCompletion(scorer, samples=context.samples, slow=slow)
        function: FitnessFunction = functions[str(alone)] if str(alone) in functions else _made(alone, context)
        check_signature(function, context.columns)
    except InputError as error:
        raise _of_fitness(error) from None
    if alone.name in BUILTIN_FITNESS:  # they read text
        options = ScoringOptions(on_error=options.on_error, failed_reward=options.failed_reward, log=options.log)
    return ByIndividual(function, options, name=alone.label, samples=context.samples)


def _made(term: Term, context: FitnessContext) -> FitnessFunction:
    if term.is_function:
        return load_function(term.name)
    factory, late = fitness_factory(term.name), term.name == "program"  # which looks each variable up in its word
    more: dict[str, Any] = {"context": context} if "context" in inspect.signature(factory).parameters else {}
    options = {name: value if late or not isinstance(value, str) else resolved(value) for name, value in term.options}
    made: Any = factory(**options, **more)
    made.__name__ = term.name
    return made  # type: ignore[no-any-return]


def _of_fitness(error: InputError) -> InputError:
    """The fault of a reward where it is a fitness."""
    text = str(error)
    for before, after in (("--reward", "--fitness"), ("reward ", "fitness ")):
        text = after + text.removeprefix(before) if text.startswith(before) else text
    return InputError(_with_more(text))


def _with_more(text: str) -> str:
    return f"{text.removesuffix('.')}; {_MORE}" if _UNKNOWN.search(text) and _MORE not in text else text
