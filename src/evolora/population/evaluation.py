"""Fitness: the mean reward of an individual's greedy completions over a batch of prompts, or whatever else judges
it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from evolora.engine.base import Engine
from evolora.engine.progress import NOBODY, Reporter
from evolora.engine.text import Text
from evolora.fitness.base import Judged
from evolora.fitness.base import mean_fitness as mean_fitness
from evolora.models.cost import Cost
from evolora.population.population import Population
from evolora.population.writing import Writer, rewarded
from evolora.rewards import Scorer
from evolora.rng import keyed_seed
from evolora.tasks.task import Example, key_of

# For each individual and each example, token ids that its completion may begin with.
Drafts = Sequence[Sequence[Sequence[int]]]


@dataclass(frozen=True)
class Evaluation:
    """`fitness` [n], NaN for a failed individual; `rewards` [n, prompts], NaN where a completion has no score;
    `completions`, a list of texts for each individual; the `cost` of generating them, whose seconds are for whoever
    waits to measure; on how many completions the reward `failed`; the completions' token ids; and of a combined reward
    the `terms`' own values by name, each [n, prompts].

    Where the fitness is not the mean of these rewards, `judged` says what it is, individual by individual. Where a
    prompt was sampled several times, `examples` has it as often, and so have rewards, completions and ids. Where greedy
    completions tell nobody apart, `hit_chances` [n] say who would be paid most often. `beside` is what each
    individual's fitness has for what it is, whatever it wrote."""

    fitness: npt.NDArray[np.float64]
    rewards: npt.NDArray[np.float64]
    completions: list[list[str]]
    cost: Cost
    failed: int
    completion_ids: list[list[list[int]]]
    terms: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    judged: Sequence[Judged] = ()
    examples: Sequence[Example] = ()
    beside: Sequence[float] = ()
    hit_chances: npt.NDArray[np.float64] | None = None

    def of(self, row: int) -> Judged:
        """What one individual is worth."""
        fitness = float(self.fitness[row])
        return replace(self.judged[row], fitness=fitness) if self.judged else Judged(fitness, 0, self.rewards[row])

    def worth(self, row: int) -> npt.NDArray[np.float64]:
        """What each of its completions is worth: by the fitness, where that has a value of each, else its reward."""
        by_prompt = self.of(row).by_prompt
        return self.rewards[row] if by_prompt is None or len(by_prompt) < self.rewards.shape[1] else by_prompt

    def paid(self, row: int) -> npt.NDArray[np.float64]:
        """What each of its completions is paid on its own: by a fitness that does so, else its reward."""
        by_completion = self.judged[row].by_completion if self.judged else None
        return self.rewards[row] if by_completion is None else by_completion

    @property
    def pays(self) -> bool:
        """Whether what each completion is paid is what individuals are judged by."""
        return not self.judged or self.judged[0].by_completion is not None

    @property
    def mean_rewards(self) -> npt.NDArray[np.float64]:
        """Each individual's mean reward, [n]."""
        return mean_fitness(self.rewards)

    def replaced(self, rows: Mapping[int, int], other: "Evaluation") -> "Evaluation":
        """The same with other individuals at these rows, from their rows of `other`; what they wrote stays."""
        fitness, rewards, judged = self.fitness.copy(), self.rewards.copy(), list(self.judged)
        for row, source in rows.items():
            fitness[row], rewards[row] = other.fitness[source], other.rewards[source]
            if judged:
                judged[row] = other.judged[source]
        chances = self.hit_chances
        if chances is not None and other.hit_chances is not None:
            chances = chances.copy()
            chances[list(rows)] = other.hit_chances[list(rows.values())]
        return replace(self, fitness=fitness, rewards=rewards, judged=judged, hit_chances=chances)


class Evaluator(Protocol):
    """What turns genomes into fitness: here, or on other machines."""

    def evaluate(self, genomes: Tensor, examples: Sequence[Example], *, drafts: Drafts | None = None) -> Evaluation:
        """Fitness of `genomes` [n, genome_length] on `examples`; maximised. `drafts` may speed it up and change
        nothing."""
        ...

    def written(self, genomes: Tensor, examples: Sequence[Example]) -> Evaluation:
        """What is left to be judged once all parts of it are there."""
        return self.evaluate(genomes, examples)

    def judged(self, evaluation: Evaluation, examples: Sequence[Example]) -> Evaluation:
        """The fitness of what was written."""
        del examples
        return evaluation

    def cut(self, ids: Sequence[int]) -> bool:
        """Whether a completion, which it wrote, ended at the limit and not by itself."""
        del ids
        return False

    def keep(self, genomes: Tensor) -> None:
        """Only these genomes may be evaluated again."""
        del genomes

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON can hold it."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        del state


class Judge(Protocol):
    """What knows better than a reward function who is fit: people."""

    def judge(
        self, generation: int, population: Population, examples: Sequence[Example], evaluation: Evaluation
    ) -> Evaluation:
        """A generation's evaluation with the judge's rewards and fitness in the place of those it was measured by.
        From now on, the scorer rewards as the judge has learned to."""
        ...

    def summary(self) -> dict[str, Any]:
        """What the judgement rests on, as JSON can hold it."""
        ...


