"""Diversity: of weights and of what is written."""

import math

import numpy as np
import pytest
import torch

from evolora.evolution.diversity import diversity
from evolora.models.cost import Cost
from evolora.population.evaluation import Evaluation
from evolora.population.population import Individual, Population


def measured(
    genomes: list[list[float]], written: list[list[str]], unmet: tuple[tuple[int, int], ...] = ()
) -> dict[str, float]:
    """The metrics of individuals with these genomes, a completion a prompt; of `unmet` ones there is none."""
    ids = [[[ord(letter) for letter in text] for text in row] for row in written]
    rewards = np.ones((len(written), len(written[0])))
    for row, prompt in unmet:
        rewards[row, prompt], ids[row][prompt] = math.nan, []
    who = tuple(Individual(id=n, parents=(), operator="base", born=0, mutation_scale=0.1) for n in range(len(genomes)))
    evaluation = Evaluation(rewards.mean(axis=1), rewards, written, Cost(), 0, ids)
    return diversity(Population(torch.tensor(genomes), who), evaluation)


def test_it_is_the_share_of_pairs_that_write_differently() -> None:
    written = [["a", "x"], ["a", "y"], ["b", "z"]]
    found = measured([[0.0], [0.0], [3.0]], written)
    assert found["diversity.completions"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["diversity.distance"] == pytest.approx(math.sqrt(2 * 9 / 3))


def test_the_same_ones_have_none_whatever_their_number() -> None:
    for n in (1, 2, 5):
        same = measured([[1.0, 2.0]] * n, [["a", ""]] * n)
        assert same == {"diversity.distance": 0.0, "diversity.completions": 0.0}


def test_who_has_left_the_race_is_no_other_answer() -> None:
    written = [["a", "x"], ["a", "x"], ["a", ""]]
    assert measured([[0.0]] * 3, written, unmet=((2, 1),))["diversity.completions"] == 0
    assert measured([[0.0]] * 3, written)["diversity.completions"] == pytest.approx(1 / 3)  # it wrote nothing
