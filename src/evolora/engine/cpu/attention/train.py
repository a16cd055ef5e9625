"""Causal attention along paths through a forest of tokens on a CPU, forwards and backwards, compiled, by the tiles of
`evolora.engine.cpu.matmul.tile`.

A path is a text: tokens, each of which sees those before it and itself. Texts that begin alike share those tokens,
whose queries are one path's, and whose keys and values get a gradient from all. No query meets a key that it does not
see, which of packs of texts (`evolora.engine.eager.packing`), masked from each other, most keys are.
"""

from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from evolora.engine.cpu.jit import REORDERED, compiled, copy, exponentials, run_rows
from evolora.engine.cpu.matmul.panels import multiply_tiles, whole_vectors
from evolora.engine.cpu.types import BOOL_1, BOOL_3, F32, F32_3, I64, I64_1, I64_2

# Queries at a time: of a long text the keys that none of them sees are left out.
_QUERIES = 64
ROOT, NO_TOKEN = -1, -2
_FAR = -1e30
_LEAST, _ZERO, _ONE = np.float32(-1e30), np.float32(0), np.float32(1)


class Paths(NamedTuple):
    """Path p is `lengths[p]` of the `tokens` from `starts[p]` on; its queries are those of its tokens from `begins[p]`
    on. Each token's query is one path's."""

    tokens: Any
    starts: Any
    lengths: Any
    begins: Any

    @classmethod
    def of(cls, parents: Any) -> Self:
        """From what each token follows, `parents` [tokens]: one of the tokens before it; ROOT if it is the first of a
        text; NO_TOKEN if it is of none, sees nothing and is not seen."""
        depths, ends = np.zeros(len(parents), np.int64), parents != NO_TOKEN
        measure(parents, depths, ends)
        lengths = depths[ends]
        starts, begins = lengths.cumsum() - lengths, np.empty_like(lengths)
        tokens = np.empty(lengths.sum(), np.int64)
        trace(parents, ends.nonzero()[0], starts, lengths, tokens, begins)
        # In pieces of so many queries.
        pieces = -(-(lengths - begins) // _QUERIES)
        path = np.arange(len(lengths)).repeat(pieces)
        piece = np.arange(len(path)) - (pieces.cumsum() - pieces)[path]
        begins = begins[path] + piece * _QUERIES
        return cls(tokens, starts[path], np.minimum(begins + _QUERIES, lengths[path]), begins)

    @classmethod
    def seen(cls, mask: Tensor | None, rows: int, width: int) -> Self | None:
        """Through the flattened tokens of `rows` rows, as `mask` [rows or 1, 1, width, width] says which token sees
        which: a boolean one, or one that is added to scores; each sees what is before it without one. None where what
        is seen is not a forest."""
        if mask is None:
            own = np.arange(-1, width - 1)[None]
            own = own.repeat(rows, 0)
        else:
            sees = mask if mask.dtype == torch.bool else mask == 0
            if mask.dtype != torch.bool and bool((mask[~sees] > _FAR).any()):
                return None
            if mask.shape[1:] != (1, width, width):
                return None
            found = np.empty((len(mask), width), np.int64)
            if not follow(sees[:, 0].contiguous().numpy(), found):
                return None
            own = found if len(mask) == rows else found.repeat(rows, 0)
        first = np.arange(rows)[:, None] * width
        return cls.of(np.where(own >= 0, own + first, own).reshape(-1))


# As types.
_PATHS = (I64_1,) * 4


def attend_along(states: Tensor, paths: Paths, heads: int, scaling: float) -> Tensor:
    """What attention makes of `states` [tokens, 3 * width], the queries, keys and values of all heads: [tokens, width],
    zeros where there is no path."""
    mixed = states.new_zeros(len(states), states.shape[1] // 3)
    arrays = _by_head(states, 3 * heads), *paths, np.float32(scaling), _by_head(mixed, heads)
    run_rows(attend_heads, arrays, heads, torch.get_num_threads())
    return mixed


def attention_gradient(states: Tensor, of_mixed: Tensor, paths: Paths, heads: int, scaling: float) -> Tensor:
    """The gradient of `states`, from that of what `attend_along` makes of them, `of_mixed` [tokens, width]."""
    result = torch.zeros_like(states)
    given, made = (_by_head(each, 3 * heads) for each in (states, result))
    arguments = given, _by_head(of_mixed, heads), *paths, np.float32(scaling), made
    run_rows(gradient_heads, arguments, heads, torch.get_num_threads())
    return result


def _by_head(states: Tensor, heads: int) -> Any:
    """[tokens, heads, size]."""
    return states.view(len(states), heads, -1).numpy()


@compiled([BOOL_3, I64_2])
def follow(sees: Any, parents: Any) -> bool:
    """Into `parents` [rows, width] what each token follows within its row, as `Paths.of` takes it. False if some token
    does not see itself and just what the one that it follows sees."""
    rows, width, _ = sees.shape
    for row in range(rows):
        for token in range(width):
            own = sees[row, token]
            parent = NO_TOKEN
            for other in range(width):
                if own[other] and other <= token:
                    parent = other if other < token else max(parent, ROOT)
            parents[row, token] = parent
            for other in range(width):
                follows = parent >= 0 and sees[row, parent, other]
                if own[other] != (follows or (other == token and parent != NO_TOKEN)):
                    return False
    return True


@compiled([I64_1, I64_1, BOOL_1])
def measure(parents: Any, depths: Any, ends: Any) -> None:
    """How many tokens each path has up to each token, and which of the tokens of a path none follows."""
    for token in range(len(parents)):
        parent = parents[token]
        if parent != NO_TOKEN:
            depths[token] = 1
        if parent >= 0:
            depths[token] += depths[parent]
            ends[parent] = False


@compiled([I64_1, I64_1, I64_1, I64_1, I64_1, I64_1])
def trace(parents: Any, ends: Any, starts: Any, lengths: Any, tokens: Any, begins: Any) -> None:
    """The tokens of the path to each of `ends`, and where the first is that no path before it has."""
    had = np.zeros(len(parents), np.bool_)
    for path in range(len(ends)):
        token, place = ends[path], lengths[path]
        begins[path] = 0
        while token != ROOT:
            place -= 1
            tokens[starts[path] + place] = token
            if had[token]:
                begins[path] = max(begins[path], place + 1)
            had[token] = True
            token = parents[token]


@compiled([F32_3, *_PATHS, F32, F32_3, I64, I64], **REORDERED)
def attend_heads(
    states: Any,
    tokens: Any,
    starts: Any,
    lengths: Any,
    begins: Any,
    scaling: Any,
    mixed: Any,
    first: Any,
    last: Any,
) -> None:
    """Heads `first` to `last` (not included) of `mixed` [tokens, heads, size]; `states` are [tokens, 3 heads, size]."""
    if not len(lengths):
        return
    heads, size = mixed.shape[1:]
    longest, most = lengths.max(), (lengths - begins).max()
    wide, padded = whole_vectors(most), whole_vectors(size)
    # What tiles read beyond an end has to be numbers; what they make of it is not used.
    keys, values = np.zeros((longest, padded), np.float32), np.zeros((longest, padded), np.float32)
    queries = np.zeros((size, wide), np.float32)
    scores, result = np.empty((longest, wide), np.float32), np.empty((most, padded), np.float32)
    flat, powers = np.empty((2, longest * wide), np.float32), np.empty(longest * wide, np.int32)
    lines = np.empty((2, wide), np.float32)
    for path in range(len(lengths)):
        length, begin = lengths[path], begins[path]
        own = tokens[starts[path] : starts[path] + length]
        asking, asked = own[begin:], length - begin
        across = whole_vectors(asked)
        for head in range(first, last):
            _take(states, own, heads + head, keys)
            _take(states, own, 2 * heads + head, values)
            _take_turned(states, asking, head, queries)
            multiply_tiles(keys[:length, :size], queries, scores, asked)
            _weigh(scores, length, begin, across, scaling, flat, powers, lines)
            multiply_tiles(scores[:length, :asked].T, values, result, size)
            _add(result, asking, head, mixed)


@compiled([F32_3, F32_3, *_PATHS, F32, F32_3, I64, I64], **REORDERED)
def gradient_heads(
    states: Any,
    of_mixed: Any,
    tokens: Any,
    starts: Any,
    lengths: Any,
    begins: Any,
    scaling: Any,
    of_states: Any,
    first: Any,
    last: Any,
) -> None:
    """Heads `first` to `last` (not included) of `of_states` [tokens, 3 * heads, size], to which is added."""
    if not len(lengths):
        return
    heads, size = of_mixed.shape[1:]
    longest, most = lengths.max(), (lengths - begins).max()
    wide, padded = whole_vectors(most), whole_vectors(size)
    keys, values = np.zeros((longest, padded), np.float32), np.zeros((longest, padded), np.float32)
    queries, given = np.zeros((most, padded), np.float32), np.zeros((most, padded), np.float32)
    queries_turned, given_turned = np.zeros((size, wide), np.float32), np.zeros((size, wide), np.float32)
    weights, shares = np.empty((longest, wide), np.float32), np.empty((longest, wide), np.float32)
    flat, powers = np.empty((2, longest * wide), np.float32), np.empty(longest * wide, np.int32)
    result, lines = np.empty((longest, padded), np.float32), np.empty((2, wide), np.float32)
    for path in range(len(lengths)):
        length, begin = lengths[path], begins[path]
        own = tokens[starts[path] : starts[path] + length]
        asking, asked = own[begin:], length - begin
        across = whole_vectors(asked)
        for head in range(first, last):
            _take(states, own, heads + head, keys)
            _take(states, own, 2 * heads + head, values)
            _take(states, asking, head, queries)
            _take(of_mixed, asking, head, given)
            _take_turned(states, asking, head, queries_turned)
            _take_turned(of_mixed, asking, head, given_turned)
            multiply_tiles(keys[:length, :size], queries_turned, weights, asked)
            _weigh(weights, length, begin, across, scaling, flat, powers, lines)
            multiply_tiles(values[:length, :size], given_turned, shares, asked)
            _share(weights, shares, length, across, scaling, lines)
            multiply_tiles(shares[:length, :asked].T, keys, result, size)
            _add(result, asking, head, of_states)
            multiply_tiles(shares[:length, :asked], queries, result, size)
            _add(result, own, heads + head, of_states)
            multiply_tiles(weights[:length, :asked], given, result, size)
            _add(result, own, 2 * heads + head, of_states)


@compiled(**REORDERED)
def _weigh(scores: Any, length: Any, begin: Any, across: Any, scaling: Any, flat: Any, powers: Any, lines: Any) -> None:
    """In place of `scores` [length, across], keys by queries, their softmax over what each query sees: as vectors of
    queries. `flat`, `powers` and `lines` are room."""
    top, total = lines[0, :across], lines[1, :across]
    for i in range(across):
        top[i], total[i] = _LEAST, _ZERO
    for j in range(length):
        score = scores[j]
        for i in range(across):
            # Query i sees the keys up to begin + i.
            score[i] = score[i] * scaling if i >= j - begin else _LEAST
            top[i] = max(top[i], score[i])
    less, exponents = flat[0, : length * across], flat[1, : length * across]
    for j in range(length):
        score, target = scores[j], less[j * across : (j + 1) * across]
        for i in range(across):
            target[i] = score[i] - top[i]
    exponentials(less, _ZERO, _ONE, exponents, powers)
    for j in range(length):
        exponent = exponents[j * across : (j + 1) * across]
        for i in range(across):
            total[i] += exponent[i]
    for i in range(across):
        total[i] = _ONE / total[i]
    for j in range(length):
        exponent, score = exponents[j * across : (j + 1) * across], scores[j]
        for i in range(across):
            score[i] = exponent[i] * total[i]


@compiled(**REORDERED)
def _share(weights: Any, of_weights: Any, length: Any, across: Any, scaling: Any, lines: Any) -> None:
    """In place of the gradient `of_weights` of what `_weigh` gives that of the scores; `lines` is room."""
    common = lines[0, :across]
    for i in range(across):
        common[i] = _ZERO
    for j in range(length):
        weight, of_weight = weights[j], of_weights[j]
        for i in range(across):
            common[i] += weight[i] * of_weight[i]
    for j in range(length):
        weight, of_weight = weights[j], of_weights[j]
        for i in range(across):
            of_weight[i] = weight[i] * (of_weight[i] - common[i]) * scaling


@compiled(**REORDERED)
def _take(states: Any, tokens: Any, head: Any, target: Any) -> None:
    """A head's states of `tokens`, into the first rows of `target`."""
    for i in range(len(tokens)):
        copy(states[tokens[i], head], target[i])


@compiled(**REORDERED)
def _take_turned(states: Any, tokens: Any, head: Any, target: Any) -> None:
    """The same, into its first columns."""
    for i in range(len(tokens)):
        own = states[tokens[i], head]
        for d in range(len(own)):
            target[d, i] = own[d]


@compiled(**REORDERED)
def _add(result: Any, tokens: Any, head: Any, states: Any) -> None:
    """The first rows of `result`, to a head's states of `tokens`."""
    for i in range(len(tokens)):
        more, own = result[i], states[tokens[i], head]
        for d in range(len(own)):
            own[d] += more[d]
