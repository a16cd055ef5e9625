"""The genetic algorithm's options: replacement, age, sharing, islands."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from evolora.models.genome import AdaptedModule, GenomeLayout
from evolora.population.population import Individual, Population
from evolora.strategies import GAConfig, GeneticAlgorithm, Islands, Strategy
from evolora.strategies.operators import CROSSOVERS, MUTATIONS

torch.set_num_threads(1)
NAN = math.nan


def small_layout() -> GenomeLayout:
    modules, offset = [], 0
    for index in range(3):
        modules.append(AdaptedModule(f"h.{index}", f"a{index}", f"b{index}", 5, 4, 2, 2.0, offset, offset + 10))
        offset += 18
    return GenomeLayout(tuple(modules))


LAYOUT = small_layout()


def make(seed: int = 0, kind: type[GeneticAlgorithm | Islands] = GeneticAlgorithm, **options: object) -> Strategy:
    founder = torch.randn(LAYOUT.genome_length, generator=torch.Generator().manual_seed(1))
    config = GAConfig(**options)  # type: ignore[arg-type]
    return kind(founder, LAYOUT, config, seed=seed)


def ids(strategy: Strategy) -> list[int]:
    return [individual.id for individual in strategy.ask().individuals]


def measured(population: Population, fitness: np.ndarray, generation: int) -> Population:
    """As the loop hands a population back: with its history."""
    return Population(
        population.genomes,
        tuple(
            dataclasses.replace(individual, history=(*individual.history, (generation, float(value))))
            for individual, value in zip(population.individuals, fitness, strict=True)
        ),
    )


TOP = torch.randn(LAYOUT.genome_length, generator=torch.Generator().manual_seed(5))


def climb(strategy: Strategy, generations: int) -> float:
    """Best height on a smooth hill after some generations."""
    for generation in range(1, generations + 1):
        population = strategy.ask()
        fitness = -(population.genomes - TOP).norm(dim=1).double().numpy()
        strategy.tell(measured(population, fitness, generation), fitness)
    return float((-(strategy.ask().genomes - TOP).norm(dim=1)).max())


VARIANTS: list[dict[str, object]] = [
    {"replacement": "steady-state", "children": 3},
    {"max_age": 3},
    {"diversity": "sharing"},
    {"islands": 3, "migrate_every": 2, "kind": Islands},
    {"islands": 2, "migrate_every": 1, "kind": Islands, "max_age": 2},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_every_variant_climbs(options: dict[str, object]) -> None:
    # At a fixed scale: what is tested is that the variant selects, not how fast a scale adapts.
    start = climb(make(pop=12, mutation_scale=0.1, **options), 1)  # type: ignore[arg-type]
    generations = 150 if options.get("replacement") == "steady-state" else 60  # for about as many children
    assert climb(make(pop=12, mutation_scale=0.1, **options), generations) > 0.8 * start  # type: ignore[arg-type]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_every_variant_taken_up_again_goes_on_as_if_it_had_never_stopped(options: dict[str, object]) -> None:
    whole, resumed = (make(pop=9, **options) for _ in range(2))  # type: ignore[arg-type]
    climb(whole, 5)
    state = whole.state_dict()
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    rest = json.loads(json.dumps({name: value for name, value in state.items() if name not in tensors}, sort_keys=True))
    resumed.load_state_dict({**tensors, **rest})
    for strategy in (whole, resumed):
        for generation in (6, 7):
            strategy.new_id()
            values = np.random.default_rng(generation).random(9)
            strategy.tell(measured(strategy.ask(), values, generation), values)
    assert torch.equal(whole.ask().genomes, resumed.ask().genomes)
    assert whole.ask().individuals == resumed.ask().individuals
    assert whole.metrics() == resumed.metrics()


@pytest.mark.parametrize("name", MUTATIONS)
def test_every_mutation_is_at_the_algorithms_command(name: str) -> None:
    ga = make(pop=5, mutation=name, crossover_rate=0.0)
    assert {individual.operator for individual in ga.ask().individuals[1:]} == {name}
    assert len(ga.ask().genomes.unique(dim=0)) == 5


@pytest.mark.parametrize("name", CROSSOVERS)
def test_every_crossover_is_at_the_algorithms_command(name: str) -> None:
    ga = make(pop=8, crossover=name, crossover_rate=1.0, mutation_rate=0.0)
    ga.tell(ga.ask(), np.arange(8.0))
    assert name in {individual.operator for individual in ga.ask().individuals}
    assert climb(make(pop=16, crossover=name, mutation_scale=0.1), 60) > 0.8 * climb(make(pop=16), 1)


def test_dare_drops_differences_from_the_base_and_not_from_zero() -> None:
    ga = make(pop=12, crossover="dare", crossover_rate=1.0, mutation="masked", mutation_rate=0.0)
    base = ga.ask().genomes[0].clone()
    ga.tell(ga.ask(), np.arange(12.0))
    children = [row for row, each in enumerate(ga.ask().individuals) if each.operator == "dare"]
    assert children
    for row in children:
        assert (ga.ask().genomes[row] == base).float().mean() > 0.6  # where neither parent differs, nor does the child


def test_extrapolation_sets_out_from_the_fitter_parent() -> None:
    ga = make(pop=12, crossover="extrapolative", crossover_rate=1.0, mutation_rate=0.0)
    before, fitness = ga.ask(), np.random.default_rng(0).random(12)
    ga.tell(before, fitness)
    row_of = {individual.id: row for row, individual in enumerate(before.individuals)}
    crossed = [
        (individual, genome)
        for individual, genome in zip(ga.ask().individuals, ga.ask().genomes, strict=True)
        if individual.operator == "extrapolative"
    ]
    assert len(crossed) > 3
    for individual, genome in crossed:
        better, worse = (row_of[parent] for parent in individual.parents)
        assert fitness[better] > fitness[worse]
        nearer, farther = ((genome - before.genomes[row]).norm() for row in (better, worse))
        assert nearer < farther and farther > (before.genomes[better] - before.genomes[worse]).norm()


def test_steady_state_replaces_the_worst() -> None:
    ga = make(pop=8, replacement="steady-state", children=3)
    ga.tell(ga.ask(), np.array([0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.5]))
    assert ids(ga)[:5] == [1, 3, 5, 7, 6]
    assert all(individual.born == 2 for individual in ga.ask().individuals[5:])
    # The failed go too, and are replaced by further children.
    values = np.full(8, NAN)
    values[:2] = 0.5, 0.6
    ga.tell(ga.ask(), values)
    assert ids(ga)[:2] == [3, 1] and len(ids(ga)) == 8


def test_nobody_is_carried_over_beyond_the_greatest_age() -> None:
    ga = make(pop=6, elites=2, max_age=2)
    champion = 3
    for generation in range(1, 4):
        population = ga.ask()
        assert champion in ids(ga)
        fitness = np.array([float(individual.id == champion) for individual in population.individuals])
        ga.tell(population, fitness)
        assert generation + 1 == ga.generation  # type: ignore[attr-defined]
    assert champion not in ids(ga)
    assert len(ids(ga)) == 6
    # Its children live on.
    assert any(champion in individual.parents for individual in ga.ask().individuals)


def test_sharing_lets_a_niche_of_one_breed() -> None:
    """Five twins a little fitter than one stranger: shared, the stranger is the likeliest parent."""
    genomes = torch.zeros(7, LAYOUT.genome_length)
    genomes[5] = 1.0
    individuals = tuple(Individual(id=i, parents=(), operator="base", born=1, mutation_scale=0.1) for i in range(7))
    fitness = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.9, 0.0])
    chosen = {}
    for diversity in ("none", "sharing"):
        ga = make(pop=200, elites=1, crossover_rate=0.0, diversity=diversity)
        ga.tell(Population(genomes, individuals), fitness)
        assert ids(ga)[0] == 0  # elites are by fitness itself
        chosen[diversity] = np.mean([each.parents == (5,) for each in ga.ask().individuals[1:]])
    assert chosen["sharing"] > 1.5 * chosen["none"]


def islands(**options: object) -> Islands:
    made = make(kind=Islands, **options)
    assert isinstance(made, Islands)
    return made


def test_islands_breed_apart_and_their_best_migrate_along_the_ring() -> None:
    strategy = islands(pop=10, elites=3, islands=3, migrate_every=2)
    assert [len(island.ask()) for island in strategy.islands] == [4, 3, 3]
    assert ids(strategy) == list(range(10))
    assert torch.equal(strategy.ask().genomes[4:7], strategy.islands[1].ask().genomes)
    home = {each.id: place for place, island in enumerate(strategy.islands) for each in island.ask().individuals}
    for generation in range(1, 5):
        before = strategy.ask()
        values = np.random.default_rng(generation).random(10)
        strategy.tell(before, values)
        bests = [int(values[rows].argmax()) + rows.start for rows in (slice(0, 4), slice(4, 7), slice(7, 10))]
        for place, island in enumerate(strategy.islands):
            for row, each in enumerate(island.ask().individuals):
                if each.operator == "migration" and each.born == generation + 1:
                    source = bests[place - 1]
                    assert generation % 2 == 0 and row == len(island.ask()) - 1
                    assert each.parents == (before.individuals[source].id,)
                    assert torch.equal(island.ask().genomes[row], before.genomes[source])
                elif each.id not in home:
                    assert {home[parent] for parent in each.parents} == {place}
                home.setdefault(each.id, place)
        migrants = [each for each in strategy.ask().individuals if each.operator == "migration"]
        assert len([each for each in migrants if each.born == generation + 1]) == (3 if generation % 2 == 0 else 0)
        assert len(set(ids(strategy))) == 10


def test_an_island_where_all_have_failed_is_settled_anew() -> None:
    strategy = islands(pop=6, elites=2, islands=2, migrate_every=9)
    strategy.tell(strategy.ask(), np.array([0.1, 0.2, 0.9, NAN, NAN, NAN]))
    later = strategy.islands[1].ask().individuals
    assert len(later) == 3 and all(set(each.parents) <= {0, 1, 2} and each.born == 2 for each in later)
    with pytest.raises(ValueError, match="NaN"):
        strategy.tell(strategy.ask(), np.full(6, NAN))


def succeed(strategy: Strategy, share: float) -> list[float]:
    """The mutation scales of the children of a generation of which this share has beaten its parents, the elites."""
    population = strategy.ask()
    children = [row for row, one in enumerate(population.individuals) if one.born == 1 and one.operator != "base"]
    fitness = np.full(len(population), 0.5)
    fitness[children] = np.where(np.arange(len(children)) < share * len(children), 0.9, 0.1)
    strategy.tell(measured(population, fitness, 1), fitness)
    return [round(one.mutation_scale, 6) for one in strategy.ask().individuals if one.born == 2]


@pytest.mark.parametrize("kind", [GeneticAlgorithm, Islands])
def test_the_mutation_scale_follows_success(kind: type[GeneticAlgorithm | Islands]) -> None:
    options = {"pop": 11, "elites": 1, "mutation_scale": 0.1, "islands": 1}

    def scales(share: float, success: bool = True) -> set[float]:
        return set(succeed(make(kind=kind, mutation_success=success, **options), share))

    assert max(scales(0.0)) < 0.1 < min(scales(0.9))
    assert scales(0.2) == {0.1}
    assert scales(0.9, success=False) == {0.1}


def test_equally_fit_children_and_those_of_the_dead_say_nothing_of_the_scale() -> None:
    strategy = make(pop=6, mutation_scale=0.1, mutation_success=True)
    population = strategy.ask()
    equal = np.full(6, 0.5)
    strategy.tell(measured(population, equal, 1), equal)
    assert {round(one.mutation_scale, 6) for one in strategy.ask().individuals} == {0.1}
    population = strategy.ask()
    orphans = [dataclasses.replace(one, history=()) if one.born < 2 else one for one in population.individuals]
    better = np.array([0.1 if one.born < 2 else 0.9 for one in population.individuals])
    told = measured(Population(population.genomes, tuple(orphans)), better, 2)
    unmeasured = tuple(dataclasses.replace(one, history=()) if one.born < 2 else one for one in told.individuals)
    strategy.tell(Population(told.genomes, unmeasured), better)
    assert {round(one.mutation_scale, 6) for one in strategy.ask().individuals} == {0.1}


def test_success_moves_the_scale_within_bounds() -> None:
    strategy = make(pop=6, elites=1, mutation_scale=0.1, mutation_success=True)
    for generation in range(1, 60):
        population = strategy.ask()
        fitness = np.array([float(one.born == generation) for one in population.individuals]) + generation
        strategy.tell(measured(population, fitness, generation), fitness)
    assert {round(one.mutation_scale, 6) for one in strategy.ask().individuals if one.born == 60} == {0.2}
    with pytest.raises(ValueError, match="auto"):
        make(mutation_scale="auto")
