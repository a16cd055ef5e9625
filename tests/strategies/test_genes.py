"""Genes beyond the weights: within their bounds whatever happens to them, and nobody's but the individual's own."""

import json
import math
from dataclasses import asdict, replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evolora.models.genome import AdaptedModule, GenomeLayout
from evolora.population.population import Hyperparameters, Individual
from evolora.strategies import GAConfig, GeneticAlgorithm, Islands
from evolora.strategies.operators.genes import TEMPERATURES, WIDEST, Genes
from evolora.strategies.options import GeneName

LAYOUT = GenomeLayout((AdaptedModule("m", "a", "b", 3, 4, 2, 2.0, 0, 6),))
ALL: list[GeneName] = list(get_args(GeneName))
START = Hyperparameters(1e-3, 0.02, 0.01, 0.8, (1.0, 1.0, 1.0, 1.0))
GENES = Genes(START, ALL, seed=0)


def within(own: Hyperparameters, start: Hyperparameters = START) -> bool:
    factors = np.array(own.reward_weights)
    assert start.temperature is not None
    return (
        start.lr / WIDEST <= own.lr <= start.lr * WIDEST
        and start.kl_weight / WIDEST <= own.kl_weight <= start.kl_weight * WIDEST
        and own.entropy_weight == start.entropy_weight
        and own.temperature in [start.temperature * step for step in TEMPERATURES]
        and len(factors) == len(start.reward_weights)
        and bool((factors >= 0).all())
        and math.isclose(factors.sum(), len(factors), rel_tol=1e-9)
    )


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.booleans()), max_size=40), st.integers(0, 2**31))
def test_bounds_hold_after_any_mutations_and_crossovers(steps: list[tuple[int, int, bool]], seed: int) -> None:
    genes = replace(GENES, seed=seed)
    living = [START] + [genes.child([START], (1, number), first=True) for number in range(5)]
    for number, (one, other, both) in enumerate(steps):
        parents = [living[one], living[other]] if both else [living[one]]
        living[number % len(living)] = genes.child(parents, (2, number))
    assert all(map(within, living))


@given(st.sampled_from(ALL), st.integers(1, 50))
def test_a_gene_is_drawn_alike_whichever_others_evolve(name: GeneName, id: int) -> None:
    start = START if name == "reward-weights" else replace(START, reward_weights=())
    parents = [GENES.child([START], (1, number), first=True) for number in (1, 2)]
    alone, whole = Genes(start, [name], 0).child(parents, (3, id)), GENES.child(parents, (3, id))
    field = name.replace("-", "_")
    assert getattr(alone, field) == getattr(whole, field)
    rest = {other for other in asdict(START) if other not in (field, "reward_weights")}
    assert all(getattr(alone, other) == getattr(start, other) for other in rest)


def test_the_first_spread_far_and_some_follow_little_but_one_summand() -> None:
    first = [GENES.child([START], (1, number), first=True) for number in range(100)]
    dominant = [max(own.reward_weights) / 4 > 0.8 for own in first]
    assert 10 < sum(dominant) < 90
    assert {int(np.argmax(own.reward_weights)) for own in first} == {0, 1, 2, 3}
    assert max(own.lr for own in first) > 4 * START.lr and min(own.lr for own in first) < START.lr / 4
    assert len({own.temperature for own in first}) > 2


def test_a_summand_goes_and_comes_back() -> None:
    own, seen = START, set[tuple[bool, ...]]()
    for number in range(200):
        own = GENES.child([own], (2, number))
        seen.add(tuple(factor == 0 for factor in own.reward_weights))
    gone = [{pattern[index] for pattern in seen} for index in range(4)]
    assert all(each == {True, False} for each in gone)


def test_parents_without_a_summand_in_common_have_children_all_the_same() -> None:
    parents = [replace(START, reward_weights=(4.0, 0.0, 0.0, 0.0)), replace(START, reward_weights=(0.0, 0.0, 0.0, 4.0))]
    assert all(within(GENES.child(parents, (2, number))) for number in range(50))


def test_a_weight_of_0_stays_0() -> None:
    genes = replace(GENES, start=replace(START, kl_weight=0.0))
    assert genes.child([genes.start], (1, 1), first=True).kl_weight == 0


def ga(kind: type[GeneticAlgorithm | Islands] = GeneticAlgorithm, **options: Any) -> Any:
    config = GAConfig(**{"pop": 6, "lr": 1e-3, "genes": ALL, **options})
    return kind(torch.zeros(14), LAYOUT, config, seed=0, summands=3)


def genes_in(strategy: Any) -> list[Hyperparameters | None]:
    return [one.hyperparameters for one in strategy.ask().individuals]


def test_the_base_has_the_options_own_and_everybody_else_genes() -> None:
    base, *others = genes_in(ga())
    assert base == Hyperparameters(1e-3, 0.02, 0.0, 1.0, (1.0, 1.0, 1.0))
    assert len(set(others)) == 5 and base not in others


def test_without_genes_nobody_has_any_and_the_weights_are_the_same_with_them() -> None:
    plain, with_genes = ga(genes=None), ga()
    for _ in range(3):
        assert genes_in(plain) == [None] * 6 == genes_in(ga(genes=["auto"]))
        assert torch.equal(plain.ask().genomes, with_genes.ask().genomes)
        for strategy in (plain, with_genes):
            strategy.tell(strategy.ask(), np.arange(6.0))


@pytest.mark.parametrize("kind", [GeneticAlgorithm, Islands])
def test_a_checkpoint_keeps_them(kind: type[GeneticAlgorithm | Islands]) -> None:
    options = {"islands": 2, "migrate_every": 1} if kind is Islands else {}
    strategy, resumed = ga(kind, **options), ga(kind, **options)
    strategy.tell(strategy.ask(), np.arange(6.0))
    state = {
        name: value if isinstance(value, torch.Tensor) else json.loads(json.dumps(value))
        for name, value in strategy.state_dict().items()
    }
    resumed.load_state_dict(state)
    for one in (strategy, resumed):
        one.tell(one.ask(), np.arange(6.0)[::-1].copy())
    assert genes_in(strategy) == genes_in(resumed)
    assert None not in genes_in(strategy)


def test_individuals_of_a_run_before_there_were_genes_have_none_nor_have_their_children() -> None:
    before, strategy = ga(genes=None), ga()
    strategy.load_state_dict(before.state_dict())
    strategy.tell(strategy.ask(), np.arange(6.0))
    assert genes_in(strategy) == [None] * 6
    old = asdict(Individual(0, (), "copy", 1, 0.0, hyperparameters=Hyperparameters(1.0, 2.0, 3.0)))
    for name in ("temperature", "reward_weights"):
        del old["hyperparameters"][name]
    assert Individual.from_dict(old).hyperparameters == Hyperparameters(1.0, 2.0, 3.0)


def test_of_several_refined_the_fittest_leads_the_average() -> None:
    strategy = ga()
    population = strategy.ask()
    individuals = list(population.individuals)
    for row in (1, 2):
        individuals[row] = replace(individuals[row], id=strategy.new_id(), parents=(row,), operator="ppo")
    refined = replace(population, individuals=tuple(individuals))
    strategy.tell(refined, np.array([0.0, 0.9, 0.1, 0.2, 0.3, 0.8]))
    head, average = strategy.ask().individuals[:2]
    assert head.id == individuals[1].id and average.parents == (head.id,)
    assert average.hyperparameters == head.hyperparameters is not None
