"""Rewards that compare a completion with its target, or look for something in it."""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from rapidfuzz.distance import Indel

from evolora.errors import InputError
from evolora.rewards.base import Reward


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


def make_similarity() -> Reward:
    """`similarity`."""
    return similarity


def make_exact() -> Reward:
    """`exact`."""
    return exact


def make_edit() -> Reward:
    """How few characters must be inserted or deleted to make the stripped completion its stripped target, in [0, 1]:
    1 - operations / (length of both together), the normalised indel similarity of rapidfuzz. 1 when equal.

    Like `similarity`, 2 * matches / all characters, but with the longest common subsequence for the matches, so it does
    not depend on which text comes first, and it is faster. A target may be text or a number; None is not scored.

    >>> make_edit()(completions=["abcd", " abc "], target=["abce", "abc"])
    [0.75, 1.0]
    """

    def edit(completions: Sequence[str], target: Sequence[object], **_: object) -> list[float | None]:
        return [
            None if (wanted := _text(goal)) is None else Indel.normalized_similarity(completion.strip(), wanted)
            for completion, goal in zip(completions, target, strict=True)
        ]

    return edit


def make_contains(*, text: str | None = None, ignore_case: bool = True) -> Reward:
    """1 when the completion contains `text`, else 0. Without `text`: the share of the targets that it contains; a
    target is text, a number or a list of these, and None is not scored.

    >>> make_contains(text="very good")(completions=["Very good!", "good"])
    [1.0, 0.0]
    >>> make_contains()(completions=["a cat and a dog"], target=[["cat", "cow"]])
    [0.5]
    """
    if text == "":
        raise InputError("reward contains: text is empty, expected some text.")

    def folded(words: str) -> str:
        return words.casefold() if ignore_case else words

    if text is not None:
        wanted = folded(text)

        def contains_text(completions: Sequence[str], **_: object) -> list[float | None]:
            return [float(wanted in folded(completion)) for completion in completions]

        contains_text.__name__ = "contains"
        return contains_text

    def contains(completions: Sequence[str], target: Sequence[object], **_: object) -> list[float | None]:
        shares: list[float | None] = []
        for completion, goal in zip(completions, target, strict=True):
            goals = [found for one in (goal if isinstance(goal, list) else [goal]) if (found := _text(one)) is not None]
            found_in = folded(completion)
            shares.append(sum(folded(one) in found_in for one in goals) / len(goals) if goals else None)
        return shares

    return contains


def make_regex(*, pattern: str | None = None, full: bool = False) -> Reward:
    """1 when Python's regular expression `pattern` matches somewhere in the completion, with `full` all of it stripped;
    else 0. Without `pattern`: the data's column `pattern`, where None is not scored.

    Some patterns take ages on some texts, `(a+)+$` for one: `--reward-workers 1 --reward-timeout 1` ends them. Raises
    InputError for a pattern that is none; one in the data raises `re.error` when it is met.

    >>> make_regex(pattern="[0-9]+", full=True)(completions=[" 42 ", "42 apples"])
    [1.0, 0.0]
    """

    def matches(found: re.Pattern[str], completion: str) -> float:
        return float((found.fullmatch(completion.strip()) if full else found.search(completion)) is not None)

    if pattern is not None:
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise InputError(
                f"reward regex: pattern is {pattern!r} ({error}), expected a regular expression."
            ) from None

        def regex_pattern(completions: Sequence[str], **_: object) -> list[float | None]:
            return [matches(compiled, completion) for completion in completions]

        regex_pattern.__name__ = "regex"
        return regex_pattern

    def regex(completions: Sequence[str], pattern: Sequence[object], **_: object) -> list[float | None]:
        return [
            None if one is None else matches(re.compile(str(one)), completion)  # re keeps what it has compiled
            for completion, one in zip(completions, pattern, strict=True)
        ]

    return regex


def _text(target: object) -> str | None:
    if target is None:
        return None
    if isinstance(target, bool) or not isinstance(target, str | int | float):
        raise TypeError(f"the target is {target!r}, expected text or a number")
    return str(target).strip()
