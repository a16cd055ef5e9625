"""Rewards that compare a completion with its target."""

from collections.abc import Sequence
from difflib import SequenceMatcher


def similarity(completions: Sequence[str], target: Sequence[object], **_: object) -> list[float | None]:
    """How alike completion and target are, in [0, 1]: `difflib.SequenceMatcher(None, completion, target).ratio()` of
    the stripped texts, that is 2 * matching characters / all characters (Ratcliff and Obershelp, 1988). 1 when equal.

    A target may be text or a number; None is not scored. Raises TypeError for other targets.

    >>> similarity(["bonjour", " bonjour "], target=["bonsoir", "bonjour"])
    [0.7142857142857143, 1.0]
    """
    return [
        None if (wanted := _text(goal)) is None else SequenceMatcher(None, completion.strip(), wanted).ratio()
        for completion, goal in zip(completions, target, strict=True)
    ]


def exact(completions: Sequence[str], target: Sequence[object], **_: object) -> list[float | None]:
    """1 when the stripped completion equals the stripped target, else 0.

    A target may be text or a number; None is not scored. Raises TypeError for other targets.

    >>> exact(["4", " 4 ", "5"], target=["4", 4, "4"])
    [1.0, 1.0, 0.0]
    """
    return [
        None if (wanted := _text(goal)) is None else float(completion.strip() == wanted)
        for completion, goal in zip(completions, target, strict=True)
    ]


def _text(target: object) -> str | None:
    if target is None:
        return None
    if isinstance(target, bool) or not isinstance(target, str | int | float):
        raise TypeError(f"the target is {target!r}, expected text or a number")
    return str(target).strip()


def make_similarity():
    return similarity


def make_exact():
    return exact
