"""Rows of data files, each with the place where it was read; whatever is wrong with a file is refused with its line."""

import csv
import json
import re
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import NoReturn

from evolora.reading import open_file
from evolora.tasks.arrow import parquet_rows
from evolora.tasks.rows import SPLITS, TRAIN, Row, refuse, shown

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
KINDS = " or ".join(SUFFIXES)


def data_rows(path: Path) -> Iterator[Row]:
    """The rows of a file, or of a folder's train, validation and test files, of which only train must be there. Raises
    InputError for anything wrong."""
    if not path.exists():
        refuse(f"--data {path}", f"does not exist, expected a {KINDS} file, a folder of them or owner/name on the hub")
    if not path.is_dir():
        yield from file_rows(path)
        return
    for split in SPLITS:
        found = [name for suffix in SUFFIXES if (path / (name := f"{split}{suffix}")).is_file()]
        if len(found) > 1:
            refuse(f"--data {path}", f"has {' and '.join(found)}, expected one of them")
        if not found and split == TRAIN:
            refuse(f"--data {path}", f"has no {' or '.join(TRAIN + suffix for suffix in SUFFIXES)}, expected one")
        for name in found:
            yield from file_rows(path / name, split)


def file_rows(path: Traversable, split: str | None = None) -> Iterator[Row]:
    """The rows of one file. Raises InputError for anything wrong."""
    suffix = Path(path.name).suffix.lower()
    if suffix not in SUFFIXES:
        refuse(str(path), f"has the suffix {shown(suffix)}, expected {KINDS}")
    readers = {".jsonl": _jsonl_rows, ".json": _json_rows, ".csv": _csv_rows, ".parquet": parquet_rows}
    empty = True
    for number, values in readers[suffix](path):
        empty = False
        yield Row(f"{path} {'row' if suffix == '.parquet' else 'line'} {number}", values, split)
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
            value = _DECODER.decode(line)
        except json.JSONDecodeError as error:
            refuse(place, f"is not JSON ({error.msg} at column {error.colno}), expected one JSON object a line")
        except (ValueError, RecursionError) as error:
            refuse(place, f"is not JSON ({error}), expected one JSON object a line")
        yield number, _object(place, value)


def _json_rows(path: Traversable) -> Iterator[tuple[int, dict[str, object]]]:
    """The objects of a JSON array, each with the line that it begins in; without an array, those of JSONL."""
    text = "".join(line for _, line in _lines(path))
    place = _after(text, 0)
    if text[place : place + 1] != "[":
        yield from _jsonl_rows(path)
        return
    line, counted = 1, 0
    more = text[(place := _after(text, place + 1)) : place + 1] != "]"
    while more:
        line, counted = line + text.count("\n", counted, place), place
        try:
            value, place = _DECODER.raw_decode(text, place)
            more = text[(place := _after(text, place)) : place + 1] == ","
            if not more and text[place : place + 1] != "]":
                raise json.JSONDecodeError("Expecting ',' or ']'", text, place)
        except json.JSONDecodeError as error:
            said = f"{error.msg} at column {error.colno}"
            refuse(f"{path} line {error.lineno}", f"is not JSON ({said}), expected an array of JSON objects")
        except (ValueError, RecursionError) as error:
            refuse(f"{path} line {line}", f"is not JSON ({error}), expected an array of JSON objects")
        yield line, _object(f"{path} line {line}", value)
        place = _after(text, place + 1) if more else place
    if rest := text[place + 1 :].strip():
        number = 1 + text.count("\n", 0, _after(text, place + 1))
        refuse(f"{path} line {number}", f"goes on with {shown(rest)} behind the array, expected its end")


def _after(text: str, place: int) -> int:
    """The place behind blanks."""
    found = _BLANKS.match(text, place)
    return found.end() if found else place


def _object(place: str, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        refuse(place, f"is {shown(value)}, expected a JSON object")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)
_BLANKS = re.compile(r"[ \t\n\r]*")


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
