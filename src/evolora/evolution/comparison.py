"""Whether one individual is better than another by more than chance, on the same prompts."""

import numpy as np
import numpy.typing as npt

from evolora.evolution.racing import losers
from evolora.evolution.soup import within_a_standard_error
from evolora.fitness.base import Judged

Floats = npt.NDArray[np.float64]

# How often a fitness of the whole is asked for on resampled prompts, for one comparison.
RESAMPLES = 400


def clearly_better(best: Judged, other: Judged, *, level: float, seed: int) -> bool:
    """Whether the best is, at this error level: by Fisher's randomisation test on what they are worth prompt by prompt.
    A fitness of the whole is recomputed on resampled prompts, the same for both (the paired bootstrap: Efron and
    Tibshirani, 1993; of BLEU: Koehn, 2004); of one that cannot be recomputed nothing is known of chance, and the higher
    one is better."""
    if best.by_prompt is not None and other.by_prompt is not None:
        return 1 in losers(np.stack([best.by_prompt, other.by_prompt]), keep=1, level=level, seed=seed)
    if best.fitness <= other.fitness:
        return False
    if (gaps := resampled_gaps(best, other, seed=seed)) is None:
        return True
    return bool((1 + (gaps <= 0).sum()) / (1 + len(gaps)) < level)


def within_noise(other: Judged, best: Judged, *, seed: int) -> bool:
    """Whether the other is no further below the best than one standard error of their difference."""
    if best.by_prompt is not None and other.by_prompt is not None:
        return within_a_standard_error(other.by_prompt, best.by_prompt)
    gaps = resampled_gaps(best, other, seed=seed)
    error = 0.0 if gaps is None or len(gaps) < 2 else float(gaps.std(ddof=1))
    return best.fitness - other.fitness <= error + 1e-12


def resampled_gaps(best: Judged, other: Judged, *, seed: int, resamples: int = RESAMPLES) -> Floats | None:
    """How much fitter the best is on prompts that are drawn again and again, with replacement, the same for both; None
    where that cannot be found out."""
    one, two = resampled(best, seed=seed, resamples=resamples), resampled(other, seed=seed, resamples=resamples)
    if one is None or two is None:
        return None
    gaps = one - two
    return gaps[~np.isnan(gaps)]


def resampled(judged: Judged, *, seed: int, resamples: int) -> Floats | None:
    """The fitness on prompts that are drawn with replacement, again and again; None where that cannot be found out."""
    if judged.value is None:
        return None
    draws = np.random.default_rng(seed).integers(0, judged.prompts, (resamples, judged.prompts))
    return np.array([judged.value(draw) for draw in draws])
