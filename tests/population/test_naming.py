"""Genomes are told apart by their values; their checksums are made beside the work, and are what they were."""

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from evolora.population import population as population_module
from evolora.population.lineage import Lineage
from evolora.population.naming import Names
from evolora.population.population import Individual, genome_sha256, genome_sha256_later

LENGTH = 200


def genomes_of(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, LENGTH, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """All genomes are long ones, whose checksums are not made until this is called."""
    go_on = threading.Event()

    def slow(genome: Tensor) -> str:
        assert go_on.wait(60)
        return genome_sha256(genome)

    monkeypatch.setattr(population_module, "_LONG", 1)
    monkeypatch.setattr(population_module, "genome_sha256", slow)
    return go_on.set


def test_equal_genomes_are_one_and_nearly_equal_ones_are_not() -> None:
    names, genomes = Names(), genomes_of(3)
    first = names.of(genomes)
    assert names.of(genomes.clone()) == first and len(set(first)) == 3
    changed = genomes.clone()
    changed[0, 1], changed[1, 0], changed[2, -1] = float("nan"), -0.0, 9.0
    others = names.of(changed)
    assert not set(others) & set(first) and names.of(changed) == others
    assert [named.sha256 for named in others] == [genome_sha256(genome) for genome in changed]


def test_who_is_not_kept_is_new_again_and_who_is_expected_is_known() -> None:
    names, genomes = Names(), genomes_of(3)
    first = names.of(genomes)
    names.keep(first[:1])
    again = names.of(genomes)
    assert again[0] is first[0] and again[1] is not first[1]
    resumed = Names()
    expected = [resumed.expect(named.sha256) for named in first]
    assert resumed.of(genomes) == expected


def test_nobody_waits_for_checksums_before_they_are_written(held: Callable[[], None]) -> None:
    names, genomes, lineage = Names(), genomes_of(2), Lineage()
    named = names.of(genomes)
    assert names.of(genomes[[1, 0]]) == named[::-1]
    right = [genome_sha256(genome) for genome in genomes]
    for number, genome in enumerate(genomes):
        lineage.born(Individual(number, (0,) * number, "base", born=0, mutation_scale=0.1), genome)
    lineage.measured(0, "population", [], [])
    genomes.zero_()  # what was born is what counts
    assert not genome_sha256_later(genomes[0]).done()
    held()
    assert [one.sha256 for one in named] == right
    assert lineage.query("SELECT genome_sha256 FROM individuals ORDER BY id") == [(each,) for each in right]
    assert lineage.query("SELECT child, parent FROM parents") == [(1, 0)]
