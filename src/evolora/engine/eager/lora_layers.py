"""The population layers: many LoRA adapters of one frozen base model in one forward pass."""

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evolora.engine.cpu.dropout import Dropped, dropped
from evolora.engine.cpu.jit import in_float32, takes
from evolora.engine.cpu.lora import Adapter, AdapterHook, GroupAdapter
from evolora.engine.cpu.lora_gradient import add_adapters, takes_adapters
from evolora.models.cost import ModelSize
from evolora.models.genome import AdaptedModule, GenomeLayout

# Who runs on a base model now: generation tells it which rows of the batch are left.
_ADAPTED: "WeakKeyDictionary[nn.Module, PopulationModel]" = WeakKeyDictionary()

Result = TypeVar("Result")


@dataclass(frozen=True)
class Routing:
    """Which individual each row of a batch belongs to, when the groups are no longer equal.

    `individuals` [live] are those with rows left; row i of the batch is row `slots[i]` of their groups, each padded to
    `group` rows. `owners` [rows] are the rows' individuals, ascending.
    """

    owners: Tensor
    individuals: Tensor
    slots: Tensor
    group: int

    @classmethod
    def of(cls, owners: Tensor) -> "Routing":
        """From the individual of each row, [rows], ascending."""
        individuals, places, counts = owners.unique_consecutive(return_inverse=True, return_counts=True)
        group = int(counts.max())
        first = counts.cumsum(0) - counts
        within = torch.arange(len(owners), device=owners.device) - first[places]
        return cls(owners, individuals, places * group + within, group)


