"""Crossover: two parents' rows make a child's row. Both parents must share one layout."""

from collections.abc import Callable

import torch
from torch import Tensor

from evolora.genome import GenomeLayout

Crossover = Callable[[Tensor, Tensor, GenomeLayout, torch.Generator], Tensor]
"""(first [genome_length], second [genome_length], layout, generator) -> the child [genome_length], a new tensor."""

# The least singular value of a blended A, as a share of the first parent's root mean square singular value.
_LEAST_SHARE = 0.1


def uniform(
    first: Tensor,
    second: Tensor,
    layout: GenomeLayout,
    generator: torch.Generator,
    *,
    probability: float = 0.5,
) -> Tensor:
    """Each entry from the first parent with `probability`, else from the second (Syswerda, 1989).

    Meaningful while both parents are close to a common ancestor: LoRA's factors are only defined up to a change of
    basis, and entries of unrelated bases do not mix. Raises ValueError when a parent is not [genome_length].

    >>> from evolora.genome import AdaptedModule
    >>> layout = GenomeLayout((AdaptedModule("q", "q.A", "q.B", 3, 2, 1, 1.0, 0, 3),))
    >>> child = uniform(torch.zeros(5), torch.ones(5), layout, torch.Generator().manual_seed(0))
    >>> set(child.tolist()) <= {0.0, 1.0}
    True
    """
    _check(first, second, layout)
    return torch.where(_coins(layout.genome_length, generator, probability).to(first.device), first, second)


def module(
    first: Tensor,
    second: Tensor,
    layout: GenomeLayout,
    generator: torch.Generator,
    *,
    probability: float = 0.5,
) -> Tensor:
    """Each adapted layer's whole (A, B) pair from one parent, so that every layer's product stays one that was tried.

    Shapes and errors as in `uniform`.

    >>> from evolora.genome import AdaptedModule
    >>> layout = GenomeLayout((AdaptedModule("q", "q.A", "q.B", 3, 2, 1, 1.0, 0, 3),))
    >>> module(torch.zeros(5), torch.ones(5), layout, torch.Generator().manual_seed(1)).unique().numel()
    1
    """
    _check(first, second, layout)
    child = second.clone()
    coins = _coins(len(layout.modules), generator, probability).tolist()
    pairs = zip(layout.factors(child[None]), layout.factors(first[None]), coins, strict=True)
    for (_, a, b), (_, first_a, first_b), from_first in pairs:
        if from_first:
            a.copy_(first_a)
            b.copy_(first_b)
    return child


def rank(
    first: Tensor,
    second: Tensor,
    layout: GenomeLayout,
    generator: torch.Generator,
    *,
    probability: float = 0.5,
) -> Tensor:
    """Each rank component, row i of A with column i of B, from one parent: the child's product is a sum of rank-one
    terms that each worked in a parent.

    Shapes and errors as in `uniform`.

    >>> from evolora.genome import AdaptedModule
    >>> layout = GenomeLayout((AdaptedModule("q", "q.A", "q.B", 1, 1, 2, 1.0, 0, 2),))
    >>> a0, a1, b0, b1 = rank(torch.zeros(4), torch.ones(4), layout, torch.Generator().manual_seed(0)).tolist()
    >>> a0 == b0 and a1 == b1
    True
    """
    _check(first, second, layout)
    child = second.clone()
    for (adapted, a, b), (_, first_a, first_b) in zip(
        layout.factors(child[None]), layout.factors(first[None]), strict=True
    ):
        coins = _coins(adapted.rank, generator, probability).to(first.device)
        a.copy_(torch.where(coins[:, None], first_a, a))
        b.copy_(torch.where(coins, first_b, b))
    return child


