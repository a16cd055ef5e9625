"""Whether a completion is a JSON object, and the right one."""

import json
from collections.abc import Sequence
from typing import NoReturn

from evolora.rewards.base import Reward

VALID_CREDIT = 0.2
"""What any valid object is worth when there is a target: a first step that can be found by chance."""


def json_object(completions: Sequence[str], target: Sequence[object] | None = None, **_: object) -> list[float]:
    """Score JSON objects, in [0, 1].

    - 0 unless the whole completion is one JSON object (NaN and Infinity are no JSON).
    - Without a target, or where it is None: 1 for any object.
    - With a target (an object, or its JSON text): 0.2 + 0.8 * the share of keys, among those of either object, that
      both have with equal values; 1 when the objects are equal. `1` equals `1.0` but not `true`.

    Raises ValueError for a target that is no JSON object.

    >>> json_object(["{}", "[1]", '{"a": NaN}'])
    [1.0, 0.0, 0.0]
    >>> json_object(['{"a": 1}'] * 3, target=['{"a": 1}', '{"a": 1, "b": 2}', '{"a": 2}'])
    [1.0, 0.6000000000000001, 0.2]
    """
    targets = [None] * len(completions) if target is None else target
    return [_score(completion, goal) for completion, goal in zip(completions, targets, strict=True)]


def make_json() -> Reward:
    """The reward `json_object`."""
    return json_object


def parse_json(text: str) -> object:
    """The JSON value that `text` is. Raises ValueError when it is none: NaN and Infinity are none, nor is what is
    nested too deeply for Python to read, as thousands of opening brackets are, which models do write.

    >>> parse_json('[1, {"a": null}]')
    [1, {'a': None}]
    """
    try:
        value: object = json.loads(text, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error
    return value


def _score(completion: str, target: object) -> float:
    found = _parse(completion)
    wanted = _parse(target) if isinstance(target, str) else target
    if target is not None and not isinstance(wanted, dict):
        raise ValueError(f"the target is {target!r}, expected a JSON object or its text")
    if found is None:
        return 0.0
    if not isinstance(wanted, dict):
        return 1.0
    keys = found.keys() | wanted.keys()
    agreeing = sum(key in found and key in wanted and _equal(found[key], wanted[key]) for key in keys)
    return VALID_CREDIT + (1 - VALID_CREDIT) * (agreeing / len(keys) if keys else 1.0)


def _parse(text: str) -> dict[str, object] | None:
    try:
        value = parse_json(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _equal(a: object, b: object) -> bool:
    """Equality of JSON values; unlike Python's, true is not 1."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    return isinstance(a, bool) == isinstance(b, bool) and a == b
