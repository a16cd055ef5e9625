"""Attention over cached keys and values, against float64 and against what must not matter."""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evolora.engine.cpu.attention import decode as cached_attention
from evolora.engine.cpu.attention.decode import attend, extend

MASKED = torch.finfo(torch.float32).min


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """The same in float64, a query with nothing to see giving zero."""
    positions, shared = mask.shape[-1], query.shape[2] // keys.shape[2]
    keys, values = (x[:, :positions].double().repeat_interleave(shared, 2) for x in (keys, values))
    scores = torch.einsum("rahd,rphd->rhap", query.double(), keys) * scaling + mask[:, None].double()
    weights = scores.masked_fill(mask[:, None] == MASKED, -math.inf).softmax(-1).nan_to_num(0)
    return torch.einsum("rhap,rphd->rahd", weights, values)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 5),
    st.integers(1, 3),
    st.sampled_from([(1, 1), (4, 4), (6, 2), (3, 1)]),
    st.sampled_from([1, 8, 24, 64, 65]),
    st.integers(1, 70),
    st.integers(0, 9),
    st.sampled_from([0.1, 1.0, 30.0]),
    st.booleans(),
    st.integers(0, 1000),
)
def test_it_is_attention(
    rows: int,
    asked: int,
    heads: tuple[int, int],
    size: int,
    positions: int,
    room: int,
    spread: float,
    one: bool,
    seed: int,
) -> None:
    query = drawn(rows, asked, heads[0], size, seed=seed) * spread
    keys, values = (drawn(rows, positions + room, heads[1], size, seed=seed + i) for i in (1, 2))
    mask = drawn(1 if one else rows, asked, positions, seed=seed + 3)
    mask[mask > 0.5] = MASKED
    found = attend(query, keys, values, mask, 0.3)
    close = 2e-5 if spread <= 1 else 1e-4  # a score's rounding grows with it
    torch.testing.assert_close(found.double(), reference(query, keys, values, mask, 0.3), atol=close, rtol=close)


def test_what_is_masked_and_what_lies_beyond_are_not_read() -> None:
    query, keys, values = (drawn(3, n, 4, 16, seed=n) for n in (1, 12, 12))
    mask = torch.zeros(3, 1, 9)
    mask[0, :, :4] = MASKED
    mask[1] = MASKED
    expected = attend(query, keys, values, mask, 0.25)
    for states in (keys, values):
        states[:, 9:] = math.nan
        states[0, :4] = math.nan
        states[1] = math.nan
    found = attend(query, keys, values, mask, 0.25)
    assert torch.equal(found, expected) and torch.equal(found[1], torch.zeros(1, 4, 16))


def test_padding_does_not_change_a_bit() -> None:
    query, keys, values = (drawn(2, n, 4, 24, seed=n) for n in (1, 11, 11))
    narrow = attend(query, keys, values, torch.zeros(2, 1, 11), 0.2)
    for more in (1, 5, 21):
        wider = [torch.cat([drawn(2, more, 4, 24, seed=9), states], 1) for states in (keys, values)]
        mask = torch.cat([torch.full((2, 1, more), MASKED), torch.zeros(2, 1, 11)], -1)
        assert torch.equal(attend(query, wider[0], wider[1], mask, 0.2), narrow)


def test_a_row_that_is_not_finite_stays_alone() -> None:
    query, keys, values = (drawn(3, n, 2, 16, seed=n) for n in (1, 7, 7))
    expected = attend(query, keys, values, torch.zeros(1, 1, 7), 0.25)
    query[1] = math.nan
    found = attend(query, keys, values, torch.zeros(1, 1, 7), 0.25)
    assert found[1].isnan().all() and torch.equal(found[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("count", [2, 3])
def test_threads_share_the_rows(count: int, threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_attention, "_LEAST_A_THREAD", 100)
    query, keys, values = (drawn(7, n, 4, 16, seed=n) for n in (1, 20, 20))
    torch.set_num_threads(1)
    alone = attend(query, keys, values, torch.zeros(1, 1, 20), 0.25)
    parts: list[tuple[int, int]] = []
    own = cached_attention.attend_rows

    def noted(*arguments: Any) -> None:
        parts.append(arguments[-2:])
        own(*arguments)

    monkeypatch.setattr(cached_attention, "attend_rows", noted)
    torch.set_num_threads(count)
    assert torch.equal(attend(query, keys, values, torch.zeros(1, 1, 20), 0.25), alone)
    edges = [7 * i // count for i in range(count + 1)]
    assert sorted(parts) == list(pairwise(edges))


def test_what_is_appended_is_attended_to() -> None:
    states, keys, values = drawn(5, 2, 3, 4, 16, seed=0), drawn(5, 12, 4, 16, seed=1), drawn(5, 12, 4, 16, seed=2)
    mask = torch.zeros(5, 2, 10)
    mask[:, 0, 9] = MASKED  # the first of the two does not see the second
    before = keys.clone(), values.clone()
    found = extend(states, keys, values, 8, mask, 0.25)
    for after, was, kind in ((keys, before[0], 1), (values, before[1], 2)):
        assert torch.equal(after[:, 8:10], states[:, :, kind])
        assert torch.equal(after[:, :8], was[:, :8]) and torch.equal(after[:, 10:], was[:, 10:])
    expected = reference(states[:, :, 0], keys, values, mask, 0.25)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
