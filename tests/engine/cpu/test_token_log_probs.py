"""Log-probabilities and entropies of given tokens, compiled, against torch in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evolora.engine.cpu.log_probs import token_log_probs


def exact(logits: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    log_probs = torch.log_softmax(logits / temperature, -1)
    return log_probs.gather(-1, tokens[:, None])[:, 0], -(log_probs.exp() * log_probs).sum(-1)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 9),
    st.integers(1, 300),
    st.sampled_from([0.5, 1.0, 1.7]),
    st.sampled_from([0.01, 1.0, 10.0]),
    st.booleans(),
    st.integers(0, 9),
)
def test_values_and_gradients_are_those_of_float64(
    rows: int, vocabulary: int, temperature: float, scale: float, entropy_gradient: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(rows, vocabulary, generator=generator) + 20).requires_grad_()
    tokens = torch.randint(vocabulary, (rows,), generator=generator)
    weights = torch.randn(2, rows, generator=generator)
    double = logits.detach().double().requires_grad_()
    expected = exact(double, tokens, temperature)
    found = token_log_probs(logits, tokens, temperature=temperature, entropy_gradient=entropy_gradient)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, atol=2e-5, rtol=1e-5)
    assert found[1].requires_grad == entropy_gradient
    used = 2 if entropy_gradient else 1
    gradient = torch.autograd.grad(found[:used], logits, tuple(weights[:used]))[0]
    expected_gradient = torch.autograd.grad(expected[:used], double, tuple(weights[:used].double()))[0]
    torch.testing.assert_close(gradient.double(), expected_gradient, atol=3e-5, rtol=1e-5)


def test_threads_change_nothing() -> None:
    logits, tokens = torch.randn(37, 30_000, requires_grad=True), torch.randint(30_000, (37,))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            values = token_log_probs(logits, tokens, temperature=0.8, entropy_gradient=True)
            found.append([*values, torch.autograd.grad(values[0].sum() + values[1].sum(), logits)[0]])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_row_that_is_no_distribution_is_nan_and_alone_in_it(wrong: float) -> None:
    logits = torch.zeros(3, 5)
    logits[1, 2] = wrong
    logits.requires_grad_()
    log_probs, entropy = token_log_probs(logits, torch.tensor([0, 1, 2]), temperature=1.0, entropy_gradient=True)
    gradient = torch.autograd.grad(log_probs.sum() + entropy.sum(), logits)[0]
    for values in (log_probs, entropy, gradient.sum(-1)):
        assert values.isnan().tolist() == [False, True, False]


def test_other_types_are_left_to_torch_which_differentiates_them_twice() -> None:
    logits, tokens = torch.randn(3, 7, dtype=torch.float64, requires_grad=True), torch.tensor([1, 6, 0])

    def found(x: Tensor) -> tuple[Tensor, Tensor]:
        return token_log_probs(x, tokens, temperature=0.7, entropy_gradient=True)

    assert torch.autograd.gradgradcheck(found, logits)
