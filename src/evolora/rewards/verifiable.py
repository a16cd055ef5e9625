"""Answers scored by the reasoning-gym data set that asked the question."""

import ast
import functools
import importlib.util
import json
import math
import re
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from evolora.errors import InputError
from evolora.rewards.base import Reward
from evolora.tasks.gym_process import load_entry, make_dataset

# Data sets that hand the answer to Python's eval (as a list, say). A literal is all that they need.
_EVALUATING = ("binary_matrix", "n_queens", "spiral_matrix", "string_insertion")
# Data sets that hand it to sympy's parse_expr, which evaluates it as Python too.
_SYMBOLIC = (
    "countdown", "puzzle24", "polynomial_multiplication", "simple_integration", "intermediate_integration",
)  # fmt: skip

_FUNCTIONS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "sinh", "cosh", "tanh", "exp", "log", "ln",
    "sqrt", "Abs", "asinh", "acosh", "atanh", "erf",
}  # fmt: skip
_LONGEST_FORMULA, _LARGEST_EXPONENT = 1000, 100


def make_verifiable(*, threshold: float = 0.0, extract: bool = False) -> Reward:
    """Score answers to reasoning-gym questions by their data set's own `score_answer`, in [0, 1].

    The answer is the stripped completion or, with `extract`, the text of its last <answer>...</answer>, as
    `reasoning_gym.utils.extract_answer` finds it; a completion without one scores 0. A score below `threshold` counts
    as 0: some data sets give 0.01 or 0.05 to any text at all, and most give partial credit to an answer with words
    around it. An answer on which the data set raises scores 0.

    What is called has the column `entry` of a `gym:` task; where it is None, the completion is not scored.

    No answer is run as code: some data sets evaluate answers as Python, which is confined here to literals, or to
    arithmetic with the elementary functions.

    Raises InputError for a threshold outside [0, 1], and where reasoning-gym is not installed.
    """
    if not 0 <= threshold <= 1:
        raise InputError(f"reward verifiable: threshold is {threshold}, expected a number from 0 to 1.")
    if importlib.util.find_spec("reasoning_gym") is None:
        raise InputError(
            "reward verifiable: found no package reasoning_gym, expected it: pip install 'evolora[verifiable]'."
        )

    def verifiable(completions: Sequence[str], entry: Sequence[object], **_: object) -> list[float | None]:
        return [
            None if item is None else _score(completion, item, threshold, extract)
            for completion, item in zip(completions, entry, strict=True)
        ]

    verifiable.version = f"verifiable {threshold} {extract} reasoning-gym {version('reasoning-gym')}"  # type: ignore[attr-defined]
    return verifiable


def _score(completion: str, entry: object, threshold: float, extract: bool) -> float:
    name, options, item = _item(entry)
    answer = completion.strip()
    if extract:
        found = re.findall(r"<answer>(.*?)</answer>", completion, flags=re.DOTALL)
        if not found:
            return 0.0
        answer = found[-1].strip()
    if name in _SYMBOLIC and answer != item["answer"] and not is_formula(answer):
        answer = ""  # scored as if nothing had been written
    dataset = _dataset(name, json.dumps(options))
    try:
        score = float(dataset.score_answer(answer, item))
    except Exception:  # a data set that cannot read an answer raises whatever comes: the answer is wrong
        return 0.0
    if not math.isfinite(score) or score < threshold:
        return 0.0
    return min(max(score, 0.0), 1.0)


def _item(entry: object) -> tuple[str, dict[str, Any], dict[str, Any]]:
    if not isinstance(entry, str):
        raise TypeError(f"the entry is {entry!r:.60}, expected text: the JSON of a reasoning-gym item")
    return load_entry(entry)


@functools.lru_cache(maxsize=32)
def _dataset(name: str, options: str) -> Any:
    """A data set to score by; its seed and size do not matter."""
    dataset = make_dataset(name, json.loads(options), seed=0)
    if name in _EVALUATING:
        # Its module's global name `eval` is found before the built-in.
        sys.modules[type(dataset).__module__].eval = ast.literal_eval  # type: ignore[attr-defined]
    return dataset


def is_formula(text: str) -> bool:
    """Whether a text is arithmetic on numbers, single letters and elementary functions, with small exponents: nothing
    that runs code, or for ages, when it is evaluated.

    >>> [is_formula(text) for text in ("(3 + 4)*2", "x**2 - sin(x)/2 + C", "open('a')", "9**9**9", "().__class__")]
    [True, True, False, False, False]
    """
    if len(text) > _LONGEST_FORMULA:
        return False
    try:
        tree = ast.parse(text.strip(), mode="eval")
        return all(_is_arithmetic(node) for node in ast.walk(tree))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _is_arithmetic(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return type(node.value) is int or (type(node.value) is float and math.isfinite(node.value))
    if isinstance(node, ast.Name):
        return len(node.id) == 1 or node.id in _FUNCTIONS or node.id == "pi"
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS and not node.keywords
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        # No power of a power, and no exponent that a sum or product makes large.
        parts = [*ast.walk(node.left), *ast.walk(node.right)]
        numbers = [part.value for part in ast.walk(node.right) if isinstance(part, ast.Constant)]
        products = [part for part in ast.walk(node.right) if isinstance(part, ast.Mult)]
        return (
            not any(isinstance(part, ast.Pow) for part in parts)
            and not products
            and all(isinstance(number, int | float) and abs(number) <= _LARGEST_EXPONENT for number in numbers)
        )
    return isinstance(
        node,
        (
            ast.Expression, ast.BinOp, ast.UnaryOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.UAdd, ast.USub,
            ast.Load,
        ),
    )  # fmt: skip
