"""How positive a completion sounds."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from evolora.rewards.base import Reward

if TYPE_CHECKING:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer


def sentiment(completions: Sequence[str], **_: object) -> list[float]:
    """(1 + compound) / 2, in [0, 1], where compound is VADER's score of the completion (Hutto and Gilbert, 2014,
    "VADER: a parsimonious rule-based model for sentiment analysis of social media text"). Neutral and empty text get
    0.5.

    >>> good, neutral, bad = sentiment(["I love it!", "", "I hate it."])
    >>> good > neutral == 0.5 > bad
    True
    """
    return [(1.0 + float(_analyzer().polarity_scores(completion)["compound"])) / 2.0 for completion in completions]


def make_sentiment() -> Reward:
    """The reward `sentiment`."""
    return sentiment


@functools.cache
def _analyzer() -> "SentimentIntensityAnalyzer":
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer  # who asks for help does not wait for it

    return SentimentIntensityAnalyzer()  # reads its lexicon: once is enough
