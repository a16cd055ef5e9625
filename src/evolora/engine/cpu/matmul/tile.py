"""The innermost loop of a matrix product, made for the vectors and registers of the processor that it runs on.

A tile of the result, some rows by some vectors of columns, stays in registers while the loop goes along the depth; the
weight lies in panels of as many columns, in the order in which the loop reads it (Goto and van de Geijn, 2008, "Anatomy
of high-performance matrix multiplication"; Van Zee and van de Geijn, 2015, "BLIS"). numba's own vectors are not enough:
it does not keep a tile in registers.
"""

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

_FLOAT, _INT, _INDEX = ir.FloatType(), ir.IntType(64), ir.IntType(32)


def _tile_shape() -> tuple[int, int]:
    """Entries of a vector and rows of a tile, for three vectors of columns: with those of the weight and one of an
    input, as many vectors as there are registers, 32 with AVX-512 or else 16, and no more."""
    return (16, 8) if llvm.get_host_cpu_features().get("avx512f", False) else (8, 4)


LANES, TILE_ROWS = _tile_shape()
TILE_VECTORS = 3


def tile(rows: int, vectors: int) -> Callable[..., None]:
    """A function for compiled code: `rows` rows by `vectors` vectors of columns of a product, of float32.

    It takes the address of x, the address of a panel [depth, vectors * LANES], that of a bias and that of the result,
    with, of all but the bias, how many entries are from one row to the next, of x also from one column to the next; and
    the depth.
    """
    vector = ir.VectorType(_FLOAT, LANES)

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        x, x_stride, x_step, panel, panel_stride, bias, result, result_stride, depth = arguments
        fma = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{LANES}f32"
        )
        x, panel, bias, result = (builder.inttoptr(each, _FLOAT.as_pointer()) for each in (x, panel, bias, result))

        def entry(pointer: Any, index: Any) -> Any:
            return builder.gep(pointer, [index])

        def at(pointer: Any, index: int) -> Any:
            """The place of a vector."""
            return builder.bitcast(entry(pointer, ir.Constant(_INT, LANES * index)), vector.as_pointer())

        def load(pointer: Any, index: int) -> Any:
            loaded = builder.load(at(pointer, index))
            loaded.align = 4
            return loaded

        def row_of(pointer: Any, stride: Any, row: int) -> Any:
            return entry(pointer, builder.mul(stride, ir.Constant(_INT, row)))

        inputs = [row_of(x, x_stride, row) for row in range(rows)]
        start = [load(bias, index) for index in range(vectors)]
        before, loop = builder.block, builder.append_basic_block("depth")
        after = builder.append_basic_block("store")
        builder.branch(loop)
        builder.position_at_end(loop)
        step = builder.phi(_INT)
        step.add_incoming(ir.Constant(_INT, 0), before)
        sums = [[builder.phi(vector) for _ in range(vectors)] for _ in range(rows)]
        line = entry(panel, builder.mul(step, panel_stride))
        weights = [load(line, index) for index in range(vectors)]
        undefined, same = ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(_INDEX, LANES), [0] * LANES)
        following = builder.add(step, ir.Constant(_INT, 1))
        place = builder.mul(step, x_step)
        step.add_incoming(following, loop)
        totals = []
        for own, own_sums in zip(inputs, sums, strict=True):
            first = builder.insert_element(undefined, builder.load(entry(own, place)), ir.Constant(_INDEX, 0))
            everywhere = builder.shuffle_vector(first, undefined, same)
            totals.append(
                [builder.call(fma, [everywhere, weight, each]) for weight, each in zip(weights, own_sums, strict=True)]
            )
            for each, initial, total in zip(own_sums, start, totals[-1], strict=True):
                each.add_incoming(initial, before)
                each.add_incoming(total, loop)
        builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)
        builder.position_at_end(after)
        for row in range(rows):
            for index in range(vectors):
                builder.store(totals[row][index], at(row_of(result, result_stride, row), index)).align = 4
        return context.get_dummy_value()

    @intrinsic  # type: ignore[untyped-decorator]
    def multiply(_0: Any, _1: Any, _2: Any, _3: Any, _4: Any, _5: Any, _6: Any, _7: Any, _8: Any, _9: Any) -> Any:
        return types.void(*[types.intp] * 9), generate

    chosen: Callable[..., None] = multiply
    return chosen
