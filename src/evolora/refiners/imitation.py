"""Self-imitation: after a rollout, a step towards the best completions that anybody in the run has written.

Oh et al., 2018, "Self-imitation learning", arXiv 1806.05635; what is kept and what counts as a lesson: `replay`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from evolora.engine.base import Completions, Engine, Scoring, differentiable_scores, lengths_read
from evolora.engine.text import Text
from evolora.models.cost import Cost, Costs
from evolora.population.evaluation import Evaluation
from evolora.refiners.advantages import group_signal
from evolora.refiners.optimiser import RowAdam, clip_rows
from evolora.refiners.replay import Lesson, Replay
from evolora.rng import keyed_generator, keyed_seed
from evolora.tasks.task import Example


class Imitation:
    """Remembers what was written and what it earned, and teaches up to `most` lessons after each rollout of
    `group_size` completions a prompt."""

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

    def observe(self, examples: Sequence[Example], evaluation: Evaluation) -> None:
        """What a population wrote for `examples` and what it earned."""
        for written, rewards in zip(evaluation.completion_ids, evaluation.rewards.tolist(), strict=True):
            for example, ids, reward in zip(examples, written, rewards, strict=True):
                if not math.isnan(reward):
                    self.replay.add(example.prompt, ids, reward, by_policy=False)

    def remember(
        self, examples: Sequence[Example], completion_ids: Sequence[Sequence[int]], scores: Tensor, scored: Tensor
    ) -> None:
        """A rollout: its completions, flat, and their `scores` and `scored` [k, rows]."""
        prompts = [example.prompt for example in examples for _ in range(self.group_size)] * len(scores)
        counted = zip(prompts, completion_ids, scores.flatten().tolist(), scored.flatten().tolist(), strict=True)
        for prompt, ids, reward, has_score in counted:
            if has_score:
                self.replay.add(prompt, ids, reward, by_policy=True)

    def teach(
        self,
        rows: Tensor,
        optimiser: RowAdam,
        scores: Tensor,
        scored: Tensor,
        key: tuple[int, ...],
        costs: Costs,
    ) -> dict[str, Tensor]:
        """One step of all `rows` [k, genome_length] towards some lessons, by the mean of -weight * log p over their
        tokens, after a rollout with `scores` and `scored` [k, completions]; what it takes is added to `costs`.

        A lesson's weight is its gain times the probability that the policy does not write it, scaled to a mean of 1; it
        is drawn with a probability in proportion to its gain. Returns the numbers of lessons and of those taught, [k].
        """
        lessons = self.replay.lessons()
        count = min(round(self._untold(scores, scored) * self.most), len(lessons))
        counts = {
            "lessons": torch.full((len(rows),), float(len(lessons)), dtype=torch.float32),
            "taught": torch.full((len(rows),), float(count), dtype=torch.float32),
        }
        if not count:
            return counts
        gains = torch.tensor([lesson.gain for lesson in lessons], dtype=torch.float64)
        chosen = torch.multinomial(gains, count, generator=keyed_generator(self.seed, "replay", *key))
        self._step(rows, optimiser, [lessons[index] for index in chosen.tolist()], gains[chosen].to(rows), key, costs)
        return counts

    def _untold(self, scores: Tensor, scored: Tensor) -> float:
        """The share that a rollout leaves untold: a group that tells its completions apart needs no lesson."""
        if self.group_size == 1:
            return 1.0
        signal = group_signal(scores, scored, group_size=self.group_size, noise=self.replay.noise)
        return 1 - float(signal.mean())

    def _step(
        self,
        rows: Tensor,
        optimiser: RowAdam,
        lessons: Sequence[Lesson],
        gains: Tensor,
        key: tuple[int, ...],
        costs: Costs,
    ) -> None:
        prompts = self.text.encode([lesson.prompt for lesson in lessons])
        device = self.engine.device
        completions = Completions.of_ids([lesson.completion_ids for lesson in lessons] * len(rows), self.text.pad)
        completions = replace(completions, ids=completions.ids.to(device), mask=completions.mask.to(device))
        seed = keyed_seed(self.seed, "replay dropout", *key)
        how = Scoring(temperature=self.temperature, dropout=self.dropout, dropout_seed=seed)
        log_probs, _ = differentiable_scores(self.engine, rows, prompts, completions, how)
        log_probs, mask = (each.unflatten(0, (len(rows), -1)) for each in (log_probs, completions.mask))
        log_probs = log_probs.where(mask, 0.0)
        known = log_probs.detach().sum(-1).exp()
        for lesson, probability in zip(lessons, known.mean(0).tolist(), strict=True):
            self.replay.learned(lesson, probability)
        weights = gains * (1 - known)
        weights = weights / weights.mean(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
        weighted = log_probs * weights[..., None]
        rows.grad = None
        (-weighted.sum((-1, -2)) / mask.sum((-1, -2))).sum().backward()
        assert rows.grad is not None
        clip_rows(rows.grad, self.max_grad_norm)
        optimiser.step(rows.grad, torch.ones(len(rows), dtype=torch.bool, device=rows.device))
        size, lengths = self.engine.size, lengths_read(prompts, completions)
        costs.add("update", Cost(completions.tokens, size.forward(lengths) + size.backward(lengths)))

    def state_dict(self) -> dict[str, Any]:
        return self.replay.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.replay.load_state_dict(state)
