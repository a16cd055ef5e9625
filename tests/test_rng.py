"""Keyed randomness: a draw depends on its key, all of its key, and nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evolora.rng import keyed_generator, keyed_seed, keyed_uniforms

PART = st.one_of(st.integers(-(2**40), 2**40), st.text(st.sampled_from("is1\x1f-"), max_size=4))
KEY = st.lists(PART, max_size=4).map(tuple)


@settings(max_examples=300, deadline=None)
@given(KEY, KEY, st.integers(0, 3), st.integers(0, 3))
def test_seeds_are_equal_only_for_equal_keys(
    one: tuple[int | str, ...], two: tuple[int | str, ...], s: int, t: int
) -> None:
    same = (s, *map(repr, one)) == (t, *map(repr, two))
    assert (keyed_seed(s, *one) == keyed_seed(t, *two)) == same
    assert 0 <= keyed_seed(s, *one) < 2**63


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (("1",), (1,)),
        ((1, 2), (12,)),
        (("a", "b"), ("ab",)),
        (("a\x1fsb",), ("a", "b")),
        (("a\x1fi1",), ("a", 1)),
        (("a\x1f", "b"), ("a", "\x1fb")),
        ((), ("",)),
        (("mutation", 3), ("crossover", 3)),
        (("mutation", 3, 7), ("mutation", 7, 3)),
    ],
)
def test_key_forms_do_not_collide(one: tuple[int | str, ...], two: tuple[int | str, ...]) -> None:
    assert keyed_seed(0, *one) != keyed_seed(0, *two)


def test_a_numpy_integer_is_the_same_key_as_the_integer() -> None:
    assert keyed_seed(0, "mutation", np.int64(3)) == keyed_seed(0, "mutation", 3)  # type: ignore[arg-type]


def test_seeds_stay_what_they_were() -> None:
    # A run resumed by a later version draws what the earlier one would have drawn.
    assert keyed_seed(0, "mutation", 3, 7) == 1_767_128_816_846_673_686


def test_generators_leave_torchs_own_stream_alone() -> None:
    before = torch.get_rng_state()
    one = torch.randn(5, generator=keyed_generator(0, "x", 1))
    assert torch.equal(one, torch.randn(5, generator=keyed_generator(0, "x", 1)))
    assert not torch.equal(one, torch.randn(5, generator=keyed_generator(0, "x", 2)))
    assert not torch.equal(one, torch.randn(5, generator=keyed_generator(1, "x", 1)))
    assert torch.equal(before, torch.get_rng_state())


def kolmogorov_smirnov(values: np.ndarray) -> float:
    """The distance from the uniform distribution, times the square root of the number of values."""
    ordered = np.sort(values)
    steps = np.arange(1, len(values) + 1) / len(values)
    return float(max((steps - ordered).max(), (ordered - steps + 1 / len(values)).max()) * np.sqrt(len(values)))


@pytest.mark.parametrize("neighbours", [True, False])
def test_uniforms_are_uniform_along_rows_and_positions(neighbours: bool) -> None:
    numbers = range(2000)
    seeds = np.array([n if neighbours else keyed_seed(0, "sampling", n) for n in numbers], dtype=np.uint64)
    values = keyed_uniforms(seeds, 50)
    assert values.min() >= 0 and values.max() < 1
    # 1.95 is passed once in a thousand; the thresholds on moments are 5 standard errors.
    assert kolmogorov_smirnov(values.ravel()[::7]) < 1.95
    assert kolmogorov_smirnov(values[:, 0]) < 1.95
    assert abs(values.mean() - 0.5) < 5 * np.sqrt(1 / 12 / values.size)
    assert abs(values.var() - 1 / 12) < 5 * np.sqrt(1 / 180 / values.size)
    for one, two in ((values[:, :-1], values[:, 1:]), (values[:-1], values[1:])):
        assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 5 / np.sqrt(one.size)


def test_a_uniform_depends_on_its_row_and_position_only() -> None:
    seeds = np.array([keyed_seed(0, n) for n in range(6)], dtype=np.uint64)
    whole = keyed_uniforms(seeds, 20)
    assert len(np.unique(whole)) == whole.size
    assert (keyed_uniforms(seeds[[4, 1]], 7) == whole[[4, 1], :7]).all()
    assert (keyed_uniforms(seeds[::-1], 20) == whole[::-1]).all()
    assert keyed_uniforms(seeds[:0], 3).shape == (0, 3)
