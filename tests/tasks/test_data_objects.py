"""Rows from Python objects, as people have them."""

import datetime
from typing import Any

import datasets
import numpy as np
import pandas
import pytest

from evolora.errors import InputError
from evolora.tasks.objects import rows_of

ROWS = [{"prompt": f"{a} + 2 =", "target": str(a + 2), "number": a} for a in range(4)]


@pytest.mark.parametrize(
    "data",
    [
        ROWS,
        tuple(ROWS),
        iter(ROWS),
        datasets.Dataset.from_list(ROWS),
        datasets.Dataset.from_list(ROWS).to_iterable_dataset(),
        datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}),
        pandas.DataFrame(ROWS),
    ],
    ids=["list", "tuple", "iterator", "Dataset", "IterableDataset", "DatasetDict", "DataFrame"],
)
def test_every_kind_gives_the_same_rows(data: Any) -> None:
    found = rows_of(data)
    assert found == ROWS
    assert all(type(row["number"]) is int for row in found), "JSON can hold them"


def test_three_splits_become_the_column_split() -> None:
    whole = datasets.Dataset.from_list(ROWS)
    found = rows_of(datasets.DatasetDict({"train": whole, "validation": whole.select([0]), "test": whole.select([1])}))
    assert [row["split"] for row in found] == ["train"] * 4 + ["validation", "test"]


def test_train_and_test_alone_are_named_too() -> None:
    whole = datasets.Dataset.from_list(ROWS)
    found = rows_of(datasets.DatasetDict({"train": whole, "test": whole.select([1])}))
    assert found == rows_of({"test": ROWS[1:2], "train": ROWS})
    assert [row["split"] for row in found] == ["train"] * 4 + ["test"]
    found = rows_of(datasets.DatasetDict({"train": whole, "validation": whole.select([1])}))
    assert [row["split"] for row in found] == ["train"] * 4 + ["validation"]


def test_keys_that_arrow_adds_to_objects_are_left_out() -> None:
    """It gives all objects of a column the same keys."""
    rows = [
        {"messages": [{"role": "user", "content": "a"}], "info": {"x": 1}},
        {"messages": [{"role": "assistant", "content": "b", "name": "c"}], "info": {"y": None}},
    ]
    found = rows_of(datasets.Dataset.from_list(rows))
    assert found == [{**rows[0]}, {"messages": rows[1]["messages"], "info": {}}]
    assert rows_of(rows) == rows, "what somebody wrote stays"


def test_dates_and_times_are_text() -> None:
    frame = pandas.DataFrame({"prompt": ["a", "b"], "when": pandas.to_datetime(["2026-01-02 03:04", None])})
    frame["day"] = datetime.date(2026, 1, 2)
    frame["array"] = [np.array([1, 2]), np.array([3])]
    assert rows_of(frame) == [
        {"prompt": "a", "when": "2026-01-02T03:04:00", "day": "2026-01-02", "array": [1, 2]},
        {"prompt": "b", "when": None, "day": "2026-01-02", "array": [3]},
    ]
    assert rows_of([{"prompt": "a", "when": np.datetime64("2026-01-02")}])[0]["when"] == "2026-01-02"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("text", "found str"),
        (3, "found int"),
        ([], "has no rows"),
        ([1, 2], r"data\[0\]: found 1"),
        ({"train": ROWS, "dev": ROWS}, "has the splits train, dev, expected one split"),
        ({"test": ROWS, "validation": ROWS}, "has the splits test, validation, expected one split"),
        ({}, "has the splits nothing"),
        ([{"prompt": "a", "image": b"\x89PNG"}], r"data\[0\] has in the column 'image' a value of the type bytes"),
        ([{"prompt": "a", "x": {"y": [float("inf")]}}], r"data\[0\] has in the column 'x' inf"),
        ([{"prompt": "a", "x": {1, 2}}], "a value of the type set"),
        ([{"prompt": "a", "x": 9**9999}], "thousands of digits"),
        ({"train": "text"}, r"data\['train'\]: found str"),
    ],
)
def test_anything_else_is_refused_in_a_sentence(data: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        rows_of(data)


def test_numbers_of_numpy_become_python_s() -> None:
    assert rows_of([{"prompt": "p", "x": np.float32(0.5), "y": np.int64(3)}]) == [{"prompt": "p", "x": 0.5, "y": 3}]
