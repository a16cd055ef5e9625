"""What adapters add to equal groups of rows, and its gradients, compiled, against torch in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evolora.engine.cpu.dropout import Dropped, dropped
from evolora.engine.cpu.lora_gradient import add_adapters, takes_adapters


def exact(output: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    grouped = x.view(len(a), -1, x.shape[-1])
    return output + scaling * (grouped @ a.mT @ b.mT).view_as(output)


def drawn(n: int, rows: int, time: int, rank: int, width: int, wide: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(n * rows, time, wide), (n * rows, time, width), (n, rank, width), (n, wide, rank)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


@settings(deadline=None, max_examples=80)
@given(
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 7),
    st.sampled_from([1, 2, 4, 8, 9, 16, 20]),
    st.sampled_from([1, 5, 16, 48]),
    st.sampled_from([1, 3, 32, 70]),
    st.integers(0, 9),
)
def test_values_and_gradients_are_those_of_float64(
    n: int, rows: int, time: int, rank: int, width: int, wide: int, seed: int
) -> None:
    tensors = [tensor.requires_grad_() for tensor in drawn(n, rows, time, rank, width, wide, seed)]
    doubles = [tensor.detach().double().requires_grad_() for tensor in tensors]
    weights = torch.randn(n * rows, time, wide, generator=torch.Generator().manual_seed(seed + 100))
    before = tensors[0].detach().clone()
    result, expected = add_adapters(*tensors, 1.5), exact(*doubles, 1.5)
    torch.testing.assert_close(result.double(), expected, atol=1e-3, rtol=1e-4)
    assert torch.equal(tensors[0], before)
    for one, other in zip(
        torch.autograd.grad(result, tensors, weights),
        torch.autograd.grad(expected, doubles, weights.double()),
        strict=True,
    ):
        torch.testing.assert_close(one.double(), other, atol=2e-3, rtol=1e-4)
    with torch.no_grad():
        in_place = add_adapters(*tensors, 1.5)
        assert torch.equal(in_place, result)
        assert in_place.data_ptr() == tensors[0].data_ptr()


@pytest.mark.parametrize("rank", [3, 8, 17])
@pytest.mark.parametrize("rows", [1, 4, 5])
def test_with_dropout_it_is_the_adapter_of_what_is_not_dropped(rank: int, rows: int) -> None:
    tensors = drawn(2, rows, 3, rank, 37, 10, seed=4)
    weights = torch.randn_like(tensors[0])
    found = []
    for apart in (True, False):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        output, x, a, b = leaves
        starts = torch.randint(2**62, x.shape[:-1], generator=torch.Generator().manual_seed(6))
        if apart:
            result = exact(output, dropped(x, 0.4, starts), a, b, 1.5)
        else:
            result = add_adapters(output, x, a, b, 1.5, Dropped.of(0.4, starts))
        found.append([result, *torch.autograd.grad(result, leaves, weights)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-4)


def test_rows_do_not_mix_in_any_number_of_threads() -> None:
    tensors = drawn(4, 3, 5, 8, 40, 24, seed=1)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            leaves = [tensor.clone().requires_grad_() for tensor in tensors]
            result = add_adapters(*leaves, 2.0)
            found.append(torch.autograd.grad(result[3:6].square().sum(), leaves))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    _, of_x, of_a, of_b = found[0]
    for gradient, own in ((of_x, slice(3, 6)), (of_a, slice(1, 2)), (of_b, slice(1, 2))):
        assert gradient[own].abs().sum() > 0
        assert gradient.abs().sum() == gradient[own].abs().sum()


def test_tensors_that_do_not_lie_in_order() -> None:
    output, x, a, b = drawn(2, 3, 4, 8, 16, 12, seed=2)
    turned = [tensor.mT.contiguous().mT for tensor in (output, x, a, b)]
    expected = exact(output, x, a, b, 0.5)
    torch.testing.assert_close(add_adapters(*(t.requires_grad_() for t in turned), 0.5), expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(add_adapters(*turned, 0.5), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("threads", "individuals", "taken"), [(1, 1, True), (2, 1, True), (3, 1, False), (3, 2, True)])
def test_left_to_torch_where_that_has_more_threads(threads: int, individuals: int, taken: bool) -> None:
    output, x, a, _ = drawn(individuals, 1, 2, 2, 3, 4, seed=0)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert takes_adapters(output, x, a) == taken
        assert not takes_adapters(output.double(), x, a)
    finally:
        torch.set_num_threads(before)
