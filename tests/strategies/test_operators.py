"""The genetic operators: what each promises, on random layouts and random parents."""

import dataclasses
import inspect
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evolora.models.genome import AdaptedModule, GenomeLayout
from evolora.rng import keyed_generator
from evolora.strategies.operators import CROSSOVERS, MUTATIONS, SELECTIONS, crossover, elites, mutation, self_adapt
from evolora.strategies.operators.crossover import blend, dare, extrapolative, layer, uniform
from evolora.strategies.operators.diversity import distances, shared_fitness, spread
from evolora.strategies.operators.low_rank import triplets
from evolora.strategies.operators.mutation import gaussian, masked, relative
from evolora.strategies.operators.selection import rank, tournament, truncation

torch.set_num_threads(1)
always = settings(max_examples=40, deadline=None)
NAN = float("nan")


def make_layout(*shapes: tuple[int, int, int]) -> GenomeLayout:
    """One module for each (in_features, out_features, rank), the factors one after the other."""
    modules, offset = [], 0
    for index, (inputs, outputs, r) in enumerate(shapes):
        b_offset = offset + r * inputs
        name = f"layer{index}"
        modules.append(AdaptedModule(name, f"{name}.A", f"{name}.B", inputs, outputs, r, 2.0, offset, b_offset))
        offset = b_offset + outputs * r
    return GenomeLayout(tuple(modules))


def generators(count: int, *key: str | int) -> list[torch.Generator]:
    return [keyed_generator(0, "test", *key, row) for row in range(count)]


def rows(count: int, layout: GenomeLayout, seed: int) -> Tensor:
    return torch.randn(count, layout.genome_length, generator=keyed_generator(seed, "rows"))


def products(genome: Tensor, layout: GenomeLayout) -> list[Tensor]:
    return [(b @ a)[0] for _, a, b in layout.factors(genome[None].double())]


# Ranks above a dimension, and stacked ranks above one, are legal if odd; blend must not trip over them.
layouts = st.lists(
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4)),
    min_size=1,
    max_size=3,
).map(lambda shapes: make_layout(*shapes))
seeds = st.integers(0, 10_000)
fitnesses = st.lists(
    st.one_of(st.floats(-5, 5, width=32), st.sampled_from([0.0, 1.0, NAN, -math.inf])), min_size=1, max_size=9
).filter(lambda values: not all(math.isnan(value) for value in values))


@pytest.mark.parametrize("name", MUTATIONS)
@always
@given(layout=layouts, count=st.integers(0, 4), seed=seeds)
def test_mutation_is_keyed_and_leaves_its_inputs_alone(name: str, layout: GenomeLayout, count: int, seed: int) -> None:
    parents, scales = rows(count, layout, seed), torch.rand(count, generator=keyed_generator(seed))
    before = parents.clone(), scales.clone()
    children = MUTATIONS[name](parents, layout, scales, generators(count, seed))
    assert children.shape == parents.shape and children.dtype == parents.dtype
    assert torch.equal(children, MUTATIONS[name](parents, layout, scales, generators(count, seed)))
    assert torch.equal(parents, before[0]) and torch.equal(scales, before[1])


@pytest.mark.parametrize("name", MUTATIONS)
@always
@given(layout=layouts, seed=seeds, row=st.integers(0, 3))
def test_a_mutant_does_not_depend_on_its_siblings(name: str, layout: GenomeLayout, seed: int, row: int) -> None:
    parents, scales = rows(4, layout, seed), torch.tensor([0.1, 0.2, 0.3, 0.4])
    together = MUTATIONS[name](parents, layout, scales, generators(4, seed))
    alone = MUTATIONS[name](parents[row : row + 1], layout, scales[row : row + 1], generators(4, seed)[row : row + 1])
    assert torch.equal(together[row], alone[0])


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_scale_of_zero_copies(name: str) -> None:
    layout = make_layout((5, 4, 2))
    parents = rows(2, layout, 0)
    assert torch.equal(MUTATIONS[name](parents, layout, torch.zeros(2), generators(2)), parents)


