"""Rows of tokens on their way through a GPT-2 on a CPU, compiled: embeddings, layers, the choice of the next tokens,
step after step."""

from typing import Any

import numpy as np

from evolora.engine.cpu.attention.decode import attend_rows
from evolora.engine.cpu.gelu import gelu_block
from evolora.engine.cpu.jit import REORDERED, compiled, copy
from evolora.engine.cpu.lora import ADAPTER, add_low_rank
from evolora.engine.cpu.matmul.panels import multiply_rows, panels_of
from evolora.engine.cpu.sampling import likeliest_rows, sample_rows
from evolora.engine.cpu.types import (
    BOOL_1,
    BOOL_2,
    F32,
    F32_1,
    F32_2,
    F32_3,
    F32_4,
    F32_5,
    F32_6,
    F64_2,
    I64,
    I64_1,
    I64_2,
    group,
)

# Typed, since what is given a literal is compiled once more for it.
_ZERO, _START = np.float32(0), np.int64(0)

# As types: a normalisation, a product with its panels, bias and adapter, a layer.
NORM = F32_1, F32_1, F32
PRODUCT = group(F32_1, F32_1, group(*ADAPTER))
_ROOM = group(F32_3, F32_3, F32_6, F32_5, F32_2, F32_3, F32_2, F32_3, F32_2)
_LAYER = group(*[PRODUCT] * 4, group(*NORM), group(*NORM), F32_4, F32_4, F32, _ROOM, F32_3, F32_3)


def steps_types(layers: int) -> tuple[Any, ...]:
    """The argument types of `steps_rows`, of a model with so many layers."""
    model = group(F32_2, F32_2, group(*NORM), group(F32_1, F32_1), F32_3, F32_3)
    state = group(I64_1, I64_1, F32_3, F32_2, F32_2)
    choice = group(I64_2, F32_2, BOOL_2, BOOL_1, I64_1, F32_3, I64_1, F64_2, F32, I64_1, I64)
    return group(*[_LAYER] * layers), model, state, choice, I64, I64, I64, I64


@compiled([I64_1, I64_1, F32_2, F32_2, *NORM, F32_2, F32_2, I64, I64], **REORDERED)
def embed_rows(
    tokens: Any,
    positions: Any,
    words: Any,
    places: Any,
    weight: Any,
    bias: Any,
    epsilon: Any,
    hidden: Any,
    normed: Any,
    first: Any,
    last: Any,
) -> None:
    """Rows `first` to `last` (not included) of `hidden` [rows, width] from the embeddings of tokens and positions,
    normalised into `normed`."""
    for row in range(first, last):
        word, place, own = words[tokens[row]], places[positions[row]], hidden[row]
        for d in range(len(own)):
            own[d] = word[d] + place[d]
        normalise(own, weight, bias, epsilon, normed[row])


@compiled(**REORDERED)
def steps_rows(layers: Any, model: Any, state: Any, choice: Any, place: Any, steps: Any, first: Any, last: Any) -> None:
    """Up to so many steps of rows `first` to `last` (not included), from position `place` of the cache on; see
    `Gpt2Step.run_steps`. Without a choice the first one alone."""
    words, places, first_norm, head, last_hidden, logits = model
    tokens, positions, mask, hidden, normed = state
    chosen, log_probs, good, alive, left, features, done, draws, scale, ends, enough = choice
    for step in range(steps):
        at = step if len(last_hidden) else 0
        embed_rows(tokens, positions, words, places, *first_norm, hidden, normed, first, last)
        for index in range(len(layers)):
            layer_rows(layers[index], at, hidden, normed, mask, place + step, first, last)
        if len(last_hidden):
            copy_rows(hidden, last_hidden[at], first, last)
        own = logits[at]
        multiply(head, normed, own, first, last)
        if not len(chosen):
            return
        if len(features):
            copy_rows(normed, features[step], first, last)
        if len(draws):
            sample_rows(own, draws[step], chosen[step], log_probs[step], scale, first, last)
        else:
            likeliest_rows(own, chosen[step], first, last)
        remaining = 0
        for row in range(first, last):
            token = chosen[step, row]
            tokens[row], good[step, row] = token, alive[row]
            if alive[row]:
                positions[row] += 1
                left[row] -= 1
                for end in ends:
                    if token == end:
                        left[row] = 0
                alive[row] = left[row] > 0
                remaining += alive[row]
        done[0] = step + 1
        if remaining <= enough:
            return


