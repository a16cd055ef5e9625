"""The best completions that anybody in a run has written, kept to be learned from again.

Evolution's individuals and all rollouts fill one store, as in evolutionary RL (Khadka and Tumer, 2018, arXiv
1805.07917); what is better than what the policy earns on a prompt is imitated, as in self-imitation learning (Oh et
al., 2018, arXiv 1806.05635).
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

# Completions of a prompt that are kept, the best ones.
_KEPT = 8
# How fast the policy's mean reward on a prompt is followed.
_FOLLOW = 0.3
# How slowly the policy's mean reward on all prompts forgets: the weight of a reward after one more.
_REMEMBER = 0.99
# A lesson is worth at least this share of the range of rewards.
_LEAST_GAIN = 0.01
# Fewer lessons are not taught: what few completions say of the task is learned by heart, and others are lost. Where the
# base is paid nothing there is nothing to lose, and the first one says most.
_FEWEST = 4


@dataclass(frozen=True)
class Lesson:
    """A completion, by its token ids, that earns `reward`: `gain` more than the policy does, on the prompt as on all
    prompts."""

    prompt: str
    completion_ids: tuple[int, ...]
    gain: float
    reward: float


class Change(Protocol):
    """Something that an individual under refinement has done to a replay."""

    def apply_to(self, replay: "Replay") -> None: ...


@dataclass(frozen=True)
class Written:
    """It has written a completion, which earned this."""

    prompt: str
    completion_ids: tuple[int, ...]
    reward: float

    def apply_to(self, replay: "Replay") -> None:
        replay.add(self.prompt, self.completion_ids, self.reward, by_policy=True)


@dataclass(frozen=True)
class Learned:
    """It has been taught a lesson, which it wrote with this probability."""

    lesson: Lesson
    probability: float

    def apply_to(self, replay: "Replay") -> None:
        replay.learned(self.lesson, self.probability)


@dataclass
class _Prompt:
    """Its completions, each with the sum and the number of its rewards; those of all; and the policy's mean."""

    written: dict[tuple[int, ...], tuple[float, int]] = field(default_factory=dict)
    total: float = 0.0
    count: int = 0
    policy: float | None = None


class Replay:
    """Completions and what they earned, by prompt.

    A reward may be noisy: rewards of one completion that differ say how much. A completion's mean over n rewards is
    then drawn towards the prompt's mean m by the share that noise has in it, as in empirical Bayes (Efron and Morris,
    1973):

        m + (mean - m) * between / (between + within / n)

    with the variance `within` of one completion's rewards and that `between` completions' means. Without noise the mean
    counts as it is.

    >>> replay = Replay()
    >>> for number in range(4):
    ...     replay.add(f"prompt {number}", (1, 2), 0.9, by_policy=False)
    ...     replay.add(f"prompt {number}", (3,), 0.1, by_policy=True)
    >>> [round(lesson.gain, 6) for lesson in replay.lessons()]
    [0.8, 0.8, 0.8, 0.8]
    """

    def __init__(self) -> None:
        self.prompts: dict[str, _Prompt] = {}
        self.lowest, self.highest = np.inf, -np.inf
        # Squared differences between rewards of one completion, and their degrees of freedom.
        self.squares, self.freedom = 0.0, 0
        # The policy's rewards and their number, both fading.
        self.earned, self.weight = 0.0, 0.0
        self.fewest = _FEWEST

    def copy(self) -> "Replay":
        """Another that knows the same."""
        other = copy.copy(self)
        other.prompts = {prompt: replace(entry, written=dict(entry.written)) for prompt, entry in self.prompts.items()}
        return other

    def add(self, prompt: str, completion_ids: Sequence[int], reward: float, *, by_policy: bool) -> None:
        """Keep a completion that was scored; `by_policy` if the policy under refinement sampled it."""
        entry, ids = self.prompts.setdefault(prompt, _Prompt()), tuple(completion_ids)
        self.lowest, self.highest = min(self.lowest, reward), max(self.highest, reward)
        if by_policy:
            entry.policy = reward if entry.policy is None else entry.policy + _FOLLOW * (reward - entry.policy)
            self.earned, self.weight = _REMEMBER * self.earned + reward, _REMEMBER * self.weight + 1
        entry.total, entry.count = entry.total + reward, entry.count + 1
        earned, times = entry.written.get(ids, (0.0, 0))
        if times:  # Welford, 1962
            self.squares += (reward - earned / times) ** 2 * times / (times + 1)
            self.freedom += 1
        entry.written[ids] = (earned + reward, times + 1)
        if len(entry.written) > _KEPT:
            del entry.written[min(entry.written, key=lambda each: entry.written[each][0] / entry.written[each][1])]

    @property
    def noise(self) -> float:
        """The variance of the rewards of one completion."""
        return self.squares / max(self.freedom, 1)

    def learned(self, lesson: Lesson, probability: float) -> None:
        """The policy writes this lesson with that probability: it earns accordingly, until it is seen to earn less."""
        entry = self.prompts[lesson.prompt]
        policy = entry.total / entry.count if entry.policy is None else entry.policy
        entry.policy = policy + probability * max(lesson.reward - policy, 0.0)

    def lessons(self) -> list[Lesson]:
        """The best completion of each prompt, if the policy earns clearly less there and on the whole: what is better
        than an answer of no worth and no better than the usual one would be learned at the cost of better ones. None
        if there are too few."""
        within = self.noise
        written = [each for entry in self.prompts.values() for each in entry.written.values()]
        if not written:
            return []
        means = np.array([earned / times for earned, times in written])
        between = max(float(means.var() - within * np.mean([1 / times for _, times in written])), 0.0)
        least = _LEAST_GAIN * (self.highest - self.lowest)
        found = []
        for prompt, entry in self.prompts.items():
            mean = entry.total / entry.count
            expected = {
                ids: mean + (earned / times - mean) * (between / (between + within / times) if within else 1.0)
                for ids, (earned, times) in entry.written.items()
            }
            best = max(expected, key=lambda ids: expected[ids])
            # A few noisy rewards say little about the policy, all of the prompt's say more.
            base = mean if within or entry.policy is None else entry.policy
            if self.weight:
                base = max(base, self.earned / self.weight)
            if expected[best] - base > least:
                found.append(Lesson(prompt, best, expected[best] - base, expected[best]))
        return found if len(found) >= self.fewest else []

    def state_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "prompts": {
                prompt: [
                    [[list(ids), *sums] for ids, sums in entry.written.items()],
                    entry.total,
                    entry.count,
                    entry.policy,
                ]
                for prompt, entry in self.prompts.items()
            },
            "range": [self.lowest, self.highest] if self.prompts else None,
            "noise": [self.squares, self.freedom],
            "policy": [self.earned, self.weight],
            "fewest": self.fewest,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.prompts = {
            prompt: _Prompt({tuple(ids): (earned, times) for ids, earned, times in written}, total, count, policy)
            for prompt, (written, total, count, policy) in state["prompts"].items()
        }
        self.lowest, self.highest = state["range"] or (np.inf, -np.inf)
        self.squares, self.freedom = state["noise"]
        self.earned, self.weight = state["policy"]
        self.fewest = state["fewest"]
