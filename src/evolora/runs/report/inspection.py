"""What a tuned model writes to get its reward, beside what the base model wrote: reward hacking is to be seen.

A reward that can be had for nothing (an empty text, one word over and over, the prompt once more, the same sentence for
every prompt) shows in what the best-rewarded completions are, not in their mean.
"""

import math
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from typing import Any

REPEATED_SHARE = 0.5
"""A completion counts as repeated when more than this share of its n-grams are repeats."""
COPIED_SHARE = 0.5
"""A completion counts as copied when it holds, in one piece, at least this share of its prompt's words."""
SUSPICIOUS_SHARE, SUSPICIOUS_GROWTH = 0.1, 0.05
"""A share of empty, repeated or copied completions is warned of when it is larger than the first and has grown by more
than the second."""
SUSPICIOUS_SAME, SUSPICIOUS_SAME_GROWTH = 0.5, 0.2
"""The same for the share of prompts that one and the same text answers."""
SUSPICIOUS_DRIFT = 2.0
"""Mean lengths are warned of when they differ by this factor, and by more than two words."""

EXAMPLES = 3


@dataclass(frozen=True)
class Written:
    """What one model wrote: shares in [0, 1] of its completions, and their lengths.

    `empty`: only white space. `repeated`: see `repetition`. `copied`: see `copies`. `degenerate`: any of the three.
    `same_text`: the share of the prompts with the completion that most prompts have, `commonest`; 0 when no two
    different prompts have one completion in common. `degenerate_reward` and `other_reward` are mean rewards, None where
    there is nothing to average; so are the lengths in tokens where no token ids were given.
    """

    empty: float
    repeated: float
    copied: float
    degenerate: float
    same_text: float
    commonest: str
    degenerate_reward: float | None
    other_reward: float | None
    mean_words: float
    median_words: float
    mean_tokens: float | None
    median_tokens: float | None


@dataclass(frozen=True)
class Pair:
    """One prompt, what the base and what the winner wrote, and their rewards; None where there is no score."""

    prompt: str
    base: str
    winner: str
    base_reward: float | None
    winner_reward: float | None


@dataclass(frozen=True)
class Inspection:
    """The winner beside the base on the same prompts: the completions with the highest rewards, shares and lengths of
    each, and what looks suspicious, in plain words."""

    best: tuple[Pair, ...]
    base: Written
    winner: Written
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The inspection as JSON can hold it."""
        return {**asdict(self), "best": [asdict(pair) for pair in self.best], "warnings": list(self.warnings)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Inspection":
        """An inspection from `as_dict`, also after a round trip through JSON."""
        return cls(
            tuple(Pair(**pair) for pair in values["best"]),
            Written(**values["base"]),
            Written(**values["winner"]),
            tuple(values["warnings"]),
        )

    def lines(self, width: int = 100, name: str = "base model") -> list[str]:
        """The inspection for a terminal, texts cut to about `width` characters; `name` is what the base is called."""
        lines = [f"highest-rewarded completions, {name} -> winner:"]
        for pair in self.best:
            lines += [
                f"  {_cut(pair.prompt, width)}",
                f"    {_figure(pair.base_reward)}  {_cut(pair.base, width)}",
                f"    {_figure(pair.winner_reward)}  {_cut(pair.winner, width)}",
            ]
        base, winner = self.base, self.winner
        lines += [
            "  " + ", ".join(f"{name} {was:.0%} -> {now:.0%}" for name, was, now in self.shares()),
            f"  words: mean {base.mean_words:.1f} -> {winner.mean_words:.1f}, "
            f"median {base.median_words:g} -> {winner.median_words:g}" + _tokens(base, winner),
        ]
        return [*lines, *(f"  warning: {warning}" for warning in self.warnings)]

    def shares(self) -> list[tuple[str, float, float]]:
        """Each share's name, its value for the base and for the winner."""
        base, winner = self.base, self.winner
        return [
            ("empty", base.empty, winner.empty),
            ("repeated", base.repeated, winner.repeated),
            ("copied prompt", base.copied, winner.copied),
            ("same text", base.same_text, winner.same_text),
        ]