def test_gaussian_noise_has_the_scale_of_its_row() -> None:
    layout = make_layout((200, 100, 100))
    parents = rows(2, layout, 0)
    noise = gaussian(parents, layout, torch.tensor([0.1, 3.0]), generators(2)) - parents
    assert noise.std(dim=1).tolist() == pytest.approx([0.1, 3.0], rel=0.02)
    assert noise.mean(dim=1).tolist() == pytest.approx([0, 0], abs=0.05)
    assert torch.corrcoef(noise)[0, 1].abs() < 0.03


def test_relative_noise_follows_each_tensor_and_moves_a_zero_one() -> None:
    layout = make_layout((400, 100, 50), (100, 400, 50))
    parents = torch.zeros(1, layout.genome_length)
    (_, a, _), (_, _, b) = layout.factors(parents)
    a.fill_(-2.0)
    b.fill_(5.0)
    children = relative(parents, layout, torch.tensor([0.1]), generators(1), floor=0.5)
    (_, wide_a, wide_b), (_, tall_a, tall_b) = layout.factors(children - parents)
    assert wide_a.std().item() == pytest.approx(0.2, rel=0.03)
    assert tall_b.std().item() == pytest.approx(0.5, rel=0.03)
    # Zero tensors take the floor: half the RMS of a fresh A over the same inputs.
    assert wide_b.std().item() == pytest.approx(0.1 * 0.5 / math.sqrt(3 * 400), rel=0.05)
    assert tall_a.std().item() == pytest.approx(0.1 * 0.5 / math.sqrt(3 * 100), rel=0.05)


def test_the_floor_is_what_peft_gives_a_fresh_a() -> None:
    fresh = torch.empty(64, 300)
    torch.nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=torch.Generator().manual_seed(0))
    assert fresh.square().mean().sqrt().item() == pytest.approx((3 * 300) ** -0.5, rel=0.02)


def test_module_noise_falls_on_a_third_of_the_layers_and_on_all_of_each() -> None:
    layout = make_layout(*[(40, 30, 2)] * 9)
    parents = rows(20, layout, 0)
    noise = MUTATIONS["module"](parents, layout, torch.full((20,), 0.5), generators(20)) - parents
    moved = torch.stack([torch.cat((a.flatten(1), b.flatten(1)), 1).ne(0).all(1) for _, a, b in layout.factors(noise)])
    still = torch.stack([torch.cat((a.flatten(1), b.flatten(1)), 1).eq(0).all(1) for _, a, b in layout.factors(noise)])
    assert moved.sum(0).tolist() == [3] * 20 and still.sum(0).tolist() == [6] * 20
    assert moved.any(1).all()  # no layer is out of reach
    assert noise[noise != 0].std().item() == pytest.approx(0.5, rel=0.02)


def test_masked_noise_falls_on_its_share_of_the_entries() -> None:
    layout = make_layout((200, 100, 100))
    parents = torch.zeros(1, layout.genome_length)
    noise = masked(parents, layout, torch.tensor([0.5]), generators(1), share=0.2)
    assert noise.ne(0).float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert noise.var().item() == pytest.approx(0.2 * 0.25, rel=0.05)


def rebased(genome: Tensor, layout: GenomeLayout, seed: int) -> Tensor:
    """The same products in another basis: A becomes M A, B becomes B M^-1."""
    other = genome.clone()
    for module, a, b in layout.factors(other[None]):
        turn = torch.linalg.qr(torch.randn(module.rank, module.rank, generator=keyed_generator(seed)).double())[0]
        turn = turn * torch.linspace(0.5, 2, module.rank).double()
        a[0], b[0] = turn @ a[0], b[0] @ torch.linalg.inv(turn)
    return other


@always
@given(seed=seeds)
def test_svd_operators_see_the_products_and_not_their_basis(seed: int) -> None:
    layout = make_layout((9, 7, 3), (6, 8, 2))
    first, second = rows(2, layout, seed).double()
    strange = rebased(first, layout, seed)
    children = [
        (
            MUTATIONS["svd"](genome[None], layout, torch.tensor([0.3]), generators(1, seed))[0],
            CROSSOVERS["svd"](genome, second, layout, keyed_generator(seed)),
            CROSSOVERS["svd"](second, genome, layout, keyed_generator(seed)),
        )
        for genome in (first, strange)
    ]
    assert not torch.allclose(first, strange)
    for mine, theirs in zip(*children, strict=True):
        for product, other in zip(products(mine, layout), products(theirs, layout), strict=True):
            torch.testing.assert_close(product, other, rtol=1e-6, atol=1e-6)


