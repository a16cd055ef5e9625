"""End-of-sequence tokens that spread the lengths of given completions evenly.

Every side has to end the same rows at the same tokens without doing anything for it. So the completions are first
written in full, and then such token ids are chosen as ends that the first of them comes at positions spread evenly over
1 .. longest. Greedy decoding writes the same tokens up to there, on every side.
"""

import numpy as np
import numpy.typing as npt
from torch import Tensor

from evolora.rng import keyed_seed

_STARTS = 16
_STEPS = 4000
_AT_FIRST = 100  # tokens in a random set, at most: every side looks each new token up among the ends


def spread_ends(written: Tensor) -> tuple[int, ...]:
    """Ids of ends for completions `written` in full, [rows, longest].

    A local search from several random sets: put a token in or take one out, at random, and keep what does not bring the
    sorted lengths further from an even spread.
    """
    ids = written.numpy()
    rows, longest = ids.shape
    tokens = np.unique(ids)
    first = np.full((len(tokens), rows), longest, dtype=np.int64)  # the length that each token alone would give
    index = np.searchsorted(tokens, ids)
    for position in reversed(range(longest)):
        first[index[:, position], np.arange(rows)] = position + 1
    even = (np.arange(rows) + 0.5) / rows * longest + 0.5
    generator = np.random.default_rng(keyed_seed(0, "benchmark ends"))

    def distance(members: npt.NDArray[np.bool_]) -> float:
        lengths = first[members].min(0) if members.any() else np.full(rows, longest)
        return float(np.abs(np.sort(lengths) - even).mean())

    best, nearest = np.zeros(len(tokens), dtype=bool), np.inf
    for _ in range(_STARTS):
        members = generator.random(len(tokens)) < generator.uniform(0.0, min(0.1, _AT_FIRST / len(tokens)))
        current = distance(members)
        for _ in range(_STEPS):
            changed = members.copy()
            # One token, or two: a swap leaves a minimum that single changes cannot.
            changed[generator.integers(len(tokens), size=generator.integers(1, 3))] ^= True
            after = distance(changed)
            # Of two sets that do as well, the smaller.
            if (after, changed.sum()) <= (current, members.sum()):
                members, current = changed, after
        if current < nearest:
            best, nearest = members, current
    return tuple(int(token) for token in tokens[best])