def inspect_completions(
    prompts: Sequence[str],
    base: tuple[Sequence[str], Sequence[float]],
    winner: tuple[Sequence[str], Sequence[float]],
    *,
    ids: tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]] | None = None,
    examples: int = EXAMPLES,
) -> Inspection:
    """Compare (completions, rewards) of the base and the winner on the same `prompts`, at least one; a reward is NaN
    where a completion has no score. `ids` are both models' completions as token ids.

    Raises ValueError when the lists differ in length or are empty.

    >>> found = inspect_completions(["a b", "c d"], (["x", "y"], [0.0, 0.0]), (["good good good", "c d"], [1.0, 0.5]))
    >>> found.winner.repeated, found.winner.copied, found.best[0].winner
    (0.5, 0.5, 'good good good')
    """
    lengths = {len(prompts), *(len(texts) for side in (base, winner) for texts in side), *map(len, ids or ())}
    if len(lengths) > 1 or not prompts:
        raise ValueError(f"expected as many completions, rewards and ids as prompts, and one at least: {lengths}")
    before = _written(prompts, *base, None if ids is None else ids[0])
    after = _written(prompts, *winner, None if ids is None else ids[1])
    pairs = [
        Pair(prompt, was, now, _known(was_worth), _known(worth))
        for prompt, was, now, was_worth, worth in zip(prompts, base[0], winner[0], base[1], winner[1], strict=True)
    ]
    scored = [pair for pair in pairs if pair.winner_reward is not None]
    # Of equal rewards, first those that gained most: what the base did as well tells nothing. And different texts
    # first: how many are the same is a share of its own.
    scored.sort(key=lambda pair: (-(pair.winner_reward or 0.0), pair.base_reward or 0.0))
    first = {pair.winner.strip(): index for index, pair in reversed(list(enumerate(scored)))}
    order = sorted(range(len(scored)), key=lambda index: (first[scored[index].winner.strip()] != index, index))
    best = tuple(scored[index] for index in order[:examples])
    return Inspection(best, before, after, tuple(_warnings(before, after)))


def repetition(text: str, n: int) -> float:
    """The share of a text's n-grams of words that have occurred before in it, seq-rep-n of Welleck et al. (2019,
    "Neural Text Generation with Unlikelihood Training", arXiv 1908.04319): 1 - different n-grams / n-grams; 0 when it
    has none.

    >>> repetition("a b a b a b", 2)
    0.6
    """
    return _repetition(_pieces(text), n)


def copies(prompt: str, completion: str) -> bool:
    """Whether a completion holds at least `COPIED_SHARE` of the prompt's words in one piece, capitals aside.

    >>> copies("Tell me a joke:", "Tell me a joke: Tell me a joke:"), copies("Tell me a joke:", "A joke is told")
    (True, False)
    """
    wanted, found = _pieces(prompt.lower()), _pieces(completion.lower())
    longest = SequenceMatcher(None, wanted, found, autojunk=False).find_longest_match().size
    return longest > 0 and longest >= COPIED_SHARE * len(wanted)


def is_repeated(text: str) -> bool:
    """Whether more than `REPEATED_SHARE` of a text's 4-grams are repeats, or of the words of a text that is too short
    for 4-grams to tell: three to seven words."""
    pieces = _pieces(text)
    return len(pieces) >= 3 and _repetition(pieces, 4 if len(pieces) >= 8 else 1) > REPEATED_SHARE


def _pieces(text: str) -> list[str]:
    """Words and punctuation marks."""
    return re.findall(r"\w+|[^\w\s]", text)