@always
@given(layout=layouts, seed=seeds)
def test_triplets_are_the_singular_value_decomposition(layout: GenomeLayout, seed: int) -> None:
    genome = rows(1, layout, seed).double()
    for _, a, b in layout.factors(genome):
        left, right, basis = triplets(a[0], b[0])
        torch.testing.assert_close(left @ right, b[0] @ a[0])
        torch.testing.assert_close(basis @ right, a[0])
        torch.testing.assert_close(right @ right.T, torch.eye(len(right)).double())
        values = torch.linalg.svdvals(b[0] @ a[0])
        length = min(len(values), len(right))
        torch.testing.assert_close(left.norm(dim=0)[:length], values[:length], rtol=1e-6, atol=1e-9)


def test_svd_noise_has_the_stated_size() -> None:
    layout = make_layout((60, 80, 3))
    parent = torch.randn(1, layout.genome_length, generator=keyed_generator(7)).double()
    ((_, a, b),) = layout.factors(parent)
    left, right, _ = triplets(a[0], b[0])
    sizes = left.norm(dim=0)
    children = MUTATIONS["svd"](parent.repeat(400, 1), layout, torch.full((400,), 0.01), generators(400))
    ((_, child_a, child_b),) = layout.factors(children)
    change = child_b @ child_a - (b @ a)
    # To first order, for each term: the singular value's share, and both directions' tilts.
    expected = 0.01**2 * (sizes.square() + sizes.clamp(min=0.25 * math.sqrt(80 / 60) / 3).square() + sizes.square())
    assert change.square().sum((1, 2)).mean().item() == pytest.approx(expected.sum().item(), rel=0.05)
    along = (left / sizes).T @ change @ right.T
    assert along.diagonal(dim1=1, dim2=2).std(0).div(sizes).tolist() == pytest.approx(
        [0.01 * math.sqrt(1 + 1 / 80 + 1 / 60)] * 3, rel=0.15
    )


def test_svd_noise_moves_a_fresh_adapter() -> None:
    layout = make_layout((64, 48, 4))
    family = torch.zeros(1, layout.genome_length)
    ((_, a, _),) = layout.factors(family)
    a.uniform_(-(64**-0.5), 64**-0.5, generator=keyed_generator(0))
    child = MUTATIONS["svd"](family, layout, torch.tensor([0.1]), generators(1))
    ((_, child_a, child_b),) = layout.factors(child)
    # B sets out at about the pace that `relative` gives it: a quarter of a fresh A's size.
    assert _rms(child_b) == pytest.approx(0.1 * 0.25 / math.sqrt(3 * 64), rel=0.4)
    assert _rms(child_a - a) < 0.3 * _rms(a)


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def test_self_adaptation_is_log_normal_and_bounded() -> None:
    steps = torch.full((4000,), 0.01)
    adapted = self_adapt(steps, generators(4000), lower=1e-9, upper=1.0, learning_rate=0.3)
    logs = (adapted / steps).log()
    assert logs.mean().item() == pytest.approx(0, abs=0.02)
    assert logs.std().item() == pytest.approx(0.3, rel=0.04)
    assert torch.equal(steps, torch.full((4000,), 0.01))
    assert torch.equal(adapted[7:8], self_adapt(steps[:1], generators(8)[7:], lower=1e-9, upper=1.0, learning_rate=0.3))
    bounded = self_adapt(steps, generators(4000), lower=0.009, upper=0.011)
    assert bounded.min().item() == pytest.approx(0.009) and bounded.max().item() == pytest.approx(0.011)


