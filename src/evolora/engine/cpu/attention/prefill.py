"""Attention within a pack of texts on a CPU, compiled, by the tiles of `matmul.tile`: a query's scores stay in the
processor's first cache, and what none of its neighbours sees is not computed."""

from typing import Any

import numpy as np

from evolora.engine.cpu.jit import REORDERED, compiled, copy, exponentials
from evolora.engine.cpu.matmul.panels import multiply_tiles, whole_vectors
from evolora.engine.cpu.types import F32, F32_2, F32_4

# Queries at a time: their scores stay in the first cache.
_BLOCK = 8
_FAR = np.float32(-1e30)
_ZERO, _ONE = np.float32(0), np.float32(1)


@compiled([F32_4, F32_2, F32, F32_2], **REORDERED)
def attend_within(states: Any, mask: Any, scaling: Any, mixed: Any) -> None:
    """Attention of the queries, keys and values `states` [width, 3, heads, size] of one pack into `mixed` [width,
    heads * size]. `mask` [width, width] is added to the scores; what is masked as strongly as -1e30 is left out, and a
    query that sees nothing gets zeros."""
    width, _, heads, size = states.shape
    wide, padded = whole_vectors(width), whole_vectors(size)
    keys, values = np.zeros((size, wide), np.float32), np.zeros((width, padded), np.float32)
    queries, result = np.empty((_BLOCK, size), np.float32), np.empty((_BLOCK, padded), np.float32)
    scores, weights = np.empty((_BLOCK, wide), np.float32), np.empty((_BLOCK, wide), np.float32)
    powers, reach = np.empty(wide, np.int32), np.empty(width, np.int64)
    _reach(mask, reach)
    for head in range(heads):
        for place in range(width):
            for d in range(size):
                keys[d, place] = states[place, 1, head, d]
                values[place, d] = states[place, 2, head, d]
        for start in range(0, width, _BLOCK):
            end = min(start + _BLOCK, width)
            seen = reach[start:end].max()
            if not seen:
                mixed[start:end] = _ZERO
                continue
            for place in range(start, end):
                copy(states[place, 0, head], queries[place - start])
            multiply_tiles(queries[: end - start], keys, scores, seen)
            for place in range(start, end):
                own, score = weights[place - start, :seen], scores[place - start, :seen]
                top = _highest(score, mask[place], scaling)
                exponentials(score, top, _ONE, own, powers)
                total = _ZERO
                for i in range(seen):
                    total += own[i]
                share = _ONE / total if reach[place] else _ZERO
                for i in range(seen):
                    own[i] *= share
            multiply_tiles(weights[: end - start, :seen], values, result, size)
            for place in range(start, end):
                for d in range(size):
                    mixed[place, head * size + d] = result[place - start, d]


@compiled()
def _reach(bias: Any, reach: Any) -> None:
    """How many positions, from the first on, hold all that each query sees."""
    for place in range(len(reach)):
        seen = bias.shape[1]
        while seen and not bias[place, seen - 1] > _FAR:
            seen -= 1
        reach[place] = seen


@compiled(fastmath={"reassoc", "contract", "nsz", "nnan"})
def _highest(scores: Any, level: Any, scaling: Any) -> Any:
    """The highest of scores * scaling + level, which they become."""
    top = np.float32(-np.inf)
    for i in range(len(scores)):
        scores[i] = scores[i] * scaling + level[i]
        top = max(top, scores[i])
    return top
