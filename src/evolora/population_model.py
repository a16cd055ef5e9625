"""The population layers: many LoRA adapters of one frozen base model in one forward pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from evolora.genome import AdaptedModule, GenomeLayout


class PopulationModel:
    """A base model whose adapted layers read views of a matrix of genomes.

    Inside `adapted(genomes)`, with genomes [n, genome_length], a batch of n * m rows is read as n groups of m rows, in
    order: group i runs with genome i. Each adapted layer adds `scaling * (x @ A.T) @ B.T` for all groups by two batched
    matrix products. Outside, the model is the untouched base. Gradients flow to `genomes` if it requires them; rows do
    not mix.

    The layers are forward hooks, so the base keeps its class and its modules, and anything that runs on it runs on the
    population.

    >>> from evolora.model import BUNDLED_MODEL, load_base, lora_config, lora_layout
    >>> base = load_base(BUNDLED_MODEL)
    >>> layout, genome = lora_layout(base.model, lora_config(base.model), seed=0)
    >>> population_model = PopulationModel(base.model, layout)
    >>> tokens = base.tokenizer(["4 + 3 ="] * 6, return_tensors="pt")  # two rows for each of three individuals
    >>> with torch.no_grad(), population_model.adapted(genome.repeat(3, 1)):
    ...     logits = base.model(**tokens).logits
    >>> logits.shape[0]
    6
    """

    def __init__(self, model: PreTrainedModel, layout: GenomeLayout, *, dropout: float = 0.0) -> None:
        self.model = model
        self.layout = layout
        self.dropout = dropout
        self._factors: dict[str, tuple[Tensor, Tensor]] | None = None
        self._dropout = 0.0
        self._hooks = [
            model.get_submodule(module.name).register_forward_hook(self._population_layer(module))
            for module in layout.modules
        ]

    @contextmanager
    def adapted(self, genomes: Tensor, *, dropout: bool = False) -> Iterator[None]:
        """Run the model with `genomes` [n, genome_length] for the length of a `with` block.

        With `dropout`, the adapters' input dropout is on, as in PEFT's training mode.
        """
        before = self._factors, self._dropout
        self._factors = {
            module.name: (a.transpose(1, 2), b.transpose(1, 2)) for module, a, b in self.layout.factors(genomes)
        }
        self._dropout = self.dropout if dropout else 0.0
        try:
            yield
        finally:
            self._factors, self._dropout = before

    def detach(self) -> None:
        """Take the population layers off the base model for good."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _population_layer(self, module: AdaptedModule) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        def layer(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if self._factors is None:
                return None
            a, b = self._factors[module.name]
            x = inputs[0]
            if x.shape[0] % a.shape[0] or x.ndim < 3:
                raise ValueError(
                    f"{module.name}: a batch of shape {list(x.shape)} cannot be split into {a.shape[0]} individuals"
                )
            if self._dropout:
                x = F.dropout(x, self._dropout)
            # As in PEFT, the adapter computes in its own precision, whatever the base model's.
            low_rank = torch.bmm(x.reshape(a.shape[0], -1, module.in_features).to(a.dtype), a)
            grouped = output.reshape(a.shape[0], -1, module.out_features)
            if torch.is_grad_enabled() or output.dtype != a.dtype:
                added = torch.baddbmm(grouped.to(a.dtype), low_rank, b, alpha=module.scaling)
                return added.to(output.dtype).view_as(output)
            return grouped.baddbmm_(low_rank, b, alpha=module.scaling).view_as(output)

        return layer
