"""Lines of JSON that name their run and vouch for the lines before them: a changed, lost or foreign one is found."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evolora.errors import CheckpointError
from evolora.runs.identity import check_run

_LINE = re.compile(rb'(\{.*"run": "([^"]*)"), "check": "([0-9a-f]{16})"\}')


def chained(content: Mapping[str, Any], run: str, before: str) -> tuple[str, str]:
    """The line of a JSON object, and its check, which is by the line and by the check of the line `before`."""
    text = json.dumps({**content, "run": run}, allow_nan=False).removesuffix("}")
    check = _check(text.encode(), before)
    return f'{text}, "check": "{check}"}}\n', check


def unchained(line: str) -> tuple[dict[str, Any], str]:
    """A line's JSON object, and its check. Raises ValueError when it is cut short."""
    content = json.loads(line)
    del content["run"]
    return content, content.pop("check")


def check_chain(path: Path, run: str, generation: int) -> None:
    """Raise CheckpointError, naming the line, when one of those up to `generation` is missing or altered, InputError
    when it is of another run."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    before = ""
    for number in range(1, generation + 1):
        if number > len(lines):
            raise CheckpointError(f"{path}: has no line of generation {number}, expected {generation} generations")
        found = _follows(lines[number - 1], before)
        if found is None:
            raise CheckpointError(f"{path}: line {number} is altered, or one is missing before it")
        before = found[3].decode()
        check_run(path, found[2].decode(), run)


def chain_of(path: Path) -> list[dict[str, Any]]:
    """What the lines say. Raises CheckpointError, naming the line, where one is altered or missing, but for a last one
    that was cut short."""
    text = path.read_bytes()
    whole = whole_lines(path)
    if b"\n" in text[len(whole) :]:
        number = whole.count(b"\n") + 1
        raise CheckpointError(f"{path}: line {number} is altered, or one is missing before it")
    return [json.loads(line) for line in whole.splitlines()]


def whole_lines(path: Path) -> bytes:
    """The first lines that are as they were written."""
    kept, before = b"", ""
    for line in path.read_bytes().splitlines():
        if (found := _follows(line, before)) is None:
            break
        kept, before = kept + line + b"\n", found[3].decode()
    return kept


def _follows(line: bytes, before: str) -> re.Match[bytes] | None:
    found = _LINE.fullmatch(line)
    return found if found is not None and found[3].decode() == _check(found[1], before) else None


def _check(text: bytes, before: str) -> str:
    return hashlib.sha256(before.encode() + text).hexdigest()[:16]
