"""A row of data, wherever it was read, with values as JSON has them; and how whatever is wrong with it is said."""

import datetime
import decimal
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple, NoReturn

from evolora.errors import InputError

TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")
SPLIT_NAMES = ", ".join(SPLITS)


class Row(NamedTuple):
    """A row as read, where it was read, and its split where the name of its file says so."""

    place: str
    values: dict[str, object]
    split: str | None = None


def plain_row(record: Mapping[Any, Any], place: str, *, of_arrow: bool = False) -> dict[str, Any]:
    """The record with values as JSON has them: numpy's as Python's, dates and times as text, of which pandas' NaT is
    none, as NaN is. Arrow gives all the objects of a column the same keys: those without a value are left out.

    Raises InputError for bytes, an image or anything else that is neither text nor number.
    """
    row = {}
    for name, value in record.items():
        try:
            row[str(name)] = _plain(value, of_arrow)
        except (TypeError, RecursionError) as error:
            refuse(place, f"has in the column {shown(name)} {error}, expected text, numbers, lists or objects")
    return row


def _plain(value: Any, of_arrow: bool) -> Any:
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, int) and value.bit_length() > 10_000:  # which Python writes in no file
        raise TypeError("a number of thousands of digits")
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat() if value == value else None
    if isinstance(value, decimal.Decimal):
        value = float(value)
    if isinstance(value, float) and not math.isinf(value):
        return None if math.isnan(value) else value
    if isinstance(value, Mapping):
        kept = {str(name): each for name, each in value.items() if each is not None or not of_arrow}
        return {name: _plain(each, of_arrow) for name, each in kept.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, of_arrow) for each in value]
    raise TypeError(f"{value}" if isinstance(value, float) else f"a value of the type {type(value).__name__}")


def known_splits(names: Collection[str], subject: str, hint: str = "") -> list[str | None]:
    """What each split is to a task: of the only one nothing, as it is split again; else its name.

    Raises InputError for splits of other names, and where train is none of them.
    """
    if len(names) == 1:
        return [None]
    if TRAIN not in names or not set(names) <= set(SPLITS):
        found = ", ".join(map(str, names)) or "nothing"
        refuse(subject, f"has the splits {found}, expected one split, or {TRAIN} and others of {SPLIT_NAMES}{hint}")
    return list(names)


def refuse(subject: str, predicate: str) -> NoReturn:
    """Refuse the input in one sentence, which names where it is wrong."""
    raise InputError(f"{subject} {predicate}.")


def reason(error: BaseException) -> str:
    """An error of somebody else's on one line."""
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__


def shown(value: object) -> str:
    """The value on one short line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def listed(names: Iterable[str]) -> str:
    """The names of columns."""
    return ", ".join(shown(name) for name in names) or "no other columns"
