"""Rewards that count the n-grams and subsequences that a completion shares with its target: BLEU, chrF, ROUGE."""

import re
from collections.abc import Callable, Sequence

from evolora.errors import InputError
from evolora.rewards.base import Reward
from evolora.rewards.targets import target_texts

MOST_ORDER = 100
SMOOTH_METHODS = ("exp", "floor", "add-k", "none")
# sacrebleu has more, which need further packages or download a model.
BLEU_TOKENIZERS = ("13a", "intl", "zh", "char", "none")


def make_bleu(
    *,
    order: int = 4,
    smooth_method: str = "exp",
    smooth_value: float | None = None,
    tokenize: str = "13a",
    ignore_case: bool = False,
) -> Reward:
    """Sentence-level BLEU (Papineni et al., 2002) by sacrebleu (Post, 2018), / 100: the geometric mean of the shares of
    the completion's n-grams, n up to `order`, that the target has, times the brevity penalty. In [0, 1]; 1 when equal.

    Hardly a sentence shares 4-grams with its target, so the counts are smoothed (Chen and Cherry, 2014): "exp" (method
    3, NIST's), "floor" (1: `smooth_value` for a count of 0, 0.1 unless given), "add-k" (2: `smooth_value`, 1 unless
    given, is added for n > 1) or "none". The effective order is always used: a completion shorter than `order` words is
    judged by the n-grams that it has.

    A target may be text, a number, or a list of references; None is not scored. An empty completion or target gets 0.

    Raises InputError for an order below 1 or above 100, unknown methods and tokenizers, and for a smooth value that is
    not positive, above 1, or beside a method that takes none.

    >>> rewards = make_bleu()(completions=["the cat sat on a mat", "a dog"], target=["the cat sat on a mat", "a cat"])
    >>> [round(reward, 3) for reward in rewards]
    [1.0, 0.5]
    """
    if not 1 <= order <= MOST_ORDER:
        raise InputError(f"reward bleu: order is {order}, expected a number from 1 to {MOST_ORDER}.")
    if smooth_method not in SMOOTH_METHODS:
        raise InputError(
            f"reward bleu: smooth_method is {smooth_method!r}, expected one of {', '.join(SMOOTH_METHODS)}."
        )
    if smooth_value is not None and smooth_method not in ("floor", "add-k"):
        raise InputError(
            f"reward bleu: smooth_value is given with smooth_method {smooth_method!r}, expected it with floor or add-k."
        )
    if smooth_value is not None and not 0 < smooth_value <= 1:
        raise InputError(f"reward bleu: smooth_value is {smooth_value}, expected a number in (0, 1].")
    if tokenize not in BLEU_TOKENIZERS:
        raise InputError(f"reward bleu: tokenize is {tokenize!r}, expected one of {', '.join(BLEU_TOKENIZERS)}.")
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(
        lowercase=ignore_case,
        tokenize=tokenize,
        smooth_method=smooth_method,
        smooth_value=smooth_value,
        max_ngram_order=order,
        effective_order=True,
    )
    return _against_references("bleu", lambda completion, wanted: metric.sentence_score(completion, wanted).score / 100)


def make_chrf(*, char_order: int = 6, word_order: int = 0, beta: int = 2, ignore_case: bool = False) -> Reward:
    """Sentence-level chrF (Popovic, 2015) by sacrebleu, / 100: the F-score of character n-grams, n up to `char_order`,
    recall `beta` times as important as precision, whitespace left out; with `word_order=2` chrF++ (Popovic, 2017),
    which counts words and pairs of words too. In [0, 1]; 1 when equal.

    Nothing is smoothed: orders that either text is too short for are left out of the mean (sacrebleu's default).

    A target may be text, a number, or a list of references, of which the best counts; None is not scored. An empty
    completion or target gets 0.

    Raises InputError for a char_order or beta below 1, a negative word_order, and any above 100.

    >>> rewards = make_chrf()(completions=["hello", "help", "sun"], target=["hello", "hello", "hello"])
    >>> [round(reward, 3) for reward in rewards]
    [1.0, 0.377, 0.0]
    """
    for option, value, least in (("char_order", char_order, 1), ("word_order", word_order, 0), ("beta", beta, 1)):
        if not least <= value <= MOST_ORDER:
            raise InputError(f"reward chrf: {option} is {value}, expected a number from {least} to {MOST_ORDER}.")
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF(char_order=char_order, word_order=word_order, beta=beta, lowercase=ignore_case)
    return _against_references("chrf", lambda completion, wanted: metric.sentence_score(completion, wanted).score / 100)


def make_rouge(*, type: str = "rougeL", stem: bool = False) -> Reward:
    """ROUGE (Lin, 2004) by rouge-score, the F-measure, in [0, 1]; 1 when equal. `type` is "rouge1" to "rouge9", the
    n-grams in common (texts shorter than n words have none and get 0), "rougeL", the longest common subsequence of
    words, or "rougeLsum", the same over lines. `stem` compares Porter's stems.

    Words are runs of a-z and 0-9, case ignored. A target may be text, a number, or a list of references, of which the
    best counts; None is not scored. An empty completion or target gets 0; a target that has text but no such word, as
    in other scripts, raises ValueError, since every completion would get 0.

    Raises InputError for an unknown type and where rouge-score is not installed.

    >>> make_rouge()(completions=["The cat sat.", "A dog"], target=["the cat sat", "the dog"])
    [1.0, 0.5]
    """
    if not re.fullmatch("rouge([1-9]|L|Lsum)", type):
        raise InputError(f"reward rouge: type is {type!r}, expected rouge1 to rouge9, rougeL or rougeLsum.")
    try:
        from rouge_score.rouge_scorer import RougeScorer
        from rouge_score.tokenizers import DefaultTokenizer
    except ImportError as error:
        raise InputError(
            f"reward rouge: the package rouge-score cannot be imported ({error}), expected it installed by "
            "pip install 'evolora[rouge]'."
        ) from error

    tokenizer = DefaultTokenizer(stem)
    scorer = RougeScorer([type], tokenizer=tokenizer)

    def score(completion: str, wanted: list[str]) -> float:
        for reference in wanted:
            if reference and not tokenizer.tokenize(reference):
                raise ValueError(f"the target is {reference!r}, expected words in a-z and 0-9, all that ROUGE reads")
        return float(scorer.score_multi(wanted, completion)[type].fmeasure)

    return _against_references("rouge", score)


def _against_references(name: str, score: Callable[[str, list[str]], float]) -> Reward:
    """The reward that gives `score` of each completion and its references."""

    def reward(completions: Sequence[str], target: Sequence[object], **_: object) -> list[float | None]:
        return [
            # The packages' own rounding leaves an equal text at 1.0000000000000004.
            None if (wanted := target_texts(goal)) is None else min(1.0, score(completion.strip(), wanted))
            for completion, goal in zip(completions, target, strict=True)
        ]

    reward.__name__ = name
    return reward
