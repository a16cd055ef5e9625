"""Rewards that compare a completion's characters with its target."""

import functools
import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from evolora.errors import InputError
from evolora.rewards.base import Reward
from evolora.rewards.targets import target_text, target_texts

EDIT_DISTANCES = ("levenshtein", "indel")


def similarity(completions: Sequence[str], target: Sequence[object], **_: object) -> list[float | None]:
    """How alike completion and target are, in [0, 1]: `difflib.SequenceMatcher(None, completion, target).ratio()` of
    the stripped texts, that is 2 * matching characters / all characters (Ratcliff and Obershelp, 1988). 1 when equal.

    A target may be text or a number; None is not scored. Raises TypeError for other targets.

    >>> similarity(["bonjour", " bonjour "], target=["bonsoir", "bonjour"])
    [0.7142857142857143, 1.0]
    """
    return [
        None if (wanted := target_text(goal)) is None else SequenceMatcher(None, completion.strip(), wanted).ratio()
        for completion, goal in zip(completions, target, strict=True)
    ]


def exact(completions: Sequence[str], target: Sequence[object], **_: object) -> list[float | None]:
    """1 when the stripped completion equals the stripped target, else 0.

    A target may be text or a number; None is not scored. Raises TypeError for other targets.

    >>> exact(["4", " 4 ", "5"], target=["4", 4, "4"])
    [1.0, 1.0, 0.0]
    """
    return [
        None if (wanted := target_text(goal)) is None else float(completion.strip() == wanted)
        for completion, goal in zip(completions, target, strict=True)
    ]


def make_similarity() -> Reward:
    """The reward `similarity`."""
    return similarity


def make_exact() -> Reward:
    """The reward `exact`."""
    return exact


def make_edit(*, distance: str = "levenshtein") -> Reward:
    """How few characters must be edited to turn the completion into the target, in [0, 1], by rapidfuzz, of the
    stripped texts; symmetric, 1 only when they are equal. `distance` is one of

    - "levenshtein": 1 - D / max(m, n), D the least number of insertions, deletions and substitutions (Levenshtein,
      1966), m and n the lengths. 0 when no character can stay in its place. The default, because two unrelated texts
      get less by it than by the other, so that little is to be had from likely letters.
    - "indel": 2 L / (m + n), L the length of the longest common subsequence. `similarity` has the same formula with the
      matching characters that its heuristic finds, never more than L; so this is the quick stand-in for it.

    A target may be text or a number; None is not scored. Raises InputError for another distance.

    >>> make_edit()(completions=["bonjour ", "bon"], target=["bonsoir", "bonjour"])
    [0.7142857142857143, 0.4285714285714286]
    >>> make_edit(distance="indel")(completions=["bon"], target=["bonjour"])
    [0.6]
    """
    from rapidfuzz.distance import Indel, Levenshtein

    if distance not in EDIT_DISTANCES:
        raise InputError(f"reward edit: distance is {distance!r}, expected one of {', '.join(EDIT_DISTANCES)}.")
    similarity_of = (Levenshtein if distance == "levenshtein" else Indel).normalized_similarity

    def edit(completions: Sequence[str], target: Sequence[object], **_: object) -> list[float | None]:
        return [
            None if (wanted := target_text(goal)) is None else similarity_of(completion.strip(), wanted)
            for completion, goal in zip(completions, target, strict=True)
        ]

    return edit


def make_contains(*, text: str | None = None, ignore_case: bool = True) -> Reward:
    """1 when the completion contains the target, else 0; when the target is a list, the share of its texts that the
    completion contains. With `text`, that instead of a target. In [0, 1].

    Targets are stripped, `text` is taken as it is. A target of None is not scored; an empty one, which is in every
    completion, raises ValueError, and an empty `text` InputError.

    >>> make_contains()(completions=["A red rose.", "A red rose."], target=["Red", ["red", "blue"]])
    [1.0, 0.5]
    >>> make_contains(text="rose", ignore_case=False)(completions=["Rose", "rose"])
    [0.0, 1.0]
    """
    if text == "":
        raise InputError("reward contains: text is empty, expected text to look for.")

    def fold(some: str) -> str:
        return some.casefold() if ignore_case else some

    def share(completion: str, goal: object) -> float | None:
        wanted = target_texts(goal)
        if wanted is None:
            return None
        if "" in wanted:
            raise ValueError(f"the target is {goal!r}, expected text to look for, not empty text")
        return sum(fold(one) in fold(completion) for one in wanted) / len(wanted)

    if text is not None:

        def contains_text(completions: Sequence[str], **_: object) -> list[float]:
            return [float(fold(text) in fold(completion)) for completion in completions]

        contains_text.__name__ = "contains"
        return contains_text

    def contains(completions: Sequence[str], target: Sequence[object], **_: object) -> list[float | None]:
        return [share(completion, goal) for completion, goal in zip(completions, target, strict=True)]

    return contains


def make_regex(*, pattern: str | None = None, full: bool = False) -> Reward:
    """1 when the regular expression (Python's `re`) matches somewhere in the stripped completion, or with `full` the
    whole of it; else 0. The expression is `pattern`, or where that is left out the data's column `pattern`, in which
    None is not scored.

    Raises InputError for a `pattern` that is no expression; a bad one in the data raises ValueError when it is met.

    >>> make_regex(pattern="[0-9]+")(completions=["7 o'clock", "seven"])
    [1.0, 0.0]
    >>> make_regex(full=True)(completions=["7 o'clock", " 7"], pattern=["[0-9]+", "[0-9]+"])
    [0.0, 1.0]
    """

    def matches(expression: re.Pattern[str], completion: str) -> float:
        match = expression.fullmatch if full else expression.search
        return float(match(completion.strip()) is not None)

    if pattern is not None:
        try:
            expression = re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise InputError(
                f"reward regex: pattern is {pattern!r} ({error}), expected a regular expression of Python's re."
            ) from error

        def regex_option(completions: Sequence[str], **_: object) -> list[float]:
            return [matches(expression, completion) for completion in completions]

        regex_option.__name__ = "regex"
        return regex_option

    def regex(completions: Sequence[str], pattern: Sequence[object], **_: object) -> list[float | None]:
        return [
            None if one is None else matches(_compiled(one), completion)
            for completion, one in zip(completions, pattern, strict=True)
        ]

    return regex


def _compiled(pattern: object) -> re.Pattern[str]:
    if not isinstance(pattern, str):
        raise TypeError(f"the pattern is {pattern!r}, expected text")
    return _compiled_text(pattern)


@functools.lru_cache(maxsize=4096)  # one for each row of the data; re's own cache holds 512
def _compiled_text(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"the pattern is {pattern!r} ({error}), expected a regular expression") from error
