"""Mutation: noise on rows. Every row draws from its own generator, so a child does not depend on its siblings."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from evolora.models.genome import GenomeLayout
from evolora.strategies.operators.low_rank import triplets

Mutation = Callable[[Tensor, GenomeLayout, Tensor, Sequence[torch.Generator]], Tensor]
"""(genomes [n, genome_length], layout, scales [n], one generator a row) -> the mutated rows, a new tensor."""


def gaussian(
    genomes: Tensor,
    layout: GenomeLayout,
    scales: Tensor,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Each row plus its scale times standard normal noise, the same scale for every entry.

    `genomes` is [n, genome_length], `scales` [n] with one generator a row; the result is [n, genome_length].
    Raises ValueError when the shapes or the number of generators disagree.

    >>> from evolora.models.genome import AdaptedModule
    >>> layout = GenomeLayout((AdaptedModule("q", "q.A", "q.B", 3, 2, 1, 1.0, 0, 3),))
    >>> child = gaussian(torch.zeros(1, 5), layout, torch.tensor([0.1]), [torch.Generator().manual_seed(0)])
    >>> list(child.shape), bool((child != 0).all())
    ([1, 5], True)
    """
    _check(genomes, layout, scales, generators)
    return genomes + scales.to(genomes)[:, None] * _normal(genomes, generators)


def relative(
    genomes: Tensor,
    layout: GenomeLayout,
    scales: Tensor,
    generators: Sequence[torch.Generator],
    *,
    floor: float = 0.25,
) -> Tensor:
    """Each row plus normal noise proportional to the root mean square (RMS) of the LoRA tensor it falls on.

    A scale of 0.1 changes every factor by about a tenth of its magnitude, whatever the layer's width. Two magnitudes
    would leave the search stuck: a fresh B is zero, and noise relative to zero is none. So the magnitude is never taken
    below `floor` times 1 / sqrt(3 * in_features), the RMS that PEFT gives a fresh A (kaiming_uniform with a = sqrt(5)).
    At the default of a quarter B sets out at a quarter of A's pace, and keeps its own pace once it has grown past that.

    Shapes and errors as in `gaussian`.

    >>> from evolora.models.genome import AdaptedModule
    >>> layout = GenomeLayout((AdaptedModule("q", "q.A", "q.B", 3, 2, 1, 1.0, 0, 3),))
    >>> fresh = torch.tensor([[3.0, 3.0, 3.0, 0.0, 0.0]])
    >>> child = relative(fresh, layout, torch.tensor([0.1]), [torch.Generator().manual_seed(0)])
    >>> bool((child != fresh).all())
    True
    """
    _check(genomes, layout, scales, generators)
    noise = _normal(genomes, generators)
    for (module, a, b), (_, noise_a, noise_b) in zip(layout.factors(genomes), layout.factors(noise), strict=True):
        least = floor * (3 * module.in_features) ** -0.5
        for row in range(len(genomes)):  # row by row: a batched reduction may round by the number of siblings
            noise_a[row] *= max(_rms(a[row]), least)
            noise_b[row] *= max(_rms(b[row]), least)
    return genomes + scales.to(genomes)[:, None] * noise


def module(
    genomes: Tensor,
    layout: GenomeLayout,
    scales: Tensor,
    generators: Sequence[torch.Generator],
    *,
    share: float = 1 / 3,
) -> Tensor:
    """Normal noise as in `gaussian`, on a random `share` of the adapted layers only, at least one; the others keep
    their weights. PopuLoRA's layer-selective mutation (arXiv 2605.16727; populora 0.4.5), at its share of a third.

    Shapes and errors as in `gaussian`, and ValueError unless 0 < share <= 1.

    >>> from evolora.models.genome import AdaptedModule
    >>> layout = GenomeLayout(
    ...     tuple(AdaptedModule(f"h.{i}", f"{i}.A", f"{i}.B", 1, 1, 1, 1.0, 2 * i, 2 * i + 1) for i in range(3)))
    >>> child = module(torch.zeros(1, 6), layout, torch.ones(1), [torch.Generator().manual_seed(0)])
    >>> int((child != 0).sum())
    2
    """
    _check(genomes, layout, scales, generators)
    _check_share(share)
    noise = _normal(genomes, generators)
    count = max(1, round(share * len(layout.modules)))
    for row, generator in enumerate(generators):
        order = torch.randperm(len(layout.modules), generator=generator, device=generator.device).tolist()
        left_out = set(order[count:])
        for index, (_, a, b) in enumerate(layout.factors(noise[row : row + 1])):
            if index in left_out:
                a.zero_()
                b.zero_()
    return genomes + scales.to(genomes)[:, None] * noise


