"""Runs that begin with several individuals."""

from typing import Any

import pytest
import torch

from evolora import ESConfig, GAConfig
from evolora.models.genome import AdaptedModule, GenomeLayout
from evolora.population.population import Population
from evolora.strategies.options import PBTConfig, PerturbationConfig, StrategyOptions

LAYOUT = GenomeLayout((AdaptedModule("layer", "a", "b", 5, 4, 2, 2.0, 0, 10),))
FOUNDERS = torch.randn(5, LAYOUT.genome_length, generator=torch.Generator().manual_seed(0))


def begun(config: StrategyOptions, founders: int) -> Population:
    return config.build(FOUNDERS[0], LAYOUT, seed=0, others=FOUNDERS[1:founders]).ask()


@pytest.mark.parametrize("founders", [1, 2, 5])
@pytest.mark.parametrize("kind", [GAConfig, PBTConfig, PerturbationConfig])
def test_founders_come_first_and_the_others_descend_from_them(kind: Any, founders: int) -> None:
    config = kind(pop=8)
    population = begun(config, founders)
    assert len(population) == 8 <= config.most_founders() and [each.id for each in population.individuals] == [
        *range(8)
    ]
    assert torch.equal(population.genomes[:founders], FOUNDERS[:founders])
    said = [(each.operator, each.parents, each.born) for each in population.individuals[:founders]]
    assert said == [("base", (), 0), *[("initial", (), 0)] * (founders - 1)]
    parents = [each.parents for each in population.individuals[founders:]]
    around = 1 if kind is PerturbationConfig else founders
    starts = 0 if kind is not PBTConfig else founders
    assert parents == [((starts + number) % around,) for number in range(8 - founders)]
    for row, (parent,) in enumerate(parents, founders):
        off = (population.genomes[row] - FOUNDERS[parent]).abs().max()
        assert off == 0 if kind is PBTConfig else 0 < off < 0.2
    if founders == 1:
        alone = config.build(FOUNDERS[0], LAYOUT, seed=0).ask()
        assert alone.individuals == population.individuals and torch.equal(alone.genomes, population.genomes)


def test_islands_share_them_out() -> None:
    population = begun(GAConfig(pop=8, elites=2, islands=2), 5)
    assert len({each.id for each in population.individuals}) == 8
    for place, own in ((0, [0, 2, 4]), (4, [1, 3])):
        island = population.select(range(place, place + 4))
        assert torch.equal(island.genomes[: len(own)], FOUNDERS[own])
        ids = {each.id for each in island.individuals}
        assert all(set(each.parents) <= ids for each in island.individuals)
    alone = begun(GAConfig(pop=8, elites=2, islands=2), 1)
    assert [each.operator for each in alone.individuals].count("base") == 1
    assert all(each.parents == (0,) for each in alone.individuals[1:])


def test_one_mean_has_one_founder() -> None:
    assert ESConfig(pop=5).most_founders() == 1
