"""Texts of one individual packed into few rows without padding, what they begin with in common computed once.

A pack is a tree of tokens, laid out in one row: texts that begin alike share those tokens, and each token sees only its
own ancestors, by the attention mask. What a causal model computes for a token depends on nothing else, so packing
changes the work and not the result (tree attention, as in SpecInfer: Miao et al., 2023, arXiv 2305.09781; here over
given texts).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Packs:
    """`ids` and `positions` [packs, width]; `mask` [packs, width, width], true where a token (second axis) sees another
    (third); `places` [texts, longest], where in the flattened packs each token of each text is, -1 beyond its end."""

    ids: Integers
    positions: Integers
    mask: npt.NDArray[np.bool_]
    places: Integers

    def widened(self, packs: int, width: int) -> "Packs":
        """The same with at least so many packs and columns. What is added sees itself only."""
        n, old = self.ids.shape
        ids, positions = (np.zeros((packs, width), np.int64) for _ in range(2))
        mask = np.broadcast_to(np.eye(width, dtype=np.bool_), (packs, width, width)).copy()
        ids[:n, :old], positions[:n, :old], mask[:n, :old, :old] = self.ids, self.positions, self.mask
        places = np.where(self.places < 0, -1, self.places // old * width + self.places % old)
        return Packs(ids, positions, mask, places)


def pack(texts: Sequence[Sequence[int]], width: int) -> Packs:
    """Pack `texts`, none of them empty, into rows of at most `width` tokens, or as wide as the longest text.

    Texts are taken in alphabetical order, so that those that begin alike meet in one pack.

    >>> packs = pack([[5, 6, 7], [5, 6, 8], [5, 6, 7]], width=8)
    >>> packs.ids.tolist(), packs.positions.tolist(), packs.places.tolist()
    ([[5, 6, 7, 8]], [[0, 1, 2, 2]], [[0, 1, 2], [0, 1, 3], [0, 1, 2]])
    >>> packs.mask[0, 3].tolist()  # 8 sees 5, 6 and itself
    [True, True, False, True]
    """
    width = max(width, *map(len, texts))
    columns: list[list[tuple[int, int, int]]] = [[]]  # of each pack: token, position and parent, -1 for none
    places = np.full((len(texts), max(map(len, texts))), -1, np.int64)
    path: list[int] = []  # the columns of the text before, and its tokens
    before: Sequence[int] = ()
    for index in sorted(range(len(texts)), key=lambda index: list(texts[index])):
        text = texts[index]
        alike = min(len(text), len(before))
        shared = next((i for i in range(alike) if text[i] != before[i]), alike)
        if len(columns[-1]) + len(text) - shared > width:
            columns.append([])
            shared = 0
        path = path[:shared]
        for position in range(shared, len(text)):
            columns[-1].append((text[position], position, path[-1] if path else -1))
            path.append(len(columns[-1]) - 1)
        before = text
        places[index, : len(text)] = (len(columns) - 1) * width + np.array(path)
    used = max(map(len, columns))
    ids, positions = (np.zeros((len(columns), width), np.int64) for _ in range(2))
    mask = np.broadcast_to(np.eye(width, dtype=np.bool_), (len(columns), width, width)).copy()
    for row, tokens in enumerate(columns):
        for column, (token, position, parent) in enumerate(tokens):
            ids[row, column], positions[row, column] = token, position
            if parent >= 0:
                mask[row, column] |= mask[row, parent]
    # No wider than it has to be.
    places = np.where(places < 0, -1, places // width * used + places % width)
    return Packs(ids[:, :used], positions[:, :used], mask[:, :used, :used], places)
