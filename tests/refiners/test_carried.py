"""What individuals carry from one refinement to the next: Adam's state, row by row."""

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evolora.population.population import Individual
from evolora.refiners.carried import CarriedStates
from evolora.refiners.optimiser import RowAdam

# Not a multiple of the width of a vector register.
LENGTH = 37


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def torchs(row: Tensor, gradients: list[Tensor], lr: float) -> Tensor:
    """A row after torch's own Adam."""
    row = row.clone().requires_grad_()
    adam = torch.optim.Adam([row], lr=lr)
    for gradient in gradients:
        row.grad = gradient.clone()
        adam.step()
    return row.detach()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=4),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(0, 99),
)
def test_each_row_is_torchs_adam_to_the_last_bit(active: list[list[bool]], dtype: torch.dtype, seed: int) -> None:
    """Rows of different learning rates that step at different times are as old as their own steps."""
    k = len(active)
    start = drawn(k, LENGTH, seed=seed).to(dtype)
    rates = [1e-3 * 3**row for row in range(k)]
    rows = start.clone()
    adam = RowAdam(rows, torch.tensor(rates, dtype=torch.float64), [{}] * k)
    gradients = [drawn(k, LENGTH, seed=1000 + seed + step).to(dtype) * 10.0 ** (step % 5 - 2) for step in range(12)]
    for step, gradient in enumerate(gradients):
        assert adam.step(gradient, torch.tensor([row[step] for row in active])).all()
    for row in range(k):
        mine = [gradient[row] for gradient, each in zip(gradients, active[row], strict=True) if each]
        assert torch.equal(rows[row], torchs(start[row], mine, rates[row]))


def test_an_optimiser_goes_on_where_another_ended() -> None:
    start, gradients = drawn(2, LENGTH, seed=0), [drawn(2, LENGTH, seed=step) for step in range(1, 9)]
    lr, both = torch.tensor([0.01, 0.02], dtype=torch.float64), torch.ones(2, dtype=torch.bool)
    rows = start.clone()
    states: list[dict[str, Tensor]] = [{}, {}]
    for gradient in gradients:
        adam = RowAdam(rows, lr, states)
        adam.step(gradient, both)
        states = [adam.state(row) for row in range(2)]
    for row in range(2):
        assert torch.equal(rows[row], torchs(start[row], [gradient[row] for gradient in gradients], float(lr[row])))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_a_row_that_diverges_keeps_its_place_and_its_moments(bad: float) -> None:
    rows = drawn(2, LENGTH, seed=0)
    adam = RowAdam(rows, torch.tensor([0.1, 0.1]), [{}, {}])
    both = torch.ones(2, dtype=torch.bool)
    adam.step(drawn(2, LENGTH, seed=1), both)
    before, state = rows.clone(), adam.state(1)
    gradient = drawn(2, LENGTH, seed=2)
    gradient[1, 5] = bad
    assert adam.step(gradient, both).tolist() == [True, False]
    assert (rows[0] != before[0]).all()
    assert torch.equal(rows[1], before[1])
    assert all(torch.equal(value, state[name]) for name, value in adam.state(1).items())
    assert [int(adam.state(row)["adam.steps"]) for row in range(2)] == [2, 1]


def person(id: int, *parents: int) -> Individual:
    return Individual(id=id, parents=parents, operator="x", born=1, mutation_scale=0.1)


def resumed(carried: CarriedStates) -> CarriedStates:
    """After a checkpoint: tensors as they are, the rest through JSON."""
    state = carried.state_dict()
    rest = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    other = CarriedStates()
    other.load_state_dict({**state, **json.loads(json.dumps(rest))})
    return other


def test_children_inherit_their_first_parents_that_has_one_and_the_dead_are_forgotten() -> None:
    carried = CarriedStates()
    one, two = {"x": torch.tensor([1.0])}, {"x": torch.tensor([2.0])}
    carried.give(1, one)
    carried.give(2, two)
    carried.give(5, {})
    people = [person(2), person(3, 9, 2, 1), person(4, 1, 2), person(5, 1), person(6, 9)]
    carried.keep(people)
    carried = resumed(carried)

    def held(id: int) -> list[float]:
        return [float(value) for value in carried.of(id).values()]

    assert [held(id) for id in (1, 2, 3, 4, 5, 6, 9)] == [[], [2], [2], [1], [1], [], []]
    assert len(carried.state_dict()["carried.x"]) == 2, "what several share is written once"
    carried.give(3, {"x": torch.tensor([7.0])})
    assert [held(id) for id in (2, 3)] == [[2], [7]]
    carried.keep([])
    assert carried.state_dict() == {} and resumed(carried).state_dict() == {}


def test_a_state_is_of_this_moment() -> None:
    """What an optimiser hands over does not change when it goes on."""
    rows, yes = drawn(1, LENGTH, seed=0), torch.ones(1, dtype=torch.bool)
    adam = RowAdam(rows, torch.tensor([0.1]), [{}])
    adam.step(drawn(1, LENGTH, seed=1), yes)
    state: dict[str, Any] = adam.state(0)
    before = {name: value.clone() for name, value in state.items()}
    RowAdam(rows, torch.tensor([0.1]), [state]).step(drawn(1, LENGTH, seed=2), yes)
    adam.step(drawn(1, LENGTH, seed=2), yes)
    assert all(torch.equal(value, before[name]) for name, value in state.items())
