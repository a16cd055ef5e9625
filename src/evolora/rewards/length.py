"""Rewards that depend on nothing but how long a completion is."""

import math
from collections.abc import Callable, Sequence

from evolora.errors import InputError
from evolora.rewards.base import Reward

UNITS = ("words", "characters", "tokens")


def make_length(*, target: int, unit: str = "words", width: float | None = None) -> Reward:
    """How close the completion's length n is to `target`, in [0, 1]: max(0, 1 - |n - target| / width), a triangle with
    1 at the target and 0 from `width` off it. `width` is `target` unless given: 0 for nothing and for twice as much.

    Units: "words" (parted by whitespace), "characters" (of the stripped text), "tokens" (the model's own, the
    end-of-sequence token included).

    Raises InputError for an unknown unit, and for a target or a width that is not positive.

    >>> make_length(target=4)(completions=["", "two words", "a b c d", "a b c d e"])
    [0.0, 0.5, 1.0, 0.75]
    """
    if target <= 0:
        raise InputError(f"reward length: target is {target}, expected a positive number.")
    if width is None:
        width = float(target)
    if not (math.isfinite(width) and width > 0):
        raise InputError(f"reward length: width is {width}, expected a positive number.")
    return _of_length("length", unit, lambda count: max(0.0, 1 - abs(count - target) / width))


def make_brevity(*, limit: int = 20, unit: str = "words") -> Reward:
    """How short the completion is, in [0, 1]: max(0, 1 - n / limit), 1 for nothing and 0 from `limit` on. Units as in
    `make_length`.

    An empty completion is the best there is, so alone this reward teaches silence: give it a small weight beside a
    reward that empty text does not get, or multiply the two.

    Raises InputError for an unknown unit and for a limit that is not positive.

    >>> make_brevity(limit=4)(completions=["", "one", "a b c d", "a b c d e"])
    [1.0, 0.75, 0.0, 0.0]
    """
    if limit <= 0:
        raise InputError(f"reward brevity: limit is {limit}, expected a positive number.")
    return _of_length("brevity", unit, lambda count: max(0.0, 1 - count / limit))


def _of_length(name: str, unit: str, score: Callable[[int], float]) -> Reward:
    """The reward that gives `score` of each completion's length."""
    if unit not in UNITS:
        raise InputError(f"reward {name}: unit is {unit!r}, expected one of {', '.join(UNITS)}.")

    def of_tokens(completion_ids: Sequence[Sequence[int]], **_: object) -> list[float]:
        return [score(len(ids)) for ids in completion_ids]

    def of_text(completions: Sequence[str], **_: object) -> list[float]:
        return [score(len(text.split() if unit == "words" else text.strip())) for text in completions]

    if unit == "tokens":
        of_tokens.__name__ = name
        return of_tokens
    of_text.__name__ = name
    return of_text
