"""The log-probabilities of given tokens and the entropies of their distributions, softmax(logits / temperature).

Compiled: one pass over each row of the logits, and one backwards. torch makes five copies of them, of GPT-2
124M 200 KB a token each.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evolora.engine.cpu.jit import REORDERED, compiled, exponentials, highest, in_float32, run_rows, threads_worth
from evolora.engine.cpu.types import F32, F32_1, F32_2, I64, I64_1
from evolora.engine.eager import log_probs as eager


def token_log_probs(
    logits: Tensor, tokens: Tensor, *, temperature: float, entropy_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Of `tokens` [n] and logits [n, vocabulary]: both [n]. Differentiable in the logits, once; the entropies
    only with `entropy_gradient`."""
    if not in_float32(logits):
        return eager.token_log_probs(logits, tokens, temperature=temperature, entropy_gradient=entropy_gradient)
    found: tuple[Tensor, Tensor] = _Compiled.apply(logits, tokens, temperature)  # type: ignore[no-untyped-call]
    log_probs, entropies = found
    return log_probs, entropies if entropy_gradient else entropies.detach()


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        logits, ctx.scale = logits.contiguous(), np.float32(1 / temperature)
        log_probs, entropies, totals = (torch.empty(len(logits), dtype=torch.float32) for _ in range(3))
        _run(forward_rows, ctx.scale, logits, tokens, log_probs, entropies, totals)
        ctx.save_for_backward(logits, tokens, entropies, totals)
        return log_probs, entropies

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_log_probs: Tensor, of_entropies: Tensor) -> tuple[Tensor, None, None]:
        logits, tokens, entropies, totals = ctx.saved_tensors
        result = torch.empty_like(logits)
        given = of_log_probs.contiguous(), of_entropies.contiguous()
        _run(backward_rows, ctx.scale, logits, tokens, entropies, totals, *given, result)
        return result, None, None


def _run(function: Any, scale: Any, logits: Tensor, *others: Tensor) -> None:
    arrays = [tensor.detach().numpy() for tensor in (logits, *others)]
    run_rows(function, [scale, *arrays], len(logits), threads_worth(logits.numel()))


@compiled([F32, F32_2, I64_1, F32_1, F32_1, F32_1, I64, I64], **REORDERED)
def forward_rows(
    scale: Any, logits: Any, tokens: Any, log_probs: Any, entropies: Any, totals: Any, first: Any, last: Any
) -> None:
    """Rows `first` to `last` (not included); a row's total is the logarithm of the sum of its exponentials, of the
    scaled logits less the highest."""
    vocabulary = logits.shape[1]
    weights, powers = np.empty(vocabulary, np.float32), np.empty(vocabulary, np.int32)
    for row in range(first, last):
        own = logits[row]
        top = highest(own)
        if not np.isfinite(top):
            log_probs[row] = entropies[row] = totals[row] = np.nan
            continue
        exponentials(own, top, scale, weights, powers)
        total, mean = np.float32(0), np.float32(0)
        for i in range(vocabulary):
            total += weights[i]
            mean += weights[i] * ((own[i] - top) * scale)
        totals[row] = math.log(total)
        log_probs[row] = (own[tokens[row]] - top) * scale - totals[row]
        entropies[row] = totals[row] - mean / total


@compiled([F32, F32_2, I64_1, F32_1, F32_1, F32_1, F32_1, F32_2, I64, I64], **REORDERED)
def backward_rows(
    scale: Any,
    logits: Any,
    tokens: Any,
    entropies: Any,
    totals: Any,
    of_log_probs: Any,
    of_entropies: Any,
    result: Any,
    first: Any,
    last: Any,
) -> None:
    """Rows `first` to `last` (not included) of the gradient of the logits: of a token's log-probability 1 - p for the
    token itself and -p for others, of the entropy -p (log p + entropy), p being the probabilities."""
    powers = np.empty(logits.shape[1], np.int32)
    for row in range(first, last):
        own, target = logits[row], result[row]
        top = highest(own)
        if not np.isfinite(top):
            target[:] = np.nan
            continue
        exponentials(own, top, scale, target, powers)
        share = np.float32(math.exp(-totals[row]) * scale)
        alike, more = of_log_probs[row], of_entropies[row]
        level = entropies[row] - totals[row]
        for i in range(len(own)):
            target[i] *= -share * (alike + more * ((own[i] - top) * scale + level))
        target[tokens[row]] += alike * scale
