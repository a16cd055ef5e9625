"""Strategies: what they keep, what they replace, and that they climb."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from evolora.genome import AdaptedModule, GenomeLayout
from evolora.population import Individual, Population
from evolora.strategies import GAConfig, GeneticAlgorithm, RefinerAlone, Strategy


def small_layout() -> GenomeLayout:
    modules, offset = [], 0
    for index in range(3):
        a_size = 2 * 5
        modules.append(AdaptedModule(f"m{index}", f"a{index}", f"b{index}", 5, 4, 2, 2.0, offset, offset + a_size))
        offset += a_size + 4 * 2
    return GenomeLayout(tuple(modules))


LAYOUT = small_layout()


def make_ga(seed: int = 0, **options: object) -> GeneticAlgorithm:
    founder = torch.randn(LAYOUT.genome_length, generator=torch.Generator().manual_seed(1))
    return GeneticAlgorithm(founder, LAYOUT, GAConfig(**options), seed=seed)  # type: ignore[arg-type]


def test_the_first_generation_is_the_untouched_base_and_its_mutants() -> None:
    ga = make_ga(pop=6)
    population = ga.ask()
    assert [individual.id for individual in population.individuals] == list(range(6))
    assert population.individuals[0].operator == "base"
    assert torch.equal(
        population.genomes[0], torch.randn(LAYOUT.genome_length, generator=torch.Generator().manual_seed(1))
    )
    assert all(individual.parents == (0,) for individual in population.individuals[1:])
    assert len({row.numpy().tobytes() for row in population.genomes}) == 6


def test_elites_are_carried_over_unchanged_and_everyone_else_is_a_child() -> None:
    ga = make_ga(pop=8, elites=3)
    before = ga.ask()
    fitness = np.array([0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.5])
    ga.tell(before, fitness)
    after = ga.ask()
    assert [individual.id for individual in after.individuals[:3]] == [1, 3, 5]
    assert torch.equal(after.genomes[:3], before.genomes[[1, 3, 5]])
    known = {individual.id for individual in before.individuals}
    for child in after.individuals[3:]:
        assert child.id not in known
        assert set(child.parents) <= known
        assert child.born == 2


def test_the_failed_are_neither_parents_nor_elites() -> None:
    ga = make_ga(pop=8, elites=4)
    fitness = np.full(8, math.nan)
    fitness[[2, 6]] = 0.1, 0.2
    ga.tell(ga.ask(), fitness)
    after = ga.ask()
    assert len(after) == 8
    assert [individual.id for individual in after.individuals[:2]] == [6, 2]
    assert all(set(child.parents) <= {2, 6} for child in after.individuals[2:])


def test_all_failed_is_an_error() -> None:
    ga = make_ga(pop=3, elites=1)
    with pytest.raises(ValueError, match="NaN"):
        ga.tell(ga.ask(), np.full(3, math.nan))


@pytest.mark.parametrize("crossover", ["uniform", "module", "rank", "blend"])
@pytest.mark.parametrize("mutation", ["gaussian", "relative"])
@pytest.mark.parametrize("selection", ["truncation", "tournament", "rank"])
def test_every_operator_climbs(crossover: str, mutation: str, selection: str) -> None:
    """On a smooth hill the best must rise a good way towards the top: improvement, not only completion."""
    ga = make_ga(pop=16, crossover=crossover, mutation=mutation, selection=selection, mutation_scale=0.1)
    top = ga.ask().genomes[0] + torch.randn(LAYOUT.genome_length, generator=torch.Generator().manual_seed(2)) * 0.3

    def height(genomes: torch.Tensor) -> np.ndarray:
        return -(genomes - top).norm(dim=1).double().numpy()

    start = height(ga.ask().genomes)[0]
    for _ in range(60):
        ga.tell(ga.ask(), height(ga.ask().genomes))
    assert height(ga.ask().genomes).max() > 0.75 * start


def test_a_child_depends_on_its_own_key_only() -> None:
    """Fewer elites mean more children, but the children with the same ids and parents are the same."""
    one, two = make_ga(pop=6), make_ga(pop=9)
    assert torch.equal(one.ask().genomes, two.ask().genomes[:6])
    assert not torch.equal(make_ga(seed=1, pop=6).ask().genomes[1:], one.ask().genomes[1:])


def test_mutation_scales_adapt_within_bounds() -> None:
    ga = make_ga(pop=12, mutation_scale=0.02, mutation_adapt=0.5)
    for generation in range(30):
        ga.tell(ga.ask(), np.random.default_rng(generation).random(12))
    scales = [individual.mutation_scale for individual in ga.ask().individuals]
    assert len(set(scales)) > 6
    assert all(0.02 / 50 <= scale <= 0.04 for scale in scales)
    fixed = make_ga(pop=12, mutation_scale=0.02, mutation_adapt=0.0)
    fixed.tell(fixed.ask(), np.arange(12.0))
    assert {individual.mutation_scale for individual in fixed.ask().individuals} == {0.02}


def alone() -> RefinerAlone:
    return RefinerAlone(torch.zeros(LAYOUT.genome_length))


@pytest.mark.parametrize("make", [lambda: make_ga(pop=5), alone], ids=["ga", "none"])
def test_a_strategy_taken_up_again_goes_on_as_if_it_had_never_stopped(make) -> None:  # type: ignore[no-untyped-def]
    whole: Strategy = make()
    for generation in range(3):
        whole.tell(whole.ask(), np.random.default_rng(generation).random(len(whole.ask())))
    state = whole.state_dict()
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    rest = json.loads(json.dumps({name: value for name, value in state.items() if name not in tensors}))
    resumed: Strategy = make()
    resumed.load_state_dict({**tensors, **rest})
    for strategy in (whole, resumed):
        strategy.new_id()
        strategy.tell(strategy.ask(), np.linspace(0, 1, len(strategy.ask())))
    assert torch.equal(whole.ask().genomes, resumed.ask().genomes)
    assert whole.ask().individuals == resumed.ask().individuals


def test_the_refiner_alone_keeps_the_newest() -> None:
    strategy = alone()
    parent = strategy.ask()
    refined = dataclasses.replace(parent.individuals[0], id=strategy.new_id(), parents=(0,), operator="ppo")
    population = Population(
        torch.stack([torch.zeros(LAYOUT.genome_length), torch.ones(LAYOUT.genome_length)]),
        (parent.individuals[0], refined),
    )
    strategy.tell(population, np.array([0.9, 0.1]))
    assert strategy.ask().individuals == (refined,)
    assert isinstance(refined, Individual)
    assert bool((strategy.ask().genomes == 1).all())
