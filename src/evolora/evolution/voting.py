"""The vote of several individuals: on each prompt the completion that most of them wrote."""

from collections.abc import Sequence


def plurality(completions: Sequence[Sequence[str]]) -> list[int]:
    """For each prompt the first voter whose completion wins; `completions` has a list of texts for each voter, the best
    voter first. Of equally frequent texts that of the best voter wins.

    Majority voting over perturbed models is the end of Neural Thickets (Gan and Isola, 2026, arXiv 2603.12228), over
    samples that of self-consistency (Wang et al., 2022, arXiv 2203.11171). Here whole texts are compared, without
    blanks at their ends, and no answers are parsed out of them. Raises ValueError without voters.

    >>> plurality([["a", "x"], ["b", "y"], ["b ", "z"]])
    [1, 0]
    """
    if not completions:
        raise ValueError("expected at least one voter, found none")
    winners = []
    for texts in zip(*completions, strict=True):
        stripped = [text.strip() for text in texts]
        winners.append(max(range(len(stripped)), key=lambda voter: stripped.count(stripped[voter])))
    return winners
