"""Dropout by counters: how many, how independent, the same backwards, and the same in both engines."""

import numpy as np
import pytest
import torch
from torch import Tensor

from evolora.engine.cpu.dropout import dropped
from evolora.engine.eager import dropout as eager
from evolora.engine.eager.dropout import Dropout, token_keys


def by_seed(x: Tensor, share: float, seed: int = 0, layer: int = 1) -> Tensor:
    """x [rows, tokens, width], with dropout of texts of these tokens."""
    ids = torch.arange(x.shape[0] * x.shape[1]).view(x.shape[:2])
    keys = token_keys(ids, torch.ones_like(ids), np.full(len(ids), seed, np.uint64))
    return dropped(x, share, Dropout.of(share, keys, layers=layer + 1).of_layer(layer, x.shape[:-1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_the_share_is_dropped_and_the_rest_scaled_up(share: float, dtype: torch.dtype) -> None:
    n = 1_000_000
    result = by_seed(torch.ones(10, 100, n // 1000, dtype=dtype), share)
    zeros = int((result == 0).sum())
    assert abs(zeros - n * share) < 5 * (n * share * (1 - share)) ** 0.5
    kept = result[result != 0]
    assert torch.equal(kept, torch.full_like(kept, kept[0].item()))
    assert float(kept[0]) == pytest.approx(1 / (1 - share), rel=1e-4)


def test_the_gradient_is_dropped_where_its_input_was() -> None:
    x = torch.randn(7, 1, 999, requires_grad=True)
    result, given = by_seed(x, 0.3), torch.randn(7, 1, 999)
    factors = torch.where(result == 0, 0.0, 1 / (1 - round(0.3 * 2**16) / 2**16))
    torch.testing.assert_close(result, x * factors)
    torch.testing.assert_close(torch.autograd.grad(result, x, given)[0], given * factors)


@pytest.mark.parametrize("width", [1, 5, 64, 999])
def test_both_engines_drop_the_same_entries(width: int) -> None:
    x, starts = torch.randn(3, 11, width), torch.randint(-(2**63), 2**63 - 1, (3, 11))
    found = [by(x, 0.3, starts) for by in (dropped, eager.dropped)]
    assert torch.equal(found[0], found[1]) and (found[0] == 0).any()
    by_numbers = [int(number) for number in starts.flatten().numpy().view(np.uint64)]
    for own, start in zip(found[0].flatten(0, 1), by_numbers, strict=True):
        assert (own == 0).tolist() == [bits < round(0.3 * 2**16) for bits in reference(start, width)]


def reference(start: int, width: int) -> list[int]:
    """SplitMix64 in Python's integers: the 16 bits of each entry, with the highest turned as a sign is read."""
    found: list[int] = []
    for counter in range(1, (width + 3) // 4 + 1):
        z = (start + counter * 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        z ^= z >> 31
        found += [(z >> shift & 0xFFFF) ^ 0x8000 for shift in (0, 16, 32, 48)]
    return found[:width]


def test_seeds_layers_tokens_and_neighbours_are_independent() -> None:
    ones = torch.ones(2, 200, 1000)
    masks = [(by_seed(ones, 0.5, seed, layer) > 0).flatten() for seed, layer in ((1, 1), (2, 1), (1, 2), (1, 0))]
    n = len(masks[0])
    limit = 5 * (n / 4) ** 0.5
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert abs(int((one == other).sum()) - n / 2) < limit
        for lag in (1, 2, 3, 4, 768, 1000, 2000, 200_000):
            assert abs(int((one[lag:] == one[:-lag]).sum()) - (n - lag) / 2) < limit
    assert torch.equal(masks[0], (by_seed(ones, 0.5, 1) > 0).flatten())


def test_a_token_has_the_key_of_its_text_so_far() -> None:
    texts = [[5, 6, 7, 8], [5, 6, 9], [6, 5, 7, 8], [5, 6, 7, 8], [0, 5, 6]]
    keys = {}
    for padding in (0, 3):
        ids = torch.tensor([[1] * (padding + 4 - len(text)) + text for text in texts])
        mask = torch.tensor([[0] * (padding + 4 - len(text)) + [1] * len(text) for text in texts])
        found = token_keys(ids, mask, np.array([3, 3, 3, 4, 3], np.uint64))
        keys[padding] = [own[padding + 4 - len(text) :].tolist() for own, text in zip(found, texts, strict=True)]
    assert keys[0] == keys[3]
    first, second, *others = keys[0]
    assert first[:2] == second[:2]
    apart = [key for own in (first, second[2:], *others) for key in own]
    assert len(set(apart)) == len(apart)


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
    result = by_seed(torch.ones(4, 1000, 1000), share)
    assert 0 < int((result == 0).sum()) < result.numel()
    assert result.isfinite().all()
