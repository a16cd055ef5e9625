"""What the untouched base earns on each task, greedy and sampled: that a task is as hard as its name says."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evolora.engine.base import Engine
from evolora.engine.choose import choose_engine
from evolora.engine.text import Text
from evolora.models.base import load_base
from evolora.models.genome import GenomeLayout
from evolora.rewards import RewardScorer
from evolora.tasks.task import Example, columns_of
from study.tasks import DECLINES, StudyTask

ROWS = 512
NEW_TOKENS = 32


@dataclass(frozen=True)
class BaseRates:
    """Mean reward of greedy and of sampled completions, and the shares of samples that earn `right` (at least 1) and
    that decline to answer; `rewards` [prompts, samples]."""

    greedy: float
    sampled: float
    right: float
    declined: float
    rewards: npt.NDArray[np.float64]


def base_rates(task: StudyTask, examples: Sequence[Example], *, samples: int = 8, seed: int = 0) -> BaseRates:
    """Measured on `examples` by the noise-free reward, at temperature 1."""
    base, scorer = load_base("tiny-gpt2"), RewardScorer(task.true_reward)
    engine, text = choose_engine(base.model, GenomeLayout(())).engine, Text.of(base.model, base.tokenizer)
    often = [example for example in examples for _ in range(samples)]
    greedy, _ = _rewards(engine, text, scorer, examples, None)
    seeds = np.random.default_rng(seed).integers(0, 2**63, len(often)).astype(np.uint64)
    sampled, texts = _rewards(engine, text, scorer, often, seeds)
    return BaseRates(
        greedy=float(greedy.mean()),
        sampled=float(sampled.mean()),
        right=float((sampled >= 1).mean()),
        declined=float(np.mean([text.strip() == DECLINES for text in texts])),
        rewards=sampled.reshape(len(examples), samples),
    )


def _rewards(
    engine: Engine,
    text: Text,
    scorer: RewardScorer,
    examples: Sequence[Example],
    seeds: npt.NDArray[np.uint64] | None,
) -> tuple[npt.NDArray[np.float64], list[str]]:
    texts: list[str] = []
    ids: list[list[int]] = []
    for start in range(0, len(examples), ROWS):
        batch = text.encode([example.prompt for example in examples[start : start + ROWS]])
        own = None if seeds is None else seeds[start : start + ROWS]
        written = engine.generate(None, batch, text.decoding(NEW_TOKENS, seeds=own))
        texts += text.decode(written)
        ids += written.rows()
    prompts = [example.prompt for example in examples]
    scores = scorer.score(prompts=prompts, completions=texts, columns=columns_of(list(examples)), completion_ids=ids)
    return scores.rewards, texts


def leads_away(rates: BaseRates, credit: float) -> bool:
    """Whether the policy gradient at the base moves the log-odds of declining against the right answer towards
    declining. For a softmax policy the gradient moves the logit of an answer with probability p and reward r by
    p (r - mean reward)."""
    right, declined, mean = rates.right, rates.declined, rates.sampled
    return declined * (credit - mean) > right * (1 - mean)
