"""Corpus BLEU: one figure of all completions, whose n-grams are counted together."""

from collections.abc import Sequence

import numpy as np

from evolora.errors import InputError
from evolora.fitness.base import FitnessFunction, Rows, Value
from evolora.rewards.overlap import BLEU_TOKENIZERS, MOST_ORDER
from evolora.rewards.targets import target_texts


def make_corpus_bleu(*, order: int = 4, tokenize: str = "13a", ignore_case: bool = False) -> FitnessFunction:
    """Corpus BLEU (Papineni et al., 2002) by sacrebleu (Post, 2018), / 100, with its exponential smoothing; in [0, 1].
    A target may be text, a number, or a list of references; None is not judged.

    Raises InputError for an order below 1 or above 100 and for unknown tokenizers.

    >>> value = make_corpus_bleu(order=2)(completions=["the cat sat", "a dog"], target=["the cat sat", "a cat"])
    >>> round(value(np.arange(2)), 3)
    0.73
    """
    if not 1 <= order <= MOST_ORDER:
        raise InputError(f"fitness corpus-bleu: order is {order}, expected a number from 1 to {MOST_ORDER}.")
    if tokenize not in BLEU_TOKENIZERS:
        raise InputError(
            f"fitness corpus-bleu: tokenize is {tokenize!r}, expected one of {', '.join(BLEU_TOKENIZERS)}."
        )
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(lowercase=ignore_case, tokenize=tokenize, max_ngram_order=order, effective_order=True)

    def counts(completion: str, goal: object) -> list[float]:
        wanted = target_texts(goal)
        if wanted is None:
            return [0.0] * (2 * order + 2)
        score = metric.sentence_score(completion.strip(), wanted)
        return [*score.counts, *score.totals, score.sys_len, score.ref_len]

    def corpus_bleu(completions: Sequence[str], target: Sequence[object]) -> Value:
        every = np.array([counts(*each) for each in zip(completions, target, strict=True)])

        def value(rows: Rows) -> float:
            together = every[rows].sum(0).astype(int).tolist()
            correct, total, (length, wanted) = together[:order], together[order:-2], together[-2:]
            if not wanted:
                return float("nan")
            score = BLEU.compute_bleu(correct, total, length, wanted, "exp", max_ngram_order=order).score
            return min(1.0, float(score) / 100)

        return value

    return corpus_bleu
