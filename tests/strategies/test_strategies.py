"""Strategies: what they keep, what they replace, and that they climb."""

import dataclasses
import json
import math
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
import torch

from evolora.models.genome import AdaptedModule, GenomeLayout
from evolora.population.population import Hyperparameters, Individual, Population
from evolora.strategies import (
    GAConfig,
    GeneticAlgorithm,
    PBTConfig,
    PopulationBasedTraining,
    RefinerAlone,
    Strategy,
)


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
    options = {"crossover": crossover, "mutation": mutation, "selection": selection}
    ga = make_ga(pop=16, mutation_scale=0.1, mutation_adapt=0.2, **options)
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


@pytest.mark.parametrize("make", [lambda: make_ga(pop=5), alone, lambda: make_pbt(pop=5)], ids=["ga", "none", "pbt"])
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


def make_pbt(seed: int = 0, **options: Any) -> PopulationBasedTraining:
    founder = torch.randn(LAYOUT.genome_length, generator=torch.Generator().manual_seed(1))
    return PopulationBasedTraining(founder, PBTConfig(**{"entropy_weight": 0.01, **options}), seed=seed)


def test_training_begins_with_the_base_and_hyperparameters_around_the_options() -> None:
    population = make_pbt(pop=200, spread=4.0, kl_weight=0.0).ask()
    first, *others = population.individuals
    assert (first.id, first.operator, first.hyperparameters) == (0, "base", Hyperparameters(1e-3, 0.0, 0.01))
    assert (population.genomes == population.genomes[0]).all()
    for name, middle in (("lr", 1e-3), ("entropy_weight", 0.01)):
        logs = np.log([getattr(individual.hyperparameters, name) / middle for individual in others]) / np.log(4)
        assert np.abs(logs).max() <= 1
        # Uniform on [-1, 1]: mean 0, variance a third.
        assert abs(logs.mean()) < 0.15 and abs(logs.var() - 1 / 3) < 0.07
    lr, entropy = ([getattr(one.hyperparameters, name) for one in others] for name in ("lr", "entropy_weight"))
    assert abs(np.corrcoef(lr, entropy)[0, 1]) < 0.2
    assert {individual.hyperparameters.kl_weight for individual in others if individual.hyperparameters} == {0.0}


def test_the_worst_copy_the_best_and_explore() -> None:
    pbt = make_pbt(pop=8, resample=0.0)
    before = pbt.ask()
    genomes = torch.arange(8.0)[:, None].expand(-1, LAYOUT.genome_length).clone()  # what training made of them
    before = Population(genomes, before.individuals)
    fitness = np.array([0.5, 0.1, 0.9, 0.6, 0.2, 0.7, 0.8, 0.4])
    factors, winners = [], set()
    for _ in range(12):
        pbt.tell(before, fitness)
        after = pbt.ask()
        for row in range(8):
            if row not in (1, 4):
                assert after.individuals[row] is before.individuals[row]
                assert torch.equal(after.genomes[row], genomes[row])
        for row in (1, 4):
            copy = after.individuals[row]
            (winner,) = copy.parents
            winners.add(winner)
            assert winner in (2, 6) and torch.equal(after.genomes[row], genomes[winner])
            assert copy.operator == "copy" and copy.id >= 8 and copy.history == ()
            own, parents = copy.hyperparameters, before.individuals[winner].hyperparameters
            assert own is not None and parents is not None
            factors.append(tuple(new / old for new, old in zip(astuple(own)[:3], astuple(parents)[:3], strict=True)))
    assert winners == {2, 6}
    found = {round(factor, 6) for each in factors for factor in each}
    assert found == {0.8, 1.2}
    assert len(set(factors)) > 4, "each hyperparameter for itself"


def test_now_and_then_a_hyperparameter_is_drawn_anew() -> None:
    pbt = make_pbt(pop=4, resample=0.5)
    before, anew = pbt.ask(), []
    for _ in range(60):
        pbt.tell(before, np.array([0.1, 0.4, 0.3, 0.2]))
        own, parents = (one.hyperparameters for one in (pbt.ask().individuals[0], before.individuals[1]))
        assert own is not None and parents is not None
        factor = own.lr / parents.lr
        anew.append(min(abs(factor - 0.8), abs(factor - 1.2)) > 1e-9)
    assert 0.3 < np.mean(anew) < 0.7


