"""What commands other than `train` have in common: arguments for options of a run, and what was given."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evolora.options import can_do_without
from evolora.runs.help import option_help
from evolora.runs.options import Source, trl_note
from evolora.runs.parts import TRL_WORDS, Place, Vocabulary, trl_name
from evolora.runs.speech import Speech
from evolora.runs.typed import takes_several
from evolora.screen import asked

if TYPE_CHECKING:
    from evolora.runs.trust import Trust

DEFAULTS = Vocabulary({})


def add_options(parser: argparse.ArgumentParser, places: Sequence[Place]) -> None:
    """An option for each place, by all its words. Values stay text: the parts' models validate them."""
    for part, name in places:
        field = DEFAULTS.fields[part, name]
        usual = DEFAULTS.word(part, name)
        spellings: dict[str, list[str]] = {}
        for word, place in DEFAULTS.words.items():
            if place == (part, name) and word != usual:
                spellings.setdefault(trl_name(word) or f"{part}.{name}", []).append(word)
        cli = Speech("cli")
        usually = (f"{part}.{name}", [usual], option_help(field))
        for dest, words, text in (usually, *((dest, words, argparse.SUPPRESS) for dest, words in spellings.items())):
            keywords: dict[str, Any] = {"dest": dest, "default": argparse.SUPPRESS, "help": text}
            flags = [cli.name(word) for word in words]
            if dest in ("reward_funcs", "reward_weights") or takes_several(field):
                parser.add_argument(*flags, nargs="+", metavar="X", **keywords)
            elif field.annotation is bool:
                parser.add_argument(*flags, action=argparse.BooleanOptionalAction, **keywords)
            else:
                parser.add_argument(*flags, metavar="NONE|X" if can_do_without(field) else "X", **keywords)


def source_of(options: Mapping[str, Any], places: Sequence[Place]) -> Source:
    """The options that were given. What they are called here is said where TRL's names were used."""
    cli = Speech("cli")
    given = [(f"{part}.{name}", part, name) for part, name in places if f"{part}.{name}" in options]
    shown = {word: cli.name(DEFAULTS.word(part, name)) for word, part, name in given}
    trl = [name for name, place in TRL_WORDS.items() if place in places and name in options]
    for name in trl:
        print(trl_note(name, cli.name(name), Source([], cli), DEFAULTS), file=sys.stderr)
    return Source([(word, options[word]) for word in (*(word for word, _, _ in given), *trl)], cli, shown)


def add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-reward", action="store_true", help="let a run that was not made here run its reward's code"
    )


def trust_of(options: Mapping[str, Any]) -> "Trust":
    """What the user says of a run that was not made here: in an option, or when asked on a terminal."""
    return bool(options["trust_reward"]) or (asked if sys.stdin is not None and sys.stdin.isatty() else False)
