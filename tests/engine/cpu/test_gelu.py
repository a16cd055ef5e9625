"""GELU's tanh form, compiled, against torch's in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evolora.engine.cpu.gelu import gelu


def of_torch(x: Tensor, given_gradient: Tensor) -> tuple[Tensor, Tensor]:
    exact = x.detach().double().requires_grad_()
    result = F.gelu(exact, approximate="tanh")
    return result.detach(), torch.autograd.grad(result, exact, given_gradient.double())[0]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.sampled_from([1e-6, 1.0, 5.0, 100.0, 1e6]),
    st.integers(0, 9),
)
def test_values_and_gradients_are_those_of_float64(shape: list[int], scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = (scale * torch.randn(shape, generator=generator)).requires_grad_()
    weights = torch.randn(shape, generator=generator)
    expected, expected_gradient = of_torch(x, weights)
    result = gelu(x)
    torch.testing.assert_close(result.double(), expected, atol=1e-6, rtol=1e-6)
    (gradient,) = torch.autograd.grad(result, x, weights)
    torch.testing.assert_close(gradient.double(), expected_gradient, atol=5e-6, rtol=5e-6)
    with torch.no_grad():
        assert torch.equal(gelu(x), result)


@pytest.mark.parametrize("elements", [1, 1023, 1024, 1025, 500_003])
def test_any_number_of_elements_in_any_number_of_threads(elements: int) -> None:
    x = torch.linspace(-8, 8, elements, requires_grad=True)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            result = gelu(x)
            found.append((result.detach(), torch.autograd.grad(result.sum(), x)[0]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    torch.testing.assert_close(found[0][0], F.gelu(x.detach(), approximate="tanh"), atol=1e-6, rtol=1e-6)


def test_what_does_not_lie_in_order() -> None:
    x = torch.randn(6, 10).t().requires_grad_()
    result, weights = gelu(x), torch.randn(6, 10).t()
    expected, expected_gradient = of_torch(x, weights)
    torch.testing.assert_close(result.double(), expected, atol=1e-6, rtol=1e-6)
    gradient = torch.autograd.grad(result, x, weights)[0]
    torch.testing.assert_close(gradient.double(), expected_gradient, atol=5e-6, rtol=5e-6)


def test_nan_and_infinity_are_torchs() -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, 3e38, -3e38])
    torch.testing.assert_close(gelu(x), F.gelu(x, approximate="tanh"), equal_nan=True)


def test_other_types_are_left_to_torch() -> None:
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gelu, x)
