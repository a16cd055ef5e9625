"""Selection: which individuals become parents or stay. Fitness is maximised; NaN means failed and is never chosen."""

from collections.abc import Callable

import torch
from torch import Tensor

Selection = Callable[[Tensor, int, torch.Generator], Tensor]
"""(fitness [n], count, generator) -> the indices of `count` parents, int64 [count], repeats allowed."""


def truncation(fitness: Tensor, count: int, generator: torch.Generator, *, share: float = 0.5) -> Tensor:
    """Parents drawn uniformly, with repeats, from the best `share` of the individuals that did not fail.

    At least one is always eligible; ties at the border go to the lower index. `fitness` is [n], the result int64
    [count]. Raises ValueError when all failed, or unless 0 < share <= 1.

    >>> truncation(torch.tensor([1.0, float("nan"), 3.0, 2.0]), 3, torch.Generator(), share=0.1).tolist()
    [2, 2, 2]
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, found {share}")
    order = _best_first(fitness)
    eligible = order[: max(1, round(share * len(order)))]
    return eligible[_draw(len(eligible), (count,), generator).to(eligible.device)]


def tournament(fitness: Tensor, count: int, generator: torch.Generator, *, size: int = 2) -> Tensor:
    """Each parent is the fittest of `size` individuals drawn with repeats from those that did not fail.

    Binary by default (Goldberg and Deb, 1991); among equals the first drawn wins, which favours no index. `fitness` is
    [n], the result int64 [count]. Raises ValueError when all failed or when size is below 1.

    >>> tournament(torch.tensor([1.0, float("nan"), 3.0]), 2, torch.Generator().manual_seed(0), size=50).tolist()
    [2, 2]
    """
    if size < 1:
        raise ValueError(f"a tournament needs at least one contestant, found size {size}")
    order = _best_first(fitness)
    # Equal fitness must mean an equal chance, so contestants meet by fitness and not by place in the order.
    contestants = order[_draw(len(order), (count, size), generator).to(order.device)]
    winners = fitness[contestants].argmax(dim=1, keepdim=True)
    return contestants.gather(1, winners)[:, 0]


def rank(fitness: Tensor, count: int, generator: torch.Generator, *, pressure: float = 1.5) -> Tensor:
    """Linear ranking (Baker, 1985): the best individual is `pressure` times as likely as the average one, the worst
    2 - pressure times, the others linearly between by rank. Equals share the mean chance of their ranks.

    Depends on the order of the fitness values only, so one outlier cannot take over. `fitness` is [n], the result int64
    [count] drawn with repeats. Raises ValueError when all failed, or unless 1 <= pressure <= 2.

    >>> rank(torch.tensor([float("nan"), 3.0]), 2, torch.Generator()).tolist()
    [1, 1]
    """
    if not 1 <= pressure <= 2:
        raise ValueError(f"pressure must lie between 1 and 2, found {pressure}")
    order = _best_first(fitness)
    chances = torch.linspace(pressure, 2 - pressure, len(order), dtype=torch.float64, device=order.device)
    equal = (fitness[order, None] == fitness[order]).double()
    chances = equal @ chances / equal.sum(dim=1)
    edges = chances.cumsum(0)
    points = torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64).to(edges.device)
    return order[torch.searchsorted(edges, points * edges[-1], right=True)]


def elites(fitness: Tensor, count: int) -> Tensor:
    """The indices of the `count` fittest, best first; fewer when fewer did not fail. Equals keep their order.

    `fitness` is [n], the result int64. Raises ValueError when all failed.

    >>> elites(torch.tensor([2.0, 5.0, float("nan"), 5.0]), 2).tolist()
    [1, 3]
    """
    return _best_first(fitness)[:count]


def _best_first(fitness: Tensor) -> Tensor:
    """The indices of the individuals that did not fail, best first, equals by index."""
    if fitness.ndim != 1:
        raise ValueError(f"fitness must be [n], found {list(fitness.shape)}")
    order = fitness.argsort(descending=True, stable=True)
    order = order[~fitness[order].isnan()]
    if len(order) == 0:
        raise ValueError(f"no individual can be chosen: all {len(fitness)} have failed (their fitness is NaN)")
    return order


def _draw(bound: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(bound, shape, generator=generator, device=generator.device)