def masked(
    genomes: Tensor,
    layout: GenomeLayout,
    scales: Tensor,
    generators: Sequence[torch.Generator],
    *,
    share: float = 0.1,
) -> Tensor:
    """Normal noise as in `gaussian`, on each entry with probability `share` only: few weights move, by as much.

    The sparse mutation of neuroevolution, at the tenth of the weights of ERL (Khadka and Tumer, 2018, arXiv
    1805.07917). Over all entries the noise has variance share * scale^2. Shapes and errors as in `gaussian`, and
    ValueError unless 0 < share <= 1.

    >>> from evolora.models.genome import AdaptedModule
    >>> layout = GenomeLayout((AdaptedModule("q", "q.A", "q.B", 300, 200, 1, 1.0, 0, 300),))
    >>> child = masked(torch.zeros(1, 500), layout, torch.ones(1), [torch.Generator().manual_seed(0)])
    >>> 25 < int((child != 0).sum()) < 75
    True
    """
    _check(genomes, layout, scales, generators)
    _check_share(share)
    noise = _normal(genomes, generators)
    for row, generator in zip(noise, generators, strict=True):
        chances = torch.rand(row.shape, generator=generator, device=generator.device, dtype=torch.float32)
        row *= (chances < share).to(row)
    return genomes + scales.to(genomes)[:, None] * noise


def svd(
    genomes: Tensor,
    layout: GenomeLayout,
    scales: Tensor,
    generators: Sequence[torch.Generator],
    *,
    floor: float = 0.25,
) -> Tensor:
    """Noise on the singular values and directions of each layer's product B A = sum of s_i u_i v_i:

        s_i u_i  becomes  s_i exp(scale z_i) u_i + scale max(s_i, m) n_i,     v_i  becomes  v_i + scale n'_i,

    z_i standard normal, n_i and n'_i normal vectors of mean square length 1, so that a scale of 0.1 changes each
    singular value, and tilts each direction, by about a tenth. PopuLoRA's SVD-structured mutation (arXiv 2605.16727;
    populora 0.4.5) has the same factor exp(scale z_i), but turns directions only within the span that the product has,
    which leaves a fresh adapter, B = 0, where it is. Hence m, the singular value that the product has when B's entries
    are `floor` times the size of a fresh A's: floor * sqrt(out_features / in_features) / 3; see `relative`.

    The child's product depends on the parent's product and not on its basis, wherever singular values differ from each
    other and from zero; its factors stay in the parent's basis. Computed in float64. Shapes and errors as in
    `gaussian`.

    >>> from evolora.models.genome import AdaptedModule
    >>> layout = GenomeLayout((AdaptedModule("q", "q.A", "q.B", 3, 2, 1, 1.0, 0, 3),))
    >>> fresh = torch.tensor([[3.0, 3.0, 3.0, 0.0, 0.0]])
    >>> child = svd(fresh, layout, torch.tensor([0.1]), [torch.Generator().manual_seed(0)])
    >>> bool((child != fresh).all())
    True
    """
    _check(genomes, layout, scales, generators)
    children = genomes.clone()
    for row, generator in enumerate(generators):
        scale = float(scales[row])
        for adapted, a, b in layout.factors(children[row : row + 1]):
            least = floor * math.sqrt(adapted.out_features / adapted.in_features) / 3
            new_a, new_b = _jitter(a[0].double(), b[0].double(), scale, least, generator)
            a[0].copy_(new_a)
            b[0].copy_(new_b)
    return children


