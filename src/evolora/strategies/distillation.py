"""Distillation: an individual learns by supervision to write what others have written better."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from evolora.engine.eager.generate import Completions, completion_log_probs, encode, pad_token
from evolora.engine.eager.lora_layers import PopulationModel
from evolora.tasks.task import Example


@dataclass(frozen=True)
class Written:
    """What an individual wrote: for each example its completion's token ids, end included, and its reward, NaN for
    none."""

    examples: Sequence[Example]
    completion_ids: Sequence[Sequence[int]]
    rewards: Sequence[float]


@dataclass(frozen=True)
class Distilled:
    """The `genome` [genome_length], the mean negative log-likelihood of a token before and after, and what it cost:
    tokens that went forward through the model, and tokens that gradients went back through."""

    genome: Tensor
    loss_before: float
    loss_after: float
    forward_tokens: int
    backward_tokens: int


def better_of(first: Written, second: Written) -> tuple[list[Example], list[list[int]]]:
    """Each example with the better of two completions; the first's among equals. Those without a reward are left out.

    Raises ValueError when both did not meet the same examples.

    >>> examples = [Example("a", {}), Example("b", {}), Example("c", {})]
    >>> nan = float("nan")
    >>> chosen, ids = better_of(
    ...     Written(examples, [[1], [1], [1]], [0.5, 0.1, nan]), Written(examples, [[2], [2], [2]], [0.5, nan, nan])
    ... )
    >>> [example.prompt for example in chosen], ids
    (['a', 'b'], [[1], [1]])
    """
    if list(first.examples) != list(second.examples):
        raise ValueError("two parents must have met the same examples")
    examples, completions = [], []
    for place, example in enumerate(first.examples):
        rewards = [-math.inf if math.isnan(each.rewards[place]) else each.rewards[place] for each in (first, second)]
        if max(rewards) > -math.inf:
            examples.append(example)
            completions.append(list((first if rewards[0] >= rewards[1] else second).completion_ids[place]))
    return examples, completions


class Distiller:
    """Some steps of Adam on the likelihood of given completions: the imitation step of distillation crossover (PDERL:
    Bodnar et al., 2019, arXiv 1906.09807).

    The loss is the mean over tokens of -log p(token | prompt, tokens before), the gradient is clipped to norm 1, the
    adapter has no dropout.

    >>> from evolora.models.base import load_base
    >>> from evolora.models.lora import lora_config, lora_layout
    >>> base = load_base("tiny-gpt2")
    >>> layout, genome = lora_layout(base.model, lora_config(base.model), seed=0)
    >>> distill = Distiller(PopulationModel(base.model, layout), base.tokenizer, steps=3, lr=1e-2)
    >>> ids = base.tokenizer([" 12"])["input_ids"]
    >>> result = distill(genome, [Example("4 + 3 =", {})], ids)
    >>> result.loss_after < result.loss_before
    True
    """

    def __init__(
        self, population_model: PopulationModel, tokenizer: PreTrainedTokenizerBase, *, steps: int = 4, lr: float = 1e-3
    ) -> None:
        if steps < 1:
            raise ValueError(f"steps {steps}: expected at least 1")
        self.population_model = population_model
        self.model = population_model.model
        self.tokenizer = tokenizer
        self.steps = steps
        self.lr = lr

    def __call__(
        self, genome: Tensor, examples: Sequence[Example], completion_ids: Sequence[Sequence[int]]
    ) -> Distilled:
        """Teach `genome` [genome_length], which stays as it is, to write `completion_ids` after the examples' prompts.

        Raises ValueError when there is nothing to learn from.
        """
        if not any(completion_ids):
            raise ValueError("expected completions to learn from, found none")
        device = self.model.device
        prompts = encode(self.tokenizer, [example.prompt for example in examples], device)
        completions = _padded(completion_ids, pad_token(self.tokenizer), device)
        row = genome.detach()[None].to(device).clone().requires_grad_()
        optimiser = torch.optim.Adam([row], lr=self.lr)
        losses = []
        for step in range(self.steps + 1):
            with torch.set_grad_enabled(step < self.steps), self.population_model.adapted(row):
                log_probs, _ = completion_log_probs(self.model, prompts, completions, entropy_gradient=False)
                loss = -log_probs.sum() / completions.tokens
            losses.append(loss.item())
            if step < self.steps:
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_([row], 1.0)
                optimiser.step()
        # The last token of a completion is chosen, and never read.
        tokens = int(prompts.mask.sum()) + completions.tokens - len(completion_ids)
        learned = row.detach()[0].to(genome.device)
        return Distilled(learned, losses[0], losses[-1], (self.steps + 1) * tokens, self.steps * tokens)


def _padded(completion_ids: Sequence[Sequence[int]], pad: int, device: torch.device) -> Completions:
    width = max(map(len, completion_ids))
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in completion_ids], device=device)
    lengths = torch.tensor([len(row) for row in completion_ids], device=device)
    return Completions(ids, torch.arange(width, device=device) < lengths[:, None])
