"""The genome: one individual's LoRA weights as a row of floats, and the layout that says which slice is which."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AdaptedModule:
    """One adapted layer of the base model and where its two LoRA factors lie in a genome.

    A lies at `a_offset`, row-major as PEFT stores it, [rank, in_features]; B at `b_offset`, [out_features, rank].
    The layer adds `scaling * B @ A @ x` to its output (Hu et al., 2021, arXiv 2106.09685).
    """

    name: str  # the module's path in the base model
    a_key: str  # PEFT's state-dict keys
    b_key: str
    in_features: int
    out_features: int
    rank: int
    scaling: float
    a_offset: int
    b_offset: int

    @property
    def a_size(self) -> int:
        return self.rank * self.in_features

    @property
    def b_size(self) -> int:
        return self.out_features * self.rank


@dataclass(frozen=True)
class GenomeLayout:
    """Which slice of a genome is which LoRA tensor: A and B of each module in turn, without gaps.

    Two genomes of one layout can be mixed element by element.

    >>> layout = GenomeLayout((AdaptedModule("layer", "layer.A", "layer.B", 3, 4, 2, 2.0, 0, 6),))
    >>> genome = torch.arange(14.0)
    >>> state = layout.to_state_dict(genome)
    >>> {key: list(tensor.shape) for key, tensor in state.items()}
    {'layer.A': [2, 3], 'layer.B': [4, 2]}
    >>> torch.equal(layout.from_state_dict(state), genome)
    True
    """

    modules: tuple[AdaptedModule, ...]

    @property
    def genome_length(self) -> int:
        return sum(module.a_size + module.b_size for module in self.modules)

    def factors(self, genomes: Tensor) -> Iterator[tuple[AdaptedModule, Tensor, Tensor]]:
        """Each adapted module with *views* of its factors: A [n, rank, in_features], B [n, out_features, rank].

        `genomes` is [n, genome_length]. Writing to a view writes to the genomes.
        """
        self.check(genomes)
        # One split, not a slice each: its gradient is one concatenation instead of a full-length sum per tensor.
        sizes = [size for module in self.modules for size in (module.a_size, module.b_size)]
        pieces = genomes.split(sizes, dim=1)
        for index, module in enumerate(self.modules):
            a, b = pieces[2 * index], pieces[2 * index + 1]
            yield (
                module,
                a.unflatten(1, (module.rank, module.in_features)),
                b.unflatten(1, (module.out_features, module.rank)),
            )

    def check(self, genomes: Tensor) -> None:
        """Raise ValueError unless `genomes` is [n, genome_length]."""
        if genomes.ndim != 2 or genomes.shape[1] != self.genome_length:
            raise ValueError(f"genomes must be [n, {self.genome_length}], found {list(genomes.shape)}")

    def to_state_dict(self, genome: Tensor) -> dict[str, Tensor]:
        """The genome [genome_length] as a PEFT state dict, the keys of `get_peft_model_state_dict`. Exact."""
        state: dict[str, Tensor] = {}
        for module, a, b in self.factors(genome.unsqueeze(0)):
            state[module.a_key] = a[0].clone()
            state[module.b_key] = b[0].clone()
        return state

    def from_state_dict(self, state: Mapping[str, Tensor]) -> Tensor:
        """The PEFT state dict as a genome, float32 [genome_length]. Exact.

        Raises ValueError when a key is missing or unknown, or a shape differs: an adapter that does not fit must never
        run as the base model in silence.
        """
        expected = {key for module in self.modules for key in (module.a_key, module.b_key)}
        if unmatched := sorted(expected.symmetric_difference(state)):
            raise ValueError(f"the adapter does not fit the layout: {unmatched[0]} is on one side only")
        genome = torch.empty(1, self.genome_length, dtype=torch.float32)
        for module, a, b in self.factors(genome):
            for view, key in ((a[0], module.a_key), (b[0], module.b_key)):
                if view.shape != state[key].shape:
                    raise ValueError(
                        f"the adapter does not fit the layout: {key} is {list(state[key].shape)}, "
                        f"expected {list(view.shape)}"
                    )
                view.copy_(state[key])
        return genome[0]
