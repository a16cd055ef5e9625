"""Which pairs to ask: those whose votes are expected to tell most about the individuals' strengths."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from evolora.human.bradley_terry import Fit, difference_variance, information, outcome_probabilities
from evolora.human.votes import Pair


def choose_pairs(
    candidates: Sequence[Pair],
    fit: Fit,
    count: int,
    *,
    weights: Sequence[float] | None = None,
    asked: Iterable[Pair] = (),
) -> list[Pair]:
    """Up to `count` of the candidates, greedily, the most telling first.

    A vote on individuals i and j has Fisher information I about d = theta_i - theta_j, whose variance under the
    posterior is V; it is expected to tell log(1 + I V) / 2 nats (MacKay, 1992, "Information-based objective functions
    for active data selection"), times the candidate's weight (default 1; not negative). After each pick the covariance
    is what it will be once that vote is in, whichever way it goes: C - C x x' C I / (1 + I V) with x = e_i - e_j.

    A prompt is repeated only when no candidate with a prompt that came up less often tells anything. The same two texts
    for one prompt come up once, whoever wrote them; identical texts, and individuals against themselves, never.
    `asked`: pairs of earlier calls that count as picked.

    Raises ValueError for a candidate whose individual is not in the fit, and for weights that are negative or not
    finite.

    >>> from evolora.human.bradley_terry import fit_strengths
    >>> candidates = [Pair("p", 0, "x", 1, "x"), Pair("p", 0, "x", 2, "y"), Pair("q", 1, "z", 2, "w")]
    >>> [pair.prompt for pair in choose_pairs(candidates, fit_strengths([], [0, 1, 2]), 5)]
    ['p', 'q']
    """
    value = np.ones(len(candidates)) if weights is None else np.asarray(weights, dtype=np.float64)
    if value.shape != (len(candidates),) or not (np.isfinite(value) & (value >= 0)).all():
        raise ValueError("weights are not one finite number, zero or more, for each candidate")
    row_of = {individual: row for row, individual in enumerate(fit.individuals)}
    missing = {name for pair in candidates for name in (pair.individual_a, pair.individual_b)} - row_of.keys()
    if missing:
        raise ValueError(f"individuals {sorted(missing)} are not in the fit")

    first = np.array([row_of[pair.individual_a] for pair in candidates], dtype=np.int64)
    second = np.array([row_of[pair.individual_b] for pair in candidates], dtype=np.int64)
    win, _, loss = outcome_probabilities(fit.strengths[first] - fit.strengths[second], fit.nu)
    tells = information(win, loss)
    covariance = fit.covariance.copy()

    asked = list(asked)
    prompts = Counter(pair.prompt for pair in asked)
    shown = {_as_shown(pair) for pair in asked}
    usable = np.array(
        [
            pair.text_a != pair.text_b and pair.individual_a != pair.individual_b and _as_shown(pair) not in shown
            for pair in candidates
        ],
        dtype=np.bool_,
    )
    repeats = np.array([prompts[pair.prompt] for pair in candidates], dtype=np.int64)
    of_prompt: dict[str, list[int]] = {}
    for index, pair in enumerate(candidates):
        of_prompt.setdefault(pair.prompt, []).append(index)

    picked: list[Pair] = []
    while len(picked) < count:
        variance = difference_variance(covariance, first, second)
        gain = np.where(usable, value * np.log1p(tells * variance) / 2, 0.0)
        telling = gain > 0
        if not telling.any():
            break
        freshest = telling & (repeats == repeats[telling].min())
        index = int(np.argmax(np.where(freshest, gain, -1.0)))  # the first of equals: the same answer every time
        pair = candidates[index]
        picked.append(pair)
        for other in of_prompt[pair.prompt]:
            repeats[other] += 1
            usable[other] &= _as_shown(candidates[other]) != _as_shown(pair)
        i, j = first[index], second[index]
        column = covariance[:, i] - covariance[:, j]
        covariance -= np.outer(column, column) * tells[index] / (1 + tells[index] * variance[index])
    return picked


def _as_shown(pair: Pair) -> tuple[str, frozenset[str]]:
    return pair.prompt, frozenset((pair.text_a, pair.text_b))
