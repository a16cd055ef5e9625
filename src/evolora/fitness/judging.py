"""How a fitness is asked: as rewards are, so that its mistakes are found and named."""

import functools
import inspect
import numbers
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from evolora.fitness.base import Fitness, FitnessFunction, Floats, Judged, Rows, Value, mean_fitness
from evolora.fitness.drift import DriftTerm
from evolora.fitness.registry import DRIFT
from evolora.rewards import Scorer, Scores
from evolora.rewards.base import FailedReward, accepted_keywords, parameters
from evolora.rewards.scorer import RewardScorer
from evolora.rewards.scoring import ScoringOptions
from evolora.tasks.task import Example, columns_of, messages_of


class ByCompletion:
    """The mean of what completions are worth, over a prompt's samples and then over prompts."""

    def __init__(self, scorer: Scorer, *, samples: int, slow: bool = False) -> None:
        self.scorer = scorer
        self.samples = samples
        self.name, self.varies = scorer.name, scorer.varies
        self.pays = None if slow or scorer.varies else scorer

    def judged(
        self, examples: Sequence[Example], texts: Sequence[Sequence[str]], ids: Sequence[Sequence[list[int]]]
    ) -> list[Judged]:
        """Raises RewardError when the scorer fails."""
        n, each = len(texts), len(examples)
        scores = _scored(
            self.scorer,
            [*examples] * n,
            [text for own in texts for text in own],
            [row for own in ids for row in own],
            groups=[row for row in range(n) for _ in examples],
        )
        values, failed = scores.rewards.reshape(n, each), scores.failed.reshape(n, each).sum(1)
        paid = self.pays is not None
        return [
            _of_completions(row, int(count), self.samples, paid=paid) for row, count in zip(values, failed, strict=True)
        ]


class ByIndividual:
    """A function that is asked about one individual after another, for one number or for one a completion."""

    def __init__(self, function: FitnessFunction, options: ScoringOptions, *, name: str, samples: int) -> None:
        self.name = name
        self.samples = samples
        self.recomputes = bool(getattr(function, "recomputes", True))
        self.varies = any(parameter.name == "trainer_state" for parameter in parameters(function))
        self._called = _Called(function, name)
        self.scorer: Scorer = RewardScorer(
            self._called,
            name=name,
            on_error=options.on_error,
            failed_reward=options.failed_reward,
            log=options.log,
            conversational=options.conversational,
            kind="fitness",
        )

    @property
    def pays(self) -> Scorer | None:
        """The function, unless it has returned one number for all, or several samples of a prompt are judged
        together."""
        alone = self.samples == 1 and self.recomputes and not (self.varies or self._called.whole)
        return self.scorer if alone else None

    def judged(
        self, examples: Sequence[Example], texts: Sequence[Sequence[str]], ids: Sequence[Sequence[list[int]]]
    ) -> list[Judged]:
        """Raises RewardError when the function fails."""
        return [self._one(examples, *own) for own in zip(texts, ids, strict=True)]

    def _one(self, examples: Sequence[Example], texts: Sequence[str], ids: Sequence[list[int]]) -> Judged:
        scores = _scored(self.scorer, examples, texts, ids)
        failed = int(scores.failed.sum())
        if not self._called.whole:
            return _of_completions(scores.rewards, failed, self.samples, paid=self.pays is not None)
        own: Value = self._called.value or functools.partial(self._again, examples, texts, ids)
        return Judged(
            float(scores.rewards[0]),
            int(failed > 0),
            value=functools.partial(_on_prompts, own, self.samples) if self.recomputes and not failed else None,
            prompts=len(texts) // self.samples,
        )

    def _again(self, examples: Sequence[Example], texts: Sequence[str], ids: Sequence[list[int]], rows: Rows) -> float:
        some = rows.tolist()
        scores = _scored(self.scorer, *([every[row] for row in some] for every in (examples, texts, ids)))
        return float(scores.rewards[0])


class WithDrift:
    """A fitness beside which the drift counts. Whoever has the genomes adds it."""

    def __init__(self, fitness: Fitness, drift: DriftTerm) -> None:
        self.fitness = fitness
        self.drift = drift
        self.name = f"{fitness.name} {'-' if drift.weight < 0 else '+'} {abs(drift.weight):g} * {DRIFT}"
        self.varies = fitness.varies
        self.scorer: Scorer = fitness.scorer

    @property
    def pays(self) -> Scorer | None:
        """Drift is no completion's."""
        return self.fitness.pays

    def judged(
        self, examples: Sequence[Example], texts: Sequence[Sequence[str]], ids: Sequence[Sequence[list[int]]]
    ) -> list[Judged]:
        """By all else."""
        return self.fitness.judged(examples, texts, ids)


def shifted(judged: Judged, by: float) -> Judged:
    """The same, worth so much more on any prompts."""
    value = judged.value
    again: Value | None = None
    if value is not None:
        own = value

        def again(rows: Rows) -> float:
            return own(rows) + by

    return replace(
        judged,
        fitness=judged.fitness + by,
        by_prompt=None if judged.by_prompt is None else judged.by_prompt + by,
        value=again,
    )


class _Called:
    """The function as a reward, which gives all completions of an individual the same number, where it returns one."""

    # A part of what an individual wrote would mean something else.
    compares = True

    def __init__(self, function: FitnessFunction, name: str) -> None:
        self._function = function
        self._accepted = accepted_keywords(function)
        self.__name__ = name
        self.whole = False
        self.value: Value | None = None

    def __call__(self, **keywords: Any) -> Any:
        accepted = self._accepted
        returned = self._function(**{n: v for n, v in keywords.items() if accepted is None or n in accepted})
        if inspect.isawaitable(returned):
            return self._awaited(returned, len(keywords["completions"]))
        return self._values(returned, len(keywords["completions"]))

    async def _awaited(self, returned: Any, count: int) -> Any:
        return self._values(await returned, count)

    def _values(self, returned: Any, count: int) -> Any:
        self.value = returned if callable(returned) else None
        if self.value is not None:
            returned = self.value(np.arange(count))
        scalar = isinstance(returned, numbers.Real) or getattr(returned, "ndim", None) == 0
        self.whole = scalar or returned is None or isinstance(returned, FailedReward)
        return [returned] * count if self.whole else returned

    def __getattr__(self, name: str) -> Any:
        # What a reward may have beside: `close`, `use_log`.
        if name in ("close", "use_log"):
            return getattr(self._function, name)
        raise AttributeError(name)


def _scored(
    scorer: Scorer,
    examples: Sequence[Example],
    texts: Sequence[str],
    ids: Sequence[list[int]],
    groups: Sequence[int] | None = None,
) -> Scores:
    return scorer.score(
        prompts=[example.prompt for example in examples],
        completions=texts,
        columns=columns_of(examples),
        completion_ids=ids,
        groups=groups,
        messages=messages_of(examples),
    )


def _of_completions(values: Floats, failed: int, samples: int, *, paid: bool) -> Judged:
    by_prompt = mean_fitness(values.reshape(-1, samples))
    fitness = float(mean_fitness(by_prompt[None])[0])
    return Judged(fitness, failed, by_prompt, by_completion=values if paid else None)


def _on_prompts(value: Value, samples: int, prompts: Rows) -> float:
    return float(value((prompts[:, None] * samples + np.arange(samples)).ravel()))