def _jitter(a: Tensor, b: Tensor, scale: float, least: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`svd` on one layer. Both factors are added to, never written anew: A keeps the basis it shares with its kin."""
    left, right, basis = triplets(a, b)
    sizes = left.norm(dim=0)
    stretch, turn_left, turn_right = (
        torch.randn(shape, generator=generator, device=generator.device, dtype=a.dtype).to(a.device)
        for shape in (sizes.shape, left.shape, right.shape)
    )
    left_step = left * torch.expm1(scale * stretch)
    left_step += scale * sizes.clamp(min=least) * turn_left / math.sqrt(len(left))
    right_step = scale * turn_right / math.sqrt(right.shape[1])
    # A = basis @ right and left = B @ basis. Where A has all but died, B would have to grow without bound.
    inverse = torch.linalg.pinv(basis, rtol=1e-3)
    return a + basis @ right_step, b + left_step @ inverse


def self_adapt(
    scales: Tensor,
    generators: Sequence[torch.Generator],
    *,
    lower: float,
    upper: float,
    learning_rate: float = 0.2,
) -> Tensor:
    """Each row's step size times a log-normal factor, exp(learning_rate * N(0, 1)), kept within [lower, upper].

    Log-normal self-adaptation (Schwefel, 1981; Beyer and Schwefel, 2002, "Evolution strategies: a comprehensive
    introduction"). The textbook rate 1 / sqrt(2 * genome_length) is below 0.002 for a LoRA genome: runs of tens of
    generations would never see a step change. At 0.2 two steps in three stay within a fifth of their parent's.

    `scales` is [n] with one generator a row, its own and not the one that `gaussian` gets: a step and its noise must be
    independent draws. Raises ValueError when the number of generators differs or the bounds are not 0 < lower <= upper.

    >>> generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    >>> steps = self_adapt(torch.tensor([0.01, 5.0]), generators, lower=0.001, upper=0.5)
    >>> steps[0].item() != 0.01, steps[1].item()
    (True, 0.5)
    """
    if not 0 < lower <= upper:
        raise ValueError(f"step-size bounds must be 0 < lower <= upper, found {lower} and {upper}")
    if scales.ndim != 1 or len(generators) != len(scales):
        raise ValueError(f"scales must be [{len(generators)}], one a generator, found {list(scales.shape)}")
    factors = torch.exp(learning_rate * _normal(scales[:, None], generators)[:, 0])
    return (scales * factors).clamp(lower, upper)


def one_fifth(share: float, *, target: float = 0.2, damping: float = 3.0) -> float:
    """By what factor a step size changes when this `share` of the mutants is fitter than their parents: exp((share -
    target) / (damping (1 - target))), from 0.92 for none to 1.4 for all.

    The one-fifth success rule (Rechenberg, 1973) in the smooth form of Kern et al., 2004 ("Learning probability
    distributions in continuous evolutionary algorithms").

    >>> one_fifth(0.2), one_fifth(1.0) > 1 > one_fifth(0.0)
    (1.0, True)
    """
    return math.exp((share - target) / (damping * (1 - target)))


def _check(genomes: Tensor, layout: GenomeLayout, scales: Tensor, generators: Sequence[torch.Generator]) -> None:
    layout.check(genomes)
    if scales.shape != (len(genomes),) or len(generators) != len(genomes):
        raise ValueError(
            f"{len(genomes)} genomes need as many scales and generators, "
            f"found scales {list(scales.shape)} and {len(generators)} generators"
        )


def _check_share(share: float) -> None:
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, found {share}")


def _normal(rows: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Standard normal noise of the rows' shape, each row from its generator, drawn where the generator lives."""
    noise = torch.empty_like(rows)
    for row, generator in zip(noise, generators, strict=True):
        row.copy_(torch.randn(row.shape, generator=generator, device=generator.device, dtype=rows.dtype))
    return noise


def _rms(values: Tensor) -> float:
    # float64: the sum's rounding by thread count then vanishes when the noise is rounded to the genome's float32
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) / math.sqrt(values.numel())
