"""Adam on rows of different ages: Kingma and Ba, 2015, arXiv 1412.6980."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

FIRST, SECOND, STEPS = "adam.first", "adam.second", "adam.steps"


class RowAdam:
    """Adam on the rows of a matrix, each with a step count and a learning rate of its own.

    A row's step is that of `torch.optim.Adam` on the row alone, to the last bit. A row may start with the moments and
    the step count of an earlier optimiser, and a row that does not step keeps its moments as they are.

    `rows` [k, n] are changed in place; `lr` [k]; `states` has what `state` gave for each row, or an empty mapping
    for a row that begins.

    >>> rows = torch.tensor([[1.0, -1.0], [5.0, 5.0]])
    >>> adam = RowAdam(rows, torch.tensor([0.1, 0.2]), [{}, {}])
    >>> adam.step(torch.tensor([[2.0, -3.0], [1.0, 1.0]]), torch.tensor([True, False]))
    tensor([True, True])
    >>> rows
    tensor([[ 0.9000, -0.9000],
            [ 5.0000,  5.0000]])
    """

    def __init__(
        self,
        rows: Tensor,
        lr: Tensor,
        states: Sequence[Mapping[str, Tensor]],
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
    ) -> None:
        if len(states) != len(rows) or len(lr) != len(rows):
            raise ValueError(f"{len(rows)} rows with {len(lr)} learning rates and {len(states)} states")
        self.rows = rows
        self.lr: list[float] = lr.tolist()
        self.betas = betas
        self.epsilon = epsilon
        nothing = torch.zeros_like(rows[0])
        self.first = torch.stack([state[FIRST].to(rows) if state else nothing for state in states])
        self.second = torch.stack([state[SECOND].to(rows) if state else nothing for state in states])
        self.steps = [int(state[STEPS]) if state else 0 for state in states]

    @torch.no_grad()
    def step(self, gradients: Tensor, active: Tensor) -> Tensor:
        """One step of the rows that are `active` [k] against their `gradients` [k, n].

        Returns which rows are sound, [k]: a row whose step would not be finite stays as it was, and so do its moments.
        """
        beta1, beta2 = self.betas
        steps = [step + 1 for step in self.steps]
        # In Python's doubles, as torch has it, and rounded once.
        sizes = [-lr / (1 - beta1**step) for lr, step in zip(self.lr, steps, strict=True)]
        roots = [(1 - beta2**step) ** 0.5 for step in steps]
        size, root = (torch.tensor(each, dtype=torch.float64).to(self.rows)[:, None] for each in (sizes, roots))
        first = self.first.lerp(gradients, 1 - beta1)
        second = (self.second * beta2).addcmul_(gradients, gradients, value=1 - beta2)
        rows = self.rows + size * first / (second.sqrt() / root).add_(self.epsilon)
        sound = rows.isfinite().all(dim=1) & second.isfinite().all(dim=1)
        stepping = active & sound
        self.rows.copy_(torch.where(stepping[:, None], rows, self.rows))
        self.first = torch.where(stepping[:, None], first, self.first)
        self.second = torch.where(stepping[:, None], second, self.second)
        self.steps = [new if each else old for new, old, each in zip(steps, self.steps, stepping.tolist(), strict=True)]
        return sound | ~active

    def take_back(self, rows: Tensor, which: Tensor) -> None:
        """Let the rows that are true in `which` [k] be those of `rows` [k, n] again, and begin anew."""
        with torch.no_grad():
            self.rows.copy_(torch.where(which[:, None], rows, self.rows))
        self.first = self.first.masked_fill(which[:, None], 0.0)
        self.second = self.second.masked_fill(which[:, None], 0.0)
        self.steps = [0 if each else step for step, each in zip(self.steps, which.tolist(), strict=True)]

    def state(self, row: int) -> dict[str, Tensor]:
        """What a row's next optimiser needs to go on: the moments and the number of steps."""
        return {
            FIRST: self.first[row].clone(),
            SECOND: self.second[row].clone(),
            STEPS: torch.tensor(self.steps[row]),
        }


def clip_rows(gradients: Tensor, max_norm: float) -> Tensor:
    """Scale each row of `gradients` [k, n], in place, to at most this norm of its own; the norms before, [k].

    >>> gradients = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    >>> clip_rows(gradients, 1.0), gradients
    (tensor([5.0000, 0.5000]), tensor([[0.6000, 0.8000],
            [0.3000, 0.4000]]))
    """
    norms: Tensor = gradients.norm(dim=1)
    gradients *= (max_norm / (norms + 1e-6)).clamp(max=1.0)[:, None]
    return norms