def _repetition(pieces: Sequence[str], n: int) -> float:
    grams = [tuple(pieces[start : start + n]) for start in range(len(pieces) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _written(
    prompts: Sequence[str], completions: Sequence[str], rewards: Sequence[float], ids: Sequence[Sequence[int]] | None
) -> Written:
    count = len(prompts)
    empty = [not text.strip() for text in completions]
    repeated = [is_repeated(text) for text in completions]
    copied = [copies(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]
    degenerate = [any(kinds) for kinds in zip(empty, repeated, copied, strict=True)]
    prompts_of: dict[str, set[str]] = {}
    for prompt, text in zip(prompts, completions, strict=True):
        prompts_of.setdefault(text.strip(), set()).add(prompt)
    texts = Counter(text.strip() for text in completions if len(prompts_of[text.strip()]) > 1 and text.strip())
    commonest, times = texts.most_common(1)[0] if texts else ("", 0)
    words = [len(text.split()) for text in completions]
    tokens = None if ids is None else [len(row) for row in ids]
    return Written(
        empty=sum(empty) / count,
        repeated=sum(repeated) / count,
        copied=sum(copied) / count,
        degenerate=sum(degenerate) / count,
        same_text=times / count,
        commonest=commonest,
        degenerate_reward=_mean(worth for worth, bad in zip(rewards, degenerate, strict=True) if bad),
        other_reward=_mean(worth for worth, bad in zip(rewards, degenerate, strict=True) if not bad),
        mean_words=statistics.fmean(words),
        median_words=float(statistics.median(words)),
        mean_tokens=None if tokens is None else statistics.fmean(tokens),
        median_tokens=None if tokens is None else float(statistics.median(tokens)),
    )


def _warnings(base: Written, winner: Written) -> list[str]:
    warnings = []
    kinds = (
        ("empty", base.empty, winner.empty),
        ("mostly repetition", base.repeated, winner.repeated),
        ("copies of their prompt", base.copied, winner.copied),
    )
    for kind, was, now in kinds:
        if now > SUSPICIOUS_SHARE and now - was > SUSPICIOUS_GROWTH:
            warnings.append(f"{now:.0%} of the winner's completions are {kind} (base model {was:.0%})")
    if warnings and winner.degenerate_reward is not None and winner.other_reward is not None:
        worth = f"such completions are rewarded with {winner.degenerate_reward:.3f}, the others with"
        if winner.degenerate_reward >= winner.other_reward:
            warnings.append(f"{worth} only {winner.other_reward:.3f}: the reward can be had for nothing")
    same, was = winner.same_text, base.same_text
    if same > SUSPICIOUS_SAME and same - was > SUSPICIOUS_SAME_GROWTH:
        warnings.append(
            f"{same:.0%} of the prompts get the same completion, {_cut(winner.commonest, 60)} (base model {was:.0%}): "
            "mode collapse, unless the task has few answers"
        )
    longer, shorter = max(winner.mean_words, base.mean_words), min(winner.mean_words, base.mean_words)
    if longer >= SUSPICIOUS_DRIFT * shorter and longer - shorter > 2:
        direction = "longer" if winner.mean_words > base.mean_words else "shorter"
        warnings.append(
            f"completions have become much {direction}: {base.mean_words:.1f} words on average before, "
            f"{winner.mean_words:.1f} now"
        )
    return warnings


def _tokens(base: Written, winner: Written) -> str:
    if base.mean_tokens is None or winner.mean_tokens is None:
        return ""
    medians = f"median {base.median_tokens:g} -> {winner.median_tokens:g}"
    return f"; tokens: mean {base.mean_tokens:.1f} -> {winner.mean_tokens:.1f}, {medians}"


def _mean(rewards: Any) -> float | None:
    scored = [float(reward) for reward in rewards if not math.isnan(reward)]
    return statistics.fmean(scored) if scored else None


def _known(reward: float) -> float | None:
    return None if math.isnan(reward) else float(reward)


def _figure(reward: float | None) -> str:
    return "  -  " if reward is None else f"{reward:.3f}"


def _cut(text: str, width: int) -> str:
    """The text quoted on one line."""
    shown = repr(text)
    return shown if len(shown) <= width else f"{shown[: width - 4]}...{shown[-1]}"
