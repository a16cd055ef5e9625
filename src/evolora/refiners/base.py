"""What a refiner is: reinforcement learning on some individuals' own genomes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from evolora.cost import Costs
from evolora.task import Example


@dataclass(frozen=True)
class Refinement:
    """What came of refining k individuals: their new `genomes` [k, genome_length], row by row; `stats`, a dictionary
    of the metrics in docs/metrics.md for each; the `costs` of rollouts and updates; and on how many completions the
    reward `failed`."""

    genomes: Tensor
    stats: list[dict[str, float]]
    costs: Costs
    failed: int


class Refiner(Protocol):
    """Improves individuals by reinforcement learning. `name` marks what it made, in metrics and lineage."""

    name: str

    def refine(self, genomes: Tensor, examples: Sequence[Example], *, key: Sequence[tuple[int, int]]) -> Refinement:
        """Refine `genomes` [k, genome_length], which stay as they are, on the prompts of `examples`.

        `key` names each row's draws: (generation, individual id).
        """
        ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...
