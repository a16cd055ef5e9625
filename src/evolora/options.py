"""What every part's options are made of: frozen pydantic models, whose fields carry their help, limits and default.

Nothing here or in a part's `options.py` imports more than pydantic: options are refused before torch is loaded.
"""

import os
import re
from collections.abc import Mapping
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo

# The context of a validation before all defaults are known: each field by itself.
DRAFT = "draft"
# That of a run, which says itself how options are named to whoever wrote them; else Python did.
RUN = "run"

_NAME = r"--([a-z][a-z0-9-]*)"
# What stands behind an option and can only be its value: a number, a quotation, or a word that ends the phrase.
_VALUE = r"(?: (-?\d[\d.e+-]*\b|'[^']*'|[a-z][\w-]*(?=[:,.]|$| with )))?"


class Options(BaseModel):
    """The options of one part of a run. Each field is described by `option`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, values: Any) -> Any:
        """Neither the command line nor TOML has a null: the word `none` is no value, but for free text. Paths are
        text."""
        if not isinstance(values, Mapping):
            return values
        return {name: _plain(cls.model_fields.get(name), value) for name, value in values.items()}

    @model_validator(mode="after")
    def _checked(self, info: ValidationInfo) -> Self:
        if info.context == DRAFT:
            return self
        try:
            self.go_together()
        except ValueError as error:
            raise error if info.context == RUN else ValueError(in_python(str(error))) from None
        return self

    def go_together(self) -> None:
        """Raise ValueError, in the command line's words, where the fields do not go together."""


def option(
    default: Any = ...,
    help_text: str = "",
    *,
    of: str | None = None,
    common: bool = False,
    free_text: bool = False,
    alias: str | None = None,
    **limits: Any,
) -> Any:
    """A field: its default (or `default_factory`, from the fields before it), its help and its limits.

    `of` names the part that it is written in where models of several parts have it: a run tells it to the others.
    `common` options are those of the short help. The word `none` is a value of a `free_text`. `alias` is another word
    for it, which stands alone.
    """
    extra: JsonDict = {"of": of, "common": common, "free_text": free_text, "alias": alias}
    if default is not ...:
        limits["default"] = default
    return Field(description=help_text, json_schema_extra=extra, **limits)


def own_fields(model: type[Options], part: str) -> dict[str, FieldInfo]:
    """The fields of `model` that are written in the part of that name, its type first; the others are
    told to it."""
    own = {name: field for name, field in model.model_fields.items() if extra(field)["of"] in (None, part)}
    return {name: own[name] for name in sorted(own, key=lambda name: name != "type")}


def told_fields(model: type[Options], part: str) -> dict[str, str]:
    """The fields of `model` that other parts tell it, and which."""
    return {
        name: str(extra(field)["of"])
        for name, field in model.model_fields.items()
        if extra(field)["of"] not in (None, part)
    }


def extra(field: FieldInfo) -> dict[str, Any]:
    """What `option` noted of a field beside pydantic's own."""
    found = field.json_schema_extra
    return dict(found) if isinstance(found, dict) else {"of": None, "common": False, "free_text": False, "alias": None}


def said(options: Options, name: str, otherwise: Any) -> Any:
    """A field's value where the user gave one, else `otherwise`."""
    return getattr(options, name) if name in options.model_fields_set else otherwise


def can_do_without(field: FieldInfo) -> bool:
    """Whether None is among a field's values."""
    return type(None) in get_args(field.annotation)


def _plain(field: FieldInfo | None, value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value == "none" and field is not None and can_do_without(field) and not extra(field)["free_text"]:
        return None
    return value


class Seeded(Options):
    """Who draws at random."""

    seed: int = option(0, "seed of every random draw", of="run", common=True, ge=0)


def in_python(message: str) -> str:
    """A message whose options are named as on the command line, in Python's words.

    >>> in_python("--elites 4: expected fewer than --pop 4")
    'elites=4: expected fewer than pop=4'
    >>> in_python("--refiner none with --strategy pbt: expected a refiner")
    'refiner=none with strategy=pbt: expected a refiner'
    >>> in_python("--target: expected --prompt beside it")
    'target: expected prompt beside it'
    >>> in_python("--model my model: cannot be loaded, see 'evolora train --help'")
    "model=my model: cannot be loaded, see 'evolora train --help'"
    """
    # A message begins with the option at fault, whose value may be any text.
    whole = re.match(rf"{_NAME} (.+?):(?= )", message)
    if whole is None or " --" in whole[2]:
        return _named(message)
    return f"{whole[1].replace('-', '_')}={whole[2]}:{_named(message[whole.end() :])}"


def _named(message: str) -> str:
    def named(found: re.Match[str]) -> str:
        if found[1] in ("help", "help-all"):
            return found[0]
        return found[1].replace("-", "_") + (f"={found[2]}" if found[2] else "")

    return re.sub(_NAME + _VALUE, named, message)
