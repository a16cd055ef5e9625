"""Human feedback: a person compares two completions, and the votes become strengths of individuals."""

from typing import TYPE_CHECKING

from evolora.lazy import lazily

if TYPE_CHECKING:
    from evolora.human.bradley_terry import Comparison, Fit, comparisons, fit_strengths
    from evolora.human.choice import choose_pairs
    from evolora.human.server import RatingPage
    from evolora.human.status import PageStatus
    from evolora.human.votes import Choice, Pair, Question, Vote, VoteStore

__getattr__ = lazily(
    __name__,
    {
        "evolora.human.bradley_terry": "Comparison comparisons Fit fit_strengths",
        "evolora.human.choice": "choose_pairs",
        "evolora.human.server": "RatingPage",
        "evolora.human.status": "PageStatus",
        "evolora.human.votes": "Choice Pair Question Vote VoteStore",
    },
)

__all__ = [
    "Choice",
    "Comparison",
    "Fit",
    "PageStatus",
    "Pair",
    "Question",
    "RatingPage",
    "Vote",
    "VoteStore",
    "choose_pairs",
    "comparisons",
    "fit_strengths",
]
