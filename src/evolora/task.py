"""Tasks: prompts, what is known about them, and which of them train, validate and test.

A task comes from one of three places: bundled with the package, a data file or folder, or one prompt given by hand.
Everything wrong with it is an `InputError` of one sentence that names the option, or the file and the line.
"""

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import NamedTuple, NoReturn

from evolora.errors import InputError
from evolora.rng import keyed_seed

SPLITS = ("train", "validation", "test")
SUFFIXES = (".jsonl", ".csv")

BUNDLED_TASKS = {"translate": "similarity", "arithmetic": "exact", "sentiment": "sentiment", "format": "json"}
"""The bundled tasks and the reward that each is scored by unless another is asked for."""

DEFAULT_TASK = "translate"

# A column of one of these names would collide with what every reward function is called with.
RESERVED_COLUMNS = ("prompts", "completions", "completion_ids")


@dataclass(frozen=True)
class Example:
    """A prompt and the other columns of its row (`target`, say), which the reward function gets as keywords."""

    prompt: str
    columns: dict[str, object]


@dataclass(frozen=True)
class Task:
    """Examples in three splits, each with at least one example.

    `reward` names the reward to score by, `columns` the columns besides the prompt, the same in every example.
    `held_out` says whether no test prompt is also a training or validation prompt; when it is false, a score on the
    test split says nothing about new prompts, and whoever reports it should say so.
    """

    name: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    reward: str
    held_out: bool
    columns: tuple[str, ...]


def columns_of(examples: Iterable[Example]) -> dict[str, list[object]]:
    """The examples' columns as lists, as a reward function takes them; no examples have no columns.

    >>> columns_of([Example("a", {"target": "A"}), Example("b", {"target": "B"})])
    {'target': ['A', 'B']}
    """
    columns: dict[str, list[object]] = {}
    for example in examples:
        for name, value in example.columns.items():
            columns.setdefault(name, []).append(value)
    return columns


def load_task(
    *,
    task: str | None = None,
    data: Path | str | None = None,
    prompt: str | None = None,
    target: str | None = None,
    reward: str | None = None,
    seed: int = 0,
    validation_share: float = 0.15,
    test_share: float = 0.15,
) -> Task:
    """The task that the options ask for: at most one of `task`, `data` and `prompt`, none meaning the task "translate".

    - `task` names a bundled task (see `BUNDLED_TASKS`).
    - `data` is a .jsonl or .csv file with a column `prompt`, or a folder that holds train, validation and test as such
      files. All further columns are handed to the reward. A column `split` (train, validation or test) decides where a
      row goes; without it `split_by_prompt` does.
    - `prompt`, with or without `target`, is a task of one example.

    Fewer than three distinct prompts cannot be split: then all three splits are the whole data and `held_out` is false.
    `reward` replaces the task's own; data without a column `target`, or a prompt without a target, needs one.
    The shares are fractions of the distinct prompts, each in (0, 1) with a sum below 1.

    Raises InputError, one sentence, for options in conflict and for anything wrong in the data.

    >>> load_task(prompt="2+2=", target="4", reward="exact").test
    (Example(prompt='2+2=', columns={'target': '4'}),)
    """
    _check_options(task=task, data=data, prompt=prompt, target=target)
    if not (0 < validation_share < 1 and 0 < test_share < 1 and validation_share + test_share < 1):
        _refuse(
            "validation_share and test_share",
            f"are {validation_share} and {test_share}, expected two numbers in (0, 1) with a sum below 1",
        )

    if prompt is not None:
        row: dict[str, object] = {"prompt": prompt} if target is None else {"prompt": prompt, "target": target}
        return _task_of("prompt", "--prompt", [_Row("--prompt", row)], reward, seed, validation_share, test_share)
    if data is not None:
        path = Path(data)
        return _task_of(
            path.resolve().stem, f"--data {path}", _data_rows(path), reward, seed, validation_share, test_share
        )
    bundled = bundled_task(DEFAULT_TASK if task is None else task)
    return bundled if reward is None else replace(bundled, reward=reward)


def bundled_task(name: str, *, root: Traversable | None = None) -> Task:
    """The bundled task `name`, from `root`/name/{train,validation,test}.jsonl; `root` is the package's own folder
    unless given. Raises InputError for an unknown name, listing the known ones, and for bad files."""
    if name not in BUNDLED_TASKS:
        _refuse("--task", f"is {_show(name)}, expected one of {', '.join(BUNDLED_TASKS)}")
    folder = (files("evolora") / "assets" / "tasks" if root is None else root) / name
    rows = (row for split in SPLITS for row in _file_rows(folder / f"{split}.jsonl", split))
    return _task_of(name, f"--task {name}", rows, BUNDLED_TASKS[name], seed=0, validation_share=0.15, test_share=0.15)


