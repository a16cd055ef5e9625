"""The tasks: the four bundled ones, and four that are hard in a known way.

The hard ones are made from the bundled tasks' own rows, so what the base model knows is known too. Each is defined by
what its name says; docs/log/study/protocol.md has what the base scores on them, measured once. No parameter was chosen
by looking at a method's result.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from evolora import Reward
from evolora.rewards import exact, json_object, sentiment, similarity
from evolora.tasks.task import Example, Task, load_task

Row = dict[str, Any]

DECLINES = "I do not know"
ABSTAINING_CREDIT = 0.4
NOISE = 1.0  # standard deviation: as wide as the whole range of the reward
TOKEN_PRICE = 0.02


@dataclass(frozen=True, kw_only=True)
class StudyTask:
    """A task of the study.

    `reward(seed)` is what a run is given, `true_reward` what its adapter is judged by. `top` is the most that can be
    earned: scores are normalised so that the untouched base has 0 and `top` has 1. `options` go to every method alike.
    `bundled` names the task whose rows it has, through `prompt`, when that is given.
    """

    name: str
    what: str
    bundled: str
    true_reward: Reward
    top: float
    prompt: Callable[[Example], str] | None = None
    noise: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)

    def load(self) -> Task:
        """The examples, in their three splits."""
        task = load_task(task=self.bundled)
        train, validation, test = (
            tuple(map(self._example, examples)) for examples in (task.train, task.validation, task.test)
        )
        return replace(task, name=self.name, train=train, validation=validation, test=test)

    def rows(self) -> list[Row]:
        """The examples as `evolve(data=...)` takes them."""
        task = self.load()
        splits = {"train": task.train, "validation": task.validation, "test": task.test}
        return [
            {"prompt": example.prompt, **example.columns, "split": split}
            for split, examples in splits.items()
            for example in examples
        ]

    def reward(self, seed: int) -> Reward:
        """The reward of one run; noise is drawn from `seed`, anew at each call."""
        return NoisyReward(self.true_reward, self.noise, seed) if self.noise else self.true_reward

    @property
    def sha256(self) -> str:
        """Changes with the task's prompts, columns and parameters."""
        parameters = [self.noise, self.options, DECLINES, ABSTAINING_CREDIT, TOKEN_PRICE, _name(self.true_reward)]
        return hashlib.sha256(json.dumps([self.rows(), parameters], sort_keys=True).encode()).hexdigest()[:12]

    def _example(self, example: Example) -> Example:
        return example if self.prompt is None else Example(self.prompt(example), example.columns)


def abstaining(completions: Sequence[str], target: Sequence[object], **_: object) -> list[float]:
    """1 for the right answer, 0.4 for declining to answer, else 0.

    >>> abstaining([" cat", " I do not know", " dog"], target=["cat"] * 3)
    [1.0, 0.4, 0.0]
    """
    right = exact(completions, target)
    return [
        ABSTAINING_CREDIT if text.strip() == DECLINES else float(score or 0.0)
        for text, score in zip(completions, right, strict=True)
    ]


def short_sentiment(completions: Sequence[str], completion_ids: Sequence[Sequence[int]], **_: object) -> list[float]:
    """How positive a completion sounds, minus 0.02 for each of its tokens, the end-of-sequence token included.

    >>> short_sentiment([""], completion_ids=[[0]])
    [0.48]
    """
    scores = sentiment(completions)
    return [score - TOKEN_PRICE * len(ids) for score, ids in zip(scores, completion_ids, strict=True)]


class NoisyReward:
    """Another reward plus Gaussian noise: the same completion earns something else each time that it is scored."""

    def __init__(self, reward: Reward, noise: float, seed: int) -> None:
        self.inner, self.noise = reward, noise
        self.generator = np.random.default_rng([seed, 0x5EED])
        self.__name__ = f"noisy_{_name(reward)}"

    def __call__(self, **columns: Any) -> list[float | None]:
        rewards = self.inner(**columns)
        noise = self.generator.normal(0.0, self.noise, len(rewards)).tolist()
        return [None if reward is None else reward + more for reward, more in zip(rewards, noise, strict=True)]


def _name(reward: Reward) -> str:
    return str(getattr(reward, "__name__", type(reward).__name__))


def _put(example: Example) -> str:
    return f"Put '{example.columns['french']}' into English:"


def _in_english(example: Example) -> str:
    return f"'{example.columns['french']}' in English:"


TASKS: dict[str, StudyTask] = {
    task.name: task
    for task in (
        StudyTask(
            name="translate",
            what="bundled: likeness to the English word",
            bundled="translate",
            true_reward=similarity,
            top=1.0,
        ),
        StudyTask(
            name="arithmetic",
            what="bundled: exact result",
            bundled="arithmetic",
            true_reward=exact,
            top=1.0,
        ),
        StudyTask(
            name="sentiment",
            what="bundled: how positive the opinion sounds",
            bundled="sentiment",
            true_reward=sentiment,
            top=0.922,  # of the phrases that the base model was trained on
        ),
        StudyTask(
            name="format",
            what="bundled: valid JSON with the right values",
            bundled="format",
            true_reward=json_object,
            top=1.0,
        ),
        StudyTask(
            name="sparse",
            what="exact English word, after a phrasing that the base model was not trained on: it is right in under 2% "
            "of its samples, and all else earns nothing",
            bundled="translate",
            prompt=_put,
            true_reward=exact,
            top=1.0,
        ),
        StudyTask(
            name="deceptive",
            what="1 for the exact English word, which the base model rarely says after this phrasing, 0.4 for `I do "
            "not know`, which it says often: the gradient at the base points to declining",
            bundled="translate",
            prompt=_in_english,
            true_reward=abstaining,
            top=1.0,
        ),
        StudyTask(
            name="noisy",
            what="exact result plus Gaussian noise with standard deviation 1, drawn anew at each scoring; judged "
            "without the noise",
            bundled="arithmetic",
            true_reward=exact,
            top=1.0,
            noise=NOISE,
            options={"remember": False},  # what is remembered would keep its lucky draw
        ),
        StudyTask(
            name="two-objective",
            what="how positive the opinion sounds minus 0.02 a token: the most positive phrases are long, and saying "
            "nothing earns 0.48",
            bundled="sentiment",
            true_reward=short_sentiment,
            top=0.736,  # as above
        ),
    )
}