class PopulationModel:
    """A base model whose adapted layers read views of a matrix of genomes.

    Inside `adapted(genomes)`, with genomes [n, genome_length], a batch of n * m rows is read as n groups of m rows, in
    order: group i runs with genome i. Each adapted layer adds `scaling * (x @ A.T) @ B.T` for all groups by two batched
    matrix products. Outside, the model is the untouched base. Gradients flow to `genomes` if it requires them; rows do
    not mix.

    The layers are forward hooks, so the base keeps its class and its modules, and anything that runs on it runs on the
    population. `threads` is into how many parts `evolora.engine.split` may split a batch.

    >>> from evolora.models.lora import BUNDLED_MODEL, load_base, lora_config, lora_layout
    >>> base = load_base(BUNDLED_MODEL)
    >>> layout, genome = lora_layout(base.model, lora_config(base.model), seed=0)
    >>> population_model = PopulationModel(base.model, layout)
    >>> tokens = base.tokenizer(["4 + 3 ="] * 6, return_tensors="pt")  # two rows for each of three individuals
    >>> with torch.no_grad(), population_model.adapted(genome.repeat(3, 1)):
    ...     logits = base.model(**tokens).logits
    >>> logits.shape[0]
    6
    """

    def __init__(self, model: PreTrainedModel, layout: GenomeLayout, *, dropout: float = 0.0, threads: int = 1) -> None:
        self.model = model
        self.layout = layout
        self.dropout = dropout
        self.threads = threads
        self.size = ModelSize.of(model, adapter=layout.genome_length)
        self._genomes: Tensor | None = None
        self._factors: dict[str, tuple[Tensor, Tensor]] = {}
        self._routing: Routing | None = None
        self._generator: torch.Generator | None = None
        self._replicas = [self]
        self._pool: ThreadPoolExecutor | None = None
        self.tape_rooms: list[Any] = []  # of a tape that was read: see `evolora.engine.cpu.activation_store`
        self._hooks = [
            model.get_submodule(module.name).register_forward_hook(PopulationLayer(self, module))
            for module in layout.modules
        ]

    @contextmanager
    def adapted(self, genomes: Tensor, *, dropout_seed: int | None = None) -> Iterator[None]:
        """Run the model with `genomes` [n, genome_length] for the length of a `with` block.

        With a `dropout_seed`, the adapters' input dropout is on, as in PEFT's training mode, and drawn from that seed.
        """
        factors = {module.name: (a.transpose(1, 2), b.transpose(1, 2)) for module, a, b in self.layout.factors(genomes)}
        before = self._genomes, self._factors, self._routing, self._generator, _ADAPTED.get(self.model)
        self._genomes, self._factors = genomes, factors
        self._routing = None
        self._generator = None
        if dropout_seed is not None and self.dropout:
            self._generator = torch.Generator(self.model.device).manual_seed(dropout_seed)
        _ADAPTED[self.model] = self
        try:
            yield
        finally:
            self._genomes, self._factors, self._routing, self._generator, outer = before
            _ADAPTED.pop(self.model)
            if outer is not None:
                _ADAPTED[self.model] = outer

    def route(self, owners: Tensor | None) -> None:
        """Within `adapted`: say which individual each row of the next batches belongs to, [rows], ascending. None means
        equal groups again."""
        self._routing = None if owners is None else Routing.of(owners)

    @property
    def individuals(self) -> int:
        """How many it runs with now: 0 outside `adapted`."""
        return 0 if self._genomes is None else len(self._genomes)

    def owners(self, rows: int) -> Any:
        """The individual of each of so many rows on a CPU, an int64 array; None where they cannot be split."""
        if self._routing is not None:
            return self._routing.owners.numpy() if len(self._routing.owners) == rows else None
        each, left = divmod(rows, self.individuals)
        return None if left else np.arange(self.individuals).repeat(each)

    def detach(self) -> None:
        """Take the population layers off the base model for good, and end the threads."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for replica in self._replicas[1:]:
            replica.detach()
        if self._pool is not None:
            self._pool.shutdown()

    def side_by_side(self, run: Callable[[int, "PopulationModel"], Result], count: int) -> list[Result]:
        """`run(i, replica)` for i < `count`, all at once: each in its own thread, with the model's own modules or a
        replica's, and for its operations an equal share of the caller's threads."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="evolora")
        while len(self._replicas) < count:
            self._replicas.append(self._replica())
        each = max(1, torch.get_num_threads() // count)

        def run_part(index: int) -> Result:
            torch.set_num_threads(each)  # of the operations that this thread starts
            return run(index, self._replicas[index])

        futures = [self._pool.submit(run_part, index) for index in range(count)]
        try:
            return [future.result() for future in futures]
        finally:
            wait(futures)  # whatever has happened, nothing may be left running on a replica

    def _replica(self) -> "PopulationModel":
        """The same with modules of its own, which share the weights."""
        shared = [*self.model.parameters(), *self.model.buffers()]
        model = copy.deepcopy(self.model, {id(tensor): tensor for tensor in shared})
        for module, hook in zip(self.layout.modules, self._hooks, strict=True):
            del model.get_submodule(module.name)._forward_hooks[hook.id]  # a copied hook is still the original's
        return PopulationModel(model, self.layout, dropout=self.dropout)


class PopulationLayer(AdapterHook):
    """The forward hook of one adapted layer."""

    def __init__(self, population_model: PopulationModel, module: AdaptedModule) -> None:
        self.population_model = population_model
        self.module = module

    def __deepcopy__(self, _: dict[int, Any]) -> "PopulationLayer":
        return self  # of a copied model the hook is still the original's, as functions are

    @property
    def active(self) -> bool:
        return self.population_model.individuals > 0

    def adapter(self, rows: int) -> Adapter | None:
        population, module = self.population_model, self.module
        genomes = population._genomes
        if genomes is None or population._generator is not None or not (takes(genomes) and genomes.is_contiguous()):
            return None
        owners = population.owners(rows)
        if owners is None:
            return None
        scaling = np.float32(module.scaling)
        return Adapter(genomes.detach().numpy(), owners, module.a_offset, module.b_offset, module.rank, scaling)

    def groups(self, rows: int) -> GroupAdapter | None:
        population, module = self.population_model, self.module
        genomes = population._genomes
        if genomes is None or population._routing is not None or rows % len(genomes):
            return None
        if not (in_float32(genomes) and genomes.is_contiguous()):
            return None
        own = module.a_offset, module.b_offset, module.rank, module.scaling
        return GroupAdapter(genomes, *own, population.dropout, population._generator)

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        population, module = self.population_model, self.module
        if not self.active:
            return None
        a, b = population._factors[module.name]
        x, routing = inputs[0], population._routing
        if x.ndim < 3 or (routing is None and x.shape[0] % a.shape[0]):
            raise ValueError(
                f"{module.name}: a batch of shape {list(x.shape)} cannot be split into {a.shape[0]} individuals"
            )
        generator, in_order = population._generator, routing is None and takes_adapters(output, x, a)
        if generator is not None and not in_order:
            x = dropped(x, population.dropout, generator)
        # As in PEFT, the adapter computes in its own precision, whatever the base model's.
        if x.dtype != a.dtype:
            x = x.to(a.dtype)
        if routing is not None:
            return _add_routed(output, x, a, b, module.scaling, routing)
        if in_order:
            which = Dropped.drawn(population.dropout, generator)
            return add_adapters(output, x, a.transpose(1, 2), b.transpose(1, 2), module.scaling, which)
        low_rank = _low_rank(x.reshape(a.shape[0], -1, module.in_features), a)
        grouped = output.reshape(a.shape[0], -1, module.out_features)
        if torch.is_grad_enabled() or output.dtype != a.dtype or not output.is_contiguous():
            added = torch.baddbmm(grouped.to(a.dtype), low_rank, b, alpha=module.scaling)
            return added.to(output.dtype).view_as(output)
        grouped.baddbmm_(low_rank, b, alpha=module.scaling)
        return None  # the output itself has changed


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


def population_on(model: nn.Module) -> PopulationModel | None:
    """The population that `model` runs with now, if it runs with one."""
    return _ADAPTED.get(model)