def split_by_prompt(
    prompts: Iterable[str], *, seed: int, validation_share: float, test_share: float
) -> dict[str, str] | None:
    """Which split each distinct prompt belongs to, or None when there are fewer than three of them.

    Prompts are ranked by a hash of the seed and the prompt; the first go to test, the next to validation, the rest to
    train, at least one to each. So the split depends on the seed and the set of prompts, not on the order of the rows
    or on how often a prompt occurs, and a prompt that is added moves few others.

    >>> split = split_by_prompt(["a", "b", "c", "a"], seed=0, validation_share=0.15, test_share=0.15)
    >>> sorted(split), sorted(split.values())
    (['a', 'b', 'c'], ['test', 'train', 'validation'])
    """
    ranked = sorted(set(prompts), key=lambda prompt: (keyed_seed(seed, "split", prompt), prompt))
    count = len(ranked)
    if count < len(SPLITS):
        return None
    test = min(max(1, round(test_share * count)), count - 2)
    validation = min(max(1, round(validation_share * count)), count - test - 1)
    names = ["test"] * test + ["validation"] * validation + ["train"] * (count - test - validation)
    return dict(zip(ranked, names, strict=True))


class _Row(NamedTuple):
    """A row as read, where it was read, and its split where the name of its file says so."""

    place: str
    values: dict[str, object]
    split: str | None = None


def _task_of(
    name: str,
    source: str,
    rows: Iterable[_Row],
    reward: str | None,
    seed: int,
    validation_share: float,
    test_share: float,
) -> Task:
    examples: list[Example] = []
    named_splits: list[str | None] = []
    first: _Row | None = None
    for row in rows:
        first = first or row
        _check_columns(row, first)
        examples.append(_example(row))
        named_splits.append(row.split or _split_column(row))
    assert first is not None  # every reader refuses a file without rows
    columns = tuple(examples[0].columns)
    if reward is None and "target" not in columns:
        found = "comes without --target" if source == "--prompt" else f"has no column 'target' but {_listed(columns)}"
        _refuse(source, f"{found} and so has no default reward, expected --reward")

    splits: dict[str, tuple[Example, ...]]
    if named_splits[0] is not None:
        splits = {
            split: tuple(e for e, named in zip(examples, named_splits, strict=True) if named == split)
            for split in SPLITS
        }
        for split in SPLITS:
            if not splits[split]:
                _refuse(
                    source, f"has no row with the split '{split}', expected at least one for each of {_SPLIT_NAMES}"
                )
    else:
        prompts = (example.prompt for example in examples)
        split_of = split_by_prompt(prompts, seed=seed, validation_share=validation_share, test_share=test_share)
        splits = {
            split: tuple(e for e in examples if split_of is None or split_of[e.prompt] == split) for split in SPLITS
        }
    seen = {example.prompt for split in ("train", "validation") for example in splits[split]}
    return Task(
        name=name,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        reward="similarity" if reward is None else reward,
        held_out=not any(example.prompt in seen for example in splits["test"]),
        columns=columns,
    )


def _check_options(*, task: str | None, data: Path | str | None, prompt: str | None, target: str | None) -> None:
    given = [
        option for option, value in (("--task", task), ("--data", data), ("--prompt", prompt)) if value is not None
    ]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} are both given, expected only one of --task, --data and --prompt.")
    if target is not None and prompt is None:
        beside = f"with {given[0]}" if given else "without --prompt"
        raise InputError(f"--target is given {beside}, expected --target only together with --prompt.")


# --- one row -----------------------------------------------------------------------------------------------------


def _check_columns(row: _Row, first: _Row) -> None:
    """Every row has the columns of the first: a reward function gets whole columns."""
    missing = [name for name in first.values if name not in row.values]
    if missing:
        _refuse(row.place, f"has no column {_show(missing[0])}, expected the columns of {first.place}")
    extra = [name for name in row.values if name not in first.values]
    if extra:
        _refuse(row.place, f"has the column {_show(extra[0])}, expected only the columns of {first.place}")


