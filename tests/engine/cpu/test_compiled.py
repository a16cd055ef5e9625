"""What the compiled functions share."""

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evolora.engine.cpu.jit import exponentials, highest, run_rows


@pytest.mark.parametrize("scale", [1.0, 0.5, 3.0])
def test_the_exponential_is_good_to_the_last_places(scale: float) -> None:
    x = np.linspace(-80 / scale, 0, 100_001, dtype=np.float32) + np.float32(5)
    found, powers = np.empty_like(x), np.empty(len(x), np.int32)
    exponentials(x, np.float32(5), np.float32(scale), found, powers)
    expected = np.exp((x.astype(np.float64) - 5) * scale)
    # What is multiplied by the scale is rounded once, and that is amplified by the exponent.
    assert np.abs(found / expected - 1).max() < (3e-7 if scale == 1 else 6e-6)


def test_what_is_far_below_the_highest_has_no_weight() -> None:
    x = np.array([0, -86, -88, -1e4, -3e38, -np.inf], np.float32)
    found = np.empty_like(x)
    exponentials(x, np.float32(0), np.float32(1), found, np.empty(len(x), np.int32))
    assert found[0] == 1 and 0 < found[1] < 1e-37 and (found[2:] == 0).all()


@settings(deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=True), min_size=1, max_size=70))
def test_the_highest(values: list[float]) -> None:
    x = np.array(values, np.float32)
    np.testing.assert_array_equal(highest(x), x.max())  # zeros of either sign are equal


@pytest.mark.parametrize("threads", [0, 1, 2, 3, 20])
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_each_row_is_done_once(threads: int, rows: int) -> None:
    done, lock = np.zeros(rows, np.int64), threading.Lock()

    def function(count: Any, first: int, last: int) -> None:
        with lock:
            count[first:last] += 1

    run_rows(function, [done], rows, threads)
    assert (done == 1).all()


def test_an_error_in_a_thread_is_raised() -> None:
    def function(first: int, last: int) -> None:
        if first:
            raise RuntimeError("in the second half")

    with pytest.raises(RuntimeError, match="second half"):
        run_rows(function, [], 4, 2)