@compiled([_LAYER, I64, F32_2, F32_2, F32_3, I64, I64, I64], **REORDERED)
def layer_rows(layer: Any, at: Any, hidden: Any, normed: Any, mask: Any, place: Any, first: Any, last: Any) -> None:
    """Rows `first` to `last` (not included) of `hidden` and `normed` [rows, width] after a layer. That is, of each
    product the panels, bias and adapter; of each normalisation the weight, bias and epsilon; keys, values and the
    scaling of scores; room [steps, ...], of which `at` is used; and where a tape has the hidden states before the layer
    and between attention and MLP, or nothing."""
    of_states, of_attended, of_widened, of_narrowed, norm, next_norm, keys, values, scaling, room, before, between = (
        layer
    )
    states, mixed, states_by_head, mixed_by_head = room[0][at], room[1][at], room[2][at], room[3][at]
    product, wide, flat_wide, activated, flat_activated = room[4], room[5][at], room[6][at], room[7][at], room[8][at]
    inner = wide.shape[1]
    if len(before):
        copy_rows(hidden, before[at], first, last)
    multiply(of_states, normed, states, first, last)
    attended = states, states_by_head, keys, values, mask, place + 1, scaling, mixed_by_head
    attend_rows(*of_states[2], normed, *attended, place, first, last)
    multiply(of_attended, mixed, product, first, last)
    finish_rows(*of_attended[2], mixed, product, hidden, *norm, normed, first, last)
    if len(between):
        copy_rows(hidden, between[at], first, last)
    multiply(of_widened, normed, wide, first, last)
    add_low_rank(*of_widened[2], normed, wide, first, last)
    gelu_block(flat_wide, flat_activated, first * inner, last * inner)
    multiply(of_narrowed, activated, product, first, last)
    finish_rows(*of_narrowed[2], activated, product, hidden, *next_norm, normed, first, last)


@compiled([F32_2, F32_2, I64, I64])
def copy_rows(source: Any, target: Any, first: Any, last: Any) -> None:
    for row in range(first, last):
        copy(source[row], target[row])


@compiled([PRODUCT, F32_2, F32_2, I64, I64], **REORDERED)
def multiply(product: Any, x: Any, result: Any, first: Any, last: Any) -> None:
    multiply_rows(x, product[0], product[1], result, first, last, _START, panels_of(result.shape[1]))


@compiled([*ADAPTER, F32_2, F32_2, F32_2, *NORM, F32_2, I64, I64], **REORDERED)
def finish_rows(
    genomes: Any,
    owners: Any,
    a_offset: Any,
    b_offset: Any,
    rank: Any,
    scaling: Any,
    x: Any,
    product: Any,
    hidden: Any,
    weight: Any,
    bias: Any,
    epsilon: Any,
    normed: Any,
    first: Any,
    last: Any,
) -> None:
    """Rows `first` to `last` (not included) of what `_finish` does."""
    add_low_rank(genomes, owners, a_offset, b_offset, rank, scaling, x, product, first, last)
    for row in range(first, last):
        own, more = hidden[row], product[row]
        for d in range(len(own)):
            own[d] += more[d]
        normalise(own, weight, bias, epsilon, normed[row])


# REORDERED, as all that call it: before options were each function's own, numba made it so.
@compiled([F32_1, *NORM, F32_1], **REORDERED)
def normalise(own: Any, weight: Any, bias: Any, epsilon: Any, target: Any) -> None:
    """`target` [width] from `own`, as a normalisation of layers does. In an order of its own, not the compiler's, which
    would be another in each function that has this as a part: a row has the same bits by whatever way."""
    width = np.float32(len(own))
    mean = _total(own, _ZERO, False) / width
    factor = np.float32(1) / np.sqrt(_total(own, mean, True) / width + epsilon)
    for d in range(len(own)):
        target[d] = (own[d] - mean) * factor * weight[d] + bias[d]


@compiled(**REORDERED)
def _total(own: Any, mean: Any, squared: Any) -> Any:
    """The sum of own - mean, or of its squares."""
    t0 = t1 = t2 = t3 = t4 = t5 = t6 = t7 = _ZERO
    whole = len(own) // 8 * 8
    for d in range(0, whole, 8):
        x0, x1, x2, x3 = own[d] - mean, own[d + 1] - mean, own[d + 2] - mean, own[d + 3] - mean
        x4, x5, x6, x7 = own[d + 4] - mean, own[d + 5] - mean, own[d + 6] - mean, own[d + 7] - mean
        t0 += x0 * x0 if squared else x0
        t1 += x1 * x1 if squared else x1
        t2 += x2 * x2 if squared else x2
        t3 += x3 * x3 if squared else x3
        t4 += x4 * x4 if squared else x4
        t5 += x5 * x5 if squared else x5
        t6 += x6 * x6 if squared else x6
        t7 += x7 * x7 if squared else x7
    for d in range(whole, len(own)):
        x0 = own[d] - mean
        t0 += x0 * x0 if squared else x0
    return ((t0 + t1) + (t2 + t3)) + ((t4 + t5) + (t6 + t7))