def test_the_failed_are_replaced_and_never_copied() -> None:
    pbt = make_pbt(pop=8)
    fitness = np.full(8, math.nan)
    fitness[[3, 5]] = 0.2, 0.1
    pbt.tell(pbt.ask(), fitness)
    individuals = pbt.ask().individuals
    assert [individuals[row].id for row in (3, 5)] == [3, 5]
    assert all(individuals[row].parents in ((3,), (5,)) for row in range(8) if row not in (3, 5))
    with pytest.raises(ValueError, match="NaN"):
        pbt.tell(pbt.ask(), np.full(8, math.nan))


def test_the_learning_rate_that_learns_takes_over() -> None:
    """On a hill where a step of 0.3 is best and steps above 2 lead away, the population finds good steps."""
    pbt = make_pbt(pop=16, lr=0.01, spread=2.0)
    for _ in range(60):
        population = pbt.ask()
        steps = [individual.hyperparameters.lr for individual in population.individuals if individual.hyperparameters]
        genomes = population.genomes * (1 - torch.tensor(steps))[:, None] + 0.05 * torch.randn(
            population.genomes.shape, generator=torch.Generator().manual_seed(pbt.generation)
        )
        pbt.tell(Population(genomes, population.individuals), -genomes.norm(dim=1).double().numpy())
    assert 0.05 < np.median(steps) < 2, "from 0.01"


def refine_row(ga: GeneticAlgorithm, row: int, genome: torch.Tensor) -> Population:
    """The population with the individual at `row` replaced by its refined child."""
    population = ga.ask()
    parent = population.individuals[row]
    child = dataclasses.replace(parent, id=ga.new_id(), parents=(parent.id,), operator="ppo", history=())
    genomes, individuals = population.genomes.clone(), list(population.individuals)
    genomes[row], individuals[row] = genome, child
    return Population(genomes, tuple(individuals))


def test_the_running_average_of_a_lineage_is_an_individual_of_its_own() -> None:
    ga = make_ga(pop=6, elites=1, average=0.25)
    points = torch.randn(5, LAYOUT.genome_length, generator=torch.Generator().manual_seed(2))
    expected, head = points[0], 0
    for number, point in enumerate(points):
        told = refine_row(ga, head, point)
        fitness = np.linspace(1.0, 0.5, 6)
        fitness[head] = 0.0  # however low its fitness
        ga.tell(told, fitness)
        population = ga.ask()
        expected = expected if number == 0 else 0.25 * point + 0.75 * expected
        newest, average = population.individuals[:2]
        assert (newest.operator, average.operator, newest.id) == ("ppo", "average", told.individuals[head].id)
        assert newest.id in average.parents and average.id > newest.id
        torch.testing.assert_close(population.genomes[:2], torch.stack([point, expected]))
        assert len(population) == 6 and len({each.id for each in population.individuals}) == 6
        head = 0
    # Nobody was refined: both stay.
    kept = [each.id for each in ga.ask().individuals[:2]]
    ga.tell(ga.ask(), np.arange(6.0))
    assert [each.id for each in ga.ask().individuals[:2]] == kept
    # Another takes over: a new lineage, a new average.
    other = torch.ones(LAYOUT.genome_length)
    ga.tell(refine_row(ga, 4, other), np.arange(6.0))
    assert torch.equal(ga.ask().genomes[:2], torch.stack([other, other]))


def test_a_small_population_has_room_for_the_lineage_first() -> None:
    ga = make_ga(pop=2, elites=1, average=0.4)
    ga.tell(refine_row(ga, 1, torch.ones(LAYOUT.genome_length)), np.array([0.9, 0.1]))
    assert [each.operator for each in ga.ask().individuals] == ["ppo", "average"]


def test_a_lineage_taken_up_again_goes_on_as_if_it_had_never_stopped() -> None:
    whole = make_ga(pop=5, average=0.4)
    whole.tell(refine_row(whole, 1, torch.ones(LAYOUT.genome_length)), np.arange(5.0))
    state = whole.state_dict()
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    rest = json.loads(json.dumps({name: value for name, value in state.items() if name not in tensors}))
    resumed = make_ga(pop=5, average=0.4)
    resumed.load_state_dict({**tensors, **rest})
    for ga in (whole, resumed):
        ga.tell(refine_row(ga, 0, torch.zeros(LAYOUT.genome_length)), np.arange(5.0))
    assert torch.equal(whole.ask().genomes, resumed.ask().genomes)
    assert torch.equal(whole.ask().genomes[1], torch.full((LAYOUT.genome_length,), 0.6))
    assert whole.ask().individuals == resumed.ask().individuals
