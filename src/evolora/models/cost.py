"""What a run costs: tokens, floating-point operations and seconds, by purpose.

The operations are nominal, after Kaplan et al., 2020 (arXiv 2001.08361): what the model's products of matrices need for
each text on its own. They depend on the texts and the model only, not on the machine, the batch or the fast paths.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Self

from torch import nn
from transformers import PreTrainedModel

from evolora.models.memory import peak_memory
from evolora.models.quantization import entries

Purpose = Literal["evaluation", "rollout", "update"]
PURPOSES: tuple[Purpose, ...] = ("evaluation", "rollout", "update")


@dataclass(frozen=True)
class Cost:
    """Tokens generated or, in updates, trained on; nominal floating-point operations; wall seconds; and the most bytes
    of memory meanwhile.

    >>> Cost(tokens=3, flops=100, memory=7) + Cost(tokens=2, flops=50, seconds=0.5, memory=9)
    Cost(tokens=5, flops=150, seconds=0.5, memory=9)
    """

    tokens: int = 0
    flops: int = 0
    seconds: float = 0.0
    memory: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.tokens + other.tokens,
            self.flops + other.flops,
            self.seconds + other.seconds,
            max(self.memory, other.memory),
        )


@dataclass
class Costs:
    """What was spent so far on each purpose: `evaluation` (fitness and validation), `rollout` (sampling for training,
    and the reference's pass over it) and `update` (gradients)."""

    by_purpose: dict[Purpose, Cost] = field(default_factory=lambda: dict.fromkeys(PURPOSES, Cost()))

    def add(self, purpose: Purpose, cost: Cost) -> None:
        self.by_purpose[purpose] += cost

    def __iadd__(self, other: "Costs") -> Self:
        for purpose, cost in other.by_purpose.items():
            self.add(purpose, cost)
        return self

    @contextmanager
    def timed(self, purpose: Purpose) -> Iterator[None]:
        """Add the wall seconds of a `with` block, the reward's own among them, and its memory."""
        start = time.perf_counter()
        with peak_memory() as peak:
            yield
        self.add(purpose, Cost(seconds=time.perf_counter() - start, memory=peak.bytes))

    @property
    def generated_tokens(self) -> int:
        """Tokens generated: those of evaluation and rollout. An update reads what a rollout has generated."""
        return self.by_purpose["evaluation"].tokens + self.by_purpose["rollout"].tokens

    @property
    def flops(self) -> int:
        return sum(cost.flops for cost in self.by_purpose.values())

    def metrics(self) -> dict[str, float]:
        """The figures by name: `tokens.evaluation`, `flops.update`, `time.rollout` and so on; `time.memory.update` with
        those that are not the same in a repetition."""
        costs = self.by_purpose.items()
        return {
            **{f"tokens.{purpose}": cost.tokens for purpose, cost in costs},
            **{f"flops.{purpose}": cost.flops for purpose, cost in costs},
            **{f"time.{purpose}": cost.seconds for purpose, cost in costs},
            **{f"time.memory.{purpose}": cost.memory for purpose, cost in costs},
        }

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, float]) -> "Costs":
        """What `metrics` was made of."""
        return cls(
            {
                purpose: Cost(
                    int(metrics[f"tokens.{purpose}"]),
                    int(metrics[f"flops.{purpose}"]),
                    metrics[f"time.{purpose}"],
                    int(metrics.get(f"time.memory.{purpose}", 0)),
                )
                for purpose in PURPOSES
            }
        )


@dataclass(frozen=True)
class ModelSize:
    """What the nominal operations depend on: `weights`, the entries of all weight matrices, the output layer's included
    and the embeddings' not; `layers`; `width`, that of attention (heads times their size); and `adapter`, the length of
    a genome.

    >>> size = ModelSize(weights=1000, layers=2, width=10, adapter=50)
    >>> size.forward([3])  # three tokens, which attend to 1 + 2 + 3 positions
    6780
    """

    weights: int
    layers: int
    width: int
    adapter: int

    @classmethod
    def of(cls, model: PreTrainedModel, *, adapter: int) -> "ModelSize":
        """The size of any causal LM. Where only some experts see a token, all of them count; a model without attention
        has width 0."""
        embeddings = {
            id(parameter)
            for module in model.modules()
            if isinstance(module, nn.Embedding)
            for parameter in module.parameters()
        }
        # Biases and the scales of norms are vectors: they multiply no matrix.
        matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
        weights = sum(entries(matrix) for matrix in matrices if id(matrix) not in embeddings)
        output = model.get_output_embeddings().weight
        if id(output) in embeddings:  # tied to the input's, but multiplied all the same
            weights += output.numel()
        config = model.config.get_text_config(decoder=True)
        heads = getattr(config, "num_attention_heads", None) or 0
        head_size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
        return cls(weights, config.num_hidden_layers, heads * head_size, adapter)

    def forward(self, lengths: Sequence[int], *, adapted: bool = True) -> int:
        """Operations of reading texts of `lengths` tokens, with an adapter or without, every text on its own and each
        of its tokens once.

        A multiplication and an addition for each weight and token, and for each pair of a token and one that it attends
        to, itself included, one product for the score and one with the value: for a text of L tokens

            2 L (weights + adapter) + 2 layers width L (L + 1).
        """
        weights = self.weights + (self.adapter if adapted else 0)
        return sum(2 * length * weights + self._attention(length) for length in lengths)

    def backward(self, lengths: Sequence[int]) -> int:
        """Operations of the gradients: of the activations through the frozen base and through attention, of activations
        and weights in the adapter. For a text of L tokens

            2 L (weights + 2 adapter) + 4 layers width L (L + 1).
        """
        weights = self.weights + 2 * self.adapter
        return sum(2 * length * weights + 2 * self._attention(length) for length in lengths)

    def _attention(self, length: int) -> int:
        return 2 * self.layers * self.width * length * (length + 1)
