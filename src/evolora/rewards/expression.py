"""Rewards made of rewards: weighted sums, products and gates of terms, as in `chrf + 0.2 * brevity(limit=8)`.

expression := product (("+" | "-") product)*
product    := factor ("*" factor)*
factor     := "-" factor | number | term | "(" expression ")" | gate
gate       := "(" expression (">" | ">=" | "<" | "<=") expression ")"        1 where it holds, else 0
term       := name | name "(" argument ("," argument)* ")" | path.py:function | package.module:function
argument   := value | option "=" value
value      := number | true | false | none | "text" | 'text' | text without blanks, commas, brackets and quotes
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from evolora.errors import InputError
from evolora.masking import mask

Values = npt.NDArray[np.float64]
Argument = str | int | float | bool | None

_NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_FILE = re.compile(r"[^\s()*+,'\"<>=]+\.py:[A-Za-z_]\w*")
_MODULE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_NAME = re.compile(r"[A-Za-z_]\w*(-[A-Za-z_]\w*)*")
_OPTION = re.compile(r"[A-Za-z_]\w*(?=\s*=[^=])")
_COMPARISON = re.compile(r">=|<=|>|<")
_TEXT = re.compile(r"""[^\s,()'"]+""")
_ABSOLUTE = re.compile(r"""(?<![\w/:.])/[^\s'"=:]+""")
_QUOTED = re.compile(r""""((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)'""")

_DEEPEST = 50

_COMPARE: dict[str, Callable[[Values, Values], npt.NDArray[np.bool_]]] = {
    ">": np.greater,
    ">=": np.greater_equal,
    "<": np.less,
    "<=": np.less_equal,
}


class Node(Protocol):
    """A part of an expression. What it is worth has NaN where there is no score."""

    def value(self, scores: Mapping[str, Values]) -> Values: ...

    def terms(self) -> Iterator["Term"]: ...


@dataclass(frozen=True)
class Term:
    """One reward with its arguments: `name` is a built-in or registered name, or a function's place."""

    name: str
    positional: tuple[Argument, ...] = ()
    options: tuple[tuple[str, Argument], ...] = ()

    @property
    def is_function(self) -> bool:
        """Whether it names a function's place."""
        return ":" in self.name

    @property
    def label(self) -> str:
        """A short name for logs and reports: a function's own name, or the term as it is written, without keys and
        without the folders of files that are here.

        >>> Term("/home/me/rewards.py:polite").label, Term("brevity", options=(("limit", 8),)).label
        ('polite', 'brevity(limit=8)')
        """
        place = self.name if self.is_function else str(dict(self.options).get("function", ""))
        if name := place.rpartition(":")[2]:
            return name
        short = tuple((name, _file_names(value) if isinstance(value, str) else value) for name, value in self.options)
        return mask(str(replace(self, options=short)).removeprefix("<function ").removesuffix(">"))

    def value(self, scores: Mapping[str, Values]) -> Values:
        return scores[str(self)]

    def terms(self) -> Iterator["Term"]:
        yield self

    def __str__(self) -> str:
        arguments = [
            *map(written_argument, self.positional),
            *(f"{name}={written_argument(value)}" for name, value in self.options),
        ]
        return f"{self.name}({', '.join(arguments)})" if arguments else self.name


@dataclass(frozen=True)
class Number:
    """A constant."""

    number: float

    def value(self, scores: Mapping[str, Values]) -> Values:
        return np.full_like(next(iter(scores.values())), self.number)

    def terms(self) -> Iterator[Term]:
        yield from ()

    def __str__(self) -> str:
        return f"{self.number:g}"


@dataclass(frozen=True)
class Sum:
    """A sum, signs included. Terms without a score are left out, as TRL does with None; NaN where all are. `summands`
    are its parts that are no constants."""

    signs: tuple[int, ...]
    parts: tuple[Node, ...]

    @property
    def summands(self) -> list[int]:
        return [index for index, part in enumerate(self.parts) if any(part.terms())]

    def value(self, scores: Mapping[str, Values], weights: Values | None = None) -> Values:
        values = np.stack([sign * part.value(scores) for sign, part in zip(self.signs, self.parts, strict=True)])
        if weights is not None:  # one of weight 0 is left out
            values[self.summands] *= np.where(weights == 0, np.nan, weights)
        return np.where(np.isnan(values[self.summands]).all(0), np.nan, np.nansum(values, 0))

    def terms(self) -> Iterator[Term]:
        for part in self.parts:
            yield from part.terms()

    def __str__(self) -> str:
        words = [f" {'+-'[sign < 0]} {part}" for sign, part in zip(self.signs, self.parts, strict=True)]
        return "(" + "".join(words).strip().removeprefix("+ ") + ")"


@dataclass(frozen=True)
class Product:
    """A product; NaN where any factor is."""

    parts: tuple[Node, ...]

    def value(self, scores: Mapping[str, Values]) -> Values:
        product: Values = np.prod([part.value(scores) for part in self.parts], axis=0)
        return product

    def terms(self) -> Iterator[Term]:
        for part in self.parts:
            yield from part.terms()

    def __str__(self) -> str:
        return " * ".join(map(str, self.parts))


@dataclass(frozen=True)
class Gate:
    """1 where the comparison holds, 0 where it does not; NaN where either side is."""

    left: Node
    comparison: str
    right: Node

    def value(self, scores: Mapping[str, Values]) -> Values:
        left, right = self.left.value(scores), self.right.value(scores)
        holds = _COMPARE[self.comparison](left, right).astype(np.float64)
        return np.where(np.isnan(left) | np.isnan(right), np.nan, holds)

    def terms(self) -> Iterator[Term]:
        yield from self.left.terms()
        yield from self.right.terms()

    def __str__(self) -> str:
        return f"({self.left} {self.comparison} {self.right})"


@dataclass(frozen=True)
class Expression:
    """What `--reward` says. `terms` are the distinct ones in order; `str` writes it so that it parses to the same."""

    root: Node

    @property
    def terms(self) -> tuple[Term, ...]:
        return tuple({str(term): term for term in self.root.terms()}.values())

    @property
    def single(self) -> Term | None:
        """The term, where the expression is nothing else."""
        return self.root if isinstance(self.root, Term) else None

    @property
    def labels(self) -> dict[str, str]:
        """Each term's label by its text; where several have one label, their texts, without keys."""
        several = Counter(term.label for term in self.terms)
        labels: dict[str, str] = {}
        for term in self.terms:
            label = mask(str(term)) if several[term.label] > 1 else term.label
            while label in labels.values():  # only their keys differ
                label += "'"
            labels[str(term)] = label
        return labels

    @property
    def summands(self) -> tuple[str, ...]:
        """Short names of what a sum of several is made of, constants aside and without factors; else none.

        >>> parse("chrf + 0.2 * brevity(limit=8) - 1").summands, parse("0.5 * (chrf + exact)").summands
        (('chrf', 'brevity(limit=8)'), ())
        """
        root = self.map(lambda term: Term(self.labels[str(term)])).root
        if not isinstance(root, Sum) or len(root.summands) < 2:
            return ()
        names: list[str] = []
        for part in (root.parts[index] for index in root.summands):
            factors = part.parts if isinstance(part, Product) else (part,)
            name = " * ".join(str(factor) for factor in factors if not isinstance(factor, Number))
            while name in names:
                name += "'"
            names.append(name)
        return tuple(names)

    def combine(self, scores: Mapping[str, Values], weights: Values | None = None) -> Values:
        """The rewards [completions], from each term's by its text; NaN means "not scored". `weights` [summands,
        completions] multiply the `summands`; where one is 0 the summand is as if it were not there.

        >>> import numpy as np
        >>> expression = parse("chrf * (length(8) > 0.5) - 0.5")
        >>> expression.combine({"chrf": np.array([0.9, 0.8]), "length(8)": np.array([1.0, 0.5])})
        array([ 0.4, -0.5])
        """
        if weights is None:
            return self.root.value(scores)
        assert isinstance(self.root, Sum)
        return self.root.value(scores, weights)

    def map(self, change: Callable[[Term], Term]) -> "Expression":
        """The same with other terms in the terms' places."""
        return Expression(_map_terms(self.root, change))

    def __str__(self) -> str:
        text = str(self.root)
        return text[1:-1] if isinstance(self.root, Sum) else text


def parse(text: str) -> Expression:
    """The expression that `text` writes. Raises InputError, one sentence that says where it stops making sense.

    >>> str(parse("chrf+0.2*brevity( limit = 8 )"))
    'chrf + 0.2 * brevity(limit=8)'
    >>> [str(term) for term in parse("0.5 * rewards.py:polite * (json > 0) + cosine('my model')").terms]
    ['rewards.py:polite', 'json', "cosine('my model')"]
    >>> parse("chrf +")
    Traceback (most recent call last):
        ...
    evolora.errors.InputError: --reward 'chrf +': found the end after 'chrf +', expected a number, a reward, \
path.py:function or '('.
    """
    return Expression(_Parser(text).whole())


class _Parser:
    """Recursive descent: a method a rule of the grammar above."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0

    def whole(self) -> Node:
        root = self.expression()
        if self.peek():
            if _COMPARISON.match(self.text, self.at):
                self.refuse("the end: a gate such as (json > 0) stands in brackets")
            if self.peek() in ".:/":
                self.refuse("path.py:function")
            self.refuse("'+', '-', '*' or the end")
        if not any(root.terms()):
            raise InputError(f"--reward {self.text!r}: found no reward in it, expected at least one.")
        return root

    def expression(self) -> Node:
        signs, parts = [1], [self.product()]
        while (sign := self.peek()) and sign in "+-":
            self.at += 1
            signs.append(1 if sign == "+" else -1)
            parts.append(self.product())
        return parts[0] if len(parts) == 1 else Sum(tuple(signs), tuple(parts))

    def product(self) -> Node:
        parts = [self.factor()]
        while self.peek() == "*":
            self.at += 1
            parts.append(self.factor())
        return parts[0] if len(parts) == 1 else Product(tuple(parts))

    def factor(self) -> Node:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise InputError(
                f"--reward {self.text[:60]!r}...: found brackets or signs within more than {_DEEPEST} others, "
                "expected fewer."
            )
        found = self._factor()
        self.depth -= 1
        return found

    def _factor(self) -> Node:
        sign = self.peek()
        if sign == "-":
            self.at += 1
            negated = self.factor()
            return Number(-negated.number) if isinstance(negated, Number) else Product((Number(-1.0), negated))
        if sign == "(":
            self.at += 1
            inner = self.expression()
            self.peek()
            if comparison := self.take(_COMPARISON):
                inner = Gate(inner, comparison, self.expression())
            self.closing_bracket()
            return inner
        for place in (_FILE, _NUMBER, _MODULE):
            if found := self.take(place):
                if place is _NUMBER and math.isinf(float(found)):
                    raise InputError(f"--reward {self.text!r}: found {found}, expected a finite number.")
                return Number(float(found)) if place is _NUMBER else Term(found)
        if name := self.take(_NAME):
            return self.arguments(name) if self.text.startswith("(", self.at) else Term(name)
        return self.refuse("a number, a reward, path.py:function or '('")

    def arguments(self, name: str) -> Term:
        self.at += 1
        positional: list[Argument] = []
        options: dict[str, Argument] = {}
        while self.peek() != ")":
            if option := self.take(_OPTION):
                self.peek()
                self.at += 1
                self.peek()
                if option in options:
                    self.refuse(f"{option} only once")
                options[option] = self.argument()
            elif options:
                self.refuse("option=value")
            else:
                positional.append(self.argument())
            if self.peek() == ",":
                self.at += 1
            elif self.peek() != ")":
                self.refuse("',' or ')'")
        self.closing_bracket()
        return Term(name, tuple(positional), tuple(options.items()))

    def argument(self) -> Argument:
        if quoted := _QUOTED.match(self.text, self.at):
            self.at = quoted.end()
            inner = quoted[1] if quoted[1] is not None else quoted[2]
            return re.sub(r"""\\([\\'"])""", r"\1", inner)
        word = self.take(_TEXT)
        if word is None:
            return self.refuse("a value")
        return _value(word)

    def closing_bracket(self) -> None:
        if self.peek() != ")":
            self.refuse("')'")
        self.at += 1

    def peek(self) -> str:
        """The next character that is no blank; empty at the end."""
        while self.text[self.at : self.at + 1].isspace():
            self.at += 1
        return self.text[self.at : self.at + 1]

    def take(self, pattern: re.Pattern[str]) -> str | None:
        found = pattern.match(self.text, self.at)
        if found is None:
            return None
        self.at = found.end()
        return found[0]

    def refuse(self, expected: str) -> NoReturn:
        self.peek()
        found = repr(self.text[self.at :][:20]) if self.at < len(self.text) else "the end"
        after = f" after {self.text[: self.at].rstrip()!r}" if self.text[: self.at].strip() else ""
        raise InputError(f"--reward {self.text!r}: found {found}{after}, expected {expected}.")


def _value(word: str) -> Argument:
    """A bare word's value.

    >>> [_value(word) for word in ("3", "0.5", "true", "none", "models/tiny")]
    [3, 0.5, True, None, 'models/tiny']
    """
    if word in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[word]
    for number in (int, float):
        try:
            value = number(word)
        except ValueError:
            continue
        return value if isinstance(value, int) or math.isfinite(value) else word
    return word


def written_argument(value: Argument) -> str:
    """An argument as `parse` reads it: text in quotes unless it is plain.

    >>> print(*map(written_argument, (8, "a b", "x.json", "8", True, None)))
    8 'a b' x.json '8' true none
    """
    if isinstance(value, str):
        plain = _TEXT.fullmatch(value) and _value(value) == value and "=" not in value and "\\" not in value
        return value if plain else "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return {"True": "true", "False": "false", "None": "none"}.get(repr(value), repr(value))


def _file_names(text: str) -> str:
    """The text, of each file or folder that is here only its own name."""
    if Path(text).is_absolute() and Path(text).exists():
        return Path(text).name
    return _ABSOLUTE.sub(lambda found: Path(found[0]).name if Path(found[0]).exists() else found[0], text)


def _map_terms(node: Node, change: Callable[[Term], Term]) -> Node:
    if isinstance(node, Term):
        return change(node)
    if isinstance(node, (Sum, Product)):
        return replace(node, parts=tuple(_map_terms(part, change) for part in node.parts))
    if isinstance(node, Gate):
        return replace(node, left=_map_terms(node.left, change), right=_map_terms(node.right, change))
    return node