def test_mutation_refuses_what_does_not_fit() -> None:
    layout = make_layout((3, 2, 1))
    with pytest.raises(ValueError, match="2 genomes need as many scales"):
        gaussian(torch.zeros(2, 5), layout, torch.ones(1), generators(2))
    with pytest.raises(ValueError, match="1 generators"):
        relative(torch.zeros(2, 5), layout, torch.ones(2), generators(1))
    with pytest.raises(ValueError, match="genomes must be"):
        gaussian(torch.zeros(2, 4), layout, torch.ones(2), generators(2))
    with pytest.raises(ValueError, match="bounds"):
        self_adapt(torch.ones(1), generators(1), lower=0.0, upper=1.0)
    with pytest.raises(ValueError, match="scales must be"):
        self_adapt(torch.ones(2), generators(1), lower=0.1, upper=1.0)


@pytest.mark.parametrize("name", CROSSOVERS)
@always
@given(layout=layouts, seed=seeds)
def test_crossover_is_keyed_and_leaves_its_inputs_alone(name: str, layout: GenomeLayout, seed: int) -> None:
    first, second = rows(2, layout, seed)
    before = first.clone(), second.clone()
    child = CROSSOVERS[name](first, second, layout, keyed_generator(seed, "cross"))
    assert child.shape == first.shape and child.dtype == first.dtype and child.isfinite().all()
    assert torch.equal(child, CROSSOVERS[name](first, second, layout, keyed_generator(seed, "cross")))
    assert torch.equal(first, before[0]) and torch.equal(second, before[1])
    assert child.untyped_storage().data_ptr() not in {p.untyped_storage().data_ptr() for p in (first, second)}


@always
@given(layout=layouts, seed=seeds)
def test_uniform_takes_each_entry_from_a_parent(layout: GenomeLayout, seed: int) -> None:
    first, second = rows(2, layout, seed)
    child = uniform(first, second, layout, keyed_generator(seed))
    assert ((child == first) | (child == second)).all()


@always
@given(layout=layouts, seed=seeds)
def test_module_takes_whole_pairs(layout: GenomeLayout, seed: int) -> None:
    parents = rows(2, layout, seed)
    child = CROSSOVERS["module"](parents[0], parents[1], layout, keyed_generator(seed))
    for (_, a, b), (_, parents_a, parents_b) in zip(layout.factors(child[None]), layout.factors(parents), strict=True):
        assert any(torch.equal(a[0], parents_a[p]) and torch.equal(b[0], parents_b[p]) for p in (0, 1))


@always
@given(layout=layouts, seed=seeds)
def test_rank_takes_whole_components(layout: GenomeLayout, seed: int) -> None:
    parents = rows(2, layout, seed)
    child = CROSSOVERS["rank"](parents[0], parents[1], layout, keyed_generator(seed))
    for (adapted, a, b), (_, pa, pb) in zip(layout.factors(child[None]), layout.factors(parents), strict=True):
        for i in range(adapted.rank):
            assert any(torch.equal(a[0, i], pa[p, i]) and torch.equal(b[0, :, i], pb[p, :, i]) for p in (0, 1))


@pytest.mark.parametrize("name", [name for name in CROSSOVERS if name != "dare"])
@always
@given(layout=layouts, seed=seeds)
def test_the_child_of_equal_parents_has_their_product(name: str, layout: GenomeLayout, seed: int) -> None:
    genome = rows(1, layout, seed)[0]
    child = CROSSOVERS[name](genome, genome, layout, keyed_generator(seed))
    for mine, parents in zip(products(child, layout), products(genome, layout), strict=True):
        torch.testing.assert_close(mine, parents, rtol=0, atol=1e-4)


def test_layer_takes_whole_blocks() -> None:
    names = [f"transformer.h.{block}.{part}" for block in range(30) for part in ("attn.c_attn", "mlp.c_proj")]
    flat = make_layout(*[(3, 2, 1)] * 61)
    layout = GenomeLayout(
        tuple(
            dataclasses.replace(module, name=name) for module, name in zip(flat.modules, [*names, "head"], strict=True)
        )
    )
    first, second = torch.zeros(layout.genome_length), torch.ones(layout.genome_length)
    child = layer(first, second, layout, keyed_generator(0))
    of_module = [
        float(torch.cat((a.flatten(), b.flatten())).unique().item()) for _, a, b in layout.factors(child[None])
    ]
    assert of_module[0:60:2] == of_module[1:60:2]
    assert 5 < sum(of_module[0:60:2]) < 25


