"""The tasks of reasoning-gym: `gym:NAME` or `gym:NAME(option=value, ...)`."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evolora.errors import InputError
from evolora.rng import keyed_seed
from evolora.tasks import gym_process as gym_items
from evolora.tasks.options import GYM

SIZES = {"train": 500, "validation": 100, "test": 200}
TEMPLATE = "{question}\nAnswer:"

Value = str | int | float | bool | list[Any]


@dataclass(frozen=True)
class GymSpec:
    """A data set of reasoning-gym, its `options`, how many questions each split has, and the prompt around them."""

    name: str
    options: dict[str, Value]
    sizes: dict[str, int]
    template: str


@dataclass(frozen=True)
class GymRow:
    """One question: the split that it is in, the prompt, the answer, and the whole item as JSON."""

    split: str
    prompt: str
    answer: str
    entry: str


def parse_gym(spec: str) -> GymSpec:
    """What `gym:NAME(option=value, ...)` asks for.

    Values are whole numbers, numbers, true or false, 'quoted' or "quoted" text (\\n in it is a new line), bare text, or
    [a, list, of, them]. The options train, validation and test are the numbers of questions, `template` the prompt with
    `{question}` in it; all others are the data set's own.

    Raises InputError for anything else, at its place.

    >>> spec = parse_gym("gym:basic_arithmetic(max_digits=1, operators=[+, -], train=50)")
    >>> spec.name, spec.options, spec.sizes["train"]
    ('basic_arithmetic', {'max_digits': 1, 'operators': ['+', '-']}, 50)
    """
    name, options = _Parser(spec).parse()
    sizes = dict(SIZES)
    for split in SIZES:
        if split in options:
            size = options.pop(split)
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise InputError(f"--task {spec} has {split}={size!r}, expected a whole number above 0.")
            sizes[split] = size
    template = options.pop("template", TEMPLATE)
    if not isinstance(template, str) or "{question}" not in template:
        raise InputError(f"--task {spec} has template={template!r}, expected text with {{question}} in it.")
    return GymSpec(name, options, sizes, template)


def gym_rows(spec: str, *, seed: int) -> Iterator[GymRow]:
    """The questions of a `gym:` task: the same ones for the same spec and seed, none in two splits.

    The test questions are drawn first, so they depend on the seed and on `test`, not on the size of the other splits.

    Raises InputError for a bad spec, an unknown data set (with the names that are close), options that it refuses, too
    few different questions, and where reasoning-gym is not installed.
    """
    wanted = parse_gym(spec)
    if importlib.util.find_spec("reasoning_gym") is None:
        raise InputError(
            f"--task {spec} finds no package reasoning_gym, expected it: pip install 'evolora[verifiable]'."
        )
    request = {
        "name": wanted.name,
        "options": wanted.options,
        # 31 bits: some data sets seed numpy, which takes 32, with the seed plus the question's number.
        "splits": [[split, keyed_seed(seed, "gym", split) >> 32, wanted.sizes[split]] for split in reversed(SIZES)],
    }
    # -P: this file's folder must not come before the library's own modules.
    done = subprocess.run(
        [sys.executable, "-P", str(Path(gym_items.__file__))],
        input=json.dumps(request), capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )  # fmt: skip
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise InputError(
            f"--task {spec} cannot be generated ({said}), expected options that its data set can work with."
        )
    answer = json.loads(done.stdout)
    if "refused" in answer:
        raise InputError(f"--task {spec} {answer['refused']}.")
    for split, question, target, entry in answer["rows"]:
        yield GymRow(split, wanted.template.replace("{question}", question), target, entry)


# Bare text goes on to the next mark, without the spaces around it.
_TOKEN = re.compile(
    r"""\s* (?: (?P<quoted> '[^']*' | "[^"]*" )
             | (?P<mark> [()\[\],=] )
             | (?P<bare> [^\s()\[\],='"] (?: [^()\[\],='"]* [^\s()\[\],='"] )? ) ) \s*""",
    re.VERBOSE,
)


class _Parser:
    """A parser of `gym:NAME(option=value, ...)` by recursive descent."""

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.text = spec.strip().removeprefix(GYM)
        self.place = 0
        self.kind: str | None = None
        self.token = ""
        self.advance()

    def parse(self) -> tuple[str, dict[str, Value]]:
        name = self.word("the name of a data set")
        options: dict[str, Value] = {}
        if self.kind is not None:
            self.mark("(")
            while not self.at(")"):
                option = self.word("the name of an option or ')'")
                if option in options:
                    self.refuse(f"no second {option}")
                self.mark("=")
                options[option] = self.value()
                if not self.at(")"):
                    self.mark(",")
            self.mark(")")
            if self.kind is not None:
                self.refuse("nothing after ')'")
        return name, options

    def value(self) -> Value:
        if self.at("["):
            self.mark("[")
            values = []
            while not self.at("]"):
                values.append(self.value())
                if not self.at("]"):
                    self.mark(",")
            self.mark("]")
            return values
        if self.kind not in ("quoted", "bare"):
            self.refuse("a value")
        kind, token = self.kind, self.token
        self.advance()
        return token[1:-1].replace("\\n", "\n") if kind == "quoted" else _bare(token)

    def word(self, what: str) -> str:
        if self.kind != "bare" or not re.fullmatch(r"\w+", self.token):
            self.refuse(what)
        word = self.token
        self.advance()
        return word

    def at(self, mark: str) -> bool:
        return self.kind == "mark" and self.token == mark

    def mark(self, mark: str) -> None:
        if not self.at(mark):
            self.refuse(f"'{mark}'")
        self.advance()

    def advance(self) -> None:
        found = _TOKEN.match(self.text, self.place)
        if found is None:
            rest = self.text[self.place :].strip()
            self.kind, self.token = ("other", rest[0]) if rest else (None, "")
            return
        self.kind = found.lastgroup
        self.token = found[self.kind] if self.kind else ""
        self.place = found.end()

    def refuse(self, expected: str) -> None:
        found = f"{self.token!r}" if self.kind is not None else "its end"
        raise InputError(f"--task {self.spec} has {found} where {expected} is expected.")


def _bare(token: str) -> Value:
    if token.lower() in ("true", "false"):
        return token.lower() == "true"
    if re.fullmatch(r"[+-]?\d+", token):
        return int(token)
    if re.fullmatch(r"[+-]?(\d+\.\d*|\.\d+|\d+)([eE][+-]?\d+)?", token):
        return float(token)
    return token
