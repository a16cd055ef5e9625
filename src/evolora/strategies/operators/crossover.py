"""Crossover: two parents' rows make a child's row. Both parents must share one layout."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from evolora.models.genome import GenomeLayout
from evolora.strategies.operators.low_rank import triplets, truncate

Crossover = Callable[[Tensor, Tensor, GenomeLayout, torch.Generator], Tensor]
"""(first [genome_length], second [genome_length], layout, generator) -> the child [genome_length], a new tensor."""


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

    >>> from evolora.models.genome import AdaptedModule
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

    >>> from evolora.models.genome import AdaptedModule
    >>> layout = GenomeLayout((AdaptedModule("q", "q.A", "q.B", 3, 2, 1, 1.0, 0, 3),))
    >>> module(torch.zeros(5), torch.ones(5), layout, torch.Generator().manual_seed(1)).unique().numel()
    1
    """
    _check(first, second, layout)
    return _take(first, second, layout, _coins(len(layout.modules), generator, probability).tolist())


def layer(
    first: Tensor,
    second: Tensor,
    layout: GenomeLayout,
    generator: torch.Generator,
    *,
    probability: float = 0.5,
) -> Tensor:
    """All adapted layers of each transformer block from one parent: what a block's attention and its MLP learned to do
    together stays together. PopuLoRA's layer-wise crossover (arXiv 2605.16727), by block instead of by module.

    A block is what a module's path names up to its first number, `transformer.h.3` of `transformer.h.3.attn.c_attn`; a
    module outside all blocks is one of its own. Shapes and errors as in `uniform`.

    >>> from evolora.models.genome import AdaptedModule
    >>> names = ("h.0.q", "h.0.k", "h.1.q")
    >>> layout = GenomeLayout(
    ...     tuple(AdaptedModule(name, f"{name}.A", f"{name}.B", 1, 1, 1, 1.0, 2 * i, 2 * i + 1)
    ...           for i, name in enumerate(names)))
    >>> layer(torch.zeros(6), torch.ones(6), layout, torch.Generator().manual_seed(1)).tolist()
    [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    """
    _check(first, second, layout)
    blocks = {_block(module.name): place for place, module in enumerate(layout.modules)}
    coins = dict(zip(blocks, _coins(len(blocks), generator, probability).tolist(), strict=True))
    return _take(first, second, layout, [coins[_block(module.name)] for module in layout.modules])


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

    >>> from evolora.models.genome import AdaptedModule
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

    >>> from evolora.models.genome import AdaptedModule
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
        best_a, best_b = truncate(a_pair.flatten(0, 1), stacked_b, a_pair[0])
        a[0].copy_(best_a)
        b[0].copy_(best_b)
    return child


def svd(first: Tensor, second: Tensor, layout: GenomeLayout, generator: torch.Generator) -> Tensor:
    """The leading singular directions of the first parent's product, the others of the second's: for each adapted
    layer the sum of the terms s_i u_i v_i of the first for i <= n and of the second for i > n, n uniform in 1 .. k - 1
    (a coin for k = 1). PopuLoRA's SVD-subspace crossover (arXiv 2605.16727; populora 0.4.5).

    The child's product depends on the parents' products only, not on their basis, wherever singular values differ. Its
    factors are those of that product whose A is nearest to the first parent's, as in `blend`, where PopuLoRA splits the
    singular values evenly between both factors, which leaves A = B = 0 of fresh parents.

    Computed in float64, returned in the first parent's dtype. Shapes and errors as in `uniform`.

    >>> from evolora.models.genome import AdaptedModule
    >>> layout = GenomeLayout((AdaptedModule("q", "q.A", "q.B", 2, 2, 2, 1.0, 0, 4),))
    >>> first, second = torch.tensor([1.0, 0, 0, 1, 8, 0, 0, 4]), torch.tensor([1.0, 0, 0, 1, 6, 0, 0, 2])
    >>> child = svd(first, second, layout, torch.Generator().manual_seed(0))
    >>> (child[4:].view(2, 2) @ child[:4].view(2, 2)).diag().round()  # 8 of (8, 4) and 2 of (6, 2)
    tensor([8., 2.])
    """
    _check(first, second, layout)
    child = torch.empty_like(first)
    parents = torch.stack((first, second)).double()
    for (_, a, b), (_, a_pair, b_pair) in zip(layout.factors(child[None]), layout.factors(parents), strict=True):
        (left, right, _), (other_left, other_right, _) = (triplets(a_pair[i], b_pair[i]) for i in (0, 1))
        low, high = (1, len(right)) if len(right) > 1 else (0, 2)
        split = int(torch.randint(low, high, (), generator=generator, device=generator.device))
        # The target's own rows carry nothing of the product, but A can only come near what is in the stack.
        stacked_a = torch.cat((right[:split], other_right[split:], a_pair[0]))
        stacked_b = torch.cat((left[:, :split], other_left[:, split:], torch.zeros_like(b_pair[0])), dim=1)
        best_a, best_b = truncate(stacked_a, stacked_b, a_pair[0])
        a[0].copy_(best_a)
        b[0].copy_(best_b)
    return child


