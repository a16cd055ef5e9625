"""Fitness: the mean reward of an individual's greedy completions over a batch of prompts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evolora.engine.eager.decoder import takes_drafts
from evolora.engine.eager.generate import decode_text, encode, end_tokens, lengths_read, pad_token
from evolora.engine.eager.lora_layers import PopulationModel
from evolora.engine.split import population_generate
from evolora.models.cost import Cost
from evolora.population.population import Population
from evolora.rewards import Scorer
from evolora.rng import keyed_seed
from evolora.tasks.task import Example, columns_of, messages_of

# For each individual and each example, token ids that its completion may begin with.
Drafts = Sequence[Sequence[Sequence[int]]]


@dataclass(frozen=True)
class Evaluation:
    """`fitness` [n], NaN for a failed individual; `rewards` [n, prompts], NaN where a completion has no score;
    `completions`, a list of texts for each individual; the `cost` of generating them, whose seconds are for whoever
    waits to measure; on how many completions the reward `failed`; the completions' token ids; and of a combined reward
    the `terms`' own values by name, each [n, prompts]."""

    fitness: npt.NDArray[np.float64]
    rewards: npt.NDArray[np.float64]
    completions: list[list[str]]
    cost: Cost
    failed: int
    completion_ids: list[list[list[int]]]
    terms: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)


