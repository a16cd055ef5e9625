"""Rewards for how long a completion is."""

from collections.abc import Sequence
from typing import Literal, get_args

from evolora.errors import InputError
from evolora.rewards.base import Reward

Unit = Literal["words", "characters", "tokens"]


def make_length(*, target: int, unit: str = "words", width: float | None = None) -> Reward:
    """How near the completion's length is to `target`: 1 there, falling in a straight line to 0 at `width` more or less
    (default: the target, so that nothing is worth 0 and twice the target too). In [0, 1].

    `unit`: words (between blanks), characters (of the stripped text) or tokens (the end of the text is one).

    >>> make_length(target=4)(completions=["one two three", "one two three four", ""])
    [0.75, 1.0, 0.0]
    """
    kind = _unit("length", unit)
    if target < 1:
        raise InputError(f"reward length: target is {target}, expected a positive number.")
    if width is not None and width <= 0:
        raise InputError(f"reward length: width is {width}, expected a positive number.")
    reach = float(target) if width is None else width

    def length(
        completions: Sequence[str], completion_ids: Sequence[Sequence[int]] | None = None, **_: object
    ) -> list[float | None]:
        lengths = _lengths(kind, completions, completion_ids)
        return [max(0.0, 1 - abs(found - target) / reach) for found in lengths]

    return length


def make_brevity(*, limit: int = 20, unit: str = "words") -> Reward:
    """How short the completion is: 1 for nothing, falling in a straight line to 0 at `limit`. In [0, 1].

    Alone it rewards saying nothing; combine it, as in `similarity * brevity(limit=8)`. `unit` as for `length`.

    >>> make_brevity(limit=4)(completions=["", "one", "one two three four five"])
    [1.0, 0.75, 0.0]
    """
    kind = _unit("brevity", unit)
    if limit < 1:
        raise InputError(f"reward brevity: limit is {limit}, expected a positive number.")

    def brevity(
        completions: Sequence[str], completion_ids: Sequence[Sequence[int]] | None = None, **_: object
    ) -> list[float | None]:
        return [max(0.0, 1 - found / limit) for found in _lengths(kind, completions, completion_ids)]

    return brevity


def _unit(reward: str, unit: str) -> Unit:
    for kind in get_args(Unit):
        if unit == kind:
            found: Unit = kind
            return found
    raise InputError(f"reward {reward}: unit is {unit!r}, expected one of {', '.join(get_args(Unit))}.")


def _lengths(unit: Unit, completions: Sequence[str], ids: Sequence[Sequence[int]] | None) -> list[int]:
    if unit == "tokens":
        if ids is None:
            raise ValueError("the length in tokens is asked for, and no token ids are given")
        return [len(row) for row in ids]
    return [len(text.split()) if unit == "words" else len(text.strip()) for text in completions]
