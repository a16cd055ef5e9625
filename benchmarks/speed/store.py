"""The results' files: one for each part, whose rows are replaced when they are measured again."""

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]
PARTS = ("generation", "early", "scaling", "refinement", "elites", "memory")
_KEY = ("part", "model", "individuals", "new_tokens")


class Store:
    """`speed_<part>.json` for each part in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def rows(self, part: str) -> list[Row]:
        path = self._path(part)
        found: list[Row] = json.loads(path.read_text()) if path.exists() else []
        return found

    def put(self, row: Row) -> None:
        """Write a row down at once, in the place of an older one of its kind: an interrupted run loses nothing."""
        part = row["part"]
        rows = {_key(old): old for old in self.rows(part)} | {_key(row): row}
        ordered = sorted(rows.values(), key=lambda each: [str(each["model"]), *_numbers(each)])
        self.write(part, ordered)

    def write(self, part: str, content: object) -> None:
        path = self._path(part)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(content, indent=1) + "\n")
        temporary.replace(path)

    def _path(self, part: str) -> Path:
        return self.folder / f"speed_{part}.json"


def _key(row: Row) -> tuple[object, ...]:
    return tuple(row.get(name) for name in _KEY)


def _numbers(row: Row) -> list[int]:
    return [row.get("new_tokens") or 0, row.get("individuals") or 0]
