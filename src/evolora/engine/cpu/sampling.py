"""How tokens are chosen, compiled: the likeliest; or by keyed sampling, as `eager.sampling` has it, in one pass over
each row of the logits."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evolora.engine.cpu.jit import REORDERED, compiled, exponentials, highest, run_rows, takes, threads_worth
from evolora.engine.cpu.types import F32, F32_1, F32_2, F64_1, I64, I64_1
from evolora.engine.eager import sampling as eager

# That of `eager.sampling`: here because it becomes a part of what is compiled, and kept by this source.
_LITTLE_LESS = 1 - 1e-12


def likeliest(logits: Tensor) -> Tensor:
    """The index of the highest of `logits` [..., vocabulary], the first of equal ones, as `torch.argmax` finds it."""
    if not takes(logits):
        return logits.argmax(-1)
    return torch.from_numpy(logits.numpy().argmax(-1))  # the same, and ten times as fast


def sample(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The tokens at `uniform` [rows] in [0, 1), float64, of `logits` [rows, vocabulary], and their log-probabilities,
    both [rows]. A token of probability zero is never chosen; where a logit is NaN, so is the log-probability."""
    if takes(logits):
        return _sample_compiled(logits.contiguous(), uniform, temperature)
    return eager.sample(logits, uniform, temperature)


def _sample_compiled(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """In one pass over each row while the processor has it; torch makes four copies of the logits."""
    tokens = torch.empty(len(logits), dtype=torch.int64)
    log_probs = torch.empty(len(logits), dtype=torch.float32)
    arrays = [tensor.numpy() for tensor in (logits, uniform, tokens, log_probs)]
    run_rows(sample_rows, [*arrays, np.float32(1 / temperature)], len(logits), threads_worth(logits.numel()))
    return tokens, log_probs


@compiled([F32_2, I64_1, I64, I64])
def likeliest_rows(logits: Any, tokens: Any, first: Any, last: Any) -> None:
    """Rows `first` to `last` (not included) of `tokens` as `likeliest` chooses them."""
    for row in range(first, last):
        own = logits[row]
        top, token = highest(own), 0
        # NaN, which is unlike itself, is the highest, as numpy has it.
        while own[token] != top and (top == top or own[token] == own[token]):
            token += 1
        tokens[row] = token


@compiled([F32_2, F64_1, I64_1, F32_1, F32, I64, I64], **REORDERED)
def sample_rows(logits: Any, uniform: Any, tokens: Any, log_probs: Any, scale: Any, first: Any, last: Any) -> None:
    """Rows `first` to `last` (not included) of `tokens` and `log_probs`."""
    vocabulary = logits.shape[1]
    size = int(math.sqrt(vocabulary)) + 1
    blocks = (vocabulary + size - 1) // size
    weights, powers = np.empty(vocabulary, np.float32), np.empty(vocabulary, np.int32)
    edges = np.empty(blocks, np.float64)
    for row in range(first, last):
        own = logits[row]
        top = highest(own)
        if not np.isfinite(top):
            tokens[row], log_probs[row] = vocabulary - 1, np.nan
            continue
        exponentials(own, top, scale, weights, powers)
        total = np.float64(0)
        for block in range(blocks):
            inside = np.float32(0)
            for i in range(block * size, min((block + 1) * size, vocabulary)):
                inside += weights[i]
            total += inside
            edges[block] = total
        point = uniform[row] * total
        block = 0
        while block < blocks - 1 and edges[block] <= point:
            block += 1
        start, end = block * size, min((block + 1) * size, vocabulary)
        # What is left of the point within its block, whose own sum rounds a little differently: it can neither pass the
        # end nor choose a token of probability zero there.
        inside_total = np.float64(0)
        for i in range(start, end):
            inside_total += weights[i]
        left = min(max(point - (edges[block - 1] if block else 0.0), 0.0), inside_total * _LITTLE_LESS)
        token, reached = start, np.float64(weights[start])
        while token < end - 1 and reached <= left:
            token += 1
            reached += weights[token]
        tokens[row] = token
        log_probs[row] = (own[token] - top) * scale - math.log(total)
