"""Rows of data files, each with the place where it was read; whatever is wrong with a file is refused with its line."""

import csv
import json
from collections.abc import Iterable, Iterator
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import NamedTuple, NoReturn

from evolora.errors import InputError
from evolora.reading import open_file

VALIDATION = "validation"
SPLITS = ("train", VALIDATION, "test")
SPLIT_NAMES = ", ".join(SPLITS)
SUFFIXES = (".jsonl", ".csv")


class Row(NamedTuple):
    """A row as read, where it was read, and its split where the name of its file says so."""

    place: str
    values: dict[str, object]
    split: str | None = None


def data_rows(path: Path) -> Iterator[Row]:
    """The rows of a file, or of a folder's train, validation and test files, of which validation may be missing. Raises
    InputError for anything wrong."""
    if not path.exists():
        refuse(f"--data {path}", f"does not exist, expected a {' or '.join(SUFFIXES)} file or a folder of them")
    if not path.is_dir():
        yield from file_rows(path)
        return
    for split in SPLITS:
        found = [path / f"{split}{suffix}" for suffix in SUFFIXES if (path / f"{split}{suffix}").is_file()]
        if not found and split == VALIDATION:
            continue
        if len(found) != 1:
            both = "both " if found else "neither "
            refuse(f"--data {path}", f"has {both}{split}.jsonl {'and' if found else 'nor'} {split}.csv, expected one")
        yield from file_rows(found[0], split)


def file_rows(path: Traversable, split: str | None = None) -> Iterator[Row]:
    """The rows of one JSONL or CSV file. Raises InputError for anything wrong."""
    suffix = Path(path.name).suffix.lower()
    if suffix not in SUFFIXES:
        refuse(str(path), f"has the suffix {shown(suffix)}, expected {' or '.join(SUFFIXES)}")
    empty = True
    for line, values in (_jsonl_rows if suffix == ".jsonl" else _csv_rows)(path):
        empty = False
        yield Row(f"{path} line {line}", values, split)
    if empty:
        refuse(str(path), "has no rows, expected at least one")


def _lines(path: Traversable) -> Iterator[tuple[int, str]]:
    """The file's lines with their numbers, read one at a time and decoded one at a time, so that a bad byte has a line
    number. A byte order mark, as spreadsheets write it, is dropped."""
    try:
        # What the package itself has need not be a file.
        with open_file(path) if isinstance(path, Path) else path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    text = line.decode()
                except UnicodeDecodeError as error:
                    byte = f"0x{line[error.start]:02x}"
                    refuse(f"{path} line {number}", f"has the byte {byte} at {error.start + 1}, expected UTF-8 text")
                yield number, text.removeprefix("\ufeff") if number == 1 else text
    except OSError as error:
        refuse(str(path), f"cannot be read ({error.strerror}), expected a readable file")


def _jsonl_rows(path: Traversable) -> Iterator[tuple[int, dict[str, object]]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        place = f"{path} line {number}"
        try:
            value = json.loads(line, parse_constant=_no_constant)
        except json.JSONDecodeError as error:
            refuse(place, f"is not JSON ({error.msg} at column {error.colno}), expected one JSON object a line")
        except (ValueError, RecursionError) as error:
            refuse(place, f"is not JSON ({error}), expected one JSON object a line")
        if not isinstance(value, dict):
            refuse(place, f"is {shown(value)}, expected a JSON object")
        yield number, value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _csv_rows(path: Traversable) -> Iterator[tuple[int, dict[str, object]]]:
    # Strict: otherwise a quote that is never closed silently swallows the rest of the file.
    reader = csv.DictReader((line for _, line in _lines(path)), strict=True)
    try:
        header = reader.fieldnames or []
        for name in header:
            if header.count(name) > 1:
                refuse(f"{path} line 1", f"names the column {shown(name)} twice, expected each name once")
        for row in reader:
            place = f"{path} line {reader.line_num}"
            # DictReader files surplus cells under None and fills missing ones with None.
            cells = sum(value is not None for value in row.values()) - (None in row) + len(row.get(None) or [])
            if cells != len(header):
                refuse(place, f"has {cells} cells, expected {len(header)} as in the header")
            yield reader.line_num, dict(row)
    except csv.Error as error:
        refuse(f"{path} line {reader.reader.line_num}", f"is not CSV ({error}), expected comma-separated values")


def refuse(subject: str, predicate: str) -> NoReturn:
    """Refuse the input in one sentence, which names where it is wrong."""
    raise InputError(f"{subject} {predicate}.")


def shown(value: object) -> str:
    """The value on one short line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def listed(names: Iterable[str]) -> str:
    """The names of columns."""
    return ", ".join(shown(name) for name in names) or "no other columns"
