"""Whether a completion is JSON of the wanted form."""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from evolora.errors import InputError
from evolora.reading import read_text
from evolora.rewards.base import Reward
from evolora.rewards.json_object import VALID_CREDIT, parse_json

PARTIAL_CREDIT = 0.6
"""What an object that breaks its schema can get beyond `VALID_CREDIT`: 0.8 in all, clearly less than a valid one."""

_FEW_BRACKETS = 20  # with fewer, no value is nested so deeply that checking it exhausts Python's stack

_OF_NAMES = ("properties", "patternProperties", "additionalProperties")


def make_json_schema(*, schema: str | None = None) -> Reward:
    """Score JSON by a JSON Schema, in [0, 1].

    - 0 unless the whole completion is one JSON value (NaN and Infinity are no JSON).
    - 1 when the value is valid.
    - Otherwise 0.2; and for an object whose schema names `required` or `properties` at its top, 0.2 + 0.6 * the share
      of right names among those that count. The names that count are the required ones, and of the object's own those
      that `properties` knows or that the schema forbids; a name is right when the object has it and it is valid there.
      So names that the schema merely tolerates bring nothing.

    `schema` is the path of a JSON file; where it is left out, the data's column `schema` holds each row's schema, an
    object or its text, and None is not scored. The draft is the one that `$schema` names, 2020-12 unless it does.
    `format` is an annotation, as the standard has it, and not checked. `$ref` may point into the schema itself and to
    the standard's own schemas; nothing is fetched.

    Raises InputError for a file that is missing, no JSON or no schema; a bad schema in the data, and a `$ref` that
    leads nowhere or in a circle, raise ValueError when they are met.

    >>> schema = {"required": ["name", "age"], "properties": {"age": {"type": "integer"}}}
    >>> completions = ["Ada, 36", "[]", '{"name": "Ada", "age": "36"}', '{"name": "Ada", "age": 36}']
    >>> make_json_schema()(completions=completions, schema=[{"type": "object", **schema}] * 4)
    [0.0, 0.2, 0.5, 1.0]
    """
    if schema is not None:
        try:
            score = _scorer_of(_read(Path(schema)))
        except (ValueError, RecursionError) as error:
            raise InputError(f"reward json-schema: {schema} {error}, expected the file of a JSON Schema.") from error

        def json_schema_file(completions: Sequence[str], **_: object) -> list[float]:
            return [score(completion) for completion in completions]

        json_schema_file.__name__ = "json_schema"
        return json_schema_file

    def json_schema(completions: Sequence[str], schema: Sequence[object], **_: object) -> list[float | None]:
        return [
            None if one is None else _scorer_of_row(one)(completion)
            for completion, one in zip(completions, schema, strict=True)
        ]

    return json_schema


def _read(path: Path) -> object:
    try:
        text = read_text(path)
    except UnicodeDecodeError as error:
        raise ValueError("is not UTF-8 text") from error
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
    try:
        return parse_json(text.removeprefix("\ufeff"))
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from error


def _scorer_of_row(schema: object) -> Callable[[str], float]:
    try:
        return _scorer_of_text(schema if isinstance(schema, str) else json.dumps(schema))
    except ValueError as error:
        raise ValueError(f"the schema is {schema!r}, which {error}, expected a JSON Schema or its text") from error


@functools.lru_cache(maxsize=1024)  # rows of the data mostly share one schema or a few
def _scorer_of_text(text: str) -> Callable[[str], float]:
    try:
        schema = parse_json(text)
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from error
    return _scorer_of(schema)


def _scorer_of(schema: object) -> Callable[[str], float]:
    """The score of a completion by this schema. Raises ValueError, the predicate of a sentence, when it is none."""
    validator = _validator(schema)
    from referencing.exceptions import Unresolvable

    def score(completion: str) -> float:
        try:
            value = parse_json(completion)
        except ValueError:
            return 0.0
        try:
            return 1.0 if validator.is_valid(value) else VALID_CREDIT + PARTIAL_CREDIT * _share(validator, value)
        except RecursionError as error:
            if completion.count("[") + completion.count("{") < _FEW_BRACKETS:
                raise ValueError("the schema's $ref leads back to itself without end") from error
            return VALID_CREDIT  # nested too deeply to be checked
        except Unresolvable as error:
            raise ValueError(f"the schema's $ref leads nowhere: {error}") from error

    return score


def _validator(schema: object) -> Any:
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import Draft202012Validator, validator_for
    from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]

    if not isinstance(schema, dict | bool):
        raise ValueError("is neither an object nor true or false")
    draft = Draft202012Validator
    if isinstance(schema, dict) and "$schema" in schema:
        named = schema["$schema"]
        draft = validator_for(schema, default=None) if isinstance(named, str) else None
        if draft is None:
            raise ValueError(f"names the unknown draft {named!r}")
    try:
        draft.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"is no JSON Schema ({' '.join(error.message.split())} at {error.json_path})") from error
    # With this registry, what is not in it is not fetched.
    return draft(schema, registry=REGISTRY)


def _share(validator: Any, value: object) -> float:
    """The share of right names among those that count; 0 where none does."""
    schema = validator.schema
    if not isinstance(value, dict) or not isinstance(schema, dict):
        return 0.0
    # Only what looks at one name and its value; evolve keeps the root that a $ref starts from.
    of_names = {key: schema[key] for key in _OF_NAMES if key in schema}
    one_name = validator.evolve(schema=of_names)
    right = {name for name in value if one_name.is_valid({name: value[name]})}
    required, known = schema.get("required", ()), schema.get("properties", {})
    if isinstance(required, bool):  # in draft 3 it is said of each property, not here
        required = ()
    counting = {*required} | {name for name in value if name in known or name not in right}
    return len(right & counting) / len(counting) if counting else 0.0