def test_svd_crossover_takes_the_leading_directions_of_the_first() -> None:
    layout = make_layout((12, 10, 4))
    first, second = rows(2, layout, 1).double()
    splits = set()
    for seed in range(20):
        child = CROSSOVERS["svd"](first, second, layout, keyed_generator(seed))
        of_first, of_second = (
            torch.linalg.svd(products(genome, layout)[0], full_matrices=False) for genome in (first, second)
        )
        errors = []
        for n in range(1, 4):
            u = torch.cat((of_first.U[:, :n], of_second.U[:, n:4]), 1)
            s = torch.cat((of_first.S[:n], of_second.S[n:4]))
            vh = torch.cat((of_first.Vh[:n], of_second.Vh[n:4]))
            errors.append(((u * s) @ vh - products(child, layout)[0]).norm().item())
        assert min(errors) < 1e-9
        splits.add(errors.index(min(errors)))
    assert splits == {0, 1, 2}


def test_svd_crossover_of_fresh_parents_keeps_a_alive() -> None:
    layout = make_layout((64, 48, 8), (6, 5, 4), (3, 5, 4))
    family = torch.stack(relatives(layout))
    for _, _, b in layout.factors(family):
        b.zero_()
    child = CROSSOVERS["svd"](family[0], family[1], layout, keyed_generator(0))
    torch.testing.assert_close(child, family[0], rtol=0, atol=1e-6)


@always
@given(layout=layouts, seed=seeds, drop=st.sampled_from([0.0, 0.5, 0.9]))
def test_dare_drops_and_rescales(layout: GenomeLayout, seed: int, drop: float) -> None:
    first, second, ancestor = rows(3, layout, seed).double()
    child = dare(first, second, layout, keyed_generator(seed), ancestor=ancestor, drop=drop)
    steps = [torch.zeros_like(first), *(((p - ancestor) / (2 * (1 - drop))) for p in (first, second))]
    possible = torch.stack([ancestor + steps[i] + steps[j] for i, j in ((0, 0), (1, 0), (0, 2), (1, 2))])
    assert (possible - child).abs().min(0).values.max() < 1e-12
    if drop == 0:
        torch.testing.assert_close(child, (first + second) / 2)


def test_dare_is_the_mean_in_expectation_and_has_the_stated_variance() -> None:
    layout = make_layout((30, 20, 2))
    first, second, ancestor = rows(3, layout, 0)
    children = torch.stack(
        [dare(first, second, layout, keyed_generator(draw), ancestor=ancestor, drop=0.7) for draw in range(2000)]
    )
    error = (children.mean(0) - (first + second) / 2) / (children.std(0) / math.sqrt(2000))
    assert error.std().item() == pytest.approx(1, rel=0.2) and abs(error.mean().item()) < 0.4
    variance = ((first - ancestor).square() + (second - ancestor).square()) / 4 * 0.7 / 0.3
    assert (children.var(0) / variance).mean().item() == pytest.approx(1, rel=0.02)


@always
@given(layout=layouts, seed=seeds)
def test_extrapolation_goes_beyond_the_first_parent(layout: GenomeLayout, seed: int) -> None:
    first, second = rows(2, layout, seed).double()
    child = extrapolative(first, second, layout, keyed_generator(seed), reach=0.5)
    steps = (child - first) / (first - second)
    assert steps.min() >= 0 and steps.max() < 0.5 and steps.max() - steps.min() < 1e-6


def test_operators_refuse_bad_settings() -> None:
    layout, genome, generator = make_layout((3, 2, 1)), torch.zeros(5), keyed_generator(0)
    for bad in (
        lambda: dare(genome, genome, layout, generator, drop=1.0),
        lambda: dare(genome, genome, layout, generator, ancestor=torch.zeros(4)),
        lambda: extrapolative(genome, genome, layout, generator, reach=0.0),
        lambda: crossover.svd(genome, torch.zeros(4), layout, generator),
        lambda: masked(genome[None], layout, torch.ones(1), generators(1), share=0.0),
        lambda: mutation.module(genome[None], layout, torch.ones(1), generators(1), share=1.5),
        lambda: shared_fitness(torch.ones(2), torch.zeros(2, 5), radius=0.0),
    ):
        with pytest.raises(ValueError, match="found"):
            bad()


