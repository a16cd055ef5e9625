"""GELU's tanh form (Hendrycks and Gimpel, 2016, arXiv 1606.08415) on a CPU, forwards and backwards, compiled.

x / 2 (1 + tanh u) = x sigmoid(2 u) with u = sqrt(2 / pi) (x + 0.044715 x^3): one exponential an element.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evolora.engine.cpu.jit import REORDERED, compiled, exponentials, in_float32, run_rows, threads_worth
from evolora.engine.cpu.types import F32_1, I64

_CUBIC = np.float32(0.044715)
_TWICE = np.float32(2 * math.sqrt(2 / math.pi))
_ZERO, _ONE, _THREE = np.float32(0), np.float32(1), np.float32(3)
# Elements at a time: what is kept of them stays in the processor's first cache.
_BLOCK = 1024


def gelu(x: Tensor) -> Tensor:
    """`torch.nn.functional.gelu(x, approximate="tanh")`, once differentiable; of float32 on a CPU the compiled one."""
    if not in_float32(x):
        return F.gelu(x, approximate="tanh")
    if torch.is_grad_enabled() and x.requires_grad:
        differentiable: Tensor = _Gelu.apply(x)  # type: ignore[no-untyped-call]
        return differentiable
    return _run(gelu_block, x.detach())


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _run(gelu_block, x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gelu_gradient(x, gradient)


def gelu_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of `x`, float32 on a CPU, from that of `gelu(x)`."""
    return _run(gradient_block, x, gradient)


def _run(function: Any, *inputs: Tensor) -> Tensor:
    result = torch.empty(inputs[0].shape, dtype=torch.float32)
    arrays = [tensor.contiguous().view(-1).numpy() for tensor in (*inputs, result)]
    run_rows(function, arrays, result.numel(), threads_worth(result.numel()))
    return result


@compiled([F32_1, F32_1, I64, I64], **REORDERED)
def gelu_block(x: Any, result: Any, first: Any, last: Any) -> None:
    """Elements `first` to `last` (not included) of `result`."""
    room, inner, powers = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.int32)
    for start in range(first, last, _BLOCK):
        own, target = x[start : min(start + _BLOCK, last)], result[start : min(start + _BLOCK, last)]
        e = room[: len(own)]
        _exponentials(own, inner[: len(own)], e, powers)
        for i in range(len(own)):
            target[i] = own[i] * ((_ONE if own[i] > _ZERO else e[i]) / (_ONE + e[i]))


@compiled([F32_1, F32_1, F32_1, I64, I64], **REORDERED)
def gradient_block(x: Any, gradient: Any, result: Any, first: Any, last: Any) -> None:
    """Elements `first` to `last` (not included) of `result`, the gradient of x from that of GELU's results."""
    room, inner, powers = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.int32)
    for start in range(first, last, _BLOCK):
        end = min(start + _BLOCK, last)
        own, given, target = x[start:end], gradient[start:end], result[start:end]
        e = room[: len(own)]
        _exponentials(own, inner[: len(own)], e, powers)
        for i in range(len(own)):
            v, below = own[i], _ONE / (_ONE + e[i])
            sigmoid = below if v > _ZERO else e[i] * below
            # The sigmoid's own derivative, and that of what it is taken of.
            steep = v * (e[i] * below * below) * (_TWICE * (_ONE + _THREE * _CUBIC * v * v))
            target[i] = given[i] * (sigmoid + steep)


@compiled(**REORDERED)
def _exponentials(x: Any, inner: Any, result: Any, powers: Any) -> None:
    """exp(-|2 u|), which cannot overflow; `inner` and `powers` are room. None is another's, or there are no vectors."""
    for i in range(len(x)):
        inner[i] = -abs(_TWICE * (x[i] + _CUBIC * x[i] * x[i] * x[i]))
    exponentials(inner, _ZERO, _ONE, result, powers)
