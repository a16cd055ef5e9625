"""Whether a completion is JSON of a given form."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonschema.exceptions import SchemaError
from jsonschema.validators import validator_for

from evolora.errors import InputError
from evolora.rewards.base import Reward

JSON_CREDIT = 0.2
"""What any valid JSON is worth: a first step that can be found by chance."""


def make_json_schema(*, schema: str | None = None) -> Reward:
    """Score JSON by a JSON Schema (json-schema.org, whichever draft its `$schema` names), in [0, 1].

    - 0 unless the whole completion is JSON (NaN and Infinity are none).
    - 1 when it is valid under the schema.
    - Else 0.2 + 0.8 * the share of the properties that are right, when the schema is one of an object: of those that
      the schema requires or describes and those that the completion has, how many are there where they are required and
      break no rule; at most 0.95. For other schemas 0.2.

    `schema` is a file. Without it, the data's column `schema` has an object or its text for each completion; None is
    not scored. Raises InputError for a file that is no JSON Schema, and ValueError for such a value in the data.
    """
    if schema is not None:
        try:
            checker = _checker(json.loads(Path(schema).read_text(encoding="utf-8")))
        except OSError as error:
            raise InputError(f"reward json-schema: schema is {schema} ({error.strerror}), expected a file.") from None
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"reward json-schema: {schema} is no JSON Schema ({reason}), expected one.") from None

        def json_schema_file(completions: Sequence[str], **_: object) -> list[float | None]:
            return [_score(completion, checker) for completion in completions]

        json_schema_file.__name__ = "json_schema"
        return json_schema_file

    def json_schema(completions: Sequence[str], schema: Sequence[object], **_: object) -> list[float | None]:
        return [
            None if one is None else _score(completion, _checker(json.loads(one) if isinstance(one, str) else one))
            for completion, one in zip(completions, schema, strict=True)
        ]

    return json_schema


def _checker(schema: Any) -> Any:
    """The validator of a schema. Raises ValueError for what is none."""
    if not isinstance(schema, dict | bool):
        raise ValueError(f"it is {type(schema).__name__}, not an object")
    kind = validator_for(schema)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise ValueError(error.message) from None
    return kind(schema)


def _score(completion: str, checker: Any) -> float:
    try:
        value = json.loads(completion, parse_constant=_no_constant)
        errors = list(checker.iter_errors(value))
    except (ValueError, RecursionError):  # RecursionError: thousands of opening brackets, which models do write
        return 0.0
    if not errors:
        return 1.0
    schema = checker.schema
    if not isinstance(value, dict) or not isinstance(schema, dict):
        return JSON_CREDIT
    required = set(schema.get("required", ()))
    properties = required | set(schema.get("properties", ())) | set(value)
    unknown = set(value) - set(schema.get("properties", ())) if schema.get("additionalProperties") is False else set()
    wrong = {error.absolute_path[0] for error in errors if error.absolute_path} | (required - set(value)) | unknown
    share = 1 - len(wrong & properties) / len(properties) if properties else 0.0
    return min(0.95, JSON_CREDIT + (1 - JSON_CREDIT) * share)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")
