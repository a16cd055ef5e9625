"""Attention along paths against the same by torch, masked, in float64; and what paths are read from."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evolora.engine.cpu.attention import train as path_attention
from evolora.engine.cpu.attention.train import NO_TOKEN, ROOT, Paths, attend_along, attention_gradient
from evolora.engine.eager.packing import pack

FAR = torch.finfo(torch.float32).min


def forest(tokens: int, seed: int) -> list[int]:
    """What each of so many tokens follows: texts that begin alike, some of one token; a tenth are of no text."""
    draw = np.random.default_rng(seed)
    parents: list[int] = []
    for token in range(tokens):
        own = [other for other in range(token) if parents[other] != NO_TOKEN]
        if draw.random() < 0.1:
            parents.append(NO_TOKEN)
        elif not own or draw.random() < 0.1:
            parents.append(ROOT)
        else:  # mostly the latest: texts are long
            parents.append(own[-1] if draw.random() < 0.7 else int(draw.choice(own)))
    return parents


def seen_in(parents: list[int]) -> Tensor:
    """[tokens, tokens], true where a token sees another."""
    sees = torch.zeros(len(parents), len(parents), dtype=torch.bool)
    for token, parent in enumerate(parents):
        if parent != NO_TOKEN:
            sees[token, token] = True
        if parent >= 0:
            sees[token] |= sees[parent]
    return sees


def by_torch(states: Tensor, sees: Tensor, heads: int, scaling: float) -> Tensor:
    query, key, value = states.double().unflatten(1, (3, heads, -1)).permute(1, 2, 0, 3)
    scores = (query @ key.transpose(1, 2) * scaling).masked_fill(~sees, -torch.inf)
    weights = scores.softmax(-1).nan_to_num()  # of a token that sees nothing
    mixed: Tensor = (weights @ value).transpose(0, 1).flatten(1)
    return mixed


@pytest.mark.parametrize(("heads", "size"), [(1, 1), (2, 8), (6, 32), (3, 20), (12, 64), (1, 5)])
@pytest.mark.parametrize(("tokens", "longest"), [(1, 64), (7, 64), (60, 64), (150, 64), (90, 7)])
def test_values_and_gradient_are_those_of_float64(
    heads: int, size: int, tokens: int, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(path_attention, "_QUERIES", longest)
    parents = forest(tokens, seed=tokens)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(tokens, 3 * heads * size, generator=generator).requires_grad_()
    of_mixed = torch.randn(tokens, heads * size, generator=generator)
    of_mixed[[parent == NO_TOKEN for parent in parents]] = 0
    expected = by_torch(states, seen_in(parents), heads, 0.3)
    (of_states,) = torch.autograd.grad(expected, states, of_mixed.double())
    paths, given = Paths.of(np.array(parents)), states.detach()
    torch.testing.assert_close(attend_along(given, paths, heads, 0.3).double(), expected, atol=5e-6, rtol=1e-5)
    found = attention_gradient(given, of_mixed, paths, heads, 0.3)
    torch.testing.assert_close(found, of_states, atol=2e-5, rtol=1e-4)


def test_threads_share_the_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    states, of_mixed = torch.randn(40, 3 * 20, generator=generator), torch.randn(40, 20, generator=generator)
    paths = Paths.of(np.array(forest(40, seed=3)))
    alone = attend_along(states, paths, 5, 0.5), attention_gradient(states, of_mixed, paths, 5, 0.5)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    shared = attend_along(states, paths, 5, 0.5), attention_gradient(states, of_mixed, paths, 5, 0.5)
    assert all(torch.equal(one, other) for one, other in zip(alone, shared, strict=True))


def test_what_is_large_overflows_nowhere() -> None:
    states = torch.zeros(3, 3 * 4)
    states[:, :8] = 1e4  # scores of 4e8
    states[:, 8:] = torch.tensor([1.0, 2.0, 3.0])[:, None]
    mixed = attend_along(states, Paths.of(np.array([ROOT, 0, 1])), 1, 1.0)
    torch.testing.assert_close(mixed[:, 0], torch.tensor([1.0, 1.5, 2.0]))


@settings(deadline=None)  # the first one compiles
@given(st.integers(1, 60), st.integers(0, 10_000), st.sampled_from([1, 3, 64]))
def test_each_query_is_in_one_path_with_all_that_it_sees(tokens: int, seed: int, longest: int) -> None:
    parents = forest(tokens, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(path_attention, "_QUERIES", longest)
        paths = Paths.of(np.array(parents))
    sees, asked = seen_in(parents), []
    for start, length, begin in zip(paths.starts, paths.lengths, paths.begins, strict=True):
        own = paths.tokens[start : start + length].tolist()
        assert 0 < length - begin <= longest
        for place in range(begin, length):
            asked.append(own[place])
            assert own[: place + 1] == sees[own[place]].nonzero()[:, 0].tolist()
    assert sorted(asked) == [token for token, parent in enumerate(parents) if parent != NO_TOKEN]


@settings(deadline=None)
@given(st.integers(1, 3), st.integers(1, 12), st.integers(0, 10_000), st.booleans())
def test_paths_are_read_from_masks(rows: int, width: int, seed: int, boolean: bool) -> None:
    parents = [forest(width, seed + row) for row in range(rows)]
    mask = torch.stack([seen_in(own) for own in parents])[:, None]
    expected = [own if own < 0 else row * width + own for row in range(rows) for own in parents[row]]
    given = mask if boolean else torch.zeros(mask.shape).masked_fill(~mask, FAR)
    found = Paths.seen(given, rows, width)
    assert found is not None
    for one, other in zip(found, Paths.of(np.array(expected)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_without_a_mask_each_token_sees_all_before_it() -> None:
    found = Paths.seen(None, 2, 3)
    assert found is not None
    assert found.tokens.tolist() == [0, 1, 2, 3, 4, 5] and found.lengths.tolist() == [3, 3]
    one_for_all = Paths.seen(torch.ones(3, 3, dtype=torch.bool).tril()[None, None], 2, 3)
    assert one_for_all is not None and one_for_all.tokens.tolist() == found.tokens.tolist()


def test_packs_are_forests() -> None:
    packs = pack([[5, 6, 7], [5, 6, 8, 9], [5, 6, 7], [4], [5]], width=8)
    paths = Paths.seen(torch.from_numpy(packs.mask)[:, None], *packs.ids.shape)
    assert paths is not None
    read = [
        packs.ids.reshape(-1)[paths.tokens[s : s + n]].tolist()
        for s, n in zip(paths.starts, paths.lengths, strict=True)
    ]
    assert sorted(read) == [[4], [5, 6, 7], [5, 6, 8, 9]]


@pytest.mark.parametrize(
    "rows",
    [
        [[1, 0], [1, 0]],  # does not see itself
        [[1, 1], [1, 1]],  # sees what is after it
        [[1, 0, 0], [1, 1, 0], [0, 1, 1]],  # sees what another sees, but for a part
        [[1, 0, 0], [0, 1, 0], [1, 1, 1]],  # sees two that do not see each other
        [[0, 0], [1, 1]],  # sees one that is of no text
    ],
)
def test_what_is_no_forest_has_no_paths(rows: list[list[int]]) -> None:
    assert Paths.seen(torch.tensor(rows, dtype=torch.bool)[None, None], 1, len(rows)) is None


def test_a_mask_that_only_leans_has_no_paths() -> None:
    mask = torch.zeros(1, 1, 3, 3).masked_fill(torch.ones(3, 3).triu(1).bool(), FAR)
    assert Paths.seen(mask, 1, 3) is not None
    mask[..., 2, 0] = -1.5
    assert Paths.seen(mask, 1, 3) is None
    assert Paths.seen(mask.expand(1, 2, 3, 3), 1, 3) is None, "one for each head"
