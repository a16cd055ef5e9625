"""The built-in fitnesses by name, and where each is made."""

import importlib
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evolora.fitness.base import FitnessFunction

BUILTIN_FITNESS: dict[str, str] = {
    "macro-f1": "evolora.fitness.macro_f1:make_macro_f1",
    "corpus-bleu": "evolora.fitness.corpus_bleu:make_corpus_bleu",
    "worst-group": "evolora.fitness.worst_group:make_worst_group",
    "pass-at-k": "evolora.fitness.pass_at_k:make_pass_at_k",
    "agreement": "evolora.fitness.agreement:make_agreement",
    "program": "evolora.fitness.program:make_program",
}
"""Each name's factory, as module:function. Its keywords are the fitness's options, but for `context`, the run that it
is for (`FitnessContext`)."""

BY_PROMPT = ("pass-at-k", "agreement")
"""Those that have a value of a single prompt. The others judge the whole."""


DRIFT = "drift"
"""A term of a fitness that is no completion's."""
_NAMED = re.compile(rf"(?<![\w.:/-]){DRIFT}(?![\w.:/-])")


def builtin_fitness(spec: str) -> str | None:
    """The built-in fitness that `spec` names, with its options or without; None where it is what a reward may be.

    >>> builtin_fitness("pass-at-k(k=2)"), builtin_fitness("exact")
    ('pass-at-k', None)
    """
    found = re.fullmatch(r"\s*([\w-]+)\s*(\(.*\)\s*)?", spec, re.DOTALL)
    return found[1] if found is not None and found[1] in BUILTIN_FITNESS else None


def names_drift(spec: str) -> bool:
    """Whether a fitness has the drift in it.

    >>> names_drift("exact - 0.5 * drift"), names_drift("drift.py:mine")
    (True, False)
    """
    return _NAMED.search(spec) is not None


def judges_whole(spec: str) -> bool:
    """Whether it is known to judge the whole of what an individual writes. A function may do so too: that is known once
    it has been called."""
    return builtin_fitness(spec) not in (None, *BY_PROMPT)


def fitness_factory(name: str) -> "Callable[..., FitnessFunction]":
    """The factory of a built-in fitness."""
    module, _, attribute = BUILTIN_FITNESS[name].partition(":")
    factory: Callable[..., FitnessFunction] = getattr(importlib.import_module(module), attribute)
    return factory
