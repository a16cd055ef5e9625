"""Products of a few rows or many with a weight in panels, compiled.

A library's product arranges the weight for each call, at a cost that only many rows repay; a frozen weight can be kept
arranged. Each result is a sum in one order, whatever the rows beside it and however threads share the work: a row's
results have the same bits in every batch.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from evolora.engine.cpu.jit import REORDERED, compiled, copy
from evolora.engine.cpu.matmul.tile import LANES, TILE_ROWS, TILE_VECTORS, tile
from evolora.engine.cpu.types import BOOL, F32_1, F32_2, I64

Floats = npt.NDArray[np.float32]

PANEL = LANES * TILE_VECTORS
# Rows that go through all panels before others: they stay in the processor's caches meanwhile.
_ROWS_AT_ONCE = 2048
# A weight's lines that are copied at a time where columns have to become rows: they stay in the first cache.
_LINES = 32
_BYTES = 4
_NO_BIAS = np.zeros(LANES, np.float32)

_wide_8, _wide_4, _wide_2, _wide_1 = (tile(rows, TILE_VECTORS) for rows in (8, 4, 2, 1))
_slim_8, _slim_4, _slim_2, _slim_1 = (tile(rows, 1) for rows in (8, 4, 2, 1))
_HAS_8 = TILE_ROWS >= 8


@compiled([I64])
def panels_of(columns: Any) -> Any:
    """How many panels there are of a weight with so many columns; the last may be a narrower one."""
    return -(-columns // PANEL)


def arranged(weight: Floats, *, transposed: bool) -> Floats:
    """A weight [in, out], or [out, in] if `transposed`, in panels: flat, `PANEL` columns after another, each [in,
    PANEL]; what is left over in panels of one vector, with zeros beyond the last column."""
    depth, columns = weight.shape[::-1] if transposed else weight.shape
    panels = np.empty(depth * whole_vectors(columns), np.float32)
    arrange(weight, transposed, 0, panels_of(columns), panels)
    return panels


@compiled([F32_2, BOOL, I64, I64, F32_1])
def arrange(weight: Any, transposed: Any, first: Any, last: Any, panels: Any) -> None:
    """Panels `first` to `last` (not included) into the flat `panels`, from its beginning."""
    depth, columns = weight.shape if not transposed else (weight.shape[1], weight.shape[0])
    place = 0
    for panel in range(first, last):
        column = panel * PANEL
        while column < min((panel + 1) * PANEL, columns):
            width = PANEL if column + PANEL <= columns else LANES
            count = min(width, columns - column)
            own = panels[place : place + depth * width].reshape(depth, width)
            if transposed:
                for start in range(0, depth, _LINES):
                    for j in range(count):
                        line = weight[column + j]
                        for k in range(start, min(start + _LINES, depth)):
                            own[k, j] = line[k]
            elif count == PANEL:  # a number of steps that the compiler knows
                for k in range(depth):
                    source, target = weight[k, column : column + PANEL], own[k]
                    for j in range(PANEL):
                        target[j] = source[j]
            else:
                for k in range(depth):
                    for j in range(count):
                        own[k, j] = weight[k, column + j]
            if count < width:
                own[:, count:] = np.float32(0)
            place += depth * width
            column += width


@compiled([F32_2, F32_1, F32_1, F32_2, I64, I64, I64, I64], **REORDERED)
def multiply_rows(
    x: Any, panels: Any, bias: Any, result: Any, first_row: Any, last_row: Any, first: Any, last: Any
) -> None:
    """Rows `first_row` to `last_row` (not included) of `result` [rows, out] = x [rows, in] times the weight + bias
    [out], in its panels `first` to `last` (not included)."""
    depth = x.shape[1]
    for top in range(first_row, last_row, _ROWS_AT_ONCE):
        end = min(top + _ROWS_AT_ONCE, last_row)
        for panel in range(first, last):
            _by_panel(x, panels[panel * PANEL * depth :], bias, result, top, end, panel)


@compiled([F32_2, F32_2, BOOL, F32_1, F32_2, I64, I64], **REORDERED)
def multiply_plain(x: Any, weight: Any, transposed: Any, bias: Any, result: Any, first: Any, last: Any) -> None:
    """`multiply_rows` of all rows with a weight [in, out], or [out, in] if `transposed`, of which each panel is
    arranged when its turn comes: for many rows."""
    rows, depth = x.shape
    room = np.empty(depth * PANEL, np.float32)
    for top in range(0, rows, _ROWS_AT_ONCE):
        end = min(top + _ROWS_AT_ONCE, rows)
        for panel in range(first, last):
            arrange(weight, transposed, panel, panel + 1, room)
            _by_panel(x, room, bias, result, top, end, panel)


@compiled(**REORDERED)
def _by_panel(x: Any, own: Any, bias: Any, result: Any, first: Any, last: Any, panel: Any) -> None:
    """Rows `first` to `last` (not included) in the columns of one panel, which begins where `own` does."""
    depth, columns = x.shape[1], result.shape[1]
    column = panel * PANEL
    if column + PANEL <= columns:
        _wide(x, own.ctypes.data, bias, result, column, first, last)
        return
    address = own.ctypes.data
    while column + LANES <= columns:
        _slim(x, address, bias, column, result, column, first, last)
        address += depth * LANES * _BYTES
        column += LANES
    if column < columns:
        count = columns - column
        start, room = np.zeros(LANES, np.float32), np.empty((last - first, LANES), np.float32)
        copy(bias[column:], start)
        _slim(x[first:last], address, start, 0, room, 0, 0, last - first)
        for row in range(first, last):
            for j in range(count):
                result[row, column + j] = room[row - first, j]


@compiled(**REORDERED)
def _wide(x: Any, panel: Any, bias: Any, result: Any, column: Any, first: Any, last: Any) -> None:
    """Rows `first` to `last` (not included) in the `PANEL` columns from `column` on; of the panel the address. (An
    array of this function's own would be let go with the last use of its name, which is where its address is taken.)
    """
    depth, columns = x.shape[1], result.shape[1]
    start = bias.ctypes.data + column * _BYTES
    own, target = x.ctypes.data + first * depth * _BYTES, result.ctypes.data + (first * columns + column) * _BYTES
    row = first
    if _HAS_8:
        while row + 8 <= last:
            _wide_8(own, depth, 1, panel, PANEL, start, target, columns, depth)
            own, target, row = own + 8 * depth * _BYTES, target + 8 * columns * _BYTES, row + 8
    while row + 4 <= last:
        _wide_4(own, depth, 1, panel, PANEL, start, target, columns, depth)
        own, target, row = own + 4 * depth * _BYTES, target + 4 * columns * _BYTES, row + 4
    if row + 2 <= last:
        _wide_2(own, depth, 1, panel, PANEL, start, target, columns, depth)
        own, target, row = own + 2 * depth * _BYTES, target + 2 * columns * _BYTES, row + 2
    if row < last:
        _wide_1(own, depth, 1, panel, PANEL, start, target, columns, depth)


@compiled(**REORDERED)
def _slim(x: Any, panel: Any, bias: Any, bias_column: Any, result: Any, column: Any, first: Any, last: Any) -> None:
    """`_wide` of a panel of one vector."""
    depth, columns = x.shape[1], result.shape[1]
    start = bias.ctypes.data + bias_column * _BYTES
    own, target = x.ctypes.data + first * depth * _BYTES, result.ctypes.data + (first * columns + column) * _BYTES
    _one_vector(own, depth, 1, panel, LANES, start, target, columns, depth, last - first)


@compiled([I64])
def whole_vectors(count: Any) -> Any:
    """So many entries, or as many more as fill the last vector."""
    return -(-count // LANES) * LANES


@compiled([F32_2, F32_2, F32_2, I64], **REORDERED)
def multiply_tiles(x: Any, other: Any, result: Any, columns: Any) -> None:
    """The first `columns` of `result` [rows, and more] = x [rows, depth] other [depth, and more]. The last two lie in
    order within their rows, and have room for a whole vector in each, whatever stands there; x may be turned round."""
    rows, depth = x.shape
    x_row, x_step = x.strides[0] // _BYTES, x.strides[1] // _BYTES
    other_row, result_row = other.strides[0] // _BYTES, result.strides[0] // _BYTES
    bias = _NO_BIAS.ctypes.data
    for column in range(0, columns, LANES):
        panel, target = other.ctypes.data + column * _BYTES, result.ctypes.data + column * _BYTES
        _one_vector(x.ctypes.data, x_row, x_step, panel, other_row, bias, target, result_row, depth, rows)


@compiled(**REORDERED)
def _one_vector(
    x: Any,
    x_row: Any,
    x_step: Any,
    panel: Any,
    panel_row: Any,
    bias: Any,
    result: Any,
    result_row: Any,
    depth: Any,
    rows: Any,
) -> None:
    """A vector of columns of `rows` rows; addresses, and entries from one row to the next, of x also from one column to
    the next."""
    own, target, row = x, result, 0
    while row + 8 <= rows:
        _slim_8(own, x_row, x_step, panel, panel_row, bias, target, result_row, depth)
        own, target, row = own + 8 * x_row * _BYTES, target + 8 * result_row * _BYTES, row + 8
    if row + 4 <= rows:
        _slim_4(own, x_row, x_step, panel, panel_row, bias, target, result_row, depth)
        own, target, row = own + 4 * x_row * _BYTES, target + 4 * result_row * _BYTES, row + 4
    if row + 2 <= rows:
        _slim_2(own, x_row, x_step, panel, panel_row, bias, target, result_row, depth)
        own, target, row = own + 2 * x_row * _BYTES, target + 2 * result_row * _BYTES, row + 2
    if row < rows:
        _slim_1(own, x_row, x_step, panel, panel_row, bias, target, result_row, depth)
