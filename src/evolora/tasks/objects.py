"""Rows from Python objects: lists of dictionaries, data sets of Hugging Face, pandas DataFrames."""

import datetime
from collections.abc import Iterable, Mapping
from typing import Any

from evolora.errors import InputError
from evolora.tasks.files import SPLIT_NAMES, SPLITS, VALIDATION, shown


def rows_of(data: Any) -> list[dict[str, Any]]:
    """The rows of `data`: an iterable of dictionaries (a list, a `datasets.Dataset`), a pandas DataFrame, or a mapping
    of splits to such (a `datasets.DatasetDict`, a dictionary): of one split, which is split again, or of train, test
    and, if there is one, validation, which become the column `split`. Dates and times become text.

    Raises InputError for anything else.

    >>> rows_of([{"prompt": "2 + 2 =", "target": "4"}])
    [{'prompt': '2 + 2 =', 'target': '4'}]
    >>> rows_of({"train": [{"prompt": "a"}], "validation": [{"prompt": "b"}], "test": [{"prompt": "c"}]})[2]
    {'prompt': 'c', 'split': 'test'}
    """
    if not isinstance(data, Mapping):
        return _rows(data, "data")
    if len(data) == 1:
        ((name, only),) = data.items()
        return _rows(only, f"data[{name!r}]")
    if set(data) | {VALIDATION} != set(SPLITS):
        found = ", ".join(map(str, data)) or "nothing"
        raise InputError(f"data: found the splits {found}, expected one split, or {SPLIT_NAMES}")
    splits = [split for split in SPLITS if split in data]
    return [{**row, "split": split} for split in splits for row in _rows(data[split], f"data[{split!r}]")]


def _rows(data: Any, place: str) -> list[dict[str, Any]]:
    # A DataFrame iterates over the names of its columns. Known by what it can do: pandas need not be installed.
    records = data.to_dict(orient="records") if hasattr(data, "iterrows") and hasattr(data, "to_dict") else data
    if isinstance(records, str) or not isinstance(records, Iterable):
        raise InputError(f"{place}: found {type(data).__name__}, expected rows with a prompt, such as dictionaries")
    rows = []
    for number, row in enumerate(records):
        if not isinstance(row, Mapping):
            raise InputError(f"{place}[{number}]: found {shown(row)}, expected a dictionary with a prompt")
        rows.append({str(name): _plain(value) for name, value in row.items()})
    if not rows:
        raise InputError(f"{place}: has no rows, expected at least one")
    return rows


def _plain(value: Any) -> Any:
    """numpy's numbers and arrays as Python's; dates and times as text, of which pandas' NaT is none."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat() if value == value else None
    return value
