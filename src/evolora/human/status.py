"""What the run tells the people who rate."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PageStatus:
    """How the run goes, as the page shows it.

    `generation`: the one that votes are wanted for; None: the store's current one. `wanted`: how many votes it wants in
    all; None: one for each of its questions. No question is shown once it has them, or while the store's questions are
    those of another generation. `certainty` in [0.5, 1]: `Fit.certainty`. `agreement` in [0, 1]: the share of held-out
    votes that the reward model agrees with. `message`: one sentence of what the run does now.
    """

    generation: int | None = None
    wanted: int | None = None
    certainty: float | None = None
    agreement: float | None = None
    message: str = ""


def certainty_in_words(certainty: float) -> str:
    """What a certainty in [0.5, 1] means.

    >>> certainty_in_words(0.5), certainty_in_words(0.93)
    ('hardly known yet', 'well known')
    """
    for limit, words in ((0.6, "hardly known yet"), (0.75, "taking shape"), (0.9, "fairly well known")):
        if certainty < limit:
            return words
    return "well known"
