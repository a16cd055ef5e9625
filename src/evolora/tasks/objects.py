"""Rows from Python objects: lists of dictionaries, data sets of Hugging Face, pandas DataFrames."""

from collections.abc import Iterable, Mapping
from typing import Any

from evolora.errors import InputError
from evolora.tasks.rows import SPLITS, known_splits, plain_row, shown


def rows_of(data: Any) -> list[dict[str, Any]]:
    """The rows of `data`: an iterable of dictionaries (a list, a `datasets.Dataset`), a pandas DataFrame, or a mapping
    of splits to such (a `datasets.DatasetDict`, a dictionary): of one split, which is split again, or of train with
    validation, test or both, which become the column `split`. Dates and times become text.

    Raises InputError for anything else.

    >>> rows_of([{"prompt": "2 + 2 =", "target": "4"}])
    [{'prompt': '2 + 2 =', 'target': '4'}]
    >>> rows_of({"train": [{"prompt": "a"}], "validation": [{"prompt": "b"}], "test": [{"prompt": "c"}]})[2]
    {'prompt': 'c', 'split': 'test'}
    """
    if not isinstance(data, Mapping):
        return _rows(data, "data")
    names = known_splits(data, "data")
    rows = {name: _rows(data[name], f"data[{name!r}]") for name in data}
    if names == [None]:
        return next(iter(rows.values()))
    return [{**row, "split": split} for split in SPLITS if split in rows for row in rows[split]]


def _rows(data: Any, place: str) -> list[dict[str, Any]]:
    # A DataFrame iterates over the names of its columns. Known by what it can do: pandas need not be installed.
    records = data.to_dict(orient="records") if hasattr(data, "iterrows") and hasattr(data, "to_dict") else data
    if isinstance(records, str) or not isinstance(records, Iterable):
        raise InputError(f"{place}: found {type(data).__name__}, expected rows with a prompt, such as dictionaries")
    of_arrow = type(data).__module__.partition(".")[0] == "datasets"
    rows = []
    for number, row in enumerate(records):
        if not isinstance(row, Mapping):
            raise InputError(f"{place}[{number}]: found {shown(row)}, expected a dictionary with a prompt")
        rows.append(plain_row(row, f"{place}[{number}]", of_arrow=of_arrow))
    if not rows:
        raise InputError(f"{place}: has no rows, expected at least one")
    return rows