class Evaluator(Protocol):
    """What turns genomes into fitness: here, or on other machines."""

    def evaluate(self, genomes: Tensor, examples: Sequence[Example], *, drafts: Drafts | None = None) -> Evaluation:
        """Fitness of `genomes` [n, genome_length] on `examples`; maximised. `drafts` may speed it up and change
        nothing."""
        ...

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
    """Evaluates the whole population in one `generate`, in slices of a fixed number of rows.

    The slices depend on `rows_per_slice`, the number of individuals and the number of prompts only, so that the same
    evaluation rounds the same way whenever it is made again.

    >>> from evolora import Example, PopulationModel, RewardScorer, load_base, lora_config, lora_layout
    >>> base = load_base("tiny-gpt2")
    >>> layout, genome = lora_layout(base.model, lora_config(base.model), seed=0)
    >>> evaluator = LocalEvaluator(
    ...     PopulationModel(base.model, layout),
    ...     base.tokenizer,
    ...     RewardScorer(lambda completions: [float(text.strip().isdigit()) for text in completions]),
    ...     max_new_tokens=4,
    ... )
    >>> evaluator.evaluate(genome.repeat(3, 1), [Example("The sum of 4 and 3 is", {})]).fitness.shape
    (3,)
    """

    def __init__(
        self,
        population_model: PopulationModel,
        tokenizer: PreTrainedTokenizerBase,
        scorer: Scorer,
        *,
        max_new_tokens: int,
        rows_per_slice: int = 512,
        draft_rows: int = 8,
    ) -> None:
        self.population_model = population_model
        self.tokenizer = tokenizer
        self.scorer = scorer
        self.max_new_tokens = max_new_tokens
        self.rows_per_slice = rows_per_slice
        self.draft_rows = draft_rows

    def evaluate(self, genomes: Tensor, examples: Sequence[Example], *, drafts: Drafts | None = None) -> Evaluation:
        """Fitness of `genomes` [n, genome_length] on `examples`: each individual's mean reward over its scored
        completions, greedily decoded; NaN when none has a score.

        `drafts` are checked instead of decoding token by token where at most `draft_rows` rows are completed: of more
        rows, the tokens that are computed in vain cost more than the passes that are saved.
        """
        n = genomes.shape[0]
        texts: list[list[str]] = [[] for _ in range(n)]
        token_ids: list[list[list[int]]] = [[] for _ in range(n)]
        cost = Cost()
        if n * len(examples) > self.draft_rows or not takes_drafts(self.population_model.model):
            drafts = None
        for first in range(0, len(examples), self.rows_per_slice):
            part = examples[first : first + self.rows_per_slice]
            size = max(1, self.rows_per_slice // len(part))
            for start in range(0, n, size):
                rows = range(start, min(start + size, n))
                guesses = None
                if drafts is not None:
                    guesses = [draft for row in rows for draft in drafts[row][first : first + len(part)]]
                written, ids, spent = self._complete(genomes[rows.start : rows.stop], part, guesses)
                cost += spent
                for index, row in enumerate(rows):
                    texts[row] += written[index * len(part) : (index + 1) * len(part)]
                    token_ids[row] += ids[index * len(part) : (index + 1) * len(part)]
        scores = self.scorer.score(
            prompts=[example.prompt for _ in range(n) for example in examples],
            completions=[text for row in texts for text in row],
            columns=columns_of([example for _ in range(n) for example in examples]),
            completion_ids=[ids for row in token_ids for ids in row],
            groups=[row for row in range(n) for _ in examples],
            messages=messages_of([example for _ in range(n) for example in examples]),
        )
        rewards = scores.rewards.reshape(n, len(examples))
        terms = {name: values.reshape(n, len(examples)) for name, values in scores.terms.items()}
        return Evaluation(mean_fitness(rewards), rewards, texts, cost, int(scores.failed.sum()), token_ids, terms)

    def sample(
        self, genomes: Tensor, examples: Sequence[Example], *, key: Sequence[int], seed: int, temperature: float
    ) -> tuple[list[list[str]], Cost]:
        """One sampled completion of each example by each of `genomes` [n, genome_length], and the cost. `key` names the
        genomes' draws."""
        texts, cost = [], Cost()
        for genome, name in zip(genomes, key, strict=True):
            written: list[str] = []
            seeds = np.random.default_rng(keyed_seed(seed, "sample", name)).integers(
                0, 2**63, len(examples), dtype=np.uint64
            )
            for first in range(0, len(examples), self.rows_per_slice):
                part = slice(first, first + self.rows_per_slice)
                found, _, spent = self._complete(
                    genome[None], examples[part], None, seeds=seeds[part], temperature=temperature
                )
                written, cost = written + found, cost + spent
            texts.append(written)
        return texts, cost

    def _complete(
        self,
        genomes: Tensor,
        examples: Sequence[Example],
        drafts: Sequence[Sequence[int]] | None,
        *,
        seeds: npt.NDArray[np.uint64] | None = None,
        temperature: float = 1.0,
    ) -> tuple[list[str], list[list[int]], Cost]:
        model: PreTrainedModel = self.population_model.model
        prompts = encode(self.tokenizer, [example.prompt for example in examples], model.device)
        prompts = prompts.repeat(genomes.shape[0])
        completions = population_generate(
            self.population_model,
            genomes.to(model.device),
            prompts,
            max_new_tokens=self.max_new_tokens,
            eos_token_ids=end_tokens(model, self.tokenizer),
            pad_token_id=pad_token(self.tokenizer),
            drafts=drafts,
            seeds=seeds,
            temperature=temperature,
        )
        cost = Cost(completions.tokens, self.population_model.size.forward(lengths_read(prompts, completions)))
        return decode_text(self.tokenizer, completions), completions.rows(), cost


def mean_fitness(rewards: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The mean over scored completions of each row of [n, prompts]; NaN for a row without any."""
    return np.array(
        [math.fsum(row[~np.isnan(row)]) / n if (n := int((~np.isnan(row)).sum())) else math.nan for row in rewards]
    )


def best_first(fitness: npt.NDArray[np.float64]) -> list[int]:
    """The rows from the best to the worst, equals in their order; the failed, NaN, come last.

    >>> best_first(np.array([0.5, math.nan, 0.9]))
    [2, 0, 1]
    """
    order: list[int] = np.argsort(-np.where(np.isnan(fitness), -np.inf, fitness), kind="stable").tolist()
    return order


def term_means(evaluation: Evaluation, row: int) -> dict[str, float]:
    """The mean of each term of a combined reward over one individual's scored completions; NaN where none is."""
    return {name: float(mean_fitness(values[row][None])[0]) for name, values in evaluation.terms.items()}
