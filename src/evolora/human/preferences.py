"""Preferences between two completions of a prompt, and the files that hold them."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from evolora.errors import InputError, encodes
from evolora.files import write_text
from evolora.reading import read_text

_KEYS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class Preference:
    """Of two completions of `prompt` the one that was `chosen` and the one that was `rejected`; in a `tie` neither is
    better, and their order means nothing."""

    prompt: str
    chosen: str
    rejected: str
    tie: bool = False


def read_preferences(path: Path) -> list[Preference]:
    """The preferences in a JSONL file of prompt, chosen and rejected, the explicit form that TRL's reward and DPO
    trainers read; further keys are ignored.

    Raises InputError, with file and line, for anything else, and for a file without any.
    """
    try:
        lines = read_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise InputError(f"{path}: {reason}, expected a JSONL file of prompt, chosen and rejected") from None
    found = [_preference(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise InputError(f"{path}: found no preferences, expected at least one line of prompt, chosen and rejected")
    return found


def _preference(line: str, place: str) -> Preference:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise InputError(f"{place}: not valid JSON ({reason}), expected an object") from None
    if not isinstance(row, dict) or any(key not in row for key in _KEYS):
        found = f"the keys {', '.join(row)}" if isinstance(row, dict) else f"{line.strip()[:60]!r}"
        raise InputError(f"{place}: found {found}, expected prompt, chosen and rejected")
    for key in _KEYS:
        if not isinstance(row[key], str):
            raise InputError(f"{place}: {key} is {str(row[key])[:60]!r}, expected text")
        if not encodes(row[key]):
            raise InputError(f"{place}: {key} is {row[key][:60]!r}, expected text that can be encoded as UTF-8")
    if row["chosen"] == row["rejected"]:
        raise InputError(f"{place}: chosen and rejected are the same text, expected two that differ")
    return Preference(row["prompt"], row["chosen"], row["rejected"])


def write_preferences(path: Path, preferences: Iterable[Preference]) -> None:
    """Write preferences in the form that `read_preferences` reads. It has no place for ties, which are left out."""
    rows = [{key: getattr(one, key) for key in _KEYS} for one in preferences if not one.tie]
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