@always
@given(layout=layouts, seed=seeds)
def test_distances_are_those_of_a_loop(layout: GenomeLayout, seed: int) -> None:
    genomes = rows(4, layout, seed)
    found = distances(genomes)
    for i in range(4):
        for j in range(4):
            assert found[i, j].item() == pytest.approx(_rms((genomes[i] - genomes[j]).double()))
    assert spread(genomes) == pytest.approx(math.sqrt(found.square().sum().item() / 12), rel=1e-5)
    assert spread(genomes[:1]) == 0
    assert distances(genomes[[0, 0]]).max() == 0


def test_sharing_divides_among_neighbours_and_spares_the_failed() -> None:
    genomes = torch.tensor([[0.0], [0.0], [0.0], [8.0], [8.0]])
    fitness = torch.tensor([1.0, 1.0, 1.0, 0.9, NAN])
    shared = shared_fitness(fitness - 5, genomes, radius=0.1)
    assert shared.isnan().tolist() == [False, False, False, False, True]
    assert shared[:3].tolist() == pytest.approx([0.1 / 3] * 3, rel=1e-5) and shared[3].item() == 0
    alone = shared_fitness(torch.tensor([0.0, 1.0, 1.0, 0.9, NAN]), genomes, radius=0.1)
    assert alone[3] > alone[1]  # the failed twin at 8 crowds nobody
    assert shared_fitness(fitness, torch.zeros(5, 3), radius=0.5)[:4].tolist() == pytest.approx([0.025] * 3 + [0])
    assert shared_fitness(torch.full((5,), NAN), genomes, radius=0.5).isnan().all()


@pytest.mark.parametrize(("name", "draws"), [("uniform", 2400), ("module", 200), ("rank", 400)])
def test_both_parents_give_their_share(name: str, draws: int) -> None:
    layout = make_layout(*[(4, 2, 2)] * 200)
    first, second = torch.ones(layout.genome_length), torch.zeros(layout.genome_length)
    for share in (0.5, 0.2):
        child = CROSSOVERS[name](first, second, layout, keyed_generator(3), probability=share)  # type: ignore[call-arg]
        assert child.mean().item() == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / draws))
    assert 0 < child.mean() < 1


