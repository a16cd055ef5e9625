"""The help of `evolora train`: one screen of what people use, or all options by part."""

import re
import textwrap
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from evolora.errors import InputError
from evolora.options import can_do_without, extra
from evolora.runs.options import RunOptions, Source, make_options
from evolora.runs.parts import PARTS, TRL_WORDS
from evolora.runs.speech import Speech

_USAGE = """\
usage: evolora train [FILE.toml ...] [--OPTION VALUE ...]

Start a run. Files of options and options may be mixed; later files win, options win over files."""
_WAYS = """\
  --dry-run            the resolved options as TOML, and what the run will cost
  --resume [RUN]       continue the run in RUN, or in --out; --trust-reward: also a foreign one
  --quiet              only what it came to in the end; --json-lines: all that happens, as JSON
  --config FILE        the same as FILE.toml alone; may be repeated
  --help-all           all options, by part; --PART.NAME is the long way to write any"""
_WIDTH = 100
TITLES = {
    "model": "base model", "lora": "adapters", "engine": "engine", "workers": "workers", "task": "task",
    "reward": "reward", "human": "people's votes", "completion": "completions", "evolution": "evolution",
    "strategy": "strategy", "refiner": "refiner", "budget": "budget", "run": "run",
}  # fmt: skip


def short_help(source: Source) -> str:
    """One screen, for the types of strategy and refiner that the words choose."""
    options = _chosen(source)
    lines = [_USAGE, ""]
    for (part, name), field in options.vocabulary.fields.items():
        if not extra(field)["common"]:
            continue
        left = f"  {flag_of(options, part, name)} {_metavar(field)}".rstrip()
        text = _types(part) if name == "type" else re.split(r"; |: | \(", str(field.description))[0]
        shown = _default(options, part, name, field)
        room = _WIDTH - 23 - len(shown)
        lines.append(f"{left:<21}  {textwrap.shorten(text, room, placeholder='...')}{shown}")
    return "\n".join([*lines, "", _WAYS])


def full_help(source: Source) -> str:
    """Every option by part, those of other types of strategy and refiner too."""
    lines = [_USAGE, _WAYS, "", _wrapped(f"TRL's names work too: {', '.join(TRL_WORDS)}.", "")]
    for part, kind, here in every_part(_chosen(source)):
        lines += ["", f"[{part}]  {TITLES[part]}" + (f" {kind}" if kind else "")]
        for (place, name), field in here.vocabulary.fields.items():
            if place != part:
                continue
            shown = _default(here, part, name, field)
            text = f"{field.description}{shown}"
            flag = flag_of(here, part, name)
            off = f"/ --no-{flag[2:]}" if field.annotation is bool else _metavar(field)
            lines.append(f"  {flag} {off}")
            lines.append(_wrapped(text, "      "))
    return "\n".join(lines)


def every_part(options: RunOptions) -> Iterator[tuple[str, str, RunOptions]]:
    """Each part in each of its types, "" where it has one, and options of a run with that type."""
    for part, kinds in PARTS.items():
        for kind in kinds:
            # Pairs that do not go together, such as pbt without a refiner, are not made here.
            yield part, kind, make_options(_only(part, kind)) if kind else options


def option_help(field: FieldInfo) -> str:
    """An option's help for argparse."""
    text = str(field.description).replace("%", "%%")
    return f"{text} (default {field.default})" if field.default is not None and "default" not in text else text


def _only(part: str, kind: str) -> dict[str, str]:
    other = {"strategy": {"none": "ppo"}, "refiner": {"none": "ga"}}[part].get(kind)
    counterpart = "refiner" if part == "strategy" else "strategy"
    return {part: kind} | ({counterpart: other} if other else {})


def _chosen(source: Source) -> RunOptions:
    """The options of the chosen types; whatever else was typed is for the run."""
    words = [(word, value) for word, value in source.words if word in ("strategy", "refiner")]
    try:
        return make_options(Source(words, Speech("cli")))
    except InputError:
        return make_options()


def flag_of(options: RunOptions, part: str, name: str) -> str:
    """An option as it is usually typed."""
    return Speech("cli").name(options.vocabulary.word(part, name))


def _types(part: str) -> str:
    return ", ".join(PARTS[part])


def _metavar(field: FieldInfo) -> str:
    kinds: list[Any] = [kind for kind in get_args(field.annotation) or (field.annotation,) if kind is not type(None)]
    if field.annotation is bool:
        return ""
    if get_origin(field.annotation) is Literal:
        return "NAME"
    kind = get_args(kinds[0])[0] if get_origin(kinds[0]) is Annotated else kinds[0]
    return {int: "N", float: "X"}.get(kind, "TEXT")


def _default(options: RunOptions, part: str, name: str, field: FieldInfo) -> str:
    value = getattr(getattr(options, part), name)
    if field.annotation is bool:
        return " (default on)" if value else ""
    if value is None or ("default" in str(field.description) and can_do_without(field)):
        return ""
    return f" ({' '.join(map(str, value)) if isinstance(value, list) else value})"


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
