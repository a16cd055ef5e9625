"""The token at a uniform number, compiled and by torch, against float64."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evolora.engine.cpu.sampling import _sample_compiled, likeliest, likeliest_rows, sample
from evolora.engine.eager import sampling as eager

Sample = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]

BOTH = pytest.mark.parametrize("draw", [_sample_compiled, eager.sample])
LAST = 1 - 2**-53


def drawn(rows: int, vocabulary: int, *, spread: float = 3.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocabulary, generator=generator) * spread
    return logits, torch.rand(rows, dtype=torch.float64, generator=generator)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@BOTH
@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 5),
    st.sampled_from([1, 2, 3, 15, 16, 17, 31, 64, 100, 4096]),
    st.sampled_from([0.1, 3.0, 40.0]),
    st.sampled_from([0.3, 1.0, 2.5]),
    st.integers(0, 10_000),
)
def test_it_is_the_inverse_of_the_distribution(
    draw: Sample, rows: int, vocabulary: int, spread: float, temperature: float, seed: int
) -> None:
    logits, uniform = drawn(rows, vocabulary, spread=spread, seed=seed)
    tokens, log_probs = draw(logits, uniform, temperature)
    assert tokens.dtype == torch.int64 and log_probs.dtype == torch.float32
    expected = torch.log_softmax(logits.double() / temperature, -1)
    torch.testing.assert_close(log_probs.double(), expected.gather(1, tokens[:, None])[:, 0], atol=3e-5, rtol=1e-6)
    edges = expected.exp().cumsum(-1)
    upper = edges.gather(1, tokens[:, None])[:, 0]
    lower = upper - expected.exp().gather(1, tokens[:, None])[:, 0]
    assert ((lower - 1e-5 <= uniform) & (uniform <= upper + 1e-5)).all()


def test_both_draw_the_same() -> None:
    logits, uniform = drawn(500, 5000)
    compiled, torchs = _sample_compiled(logits, uniform, 0.8), eager.sample(logits, uniform, 0.8)
    assert (compiled[0] == torchs[0]).float().mean() > 0.99  # the others lie at an edge, within rounding
    same = compiled[0] == torchs[0]
    torch.testing.assert_close(compiled[1][same], torchs[1][same], atol=1e-5, rtol=0)


@BOTH
def test_a_token_of_probability_zero_is_never_drawn(draw: Sample) -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]])
    for uniform in (0.0, 0.2, 0.2689, 0.269, 0.5, LAST):
        token, log_prob = draw(logits, torch.tensor([uniform], dtype=torch.float64), 1.0)
        assert int(token) == (1 if uniform < 0.26894 else 3)
        assert log_prob.isfinite().all()


@BOTH
@pytest.mark.parametrize("vocabulary", [1, 2, 16, 17, 50257])
@pytest.mark.parametrize("uniform", [0.0, 0.5, LAST])
@pytest.mark.parametrize("far", [-torch.inf, -3e38, -200.0])
def test_a_certain_token_is_drawn_wherever_it_stands(draw: Sample, vocabulary: int, uniform: float, far: float) -> None:
    for token in {0, vocabulary // 2, vocabulary - 1}:
        logits = torch.full((1, vocabulary), far)
        logits[0, token] = 4.0
        found, log_prob = draw(logits, torch.tensor([uniform], dtype=torch.float64), 1.0)
        assert (int(found), float(log_prob)) == (token, 0.0)


@BOTH
@pytest.mark.parametrize("strange", [torch.nan, torch.inf])
def test_where_there_is_no_distribution_the_log_probability_says_so(draw: Sample, strange: float) -> None:
    logits, uniform = drawn(3, 40)
    logits[1, 7] = strange
    tokens, log_probs = draw(logits, uniform, 1.0)
    assert log_probs.isnan().tolist() == [False, True, False]
    assert ((tokens >= 0) & (tokens < 40)).all()
    assert draw(torch.full((1, 40), -torch.inf), uniform[:1], 1.0)[1].isnan().all()


def test_neither_threads_nor_the_other_rows_matter(threads: None) -> None:
    logits, uniform = drawn(64, 20_000)
    torch.set_num_threads(1)
    tokens, log_probs = _sample_compiled(logits, uniform, 1.0)
    torch.set_num_threads(3)
    again = _sample_compiled(logits, uniform, 1.0)
    some = _sample_compiled(logits[5:9], uniform[5:9], 1.0)
    assert torch.equal(again[0], tokens) and torch.equal(again[1], log_probs)
    assert torch.equal(some[0], tokens[5:9]) and torch.equal(some[1], log_probs[5:9])


def test_which_is_used() -> None:
    logits, uniform = drawn(200, 3000)
    with torch.no_grad():
        assert torch.equal(sample(logits, uniform, 0.7)[1], _sample_compiled(logits, uniform, 0.7)[1])
        # Not laid out row by row: the same.
        assert torch.equal(sample(logits.t().contiguous().t(), uniform, 0.7)[1], sample(logits, uniform, 0.7)[1])
        double = logits.double()
        assert torch.equal(sample(double, uniform, 0.7)[1], eager.sample(double, uniform, 0.7)[1])
    logits.requires_grad_()
    assert sample(logits, uniform, 0.7)[1].requires_grad


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 4),
    st.sampled_from([1, 2, 63, 64, 65, 500, 5000]),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5000), st.sampled_from([7.0, math.inf, -math.inf, math.nan]))),
    st.integers(0, 1000),
)
@torch.no_grad()
def test_the_likeliest_is_the_first_of_the_highest(
    rows: int, vocabulary: int, special: list[tuple[int, int, float]], seed: int
) -> None:
    logits, _ = drawn(rows, vocabulary, seed=seed)
    for row, place, value in special:
        logits[row % rows, place % vocabulary] = value
    found = likeliest(logits[:, None])
    assert found.shape == (rows, 1) and found.dtype == torch.int64
    assert torch.equal(found[:, 0], logits.argmax(-1))
    assert torch.equal(likeliest(logits.bfloat16()), logits.bfloat16().argmax(-1))


@settings(deadline=None)  # the first one compiles
@given(st.integers(1, 4), st.sampled_from([1, 5, 63, 64, 65, 200]), st.integers(0, 10_000))
def test_within_compiled_functions_the_likeliest_is_the_same(rows: int, vocabulary: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    few = torch.tensor([0.0, 1.0, -1.0, torch.inf, -torch.inf, torch.nan])
    chosen = torch.randint(0, 1 + seed % 6, (rows, vocabulary), generator=generator)  # with many that are equal
    logits, tokens = few[chosen], torch.full((rows,), -1)
    likeliest_rows(logits.numpy(), tokens.numpy(), 0, rows)
    assert torch.equal(tokens, likeliest(logits))