class LocalEvaluator(Evaluator):
    """Evaluates the whole population in one batch, in slices of a fixed number of rows.

    >>> from evolora.engine.choose import choose_engine
    >>> from evolora.engine.text import Text
    >>> from evolora.models.base import load_base
    >>> from evolora.models.lora import lora_config, lora_layout
    >>> from evolora.rewards import RewardScorer
    >>> base = load_base("tiny-gpt2")
    >>> layout, genome = lora_layout(base.model, lora_config(base.model), seed=0)
    >>> evaluator = LocalEvaluator(
    ...     choose_engine(base.model, layout).engine,
    ...     Text.of(base.model, base.tokenizer),
    ...     RewardScorer(lambda completions: [float(text.strip().isdigit()) for text in completions]),
    ...     max_new_tokens=4,
    ... )
    >>> evaluator.evaluate(genome.repeat(3, 1), [Example("The sum of 4 and 3 is", {})]).fitness.shape
    (3,)
    """

    def __init__(
        self,
        engine: Engine,
        text: Text,
        scorer: Scorer,
        *,
        max_new_tokens: int,
        rows_per_slice: int = 512,
        draft_rows: int = 8,
        reporter: Reporter = NOBODY,
        seed: int = 0,
        temperature: float = 1.0,
    ) -> None:
        self.writer = Writer(engine, text)
        self.scorer = scorer
        self.max_new_tokens = max_new_tokens
        self.rows_per_slice = rows_per_slice
        self.draft_rows = draft_rows
        self.reporter = reporter
        self.seed = seed
        self.temperature = temperature

    def evaluate(self, genomes: Tensor, examples: Sequence[Example], *, drafts: Drafts | None = None) -> Evaluation:
        """Fitness of `genomes` [n, genome_length] on `examples`: each individual's mean reward over its scored
        completions, greedily decoded; NaN when none has a score.

        `drafts` are checked instead of decoding token by token where at most `draft_rows` rows are completed: of more
        rows, the tokens that are computed in vain cost more than the passes that are saved.
        """
        n, each = genomes.shape[0], len(examples)
        guesses = None
        if drafts is not None and n * each <= self.draft_rows:
            guesses = [draft for own in drafts for draft in own]
        sampled: dict[str, Any] = {}
        if any(example.draw is not None for example in examples):
            # By prompt and number, whoever writes: who is compared has drawn the same.
            seeds = [keyed_seed(self.seed, "fitness samples", key_of(example)) for example in examples]
            sampled = {"seeds": np.tile(np.array(seeds, np.uint64), n), "temperature": self.temperature}
        written = self.writer.write_in_slices(
            genomes,
            examples,
            self.max_new_tokens,
            rows=self.rows_per_slice,
            reporter=self.reporter,
            drafts=guesses,
            **sampled,
        )
        self.reporter.part("rewarding")
        scores = rewarded(self.scorer, written)
        rewards = scores.rewards.reshape(n, each)
        terms = {name: values.reshape(n, each) for name, values in scores.terms.items()}
        texts = [written.texts[row * each : (row + 1) * each] for row in range(n)]
        ids = [written.ids[row * each : (row + 1) * each] for row in range(n)]
        return Evaluation(mean_fitness(rewards), rewards, texts, written.cost, int(scores.failed.sum()), ids, terms)

    def cut(self, ids: Sequence[int]) -> bool:
        return self.writer.text.cut(ids, self.max_new_tokens)

    def sample(
        self, genomes: Tensor, examples: Sequence[Example], *, key: Sequence[int], seed: int, temperature: float
    ) -> tuple[list[list[str]], Cost]:
        """One sampled completion of each example by each of `genomes` [n, genome_length], and the cost. `key` names the
        genomes' draws."""
        texts, cost = [], Cost()
        for genome, name in zip(genomes, key, strict=True):
            seeds = np.random.default_rng(keyed_seed(seed, "sample", name)).integers(
                0, 2**63, len(examples), dtype=np.uint64
            )
            written = self.writer.write_in_slices(
                genome[None],
                examples,
                self.max_new_tokens,
                rows=self.rows_per_slice,
                seeds=seeds,
                temperature=temperature,
            )
            texts.append(written.texts)
            cost += written.cost
        return texts, cost


def joined(parts: Sequence[Evaluation], places: Sequence[int]) -> Evaluation:
    """Evaluations of the same genomes on examples after examples as one, these in the order of their `places`."""
    samples = sum(part.rewards.shape[1] for part in parts) // len(places)
    order = np.argsort(np.repeat(places, samples), kind="stable")
    rewards = np.hstack([part.rewards for part in parts])[:, order]

    def sorted_rows(rows: Sequence[Sequence[list[Any]]]) -> list[list[Any]]:
        whole = [[each for row in own for each in row] for own in zip(*rows, strict=True)]
        return [[row[place] for place in order] for row in whole]

    return Evaluation(
        mean_fitness(rewards),
        rewards,
        sorted_rows([part.completions for part in parts]),
        sum((part.cost for part in parts), Cost()),
        sum(part.failed for part in parts),
        sorted_rows([part.completion_ids for part in parts]),
        {name: np.hstack([part.terms[name] for part in parts])[:, order] for name in parts[0].terms},
        examples=sorted_rows([[list(part.examples)] for part in parts])[0] if parts[0].examples else (),
        beside=parts[0].beside,
    )


def best_first(fitness: npt.NDArray[np.float64]) -> list[int]:
    """The rows from the best to the worst, equals in their order; the failed, NaN, come last.

    >>> best_first(np.array([0.5, np.nan, 0.9]))
    [2, 0, 1]
    """
    order: list[int] = np.argsort(-np.where(np.isnan(fitness), -np.inf, fitness), kind="stable").tolist()
    return order


def term_means(evaluation: Evaluation, row: int) -> dict[str, float]:
    """The mean of each term of a combined reward over one individual's scored completions; NaN where none is."""
    return {name: float(mean_fitness(values[row][None])[0]) for name, values in evaluation.terms.items()}
