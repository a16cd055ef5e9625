"""Argument types of compiled functions: scalars, and arrays of so many dimensions that lie in order in memory."""

from typing import Any

import numba

F32, F64, I32, I64 = numba.float32, numba.float64, numba.int32, numba.int64
I16, U64, BOOL = numba.int16, numba.uint64, numba.boolean


def array(entry: Any, dimensions: int) -> Any:
    """As numpy and torch make them."""
    return numba.types.Array(entry, dimensions, "C")


F32_1, F32_2, F32_3, F32_4, F32_5, F32_6 = (array(F32, dimensions) for dimensions in range(1, 7))
F64_1, F64_2 = array(F64, 1), array(F64, 2)
I32_1, I64_1, I64_2, U64_1 = array(I32, 1), array(I64, 1), array(I64, 2), array(U64, 1)
BOOL_1, BOOL_2, BOOL_3 = (array(BOOL, dimensions) for dimensions in range(1, 4))


def group(*parts: Any) -> Any:
    """A tuple of such."""
    return numba.types.Tuple(parts)
