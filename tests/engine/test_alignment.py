"""Products by torch, which on some processors went by where in memory their operands lie."""

import pytest
import torch

import evolora

assert evolora.__name__  # imported before any product: it tells the library to compute alike wherever they lie


def _lying(values: torch.Tensor, offset: int) -> torch.Tensor:
    """A copy that begins so many floats after a cache line does."""
    room = torch.empty(values.numel() + 32)
    start = (offset - room.data_ptr() % 64 // 4) % 16
    return room[start : start + values.numel()].view(values.shape).copy_(values)


@pytest.mark.parametrize(("rows", "width", "outputs"), [(1, 192, 192), (24, 192, 8), (24, 192, 192)])
def test_a_product_is_the_same_wherever_its_operands_lie(rows: int, width: int, outputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, weights = (torch.randn(count, width, generator=generator) for count in (rows, outputs))
    products = [
        torch.nn.functional.linear(_lying(inputs, first), _lying(weights, (first + second) % 16))
        for first in range(16)
        for second in (0, 7)
    ]
    assert all(torch.equal(product, products[0]) for product in products)
