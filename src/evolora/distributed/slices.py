"""How a batch is cut into slices: by its shape and the most rows of a slice, and by nothing else."""

import math
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from evolora.engine.parts import Part


def cut(individuals: int, order: Sequence[int], most: int) -> list[Part]:
    """A batch of `individuals`, each with as many rows, in slices of at most so many: of whole individuals where these
    are small enough, else of rows of one. An individual's rows are dealt in this `order`: neighbours stay together.

    >>> [(part.individuals, part.rows.tolist()) for part in cut(3, range(2), 4)]
    [(slice(0, 2, None), [0, 1, 2, 3]), (slice(2, 3, None), [4, 5])]
    >>> [(part.individuals, part.rows.tolist()) for part in cut(1, [2, 0, 1], 2)]
    [(slice(0, 1, None), [2, 0]), (slice(0, 1, None), [1])]
    """
    own, each = torch.tensor(list(order)), len(order)
    if each <= most:
        some = torch.arange(individuals).tensor_split(math.ceil(individuals / (most // max(each, 1))))
        dealt = [(who, own) for who in some]
    else:
        dealt = [(torch.tensor([who]), rows) for who in range(individuals) for rows in _evenly(own, most)]
    return [
        Part(slice(int(who[0]), int(who[-1]) + 1), (who[:, None] * each + rows).flatten(), rows) for who, rows in dealt
    ]


def cut_owned(owners: Sequence[int], order: Sequence[int], most: int) -> list[Part]:
    """The same of rows that have `owners`, ascending, and may not be equally many for each individual.

    >>> [(part.individuals, part.rows.tolist()) for part in cut_owned([0, 0, 1, 2, 2, 2], [1, 0, 2, 3, 4, 5], 2)]
    [(slice(0, 1, None), [1, 0]), (slice(1, 2, None), [2]), (slice(2, 3, None), [3, 4]), (slice(2, 3, None), [5])]
    """
    found: list[Tensor] = []
    room = 0
    for _, own in groupby(sorted(order, key=owners.__getitem__), owners.__getitem__):
        rows = torch.tensor(list(own))
        if len(rows) <= room:
            found[-1] = torch.cat([found[-1], rows])
            room -= len(rows)
        else:
            found += _evenly(rows, most)
            room = most - len(rows)
    return [Part(slice(owners[int(rows[0])], owners[int(rows[-1])] + 1), rows, rows) for rows in found]


def _evenly(rows: Tensor, most: int) -> list[Tensor]:
    return list(rows.tensor_split(math.ceil(len(rows) / most)))