@always
@given(layout=layouts, seed=seeds, weight=st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_blend_is_the_best_approximation_of_the_weighted_products(
    layout: GenomeLayout, seed: int, weight: float
) -> None:
    first, second = rows(2, layout, seed).double()
    child = blend(first, second, layout, keyed_generator(0), weight=weight)
    parts = (products(genome, layout) for genome in (first, second, child))
    for module, of_first, of_second, of_child in zip(layout.modules, *parts, strict=True):
        full = weight * of_first + (1 - weight) * of_second
        u, s, vh = torch.linalg.svd(full, full_matrices=False)
        r = module.rank
        best = (u[:, :r] * s[:r]) @ vh[:r]  # Eckart and Young, on the full matrix
        # Near-equal singular values at the cut leave the best approximation undefined, but never its error.
        assert (full - of_child).norm().item() == pytest.approx((full - best).norm().item(), abs=1e-9)
        if len(s) <= r or s[r - 1] > 1.05 * s[r]:
            torch.testing.assert_close(of_child, best, rtol=0, atol=1e-8)


def test_blend_is_exact_where_the_sum_fits_the_rank() -> None:
    layout = make_layout((20, 30, 4))
    family = rows(2, layout, 1).double()
    for _, _, b in layout.factors(family):
        b[0, :, 2:] = 0  # rank 2 each, 4 together
        b[1, :, :2] = 0
    child = blend(family[0], family[1], layout, keyed_generator(0), weight=0.25)
    expected = 0.25 * products(family[0], layout)[0] + 0.75 * products(family[1], layout)[0]
    torch.testing.assert_close(products(child, layout)[0], expected, rtol=0, atol=1e-10)


@always
@given(layout=layouts, seed=seeds)
def test_blending_a_genome_with_itself_keeps_its_product(layout: GenomeLayout, seed: int) -> None:
    genome = rows(1, layout, seed)[0]
    child = blend(genome, genome, layout, keyed_generator(0))
    for mine, parents in zip(products(child, layout), products(genome, layout), strict=True):
        torch.testing.assert_close(mine, parents, rtol=0, atol=1e-4)


def relatives(layout: GenomeLayout) -> tuple[Tensor, Tensor]:
    """Two genomes a little away from one fresh ancestor: A as PEFT draws it, B small."""
    family = torch.zeros(2, layout.genome_length)
    for module, a, b in layout.factors(family):
        bound = module.in_features**-0.5
        a[:] = torch.empty(a.shape[1:]).uniform_(-bound, bound, generator=keyed_generator(0, module.name))
        a += 0.1 * bound * torch.randn(a.shape, generator=keyed_generator(1, module.name))
        b += 0.01 * torch.randn(b.shape, generator=keyed_generator(2, module.name))
    return family[0], family[1]


def test_blend_stays_in_the_first_parents_basis() -> None:
    layout = make_layout((64, 48, 8), (48, 64, 8))
    first, second = relatives(layout)
    torch.testing.assert_close(blend(first, first, layout, keyed_generator(0)), first, rtol=0, atol=1e-5)
    child = blend(first, second, layout, keyed_generator(0))
    swapped = blend(second, first, layout, keyed_generator(0))
    for (_, a, b), (_, other, _) in zip(
        layout.factors(torch.stack((child, first, second))), layout.factors(swapped[None]), strict=True
    ):
        assert (a[0] - a[1]).norm() < 0.2 * a[1].norm()  # of the order of the parents' own distance
        assert (a[0] - a[1]).norm() < (other[0] - a[1]).norm()
        assert 0.2 < b[0].norm() / b[1].norm() < 2


def test_blend_of_fresh_parents_keeps_a_alive() -> None:
    layout = make_layout((64, 48, 8), (6, 5, 4), (3, 5, 4))
    first, second = relatives(layout)
    family = torch.stack((first, second))
    for _, _, b in layout.factors(family):
        b.zero_()
    child = blend(family[0], family[1], layout, keyed_generator(0))
    for (_, a, b), (_, parent, _) in zip(layout.factors(child[None]), layout.factors(family[:1]), strict=True):
        assert b.abs().max() == 0
        torch.testing.assert_close(a, parent, rtol=0, atol=1e-6)


def test_blend_keeps_a_alive_where_part_of_the_product_is_missing() -> None:
    layout = make_layout((30, 20, 4))
    first, second = rows(2, layout, 5)
    family = torch.stack((first, second))
    for _, a, b in layout.factors(family):
        b[0] = 0
        b[1, :, 1:] = 0
        child = blend(family[0], family[1], layout, keyed_generator(0))
        child_a = next(layout.factors(child[None]))[1][0]
        assert torch.linalg.svdvals(child_a).min() > 0.09 * a[0].norm() / 2
        torch.testing.assert_close(products(child, layout)[0], products(family[1], layout)[0] / 2, rtol=0, atol=1e-5)


def test_blend_of_strangers_keeps_both_factors_in_proportion() -> None:
    layout = make_layout((8, 6, 2))
    family = rows(2, layout, 6)
    for _, a, b in layout.factors(family):
        a[0, :, :4] = 0  # the parents read different inputs, and only the second one's part has an effect
        a[1, :, 4:] = 0
        b[0] = 0
        child = blend(family[0], family[1], layout, keyed_generator(0))
        ((_, child_a, child_b),) = layout.factors(child[None])
        assert torch.linalg.svdvals(child_a[0]).min() > 0.09 * a[0].norm() / math.sqrt(2)
        assert child_b.norm() < 20 * b[1].norm()
        torch.testing.assert_close(products(child, layout)[0], products(family[1], layout)[0] / 2, rtol=0, atol=1e-5)


def test_blend_of_all_zeros_is_finite() -> None:
    layout = make_layout((5, 4, 2))
    child = blend(torch.zeros(18), torch.zeros(18), layout, keyed_generator(0))
    assert child.isfinite().all() and products(child, layout)[0].abs().max() == 0


def test_crossover_refuses_what_does_not_fit() -> None:
    layout = make_layout((3, 2, 1))
    for cross in CROSSOVERS.values():
        with pytest.raises(ValueError, match=r"a parent must be \[5\], found \[4\]"):
            cross(torch.zeros(5), torch.zeros(4), layout, keyed_generator(0))
    with pytest.raises(ValueError, match="weight"):
        blend(torch.zeros(5), torch.zeros(5), layout, keyed_generator(0), weight=1.5)


@pytest.mark.parametrize("name", SELECTIONS)
@always
@given(values=fitnesses, count=st.integers(0, 20), seed=seeds)
def test_selection_is_keyed_and_never_takes_a_failure(name: str, values: list[float], count: int, seed: int) -> None:
    fitness = torch.tensor(values)
    parents = SELECTIONS[name](fitness, count, keyed_generator(seed))
    assert parents.shape == (count,) and parents.dtype == torch.int64
    assert not fitness[parents].isnan().any()
    assert torch.equal(parents, SELECTIONS[name](fitness, count, keyed_generator(seed)))
    torch.testing.assert_close(fitness, torch.tensor(values), rtol=0, atol=0, equal_nan=True)


@always
@given(values=fitnesses, count=st.integers(0, 12))
def test_elites_are_the_best_in_order(values: list[float], count: int) -> None:
    chosen = elites(torch.tensor(values), count).tolist()
    valid = [index for index, value in enumerate(values) if not math.isnan(value)]
    assert chosen == sorted(valid, key=lambda index: (-values[index], index))[:count]


def test_all_failed_is_an_error() -> None:
    failed = torch.full((3,), NAN)
    choosers: list[Callable[[], Tensor]] = [lambda: elites(failed, 1)]
    choosers += [lambda s=select: s(failed, 1, keyed_generator(0)) for select in SELECTIONS.values()]  # type: ignore[misc]
    for choose in choosers:
        with pytest.raises(ValueError, match="all 3 have failed"):
            choose()


def frequencies(parents: Tensor, individuals: int) -> list[float]:
    return (torch.bincount(parents, minlength=individuals) / len(parents)).tolist()


def test_selection_pressure() -> None:
    fitness = torch.tensor([0.3, NAN, 0.9, -4.0, 0.1])  # worst to best: 3, 4, 0, 2
    draws, near = 40_000, 0.01
    chosen = truncation(fitness, draws, keyed_generator(0), share=0.75)  # of the four that did not fail
    assert frequencies(chosen, 5) == pytest.approx([1 / 3, 0, 1 / 3, 0, 1 / 3], abs=near)
    chosen = tournament(fitness, draws, keyed_generator(1), size=3)
    odds = [(place**3 - (place - 1) ** 3) / 4**3 for place in (1, 2, 3, 4)]
    assert frequencies(chosen, 5) == pytest.approx([odds[2], 0, odds[3], odds[0], odds[1]], abs=near)
    chosen = rank(fitness, draws, keyed_generator(2), pressure=1.6)
    ranked = [(0.4 + 1.2 * place / 3) / 4 for place in range(4)]
    assert frequencies(chosen, 5) == pytest.approx([ranked[2], 0, ranked[3], ranked[0], ranked[1]], abs=near)


@pytest.mark.parametrize("name", ["tournament", "rank"])
def test_equals_have_equal_chances(name: str) -> None:
    chosen = SELECTIONS[name](torch.tensor([1.0, 1.0, NAN, 1.0]), 30_000, keyed_generator(4))
    assert frequencies(chosen, 4) == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3], abs=0.015)


def test_selection_refuses_bad_settings() -> None:
    fitness, generator = torch.ones(3), keyed_generator(0)
    choosers: list[Callable[[], Tensor]] = [
        lambda: truncation(fitness, 1, generator, share=0.0),
        lambda: tournament(fitness, 1, generator, size=0),
        lambda: rank(fitness, 1, generator, pressure=2.5),
        lambda: elites(torch.ones(2, 2), 1),
    ]
    for bad in choosers:
        with pytest.raises(ValueError, match="found"):
            bad()


def test_operators_of_a_kind_are_called_alike() -> None:
    for registry in (MUTATIONS, CROSSOVERS, SELECTIONS):
        called = {
            tuple(name for name, p in inspect.signature(f).parameters.items() if p.kind is not p.KEYWORD_ONLY)
            for f in registry.values()
        }
        assert len(called) == 1
