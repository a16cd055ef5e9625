"""The adapted layers: many LoRA adapters of one frozen base model in one forward pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evolora.engine.eager.dropout import Dropout, dropped
from evolora.errors import InputError
from evolora.models.base import module_tree
from evolora.models.genome import AdaptedModule, GenomeLayout


@dataclass(frozen=True)
class Routing:
    """Which genome each row of a batch belongs to, when the groups are no longer equal.

    `individuals` [live] are those with rows left; row i of the batch is row `slots[i]` of their groups, each padded to
    `group` rows. `owners` [rows] are the rows' genomes, ascending.
    """

    owners: Tensor
    individuals: Tensor
    slots: Tensor
    group: int

    @classmethod
    def of(cls, owners: Tensor) -> "Routing":
        """From the genome of each row, [rows], ascending."""
        individuals, places, counts = owners.unique_consecutive(return_inverse=True, return_counts=True)
        group = int(counts.max())
        first = counts.cumsum(0) - counts
        within = torch.arange(len(owners), device=owners.device) - first[places]
        return cls(owners, individuals, places * group + within, group)

    def to(self, device: torch.device) -> "Routing":
        """The same on `device`."""
        return Routing(self.owners.to(device), self.individuals.to(device), self.slots.to(device), self.group)


class LoraLayers:
    """The adapted layers of a module tree, as forward hooks that read views of a matrix of genomes.

    Inside `adapted(genomes)`, with genomes [n, genome_length], a batch of n * m rows is read as n groups of m rows, in
    order: group i runs with genome i. Each adapted layer adds `scaling * (x @ A.T) @ B.T` for all groups by two batched
    matrix products. Outside, the tree is the untouched base. Gradients flow to `genomes` if it requires them; rows do
    not mix. The tree is an engine's own (`module_tree`).
    """

    def __init__(self, model: PreTrainedModel, layout: GenomeLayout, *, layer: "type[LoraLayer] | None" = None) -> None:
        self.model = model
        self.layout = layout
        # On a CPU adapters stay in float32, as PEFT's do.
        self._in_bfloat16 = model.device.type != "cpu" and model.dtype == torch.bfloat16
        self.genomes: Tensor | None = None
        self.factors: dict[str, tuple[Tensor, Tensor]] = {}
        self.routing: Routing | None = None
        self.dropout: Dropout | None = None
        self.batch: torch.Size | None = None  # [rows, length] of the pass that is under way
        self._hooks = [
            model.get_submodule(module.name).register_forward_hook((layer or LoraLayer)(self, module, index))
            for index, module in enumerate(layout.modules)
        ]
        self._batches = model.register_forward_pre_hook(BatchShape(self), with_kwargs=True)

    @contextmanager
    def adapted(self, genomes: Tensor | None) -> Iterator[None]:
        """Run the tree with `genomes` [n, genome_length] for the length of a `with` block; None is the base."""
        if self.genomes is not None:
            raise RuntimeError("an engine runs one call at a time; `replica()` gives another for another thread")
        if genomes is None:
            yield
            return
        # One cast of all, from the float32 that optimisers step on; a gradient comes back in float32.
        weights = genomes.to(torch.bfloat16) if self._in_bfloat16 else genomes
        self.factors = {
            module.name: (a.transpose(1, 2), b.transpose(1, 2)) for module, a, b in self.layout.factors(weights)
        }
        self.genomes = genomes
        try:
            yield
        finally:
            self.genomes, self.factors, self.routing, self.dropout = None, {}, None, None

    def route(self, owners: Tensor | None) -> None:
        """Within `adapted`: say which genome each row of the next batches belongs to, [rows], ascending. None means
        equal groups again."""
        self.routing = None if owners is None else Routing.of(owners.cpu()).to(self.model.device)

    def drop(self, share: float, keys: Tensor) -> None:
        """Within `adapted`: let this share of the adapters' input be dropped, as in PEFT's training mode, in passes
        over tokens with these keys, [rows, length]."""
        self.dropout = Dropout.of(share, keys, layers=len(self.layout.modules))

    @property
    def individuals(self) -> int:
        """How many it runs with now: 0 outside `adapted`."""
        return 0 if self.genomes is None else len(self.genomes)

    def detach(self) -> None:
        """Take the hooks off the tree for good."""
        for hook in [*self._hooks, self._batches]:
            hook.remove()
        self._hooks = []

    def bare_copy(self) -> PreTrainedModel:
        """Another tree of the same modules, without these hooks."""
        model = module_tree(self.model)
        for module, hook in zip(self.layout.modules, self._hooks, strict=True):
            del model.get_submodule(module.name)._forward_hooks[hook.id]  # a copied hook is still the original's
        del model._forward_pre_hooks[self._batches.id], model._forward_pre_hooks_with_kwargs[self._batches.id]
        return model


class BatchShape:
    """A hook before each pass, which looks at the shape of its tokens."""

    def __init__(self, layers: LoraLayers) -> None:
        self.layers = layers

    def __deepcopy__(self, _: dict[int, Any]) -> "BatchShape":
        return self

    def __call__(self, _: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.layers.batch = (named["input_ids"] if "input_ids" in named else arguments[0]).shape


class LoraLayer:
    """The forward hook of one adapted layer, the `index`-th."""

    def __init__(self, layers: LoraLayers, module: AdaptedModule, index: int) -> None:
        self.layers = layers
        self.module = module
        self.index = index

    def __deepcopy__(self, _: dict[int, Any]) -> "LoraLayer":
        return self  # of a copied tree the hook is still the original's, as functions are

    @property
    def active(self) -> bool:
        """Whether it adds anything now."""
        return self.layers.individuals > 0

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not self.active:
            return None
        x = inputs[0]
        if x.ndim > 2:
            return self._add(output, x)
        # Some models flatten a batch: its tokens are in the rows' order, if they are all here.
        batch = self.layers.batch
        if batch is None or len(x) != batch.numel():
            raise InputError(
                f"--target-modules: {self.module.name} gets only some of a batch's tokens, expected layers that get all"
            )
        added = self._add(output.unflatten(0, batch), x.unflatten(0, batch))
        return None if added is None else added.flatten(0, 1)

    def _add(self, output: Tensor, x: Tensor) -> Tensor | None:
        """The output [rows, ...] with what the rows' adapters add; None where the output itself has changed."""
        a, b = self.layers.factors[self.module.name]
        routing = self.layers.routing
        if routing is not None:
            return _add_routed(output, self._input(x, a), a, b, self.module.scaling, routing)
        if x.shape[0] % a.shape[0]:
            raise ValueError(
                f"{self.module.name}: a batch of shape {list(x.shape)} cannot be split into {a.shape[0]} individuals"
            )
        return self._add_groups(output, x, a, b)

    def _input(self, x: Tensor, a: Tensor) -> Tensor:
        """The adapter's input: of x what is not dropped, and, as in PEFT, in the adapter's own precision."""
        if self.layers.dropout is not None:
            x = self._dropped(x, self.layers.dropout)
        return x if x.dtype == a.dtype else x.to(a.dtype)

    def _dropped(self, x: Tensor, dropout: Dropout) -> Tensor:
        return dropped(x, dropout.share, dropout.of_layer(self.index, x.shape[:-1]))

    def _add_groups(self, output: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Tensor | None:
        """The output with what the adapters of equal groups add; None where the output itself has changed."""
        module, x = self.module, self._input(x, a)
        low_rank = _low_rank(x.reshape(a.shape[0], -1, module.in_features), a)
        grouped = output.reshape(a.shape[0], -1, module.out_features)
        if torch.is_grad_enabled() or output.dtype != a.dtype or not output.is_contiguous():
            wide = torch.promote_types(output.dtype, a.dtype)  # of wide logits, or of an adapter wider than its layer
            added = torch.baddbmm(grouped.to(wide), low_rank.to(wide), b.to(wide), alpha=module.scaling)
            return added.to(output.dtype).view_as(output)
        grouped.baddbmm_(low_rank, b, alpha=module.scaling)
        return None


def _low_rank(x: Tensor, a: Tensor) -> Tensor:
    """x [n, rows, in] times a [n, in, rank]. Of many rows the transposed product is up to twice as fast, but its
    gradient comes transposed, which slows down all that follows."""
    if x.shape[1] < 32 or torch.is_grad_enabled():
        return torch.bmm(x, a)
    return torch.bmm(a.transpose(1, 2), x.transpose(1, 2)).transpose(1, 2)


def _add_routed(output: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float, routing: Routing) -> Tensor:
    """The adapters' part for rows in groups of different sizes: gathered into equal groups, and back."""
    if len(routing.individuals) < len(a):
        a, b = a[routing.individuals], b[routing.individuals]
    groups = x.new_zeros(len(a) * routing.group, *x.shape[1:])
    groups[routing.slots] = x
    low_rank = _low_rank(groups.reshape(len(a), -1, x.shape[-1]), a)
    added = torch.bmm(low_rank, b).view(-1, *output.shape[1:])[routing.slots]
    return torch.add(output, added.to(output.dtype), alpha=scaling)
