"""Products with weights in panels, against float64 and against each other to the bit."""

from itertools import pairwise
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evolora.engine.cpu.matmul.panels import PANEL, arranged, multiply_plain, multiply_rows, panels_of
from evolora.engine.cpu.matmul.tile import LANES, _tile_shape

Floats = npt.NDArray[np.float32]

# As bits: NaNs of another making are found too.
UNWRITTEN = np.frombuffer(np.uint32(0x7FC0BEEF).tobytes(), np.float32)[0]
FRAME = 64

rows_ = st.integers(0, 40)
depths = st.integers(1, 70)
columns_ = st.integers(1, 120)
seeds = st.integers(0, 9)
quick = settings(deadline=None, max_examples=60)


def framed(values: Floats) -> Floats:
    """A copy with NaN before and behind it: what is read or written there is seen."""
    whole = np.full(values.size + 2 * FRAME, UNWRITTEN, np.float32)
    inner = whole[FRAME : FRAME + values.size].reshape(values.shape)
    inner[:] = values
    return inner


def unwritten(rows: int, columns: int) -> Floats:
    return framed(np.full((rows, columns), UNWRITTEN, np.float32))


def bits(values: Floats) -> npt.NDArray[np.uint32]:
    return values.view(np.uint32)


def same(one: Floats, other: Floats) -> bool:
    return bool(np.array_equal(bits(np.ascontiguousarray(one)), bits(np.ascontiguousarray(other))))


def assert_frame_is_whole(values: Floats) -> None:
    whole: Any = values
    while whole.base is not None:
        whole = whole.base
    assert whole.size == values.size + 2 * FRAME
    assert (bits(whole[:FRAME]) == bits(UNWRITTEN)).all() and (bits(whole[-FRAME:]) == bits(UNWRITTEN)).all()


class Case:
    """x, a weight [in, out] (or [out, in] if transposed) and a bias, with NaN around each."""

    def __init__(self, rows: int, depth: int, columns: int, seed: int, *, transposed: bool = False) -> None:
        generator = np.random.default_rng(seed)

        def drawn(*shape: int) -> Floats:
            return framed(generator.standard_normal(shape, np.float32))

        self.x, self.bias = drawn(rows, depth), drawn(columns)
        self.weight = drawn(columns, depth) if transposed else drawn(depth, columns)
        self.transposed = transposed
        self.panels = framed(arranged(self.weight, transposed=transposed))
        self.count = int(panels_of(columns))

    @property
    def as_multiplied(self) -> Floats:
        return self.weight.T if self.transposed else self.weight

    def empty(self) -> Floats:
        return unwritten(len(self.x), len(self.bias))

    def by_panels(self, x: Floats | None = None) -> Floats:
        x = self.x if x is None else framed(x)
        result = unwritten(len(x), len(self.bias))
        multiply_rows(x, self.panels, self.bias, result, 0, len(x), 0, self.count)
        assert_frame_is_whole(result)
        return result

    def plain(self) -> Floats:
        result = self.empty()
        multiply_plain(self.x, self.weight, self.transposed, self.bias, result, 0, self.count)
        assert_frame_is_whole(result)
        return result


@quick
@given(rows_, depths, columns_, seeds, st.booleans())
def test_results_are_those_of_float64_and_the_same_to_the_bit_from_a_plain_weight(
    rows: int, depth: int, columns: int, seed: int, transposed: bool
) -> None:
    case = Case(rows, depth, columns, seed, transposed=transposed)
    x, weight, bias = (part.astype(np.float64) for part in (case.x, case.as_multiplied, case.bias))
    found = case.by_panels()
    furthest = (depth + 2) * np.finfo(np.float32).eps * (abs(x) @ abs(weight) + abs(bias))
    assert (abs(found - (x @ weight + bias)) <= furthest).all()
    assert same(found, case.plain())


@quick
@given(depths, columns_, seeds)
def test_a_weight_and_its_transpose_give_the_same_panels(depth: int, columns: int, seed: int) -> None:
    weight = np.random.default_rng(seed).standard_normal((depth, columns), np.float32)
    panels = arranged(weight, transposed=False)
    assert same(panels, arranged(np.ascontiguousarray(weight.T), transposed=True))
    assert same(panels, arranged(np.asfortranarray(weight), transposed=False))
    assert panels.size == depth * -(-columns // LANES) * LANES
    assert np.sort(panels[panels != 0]).tolist() == np.sort(weight[weight != 0]).tolist()


@quick
@given(st.integers(1, 40), depths, columns_, seeds, st.data())
def test_a_row_has_the_same_bits_whatever_is_beside_it(
    rows: int, depth: int, columns: int, seed: int, data: st.DataObject
) -> None:
    case = Case(rows, depth, columns, seed)
    whole = case.by_panels()
    chosen = data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=40))
    assert same(case.by_panels(case.x[chosen]), whole[chosen])
    assert same(case.by_panels(case.x[chosen[:1]]), whole[chosen[:1]])


