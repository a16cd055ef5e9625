"""The rewards of a run: every term of its expression called, checked and cached, then combined."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from evolora.errors import InputError
from evolora.rewards.base import Reward, check_signature, compares, reward_name
from evolora.rewards.cache import CachedReward
from evolora.rewards.context import RewardContext
from evolora.rewards.expression import Expression, Term
from evolora.rewards.loading import make_reward, needs_context
from evolora.rewards.registry import BUILTIN_REWARDS
from evolora.rewards.scorer import OnError, RewardScorer, Scores
from evolora.rewards.workers import WorkerPool

# Of the built-in rewards, those that read chat messages where the data has them. The others read text.
_READ_MESSAGES = ("reward-model", "python", "command", "http")


class Scorer(Protocol):
    """What scores completions: one reward function, or several combined.

    `name` is for logs. `varies`: the same completion of the same prompt may earn something else another time, because
    it is compared with others or because the reward learns.
    """

    name: str
    varies: bool

    @property
    def metrics(self) -> dict[str, float]:
        """What the reward functions have logged of the latest batch."""
        ...

    def at(self, generation: int) -> None:
        """So many generations are over."""
        ...

    def score(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[object]],
        completion_ids: Sequence[Sequence[int]] | None = None,
        *,
        groups: Sequence[int] | None = None,
        messages: Sequence[Sequence[Mapping[str, object]]] | None = None,
    ) -> Scores:
        """Score a batch. `groups` says which individual wrote each completion."""
        ...

    def close(self) -> None:
        """Release what the reward functions hold."""
        ...


class CombinedScorer:
    """Scores by an expression of several rewards, each term by a `RewardScorer` of its own. A completion on which a
    term fails has failed. `Scores.terms` has the terms' own values.

    >>> from evolora.rewards import exact, similarity
    >>> from evolora.rewards.expression import parse
    >>> scorers = {"similarity": RewardScorer(similarity), "exact": RewardScorer(exact)}
    >>> scorer = CombinedScorer(parse("0.5 * similarity + 0.5 * exact"), scorers)
    >>> scores = scorer.score(["p"], ["ab"], {"target": ["abcd"]})
    >>> scores.rewards.round(3), scores.terms["similarity"].round(3)
    (array([0.333]), array([0.667]))
    """

    def __init__(
        self, expression: Expression, scorers: Mapping[str, RewardScorer], *, failed_reward: float = 0.0
    ) -> None:
        self.expression = expression
        self.scorers = dict(scorers)
        self.failed_reward = failed_reward
        self.labels = expression.labels
        self.name = str(expression.map(lambda term: Term(self.labels[str(term)])))
        self.varies = any(scorer.varies for scorer in self.scorers.values())

    def score(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[object]],
        completion_ids: Sequence[Sequence[int]] | None = None,
        *,
        groups: Sequence[int] | None = None,
        messages: Sequence[Sequence[Mapping[str, object]]] | None = None,
    ) -> Scores:
        """Score a batch. Raises RewardError as the terms' scorers do."""
        scores = {
            name: scorer.score(prompts, completions, columns, completion_ids, groups=groups, messages=messages)
            for name, scorer in self.scorers.items()
        }
        failed = np.logical_or.reduce([one.failed for one in scores.values()])
        terms = {name: np.where(one.failed, math.nan, one.rewards) for name, one in scores.items()}
        rewards = np.where(failed, self.failed_reward, self.expression.combine(terms))
        return Scores(rewards, failed, {self.labels[name]: values for name, values in terms.items()})

    def weighted(self, scores: Scores, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """What was scored earns by these `weights` [summands, completions] of the expression's summands."""
        terms = {text: scores.terms[label] for text, label in self.labels.items()}
        return np.where(scores.failed, self.failed_reward, self.expression.combine(terms, weights))

    @property
    def metrics(self) -> dict[str, float]:
        return {name: value for scorer in self.scorers.values() for name, value in scorer.metrics.items()}

    def at(self, generation: int) -> None:
        for scorer in self.scorers.values():
            scorer.at(generation)

    def close(self) -> None:
        with ExitStack() as stack:  # all of them, whichever of them fails
            for scorer in self.scorers.values():
                stack.callback(scorer.close)


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """How a run calls its rewards; `RewardOptions` describes most."""

    on_error: OnError = "raise"
    failed_reward: float = 0.0
    workers: int = 0
    timeout: float | None = None
    cache: Path | None = None
    log: Path | None = None
    conversational: bool = False


def make_scorer(
    expression: Expression,
    columns: Iterable[str],
    options: ScoringOptions,
    context: RewardContext,
    functions: Mapping[str, Reward] | None = None,
) -> Scorer:
    """The scorer of a run's reward expression, some of whose terms may be Python `functions`, by the terms' text
    (`rewards.several`). Raises InputError for a reward that cannot be made, or that asks for
    columns which the data does not have."""
    columns = tuple(columns)
    functions = functions or {}
    scorers = {
        str(term): function_scorer(functions[str(term)], columns, options)
        if str(term) in functions
        else _scorer(term, columns, options, context)
        for term in expression.terms
    }
    if expression.single is not None:
        return next(iter(scorers.values()))
    return CombinedScorer(expression, scorers, failed_reward=options.failed_reward)


def function_scorer(function: Reward, columns: Iterable[str], options: ScoringOptions) -> RewardScorer:
    """The scorer of a reward that is given as a Python function. Raises InputError as `make_scorer` does."""
    check_signature(function, columns)
    return _wrapped(function, function, options)


def _scorer(term: Term, columns: Sequence[str], options: ScoringOptions, context: RewardContext) -> RewardScorer:
    reward = make_reward(term, context)
    check_signature(reward, columns)
    # A worker makes the reward anew, from its text or, of one that was registered in this process, by reference. One
    # that needs the run's base model cannot be made there; programs and endpoints have time limits of their own.
    source: Reward | str | None = str(term)
    if needs_context(term) or term.name in ("command", "http"):
        source = None
    elif not term.is_function and term.name not in BUILTIN_REWARDS:
        source = reward
    if term.name in BUILTIN_REWARDS and term.name not in _READ_MESSAGES:
        options = replace(options, conversational=False)
    return _wrapped(reward, source, options, name=term.label, place=str(term))


def _wrapped(
    reward: Reward,
    source: Reward | str | None,
    options: ScoringOptions,
    *,
    name: str | None = None,
    place: str | None = None,
) -> RewardScorer:
    """The scorer of a reward, in worker processes and behind the cache where these are asked for and make sense.

    `place` is the name that tells it from others of the same short name."""
    name = name or reward_name(reward)
    called: Any = reward
    if not compares(reward):
        if options.workers and source is not None:
            called = WorkerPool(source, workers=options.workers, timeout=options.timeout, log=options.log)
        if options.cache is not None and (version := reward_version(reward)) is not None:
            called = CachedReward(called, options.cache, name=place or name, version=version)
    return RewardScorer(
        called,
        name=name,
        on_error=options.on_error,
        failed_reward=options.failed_reward,
        log=options.log,
        conversational=options.conversational,
    )


def reward_version(reward: Reward) -> str | None:
    """The text under which a reward's values may be cached; None for one that says of itself none."""
    version = getattr(reward, "version", None)
    if version is not None and not isinstance(version, str):
        raise InputError(f"reward {getattr(reward, '__name__', reward)}: its version is {version!r}, expected text")
    return version
