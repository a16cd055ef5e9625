"""How much the model's outputs depend on each LoRA weight: what safe mutation is scaled by."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from evolora.engine.eager.generate import completion_logits, encode, end_tokens, generate, pad_token
from evolora.engine.eager.lora_layers import PopulationModel
from evolora.rng import keyed_generator
from evolora.tasks.task import Example


@dataclass(frozen=True)
class Sensitivities:
    """`values` [n, genome_length], not negative, and what they cost: tokens that went forward through the model, and
    tokens that gradients went back through."""

    values: Tensor
    forward_tokens: int
    backward_tokens: int


class OutputSensitivity:
    """Per-weight sensitivities of the next-token distributions on a fixed batch, by random projections.

    The outputs at a position with next-token probabilities p are y = 2 sqrt(p), a vector as long as the vocabulary: the
    squared length of a small change of y is twice the KL divergence that it makes (y maps the Fisher metric to the
    plain one), so that a change of size c costs c^2 / 2 nats a token. A weight's sensitivity is the root mean square
    over positions of the length of dy/dw, the second-moment form of SM-G (Lehman et al., 2018, arXiv 1712.06563): the
    root of the diagonal of the Fisher matrix. It is estimated without bias in its square:

        s_w^2 = mean over projections of (sum over positions i and entries k of r_ik dy_ik/dw)^2 / positions,

    r_ik = +1 or -1 at random, the same for all individuals and calls: equal genomes have equal sensitivities.

    The positions are those where the untouched base chose the tokens of its greedy completions of the prompts. Each
    call makes one forward pass, and one backward pass a projection, for each individual; the first call's cost includes
    those completions.

    >>> from evolora.models.base import load_base
    >>> from evolora.models.lora import lora_config, lora_layout
    >>> base = load_base("tiny-gpt2")
    >>> layout, genome = lora_layout(base.model, lora_config(base.model), seed=0)
    >>> sensitivity = OutputSensitivity(
    ...     PopulationModel(base.model, layout), base.tokenizer, [Example("4 + 3 =", {})], max_new_tokens=3, seed=0
    ... )
    >>> found = sensitivity(genome[None])
    >>> _, a, b = next(layout.factors(found.values))
    >>> bool((a == 0).all()), bool((b > 0).all())  # B is zero in the base, so that nothing depends on A yet
    (True, True)
    """

    def __init__(
        self,
        population_model: PopulationModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Sequence[Example],
        *,
        max_new_tokens: int,
        seed: int,
        projections: int = 4,
    ) -> None:
        if projections < 1:
            raise ValueError(f"projections {projections}: expected at least 1")
        self.population_model = population_model
        self.model = population_model.model
        self.seed = seed
        self.projections = projections
        self.prompts = encode(tokenizer, [example.prompt for example in examples], self.model.device)
        self.completions = generate(
            self.model,
            self.prompts,
            max_new_tokens=max_new_tokens,
            eos_token_ids=end_tokens(self.model, tokenizer),
            pad_token_id=pad_token(tokenizer),
        )
        # The last token of a completion is chosen, and never read.
        rows = len(self.prompts.ids)
        self._tokens = int(self.prompts.mask.sum()) + self.completions.tokens - rows
        self._unpaid = self._tokens

    def __call__(self, genomes: Tensor) -> Sensitivities:
        """The sensitivities of `genomes` [n, genome_length], in float32."""
        rows = [self._of_one(genome) for genome in genomes]
        forward, self._unpaid = self._unpaid + len(rows) * self._tokens, 0
        backward = len(rows) * self._tokens * self.projections
        return Sensitivities(torch.stack(rows) if rows else torch.zeros_like(genomes), forward, backward)

    def _of_one(self, genome: Tensor) -> Tensor:
        # One by one: in a batch with others its products could round otherwise, and its child with them.
        row = genome.detach()[None].to(self.model.device).clone().requires_grad_()
        with torch.enable_grad(), self.population_model.adapted(row):
            logits = completion_logits(self.model, self.prompts, self.completions)
            outputs = 2 * (torch.log_softmax(logits, -1) / 2).exp()
            total = torch.zeros_like(row[0])
            for projection in range(self.projections):
                generator = keyed_generator(self.seed, "sensitivity", projection)
                signs = torch.randint(0, 2, outputs.shape, generator=generator).to(outputs) * 2 - 1
                last = projection + 1 == self.projections
                (gradient,) = torch.autograd.grad((signs * outputs).sum(), row, retain_graph=not last)
                total += gradient[0].square()
        return (total / (self.projections * len(outputs))).sqrt().to(genome.device)
