"""Functions compiled by numba, over the rows of a batch."""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from evolora.engine.cpu.cache import KernelCache
from evolora.engine.cpu.types import F32, F32_1, I32_1

# exp(x) = 2^n exp(f) with |f| <= ln(2) / 2, and exp(f) by the polynomial of the Cephes library (S. L. Moshier): good to
# 3 in 10 million. ln(2) is in two parts, so that n times the first is exact.
_LOG2_E = np.float32(1.44269504)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_C5, _C4, _C3 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_C2, _C1, _C0 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_ONE, _ZERO, _HALF, _LEAST = np.float32(1), np.float32(0), np.float32(0.5), np.float32(-87)
_BIAS, _MANTISSA = np.int32(127), np.int32(23)
_LANES = 64
_LEAST_A_THREAD = 200_000

# For `compiled`: sums in any order, so that the compiler can make vectors of them; NaN and infinity as ever.
REORDERED: dict[str, Any] = {"fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}


def in_float32(tensor: Tensor) -> bool:
    """Whether this is float32 on a CPU."""
    return tensor.dtype == torch.float32 and tensor.is_cpu


def takes(*tensors: Tensor) -> bool:
    """Whether compiled functions can be used on these: float32 on a CPU, without gradients."""
    return all(map(in_float32, tensors)) and not torch.is_grad_enabled()


def compiled(types: Sequence[Any] | None = None, **options: Any) -> Callable[[Any], Any]:
    """Compiled without Python's lock, for each list of argument types when it first comes up, and kept on disk where
    there is a place for it (`cache`). `types` are those that a run has, to be compiled ahead of it (`compile`)."""

    def decorate(function: Any) -> Any:
        # What is not said here numba takes from the function that calls this one where it is the first to do so.
        own = {"fastmath": False, "error_model": "numpy", **options}
        kernel = njit(nogil=True, no_cfunc_wrapper=True, **own)(function)  # nothing is called from C
        if function.__module__.startswith("evolora."):
            kernel._cache = KernelCache(function)
        kernel.declared = None if types is None else tuple(types)
        return kernel

    return decorate


@compiled([F32_1, F32_1])
def copy(source: Any, target: Any) -> None:
    """target [n and more] = source [n]. For an assignment to a slice numba compiles the text of an error, too."""
    for i in range(len(source)):
        target[i] = source[i]


@compiled([F32_1])
def highest(x: Any) -> Any:
    """The largest of x [n], float32; NaN if any is. Lane by lane, which the compiler makes vectors of."""
    tops, unlike = np.full(_LANES, -np.inf, np.float32), np.zeros(_LANES, np.int32)
    whole = len(x) // _LANES * _LANES
    for start in range(0, whole, _LANES):
        part = x[start : start + _LANES]
        for lane in range(_LANES):
            value = part[lane]
            tops[lane] = value if value > tops[lane] else tops[lane]
            unlike[lane] |= np.int32(value != value)
    top, nan = tops.max(), unlike.max()
    for i in range(whole, len(x)):
        top = x[i] if x[i] > top else top
        nan |= np.int32(x[i] != x[i])
    return np.float32(np.nan) if nan else top


@compiled([F32_1, F32, F32, F32_1, I32_1], **REORDERED)
def exponentials(x: Any, top: Any, scale: Any, result: Any, powers: Any) -> None:
    """exp((x - top) * scale) of x [n] into `result` [n], float32, zero below 1e-37 or so; no value of x is above
    `top`. `powers` [n] is room, int32."""
    as_float = powers.view(np.float32)
    for i in range(len(x)):
        value = (x[i] - top) * scale
        n = np.floor(max(value, _LEAST) * _LOG2_E + _HALF)
        f = max(value, _LEAST) - n * _LN2_HIGH - n * _LN2_LOW
        series = ((((_C5 * f + _C4) * f + _C3) * f + _C2) * f + _C1) * f + _C0
        result[i] = series * f * f + f + _ONE if value > _LEAST else _ZERO
        powers[i] = (np.int32(n) + _BIAS) << _MANTISSA
    for i in range(len(x)):
        result[i] *= as_float[i]


def threads_worth(entries: int) -> int:
    """How many of torch's threads are worth their calls for a pass over so many entries: one for each 200,000."""
    return min(torch.get_num_threads(), entries // _LEAST_A_THREAD)


def run_rows(function: Callable[..., None], arguments: Sequence[Any], rows: int, threads: int) -> None:
    """`function(*arguments, first, last)` for all `rows`, in up to `threads` threads, the caller's among them."""
    threads = max(1, min(threads, rows))
    if threads == 1:
        function(*arguments, 0, rows)
        return
    edges = [rows * i // threads for i in range(threads + 1)]
    others = [_helpers(threads - 1).submit(function, *arguments, *edges[i : i + 2]) for i in range(1, threads)]
    function(*arguments, *edges[:2])
    for other in others:
        other.result()


@functools.cache
def _helpers(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="evolora-rows")
