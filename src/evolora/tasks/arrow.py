"""Rows that Arrow holds: Parquet files, and data sets of the Hugging Face hub, by its library `datasets`."""

import importlib.util
import re
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from pathlib import Path

from evolora.errors import InputError
from evolora.reading import open_file
from evolora.tasks.rows import Row, known_splits, plain_row, reason, refuse

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*")
_ROWS = 1000


def is_hub_name(data: str) -> bool:
    """Whether `data` can only be the name of a data set on the hub, owner/name: nothing here has that path."""
    return _HUB_NAME.fullmatch(data) is not None and not Path(data).exists()


def hub_rows(name: str, config: str | None, split: str | None) -> Iterator[Row]:
    """The rows of a data set of the hub, or of its copy in the library's cache: of one `split`, or of all.

    Raises InputError where it cannot be loaded, or has splits or values of another kind.
    """
    said = f"--data {name}"
    _need("datasets", said)
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    try:
        found = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the network's, the hub's, the data's
        refuse(said, f"is no file or folder, and no data set of the hub that can be loaded ({reason(error)})")
    splits = {str(split or ""): found} if isinstance(found, datasets.Dataset) else dict(found)
    names = known_splits(splits, said, ", or --data-split with one of them")
    for own, (called, data) in zip(names, splits.items(), strict=True):
        place = f"{said} {called}".rstrip()
        if not len(data):
            refuse(place, "has no rows, expected at least one")
        for start in range(0, len(data), _ROWS):
            part = data.select(range(start, min(start + _ROWS, len(data))))
            for number, record in enumerate(part.to_list(), start + 1):  # in which images are bytes
                yield Row(f"{place} row {number}", plain_row(record, f"{place} row {number}", of_arrow=True), own)


def parquet_rows(path: Traversable) -> Iterator[tuple[int, dict[str, object]]]:
    """The rows of a Parquet file, numbered from 1. Raises InputError for anything wrong."""
    _need("pyarrow", str(path))
    import pyarrow.parquet

    number = 0
    try:
        with open_file(Path(str(path))) as stream:
            for batch in pyarrow.parquet.ParquetFile(stream).iter_batches(_ROWS):
                for record in batch.to_pylist():
                    number += 1
                    yield number, plain_row(record, f"{path} row {number}", of_arrow=True)
    except InputError:
        raise
    except OSError as error:
        refuse(str(path), f"cannot be read ({error.strerror or reason(error)}), expected a readable file")
    except Exception as error:
        behind = f" behind row {number}" if number else ""
        refuse(str(path), f"is not Parquet{behind} ({reason(error)}), expected rows that Arrow can read")


def _need(package: str, subject: str) -> None:
    if importlib.util.find_spec(package) is None:
        refuse(subject, f"finds no package {package}, expected it: pip install 'evolora[data]'")
