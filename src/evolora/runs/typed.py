"""The words that were typed behind `evolora train`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from evolora.errors import InputError
from evolora.runs.options import Source
from evolora.runs.parts import PARTS, AmbiguousWordError, UnknownWordError, Vocabulary, trl_name
from evolora.runs.speech import Speech
from evolora.runs.tracking.choice import SHOWN_BY, Shows


@dataclass
class Typed:
    """What was typed: options, the TOML files among them, and what is no option of a run."""

    source: Source
    files: list[str] = field(default_factory=list)
    help: Literal["short", "all"] | None = None
    dry_run: bool = False
    resume: str | None = None
    trust_reward: bool = False
    shows: Shows = "auto"


def typed_words(arguments: Sequence[str]) -> Typed:
    """The words of `evolora train`. How many values an option has, its field says, whose part may be chosen only later
    on the line; what is left of them is the name of a TOML file. Raises InputError."""
    groups: list[tuple[str, list[str]]] = [("", [])]
    for argument in arguments:
        if argument == "-h":
            groups.append(("--help", []))
        elif argument.startswith("--") and len(argument) > 2:
            name, equals, value = argument.partition("=")
            groups.append((name, [value] if equals else []))
        else:
            groups[-1][1].append(argument)
    kinds = {option: values[0] for option, values in groups if option in ("--strategy", "--refiner") and values}
    vocabulary = Vocabulary({name.lstrip("-"): kind for name, kind in kinds.items() if _known(name, kind)})
    typed, words, shown = Typed(Source([])), [], {}
    for option, values in groups:
        rest = values
        if option in ("--help", "--help-all"):
            typed.help = "all" if option == "--help-all" else "short"
        elif option == "--dry-run":
            typed.dry_run = True
        elif option == "--trust-reward":
            typed.trust_reward = True
        elif option in SHOWN_BY:
            if typed.shows not in ("auto", SHOWN_BY[option]):
                raise InputError("--quiet and --json-lines: found both, expected one of them")
            typed.shows = SHOWN_BY[option]
        elif option == "--resume":
            typed.resume, rest = (values[0], values[1:]) if values else ("", [])
        elif option == "--config":
            if not values:
                raise InputError("--config: found no file behind it, expected one")
        elif option:
            word, value, rest = _valued(option, values, vocabulary)
            words.append((word, value))
            shown[word] = option
        typed.files += rest
    if typed.trust_reward and typed.resume is None:
        raise InputError("--trust-reward: expected --resume RUN beside it")
    typed.source = Source(_joined(words, vocabulary), Speech("cli"), shown)
    return typed


def _known(name: str, kind: str) -> bool:
    return kind in PARTS[name.lstrip("-")]


def _valued(option: str, values: list[str], vocabulary: Vocabulary) -> tuple[str, Any, list[str]]:
    """The word of an option, its value and the arguments that are none of its."""
    word = option[2:]
    try:
        field = vocabulary.fields[vocabulary.place(word)]
    except AmbiguousWordError:
        return word, values[0] if values else True, values[1:]  # refused with the others
    except UnknownWordError:
        turned = word.removeprefix("no-")
        place = vocabulary.words.get(turned.replace("-", "_"))
        if turned != word and place is not None and vocabulary.fields[place].annotation is bool:
            return turned, False, values
        return word, values[0] if values else True, values[1:]
    if field.annotation is bool:
        if values[:1] and values[0] in ("true", "false"):
            return word, values[0], values[1:]
        return word, True, values
    if not values:
        raise InputError(f"{option}: found no value behind it, expected one")
    if takes_several(field) or trl_name(word) in ("reward_funcs", "reward_weights"):
        return word, values if len(values) > 1 or values[0] != "none" else "none", []
    return word, values[0], values[1:]


def _joined(words: list[tuple[str, Any]], vocabulary: Vocabulary) -> list[tuple[str, Any]]:
    """The words, of all rewards one with a list where there are several, and so of all their weights."""
    joined: dict[object, tuple[str, Any]] = {}
    for number, (word, value) in enumerate(words):
        kind: object = number
        if vocabulary.words.get(word.replace("-", "_")) == ("reward", "name"):
            kind = "weights" if trl_name(word) == "reward_weights" else "rewards"
        before = joined.get(kind)
        joined[kind] = (word, value) if before is None else (before[0], [*_listed(before[1]), *_listed(value)])
    return list(joined.values())


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def takes_several(field: FieldInfo) -> bool:
    """Whether an option takes a list."""
    kinds = get_args(field.annotation)
    return any(get_origin(kind) is list or takes_several(FieldInfo(annotation=kind)) for kind in kinds)
