"""Macro-F1: a classifier judged on rare labels as on common ones."""

from collections.abc import Sequence

import numpy as np

from evolora.fitness.base import FitnessFunction, Rows, Value
from evolora.rewards.targets import target_text


def make_macro_f1(*, ignore_case: bool = True) -> FitnessFunction:
    """The mean over labels of F1 = 2 tp / (2 tp + fp + fn), where the labels are the targets that there are, and a
    completion, without blanks at its ends, is the label that it says; in [0, 1]. A completion that is no label is a
    miss of its target's and nothing else. A target of None is not judged.

    >>> value = make_macro_f1()(completions=["good", "good", "so-so"], target=["good", "bad", "good"])
    >>> value(np.arange(3))
    0.25
    """

    def macro_f1(completions: Sequence[str], target: Sequence[object]) -> Value:
        wanted = [target_text(one) for one in target]
        names = {
            label: number for number, label in enumerate(sorted({_plain(each) for each in wanted if each is not None}))
        }
        truth = np.array([-1 if each is None else names[_plain(each)] for each in wanted], np.int64)
        said = np.array([names.get(_plain(text), -1) for text in completions], np.int64)

        def value(rows: Rows) -> float:
            own_truth, own_said = truth[rows], said[rows]
            own_truth, own_said = own_truth[own_truth >= 0], own_said[own_truth >= 0]
            count = len(names)
            hits = np.bincount(own_truth[own_truth == own_said], minlength=count)
            there = np.bincount(own_truth, minlength=count)
            f1 = 2 * hits / np.maximum(there + np.bincount(own_said[own_said >= 0], minlength=count), 1)
            return float(f1[there > 0].mean()) if there.any() else float("nan")

        return value

    def _plain(text: str) -> str:
        return text.strip().casefold() if ignore_case else text.strip()

    return macro_f1
