"""The population as a value: rows and individuals stay together, and come back whole."""

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch

from evolora.files import read_state, write_state
from evolora.population.population import Hyperparameters, Individual, Population, genome_sha256
from evolora.rng import keyed_generator


def a_population(n: int = 4, first: int = 0) -> Population:
    individuals = tuple(
        Individual(
            id=first + i,
            parents=(i, i + 1),
            operator="crossover" if i % 2 else "base",
            born=i,
            mutation_scale=0.1 / (i + 3),  # not a short decimal
            history=((i, 1 / 3), (i + 1, math.pi)) if i else (),
            hyperparameters=Hyperparameters(0.1 / 3, 0.2 / 3, 0.0) if i % 2 else None,
        )
        for i in range(n)
    )
    return Population(torch.randn(n, 6, generator=keyed_generator(first, "genomes")), individuals)


def test_rows_and_individuals_move_together() -> None:
    population = a_population()
    chosen = population.select([3, 0, 3])
    assert [individual.id for individual in chosen.individuals] == [3, 0, 3]
    assert torch.equal(chosen.genomes, population.genomes[[3, 0, 3]])
    both = chosen.join(a_population(2, first=10))
    assert [individual.id for individual in both.individuals] == [3, 0, 3, 10, 11]
    assert torch.equal(both.genomes[:3], chosen.genomes)
    assert torch.equal(both.select([3, 4]).genomes, a_population(2, first=10).genomes)
    assert len(both) == 5
    assert len(population.select([])) == 0


def test_a_selection_is_a_copy() -> None:
    population = a_population()
    before = population.genomes.clone()
    population.select([0, 1]).genomes.zero_()
    assert torch.equal(population.genomes, before)


@pytest.mark.parametrize("shape", [(3, 6), (5, 6), (4,), (4, 2, 3)])
def test_a_matrix_of_another_length_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="4 individuals with genomes of shape"):
        Population(torch.zeros(shape), a_population().individuals)


def test_the_state_comes_back_whole_from_json_and_from_files(tmp_path: Path) -> None:
    population = a_population()
    state = population.state_dict()
    through_json = {"genomes": state["genomes"], "individuals": json.loads(json.dumps(state["individuals"]))}
    write_state(tmp_path, state)
    for loaded in (through_json, read_state(tmp_path)):
        again = Population.from_state_dict(loaded)
        assert again.individuals == population.individuals
        assert torch.equal(again.genomes, population.genomes) and again.genomes.dtype == torch.float32
        assert hash(again.individuals[1]) == hash(population.individuals[1])  # tuples again, not lists


def test_a_failed_fitness_survives_the_round_trip() -> None:
    failed = Individual(id=0, parents=(), operator="base", born=0, mutation_scale=0.1, history=((0, math.nan),))
    state = json.loads(json.dumps(Population(torch.zeros(1, 2), (failed,)).state_dict()["individuals"]))
    assert math.isnan(Individual.from_dict(state[0]).history[0][1])


def test_the_checksum_sees_one_bit_and_nothing_else() -> None:
    genome = a_population().genomes[0]
    name = genome_sha256(genome)
    assert name == genome_sha256(genome.clone().requires_grad_()) == genome_sha256(genome.double())
    assert name == genome_sha256(torch.stack([genome, genome], 1)[:, 0])  # strides do not matter
    for place in range(len(genome)):
        for bit in (0, 12, 31):
            changed = genome.clone()
            changed.view(torch.int32)[place] ^= 1 << bit if bit < 31 else -(2**31)
            assert genome_sha256(changed) != name
    assert genome_sha256(torch.tensor([1.0])) == hashlib.sha256(b"\x00\x00\x80\x3f").hexdigest()