def blend(
    first: Tensor,
    second: Tensor,
    layout: GenomeLayout,
    generator: torch.Generator,  # noqa: ARG001 - blending draws nothing, but every crossover is called alike
    *,
    weight: float = 0.5,
) -> Tensor:
    """The weighted sum of the parents' *products*, `weight` on the first, as close as the rank allows.

    Stacking the factors gives the sum exactly at rank 2r; it is cut back to the best rank-r approximation (Eckart and
    Young, 1936) by an SVD that never forms the full matrix. Of all the factors with that product, the child takes those
    whose A is nearest to the first parent's A, so that it can still be crossed element by element with its relatives
    and blend(p, p) is p. A stays well conditioned, and alive where the product is zero: two fresh parents (B = 0) give
    the first one's A and B = 0, whereas A = B = 0 would have no gradient and no noise response.

    Deterministic. Computed in float64, returned in the first parent's dtype. Shapes and errors as in `uniform`, and
    ValueError unless 0 <= weight <= 1.

    >>> from evolora.genome import AdaptedModule
    >>> layout = GenomeLayout((AdaptedModule("q", "q.A", "q.B", 1, 1, 1, 1.0, 0, 1),))
    >>> a, b = blend(torch.tensor([2.0, 3.0]), torch.tensor([5.0, 2.0]), layout, torch.Generator()).tolist()
    >>> round(a * b, 4)  # half of 6 plus half of 10
    8.0
    """
    _check(first, second, layout)
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must lie between 0 and 1, found {weight}")
    child = torch.empty_like(first)
    parents = torch.stack((first, second)).double()
    for (_, a, b), (_, a_pair, b_pair) in zip(layout.factors(child[None]), layout.factors(parents), strict=True):
        stacked_b = torch.cat((weight * b_pair[0], (1 - weight) * b_pair[1]), dim=1)
        best_a, best_b = _truncate(a_pair.flatten(0, 1), stacked_b, a_pair[0])
        a[0].copy_(best_a)
        b[0].copy_(best_b)
    return child


def _truncate(stacked_a: Tensor, stacked_b: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The best rank-r approximation of stacked_b @ stacked_a, as factors whose A is near `target`.

    Shapes: stacked_a [2r, in], stacked_b [out, 2r], target [r, in]; returns A [r, in] and B [out, r].
    """
    rank = len(target)
    q_a, r_a = torch.linalg.qr(stacked_a.T)
    q_b, r_b = torch.linalg.qr(stacked_b)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T)  # full matrices: vh also spans what the product leaves free
    kept = min(rank, int((s > 1e-12 * s[0]).sum()))
    # Directions the product does not need are taken where the target is largest, so that no part of A dies.
    free = vh[kept:]
    free = torch.linalg.svd((target @ q_a) @ free.T).Vh[: rank - kept] @ free
    basis = torch.cat((vh[:kept], free)) @ q_a.T  # orthonormal rows; fewer than r where in_features < r
    basis = _pad(basis, rank, dim=0)
    columns = _pad((q_b @ u[:, :kept]) * s[:kept], rank, dim=1)
    # The change of basis M that brings M @ basis nearest to the target is target @ basis.T (least squares). Its
    # singular values are bounded below, or M's inverse would blow B up where the target lies outside the basis.
    left, sizes, right = torch.linalg.svd(target @ basis.T)
    # A zero target has no size of its own: 1 / sqrt(3) is every singular value's RMS in PEFT's fresh A.
    typical = float(target.norm()) * rank**-0.5 or 3**-0.5
    sizes = sizes.clamp(min=_LEAST_SHARE * typical)
    return (left * sizes) @ (right @ basis), (columns @ right.T) / sizes @ left.T


def _pad(matrix: Tensor, size: int, *, dim: int) -> Tensor:
    shape = list(matrix.shape)
    shape[dim] = size - shape[dim]
    return torch.cat((matrix, matrix.new_zeros(shape)), dim=dim)


def _coins(count: int, generator: torch.Generator, probability: float) -> Tensor:
    """`count` booleans, true with `probability`, drawn where the generator lives."""
    return torch.rand(count, generator=generator, device=generator.device) < probability


def _check(first: Tensor, second: Tensor, layout: GenomeLayout) -> None:
    for parent in (first, second):
        if parent.shape != (layout.genome_length,):
            raise ValueError(f"a parent must be [{layout.genome_length}], found {list(parent.shape)}")
