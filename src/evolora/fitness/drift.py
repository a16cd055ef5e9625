"""The drift as a term of a fitness, as in `exact - 0.5 * drift`: what an individual is, whatever it wrote."""

from dataclasses import dataclass

from evolora.errors import InputError
from evolora.fitness.registry import DRIFT
from evolora.rewards.expression import Expression, Node, Number, Product, Sum, Term

_MOST = 200


@dataclass(frozen=True)
class DriftTerm:
    """Its weight in the sum, and on how many of the neutral sentences it is measured."""

    weight: float
    sentences: int = _MOST

    def added_to(self, rest: Expression) -> Expression:
        """The whole fitness again."""
        term = Term(DRIFT, options=() if self.sentences == _MOST else (("sentences", self.sentences),))
        weighted = Product((Number(abs(self.weight)), term))
        return Expression(Sum((1, 1 if self.weight > 0 else -1), (rest.root, weighted)))


def without_drift(expression: Expression) -> tuple[Expression, DriftTerm | None]:
    """What is left of a fitness without its drift, and that; None where it has none. Raises InputError where it is not
    added once, times a number, to something else.

    >>> from evolora.rewards.expression import parse
    >>> rest, drift = without_drift(parse("exact - 0.5 * drift(sentences=20)"))
    >>> str(rest), drift
    ('exact', DriftTerm(weight=-0.5, sentences=20))
    """
    if not any(term.name == DRIFT for term in expression.terms):
        return expression, None
    root = expression.root
    parts = list(zip(root.signs, root.parts, strict=True)) if isinstance(root, Sum) else [(1, root)]
    drifts = [(sign, part) for sign, part in parts if any(term.name == DRIFT for term in part.terms())]
    rest = [(sign, part) for sign, part in parts if (sign, part) not in drifts]
    weight = _weight(drifts[0][1]) if len(drifts) == 1 else None
    if weight is None or not any(any(part.terms()) for _, part in rest):
        raise InputError(
            f"--fitness {str(expression)!r}: found {DRIFT} elsewhere, expected it once, added to something else, with "
            f"a number as its weight, as in 'exact - 0.5 * {DRIFT}'."
        )
    (term,) = drifts[0][1].terms()
    found = DriftTerm(drifts[0][0] * weight, _sentences(term))
    if len(rest) == 1 and rest[0][0] == 1:
        return Expression(rest[0][1]), found
    signs, others = zip(*rest, strict=True)
    return Expression(Sum(signs, others)), found


def _weight(part: Node) -> float | None:
    """The number in front of the drift; None where there is something else."""
    if isinstance(part, Term):
        return 1.0
    if not isinstance(part, Product) or not all(isinstance(each, Term | Number) for each in part.parts):
        return None
    weight = 1.0
    for each in part.parts:
        if isinstance(each, Number):
            weight *= each.number
        elif isinstance(each, Term) and each.name != DRIFT:
            return None
    return weight if weight and sum(isinstance(each, Term) for each in part.parts) == 1 else None


def _sentences(term: Term) -> int:
    options = dict(term.options) | dict(zip(("sentences",), term.positional, strict=False))
    count = options.pop("sentences", _MOST)
    if options or len(term.positional) > 1 or isinstance(count, bool) or not isinstance(count, int):
        raise InputError(f"fitness {term}: expected no option but sentences, a whole number.")
    if not 1 <= count <= _MOST:
        raise InputError(f"fitness {term}: sentences is {count}, expected a number from 1 to {_MOST}.")
    return count
