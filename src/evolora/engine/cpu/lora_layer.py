"""The adapted layer on a CPU: by compiled functions where these can take its rows."""

from typing import Any

import numpy as np
from torch import Tensor

from evolora.engine.cpu.dropout import NOT_DROPPED, Dropped, dropped
from evolora.engine.cpu.jit import in_float32, takes
from evolora.engine.cpu.lora import Adapter, AdapterHook, GroupAdapter
from evolora.engine.cpu.lora_gradient import add_adapters, takes_adapters
from evolora.engine.eager.dropout import Dropout
from evolora.engine.eager.lora_layers import LoraLayer


class KernelLoraLayer(LoraLayer, AdapterHook):
    """A hook whose part compiled passes may take over."""

    def adapter(self, rows: int) -> Adapter | None:
        layers, module = self.layers, self.module
        genomes = layers.genomes
        if genomes is None or layers.dropout is not None or not (takes(genomes) and genomes.is_contiguous()):
            return None
        owners = self._owners(rows)
        if owners is None:
            return None
        scaling = np.float32(module.scaling)
        return Adapter(genomes.detach().numpy(), owners, module.a_offset, module.b_offset, module.rank, scaling)

    def groups(self, rows: int) -> GroupAdapter | None:
        layers, module = self.layers, self.module
        genomes = layers.genomes
        if genomes is None or layers.routing is not None or rows % len(genomes):
            return None
        if not (in_float32(genomes) and genomes.is_contiguous()):
            return None
        own = module.a_offset, module.b_offset, module.rank, module.scaling
        dropout = layers.dropout
        which = NOT_DROPPED if dropout is None else Dropped.of(dropout.share, dropout.starts[self.index])
        return GroupAdapter(genomes, *own, which)

    def _owners(self, rows: int) -> Any:
        """The genome of each of so many rows, an int64 array; None where they cannot be split."""
        if self.layers.routing is not None:
            owners = self.layers.routing.owners
            return owners.numpy() if len(owners) == rows else None
        each, left = divmod(rows, self.layers.individuals)
        return None if left else np.arange(self.layers.individuals).repeat(each)

    def _dropped(self, x: Tensor, dropout: Dropout) -> Tensor:
        return dropped(x, dropout.share, dropout.of_layer(self.index, x.shape[:-1]))

    def _add_groups(self, output: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Tensor | None:
        if not takes_adapters(output, x, a):
            return super()._add_groups(output, x, a, b)
        dropout = self.layers.dropout
        which = NOT_DROPPED
        if dropout is not None:
            which = Dropped.of(dropout.share, dropout.of_layer(self.index, x.shape[:-1]))
        return add_adapters(output, x, a.transpose(1, 2), b.transpose(1, 2), self.module.scaling, which)


class PlainLoraLayer(KernelLoraLayer):
    """By torch's products and dropout, where no compiled pass takes it over."""

    _dropped = LoraLayer._dropped
    _add_groups = LoraLayer._add_groups
