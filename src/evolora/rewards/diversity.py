"""A reward against mode collapse: to write something else for each prompt."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from evolora.errors import InputError
from evolora.rewards.base import Reward


class Diversity:
    """How unlike a completion is to what the same individual wrote for the other prompts of the batch, in [0, 1].

    1 - the mean, over the completion's n-grams of words, of the share of the individual's other prompts for which it
    has written that n-gram too: 1 when it repeats nothing, 0 when it has written all of it for every prompt. So it is
    the precision of self-BLEU (Zhu et al., 2018, "Texygen", arXiv 1802.01886) with each of the others as a reference
    of its own, in one pass. A completion that is too short for an n-gram counts as one; an individual with one prompt
    only is not scored. Capitals and blanks do not matter.

    >>> Diversity(2)(prompts=["p", "q", "r"], completions=["a b c", "a b d", "x y"])
    [0.75, 0.75, 1.0]
    """

    compares = True
    __name__ = "diversity"

    def __init__(self, order: int) -> None:
        self.order = order

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        groups: Sequence[int] | None = None,
        **_: object,
    ) -> list[float | None]:
        rows: dict[int, list[int]] = defaultdict(list)
        for row, group in enumerate([0] * len(completions) if groups is None else groups):
            rows[group].append(row)
        values: list[float | None] = [None] * len(completions)
        for members in rows.values():
            grams = {row: self._grams(completions[row]) for row in members}
            # For how many prompts an n-gram was written, and for which: several completions of a prompt count once.
            prompts_of: dict[tuple[str, ...], set[str]] = defaultdict(set)
            for row in members:
                for gram in grams[row]:
                    prompts_of[gram].add(prompts[row])
            others = len({prompts[row] for row in members}) - 1
            if others < 1:
                continue
            for row in members:
                shared = sum(count * (len(prompts_of[gram]) - 1) for gram, count in grams[row].items())
                values[row] = 1 - shared / (others * sum(grams[row].values()))
        return values

    def _grams(self, text: str) -> Counter[tuple[str, ...]]:
        words = text.casefold().split()
        if len(words) < self.order:
            return Counter([tuple(words)])
        return Counter(tuple(words[at : at + self.order]) for at in range(len(words) - self.order + 1))


def make_diversity(*, order: int = 2) -> Reward:
    """`Diversity` of n-grams of `order` words."""
    if order < 1:
        raise InputError(f"reward diversity: order is {order}, expected 1 or more.")
    return Diversity(order)