def dare(
    first: Tensor,
    second: Tensor,
    layout: GenomeLayout,
    generator: torch.Generator,
    *,
    ancestor: Tensor | None = None,
    drop: float = 0.7,
) -> Tensor:
    """The mean of the parents' differences from their common ancestor, each with random entries dropped and the rest
    rescaled: child = ancestor + sum over both of mask * (parent - ancestor) / (2 (1 - drop)), mask 1 with 1 - drop.

    DARE, "drop and rescale" (Yu et al., 2023, arXiv 2311.03099); as a crossover in PopuLoRA (arXiv 2605.16727), whose
    drop of 0.7 is the default. In expectation the child is the parents' mean, entry by entry; an entry that neither
    parent has changed stays. `ancestor` [genome_length] is the genome that both descend from, the untouched base in a
    run; without one it is zero, as PopuLoRA has it. Two equal parents do not give their like, but a sparser one.

    Shapes and errors as in `uniform`, also for the ancestor, and ValueError unless 0 <= drop < 1.

    >>> from evolora.models.genome import AdaptedModule
    >>> layout = GenomeLayout((AdaptedModule("q", "q.A", "q.B", 3, 2, 1, 1.0, 0, 3),))
    >>> child = dare(torch.full((5,), 2.0), torch.ones(5), layout, torch.Generator().manual_seed(0),
    ...              ancestor=torch.ones(5), drop=0.5)
    >>> set(child.tolist()) <= {1.0, 2.0}  # the second parent is the ancestor
    True
    """
    _check(first, second, layout)
    if not 0 <= drop < 1:
        raise ValueError(f"drop must be at least 0 and below 1, found {drop}")
    origin = torch.zeros_like(first) if ancestor is None else ancestor.to(first)
    _check(origin, second, layout)
    child = origin.clone()
    for parent in (first, second):
        kept = _coins(layout.genome_length, generator, 1 - drop).to(first.device)
        child += torch.where(kept, (parent - origin) / (2 * (1 - drop)), 0.0)
    return child


def extrapolative(
    first: Tensor,
    second: Tensor,
    layout: GenomeLayout,
    generator: torch.Generator,
    *,
    reach: float = 0.5,
) -> Tensor:
    """Beyond the better parent, away from the other: child = first + t (first - second), t uniform in [0, reach), one
    for all entries. `first` must be the fitter parent.

    Heuristic crossover (Wright, 1991, "Genetic algorithms for real parameter optimization"); PopuLoRA's extrapolative
    crossover has the same t, up to 0.5 (arXiv 2605.16727; populora 0.4.5). Entries of one basis only, as in `uniform`.

    Shapes and errors as in `uniform`, and ValueError unless reach is positive.

    >>> from evolora.models.genome import AdaptedModule
    >>> layout = GenomeLayout((AdaptedModule("q", "q.A", "q.B", 1, 1, 1, 1.0, 0, 1),))
    >>> child = extrapolative(torch.ones(2), torch.zeros(2), layout, torch.Generator().manual_seed(0))
    >>> bool((child >= 1).all() and (child < 1.5).all())
    True
    """
    _check(first, second, layout)
    if reach <= 0:
        raise ValueError(f"reach must be positive, found {reach}")
    t = reach * float(torch.rand((), generator=generator, device=generator.device, dtype=torch.float64))
    return first + t * (first - second)


def _take(first: Tensor, second: Tensor, layout: GenomeLayout, from_first: Sequence[bool]) -> Tensor:
    """Each module's whole pair from the first parent where `from_first` says so, else from the second."""
    child = second.clone()
    pairs = zip(layout.factors(child[None]), layout.factors(first[None]), from_first, strict=True)
    for (_, a, b), (_, first_a, first_b), taken in pairs:
        if taken:
            a.copy_(first_a)
            b.copy_(first_b)
    return child


def _block(name: str) -> str:
    """The path of the transformer block that a module lies in: up to its first number; else the module's own."""
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else name


def _coins(count: int, generator: torch.Generator, probability: float) -> Tensor:
    """`count` booleans, true with `probability`, drawn where the generator lives."""
    return torch.rand(count, generator=generator, device=generator.device, dtype=torch.float32) < probability


def _check(first: Tensor, second: Tensor, layout: GenomeLayout) -> None:
    for parent in (first, second):
        if parent.shape != (layout.genome_length,):
            raise ValueError(f"a parent must be [{layout.genome_length}], found {list(parent.shape)}")
