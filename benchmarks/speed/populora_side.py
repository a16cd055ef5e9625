"""populora 0.4.5 over the same model, adapters and rows.

populora adapts `nn.Linear` and keeps a cache of tensors, tuples and dictionaries. So GPT-2's Conv1D become Linear with
the transposed weights, and a thin module turns its tuple into transformers' cache and back, without copying.
"""

from typing import cast

import torch
from populora import Population
from populora.generate import generate as populora_generate
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.pytorch_utils import Conv1D

from speed.sides import Work
from speed.subjects import PAD

# Keys and values of each layer; the mask [rows, length]; the position of the last token [rows].
State = tuple[tuple[tuple[Tensor, Tensor], ...], Tensor, Tensor]


def with_linear_layers(model: PreTrainedModel) -> PreTrainedModel:
    """`model` with its Conv1D replaced, in place, by Linear layers that compute the same."""
    for path, layer in list(model.named_modules()):
        if isinstance(layer, Conv1D):
            linear = nn.Linear(layer.weight.shape[0], layer.weight.shape[1])
            linear.weight = nn.Parameter(layer.weight.t().contiguous(), requires_grad=False)
            linear.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
            model.set_submodule(path, linear)
    return model


class TupleCached(nn.Module):
    """A causal LM that takes and returns its cache as a tuple, which populora slices when rows finish.

    The attention mask and the positions travel in the tuple, so that they follow the rows.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, *, cache: State | None, return_cache: bool) -> tuple[Tensor, State]:
        assert return_cache
        kept = DynamicCache()
        if cache is None:
            mask = (ids != PAD).long()  # no prompt holds the padding token
            positions = (mask.cumsum(1) - 1).clamp(min=0)
        else:
            layers, mask, last = cache
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            positions = (last + 1)[:, None]
            kept.layers = [_filled_layer(keys, values) for keys, values in layers]
        logits = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=kept,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits, (tuple((layer.keys, layer.values) for layer in kept.layers), mask, positions[:, -1])


def _filled_layer(keys: Tensor, values: Tensor) -> DynamicLayer:
    # The constructor that takes data would copy it once a step.
    layer = DynamicLayer()
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values
    return layer


class Populora:
    """`populora.generate`, with its cache, its routing cache and its dropping of finished rows."""

    def __init__(self, work: Work) -> None:
        self.work = work
        layout = work.subject.layout
        self.population = Population(
            TupleCached(with_linear_layers(work.subject.stock())),
            pop_size=work.individuals,
            low_rank=layout.modules[0].rank,
            lora_targets=[f"model.{module.name}" for module in layout.modules],
            seed=0,
        )
        for module, a, b in layout.factors(work.genomes):
            key = f"model.{module.name}".replace(".", "_")
            self.population.weight_down[key].data.copy_(a.transpose(1, 2))
            # populora has no scaling: it goes into the second factor.
            self.population.weight_up[key].data.copy_(b * module.scaling)
        self.population.eval()
        self.ids = work.rows.ids
        self.individuals = torch.arange(work.individuals).repeat_interleave(len(work.prompts))
        self.ends = torch.tensor(work.ends)

    def __call__(self) -> Tensor:
        with self.population.routing_cache():
            written = populora_generate(
                self.population,
                self.ids,
                individuals=self.individuals,
                max_len=self.ids.shape[1] + self.work.new_tokens,
                stop_fn=self._stop,
                cache_last_token=True,
                cache_kwargs={"return_cache": True},
                # The cache is not an input to be repeated for each individual.
                ignore_args_kwargs=("cache",),
            )
        return cast(Tensor, written)[:, self.ids.shape[1] :]

    def _stop(self, tokens: Tensor, _logits: Tensor, _step: int) -> Tensor:
        return torch.isin(tokens, self.ends)