def _example(row: _Row) -> Example:
    if "prompt" not in row.values:
        _refuse(row.place, f"has no column 'prompt' but {_listed(row.values)}, expected one")
    prompt = row.values["prompt"]
    if not isinstance(prompt, str) or not prompt.strip():
        _refuse(row.place, f"has the prompt {_show(prompt)}, expected text that is not blank")
    try:
        prompt.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can escape and no tokenizer takes
        _refuse(row.place, f"has the prompt {_show(prompt)}, expected text that can be encoded as UTF-8")
    for name in RESERVED_COLUMNS:
        if name in row.values:
            _refuse(row.place, f"has a column '{name}', expected another name because rewards are called with that one")
    if "" in row.values:
        _refuse(row.place, "has a column without a name, expected a name for each column")
    if row.split is not None and "split" in row.values:
        _refuse(row.place, "has a column 'split', expected none because the name of the file already says the split")
    return Example(prompt, {name: value for name, value in row.values.items() if name not in ("prompt", "split")})


def _split_column(row: _Row) -> str | None:
    if "split" not in row.values:
        return None
    split = row.values["split"]
    if not isinstance(split, str) or split not in SPLITS:
        _refuse(row.place, f"has the split {_show(split)}, expected one of {_SPLIT_NAMES}")
    return split


# --- files -------------------------------------------------------------------------------------------------------


def _data_rows(path: Path) -> Iterator[_Row]:
    if not path.exists():
        _refuse(f"--data {path}", f"does not exist, expected a {' or '.join(SUFFIXES)} file or a folder of them")
    if not path.is_dir():
        yield from _file_rows(path)
        return
    for split in SPLITS:
        found = [path / f"{split}{suffix}" for suffix in SUFFIXES if (path / f"{split}{suffix}").is_file()]
        if len(found) != 1:
            both = "both " if found else "neither "
            _refuse(f"--data {path}", f"has {both}{split}.jsonl {'and' if found else 'nor'} {split}.csv, expected one")
        yield from _file_rows(found[0], split)


def _file_rows(path: Traversable, split: str | None = None) -> Iterator[_Row]:
    suffix = Path(path.name).suffix.lower()
    if suffix not in SUFFIXES:
        _refuse(str(path), f"has the suffix {_show(suffix)}, expected {' or '.join(SUFFIXES)}")
    empty = True
    for line, values in (_jsonl_rows if suffix == ".jsonl" else _csv_rows)(path):
        empty = False
        yield _Row(f"{path} line {line}", values, split)
    if empty:
        _refuse(str(path), "has no rows, expected at least one")


def _lines(path: Traversable) -> Iterator[tuple[int, str]]:
    """The file's lines with their numbers, read one at a time and decoded one at a time, so that a bad byte has a line
    number. A byte order mark, as spreadsheets write it, is dropped."""
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    text = line.decode()
                except UnicodeDecodeError as error:
                    byte = f"0x{line[error.start]:02x}"
                    _refuse(f"{path} line {number}", f"has the byte {byte} at {error.start + 1}, expected UTF-8 text")
                yield number, text.removeprefix("\ufeff") if number == 1 else text
    except OSError as error:
        _refuse(str(path), f"cannot be read ({error.strerror}), expected a readable file")


def _jsonl_rows(path: Traversable) -> Iterator[tuple[int, dict[str, object]]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        place = f"{path} line {number}"
        try:
            value = json.loads(line, parse_constant=_no_constant)
        except json.JSONDecodeError as error:
            _refuse(place, f"is not JSON ({error.msg} at column {error.colno}), expected one JSON object a line")
        except (ValueError, RecursionError) as error:
            _refuse(place, f"is not JSON ({error}), expected one JSON object a line")
        if not isinstance(value, dict):
            _refuse(place, f"is {_show(value)}, expected a JSON object")
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
                _refuse(f"{path} line 1", f"names the column {_show(name)} twice, expected each name once")
        for row in reader:
            place = f"{path} line {reader.line_num}"
            # DictReader files surplus cells under None and fills missing ones with None.
            cells = sum(value is not None for value in row.values()) - (None in row) + len(row.get(None) or [])
            if cells != len(header):
                _refuse(place, f"has {cells} cells, expected {len(header)} as in the header")
            yield reader.line_num, dict(row)
    except csv.Error as error:
        _refuse(f"{path} line {reader.reader.line_num}", f"is not CSV ({error}), expected comma-separated values")


# --- wording -----------------------------------------------------------------------------------------------------

_SPLIT_NAMES = ", ".join(SPLITS)


def _refuse(subject: str, predicate: str) -> NoReturn:
    raise InputError(f"{subject} {predicate}.")


def _show(value: object) -> str:
    """The value on one short line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _listed(names: Iterable[str]) -> str:
    return ", ".join(_show(name) for name in names) or "no other columns"
