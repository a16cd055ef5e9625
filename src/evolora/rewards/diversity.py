"""How unlike a completion is to what the same individual wrote elsewhere."""

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from evolora.errors import InputError
from evolora.rewards.base import Reward

UNITS = ("words", "characters")

_Shingles = frozenset[Hashable]


def make_diversity(*, n: int = 2, unit: str = "words") -> Reward:
    """A reward against mode collapse, where a model answers every prompt alike: 1 - the mean resemblance of the
    completion to those that the same individual wrote for other prompts of the batch. In [0, 1].

    Resemblance is Broder's (1997): the Jaccard index of the two texts' sets of n-grams, of words or characters, case
    ignored; a text shorter than n is one gram. 1 is for a completion that shares no n-gram with another, 0 for one that
    equals them all. It is to a set of texts what Self-BLEU is (Zhu et al., 2018, Texygen, arXiv 1802.01886: BLEU of a
    text against the others), but symmetric, defined for one word, and quick to compute.

    `groups` says which individual wrote each completion; without it the batch is one individual's. Completions of the
    same prompt are not compared. An empty completion gets 0. Not scored (None): a completion whose individual wrote for
    no other prompt in the batch.

    Raises InputError for an n below 1 and an unknown unit.

    >>> prompts = ["a", "b", "c"]
    >>> make_diversity()(prompts=prompts, completions=["I see a cat", "I see a dog", "Rain"])
    [0.75, 0.75, 1.0]
    >>> make_diversity()(prompts=prompts, completions=["so so", "so so", "so so"], groups=[0, 0, 1])
    [0.0, 0.0, None]
    """
    if n < 1:
        raise InputError(f"reward diversity: n is {n}, expected a positive number.")
    if unit not in UNITS:
        raise InputError(f"reward diversity: unit is {unit!r}, expected one of {', '.join(UNITS)}.")
    return _Diversity(n, unit)


class _Diversity:
    __name__ = "diversity"
    compares = True

    def __init__(self, n: int, unit: str) -> None:
        self._n = n
        self._unit = unit

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], groups: Sequence[int] | None = None, **_: object
    ) -> list[float | None]:
        shingles = [self._shingles(completion) for completion in completions]
        prompt_ids = _ids(prompts)
        rewards: list[float | None] = [None] * len(completions)
        for rows in _rows_of([0] * len(completions) if groups is None else groups):
            found = _unlikeness([shingles[row] for row in rows], prompt_ids[rows])
            for row, reward in zip(rows, found, strict=True):
                rewards[row] = reward
        return rewards

    def _shingles(self, text: str) -> _Shingles:
        folded = text.casefold()
        # Characters are compared with whitespace made uniform, so that a line break makes no difference.
        units: Sequence[str] = folded.split() if self._unit == "words" else " ".join(folded.split())
        if not units:
            return frozenset()
        n = min(self._n, len(units))
        return frozenset(tuple(units[start : start + n]) for start in range(len(units) - n + 1))


def _unlikeness(shingles: Sequence[_Shingles], prompt_ids: npt.NDArray[np.int64]) -> list[float | None]:
    """1 - the mean resemblance of each text to those of other prompts; None where there are none.

    By an inverted index, which costs the number of coincidences of n-grams: little for texts that differ, at most
    texts^2 * n-grams for equal ones.
    """
    index: defaultdict[Hashable, list[int]] = defaultdict(list)
    for row, grams in enumerate(shingles):
        for gram in grams:
            index[gram].append(row)
    postings = {gram: np.array(rows) for gram, rows in index.items()}
    sizes = np.array([len(grams) for grams in shingles])
    rewards: list[float | None] = []
    for row, grams in enumerate(shingles):
        others = prompt_ids != prompt_ids[row]
        if not others.any():
            rewards.append(None)
        elif not grams:
            rewards.append(0.0)
        else:
            shared = np.bincount(np.concatenate([postings[gram] for gram in grams]), minlength=len(shingles))
            resemblance = shared / (sizes + sizes[row] - shared)
            rewards.append(1.0 - float(resemblance[others].mean()))
    return rewards


def _ids(texts: Sequence[str]) -> npt.NDArray[np.int64]:
    """A number for each text, the same for equal ones."""
    known: dict[str, int] = {}
    return np.array([known.setdefault(text, len(known)) for text in texts], dtype=np.int64)


def _rows_of(groups: Sequence[int]) -> list[list[int]]:
    rows: defaultdict[int, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        rows[group].append(row)
    return list(rows.values())