@quick
@given(rows_, depths, st.integers(1, 4 * PANEL), seeds, st.booleans(), st.data())
def test_ranges_of_rows_and_panels_make_up_the_whole(
    rows: int, depth: int, columns: int, seed: int, transposed: bool, data: st.DataObject
) -> None:
    case = Case(rows, depth, columns, seed, transposed=transposed)
    row_edges = sorted({0, rows, *data.draw(st.lists(st.integers(0, rows), max_size=3))})
    panel_edges = sorted({0, case.count, *data.draw(st.lists(st.integers(0, case.count), max_size=3))})
    whole = case.by_panels()
    pieces, plain = case.empty(), case.empty()
    for first, last in pairwise(panel_edges):
        multiply_plain(case.x, case.weight, transposed, case.bias, plain, first, last)
        for first_row, last_row in pairwise(row_edges):
            multiply_rows(case.x, case.panels, case.bias, pieces, first_row, last_row, first, last)
    assert same(pieces, whole) and same(plain, whole)


@quick
@given(rows_, depths, st.integers(1, 4 * PANEL), seeds, st.data())
def test_nothing_else_is_written(rows: int, depth: int, columns: int, seed: int, data: st.DataObject) -> None:
    case = Case(rows, depth, columns, seed)
    first_row, last_row = sorted(data.draw(st.tuples(st.integers(0, rows), st.integers(0, rows))))
    first, last = sorted(data.draw(st.tuples(st.integers(0, case.count), st.integers(0, case.count))))
    whole = case.by_panels()
    asked = slice(first * PANEL, last * PANEL)
    result, expected = case.empty(), case.empty()
    multiply_rows(case.x, case.panels, case.bias, result, first_row, last_row, first, last)
    expected[first_row:last_row, asked] = whole[first_row:last_row, asked]
    assert same(result, expected)
    assert_frame_is_whole(result)
    result, expected = case.empty(), case.empty()
    multiply_plain(case.x, case.weight, False, case.bias, result, first, last)
    expected[:, asked] = whole[:, asked]
    assert same(result, expected)
    assert_frame_is_whole(result)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("columns", [PANEL, PANEL + LANES + 1])
def test_more_rows_than_stay_in_the_caches(columns: int, transposed: bool) -> None:
    case = Case(2 * 2048 + 7, 3, columns, 0, transposed=transposed)
    whole = case.by_panels()
    assert same(whole, case.plain())
    for part in (slice(0, 9), slice(2040, 2060), slice(4090, None)):
        assert same(whole[part], case.by_panels(case.x[part]))
    expected = case.x.astype(np.float64) @ case.as_multiplied.astype(np.float64) + case.bias
    np.testing.assert_allclose(whole, expected, atol=1e-5)


@quick
@given(st.integers(1, 20), depths, columns_, seeds, st.sampled_from([np.nan, np.inf, -np.inf]), st.data())
def test_what_is_not_finite_stays_in_its_row_and_column(
    rows: int, depth: int, columns: int, seed: int, value: float, data: st.DataObject
) -> None:
    case = Case(rows, depth, columns, seed)
    clean = case.by_panels()
    row, at = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, depth - 1))
    case.x[row, at] = value
    found = case.by_panels()
    np.testing.assert_array_equal(found[row], value * np.sign(case.weight[at]))
    assert same(np.delete(found, row, 0), np.delete(clean, row, 0)) and same(found, case.plain())
    case = Case(rows, depth, columns, seed)
    column = data.draw(st.integers(0, columns - 1))
    case.weight[at, column] = value
    case.panels = framed(arranged(case.weight, transposed=False))
    found = case.by_panels()
    np.testing.assert_array_equal(found[:, column], value * np.sign(case.x[:, at]))
    assert same(np.delete(found, column, 1), np.delete(clean, column, 1)) and same(found, case.plain())


def test_infinity_times_zero_and_less_infinity_are_no_numbers() -> None:
    case = Case(3, 2, PANEL + 1, 0)
    case.x[0] = np.inf, -np.inf
    case.x[1, 0], case.weight[0] = np.inf, 0
    case.panels = framed(arranged(case.weight, transposed=False))
    found = case.by_panels()
    assert np.isnan(found[:2]).all() and np.isfinite(found[2]).all()


@pytest.mark.parametrize(("avx512", "registers"), [(True, 32), (False, 16)])
def test_a_tile_fits_the_registers(avx512: bool, registers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llvm, "get_host_cpu_features", lambda: {"avx512f": avx512, "fma": True})
    lanes, tile_rows = _tile_shape()
    assert lanes == (16 if avx512 else 8)
    assert registers - 4 <= tile_rows * 3 + 3 + 1 <= registers
