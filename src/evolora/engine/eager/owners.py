"""Rows in groups of different sizes, filled up to equal groups: what packed and grouped passes take."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import torch
from torch import Tensor

from evolora.engine.base import Scored


@dataclass(frozen=True)
class EqualGroups:
    """`genomes` [live] are those with rows; `picks` [live * most], which of the given rows each row of the equal groups
    is, the last of a group again where it has fewer; `places` [rows], where each given row is among those."""

    genomes: Tensor
    picks: Tensor
    places: Tensor

    @classmethod
    def of(cls, owners: Sequence[int]) -> "EqualGroups":
        """From the genome of each row, ascending.

        >>> groups = EqualGroups.of([0, 2, 2])
        >>> groups.genomes.tolist(), groups.picks.tolist(), groups.places.tolist()
        ([0, 2], [0, 0, 1, 2], [0, 2, 3])
        """
        if any(after < before for before, after in pairwise(owners)):
            raise ValueError("owners: found one that is less than the one before it, expected ascending indices")
        groups = [(owner, len(list(rows))) for owner, rows in groupby(owners)]
        most = max(count for _, count in groups)
        picks, places, first = [], [], 0
        for group, (_, count) in enumerate(groups):
            picks += [first + min(place, count - 1) for place in range(most)]
            places += [group * most + place for place in range(count)]
            first += count
        return cls(torch.tensor([owner for owner, _ in groups]), torch.tensor(picks), torch.tensor(places))


@dataclass(frozen=True)
class ScoredRows:
    """What was asked for among the rows of equal groups, of `count` genomes."""

    whole: Scored
    groups: EqualGroups
    count: int

    @property
    def log_probs(self) -> Tensor:
        return self.whole.log_probs[self.groups.places]

    @property
    def entropy(self) -> Tensor:
        return self.whole.entropy[self.groups.places]

    @property
    def features(self) -> Tensor | None:
        found = self.whole.features
        return None if found is None else found[self.groups.places]

    def backward(self, of_log_probs: Tensor, of_entropy: Tensor | None = None) -> Tensor:
        def spread(gradient: Tensor) -> Tensor:
            blank = gradient.new_zeros(len(self.groups.picks), gradient.shape[1])
            return blank.index_copy(0, self.groups.places.to(gradient.device), gradient)

        own = self.whole.backward(spread(of_log_probs), None if of_entropy is None else spread(of_entropy))
        return own.new_zeros(self.count, own.shape[1]).index_copy(0, self.groups.genomes.to(own.device), own)

    def release(self) -> None:
        self.whole.release()
