"""The page of all options: `python scripts/options_page.py` writes docs/options.md from the options themselves."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from evolora.options import can_do_without
from evolora.runs.help import TITLES, every_part, flag_of
from evolora.runs.options import make_options
from evolora.runs.parts import PARTS, RESUMABLE, TRL_WORDS, Vocabulary
from evolora.runs.speech import Speech

STANDS_OUT = r"(--[a-z][a-z-]*[a-z]|(?<!\w)'[^']+'(?!\w)|\\n|<\w+>-<\w+>)"
PAGE = Path(__file__).parents[1] / "docs" / "options.md"
BEGINNING = """\
# Options

All options of `evolora train`, part by part. `evolora train --help` has those that people use, on one screen.

| where | how an option is written |
|---|---|
| command line | `--lr 3e-4`, `--lora-r 4`; the long way, `--refiner.lr 3e-4`, works for each; switches have `--no-` |
| TOML, `evolora train run.toml` | `lr = 3e-4` below `[refiner]`, `r = 4` below `[lora]` |
| Python, `evolve(...)` | `lr=3e-4`, `refiner={"type": "grpo", "lr": 3e-4}`, `lora={"r": 4}` |

Files and options may be mixed: later files win, options win over files. An unknown name is refused with the nearest
known one. `--dry-run` prints all options of a run as TOML, with what the run will cost, and starts nothing. `env:NAME`
in an option stands for that environment variable. The word `none` takes an option's value away.

Defaults are those of `--strategy ga --refiner ppo`, and of a type's own options those with that type. What a strategy
recommends is in [a table below](#what-a-strategy-recommends).
"""


def page() -> str:
    """The page as it should be."""
    lines = [BEGINNING]
    for part, kinds in PARTS.items():
        title = TITLES[part][0].upper() + TITLES[part][1:]
        lines += [f"## {title}", f"In TOML below `[{part}]`." + _types(part, list(kinds)), ""]
        lines += tables(part, len(kinds) > 1)
    lines += ["## What a strategy recommends", "Defaults of other parts that differ from strategy to strategy.", ""]
    lines += [*recommended(), "", "## TRL's names", "These are understood everywhere, and said in the log.", ""]
    lines += ["| TRL | here |", "|---|---|"]
    words, options = Vocabulary({}), make_options()
    for name, place in TRL_WORDS.items():
        if name == "reward_weights":
            lines.append("| `reward_weights` | factors in `--reward` |")
        else:
            lines.append(f"| `{name}` | `{flag_of(options, *place)}` |")
    cli = Speech("cli")
    resumed = ", ".join(f"`{cli.name(words.word(*words.words[word]))}`" for word in RESUMABLE)
    lines += [
        "",
        "## What a resumed run may be given anew",
        f"{resumed}. None of them changes what a generation computes, but for rounding.",
    ]
    return "\n".join(lines) + "\n"


def tables(part: str, several: bool) -> Iterator[str]:
    """The options of a part, a table for each of its types."""
    before: set[tuple[str, ...]] = set()
    for place, kind, options in every_part(make_options()):
        if place != part:
            continue
        rows: list[tuple[str, ...]] = []
        same: list[tuple[str, ...]] = []
        for (where, name), field in options.vocabulary.fields.items():
            if where != part or (several and name == "type"):
                continue
            flag, value = flag_of(options, part, name), default(getattr(getattr(options, part), name), field)
            row = (f"`{flag}`", f"`{name}`", values(field), value, described(field))
            (same if row in before else rows).append(row)
        before |= set(rows)
        if several:
            yield f"### {part} `{kind}`"
            text = str(PARTS[part][kind].model_fields["type"].description)
            yield f"{text[0].upper()}{text[1:]}."
            yield ""
        if rows:
            yield "| option | in TOML | value | default | what it does |"
            yield "|---|---|---|---|---|"
            yield from (f"| {' | '.join(each)} |" for each in rows)
            yield ""
        if same:
            yield f"As above: {', '.join(flag for flag, *_ in same)}."
            yield ""


def recommended() -> Iterator[str]:
    """A table of the other parts' defaults that differ from strategy to strategy."""
    runs = {kind: options for part, kind, options in every_part(make_options()) if part == "strategy"}
    yield f"| option | {' | '.join(f'`{kind}`' for kind in runs)} |"
    yield "|---" * (len(runs) + 1) + "|"
    for (part, name), field in make_options().vocabulary.fields.items():
        if part in ("evolution", "refiner"):
            row = [default(getattr(getattr(options, part), name), field) for options in runs.values()]
            if len(set(row)) > 1:
                yield f"| `{flag_of(make_options(), part, name)}` | {' | '.join(row)} |"


def _types(part: str, kinds: list[str]) -> str:
    return f" `--{part}` is one of {', '.join(f'`{kind}`' for kind in kinds)}." if len(kinds) > 1 else ""


def values(field: FieldInfo) -> str:
    """Which values an option takes."""
    kinds: list[Any] = [kind for kind in get_args(field.annotation) or (field.annotation,) if kind is not type(None)]
    if field.annotation is bool:
        return "on or off"
    if get_origin(field.annotation) is Literal:
        kinds = [field.annotation]
    if get_origin(kinds[0]) is list:
        kinds = [*get_args(kinds[0])] if get_origin(get_args(kinds[0])[0]) is Literal else [str]
    if get_origin(kinds[0]) is Literal:
        none = ["`none`"] if "none" in str(field.description) and can_do_without(field) else []
        return ", ".join([*(f"`{name}`" for name in get_args(kinds[0])), *none])
    limits = []
    metadata = [*field.metadata]
    if get_origin(kinds[0]) is Annotated:
        kinds[0], described = get_args(kinds[0])
        metadata += described.metadata
    for limit in metadata:
        for kind, sign in ((Ge, "≥"), (Gt, ">"), (Le, "≤"), (Lt, "<")):
            if isinstance(limit, kind):
                limits.append(f"{sign} {getattr(limit, kind.__name__.lower())}")
    words = [name for kind in kinds[1:] if get_origin(kind) is Literal for name in get_args(kind)]
    said = " ".join([{int: "whole number", float: "number"}.get(kinds[0], "text"), ", ".join(limits)]).strip()
    return " or ".join([said, *(f"`{word}`" for word in words)])


def default(value: Any, field: FieldInfo) -> str:
    """An option's default, nothing where its description has it."""
    if value is None:
        return "none" if can_do_without(field) and "default" not in str(field.description) else ""
    if field.annotation is bool:
        return "on" if value else "off"
    return f"`{' '.join(value) if isinstance(value, list) else value}`"


def described(field: FieldInfo) -> str:
    """What an option does; names of options, texts and files stand out, and no sign has a meaning of Markdown's."""
    text = re.sub(STANDS_OUT, r"`\1`", str(field.description)).replace("|", "\\|")
    return text.replace("(docs/rewards.md)", "([rewards](rewards.md))")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
