"""Rewards that count the n-grams which a completion shares with its target: BLEU, chrF, ROUGE, sentence by sentence.

A target is text, a number, or a list of these, of which each is a reference. None is not scored.
"""

from collections.abc import Callable, Sequence

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from evolora.errors import InputError
from evolora.rewards.base import Reward

_SMOOTHING = ("exp", "floor", "add-k", "none")
_ROUGE = ("rouge1", "rouge2", "rouge3", "rouge4", "rougeL", "rougeLsum")


def make_bleu(*, max_order: int = 4, smoothing: str = "exp") -> Reward:
    """Sentence BLEU of the completion against its target, in [0, 1] (Papineni et al., 2002), as sacrebleu computes it
    (Post, 2018, arXiv 1804.08771) with its 13a tokeniser and effective order: orders that a text is too short for are
    left out.

    `smoothing` of orders without a match, as Chen and Cherry (2014) name them: `exp` (their third method, default),
    `floor` (0.1), `add-k` (1) or `none`, with which a text without a match of every order is worth 0.

    >>> make_bleu()(completions=["the cat sat on the mat"], target=["the cat sat on the mat"])
    [1.0]
    """
    if not 1 <= max_order <= 9:
        raise InputError(f"reward bleu: max_order is {max_order}, expected 1 to 9.")
    if smoothing not in _SMOOTHING:
        raise InputError(f"reward bleu: smoothing is {smoothing!r}, expected one of {', '.join(_SMOOTHING)}.")
    metric = BLEU(smooth_method=smoothing, max_ngram_order=max_order, effective_order=True)
    return _against_references("bleu", lambda text, references: metric.sentence_score(text, references).score / 100)


def make_chrf(*, word_order: int = 0, beta: float = 2.0) -> Reward:
    """Sentence chrF of the completion against its target, in [0, 1]: the F-score, recall counting `beta` times as much,
    of character n-grams up to 6 (Popović, 2015), as sacrebleu computes it. `word_order` 2 adds words and pairs of
    words: chrF++. No smoothing; orders that a text is too short for are left out.

    >>> [round(value, 3) for value in make_chrf()(completions=["hello", "hallo"], target=["hello", "hello"])]
    [1.0, 0.327]
    """
    if not 0 <= word_order <= 9:
        raise InputError(f"reward chrf: word_order is {word_order}, expected 0 to 9.")
    if beta <= 0 or beta != int(beta):
        raise InputError(f"reward chrf: beta is {beta}, expected a positive whole number.")
    metric = CHRF(word_order=word_order, beta=int(beta))
    return _against_references("chrf", lambda text, references: metric.sentence_score(text, references).score / 100)


def make_rouge(*, type: str = "rougeL", stemmer: bool = False) -> Reward:
    """ROUGE of the completion against its target, the F-measure, in [0, 1] (Lin, 2004), as the package rouge-score
    computes it: rouge1 to rouge4 (n-grams of words), rougeL (longest common subsequence) or rougeLsum (that of each
    line). Of several references the best one counts. Text without letters or digits has no words and is worth 0; there
    is no smoothing.

    Raises InputError where rouge-score is not installed.
    """
    if type not in _ROUGE:
        raise InputError(f"reward rouge: type is {type!r}, expected one of {', '.join(_ROUGE)}.")
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise InputError(
            "reward rouge: found no package rouge-score, expected it installed: pip install 'evolora[rouge]'."
        ) from None
    scorer = RougeScorer([type], use_stemmer=stemmer)
    return _against_references(
        "rouge",
        lambda text, references: max(scorer.score(reference, text)[type].fmeasure for reference in references),
    )


def _against_references(name: str, score: Callable[[str, list[str]], float]) -> Reward:
    def overlap(completions: Sequence[str], target: Sequence[object], **_: object) -> list[float | None]:
        return [
            None if not (references := _references(goal)) else min(1.0, max(0.0, score(text.strip(), references)))
            for text, goal in zip(completions, target, strict=True)
        ]

    overlap.__name__ = name
    return overlap


def _references(target: object) -> list[str]:
    references = [one for one in (target if isinstance(target, list) else [target]) if one is not None]
    for one in references:
        if isinstance(one, bool) or not isinstance(one, str | int | float):
            raise TypeError(f"the target is {one!r}, expected text, a number, or a list of these")
    return [str(one).strip() for one in references]
