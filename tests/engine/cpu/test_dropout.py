"""Dropout by a seed: how many, how independent, and the same backwards."""

import pytest
import torch
from torch import Tensor

from evolora.engine.cpu.dropout import dropped


def by_seed(x: Tensor, share: float, seed: int = 0) -> Tensor:
    return dropped(x, share, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_the_share_is_dropped_and_the_rest_scaled_up(share: float, dtype: torch.dtype) -> None:
    n = 1_000_000
    result = by_seed(torch.ones(n, dtype=dtype), share)
    zeros = int((result == 0).sum())
    assert abs(zeros - n * share) < 5 * (n * share * (1 - share)) ** 0.5
    kept = result[result != 0]
    assert torch.equal(kept, torch.full_like(kept, kept[0].item()))
    assert float(kept[0]) == pytest.approx(1 / (1 - share), rel=1e-4)


def test_the_gradient_is_dropped_where_its_input_was() -> None:
    x = torch.randn(7, 999, requires_grad=True)
    result, given = by_seed(x, 0.3), torch.randn(7, 999)
    factors = torch.where(result == 0, 0.0, 1 / (1 - round(0.3 * 2**16) / 2**16))
    torch.testing.assert_close(result, x * factors)
    torch.testing.assert_close(torch.autograd.grad(result, x, given)[0], given * factors)


def test_seeds_calls_and_neighbours_are_independent() -> None:
    n, ones = 400_000, torch.ones(400_000)
    generator = torch.Generator().manual_seed(3)
    masks = [by_seed(ones, 0.5, seed) > 0 for seed in (1, 2)] + [dropped(ones, 0.5, generator) > 0 for _ in range(2)]
    limit = 5 * (n / 4) ** 0.5
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert abs(int((one == other).sum()) - n / 2) < limit
        for lag in (1, 2, 3, 4, 768, 4096):
            assert abs(int((one[lag:] == one[:-lag]).sum()) - (n - lag) / 2) < limit
    assert torch.equal(masks[0], by_seed(ones, 0.5, 1) > 0)


def test_threads_and_further_rows_change_nothing() -> None:
    x, before = torch.randn(3, 777, 199), torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(by_seed(x, 0.2))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
    assert torch.equal(by_seed(x[:1], 0.2), found[0][:1])


@pytest.mark.parametrize("share", [0.0000001, 0.9999999])
def test_a_share_at_the_edge_drops_some_and_keeps_some(share: float) -> None:
    result = by_seed(torch.ones(4_000_000), share)
    assert 0 < int((result == 0).sum()) < len(result)
    assert result.isfinite().all()
