"""Self-imitation: after a rollout, a step towards the best completions that anybody in the run has written.

Oh et al., 2018, "Self-imitation learning", arXiv 1806.05635; what is kept and what counts as a lesson: `replay`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evolora.engine.base import Completions, Engine, Scoring, differentiable_scores, lengths_read
from evolora.engine.text import Text
from evolora.models.cost import Cost, Costs
from evolora.population.evaluation import Evaluation
from evolora.refiners.advantages import group_signal
from evolora.refiners.optimiser import RowAdam, clip_rows
from evolora.refiners.replay import Change, Learned, Lesson, Replay, Written
from evolora.rng import keyed_generator, keyed_seed
from evolora.tasks.task import Example

# How often lessons are repeated at most in a run that starts from nothing, and from which mean probability on they are
# known.
_REPEATS, _KNOWN = 4, 0.3


class Pupil:
    """An individual under refinement, with a replay of its own: what was known before, and what it writes and learns
    itself, which `changes` say in order."""

    def __init__(self, known: Replay) -> None:
        self.replay = known.copy()
        self.changes: list[Change] = []

    def change(self, change: Change) -> None:
        change.apply_to(self.replay)
        self.changes.append(change)


class Imitation:
    """Remembers what was written and what it earned, and teaches up to `most` lessons after each rollout of
    `group_size` completions a prompt. What individuals write in a generation others learn from in those to come."""

    def __init__(
        self,
        engine: Engine,
        text: Text,
        *,
        most: int,
        group_size: int,
        temperature: float,
        max_grad_norm: float,
        seed: int,
        dropout: float = 0.0,
    ) -> None:
        self.engine = engine
        self.text = text
        self.dropout = dropout
        self.most = most
        self.group_size = group_size
        self.temperature = temperature
        self.max_grad_norm = max_grad_norm
        self.seed = seed
        self.replay = Replay()
        self._changes: dict[tuple[int, ...], list[Change]] = {}

    def observe(self, examples: Sequence[Example], evaluation: Evaluation) -> None:
        """What a population wrote for `examples` and what it earned."""
        for row, written in enumerate(evaluation.completion_ids):
            for example, ids, worth in zip(examples, written, evaluation.paid(row).tolist(), strict=True):
                if not math.isnan(worth):
                    self.replay.add(example.prompt, ids, worth, by_policy=False)

    def pupils(self, count: int) -> list[Pupil]:
        """So many individuals at the beginning of their refinement."""
        return [Pupil(self.replay) for _ in range(count)]

    def keep(self, key: Sequence[tuple[int, ...]], pupils: Sequence[Pupil]) -> None:
        """What they have written and learned, by their keys, until it is known to all."""
        self._changes |= {own: pupil.changes for own, pupil in zip(key, pupils, strict=True)}

    def settle(self) -> None:
        """Let it be known to all, in the order of the keys."""
        for key in sorted(self._changes):
            for change in self._changes[key]:
                change.apply_to(self.replay)
        self._changes.clear()

    def remember(
        self,
        pupils: Sequence[Pupil],
        examples: Sequence[Example],
        completion_ids: Sequence[Sequence[int]],
        worth: Tensor,
    ) -> None:
        """A rollout: its completions, flat, and what they are `worth` [k, rows], NaN where they have no score."""
        prompts = [example.prompt for example in examples for _ in range(self.group_size)]
        of_rows = [(pupil, prompt) for pupil in pupils for prompt in prompts]
        for (pupil, prompt), ids, each in zip(of_rows, completion_ids, worth.flatten().tolist(), strict=True):
            if not math.isnan(each):
                pupil.change(Written(prompt, tuple(ids), each))

    def teach(
        self,
        pupils: Sequence[Pupil],
        rows: Tensor,
        optimiser: RowAdam,
        worth: Tensor,
        key: Sequence[tuple[int, ...]],
        costs: Costs,
    ) -> dict[str, Tensor]:
        """A step of each of `rows` [k, genome_length] towards some lessons of its own, by the mean of -weight * log p
        over their tokens, after a rollout whose completions are `worth` [k, completions] so much, NaN without a score;
        what it takes is added to `costs`. In a run that starts from nothing there are several, until the lessons are
        known: they are few, and cheap beside a rollout, and the sooner they are known the sooner others are found.

        A lesson's weight is its gain times the probability that the policy does not write it, scaled to a mean of 1; it
        is drawn with a probability in proportion to its gain. Returns the numbers of lessons and of those taught, [k].
        """
        lessons = [pupil.replay.lessons() for pupil in pupils]
        untold = [self._untold(pupil, worth[row : row + 1]) for row, pupil in enumerate(pupils)]
        drawn = [keyed_generator(self.seed, "replay", *each) for each in key]
        taught, known = [0] * len(pupils), [False] * len(pupils)
        for repeat in range(_REPEATS if self.replay.fewest == 1 else 1):
            chosen = list[list[Lesson]]()
            for row, pupil in enumerate(pupils):
                own = lessons[row] if repeat == 0 else pupil.replay.lessons()
                count = 0 if known[row] else min(round(untold[row] * self.most), len(own))
                gains = torch.tensor([lesson.gain for lesson in own], dtype=torch.float64)
                places = torch.multinomial(gains, count, generator=drawn[row]).tolist() if count else []
                chosen.append([own[place] for place in places])
            if not any(chosen):
                break
            probabilities = self._step(pupils, rows, optimiser, chosen, key, costs)
            taught = [count + len(own) for count, own in zip(taught, chosen, strict=True)]
            known = [probability > _KNOWN for probability in probabilities]
        return {
            "lessons": torch.tensor([float(len(own)) for own in lessons]),
            "taught": torch.tensor([float(count) for count in taught]),
        }

    def _untold(self, pupil: Pupil, worth: Tensor) -> float:
        """The share that a rollout leaves untold: a group that tells its completions apart needs no lesson."""
        if self.group_size == 1:
            return 1.0
        signal = group_signal(worth.nan_to_num(), ~worth.isnan(), group_size=self.group_size, noise=pupil.replay.noise)
        return 1 - float(signal)

    def _step(
        self,
        pupils: Sequence[Pupil],
        rows: Tensor,
        optimiser: RowAdam,
        chosen: Sequence[Sequence[Lesson]],
        key: Sequence[tuple[int, ...]],
        costs: Costs,
    ) -> list[float]:
        """The mean probability of each row's lessons before the step, 1 where it has none."""
        lessons = [lesson for own in chosen for lesson in own]
        owners = [row for row, own in enumerate(chosen) for _ in own]
        prompts = self.text.encode([lesson.prompt for lesson in lessons])
        device = self.engine.device
        completions = Completions.of_ids([lesson.completion_ids for lesson in lessons], self.text.pad)
        completions = replace(completions, ids=completions.ids.to(device), mask=completions.mask.to(device))
        seeds = np.array([keyed_seed(self.seed, "replay dropout", *each) for each in key], np.uint64)
        how = Scoring(temperature=self.temperature, dropout=self.dropout, dropout_seeds=seeds)
        log_probs, _ = differentiable_scores(self.engine, rows, prompts, completions, how, owners=owners)
        sums = log_probs.where(completions.mask, 0.0).sum(-1).split([*map(len, chosen)])
        tokens = completions.mask.sum(-1).split([*map(len, chosen)])
        losses, probabilities = [], []
        for row, own in enumerate(chosen):
            if not own:
                probabilities.append(1.0)
                continue
            known = sums[row].detach().exp()
            probabilities.append(float(known.mean()))
            for lesson, probability in zip(own, known.tolist(), strict=True):
                pupils[row].change(Learned(lesson, probability))
            weights = torch.tensor([lesson.gain for lesson in own], dtype=torch.float64).to(rows) * (1 - known)
            weights = weights / weights.mean().clamp(min=torch.finfo(weights.dtype).tiny)
            losses.append(-(sums[row] * weights).sum() / tokens[row].sum())
        rows.grad = None
        torch.stack(losses).sum().backward()
        assert rows.grad is not None
        clip_rows(rows.grad, self.max_grad_norm)
        optimiser.step(rows.grad, torch.tensor([bool(own) for own in chosen], device=rows.device))
        size, lengths = self.engine.size, lengths_read(prompts, completions)
        costs.add("update", Cost(completions.tokens, size.forward(lengths) + size.backward(lengths)))
        return probabilities

    def state_dict(self) -> dict[str, Any]:
        return self.replay.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.replay.load_state_dict(state)
